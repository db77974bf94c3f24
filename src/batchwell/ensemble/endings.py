"""Paths that run until they end: first exits from a domain, and trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack, cast

import numpy as np
from numpy.typing import ArrayLike

from ..domain import Domain
from ..dynamics import SGD, Process
from ..errors import InputError, require, whole
from . import exits, trials, xla
from .choice import engine_for, engine_with_test
from .lowering import Unsupported
from .options import Options, checked, fall_back
from .paths import DEFAULT_SUBSTEPS, Ensemble, Progress, check_finite, start, time_blocks
from .trials import Score


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

    `progress` is told (paths finished, paths), or (steps, horizon) on XLA. Paths still inside at
    `horizon` SGD steps come back with ``observed`` False; none is dropped.

    Raises
    ------
    InputError
        A basin (needs quenches: `exits.basin_exits`), or a start outside the domain.
    Divergence
        A path left the finite numbers: says which path and at which step.
    """
    horizon = whole("horizon", horizon)
    require(isinstance(domain, Domain), "domain", domain, "must be a Domain, such as ball or box")
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
        check_finite(points, state.paths, -(-int(steps[bad[0]]) // per))
    return FirstExits(np.where(observed, steps / per, horizon), observed, points, horizon)


def _exits_on_xla(
    run: Callable[..., Any], state: Ensemble, horizon: int, per: int, progress: Progress | None
) -> FirstExits:
    left_at = np.zeros(len(state.paths), dtype=np.int64)
    points = state.x.copy()
    alive = np.arange(len(state.paths))
    left = np.zeros(len(alive), dtype=np.int64)
    for done, count in time_blocks(horizon):
        x, memory, rng, left = run(done * per, count * per, state.x, state.memory, state.rng, left)
        left, x = np.asarray(left), np.asarray(x)
        check_finite(x, state.paths, done + count)
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
        check_finite(points, ensemble.paths, -(-int(steps[bad[0]]) // per))
    return Trials(fates, points, steps / per, best)
