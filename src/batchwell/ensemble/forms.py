"""The plan of a process in either form of code: straight lines, or loops over arrays."""

from __future__ import annotations

from types import ModuleType

from ..dynamics import SGD, Process
from . import loop_recipes, recipes
from .plans import Plan, from_loss, over_rows


def plan_of(process: Process, scheme: str, kind: str, loops: bool) -> Plan:
    """The plan of a process, as array code if `loops`; equal plans are made once.

    Raises
    ------
    Unsupported
        Something in the loss has no such form.
    """
    form: ModuleType = loop_recipes if loops else recipes
    plan: Plan
    if isinstance(process, SGD):
        momentum, single = process.momentum > 0, process.batch_size == 1
        if process.loss.noise is not None:
            plan = form.sampled_plan(process.loss, momentum, single)
        else:
            plan = form.data_plan(process.loss, process.sampling, momentum, single, kind)
    elif scheme == "platen":
        plan = form.platen_plan(process)
    elif not from_loss(process):
        plan = form.own_plan(process, scheme)
    else:
        assert process.sgd is not None
        loss = process.sgd.loss
        make = form.rows_plan if over_rows(loss) else form.closed_plan
        plan = make(loss, process.order, scheme)
    return plan
