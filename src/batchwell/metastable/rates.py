"""Rates between basins, by simulation, splitting and formulas, merged by weight of evidence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from ..dynamics import SGD, Sampling
from ..errors import InputError, one_of, require, whole
from ..estimate import LEVEL, Estimate, exponential_mean
from ..landscape import Landscape, Saddle, diverged_note
from .evidence import RARE_METHODS, Evidence, saddle_evidence, weighed
from .jumps import JumpCounts, count_jumps
from .memory import MemoryCheck, memory_checks, memory_note
from .network import (
    ELSEWHERE,
    MarkovNetwork,
    drawn_rate_matrices,
    escape_time,
    from_draws,
    rate_matrix,
)
from .regression import RateFit, Spreads, fit_rates

Progress = Callable[[int, int], None]
FEW = 3  # jumps below which a bound is given instead of a number
GONE = f"They count as {ELSEWHERE} from then on"
SEEN = 0.02  # expected jumps from which an edge is taken to exist


@dataclass(frozen=True, eq=False)
class EscapeRate:
    """How long SGD stays in one state at one batch size, by every method, and merged.

    Attributes
    ----------
    state, batch_size
        Which.
    time
        Mean time to leave in SGD steps, merged; only a lower bound where fewer than three exits are
        known at any batch size.
    evidence
        Each method's own answer in SGD steps: direct simulation, splitting, formulas.
    exits
        Expected number of exits simulated at this batch size.
    """

    state: str
    batch_size: int
    time: Estimate
    evidence: tuple[Estimate, ...]
    exits: float


@dataclass(frozen=True, eq=False)
class EdgeRate:
    """The rate of jumps from one state to another at one batch size.

    Attributes
    ----------
    source, target, batch_size
        Which.
    rate
        Per SGD step, merged; ``value`` NaN and only an upper end where fewer than three jumps are
        known at any batch size.
    direct
        From counted jumps alone, with its exact (gamma) interval.
    jumps
        Expected number of jumps simulated.
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
    memory
        Tests of whether the jumps are Markov.
    spreads
        What the regression learned: slopes V / eta, and its model error `residual`. None if no
        jump was seen.
    notes
        Whether the jumps are Markov, which formulas lost against direct evidence.
    """

    network: MarkovNetwork
    labels: tuple[str, ...]
    learning_rate: float
    batch_sizes: tuple[int, ...]
    escapes: tuple[EscapeRate, ...] = field(repr=False)
    edges: tuple[EdgeRate, ...] = field(repr=False)
    counts: tuple[JumpCounts, ...] = field(repr=False)
    memory: tuple[MemoryCheck, ...] = field(repr=False)
    spreads: Spreads | None
    notes: tuple[str, ...] = ()

    def stay(self, state: str, batch_size: int) -> Estimate:
        """How long SGD stays in `state` at a batch size that was simulated: `EscapeRate.time`."""
        rows = {(e.state, e.batch_size): e.time for e in self.escapes}
        one_of("state", state, self.labels)
        require(
            batch_size in self.batch_sizes,
            "batch_size",
            batch_size,
            f"must be one of {self.batch_sizes}",
        )
        return rows[state, batch_size]


def transition_rates(
    landscape: Landscape,
    learning_rate: float,
    batch_sizes: Sequence[int],
    *,
    sampling: Sampling = "with_replacement",
    momentum: float = 0.0,
    paths: int = 16,
    looks: int = 24,
    horizon: int = 100_000,
    target: int = 30,
    saddles: Sequence[Saddle] = (),
    rare: str | None = "formula",
    draws: int = 200,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> TransitionRates:
    """Rates of SGD's jumps between the basins of a landscape, per step, for every batch size.

    Jumps are counted in simulated paths (`jumps.count_jumps`); a regression over batch sizes
    (`regression`) joins what they say into rates at every batch size. Minima that the landscape
    does not list make up one more state, "elsewhere".

    Parameters
    ----------
    batch_sizes
        At which to simulate; two or more let rates be known at others too.
    paths, looks, target
        Paths from each minimum at a time, looks at each, and exits after which no more are run.
    horizon
        Longest path in SGD steps: rarer jumps are seen as bounds only, but for `saddles`.
    saddles, rare
        Saddles between listed minima (`landscape.find_saddles`), and how rates over them are
        found: "formula" or "splitting" (`evidence.saddle_evidence`), or None. A formula needs the
        least action over each saddle: seconds each in a few dimensions, minutes in dozens.
    draws
        Draws of all rates from their joint uncertainty, for intervals of what follows from them.

    Raises
    ------
    InputError
        Batch sizes that do not increase or that the sampling mode does not allow, or an unknown
        `rare`: before any work starts.
    Divergence
        All paths at one batch size ran away; where only some do, the notes name them.

    Examples
    --------
    >>> from batchwell import additive, find_minima
    >>> well = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4 + 0.05 * x[0])
    >>> found = find_minima(well, [[-1.0], [1.0]])
    >>> rates = transition_rates(found, 0.3, [1, 2], paths=32, horizon=20_000)
    >>> rates.labels
    ('A', 'C', 'elsewhere')
    >>> rates.escapes[0].time.unit
    'steps'
    """
    sizes = _checked_sizes(batch_sizes)
    whole("draws", draws, 0)
    if rare is not None:
        one_of("rare", rare, RARE_METHODS)
    chains = [SGD(landscape.loss, learning_rate, b, sampling, momentum) for b in sizes]
    counts = []
    for k, sgd in enumerate(chains):
        counts.append(
            count_jumps(sgd, landscape, paths, looks, horizon, target, seed, "jumps", threads)
        )
        if progress is not None:
            progress(k + 1, len(chains))
    evidence: Sequence[Evidence] = ()
    if saddles and rare is not None:
        evidence = saddle_evidence(chains[0], landscape, saddles, sizes, rare)
    return rates_from_counts(landscape, chains[0], counts, evidence, draws, seed)


def _checked_sizes(batch_sizes: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(whole("batch_sizes", b) for b in batch_sizes)
    require(len(sizes) > 0, "batch_sizes", sizes, "must name at least one batch size")
    ordered = all(a < b for a, b in pairwise(sizes))
    require(ordered, "batch_sizes", sizes, "must increase")
    return sizes


def rates_from_counts(
    landscape: Landscape,
    sgd: SGD,
    counts: Sequence[JumpCounts],
    evidence: Sequence[Evidence] = (),
    draws: int = 200,
    seed: int = 0,
) -> TransitionRates:
    """`transition_rates` from jumps that were counted before; learning rate and mode of `sgd`.

    `evidence` on rates found otherwise is merged with them.
    """
    labels = (*(m.label for m in landscape.minima), ELSEWHERE)
    sizes = tuple(c.batch_size for c in counts)
    jumps, steps = np.stack([c.jumps for c in counts]), np.stack([c.exposure for c in counts])
    merged, exposure, used, lost = weighed(evidence, sizes, jumps, steps, labels)
    edges = existing_edges(merged)
    nodes = _nodes(sizes, sgd)
    fit = None
    if len(edges):
        place = np.searchsorted(nodes, sizes)
        full = np.zeros((2, len(nodes), *jumps.shape[1:]))
        full[:, place] = merged, exposure
        inverse = np.array([inverse_temperature(sgd, int(b)) for b in nodes])
        fit = fit_rates(full[0], full[1], inverse, edges, draws, seed)
    checks = memory_checks(counts)
    held = np.flatnonzero(merged.sum(axis=(0, 2)) < FEW)
    visited = steps.sum(axis=0) > 0
    named = [labels[i] for i in held if visited[i]]
    slow = _slow_states(landscape, sgd, counts)
    away = [
        note for c in counts for note in diverged_note("While jumps were counted", c.diverged, GONE)
    ]
    notes = (memory_note(checks), *_slow_note(slow, labels), *_held_note(named), *lost, *away)
    network = _network(landscape, labels, sgd, sizes, nodes, edges, fit, notes)
    return TransitionRates(
        network,
        labels,
        sgd.learning_rate,
        sizes,
        tuple(
            _escape(network, c, i, i in held, evidence, used)
            for c in counts
            for i in range(len(labels))
        ),
        tuple(_edge(network, c, e, merged) for c in counts for e in edges),
        tuple(counts),
        tuple(checks),
        fit.spreads if fit is not None else None,
        notes,
    )


def inverse_temperature(sgd: SGD, batch_size: int) -> float:
    """eta over the temperature at another batch size: B with replacement."""
    if sgd.sampling == "reshuffle":
        return float(batch_size)
    return 1.0 / replace(sgd, batch_size=batch_size).batch_factor


def _nodes(sizes: Sequence[int], sgd: SGD) -> np.ndarray:
    """The simulated batch sizes and the powers of two from 1 to twice the largest."""
    powers = [2**k for k in range(64) if 2**k <= 2 * sizes[-1]]
    nodes = sorted({*sizes, *powers})
    if sgd.sampling == "with_replacement":
        return np.array(nodes)
    n = sgd.loss.n
    assert n is not None
    allowed = [b for b in nodes if b < n or (sgd.sampling == "reshuffle" and n % b == 0)]
    if sizes[-1] not in allowed:
        raise InputError("batch_sizes", sizes[-1], f"must stay below the {n} examples: no noise")
    return np.array(allowed)


def existing_edges(jumps: np.ndarray) -> np.ndarray:
    """Edges (e, 2) along which jumps (n, m, m) were seen one way or the other."""
    total = jumps.sum(axis=0)
    total = total + total.T
    return np.argwhere(np.where(np.eye(len(total), dtype=bool), 0.0, total) > SEEN)


def _network(
    landscape: Landscape,
    labels: tuple[str, ...],
    sgd: SGD,
    sizes: tuple[int, ...],
    nodes: np.ndarray,
    edges: np.ndarray,
    fit: RateFit | None,
    notes: tuple[str, ...],
) -> MarkovNetwork:
    shape = (len(nodes), len(edges))
    starts = np.array([*(m.starts for m in landscape.minima), 0.0])
    return MarkovNetwork(
        labels,
        sgd.learning_rate,
        nodes,
        edges,
        np.empty(shape) if fit is None else fit.log_rates,
        np.empty((0, *shape)) if fit is None else fit.draws,
        (sizes[0], sizes[-1]),
        np.array([*(m.lambda_max for m in landscape.minima), math.nan]),
        np.array([*(m.loss for m in landscape.minima), math.nan]),
        starts / starts.sum(),
        notes,
    )


def _slow_states(landscape: Landscape, sgd: SGD, counts: Sequence[JumpCounts]) -> list[int]:
    """States that are left, at some batch size, before their flattest direction has relaxed."""
    # (1 - momentum): with momentum a gradient step is worth that many more.
    speed = sgd.learning_rate / (1.0 - sgd.momentum)
    relaxed = [1.0 / (speed * m.lambda_min) for m in landscape.minima]
    return [
        i
        for i, steps in enumerate(relaxed)
        if any(steps * c.jumps[i].sum() > c.exposure[i] for c in counts if c.jumps[i].sum() >= FEW)
    ]


def _slow_note(slow: Sequence[int], labels: Sequence[str]) -> list[str]:
    if not slow:
        return []
    return [
        f"{_listed([labels[i] for i in slow])} are left before their flattest direction relaxes "
        "(1 / (learning rate lambda_min) steps): such a basin remembers where it was entered, "
        "which a Markov network does not, and shares there may be off by more than their interval"
    ]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more states" if len(names) > 8 else "")


def _held_note(held: Sequence[str]) -> list[str]:
    if not held:
        return []
    return [
        f"fewer than {FEW} exits were seen from {_listed(held)}: their times are lower bounds, and the "
        "network's rates out of them are borrowed from other states"
    ]


# -- rows --------------------------------------------------------------------------------------
def _escape(
    network: MarkovNetwork,
    counts: JumpCounts,
    state: int,
    held: bool,
    evidence: Sequence[Evidence],
    used: Sequence[Evidence],
) -> EscapeRate:
    label, size = network.labels[state], counts.batch_size
    exits, steps = float(counts.jumps[state].sum()), float(counts.exposure[state])
    known = [] if steps <= 0 else [_direct_time(exits, steps)]
    known += _other_times(evidence, used, state, size)
    if not held:
        time = escape_time(network, label, size)
    elif steps > 0:
        low = known[0].interval[0]
        time = Estimate(math.inf, math.inf, (low, math.inf), "steps", "too few exits: a bound",
                        1, 1, known[0].notes)  # fmt: skip
    else:
        time = Estimate(math.inf, math.inf, (0.0, math.inf), "steps", "never visited", 1, 1)
    return EscapeRate(label, size, time, tuple(known), exits)


def _other_times(
    evidence: Sequence[Evidence], used: Sequence[Evidence], state: int, size: int
) -> list[Estimate]:
    """Mean time by each other method, over all edges that it knows."""
    rows = [e for e in evidence if e.source == state and e.batch_size == size]
    out = []
    for method in dict.fromkeys(e.method for e in rows):
        same = [e for e in rows if e.method == method]
        total = float(np.logaddexp.reduce([e.log_rate for e in same]))
        error = max(e.error for e in same)
        time = replace(same[0], log_rate=total, error=error).time
        if not set(same) <= set(used):
            time = time.with_notes("disagrees with counted jumps: not used")
        out.append(time)
    return out


def _direct_time(exits: float, steps: float) -> Estimate:
    events = round(exits)
    return exponential_mean(steps, events, events + 1, "steps", "jumps counted in simulated paths")


def _edge(
    network: MarkovNetwork, counts: JumpCounts, edge: np.ndarray, jumps: np.ndarray
) -> EdgeRate:
    i, j = int(edge[0]), int(edge[1])
    direct = _direct_rate(float(counts.jumps[i, j]), float(counts.exposure[i]))
    if jumps[:, i, j].sum() < FEW:
        rate = replace(direct, value=math.nan, stderr=math.nan, interval=(0.0, direct.interval[1]))
        rate = rate.with_notes(f"fewer than {FEW} jumps at all batch sizes: an upper bound")
    else:
        rate = _merged_rate(network, counts.batch_size, i, j)
    names = network.labels
    return EdgeRate(names[i], names[j], counts.batch_size, rate, direct, float(counts.jumps[i, j]))


def _direct_rate(jumps: float, steps: float) -> Estimate:
    """Exact (gamma) interval of a Poisson rate."""
    from scipy.stats import chi2

    method = "jumps counted in simulated paths, exact gamma interval"
    if steps <= 0:
        return Estimate(math.nan, math.nan, (0.0, 1.0), "1/steps", method, 0)
    tail = (1 - LEVEL) / 2
    low = float(chi2.ppf(tail, 2 * jumps)) / (2 * steps) if jumps > 0 else 0.0
    high = float(chi2.ppf(1 - tail, 2 * jumps + 2)) / (2 * steps)
    return Estimate(
        jumps / steps, math.sqrt(jumps) / steps, (low, high), "1/steps", method, round(jumps)
    )


def _merged_rate(network: MarkovNetwork, batch_size: int, i: int, j: int) -> Estimate:
    value = float(rate_matrix(network, batch_size)[i, j])
    some = drawn_rate_matrices(network, batch_size)[:, i, j]
    return from_draws(value, some, "1/steps", "regression over batch sizes")
