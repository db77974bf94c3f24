"""Which engine runs a process, and in which form: straight-line code or array code."""

from __future__ import annotations

import contextlib

from ..domain import Domain
from ..dynamics import Process
from . import fused
from .exit_kernel import Exit
from .exits import exit_test
from .lowering import Unsupported
from .observe import Observable, lowers
from .options import Settings


def engine_for(process: Process, settings: Settings, loops: bool | None = None) -> fused.Engine:
    """The engine that settings ask for; raises `lowering.Unsupported`."""
    return fused.engine_of(process, settings.scheme, settings.precision, loops, settings.generator)


def engine_with_test(
    process: Process, domain: Domain, bridge: bool, settings: Settings
) -> tuple[fused.Engine, Exit]:
    """An engine and its test for having left: array code where the test needs it."""
    engine = engine_for(process, settings)
    try:
        return engine, exit_test(process, domain, bridge, engine.recipe.loops)
    except Unsupported:
        engine = engine_for(process, settings, not engine.recipe.loops)
    return engine, exit_test(process, domain, bridge, engine.recipe.loops)


def loops_for(process: Process, observable: Observable, settings: Settings) -> bool | None:
    """True when only array code has a form for the observable."""
    if settings.engine == "xla":
        return None
    with contextlib.suppress(Unsupported):
        engine = engine_for(process, settings)
        dim, missing = engine.recipe.dim, not lowers(observable, engine.recipe.dim, False)
        if not engine.recipe.loops and missing and lowers(observable, dim, True):
            return engine_for(process, settings, True).recipe.loops
    return None
