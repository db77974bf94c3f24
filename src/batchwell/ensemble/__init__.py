"""Ensembles: many copies of SGD or of a diffusion, side by side.

What callers see is this page. Losses are lowered to machine code over lanes of paths (`fused`);
what has no such form runs on XLA (`xla`). A path's random bits depend on (seed, stream, path index)
alone, so results do not depend on chunks, lanes or threads. All functions take `Options`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack, cast

import numpy as np
from numpy.typing import ArrayLike

from .._jax import jax
from ..domain import Domain
from ..dynamics import SGD, Process
from ..errors import Divergence, InputError, require, whole
from ..streams import path_states
from . import exits, fused, trials, xla
from .choice import engine_for, engine_with_test, loops_for
from .flow import Flow, Regions, gradient_flow
from .fused import CALL_SECONDS
from .lowering import Unsupported
from .observe import Bins, Observable, Sums, Watcher, shape_of
from .options import Options, Settings, SlowerEngine, checked, fall_back, require_memory
from .trials import CORE, GOAL, OUT, STOPPED, Score, Table

__all__ = [
    "CORE",
    "GOAL",
    "OUT",
    "STOPPED",
    "Ensemble",
    "FirstExits",
    "Flow",
    "Observation",
    "Options",
    "Regions",
    "Score",
    "SlowerEngine",
    "Table",
    "Trials",
    "advance",
    "first_exits",
    "gradient_flow",
    "observe",
    "positions",
    "run_trials",
    "start",
]

DEFAULT_SUBSTEPS = 4
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Ensemble:
    """M paths at one moment.

    Attributes
    ----------
    x
        Positions (M, d).
    rng
        Generators (M, 4), uint32.
    memory
        What paths carry beside x (velocity, order of the data).
    step
        SGD steps taken so far.
    paths
        Path indices (M,), the keys of the random streams.
    """

    x: np.ndarray
    rng: np.ndarray
    memory: Any
    step: int
    paths: np.ndarray

    def take(self, rows: ArrayLike) -> Ensemble:
        """The ensemble of these rows only."""
        keep = np.asarray(rows)
        memory = jax.tree.map(lambda a: np.asarray(a)[keep], self.memory)
        return replace(
            self, x=self.x[keep], rng=self.rng[keep], memory=memory, paths=self.paths[keep]
        )


@dataclass(frozen=True)
class FirstExits:
    """First exits of M paths from a domain.

    Attributes
    ----------
    steps
        (M,) SGD steps until the exit, or until watching stopped (a multiple of
        1/substeps for a diffusion).
    observed
        (M,) whether the exit was seen; False means censored at `horizon`.
    points
        (M, d) where the path was then.
    horizon
        Longest time watched, in SGD steps.
    """

    steps: np.ndarray
    observed: np.ndarray
    points: np.ndarray
    horizon: int


@dataclass(frozen=True)
class Trials:
    """How M paths ended that ran until they were in a core, past a goal, or outside.

    Attributes
    ----------
    fates
        (M,) CORE, GOAL, OUT, or STOPPED at the horizon.
    points
        (M, d) where.
    steps
        (M,) SGD steps taken (a multiple of 1/substeps for a diffusion).
    best
        (M,) highest score after any of these steps.
    """

    fates: np.ndarray
    points: np.ndarray
    steps: np.ndarray
    best: np.ndarray


@dataclass(frozen=True)
class Observation:
    """Sums of observables along paths; their size does not depend on how long was watched.

    Attributes
    ----------
    ensemble
        The paths at the end.
    times
        How many times each path was seen.
    totals, squares
        (M, k) sums of the k observables, and of their squares, over those times.
    counts, edges
        (k, bins + 2) whole numbers (below, in each bin, above) and (k, bins + 1) edges, if asked.
    """

    ensemble: Ensemble
    times: int
    totals: np.ndarray
    squares: np.ndarray
    counts: np.ndarray | None = None
    edges: np.ndarray | None = None

    @property
    def mean(self) -> np.ndarray:
        """(k,) mean over paths and times."""
        return self.totals.mean(axis=0) / self.times

    @property
    def variance(self) -> np.ndarray:
        """(k,) variance over paths and times together."""
        return self.squares.mean(axis=0) / self.times - self.mean**2

    @property
    def stderr(self) -> np.ndarray:
        """(k,) standard error of `mean`, from the spread between independent paths."""
        spread = (self.totals / self.times).std(axis=0, ddof=1)
        return spread / np.sqrt(len(self.totals))


def dimension(process: Process) -> int:
    """Dimension of the space that `process` moves in."""
    return process.loss.dim if isinstance(process, SGD) else process.dim


def start(
    process: Process,
    x0: ArrayLike,
    paths: int | Sequence[int] | np.ndarray,
    seed: int,
    stream: str = "paths",
    substeps: int = DEFAULT_SUBSTEPS,
) -> Ensemble:
    """Paths at step 0.

    Parameters
    ----------
    x0
        One start (d,) for all, or one per path (M, d).
    paths
        How many paths (then their indices are 0 ... M-1), or the indices themselves.
    seed, stream
        Root seed and stream name.

    Raises
    ------
    InputError
        Wrong shapes, or a start that is not finite.
    """
    count = whole("paths", paths) if np.ndim(paths) == 0 else np.size(paths)
    require_memory(_bytes(process, count))
    index = np.arange(count) if np.ndim(paths) == 0 else np.asarray(paths)
    x = _starts(x0, index.size, dimension(process))
    return Ensemble(x, path_states(seed, stream, index), _memory(process, x), 0, index)


def _bytes(process: Process, count: int) -> int:
    """About what an ensemble and its copies take at the peak."""
    order = process.loss.size if isinstance(process, SGD) and _has_order(process) else 0
    return count * (6 * 8 * dimension(process) + 3 * 16 + 3 * 4 * order)


def _has_order(sgd: SGD) -> bool:
    return sgd.loss.noise is None and sgd.sampling != "with_replacement"


def _memory(process: Process, x: np.ndarray) -> Any:
    """What paths carry beside x at step 0, as `step.Step.memory` has it."""
    if not isinstance(process, SGD):
        return ()
    data: Any = ()
    if _has_order(process):
        data = np.tile(np.arange(process.loss.size, dtype=np.int32), (len(x), 1))
    return (data, np.zeros_like(x)) if process.momentum else (data,)


def _starts(x0: ArrayLike, count: int, dim: int) -> np.ndarray:
    x = np.asarray(x0, dtype=np.float64)
    if x.shape == (dim,):
        x = np.broadcast_to(x, (count, dim))
    require(x.shape == (count, dim), "x0", x.shape, f"must have shape ({dim},) or ({count}, {dim})")
    require(bool(np.all(np.isfinite(x))), "x0", x0, "must be finite")
    return np.array(x)


def advance(
    process: Process,
    ensemble: Ensemble,
    steps: int,
    substeps: int = DEFAULT_SUBSTEPS,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> Ensemble:
    """`ensemble` after `steps` more SGD steps of `process`.

    The process may differ from the one that `ensemble` was started with (a larger batch, say)
    as long as both carry the same memory.

    Raises
    ------
    Divergence
        A path left the finite numbers: says which path and by which step.
    """
    steps = whole("steps", steps, 0)
    run = _stepper(process, ensemble, substeps, checked(process, substeps, cast(Any, options)))
    x = ensemble.x
    for done, count in _blocks(steps):
        x = run(ensemble.step + done, count)
        _check_finite(x, ensemble.paths, ensemble.step + done + count)
        if progress is not None:
            progress(done + count, steps)
    rng, memory = run.state()
    return replace(ensemble, x=x, rng=rng, memory=memory, step=ensemble.step + steps)


def _stepper(
    process: Process,
    ensemble: Ensemble,
    substeps: int,
    settings: Settings,
    loops: bool | None = None,
) -> fused.Stepper | xla.Stepper:
    """What runs steps: ``run(first, count) -> x``, then ``run.state() -> (rng, memory)``."""
    state = (ensemble.x, ensemble.rng, ensemble.memory)
    if settings.engine != "xla":
        try:
            engine = engine_for(process, settings, loops)
            return fused.Stepper(engine, substeps, settings.threads, *state, device=settings.device)
        except Unsupported as why:
            fall_back(settings, str(why))
    return xla.Stepper(process, substeps, settings.scheme, *state)


def positions(
    process: Process,
    x0: ArrayLike,
    at: Sequence[int],
    paths: int,
    seed: int,
    stream: str = "paths",
    substeps: int = DEFAULT_SUBSTEPS,
    **options: Unpack[Options],
) -> np.ndarray:
    """Positions of `paths` paths at the SGD steps `at`: shape (len(at), paths, d).

    Examples
    --------
    >>> from batchwell import SGD, additive
    >>> sgd = SGD(additive(lambda x: x @ x / 2), learning_rate=0.1)
    >>> positions(sgd, [1.0], at=[0, 10], paths=3, seed=1).shape
    (2, 3, 1)
    """
    times = [whole("at", t, 0) for t in at]
    require(times == sorted(times), "at", at, "must not decrease")
    state = start(process, x0, paths, seed, stream, substeps)
    out = []
    for t in times:
        state = advance(process, state, t - state.step, substeps, **options)
        out.append(state.x)
    return np.stack(out)


def observe(
    process: Process,
    ensemble: Ensemble,
    steps: int,
    observable: Observable = lambda x: x,
    every: int = 1,
    bins: tuple[ArrayLike, ArrayLike, int] | None = None,
    substeps: int = DEFAULT_SUBSTEPS,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> Observation:
    """Moments, and histograms if asked, of observables along paths, without storing paths.

    Parameters
    ----------
    steps
        SGD steps to run, a multiple of `every`.
    observable
        ``observable(x)`` in jax.numpy, its entries k observables; the coordinates by default.
    every
        Observe after every so many SGD steps.
    bins
        (lower, upper, number): ends, one for all observables or (k,), and how many bins.

    Examples
    --------
    >>> from batchwell import SGD, additive
    >>> sgd = SGD(additive(lambda x: x @ x / 2), learning_rate=0.1)
    >>> seen = observe(sgd, start(sgd, [0.0], 100, seed=1), 500, lambda x: x**2, every=10)
    >>> seen.times, bool(abs(seen.mean[0] - 0.1 / 1.9) < 4 * seen.stderr[0])
    (50, True)
    """
    steps, every = whole("steps", steps), whole("every", every)
    require(steps % every == 0, "steps", steps, f"must be a multiple of every = {every}")
    k = shape_of(observable, dimension(process))
    ranges = _bins(bins, k)
    zeros = np.zeros((len(ensemble.paths), k))
    counts = None if ranges is None else np.zeros((k, ranges.number + 2), np.int64)
    sums = Sums(zeros, zeros, counts)
    settings = checked(process, substeps, cast(Any, options))
    loops = loops_for(process, observable, settings)
    stepper = _stepper(process, ensemble, substeps, settings, loops)
    look = _watcher(stepper, observable, every, ranges, settings)
    x = ensemble.x
    for done, count in _blocks(steps // every):
        x = look(ensemble.step + done * every, count * every, sums)
        _check_finite(x, ensemble.paths, ensemble.step + (done + count) * every)
        if progress is not None:
            progress((done + count) * every, steps)
    rng, memory = stepper.state()
    end = replace(ensemble, x=x, rng=rng, memory=memory, step=ensemble.step + steps)
    edges = None if ranges is None else ranges.edges
    return Observation(end, sums.times, sums.totals, sums.squares, sums.counts, edges)


def _bins(bins: tuple[ArrayLike, ArrayLike, int] | None, k: int) -> Bins | None:
    if bins is None:
        return None
    lower, upper = (np.broadcast_to(np.asarray(v, np.float64), (k,)) for v in bins[:2])
    require(bool(np.all(lower < upper)), "bins", bins, "need a lower end below the upper one")
    return Bins(lower, upper, whole("bins", bins[2]))


def _watcher(
    stepper: fused.Stepper | xla.Stepper,
    observable: Observable,
    every: int,
    bins: Bins | None,
    settings: Settings,
) -> Callable[[int, int, Sums], np.ndarray]:
    if isinstance(stepper, fused.Stepper):
        try:
            return Watcher(stepper, stepper.engine, observable, every, bins, settings.threads)
        except Unsupported as why:
            fall_back(settings, f"in the observable, {why}")
    return xla.watcher(stepper, observable, every, bins)


def first_exits(
    process: Process,
    x0: ArrayLike,
    domain: Domain,
    horizon: int,
    paths: int | Sequence[int] | np.ndarray,
    seed: int,
    stream: str = "exits",
    substeps: int = DEFAULT_SUBSTEPS,
    progress: Progress | None = None,
    bridge: bool = False,
    **options: Unpack[Options],
) -> FirstExits:
    """First exits from a domain with a level function, tested after every step.

    With `bridge`, a diffusion is also counted as out when a Brownian bridge between two points
    inside would have touched the boundary (linearised there; two more random words a step): this
    takes away the bias O(sqrt dt) of seeing the path at its steps only. Then the point of exit
    is where the path was at the end of that step.

    `progress` is told (paths finished, paths), or (steps, horizon) on XLA. Paths still inside at `horizon` SGD steps come back with ``observed`` False; none is
    dropped.

    Raises
    ------
    InputError
        A basin (needs quenches: `exits.basin_exits`), or a start outside the domain.
    Divergence
        A path left the finite numbers: says which path and at which step.
    """
    horizon = whole("horizon", horizon)
    if domain.needs_quench:
        raise InputError("domain", domain.name, "must have a level function here")
    state = start(process, x0, paths, seed, stream, substeps)
    inside = domain.contains(state.x)
    require(bool(inside.all()), "x0", state.x[~inside][:1], f"must lie inside the {domain.name}")
    settings = checked(process, substeps, cast(Any, options))
    per = 1 if isinstance(process, SGD) else whole("substeps", substeps)
    if settings.engine != "xla":
        try:
            engine, test = engine_with_test(process, domain, bridge, settings)
            found = exits.find_exits(
                engine,
                test,
                state.x,
                state.rng,
                horizon * per,
                substeps,
                settings.threads,
                progress,
                settings.device,
            )
            return _first_exits(state, *found, horizon, per)
        except Unsupported as why:
            fall_back(settings, str(why))
    if bridge:
        raise InputError("bridge", True, "needs the fused engine")
    run = xla.exit_finder(process, substeps, domain, settings.scheme)
    return _exits_on_xla(run, state, horizon, per, progress)


def run_trials(
    process: Process,
    ensemble: Ensemble,
    domain: Domain,
    score: Score,
    core: float,
    goals: ArrayLike,
    horizon: int,
    substeps: int = DEFAULT_SUBSTEPS,
    **options: Unpack[Options],
) -> Trials:
    """Run every path until its score is at most `core`, exceeds its goal, or it is outside.

    Tested after every step, never before the first; outside wins over goal, goal over core. The
    same ensemble gives the same paths for any goals, up to where they end.

    Parameters
    ----------
    ensemble
        From `start`, at step 0.
    domain
        With a level function.
    score
        ``score(x)``, (d,) -> scalar in jax.numpy.
    goals
        One score for all, or (M,); ``inf`` for none.
    horizon
        SGD steps after which a path is stopped.

    Raises
    ------
    Divergence
        A path left the finite numbers.

    Examples
    --------
    >>> from batchwell import SGD, additive, ball
    >>> sgd = SGD(additive(lambda x: x @ x / 2), learning_rate=0.1)
    >>> paths = start(sgd, [0.5], 4, seed=1)
    >>> run_trials(sgd, paths, ball([0.0], 1.0), lambda x: x @ x, 0.01, 0.3, 10**6).fates
    array([1, 2, 2, 1], dtype=int32)
    """
    horizon = whole("horizon", horizon)
    goals = np.broadcast_to(np.asarray(goals, np.float64), (len(ensemble.x),))
    settings = checked(process, substeps, cast(Any, options))
    per = 1 if isinstance(process, SGD) else whole("substeps", substeps)
    common = (domain, score, ensemble.x, ensemble.rng)
    found = None
    if settings.engine != "xla":
        try:
            engine = engine_for(process, settings, loops=False)
            found = trials.run_trials(
                engine,
                *common,
                core,
                goals,
                horizon * per,
                substeps,
                settings.threads,
                settings.device,
            )
        except Unsupported as why:
            fall_back(settings, str(why))
    if found is None:
        found = trials.run_on_xla(
            process,
            *common,
            ensemble.memory,
            core,
            goals,
            horizon * per,
            substeps,
            settings.scheme,
        )
    points, steps, fates, best = found
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if bad.size:
        _check_finite(points, ensemble.paths, -(-int(steps[bad[0]]) // per))
    return Trials(fates, points, steps / per, best)


def _first_exits(
    state: Ensemble,
    steps: np.ndarray,
    observed: np.ndarray,
    points: np.ndarray,
    horizon: int,
    per: int,
) -> FirstExits:
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if bad.size:
        _check_finite(points, state.paths, -(-int(steps[bad[0]]) // per))
    return FirstExits(np.where(observed, steps / per, horizon), observed, points, horizon)


def _exits_on_xla(
    run: Callable[..., Any], state: Ensemble, horizon: int, per: int, progress: Progress | None
) -> FirstExits:
    left_at = np.zeros(len(state.paths), dtype=np.int64)
    points = state.x.copy()
    alive = np.arange(len(state.paths))
    left = np.zeros(len(alive), dtype=np.int64)
    for done, count in _blocks(horizon):
        x, memory, rng, left = run(done * per, count * per, state.x, state.memory, state.rng, left)
        left, x = np.asarray(left), np.asarray(x)
        _check_finite(x, state.paths, done + count)
        left_at[alive], points[alive] = left, x
        state = replace(state, x=x, memory=memory, rng=np.asarray(rng))
        if progress is not None:
            progress(done + count, horizon)
        gone = left > 0
        if gone.all():
            break
        # Every new number of paths is compiled anew: drop the finished only by halves.
        if 2 * gone.sum() >= len(alive):
            state, alive, left = state.take(~gone), alive[~gone], left[~gone]
    observed = left_at > 0
    return FirstExits(np.where(observed, left_at / per, horizon), observed, points, horizon)


def _blocks(total: int) -> Any:
    """(done, count) blocks that grow or shrink so that each lasts about CALL_SECONDS."""
    done, count = 0, 1
    while done < total:
        count = min(count, total - done)
        clock = time.perf_counter()
        yield done, count
        spent = time.perf_counter() - clock
        done += count
        if spent < CALL_SECONDS / 2:
            count = count * 4 if spent < CALL_SECONDS / 8 else count * 2
        elif spent > CALL_SECONDS and count > 1:
            count = count // 2


def _check_finite(x: np.ndarray, paths: np.ndarray, step: int) -> None:
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if bad.size:
        raise Divergence(
            f"diverged: path {int(paths[bad[0]])} ({bad.size} of {len(x)}) is not finite by step "
            f"{step}; lower the learning rate or raise the batch size"
        )
