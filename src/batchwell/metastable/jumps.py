"""Jumps between basins, counted in simulated paths.

Paths are looked at every `lag` steps and quenched; what happened between two looks is not seen.
Jumps and times in each state are those expected given the looks, under the generator of greatest
likelihood of a continuous-time Markov chain (Bladt & Sorensen, J. R. Statist. Soc. B 67, 395
(2005)); where jumps are rare within a lag they are the plain counts. Lags are about as long
as stays: a look finds a share of paths astride a border, which come back as often as not, and a
rate taken from short lags counts them as jumps (Prinz et al., J. Chem. Phys. 134, 174105 (2011)).

A path that diverges has left its state for "elsewhere" and stays there: to leave it out would make
the others' stays look longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..dynamics import SGD
from ..ensemble import Ensemble, start
from ..errors import require, whole
from ..landscape import Diverged, Landscape, Survivors
from ..landscape.quench import farthest_from
from .exponential import exponential, exponential_slope
from .states import StateMap

PILOT_PATHS = 3  # per minimum
LONGER = 4  # factor between the lags of two rounds
SOONER, SOONER_ROUNDS = 16, 3  # factor between lags, and rounds, where paths hardly ever stay
STAYED = 0.1  # share of pairs of looks in one state below which the lag was too long
LEAST, MOST = 1e-15, 1.0  # rates per step
VAGUE = 1.2  # inferred jumps per departure seen from which information is looked at
LEAST_KNOWN = 0.05  # jumps
FINE = 10  # looks per stay of the paths that are only tested for memory


@dataclass(frozen=True, eq=False)
class Looks:
    """Pairs of consecutive looks at one interval.

    Attributes
    ----------
    lag
        SGD steps between the two looks of a pair.
    counts
        (m, m) pairs by state at the first and at the second look.
    """

    lag: int
    counts: np.ndarray


@dataclass(frozen=True, eq=False)
class JumpCounts:
    """What simulation at one batch size showed.

    Attributes
    ----------
    batch_size
        B.
    looks
        Pairs of looks at each lag used.
    jumps
        (m, m) number of jumps between states that the looks amount to.
    exposure
        (m,) SGD steps in each state that go with them: ``jumps / exposure`` is the rate.
    first_exits
        (n, 4) of other paths, looked at more often: state started in, steps watched, 1 if it was
        seen to have left (0: censored), steps between looks. Jumps are not counted in these.
    series
        (paths, looks + 1) states of the paths that were followed through all their jumps, at
        ``looks[0].lag`` steps.
    unlisted
        How many minima were met that the landscape does not list.
    diverged
        Paths that ran away, pilots included: elsewhere from then on.
    """

    batch_size: int
    looks: tuple[Looks, ...] = field(repr=False)
    jumps: np.ndarray = field(repr=False)
    exposure: np.ndarray = field(repr=False)
    first_exits: np.ndarray = field(repr=False)
    series: np.ndarray = field(repr=False)
    unlisted: int = 0
    diverged: tuple[Diverged, ...] = ()


def count_jumps(
    sgd: SGD,
    landscape: Landscape,
    paths: int = 16,
    looks: int = 24,
    horizon: int = 100_000,
    target: int = 30,
    seed: int = 0,
    stream: str = "jumps",
    threads: int | None = None,
    memory: bool = True,
    states: StateMap | None = None,
) -> JumpCounts:
    """Follow SGD from every minimum of `landscape` and count its jumps.

    Some paths are followed through all their jumps, looked at about once per typical stay. From
    each minimum others are followed until they leave, looked at about once per stay there; where
    that shows fewer than `target` exits, more of them at longer intervals, up to `horizon`. What
    quenches to no listed minimum, or ran away, is state m - 1, "elsewhere".

    Parameters
    ----------
    memory
        Whether further paths are followed to test jumps for memory (`memory_checks`).
    states
        Of the same landscape, to go on with: minima met before need not be found again.

    Raises
    ------
    InputError
        `horizon` shorter than one step per look.
    Divergence
        All paths that were to be followed through their jumps ran away (a smaller learning rate or
        a larger batch may stay). Where others stay, those that ran away are named in `diverged`.
    """
    paths, looks, target = whole("paths", paths), whole("looks", looks, 2), whole("target", target)
    horizon = whole("horizon", horizon)
    require(horizon >= looks, "horizon", horizon, f"must be at least looks = {looks}")
    known = StateMap(landscape, threads) if states is None else states
    known.met.clear()
    watch = _Watch(sgd, known, looks, seed, stream, threads)
    longest = horizon // looks
    stays = watch.typical_stays(horizon)
    lags = np.clip(2.0 ** np.round(np.log2(stays)), 1, longest)
    series = watch.follow(np.repeat(np.arange(watch.m - 1), paths), int(np.median(lags)))
    found = [Looks(int(np.median(lags)), _pairs(series, watch.m))]
    left, lag = np.zeros(watch.m - 1), int(lags.min())
    while True:
        due = np.flatnonzero((lags <= lag) & (left < target))
        if due.size:
            # Where nearly every path leaves in time, as many as exits are wanted.
            many = paths if lag >= longest else max(paths, target)
            part = watch.until_left(np.repeat(due, many), lag, f"/lag-{lag}")
            found.append(Looks(lag, _pairs(part, watch.m)))
            left += _exit_counts(part, watch.m)
        if lag >= longest:
            break
        lag = min(lag * LONGER, longest)
    _look_sooner(watch, lags, max(paths, target), found)
    jumps, exposure = expected_jumps(found)
    return JumpCounts(
        sgd.batch_size,
        tuple(found),
        jumps,
        exposure,
        watch.exits(stays, paths, horizon) if memory else np.empty((0, 4)),
        series,
        watch.states.unlisted,
        tuple(watch.diverged),
    )


def _look_sooner(watch: _Watch, lags: np.ndarray, many: int, found: list[Looks]) -> None:
    """Add looks at shorter lags from states that were hardly ever seen to stay: a pilot erred."""
    lags = lags.copy()
    for _ in range(SOONER_ROUNDS):
        stayed = sum((np.diag(k.counts) for k in found), np.zeros(watch.m))
        seen = sum((k.counts.sum(axis=1) for k in found), np.zeros(watch.m))
        hasty = np.flatnonzero((stayed < STAYED * seen)[:-1] & (lags > 1))
        if not hasty.size:
            return
        lags[hasty] = np.maximum(lags[hasty] // SOONER, 1)
        for lag in np.unique(lags[hasty]).astype(int):
            due = hasty[lags[hasty] == lag]
            part = watch.until_left(np.repeat(due, many), int(lag), f"/sooner-{lag}")
            found.append(Looks(int(lag), _pairs(part, watch.m)))


class _Watch:
    """SGD from the minima of a landscape, looked at and quenched."""

    def __init__(
        self, sgd: SGD, states: StateMap, looks: int, seed: int, stream: str, threads: Any
    ) -> None:
        self.sgd, self.looks, self.seed, self.threads = sgd, looks, seed, threads
        self.stream = f"{stream}-eta{sgd.learning_rate:g}-B{sgd.batch_size}"
        self.states = states
        self.minima = np.array([p.x for p in states.landscape.minima])
        self.m = len(self.minima) + 1
        self.diverged: list[Diverged] = []

    def begin(self, origin: np.ndarray, name: str) -> tuple[Ensemble, Survivors]:
        x0, known = self.minima[origin], self.states.landscape.minima
        state = start(self.sgd, x0, len(origin), self.seed, self.stream + name)
        return state, Survivors(farthest_from(self.minima), [known[i].label for i in origin])

    def typical_stays(self, horizon: int) -> np.ndarray:
        """Mean steps (m - 1,) until the pilot paths from each minimum were seen to have left.

        They are looked at ever more rarely; at least about horizon where one never left.
        """
        origin = np.repeat(np.arange(self.m - 1), PILOT_PATHS)
        (state, survivors), at = self.begin(origin, "/pilot"), 1
        total = np.zeros(self.m - 1)
        while len(state.paths) and state.step < horizon:
            last, there = state.step, state.paths
            state = survivors.advance(self.sgd, state, min(at, horizon) - last, self.threads)
            inside = self.states(state.x) == origin[state.paths]
            state, at = state.take(np.flatnonzero(inside)), at * 2
            left = np.setdiff1d(there, state.paths)
            np.add.at(total, origin[left], (last + state.step) / 2)
        np.add.at(total, origin[state.paths], PILOT_PATHS * horizon)
        self.diverged += survivors.lost
        return np.maximum(total / PILOT_PATHS, 1.0)

    def follow(self, origin: np.ndarray, lag: int) -> np.ndarray:
        """States (paths, looks + 1) through all jumps; elsewhere once a path ran away."""
        state, survivors = self.begin(origin, "")
        out = np.full((len(origin), self.looks + 1), self.m - 1)
        out[:, 0] = origin
        for k in range(1, self.looks + 1):
            state = survivors.advance_some(self.sgd, state, lag, self.threads)
            out[state.paths, k] = self.states(state.x)
        self.diverged += survivors.lost
        return out

    def exits(self, stays: np.ndarray, paths: int, horizon: int) -> np.ndarray:
        """First exits, looked at `FINE` times per stay, from states that are left at all."""
        fine = np.maximum(2.0 ** np.floor(np.log2(stays / FINE)), 1)
        rows = [np.empty((0, 4))]
        for lag in np.unique(fine[stays < horizon]).astype(int):
            due = np.flatnonzero((fine == lag) & (stays < horizon))
            seen = self.until_left(np.repeat(due, paths), int(lag), f"/fine-{lag}", 2 * FINE)
            rows.append(_first_exits(seen, int(lag)))
        return np.concatenate(rows)

    def until_left(
        self, origin: np.ndarray, lag: int, name: str, looks: int | None = None
    ) -> np.ndarray:
        """States (paths, looks + 1) until the first look outside the origin; then -1."""
        state, survivors = self.begin(origin, name)
        looks = self.looks if looks is None else looks
        out = np.full((len(origin), looks + 1), -1)
        out[:, 0] = origin
        for k in range(1, looks + 1):
            out[state.paths, k] = self.m - 1  # unless it is still there below
            state = survivors.advance(self.sgd, state, lag, self.threads)
            out[state.paths, k] = self.states(state.x)
            state = state.take(np.flatnonzero(out[state.paths, k] == origin[state.paths]))
            if not len(state.paths):
                break
        self.diverged += survivors.lost
        return out


def _pairs(series: np.ndarray, m: int) -> np.ndarray:
    first, second = series[:, :-1].ravel(), series[:, 1:].ravel()
    seen = (first >= 0) & (second >= 0)
    out = np.zeros((m, m))
    np.add.at(out, (first[seen], second[seen]), 1.0)
    return out


def _first_exits(series: np.ndarray, lag: int) -> np.ndarray:
    """Rows (state, steps, observed, lag); an exit is placed amid its interval."""
    out = (series != series[:, :1]) & (series >= 0)
    observed = out.any(axis=1)
    looks = np.where(observed, out.argmax(axis=1), series.shape[1] - 1)
    steps = looks * lag - np.where(observed, (lag - 1) / 2, 0.0)
    return np.column_stack([series[:, 0], steps, observed, np.full(len(series), lag)])


def _exit_counts(series: np.ndarray, m: int) -> np.ndarray:
    """How many paths were seen to leave each listed state (m - 1,)."""
    left = ((series != series[:, :1]) & (series >= 0)).any(axis=1)
    return np.bincount(series[left, 0], minlength=m)[: m - 1].astype(float)


# -- what looks say about jumps ------------------------------------------------------------------
def expected_jumps(looks: Sequence[Looks], rounds: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """(jumps (m, m), steps in each state (m,)) that pairs of looks amount to.

    ``jumps / steps`` is the generator of greatest likelihood: the fixed point of
    expectation-maximisation, found by L-BFGS since EM itself is slow where lags are long; the
    gradient is EM's own, expected jumps minus rate times expected time. Where many more jumps are
    inferred than departures were seen, a state's jumps and steps are both scaled down to what the
    looks tell of its rate: the inverse of that rate's variance in the observed information.

    Examples
    --------
    >>> jumps, steps = expected_jumps([Looks(1, np.array([[990.0, 10.0], [0.0, 100.0]]))])
    >>> bool(abs(jumps[0, 1] - 10) < 0.1), bool(990 < steps[0] < 1000)
    (True, True)
    """
    m = len(looks[0].counts)
    off = ~np.eye(m, dtype=bool)
    seen = sum((np.where(off, k.counts, 0.0) for k in looks), np.zeros((m, m)))
    steps = sum((k.lag * k.counts.sum(axis=1) for k in looks), np.zeros(m))
    rates = np.divide(seen, steps[:, None], out=np.zeros((m, m)), where=steps[:, None] > 0)
    rates = _most_likely(looks, rates, rounds)
    _, jumps, steps = _expectation(looks, rates)
    inferred, departures = jumps.sum(axis=1), seen.sum(axis=1)
    known = np.minimum(inferred, departures)
    stayed = sum((np.diag(k.counts) for k in looks), np.zeros(m))
    # Paths that were never seen to stay bound their rate from below only.
    hasty = (stayed < 2 * STAYED * departures) & (departures > 0)
    vague = np.flatnonzero(hasty | (inferred > VAGUE * departures))
    if vague.size:
        known[vague] = np.minimum(known[vague], _information(looks, rates, vague))
    scale = np.divide(known, inferred, out=np.ones(m), where=inferred > 0)
    return jumps * scale[:, None], steps * scale


def _information(looks: Sequence[Looks], rates: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Inverse variances of the logarithms of these states' total rates, jointly."""

    def slope(logs: np.ndarray) -> np.ndarray:
        trial = rates.copy()
        trial[rows] *= np.exp(logs)[:, None]
        _, jumps, steps = _expectation(looks, trial)
        return np.asarray((jumps.sum(axis=1) - trial.sum(axis=1) * steps)[rows])

    h, unit = 1e-3, np.eye(len(rows))
    bend = np.array([(slope(h * e) - slope(-h * e)) / (2 * h) for e in unit])
    values, vectors = np.linalg.eigh(-0.5 * (bend + bend.T))
    variance = vectors**2 @ (1.0 / np.maximum(values, LEAST_KNOWN))
    return np.asarray(1.0 / variance)


def _most_likely(looks: Sequence[Looks], rates: np.ndarray, rounds: int) -> np.ndarray:
    """The generator's rates of greatest likelihood, on the edges where `rates` > 0."""
    from scipy.optimize import minimize

    edges = rates > 0
    if not edges.any():
        return rates
    box = [(np.log(LEAST), np.log(MOST))] * int(edges.sum())
    total = sum(k.counts.sum() for k in looks)

    def negative(logs: np.ndarray) -> tuple[float, np.ndarray]:
        trial = np.zeros_like(rates)
        trial[edges] = np.exp(logs)
        value, jumps, steps = _expectation(looks, trial)
        slope = (jumps - trial * steps[:, None])[edges]
        return -value / total, -slope / total

    begin = np.clip(np.log(rates[edges]), *box[0])
    found = minimize(
        negative,
        begin,
        jac=True,
        method="L-BFGS-B",
        bounds=box,
        options={"maxiter": rounds, "ftol": 1e-12, "gtol": 1e-8},
    )
    out = np.zeros_like(rates)
    out[edges] = np.exp(found.x)
    return out


def _expectation(looks: Sequence[Looks], rates: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """(log-likelihood, expected jumps (m, m), expected steps (m,)) given all pairs of looks."""
    q = rates - np.diag(rates.sum(axis=1))
    slope, value = np.zeros_like(q), 0.0
    for seen in looks:
        chance = np.maximum(exponential(q * seen.lag), 1e-300)
        met = seen.counts > 0
        value += float(seen.counts[met] @ np.log(chance[met]))
        ratio = np.divide(seen.counts, chance, out=np.zeros_like(q), where=met)
        slope += seen.lag * exponential_slope(q.T * seen.lag, ratio)[1]
    slope = np.maximum(slope, 0.0)
    return value, rates * slope, np.diag(slope).copy()
