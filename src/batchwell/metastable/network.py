"""A Markov network of basins: rates between them for every batch size, and what follows.

States are minima up to symmetry and, last, "elsewhere": all that the landscape does not list. The
rate of an edge is known at some batch sizes (nodes); its logarithm is linear in B between them and
beyond, as theory has it: k = a exp(-V B / eta).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike

from ..errors import RunError, one_of, positive, require
from ..estimate import LEVEL, Estimate
from ..law.markov import gth_factor
from .exponential import exponential
from .final import Stage

ELSEWHERE = "elsewhere"
METHOD = "Markov network, parametric bootstrap over its rates"


@dataclass(frozen=True, eq=False)
class MarkovNetwork:
    """Basins and the rates between them, at every batch size.

    Attributes
    ----------
    labels
        Names of the m states: those of the minima and, usually last, "elsewhere".
    learning_rate
        eta of all rates.
    batch_sizes
        (n,) increasing nodes at which rates are given.
    edges
        (e, 2) source and target of each edge.
    log_rates
        (n, e) natural logarithm of each edge's rate per SGD step; -inf for a rate of 0.
    draws
        (r, n, e) joint draws of `log_rates` from what is known about them; r = 0 if exact.
    measured
        Smallest and largest batch size with evidence: beyond them rates are extrapolated.
    sharpness
        (m,) largest Hessian eigenvalue of each state; NaN for "elsewhere".
    losses
        (m,) loss of each state's minimum; NaN for "elsewhere".
    starts
        (m,) share of random starts that reach each state; all alike if not given.
    notes
        What the rates do not say.
    scores
        (m,) held-out score of each state's minimum, smaller is better; NaN if not known
        (`with_scores`).
    """

    labels: tuple[str, ...]
    learning_rate: float
    batch_sizes: np.ndarray
    edges: np.ndarray
    log_rates: np.ndarray = field(repr=False)
    draws: np.ndarray = field(repr=False)
    measured: tuple[float, float]
    sharpness: np.ndarray = field(repr=False)
    losses: np.ndarray = field(repr=False)
    starts: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)
    notes: tuple[str, ...] = ()
    scores: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)

    def __post_init__(self) -> None:
        positive("learning_rate", self.learning_rate)
        m, n, e = len(self.labels), len(self.batch_sizes), len(self.edges)
        require(m >= 2, "labels", self.labels, "must name at least two states")
        nodes = np.asarray(self.batch_sizes, dtype=float)
        good = n >= 1 and nodes[0] > 0 and bool(np.all(np.diff(nodes) > 0))
        require(good, "batch_sizes", self.batch_sizes, "must increase from above 0")
        require(self.edges.shape == (e, 2), "edges", self.edges.shape, "must have shape (e, 2)")
        inside = e == 0 or (self.edges.min() >= 0 and self.edges.max() < m)
        require(inside, "edges", self.edges, f"must lie in 0 ... {m - 1}")
        loops = e > 0 and bool(np.any(self.edges[:, 0] == self.edges[:, 1]))
        require(not loops, "edges", self.edges, "must join different states")
        if not len(self.starts):
            object.__setattr__(self, "starts", np.full(m, 1.0 / m))
        require(len(self.starts) == m, "starts", self.starts, f"must have length {m}")
        if not len(self.scores):
            object.__setattr__(self, "scores", np.full(m, np.nan))
        require(len(self.scores) == m, "scores", self.scores, f"must have length {m}")
        shape = self.log_rates.shape
        require(shape == (n, e), "log_rates", shape, f"must have shape ({n}, {e})")
        shape = self.draws.shape
        require(shape[1:] == (n, e), "draws", shape, f"must have shape (r, {n}, {e})")

    def index(self, label: str) -> int:
        """Which state is called `label`."""
        return self.labels.index(one_of("state", label, self.labels))


def known_network(
    labels: Sequence[str],
    batch_sizes: Sequence[float],
    rates: ArrayLike,
    learning_rate: float = 1.0,
    sharpness: ArrayLike | None = None,
    losses: ArrayLike | None = None,
) -> MarkovNetwork:
    """A network of known rates (n, m, m) per step, one matrix per batch size.

    Raises
    ------
    InputError
        Wrong shapes, or a rate that is negative or not finite.

    Examples
    --------
    >>> pair = known_network(["flat", "sharp"], [1, 2], [[[0, 0.1], [0.3, 0]]] * 2)
    >>> stationary_law(pair, 1)["flat"].value
    0.75
    """
    k = np.array(rates, dtype=np.float64)
    m, n = len(labels), len(batch_sizes)
    require(k.shape == (n, m, m), "rates", k.shape, f"must have shape ({n}, {m}, {m})")
    off = ~np.eye(m, dtype=bool)
    good = np.isfinite(k[:, off]).all() and (k[:, off] >= 0).all()
    require(bool(good), "rates", "an entry", "must be finite and not negative")
    edges = np.argwhere((k > 0).any(axis=0) & off)
    with np.errstate(divide="ignore"):
        logs = np.log(k[:, edges[:, 0], edges[:, 1]])
    nodes = np.asarray(batch_sizes, dtype=np.float64)
    nan = np.full(m, np.nan)
    return MarkovNetwork(
        tuple(labels),
        learning_rate,
        nodes,
        edges,
        logs,
        np.empty((0, *logs.shape)),
        (float(nodes[0]), float(nodes[-1])),
        nan if sharpness is None else np.asarray(sharpness, dtype=np.float64),
        nan if losses is None else np.asarray(losses, dtype=np.float64),
    )


def with_scores(network: MarkovNetwork, scores: Mapping[str, float]) -> MarkovNetwork:
    """`network` with held-out scores of its states, by name; smaller is better.

    States that `scores` does not name stay without one, as "elsewhere" must.

    Raises
    ------
    InputError
        An unknown state, or a score that is not finite.

    Examples
    --------
    >>> pair = known_network(["flat", "sharp"], [1], [[[0, 0.1], [0.3, 0]]])
    >>> with_scores(pair, {"flat": 0.25, "sharp": 0.125}).scores
    array([0.25 , 0.125])
    """
    out = np.full(len(network.labels), np.nan)
    for name, score in scores.items():
        require(math.isfinite(score), f"scores.{name}", score, "must be finite")
        out[network.index(name)] = score
    return replace(network, scores=out)


def edge_log_rates(network: MarkovNetwork, batch_size: float, logs: np.ndarray) -> np.ndarray:
    """`logs` (..., n, e) at the nodes, read off at `batch_size`: (..., e)."""
    nodes, b = network.batch_sizes, positive("batch_size", batch_size)
    if len(nodes) == 1:
        return logs[..., 0, :]
    k = int(np.clip(np.searchsorted(nodes, b) - 1, 0, len(nodes) - 2))
    share = (b - nodes[k]) / (nodes[k + 1] - nodes[k])
    low, high = logs[..., k, :], logs[..., k + 1, :]
    if share in (0.0, 1.0):  # a node itself, also where a neighbour's rate is 0
        return low if share == 0 else high
    with np.errstate(invalid="ignore"):
        out = low + share * (high - low)
    dead = np.isneginf(low) | np.isneginf(high)
    # A path that takes at most all of each step: no rate is above 1.
    return np.minimum(np.where(dead, -np.inf, out), 0.0)


def _assemble(network: MarkovNetwork, log_rates: np.ndarray) -> np.ndarray:
    """Generators (..., m, m) of edge rates (..., e)."""
    m = len(network.labels)
    out = np.zeros((*log_rates.shape[:-1], m, m))
    out[..., network.edges[:, 0], network.edges[:, 1]] = np.exp(log_rates)
    rows = np.arange(m)
    out[..., rows, rows] = -out.sum(axis=-1)
    return out


def rate_matrix(network: MarkovNetwork, batch_size: float) -> np.ndarray:
    """The generator Q (m, m) per SGD step at `batch_size`: rows sum to 0."""
    return _assemble(network, edge_log_rates(network, batch_size, network.log_rates))


def drawn_rate_matrices(network: MarkovNetwork, batch_size: float) -> np.ndarray:
    """Generators (r, m, m) of the network's joint draws."""
    return _assemble(network, edge_log_rates(network, batch_size, network.draws))


def extrapolated(network: MarkovNetwork, batch_size: float) -> bool:
    """Whether `batch_size` lies outside of what was measured."""
    return not network.measured[0] <= batch_size <= network.measured[1]


# -- questions ---------------------------------------------------------------------------------
def stationary_law(network: MarkovNetwork, batch_size: float) -> dict[str, Estimate]:
    """Share of time in each state in the long run at a constant batch size.

    By elimination without subtraction (Grassmann, Taksar & Heyman, Oper. Res. 33, 1985): exact to
    rounding however rare the jumps.

    Raises
    ------
    RunError
        No unique law: several sets of states that are never left.
    """
    value = stationary(rate_matrix(network, batch_size))
    drawn = np.array([stationary(q) for q in drawn_rate_matrices(network, batch_size)])
    return _by_state(network, value, drawn.reshape(-1, len(value)), [batch_size])


def stationary(generator: np.ndarray) -> np.ndarray:
    """The stationary law (m,) of a generator (m, m) with one closed set of states.

    States that nothing leads to or from count as never visited.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    rates = np.where(np.eye(len(generator), dtype=bool), 0.0, generator)
    count, part = connected_components(csr_array(rates > 0), connection="strong")
    closed = [c for c in range(count) if not rates[np.ix_(part == c, part != c)].any()]
    if rates.any():
        met = part[rates.any(axis=0) | rates.any(axis=1)]
        closed = [c for c in closed if c in met]
    if len(closed) > 1:
        sets = [np.flatnonzero(part == c).tolist() for c in closed]
        raise RunError(f"no unique stationary law: the sets of states {sets} are never left")
    states = np.flatnonzero(part == closed[0])
    inner, out = rates[np.ix_(states, states)], np.zeros(len(rates))
    if len(states) == 1:
        out[states] = 1.0
        return out
    # Visits to the others between two visits to the first.
    factors = gth_factor(inner[1:, 1:], inner[1:, 0])
    weights = np.concatenate([[1.0], factors.solve_transposed(inner[0, 1:])])
    out[states] = weights / weights.sum()
    return out


def relaxation_times(network: MarkovNetwork, batch_size: float, count: int = 5) -> list[Estimate]:
    """The slowest relaxation times -1 / Re(eigenvalue) in SGD steps, slowest first."""
    value = _times(rate_matrix(network, batch_size))[:count]
    drawn = [_times(q)[:count] for q in drawn_rate_matrices(network, batch_size)]
    spread = np.array(drawn).reshape(-1, len(value))
    return [from_draws(float(v), spread[:, k], "steps") for k, v in enumerate(value)]


def _times(generator: np.ndarray) -> np.ndarray:
    rates = np.where(np.eye(len(generator), dtype=bool), 0.0, generator)
    met = np.flatnonzero(rates.any(axis=0) | rates.any(axis=1))  # others are never visited
    values = np.sort(np.linalg.eigvals(generator[np.ix_(met, met)]).real)[::-1][1:]
    return -1.0 / np.minimum(values, -1e-300)


def escape_time(network: MarkovNetwork, state: str, batch_size: float) -> Estimate:
    """Mean time in SGD steps until `state` is left for another one."""
    i = network.index(state)
    with np.errstate(divide="ignore"):
        value = -1.0 / rate_matrix(network, batch_size)[i, i]
        drawn = -1.0 / drawn_rate_matrices(network, batch_size)[:, i, i]
    return from_draws(abs(float(value)), np.abs(drawn), "steps")


def law_of_start(network: MarkovNetwork, start: str | ArrayLike) -> np.ndarray:
    """The law (m,) that a start means: a state's name, or weights that are normalised."""
    m = len(network.labels)
    if isinstance(start, str):
        return np.eye(m)[network.index(start)]
    p = np.asarray(start, dtype=np.float64)
    good = p.shape == (m,) and np.isfinite(p).all() and (p >= 0).all() and p.sum() > 0
    require(bool(good), "start", start, f"must be a state or {m} weights, not all 0")
    return p / p.sum()


def propagators(network: MarkovNetwork, batch_size: float, steps: float) -> np.ndarray:
    """Chances (1 + r, m, m) of going from state to state in `steps`: best rates first, then draws."""
    q = np.concatenate(
        [rate_matrix(network, batch_size)[None], drawn_rate_matrices(network, batch_size)]
    )
    return transition_matrix(q, steps)


def transition_matrix(generator: np.ndarray, steps: float) -> np.ndarray:
    """exp(Q steps) for generators (..., m, m): entries >= 0, rows of sum 1."""
    out = exponential(np.asarray(generator) * steps)
    return out / out.sum(axis=-1, keepdims=True)


def occupation(
    network: MarkovNetwork,
    start: str | ArrayLike,
    schedule: Sequence[Stage],
) -> list[dict[str, Estimate]]:
    """Share of paths in each state at the start and after each stage of a schedule.

    Parameters
    ----------
    start
        A state's name, or weights (m,).
    schedule
        Stages; cut long ones into several to see more times.

    Returns
    -------
    list
        One dictionary of estimates per time, len(schedule) + 1 in all.

    Examples
    --------
    >>> pair = known_network(["a", "b"], [1], [[[0, 0.5], [0, 0]]])
    >>> round(occupation(pair, "a", [Stage(1, 2)])[-1]["a"].value, 6)  # exp(-1)
    0.367879
    """
    laws = laws_over(network, start, schedule)
    sizes: list[float] = [float(s.batch_size) for s in schedule]
    return [_by_state(network, p[0], p[1:], sizes[:k]) for k, p in enumerate(laws)]


def laws_over(
    network: MarkovNetwork, start: str | ArrayLike, schedule: Sequence[Stage]
) -> list[np.ndarray]:
    """Laws (1 + r, m) at the start and after each stage: best rates first, then draws."""
    p = np.tile(law_of_start(network, start), (1 + len(network.draws), 1))
    kernels: dict[Stage, np.ndarray] = {}
    out = [p]
    for stage in schedule:
        if stage not in kernels:
            kernels[stage] = propagators(network, stage.batch_size, stage.steps)
        p = np.einsum("ri,rij->rj", p, kernels[stage])
        out.append(p)
    return out


def share_below(
    network: MarkovNetwork, batch_size: float, sharpness: float | None = None
) -> Estimate:
    """Long-run share of time in flat minima, those with lambda_max <= `sharpness`.

    By default the median of the states' sharpness. "elsewhere" counts as not flat.
    """
    listed = network.sharpness[np.isfinite(network.sharpness)]
    require(listed.size > 0, "network", "no sharpness", "must know the sharpness of its states")
    limit = float(np.median(listed)) if sharpness is None else positive("sharpness", sharpness)
    flat = network.sharpness <= limit
    value = stationary(rate_matrix(network, batch_size))[flat].sum()
    drawn = np.array([stationary(q)[flat].sum() for q in drawn_rate_matrices(network, batch_size)])
    out = from_draws(float(value), drawn, "1")
    return out.with_notes(f"flat: lambda_max at most {limit:.4g}", *_range(network, [batch_size]))


# -- estimates ---------------------------------------------------------------------------------
def _by_state(
    network: MarkovNetwork, value: np.ndarray, drawn: np.ndarray, sizes: Sequence[float]
) -> dict[str, Estimate]:
    notes = _range(network, sizes)
    return {
        name: from_draws(float(value[k]), drawn[:, k], "1").with_notes(*notes)
        for k, name in enumerate(network.labels)
    }


def from_draws(value: float, drawn: np.ndarray, unit: str = "1", method: str = METHOD) -> Estimate:
    """`value` with the spread and the 95% interval of its `drawn` values (r,); exact if r = 0.

    Draws may be infinite (a basin that is never left): then ends of the interval may be, too.

    >>> str(from_draws(2.0, np.array([1.0, 2.0, np.inf])).interval)
    '(1.0, inf)'
    """
    if not len(drawn):
        return Estimate(value, 0.0, (value, value), unit, "Markov network, exact rates", 0)
    # Ranks, not interpolation: the difference of two infinite draws is not a number.
    ranked, tail = np.sort(drawn), (1 - LEVEL) / 2
    low, high = ranked[int(tail * len(drawn))], ranked[math.ceil((1 - tail) * len(drawn)) - 1]
    finite = len(drawn) > 1 and bool(np.isfinite(drawn).all())
    spread = float(np.std(drawn, ddof=1)) if finite else math.nan
    ends = (min(float(low), value), max(float(high), value))
    return Estimate(value, spread, ends, unit, method, len(drawn))


def _range(network: MarkovNetwork, sizes: Sequence[float]) -> list[str]:
    beyond = sorted({b for b in sizes if extrapolated(network, b)})
    if not beyond:
        return []
    low, high = network.measured
    named = ", ".join(f"{b:g}" for b in beyond)
    return [f"B = {named} is extrapolated: rates were measured for B = {low:g} to {high:g}"]
