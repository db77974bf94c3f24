"""Exits from saddles by simulation: for curved domains, and as a check of the laws."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..domain import Domain
from ..dynamics import Process
from ..ensemble import FirstExits, first_exits
from ..errors import require, whole
from ..estimate import Estimate, exponential_mean, sample_mean, share


def direct(
    process: Process,
    begin: np.ndarray,
    domain: Domain,
    *,
    paths: int = 2048,
    seed: int = 0,
    horizon: int | None = None,
    substeps: int = 8,
) -> Estimate:
    """Mean exit time by simulation; exits from a saddle are not exponential."""
    limit = whole("horizon", horizon) if horizon is not None else 1024
    while True:
        exits: FirstExits = first_exits(
            process, begin, domain, limit, paths, seed, "saddle", substeps
        )
        if exits.observed.all() or horizon is not None or limit > 10**7:
            break
        limit *= 4
    if exits.observed.all():
        return sample_mean(exits.steps, "steps", "direct simulation from a saddle")
    out = exponential_mean(float(exits.steps.sum()), int(exits.observed.sum()), paths)
    return out.with_notes("not all paths left: the mean assumes an exponential tail")


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
