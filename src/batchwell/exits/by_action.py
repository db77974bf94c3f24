"""Exit times from the action alone: the exponent is sharp, the prefactor a guess."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..domain import Domain
from ..dynamics import Process
from ..estimate import Estimate
from .channels import channels
from .regime import attractor, check_level, drift_jacobian

# What a prefactor of a well-behaved problem stays within, either way.
FACTOR = 10.0


def by_action(process: Process, start: ArrayLike, domain: Domain, **options: Any) -> Estimate:
    """Mean exit time ``exp(V / eps)`` times the slowest relaxation time, in SGD steps.

    V is the least action of SGD's own Hamiltonian or of the diffusion's. Good to its logarithm:
    the interval is a factor of 10 either way, no confidence statement. `options` go to
    `action.instantons`.

    Raises
    ------
    InputError
        Start outside, flow out of the domain, reshuffled epochs, heavy-tailed noise, or a domain
        without a level function.
    RunError
        Bounded noise that never escapes; no way out found.

    Examples
    --------
    >>> from batchwell import SGD, additive, half_space
    >>> well = additive(lambda x: (x @ x - 1) ** 2 / 4)
    >>> out = by_action(SGD(well, 0.1), [-1.0], half_space([1.0], 0.0))
    >>> round(math.log(out.value * 0.1 * 2), 6)
    5.0
    """
    check_level(domain)
    minimum = attractor(process, start, domain)
    best = channels(process, minimum, domain, **options)[0]
    jacobian = drift_jacobian(process, minimum)
    slowest = -float(np.linalg.eigvals(jacobian).real.max())
    log_steps = best.path.exponent - math.log(slowest * process.learning_rate)
    value = math.exp(log_steps) if log_steps < 700 else math.inf
    where = "a saddle" if best.saddle is not None else "the boundary against the drift"
    notes = [
        f"logarithmic accuracy only: exponent V/eps = {best.path.exponent:.6g}, V = "
        f"{best.path.action:.6g}, prefactor taken as one relaxation time",
        f"most likely exit over {where} at {np.array2string(best.path.end, precision=4)}",
        *best.path.notes,
    ]
    if best.path.exponent < 5:
        notes.append(
            f"V/eps = {best.path.exponent:.3g} is below 5: not yet in the regime of rare exits"
        )
    return Estimate(
        value,
        math.nan,
        (value / FACTOR, value * FACTOR),
        "steps",
        "least action, within a factor of 10",
        0,
        notes=tuple(notes),
    )
