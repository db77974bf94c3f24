"""Intervals to put a 1-D law on: ends of a domain, and where an open end may be cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..domain import Domain
from ..dynamics import SGD, Diffusion, Process
from ..errors import InputError, require
from ..points import numbers
from .fields import evaluate

Floats = NDArray[np.float64]

# exp(-CONFINED) of the law may lie beyond a cut end: far below rounding.
CONFINED = 80.0
Place = Domain | Sequence[float]


@dataclass(frozen=True)
class Interval:
    """(lower, upper); an open end was infinite and has been cut where the law never comes."""

    lower: float
    upper: float
    open_lower: bool = False
    open_upper: bool = False

    def holds(self, x: Floats) -> bool:
        """Whether x (1,) lies inside; all beyond a cut end does."""
        above = self.open_lower or self.lower < x[0]
        return bool(above and (self.open_upper or x[0] < self.upper))

    @property
    def width(self) -> float:
        """Length."""
        return self.upper - self.lower


def interval(process: Process, place: Place, include: Sequence[float] = ()) -> Interval:
    """The interval that `place` means for a 1-D `process`, with infinite ends cut.

    Parameters
    ----------
    place
        (lower, upper), either may be infinite, or a 1-D `Domain` with a level function.
    include
        Points that a cut end must lie beyond.

    Raises
    ------
    InputError
        Nothing confines the process towards an infinite end (mass would be lost there).
    """
    low, high = _ends(place)
    require(low < high, "interval", (low, high), "lower end must be below upper end")
    if math.isfinite(low) and math.isfinite(high):
        return Interval(low, high)
    anchor = [v for v in (low, high, *include) if math.isfinite(v)] or [0.0]
    a = _cut(process, min(anchor), -1.0) if math.isinf(low) else low
    b = _cut(process, max(anchor), 1.0) if math.isinf(high) else high
    return Interval(a, b, math.isinf(low), math.isinf(high))


def _ends(place: Place) -> tuple[float, float]:
    if not isinstance(place, Domain):
        ends = numbers("interval", place, "must be (lower, upper)")
        good = ends.shape == (2,) and not np.any(np.isnan(ends))
        require(good, "interval", place, "must be (lower, upper)")
        return float(ends[0]), float(ends[1])
    require(
        place.dim == 1 and not place.needs_quench,
        "domain",
        place.name,
        "must be one-dimensional with a level function here",
    )
    return _domain_ends(place)


def _domain_ends(domain: Domain) -> tuple[float, float]:
    """Ends of the one interval inside a 1-D domain, found on a wide grid and bisected."""
    tail = np.logspace(-3, 4, 2001)
    x = np.unique(np.concatenate([-tail, np.linspace(-10, 10, 20001), tail]))
    inside = domain.contains(x[:, None])
    require(bool(inside.any()), "domain", domain.name, "holds none of the points tried (|x| < 1e4)")
    starts = np.flatnonzero(np.diff(inside.astype(int)) == 1)
    stops = np.flatnonzero(np.diff(inside.astype(int)) == -1)
    if len(starts) + inside[0] != 1:
        raise InputError("domain", domain.name, "has several pieces: give (lower, upper)")
    low = -math.inf if inside[0] else _bisect(domain, x[starts[0] + 1], x[starts[0]])
    high = math.inf if inside[-1] else _bisect(domain, x[stops[0]], x[stops[0] + 1])
    return low, high


def _bisect(domain: Domain, inner: float, outer: float) -> float:
    for _ in range(60):
        x = np.linspace(inner, outer, 9)
        inside = domain.contains(x[:, None])
        last = int(np.flatnonzero(inside)[-1]) if inside.any() else 0
        if last == 8 or x[last] == x[last + 1]:
            break
        inner, outer = float(x[last]), float(x[last + 1])
    return float((inner + outer) / 2)


def drift_and_variance(process: Process, x: Floats) -> tuple[Floats, Floats]:
    """Drift (m,) and tensor (m,) per unit of time of a 1-D process at x (m,)."""
    points = x[:, None]
    if isinstance(process, Diffusion):
        return evaluate(process, "drift", points)[:, 0], evaluate(process, "tensor", points)[
            :, 0, 0
        ]
    drift = -evaluate(process.loss, "gradient", points)[:, 0]
    return drift, process.temperature * evaluate(process.loss, "covariance", points)[:, 0, 0]


def _cut(process: Process, anchor: float, side: float) -> float:
    """Where, going from `anchor` towards `side`, the potential is CONFINED above its minimum."""
    reach = 0.25
    while reach < 2e4:
        s = np.linspace(0, reach, 2001)
        drift, variance = drift_and_variance(process, anchor + side * s)
        # d/ds of -log density of the Fokker-Planck equation, without its prefactor.
        slope = -2 * side * drift / np.maximum(variance, 1e-300)
        height = np.concatenate([[0.0], np.cumsum((slope[1:] + slope[:-1]) / 2 * np.diff(s))])
        climb = height - np.minimum.accumulate(height)
        # The law must also be held at the cut: the last stretch has to push inwards.
        if climb[-1] >= CONFINED and slope[-1] > 0:
            beyond = np.flatnonzero(climb < CONFINED)
            return float(anchor + side * s[min(int(beyond[-1]) + 1, len(s) - 1)])
        if isinstance(process, SGD) and not np.all(np.isfinite(drift)):
            break
        reach *= 1.5
    end = "lower" if side < 0 else "upper"
    raise InputError(
        "interval",
        f"infinite {end} end",
        "nothing confines the process there, so that mass would be lost: give a finite end",
    )
