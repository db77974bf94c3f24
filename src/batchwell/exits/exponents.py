"""What batch size does to escape: exponents of SGD and of its diffusion, and the batch that holds.

``E tau ~ exp(V / eps)``, eps = eta/B times the finite-population factor. With replacement V
is the same for all batch sizes: batching never makes SGD's exponent the diffusion's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..domain import Domain
from ..dynamics import SGD, Sampling, diffusion_approximation
from ..errors import InputError, RunError, positive, require
from ..estimate import Estimate
from .by_action import FACTOR
from .channels import DRAWN, channels, follow
from .regime import attractor, drift_jacobian


@dataclass(frozen=True)
class ExponentRow:
    """Exponents at one batch size.

    Attributes
    ----------
    batch_size, sampling
        Of SGD.
    temperature
        eps.
    sgd, diffusion
        V of SGD itself (``inf`` where bounded noise never escapes) and of its diffusion.
    note
        Regime.
    """

    batch_size: int
    sampling: str
    temperature: float
    sgd: float
    diffusion: float
    note: str = ""

    @property
    def ratio(self) -> float:
        """V(SGD) / V(diffusion)."""
        return self.sgd / self.diffusion


def exponent_map(
    process: SGD,
    start: ArrayLike,
    domain: Domain,
    batch_sizes: Sequence[int] | None = None,
    samplings: Sequence[Sampling] = ("with_replacement",),
    **options: Any,
) -> list[ExponentRow]:
    """V of SGD and of its diffusion by batch size and sampling mode.

    Parameters
    ----------
    batch_sizes, samplings
        One row for each pair of them that exists; by default SGD's own batch size, with replacement.

    Raises
    ------
    InputError
        Not SGD, a bad start or domain, or a sampling mode without exponent (reshuffled epochs).

    Examples
    --------
    >>> from batchwell import additive, ball
    >>> sgd = SGD(additive(lambda x: x @ x / 2, "rademacher"), learning_rate=0.1)
    >>> row = exponent_map(sgd, [0.0], ball([0.0], 0.8))[0]
    >>> round(row.sgd, 5), round(row.diffusion, 5)
    (0.88919, 0.64)
    """
    if not isinstance(process, SGD):
        raise InputError("process", "a diffusion", "must be SGD: the map compares it with its own")
    minimum = attractor(process, start, domain)
    sizes = (process.batch_size,) if batch_sizes is None else _listed("batch_sizes", batch_sizes)
    samplings = _listed("samplings", samplings)
    base = _least(diffusion_approximation(process), minimum, domain, options)[0]
    found: dict[tuple[str, int], tuple[float, str]] = {}
    for sampling in samplings:
        cases = [replace(process, batch_size=b, sampling=sampling) for b in sorted(set(sizes))]
        values = _by_size(cases, minimum, domain, options)
        found |= {(sampling, c.batch_size): v for c, v in zip(cases, values, strict=True)}
    return [
        ExponentRow(
            size,
            sampling,
            replace(process, batch_size=size, sampling=sampling).temperature,
            found[sampling, size][0],
            base,
            found[sampling, size][1],
        )
        for sampling in samplings
        for size in sizes
    ]


def _listed(key: str, values: Any) -> tuple[Any, ...]:
    """`values` as a tuple: neither one value alone nor none."""
    alone = isinstance(values, str) or not hasattr(values, "__iter__")
    listed = () if alone else tuple(values)
    require(bool(listed), key, values, "must be a list of at least one")
    return listed


def _by_size(
    cases: list[SGD], minimum: np.ndarray, domain: Domain, options: Any
) -> list[tuple[float, str]]:
    """(V, note) for chains of growing batch size that differ in nothing else.

    Draws without replacement start from the paths of draws with replacement, which are theirs at
    B = 1, and follow them from size to size.
    """
    first = cases[0]
    if first.sampling != "without_replacement" or first.loss.noise is not None:
        return [_least(case, minimum, domain, options) for case in cases]
    out: list[tuple[float, str]] = []
    try:
        ways = channels(replace(first, sampling=DRAWN), minimum, domain, **options)
        for case in cases:
            # A subset of one example is a draw of one example.
            ways = ways if case.batch_size == 1 else follow(case, ways, domain)
            out.append((ways[0].path.action, ""))
    except RunError as error:
        if "never escapes" not in str(error):
            raise
        # Means over more examples reach less far.
        out += [(math.inf, str(error))] * (len(cases) - len(out))
    return out


def _least(process: Any, minimum: np.ndarray, domain: Domain, options: Any) -> tuple[float, str]:
    try:
        return channels(process, minimum, domain, **options)[0].path.action, ""
    except RunError as error:
        if "never escapes" in str(error):
            return math.inf, str(error)
        raise


def holding_batch_size(
    process: SGD,
    start: ArrayLike,
    domain: Domain,
    steps: float,
    chance: float = 0.5,
    **options: Any,
) -> Estimate:
    """Smallest batch size at which `domain` holds SGD for `steps` steps with chance `chance`.

    From ``log E tau = V / eps + log(prefactor)`` with SGD's own V and one relaxation time as
    prefactor; the interval lets the prefactor vary by a factor of 10 either way.

    Raises
    ------
    InputError
        As `exponent_map`; `chance` outside (0, 1).

    Examples
    --------
    >>> from batchwell import additive, half_space
    >>> sgd = SGD(additive(lambda x: (x @ x - 1) ** 2 / 4), learning_rate=0.2)
    >>> print(holding_batch_size(sgd, [-1.0], half_space([1.0], 0.0), steps=1e6))
    6 [5, 7] examples
    """
    steps = positive("steps", steps)
    require(0 < chance < 1, "chance", chance, "must lie strictly between 0 and 1")
    if not isinstance(process, SGD):
        raise InputError("process", "a diffusion", "must be SGD")
    minimum = attractor(process, start, domain)
    value, note = _least(process, minimum, domain, options)
    jacobian = drift_jacobian(process, minimum)
    slowest = -float(np.linalg.eigvals(jacobian).real.max())
    # Exponential exits: held for `steps` with the chance exp(-steps / tau).
    tau = steps / -math.log(chance)
    need = math.log(tau * slowest * process.learning_rate)
    sizes = [
        _batch(process, value, need + shift) for shift in (0.0, -math.log(FACTOR), math.log(FACTOR))
    ]
    how = "least action, prefactor within a factor of 10"
    notes = [f"V = {value:.6g}; held for {steps:g} steps with chance {chance:g}"]
    if note:
        notes.append(note)
    if process.sampling == "without_replacement":
        notes.append("V taken at the given batch size, eps at the answer's")
    return Estimate(
        sizes[0], math.nan, (sizes[1], sizes[2]), "examples", how, 0, notes=tuple(notes)
    )


def _batch(process: SGD, value: float, need: float) -> float:
    """Smallest whole B with ``V / eps(B) >= need``."""
    if need <= 0 or math.isinf(value):
        return 1.0
    wanted = need * process.learning_rate / value  # 1 / batch factor
    if process.sampling == "with_replacement":
        return float(math.ceil(wanted - 1e-9))
    n = process.loss.n
    assert n is not None
    # (n - 1) B / (n - B) >= wanted
    return float(min(n, math.ceil(wanted * n / (n - 1 + wanted) - 1e-9)))
