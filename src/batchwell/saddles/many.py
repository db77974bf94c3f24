"""Many saddles, batch sizes and learning rates: sequences, and the almost linear law in numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..domain import Domain
from ..dynamics import SGD, Process
from ..errors import require
from .exit import saddle_exit
from .outcome import SaddleExit

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SaddleSequence:
    """Saddles passed one after the other: times and the total.

    Attributes
    ----------
    stages
        Law at each saddle.
    mean, variance
        Of the total time, in SGD steps (stages taken as independent).
    """

    stages: tuple[SaddleExit, ...]
    mean: float
    variance: float


def saddle_sequence(
    process: Process, saddles: list[ArrayLike], domains: list[Domain]
) -> SaddleSequence:
    """Total time of a descent past `saddles` in order, each left through its own domain.

    Flow between neighbourhoods is not counted: it is O(1/eta) steps without a logarithm. Each
    saddle is assumed to be approached along its stable directions to within its own noise.

    Raises
    ------
    InputError
        Lists of unequal length, or what `saddle_exit` refuses.
    """
    require(
        len(saddles) == len(domains) >= 1,
        "domains",
        len(domains),
        f"must have one domain for each of the {len(saddles)} saddles",
    )
    stages = []
    for x, domain in zip(saddles, domains, strict=True):
        stage = saddle_exit(process, x, domain)
        assert isinstance(stage, SaddleExit)
        stages.append(stage)
    return SaddleSequence(
        tuple(stages), sum(s.mean for s in stages), sum(s.variance for s in stages)
    )


def batch_size_law(process: SGD, saddle: ArrayLike, domain: Domain, sizes: list[int]) -> Floats:
    """Mean steps to leave `saddle`, shape (len(sizes),), for each batch size.

    To leading order ``log(B / eta) / (2 lambda eta)``: doubling B adds
    ``log 2 / (2 lambda eta)`` steps.
    """
    means = []
    for size in sizes:
        law = saddle_exit(replace(process, batch_size=size), saddle, domain)
        assert isinstance(law, SaddleExit)
        means.append(law.mean)
    return np.array(means)


@dataclass(frozen=True, eq=False)
class EscapeLaws:
    """Steps from a saddle beside steps from a minimum: numbers of a figure.

    Attributes
    ----------
    rate
        lambda, the growth rate at the saddle per unit of time.
    batch_sizes, inverse_rates
        B at the given learning rate; 1/eta at B = 1.
    by_batch, by_rate
        "saddle": mean steps (`SaddleExit`); "log law": ``log(B/eta) / (2 lambda eta)`` and a
        constant that meets it at the last point; "minimum": ``exp(V B/eta)`` through one known
        mean exit time.
    """

    rate: float
    batch_sizes: Floats = field(repr=False)
    inverse_rates: Floats = field(repr=False)
    by_batch: dict[str, Floats] = field(repr=False)
    by_rate: dict[str, Floats] = field(repr=False)


def escape_laws(
    process: SGD, saddle: ArrayLike, domain: Domain, exponent: float, log_prefactor: float
) -> EscapeLaws:
    """The almost linear law beside the exponential one, over batch size and learning rate.

    Parameters
    ----------
    saddle, domain
        As in `saddle_exit`.
    exponent, log_prefactor
        V and c of the exit from a minimum: ``eta steps = exp(V B/eta + c)``.

    Examples
    --------
    >>> from batchwell import additive, ball
    >>> sgd = SGD(additive(lambda x: -(x @ x) / 2), 0.05)
    >>> laws = escape_laws(sgd, [0.0], ball([0.0], 1.0), exponent=0.5, log_prefactor=1.0)
    >>> bool(np.all(laws.by_batch["minimum"][6:] > 1e4 * laws.by_batch["saddle"][6:]))
    True
    """
    sizes: Floats = np.exp2(np.arange(11.0))
    rates: Floats = process.learning_rate / np.exp2(np.arange(8.0))
    by_batch = _laws([replace(process, batch_size=int(b)) for b in sizes], saddle, domain)
    by_rate = _laws(
        [replace(process, learning_rate=float(r), batch_size=1) for r in rates], saddle, domain
    )
    for curves, eta, size in ((by_batch, process.learning_rate, sizes), (by_rate, rates, 1.0)):
        logs = np.minimum(exponent * size / eta + log_prefactor - np.log(eta), 600.0)
        curves["minimum"] = np.exp(logs) + np.zeros_like(curves["saddle"])
    first = saddle_exit(process, saddle, domain)
    assert isinstance(first, SaddleExit)
    return EscapeLaws(float(first.growth[0]), sizes, 1.0 / rates, by_batch, by_rate)


def _laws(chains: list[SGD], saddle: ArrayLike, domain: Domain) -> dict[str, Floats]:
    means, logs = [], []
    for chain in chains:
        law = saddle_exit(chain, saddle, domain)
        assert isinstance(law, SaddleExit)
        means.append(law.mean)
        eta = chain.learning_rate
        logs.append(math.log(chain.batch_size / eta) / (2 * float(law.growth[0]) * eta))
    exact, leading = np.array(means), np.array(logs)
    # The constant is one of time: O(1/eta) steps.
    scale = np.array([1.0 / chain.learning_rate for chain in chains])
    shift = (exact[-1] - leading[-1]) / scale[-1]
    return {"saddle": exact, "log law": leading + shift * scale}
