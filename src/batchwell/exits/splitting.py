"""Adaptive multilevel splitting: exit times of any length from short pieces of simulation.

The chance p that a departure from the core gets out (see `departures`) is estimated by killing the
paths of lowest highest score and branching the others at the first point where they exceed it:
Cerou & Guyader, Stoch. Anal. Appl. 25 (2007); unbiased for chains in discrete time, whatever the
score and however many are killed at a time, with the rule for ties that every path that does
not exceed the level dies: Brehier, Gazeau, Goudenege, Lelievre & Rousset, Ann. Appl. Probab. 26
(2016), Theorem 3.2. A path is kept as its start and its generator, and run again to find where it
branches. Standard errors come from independent replicas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from .._jax import jax, jnp, traced
from ..domain import Domain
from ..dynamics import SGD, Process
from ..ensemble import OUT, Score
from ..errors import InputError, RunError, require, whole
from ..estimate import Estimate
from ..streams import generator
from .departures import Core, core_of, departures, relaxation_steps
from .direct import watched_domain
from .regime import attractor, check_level, substeps_of
from .scores import default_score

UNSURE = 1e-12
# Share of log-normal replicas that their mean has to rest on.
CARRIED = 0.25
STREAM = "splitting"
# Replicas' trials are told apart by their index in one stream: room for this many each.
ROOM = 2**40


def splitting(
    process: Process,
    start: ArrayLike,
    domain: Domain,
    *,
    score: Score | None = None,
    particles: int = 512,
    replicas: int = 16,
    killed: int | None = None,
    seed: int = 0,
    substeps: int | None = None,
    threads: int | None = None,
    precision: str = "float64",
    second: Estimate | None = None,
) -> Estimate:
    """Mean exit time in SGD steps by adaptive multilevel splitting.

    Parameters
    ----------
    score
        ``score(x)``, (d,) -> scalar in jax.numpy, growing on the way out. By default the
        committor of the diffusion on a coarse grid in up to 3 dimensions, else the action along
        the most likely paths (`scores.default_score`).
    particles
        Paths of one replica.
    replicas
        Independent repetitions, from which the standard error comes (at least 2).
    killed
        Paths killed at a time, at least; 1 is the last-particle algorithm, of least variance.
        By default a 16th of the particles, whose variance is 3 % larger.
    threads, precision
        Of the fused engine; "float32" is two to three times as fast where a step moves x by more
        than a millionth of its size.
    second
        Answer of another method. Chances below 1e-12 are called reliable only if it agrees.

    Raises
    ------
    InputError
        Reshuffled epochs, momentum, a bad start, or a domain without a level function.
    RunError
        All paths of every replica died, or another minimum lies inside the domain.

    Examples
    --------
    >>> from batchwell import SGD, additive, ball
    >>> sgd = SGD(additive(lambda x: x @ x / 2), learning_rate=0.1)
    >>> out = splitting(sgd, [0.0], ball([0.0], 1.0), particles=256, seed=1)
    >>> abs(out.value - 117280.42) < 4 * out.stderr
    True
    """
    particles, replicas = whole("particles", particles, 32), whole("replicas", replicas, 2)
    killed = max(1, particles // 16) if killed is None else whole("killed", killed)
    require(killed < particles, "killed", killed, f"must be below the {particles} particles")
    check_level(domain)
    minimum = attractor(process, start, domain)
    substeps = substeps_of(process, minimum, 4, substeps)
    if isinstance(process, SGD) and (process.momentum or process.sampling == "reshuffle"):
        raise InputError(
            "process",
            "momentum or reshuffled epochs",
            "carry memory from step to step, which levels of x alone do not see",
        )
    if score is None:
        score = default_score(process, minimum, domain)
    else:
        at = jax.ShapeDtypeStruct(minimum.shape, jnp.float64)
        shape = traced("score", score, at, call=f"x of shape {minimum.shape}").shape
        require(shape == (), "score", shape, "must return one number")
    relaxation = relaxation_steps(process, minimum)
    watched, said = watched_domain(process, domain, minimum, substeps)
    core = core_of(process, watched, minimum, score, seed, substeps, relaxation, threads, precision)
    times, points = zip(
        *(departures(core, f"{STREAM}/{k}", particles) for k in range(replicas)), strict=True
    )
    paths = launched(core, np.stack(points))
    rounds = split(core, paths, killed)
    out = _answer(np.array(times), paths.chance, particles, rounds, second)
    return replace(out, notes=(*said, *out.notes))


@dataclass
class Paths:
    """Particles of all replicas, each kept as the start of its last piece.

    Attributes
    ----------
    x, base
        (R, N, d) where the last piece starts, (R, N) the score there (``inf`` outside): the
        highest of the path so far.
    index
        (R, N) of the piece's generator in the stream.
    best
        (R, N) highest score of the whole path, ``inf`` if it got out.
    chance
        (R,) product of the shares that survived so far.
    used
        (R,) generators used.
    """

    x: np.ndarray
    base: np.ndarray
    index: np.ndarray
    best: np.ndarray
    chance: np.ndarray
    used: np.ndarray


def launched(core: Core, points: np.ndarray) -> Paths:
    """Particles of all replicas on their way from the departures `points` (R, N, d)."""
    replicas, particles, d = points.shape
    flat = points.reshape(-1, d)
    base = np.asarray(jax.vmap(core.score)(jnp.asarray(flat)))
    base = np.where(core.domain.contains(flat), base, np.inf)
    index = np.arange(particles) + ROOM * np.arange(replicas)[:, None]
    best = _run(core, flat, base, index.ravel())
    return Paths(
        points.copy(),
        base.reshape(replicas, particles),
        index,
        best.reshape(replicas, particles),
        np.ones(replicas),
        np.full(replicas, particles),
    )


def _run(core: Core, x: np.ndarray, base: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Highest score (m,) of pieces started at x (m, d) with score `base`; ``inf`` outside."""
    best, going = base.copy(), base < np.inf
    if going.any():
        done = core.trials(core.paths(STREAM, x[going], index[going]), np.inf)
        best[going] = np.where(done.fates == OUT, np.inf, np.fmax(base[going], done.best))
    return best


def split(core: Core, paths: Paths, killed: int) -> int:
    """Kill and branch until every replica is out or extinct; the number of rounds."""
    replicas, particles = paths.best.shape
    choose = [generator(core.seed, f"{STREAM}/{k}/choice") for k in range(replicas)]
    active, rounds = np.ones(replicas, bool), 0
    while active.any():
        rounds += 1
        rows, dead, parents, levels = [], [], [], []
        for r in np.flatnonzero(active):
            best = paths.best[r]
            level = np.partition(best, killed - 1)[killed - 1]
            if level == np.inf:
                active[r] = False
                paths.chance[r] *= (best == np.inf).mean()
                continue
            dies = best <= level
            alive = np.flatnonzero(~dies)
            paths.chance[r] *= len(alive) / particles
            if not alive.size:
                active[r] = False
                continue
            gone = np.flatnonzero(dies)
            rows.append(np.full(len(gone), r))
            dead.append(gone)
            parents.append(choose[r].choice(alive, len(gone)))
            levels.append(np.full(len(gone), level))
        if rows:
            _branch(core, paths, *(np.concatenate(a) for a in (rows, dead, parents, levels)))
    return rounds


def _branch(
    core: Core,
    paths: Paths,
    rows: np.ndarray,
    dead: np.ndarray,
    parents: np.ndarray,
    levels: np.ndarray,
) -> None:
    """Replace the dead by branches of their parents, from where these first exceed the level."""
    x, base = paths.x[rows, parents], paths.base[rows, parents]
    again = np.flatnonzero(base <= levels)
    if again.size:
        index = paths.index[rows[again], parents[again]]
        seen = core.trials(core.paths(STREAM, x[again], index), levels[again])
        x[again] = seen.points
        base[again] = np.where(seen.fates == OUT, np.inf, seen.best)
    counts = np.bincount(rows, minlength=len(paths.used))
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    index = ROOM * rows + paths.used[rows] + place
    paths.used += counts
    paths.x[rows, dead], paths.base[rows, dead] = x, base
    paths.index[rows, dead] = index
    paths.best[rows, dead] = _run(core, x, base, index)


def out_points(core: Core, paths: Paths) -> list[np.ndarray]:
    """Where the paths of each replica came out, (m, d) each, m of its particles.

    A path that is out is kept by the start of its last piece, which is run again.
    """
    out = []
    for x, base, index, best in zip(paths.x, paths.base, paths.index, paths.best, strict=True):
        points = x.copy()
        again = np.flatnonzero((best == np.inf) & (base < np.inf))
        if again.size:
            pieces = core.paths(STREAM, x[again], index[again])
            points[again] = core.trials(pieces, np.inf).points
        out.append(points[best == np.inf])
    return out


def _answer(
    times: np.ndarray, chances: np.ndarray, particles: int, rounds: int, second: Estimate | None
) -> Estimate:
    rates, n = chances / times, len(times)
    if not rates.any():
        raise RunError(
            "all paths of every replica died: raise particles or give a score that tells "
            "points on the way out apart"
        )
    chance = float(chances.mean())
    notes = [
        f"{n} replicas of {particles} particles, {rounds} levels; chance of a departure to get "
        f"out {chance:.3g}"
    ]
    out = rate_to_time(rates, "adaptive multilevel splitting").with_notes(*notes)
    out = out if chance > UNSURE else second_opinion(out, second)
    return out.with_notes(*_too_scattered(rates, particles))


def _too_scattered(rates: np.ndarray, particles: int) -> tuple[str, ...]:
    """Note that the mean rests on too few of the rates (n,), and how many particles it takes."""
    n = len(rates)
    # Of n log-normal numbers a mean weighs as many as n / exp(variance of the log).
    if np.all(rates > 0):
        count = n * math.exp(-float(np.log(rates).var(ddof=1)))
    else:
        count = float(rates.sum() ** 2 / np.sum(rates**2))
    if count >= CARRIED * n:
        return ()
    # The log's variance falls like 1 / particles.
    need = math.ceil(particles * math.log(n / count) / -math.log(CARRIED))
    return (
        f"the mean rests on {count:.2g} of {n} replicas: raise particles to about {need}; "
        "not reliable",
    )


def rate_to_time(rates: np.ndarray, how: str) -> Estimate:
    """Mean time from independent unbiased rates (n,), interval of its logarithm.

    Chances found by splitting are log-normal in the limit of many particles (Cerou & Guyader,
    Stoch. Anal. Appl. 25 (2007), section 3; Guyader, Hengartner & Matzner-Lober, Appl. Math. Optim. 64
    (2011)): where they scatter, most replicas lie below their mean and none may show it. The
    interval is the wider one, at each end, of Student's for the mean and Cox's for a log-normal
    mean, ``m + s^2/2 +- t sqrt(s^2/n + s^4/(2 (n-1)))`` in the logarithm (Zhou & Gao, Stat. Med. 16
    (1997)); the standard error is the larger one.

    Examples
    --------
    >>> out = rate_to_time(np.array([0.9, 1.0, 1.1, 1.0]) / 50, "an example")
    >>> round(out.value, 6), round(out.stderr, 2)
    (50.0, 2.05)
    """
    from scipy.stats import t as student

    n = len(rates)
    rate, error = float(rates.mean()), float(rates.std(ddof=1) / math.sqrt(n))
    quantile, relative = float(student.ppf(0.975, n - 1)), error / rate
    low, high = -quantile * relative, quantile * relative
    if np.all(rates > 0):
        logs = np.log(rates / rate)
        variance = float(logs.var(ddof=1))
        middle = float(logs.mean()) + variance / 2
        spread = math.sqrt(variance / n + variance**2 / (2 * (n - 1)))
        low = min(low, middle - quantile * spread)
        high = max(high, middle + quantile * spread)
        relative = max(relative, spread)
    value = 1.0 / rate
    return Estimate(
        value,
        value * relative,
        (value * math.exp(-high), value * math.exp(-low)),
        "steps",
        f"{how}, t and log-normal interval over replicas",
        n,
    )


def second_opinion(out: Estimate, second: Estimate | None) -> Estimate:
    """Below a chance of 1e-12, call the number reliable only where another method agrees."""
    if second is None:
        return out.with_notes(UNRELIABLE)
    low, high = second.interval
    agree = out.interval[0] <= high and low <= out.interval[1]
    verdict = "agrees: reliable" if agree else f"disagrees ({second}): not reliable"
    return out.with_notes(f"second method ({second.method}) {verdict}")


UNRELIABLE = "chance below 1e-12 and no second method: not called reliable"
