"""What a step of a path costs, known before one is taken: budgets then depend on no clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .._jax import jax, jnp
from ..domain import Domain
from ..dynamics import SGD, Process, dimension

TRANSCENDENTAL = 10.0  # additions that an exponential or a logarithm stands for
WORK = 1e11  # most operations of a simulation that sets its own length: half a minute
MANY = 64  # examples above which a sum over them is slow
SUMS, ASK = "sums over all examples", ", minutes a cell: ask for it by --method"
FEWER: Mapping[str, int] = {"particles": 128, "replicas": 8}  # of splitting by a survey, then


def step_work(process: Process, domain: Domain, substeps: int) -> float:
    """Floating-point operations of one SGD step of one path, with the test of the domain.

    A diffusion of finite data sums over all examples in each of its `substeps`; so does the level
    function of a sublevel set of the loss, for SGD too.

    Examples
    --------
    >>> from batchwell import SGD, additive, ball
    >>> step_work(SGD(additive(lambda x: x @ x / 2), 0.1), ball([0.0], 1.0), 1) < 100
    True
    """
    dim, level = dimension(process), domain.level
    test = 0.0 if level is None else _operations(level, dim)
    if isinstance(process, SGD):
        loss = process.loss
        whole = _operations(loss.gradient, dim)
        finite = loss.noise is None and loss.size
        return test + (whole * process.batch_size / loss.size if finite else whole)
    # Heun's scheme asks for the drift twice.
    return substeps * (
        2 * _operations(process.drift, dim) + _operations(process.tensor, dim) + test
    )


def declined(process: Process) -> dict[str, str]:
    """Method -> why a survey does not ask it: sums over many examples that would take minutes."""
    if not sums_over_many(process):
        return {}
    out = {"importance": f"tilting {SUMS} in each step{ASK} importance"}
    if not isinstance(process, SGD):
        out["splitting"] = f"the diffusion {SUMS} in each substep{ASK} splitting"
        if dimension(process) == 3:
            out["law"] = f"the noise {SUMS} at every node of a grid of 3 dimensions{ASK} law"
    return out


def sums_over_many(process: Process) -> bool:
    """Whether drift and noise are sums over many examples."""
    sgd = process if isinstance(process, SGD) else process.sgd
    return sgd is not None and sgd.loss.noise is None and sgd.loss.size > MANY


def _operations(function: Callable[[Any], Any], dim: int) -> float:
    lowered = jax.jit(function).lower(jax.ShapeDtypeStruct((dim,), jnp.float64))
    counts = lowered.cost_analysis() or {}
    slow = float(counts.get("transcendentals", 0.0))
    return float(counts.get("flops", 0.0)) + TRANSCENDENTAL * slow
