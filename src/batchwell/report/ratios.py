"""Ratios of two mean times, differences of two means: intervals that keep censored data.

A mean time of an exponential law known from k events in total time T has ``2 T / mean`` chi-square
with 2 k degrees of freedom, so the ratio of two such means follows an F distribution; a path that
never escaped adds to T and not to k, and leaves a one-sided limit where k = 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..estimate import LEVEL, Estimate
from .wording import at_least, censored, measured, number, span


@dataclass(frozen=True)
class Ratio:
    """A ratio of two means with its interval; `value` is nan where only a limit is known."""

    value: float
    low: float
    high: float

    @property
    def two_sided(self) -> bool:
        """Whether value and both ends are known."""
        return all(math.isfinite(v) for v in (self.value, self.low, self.high))

    @property
    def known(self) -> bool:
        """Whether the data say anything at all."""
        return self.low > 0 or math.isfinite(self.high)

    @property
    def above(self) -> bool:
        """Whether the whole interval lies above 1."""
        return self.low > 1

    @property
    def below(self) -> bool:
        """Whether the whole interval lies below 1."""
        return self.high < 1

    def __str__(self) -> str:
        if self.two_sided:
            return f"{measured(self.value)} {span(self.low, self.high)}"
        if self.low > 0:
            return f"more than {at_least(self.low)}"
        if math.isfinite(self.high):
            return f"less than {number(self.high)}"
        return "not determined"


NOT_KNOWN = Ratio(math.nan, 0.0, math.inf)


def _events_and_time(e: Estimate) -> tuple[float, float, float] | None:
    """Events, total time at risk, and the extra event of time censoring (Garwood)."""
    from scipy.stats import chi2

    if censored(e):
        quantile = float(chi2.ppf(0.5 + e.level / 2, 2))
        return (0.0, e.interval[0] * quantile / 2, 1.0) if e.interval[0] > 0 else None
    if not (e.determined and 0 < e.value < 1e6 * e.stderr < 1e12 * e.value):
        return None
    # For an exponential fit this IS the number of events; for other means the one that matches.
    events = (e.value / e.stderr) ** 2
    return events, e.value * events, 1.0 if e.n_censored else 0.0


def ratio(top: Estimate | None, bottom: Estimate | None, level: float = LEVEL) -> Ratio:
    """Ratio of two independent mean times, exact for exponential times.

    Examples
    --------
    >>> from batchwell.estimate import exponential_mean
    >>> slow, fast = exponential_mean(4e5, 100, 100), exponential_mean(1e5, 100, 100)
    >>> print(ratio(slow, fast))
    4.00 [3.03, 5.28]
    >>> print(ratio(exponential_mean(4e5, 0, 100), fast))
    more than 106
    """
    from scipy.stats import f

    parts = [_events_and_time(e) if e is not None else None for e in (top, bottom)]
    if parts[0] is None or parts[1] is None:
        return NOT_KNOWN
    (k1, t1, extra1), (k2, t2, extra2) = parts[0], parts[1]
    tail = (1 - level) / 2
    a, b, times = k1 + extra1, k2 + extra2, t1 / t2
    low = times * k2 / a / float(f.ppf(1 - tail, 2 * a, 2 * k2)) if k2 else 0.0
    high = times * b / k1 / float(f.ppf(tail, 2 * k1, 2 * b)) if k1 else math.inf
    return Ratio(times * k2 / k1 if k1 and k2 else math.nan, low, high)


def per_doubling(whole: Ratio, doublings: float) -> Ratio:
    """Geometric mean of the factor per doubling, of a ratio over several doublings.

    >>> print(per_doubling(Ratio(16.0, 9.0, 25.0), 2))
    4.00 [3.00, 5.00]
    """
    return Ratio(*(v ** (1 / doublings) for v in (whole.value, whole.low, whole.high)))


def simultaneous(comparisons: int) -> float:
    """Level of each of several intervals that hold together at `LEVEL` (Bonferroni)."""
    return 1 - (1 - LEVEL) / max(1, comparisons)


@dataclass(frozen=True)
class Difference:
    """Difference of two means with its interval."""

    value: float
    low: float
    high: float

    def reversed(self) -> Difference:
        """Second minus first."""
        return Difference(-self.value, -self.high, -self.low)

    def __str__(self) -> str:
        half = (self.high - self.low) / 2
        if not math.isfinite(half):
            return "not determined"
        decimals = max(0, 2 - math.floor(math.log10(half))) if half > 0 else 3
        value, low, high = (
            f"{v:.{decimals}f}".replace("-", "−") for v in (self.value, self.low, self.high)
        )
        return f"{value} [{low}, {high}]"


def difference(first: Estimate, second: Estimate, level: float = LEVEL) -> Difference:
    """First minus second, both independent means, by the normal law.

    Examples
    --------
    >>> one = Estimate(1.5, 0.3, (0.9, 2.1), "1", "mean", 50)
    >>> two = Estimate(1.0, 0.4, (0.2, 1.8), "1", "mean", 50)
    >>> print(difference(one, two))
    0.500 [−0.480, 1.480]
    """
    from scipy.stats import norm

    value = first.value - second.value
    half = float(norm.ppf(0.5 + level / 2)) * math.hypot(first.stderr, second.stderr)
    return Difference(value, value - half, value + half)


def lowest(candidates: Sequence[tuple[str, Estimate]]) -> tuple[str, Estimate]:
    """The candidate with the smallest mean."""
    return min(candidates, key=lambda c: c[1].value)
