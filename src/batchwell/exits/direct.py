"""Exit times by watching: simulation of many paths, unfinished ones counted as censored."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from numpy.typing import ArrayLike

from .._jax import jax, jnp
from ..domain import Domain
from ..dynamics import Diffusion, Process
from ..ensemble import FirstExits, Progress, first_exits
from ..errors import RunError, positive, whole
from ..estimate import Estimate, censored_mean
from .basin import basin_exits
from .regime import check_start, substeps_of
from .work import WORK, step_work

MIN_EVENTS = 20
FIRST_HORIZON, PILOT = 512, 64
PATH_STEPS = 2e8
BASIN_HORIZON = 100_000
# -zeta(1/2)/sqrt(2 pi): mean overshoot of a Gaussian random walk, in step lengths.
OVERSHOOT = 0.5825971579390107


def direct(
    process: Process,
    start: ArrayLike,
    domain: Domain,
    *,
    paths: int = 1024,
    horizon: int | None = None,
    max_path_steps: float | None = None,
    seed: int = 0,
    substeps: int | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """Mean exit time in SGD steps, by simulating `paths` copies from `start` (d,).

    Paths still inside at `horizon` SGD steps are censored data (`estimate.censored_mean`).
    Without a `horizon` it grows fourfold until nine paths in ten have left or
    `max_path_steps` would be exceeded: by default 2e8, fewer where a step is costly (a sum over
    many examples). Then a pilot tells how many of the `paths` are worth simulating. A diffusion takes at least 4 `substeps` per SGD step, more if
    its drift is fast. Its boundary is moved inwards by the mean overshoot of these. A basin (`landscape.basin`) is watched through quenches
    (`exits.basin.basin_exits`), up to 100 000 steps unless a `horizon` is given.

    Raises
    ------
    InputError
        A start outside the domain.
    RunError
        Fewer than 20 exits: says how many, and what would be needed.
    Divergence
        A path left the finite numbers.

    Examples
    --------
    >>> from batchwell import SGD, additive, ball
    >>> sgd = SGD(additive(lambda x: x @ x / 2), learning_rate=0.2)
    >>> 450 < direct(sgd, [0.0], ball([0.0], 1.0), paths=512, seed=1).value < 680
    True
    """
    x = check_start(process, start, domain)
    paths = whole("paths", paths, 2)
    substeps = substeps_of(process, x, 4, substeps)
    if domain.needs_quench:
        return _from_basin(process, x, domain, paths, horizon, seed, substeps, progress)
    watched, said = watched_domain(process, domain, x, substeps)

    def watch(limit: int, count: int) -> FirstExits:
        return first_exits(
            process, x, watched, limit, count, seed, substeps=substeps, progress=progress
        )

    if horizon is not None:
        exits = watch(horizon, paths)
    else:
        most = min(PATH_STEPS, WORK / step_work(process, watched, substeps))
        budget = most if max_path_steps is None else positive("max_path_steps", max_path_steps)
        exits = growing(watch, paths, budget)
    events, count = int(exits.observed.sum()), len(exits.steps)
    out = censored_mean(exits.steps, exits.observed, "steps", "direct simulation")
    if events < MIN_EVENTS:
        raise RunError(_too_few(events, count, exits))
    if count < paths:
        said = (*said, f"{count} of {paths} paths: a step of this process is costly")
    return out.with_notes(*said, *_notes(exits))


def _from_basin(
    process: Process,
    x: Any,
    domain: Domain,
    paths: int,
    horizon: int | None,
    seed: int,
    substeps: int,
    progress: Progress | None,
) -> Estimate:
    limit = BASIN_HORIZON if horizon is None else horizon
    exits = basin_exits(
        process, x, domain, limit, paths, seed, substeps=substeps, progress=progress
    )
    if exits.observed.sum() < MIN_EVENTS:
        watched = FirstExits(exits.steps, exits.observed, exits.points, limit)
        raise RunError(_too_few(int(exits.observed.sum()), paths, watched))
    return exits.mean()


def growing(
    watch: Callable[[int, int], FirstExits],
    paths: int,
    max_path_steps: float,
    share: float = 0.9,
) -> FirstExits:
    """Longer and longer watching, until a `share` has left or the budget is spent.

    Keyed streams make each run the continuation of the last.
    """
    limit = FIRST_HORIZON
    if paths > PILOT and paths * limit > max_path_steps:
        pilot = watch(limit, PILOT)
        spent, events = float(pilot.steps.sum()), int(pilot.observed.sum())
        # With no event seen, 3/spent is the upper end of the rate: no budget is spent in vain.
        if max(events, 3) / spent * max_path_steps < MIN_EVENTS:
            return pilot
        worth = int(0.5 * max_path_steps * max(events, 1) / spent)
        paths = min(paths, max(PILOT, worth))
    while True:
        exits = watch(limit, paths)
        enough = exits.observed.mean() >= share
        if enough or 4 * limit * paths > max_path_steps:
            return exits
        limit *= 4


def watched_domain(
    process: Process, domain: Domain, x: Any, substeps: int
) -> tuple[Domain, tuple[str, ...]]:
    """The domain to test a simulated path from x (d,) against after each step, and what to say.

    Testing a diffusion only at steps of length dt misses excursions: the exit time is that of
    a boundary moved outwards by 0.5826 sqrt(n.a n dt). Moving it inwards by as much leaves
    an error o(sqrt dt). Gobet & Menozzi, "Stopped diffusion processes: boundary corrections
    and overshoot" (SPA 120, 2010), eq. 1.4. Steps of SGD are left as they are.
    """
    if not isinstance(process, Diffusion) or domain.level is None:
        return domain, ()
    said = f"Heun scheme with {substeps} substeps per SGD step, exit tested at substeps"
    shifted = _moved_inwards(process, domain, process.learning_rate / substeps)
    # A start within one overshoot of the boundary must not count as outside.
    if not bool(shifted.contains(x)):
        return domain, (f"{said}: times biased upwards by sqrt(dt)",)
    return shifted, (
        f"{said}: boundary moved inwards by the mean overshoot, leaving a bias below sqrt(dt)",
    )


@lru_cache(maxsize=32)
def _moved_inwards(process: Diffusion, domain: Domain, dt: float) -> Domain:
    """One object per question, so that code compiled for it is found again."""
    level, tensor = domain.level, process.tensor
    assert level is not None

    def moved(y: Any) -> Any:
        slope = jax.grad(level)(y)
        return level(y) + OVERSHOOT * jnp.sqrt(dt * slope @ tensor(y) @ slope)

    return Domain(domain.name, domain.dim, moved)


def _too_few(events: int, paths: int, exits: FirstExits) -> str:
    total = float(exits.steps.sum())
    # With no event seen, 3/total is the upper end of the rate; it says the least that is needed.
    need = MIN_EVENTS * total / max(events, 3)
    return (
        f"too few events: {events} exits of {paths} paths within {exits.horizon:g} steps, "
        f"{MIN_EVENTS} needed; {'at least ' if events < 3 else 'about '}{need:.2g} path-steps "
        "would be needed (longer horizon, more paths, or method splitting)"
    )


def _notes(exits: FirstExits) -> list[str]:
    notes = []
    if 0 < exits.observed.sum() < len(exits.observed):
        notes.append(
            f"{int((~exits.observed).sum())} paths censored at {exits.horizon} steps: "
            "the mean assumes an exponential law beyond"
        )
    if math.isfinite(exits.horizon) and exits.observed.all() and exits.steps.mean() < 10:
        notes.append("exits within 10 steps on average: no metastable state")
    return notes
