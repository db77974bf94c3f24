"""Rates between basins, by simulation, splitting and formulas, merged by weight of evidence."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..estimate import Estimate
from .jumps import JumpCounts
from .network import MarkovNetwork


@dataclass(frozen=True, eq=False)
class EscapeRate:
    """How long SGD stays in one state at one batch size, by every method, and merged.

    Attributes
    ----------
    state, batch_size
        Which.
    time
        Mean time to leave in SGD steps, merged; only a lower bound where no exit is known.
    evidence
        Each method's own answer in SGD steps: direct simulation, splitting, formulas.
    extrapolated
        Whether `batch_size` lies beyond all evidence for this state.
    """

    state: str
    batch_size: int
    time: Estimate
    evidence: tuple[Estimate, ...]
    extrapolated: bool = False


@dataclass(frozen=True, eq=False)
class EdgeRate:
    """The rate of jumps from one state to another at one batch size.

    Attributes
    ----------
    source, target, batch_size
        Which.
    rate
        Per SGD step, merged; ``value`` nan and only an upper end where no jump is known.
    direct
        From counted jumps alone, with its exact (gamma) interval.
    jumps
        Expected number of jumps seen.
    """

    source: str
    target: str
    batch_size: int
    rate: Estimate
    direct: Estimate
    jumps: float


@dataclass(frozen=True, eq=False)
class TransitionRates:
    """Rates between basins at one learning rate.

    Attributes
    ----------
    network
        Rates at every batch size: what occupation and schedules are computed from.
    labels
        States: the landscape's minima, then "elsewhere".
    learning_rate, batch_sizes
        eta and the batch sizes that were simulated.
    escapes
        One row per state and batch size.
    edges
        One row per edge and batch size.
    counts
        What simulation showed, per batch size.
    notes
        Whether the jumps are Markov, which formulas lost against direct evidence, what is
        extrapolated.
    """

    network: MarkovNetwork
    labels: tuple[str, ...]
    learning_rate: float
    batch_sizes: tuple[int, ...]
    escapes: tuple[EscapeRate, ...] = field(repr=False)
    edges: tuple[EdgeRate, ...] = field(repr=False)
    counts: tuple[JumpCounts, ...] = field(repr=False)
    notes: tuple[str, ...] = ()
