"""Exits from saddles by simulation: for curved domains, and as a check of the laws."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..domain import Domain
from ..dynamics import Process
from ..ensemble import FirstExits, first_exits
from ..errors import require, whole
from ..estimate import Estimate, exponential_mean, sample_mean, share
from ..exits.direct import PATH_STEPS, growing, watched_domain
from ..exits.regime import substeps_of
from ..exits.work import WORK, step_work


def direct(
    process: Process,
    begin: np.ndarray,
    domain: Domain,
    *,
    paths: int = 2048,
    seed: int = 0,
    horizon: int | None = None,
    substeps: int | None = None,
) -> Estimate:
    """Mean exit time by simulation, as `exits.direct`, but until all are out: the law is not exponential."""
    paths = whole("paths", paths, 2)
    substeps = substeps_of(process, begin, 8, substeps)
    watched, said = watched_domain(process, domain, begin, substeps)

    def watch(limit: int, count: int) -> FirstExits:
        return first_exits(process, begin, watched, limit, count, seed, "saddle", substeps)

    if horizon is not None:
        exits = watch(whole("horizon", horizon), paths)
    else:
        budget = min(PATH_STEPS, WORK / step_work(process, watched, substeps))
        exits = growing(watch, paths, budget, 1.0)
    if exits.observed.all():
        out = sample_mean(exits.steps, "steps", "direct simulation from a saddle")
        return out.with_notes(*said)
    count, events = len(exits.steps), int(exits.observed.sum())
    out = exponential_mean(float(exits.steps.sum()), events, count)
    return out.with_notes(
        *said,
        f"{count - events} of {count} paths still inside after {exits.horizon:g} steps: the mean assumes "
        "an exponential tail",
    )


def exit_sides(
    process: Process,
    start: ArrayLike,
    domain: Domain,
    direction: ArrayLike,
    *,
    paths: int = 2048,
    horizon: int = 10**6,
    seed: int = 0,
) -> Estimate:
    """Share of simulated paths that leave `domain` towards `direction`, as seen from `start`."""
    x, u = np.asarray(start, dtype=float), np.asarray(direction, dtype=float)
    exits = first_exits(process, x, domain, horizon, paths, seed, "saddle", 8)
    seen = exits.observed
    require(bool(seen.any()), "horizon", horizon, "must be long enough for one exit at least")
    return share(int((((exits.points - x) @ u) > 0)[seen].sum()), int(seen.sum()))
