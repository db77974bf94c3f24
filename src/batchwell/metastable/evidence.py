"""What is known of rare jumps without waiting for them: formulas and splitting through saddles.

Every answer is a rate with an error of its logarithm. In the regression it weighs like counted
jumps: an error s of the logarithm is worth 1/s^2 jumps, so that all are merged by inverse variance.
What disagrees with jumps that were counted is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .._jax import jax, jnp
from ..action import FixedPoint, hamiltonian, instantons
from ..domain import Domain
from ..dynamics import SGD, diffusion_approximation
from ..ensemble import advance, start
from ..errors import InputError, RunError, one_of
from ..estimate import Estimate
from ..exits.channels import Channel
from ..exits.crossings import crossings
from ..exits.departures import relaxation_steps
from ..exits.sharp import discrete_kramers, isotropic, kramers
from ..landscape import Landscape, Saddle
from .states import StateMap

# Errors of the logarithm of a rate that a formula is trusted to, beside eps / V.
SHARP_ERROR, ACTION_ERROR = 0.15, 1.0
RARE = 3.0  # V / eps from which formulas are used
DISAGREE = 2.5  # joint standard errors
BEYOND = 0.02  # how far past a saddle splitting ends, in lengths minimum-saddle
STRAYED = 0.05  # share of paths around a minimum found elsewhere from which splitting is silent
LEAVERS, LEFT, LONGEST = 32, 8, 2**16  # paths that show the ways out, how many must leave, steps
UNWALLED = 0.25  # share of what left past no wall from which splitting is silent
HASTY = 0.1  # crossings of a wall in one relaxation time above which splitting is silent
COMMIT = 4.0  # slowest times, at minimum and saddles, after which what crossed has made up its mind
RARE_METHODS = ("formula", "splitting")


@dataclass(frozen=True)
class Evidence:
    """A rate of jumps known otherwise than by counting them.

    Attributes
    ----------
    source, target
        Indices of the states.
    batch_size
        B.
    log_rate
        Natural logarithm of the rate per SGD step.
    error
        Standard error of `log_rate`, model error included.
    method
        How it was found.
    """

    source: int
    target: int
    batch_size: int
    log_rate: float
    error: float
    method: str

    @property
    def time(self) -> Estimate:
        """Mean time in SGD steps if this were the only way out."""
        value = math.exp(min(-self.log_rate, 700.0))
        spread = math.exp(min(1.96 * self.error, 300.0))
        ends = (value / spread, value * spread)
        return Estimate(value, value * self.error, ends, "steps", self.method, 0)


def saddle_evidence(
    sgd: SGD,
    landscape: Landscape,
    saddles: Sequence[Saddle],
    batch_sizes: Sequence[int],
    method: str = "formula",
    sources: Sequence[int] | None = None,
    **options: Any,
) -> list[Evidence]:
    """Rates over each saddle that joins two listed minima, both ways.

    "formula": Eyring-Kramers' law of the chain for isotropic Gaussian noise; else the least action
    of SGD itself with the prefactor of its diffusion, trusted to a factor e. Where V / eps is
    below 3 nothing is said. "splitting": multilevel splitting of simulated paths up to planes
    through all saddles around each minimum, whose ends are quenched; `options` are its particles,
    replicas and seed. It says nothing where exits are frequent, nor where paths at a smaller batch
    are seen to leave past all the planes: a saddle on the way out is not known. What leaves by an
    unknown way only at the batch sizes asked for is still missed, so that a rate is at least this.

    Parameters
    ----------
    sources
        Indices of the minima whose exits are asked for; all by default.

    Raises
    ------
    InputError
        An unknown method; with splitting momentum or reshuffled epochs.
    """
    one_of("method", method, RARE_METHODS)
    if method == "splitting":
        return _all_by_splitting(sgd, landscape, saddles, batch_sizes, sources, options)
    out: list[Evidence] = []
    for saddle in saddles:
        if saddle.joins:
            for side in (k for k in (0, 1) if sources is None or saddle.ends[k] in sources):
                out += _by_formula(sgd, saddle, side, batch_sizes, options)
    return _summed(out)


def _summed(rows: Sequence[Evidence]) -> list[Evidence]:
    """Rates of one edge over several saddles add up."""
    groups: dict[tuple[int, int, int, str], list[Evidence]] = {}
    for r in rows:
        groups.setdefault((r.source, r.target, r.batch_size, r.method), []).append(r)
    out = []
    for same in groups.values():
        logs = np.array([r.log_rate for r in same])
        total = float(np.logaddexp.reduce(logs))
        shares = np.exp(logs - total)
        error = float(np.sqrt(np.sum((shares * [r.error for r in same]) ** 2)))
        out.append(replace(same[0], log_rate=total, error=error))
    return out


# -- formulas ----------------------------------------------------------------------------------
def _by_formula(
    sgd: SGD, saddle: Saddle, side: int, batch_sizes: Sequence[int], options: dict[str, Any]
) -> Iterator[Evidence]:
    chain = replace(sgd, batch_size=batch_sizes[0])
    minimum, top = saddle.end_points[side], _fixed_point(chain, saddle)
    try:
        rule = _Rule.of(chain, minimum, top, options)
    except RunError:  # noise too small to climb, or a degenerate saddle: nothing is said
        return
    for b in batch_sizes:
        here = replace(sgd, batch_size=b)
        exponent, log_time = rule.log_time(here)
        if exponent < RARE:
            continue
        error = math.hypot(rule.error, 1.0 / exponent)
        i, j = saddle.ends[side], saddle.ends[1 - side]
        yield Evidence(i, j, b, -log_time, error, rule.name)


def _fixed_point(sgd: SGD, saddle: Saddle) -> FixedPoint:
    rates = -np.linalg.eigvalsh(np.asarray(jax.jit(sgd.loss.hessian)(jnp.asarray(saddle.x))))
    return FixedPoint(saddle.x, rates, 1, -1.0)


@dataclass(frozen=True)
class _Rule:
    """Log of the mean time over one saddle in steps, as a function of the chain."""

    name: str
    minimum: np.ndarray
    way: Channel
    sharp: bool
    error: float
    prefactor: float  # log of the time without its exponential, unless `sharp`

    @classmethod
    def of(cls, sgd: SGD, minimum: np.ndarray, top: FixedPoint, options: dict[str, Any]) -> _Rule:
        h = hamiltonian(sgd)
        path = instantons(sgd, minimum, top.x, **options)[0]
        if isotropic(h) and not sgd.momentum:
            name = "discrete Eyring-Kramers law"
            return cls(name, minimum, Channel(path, top, False), True, SHARP_ERROR, 0.0)
        if sgd.momentum:
            raise RunError("no prefactor is known with momentum")
        diffusion = diffusion_approximation(sgd)
        slow = instantons(diffusion, minimum, top.x, **options)[0]
        whole = hamiltonian(diffusion)
        way = Channel(slow, top, False)
        log_time = kramers(whole, minimum, way)
        prefactor = log_time - slow.exponent - math.log(sgd.learning_rate)
        name = "least action of SGD, prefactor of its diffusion"
        return cls(name, minimum, Channel(path, top, False), False, ACTION_ERROR, prefactor)

    def log_time(self, sgd: SGD) -> tuple[float, float]:
        """(V / eps, log of the mean time in steps) at the chain's batch size."""
        path = replace(self.way.path, exponent=self.way.path.action / sgd.temperature)
        if not self.sharp:
            return path.exponent, path.exponent + self.prefactor
        way = replace(self.way, path=path)
        return path.exponent, discrete_kramers(sgd, hamiltonian(sgd), self.minimum, way)


# -- splitting ---------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class _Walls:
    """Planes through the saddles around a minimum, across their unstable directions.

    `normals` (k, d) point outwards, `lengths` (k,) are distances from the minimum, `slowest` the
    least curvature at the minimum or across a saddle: excursions last as long as that allows.
    """

    minimum: np.ndarray
    normals: np.ndarray
    lengths: np.ndarray
    slowest: float

    @property
    def score(self) -> Callable[[Any], Any]:
        """1 on the first wall."""
        n, c = jnp.asarray(self.normals / self.lengths[:, None]), jnp.asarray(self.minimum)
        return lambda x: jnp.max(n @ (x - c))

    @property
    def domain(self) -> Domain:
        """Inside all walls, and a little beyond."""
        score = self.score
        return Domain("walls", len(self.minimum), lambda x: score(x) - (1 + BEYOND))


def _walls(landscape: Landscape, saddles: Sequence[Saddle], state: int) -> _Walls | None:
    """Walls around the minimum of `state`: each saddle as its image closest to it."""
    loss, home = landscape.loss, landscape.minima[state].x
    hessian = jax.jit(loss.hessian)
    normals, lengths, rates = [], [], [landscape.minima[state].lambda_min]
    for saddle in saddles:
        for side in np.flatnonzero(np.array(saddle.ends) == state):
            x = landscape.symmetry.align(saddle.x, home)
            away = float(np.linalg.norm(saddle.x - saddle.end_points[side]))
            if abs(float(np.linalg.norm(x - home)) - away) > 1e-5 * (1 + away):
                continue  # the closest image is not the one that this minimum touches
            values, vectors = np.linalg.eigh(np.asarray(hessian(jnp.asarray(x))))
            normal = vectors[:, 0] * np.sign((x - home) @ vectors[:, 0])
            normals.append(normal)
            lengths.append(float((x - home) @ normal))
            rates.append(-float(values[0]))
    if not normals or min(lengths) <= 0 or min(rates) <= 0:
        return None
    return _Walls(home, np.array(normals), np.array(lengths), min(rates))


def _all_by_splitting(
    sgd: SGD,
    landscape: Landscape,
    saddles: Sequence[Saddle],
    batch_sizes: Sequence[int],
    sources: Sequence[int] | None,
    options: dict[str, Any],
) -> list[Evidence]:
    if sgd.momentum or sgd.sampling == "reshuffle":
        raise InputError("method", "splitting", "needs SGD without momentum or reshuffled epochs")
    states, out = StateMap(landscape), []
    asked = {i for s in saddles for i in s.ends if i >= 0}
    for state in sorted(asked if sources is None else asked & set(sources)):
        walls = _walls(landscape, saddles, state)
        if walls is None or not _closed(sgd, walls, state, states, min(batch_sizes)):
            continue
        for b in batch_sizes:
            try:
                out += _by_splitting(replace(sgd, batch_size=b), walls, state, states, **options)
            except (RunError, InputError):  # stuck, or walls too close to start from: no answer
                continue
    return out


def _closed(sgd: SGD, walls: _Walls, source: int, states: StateMap, batch_size: int) -> bool:
    """Whether paths that leave are then beyond a wall, at `batch_size` and halves of it.

    Smaller ones are asked until enough paths leave; none may show a way that no wall closes.
    """
    left = 0
    while batch_size >= 1 and left < LEFT:
        beyond = _left_beyond(replace(sgd, batch_size=batch_size), walls, source, states)
        if len(beyond) and float(np.mean(~beyond)) > UNWALLED:
            return False
        left, batch_size = left + len(beyond), batch_size // 2
    return True


def _left_beyond(sgd: SGD, walls: _Walls, source: int, states: StateMap) -> np.ndarray:
    """For each path seen to have left, (left,): whether it, or its new minimum, is past a wall."""
    score = jax.jit(jax.vmap(walls.score))
    align = states.landscape.symmetry.align
    begin = np.repeat(walls.minimum[None], LEAVERS, axis=0)
    state, out = start(sgd, begin, LEAVERS, 0, f"splitting/ways-B{sgd.batch_size}"), []
    while len(state.paths) and state.step < LONGEST:
        state = advance(sgd, state, max(state.step, 16))
        kinds, centers = states.minima_of(state.x)
        left = kinds != source
        for x, center in zip(state.x[left], centers[left], strict=True):
            both = np.array([x, align(center, x) if np.isfinite(center).all() else x])
            out.append(bool(np.max(np.asarray(score(both))) >= 1.0))
        state = state.take(np.flatnonzero(~left))
    return np.array(out, dtype=bool)


def _by_splitting(
    sgd: SGD,
    walls: _Walls,
    source: int,
    states: StateMap,
    particles: int = 256,
    replicas: int = 8,
    seed: int = 0,
) -> list[Evidence]:
    """Jumps over the walls around a minimum.

    What crossed runs on for some of the slowest times, then is quenched: what is then back where
    it came from has not jumped, or was only on an excursion. Nothing is said where paths around
    the minimum were found elsewhere (a way out that no wall closes), or cross walls so often that
    they have no time in between to forget the minimum where they started again.
    """
    found = crossings(sgd, walls.minimum, walls.domain, walls.score, particles, replicas, seed)
    settle = math.ceil(COMMIT / (sgd.learning_rate * walls.slowest))
    rates, strayed = [], []
    for k, crossing in enumerate(found):
        strayed.append(float(np.mean(states(crossing.departed) != source)))
        landed = np.empty(0, dtype=int)
        if len(crossing.points):
            over = start(sgd, crossing.points, len(crossing.points), seed, f"splitting/commit/{k}")
            landed = states(advance(sgd, over, settle).x)
        counts = np.bincount(landed, minlength=len(states.landscape.minima) + 1)
        rates.append(crossing.rate * counts / max(len(landed), 1))
    often = float(np.mean([c.rate for c in found])) * relaxation_steps(sgd, walls.minimum)
    if np.mean(strayed) > STRAYED or often > HASTY:
        return []
    table = np.array(rates)
    mean, spread = table.mean(axis=0), table.std(axis=0, ddof=1) / math.sqrt(replicas)
    mean[source] = 0.0
    return [
        Evidence(
            source,
            int(j),
            sgd.batch_size,
            float(np.log(mean[j])),
            max(float(spread[j] / mean[j]), 0.02),
            "multilevel splitting",
        )
        for j in np.flatnonzero(mean > 0)
    ]


# -- weighing ----------------------------------------------------------------------------------
def weighed(
    evidence: Sequence[Evidence],
    sizes: Sequence[int],
    jumps: np.ndarray,
    steps: np.ndarray,
    labels: Sequence[str],
) -> tuple[np.ndarray, np.ndarray, list[Evidence], list[str]]:
    """(jumps (n, m, m), exposures (n, m, m), evidence that was used, notes).

    `jumps` and `steps` (n, m) are counted ones at batch sizes `sizes`. A method that disagrees
    with counted jumps on an edge, at any batch size, is not used for that edge.
    """
    m = steps.shape[1]
    merged, exposure = jumps.copy(), np.repeat(steps[:, :, None], m, axis=2)
    place = {b: k for k, b in enumerate(sizes)}
    lost = {
        (e.source, e.target, e.method)
        for e in evidence
        if e.batch_size in place and _disagrees(e, place[e.batch_size], jumps, steps)
    }
    used = [e for e in evidence if (e.source, e.target, e.method) not in lost]
    for e in used:
        if e.batch_size in place:
            k, weight = place[e.batch_size], 1.0 / e.error**2
            merged[k, e.source, e.target] += weight
            exposure[k, e.source, e.target] += weight * math.exp(-e.log_rate)
    notes = [
        f"{method} disagrees with counted jumps from {labels[i]} to {labels[j]} and was not used"
        for i, j, method in sorted(lost)
    ]
    return merged, exposure, used, notes


def _disagrees(e: Evidence, k: int, jumps: np.ndarray, steps: np.ndarray) -> bool:
    events, time = float(jumps[k, e.source, e.target]), float(steps[k, e.source])
    if time <= 0 or (events < 1 and time * math.exp(e.log_rate) < 3):
        return False  # nothing seen where nothing was to be expected
    gap = e.log_rate - math.log((events + 0.5) / time)
    return abs(gap) > DISAGREE * math.hypot(e.error, 1.0 / math.sqrt(events + 0.5))
