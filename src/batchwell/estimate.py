"""`Estimate`: the one form of every stochastic answer, and the intervals behind it.

Intervals are exact where an exact one exists: gamma for censored exponential times,
Wilson's score for shares, Student's t for means, batch means for correlated series.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .errors import InputError, require, whole

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number with everything needed to judge it.

    Attributes
    ----------
    value
        Point estimate, in `unit`. ``inf`` for a mean time of which no event was seen.
    stderr
        Standard error, in `unit` (``nan`` where none is defined).
    interval
        Two-sided confidence interval (lower, upper) at `level`, in `unit`.
    unit
        "steps", "1", "loss", ...
    method
        How the value was obtained and which interval was used.
    n
        Sample size: number of paths, starts, or batches.
    n_censored
        How many of the `n` had not shown the event when watching stopped.
    notes
        Plain sentences on the regime: what the number does not say.
    level
        Coverage of `interval`.

    Examples
    --------
    >>> print(Estimate(12.5, 0.5, (11.5, 13.5), "steps", "direct", n=100))
    12.5 [11.5, 13.5] steps
    """

    value: float
    stderr: float
    interval: tuple[float, float]
    unit: str
    method: str
    n: int
    n_censored: int = 0
    notes: tuple[str, ...] = ()
    level: float = LEVEL

    def __str__(self) -> str:
        if self.n and self.n_censored == self.n:
            return f"> {self.interval[0]:.4g} {self.unit}"
        low, high = self.interval
        return f"{self.value:.4g} [{low:.4g}, {high:.4g}] {self.unit}"

    @property
    def determined(self) -> bool:
        """Whether value and both ends of the interval are finite."""
        return all(math.isfinite(v) for v in (self.value, *self.interval))

    def with_notes(self, *notes: str) -> Estimate:
        """The same estimate with `notes` added."""
        return replace(self, notes=(*self.notes, *notes))

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe dictionary: infinities and NaN become strings."""
        out = asdict(self)
        for key in ("value", "stderr"):
            out[key] = _to_json(out[key])
        out["interval"] = [_to_json(v) for v in self.interval]
        out["notes"] = list(self.notes)
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Estimate:
        """Inverse of `to_dict`."""
        fields = dict(data)
        low, high = (float(v) for v in fields["interval"])
        fields.update(
            value=float(fields["value"]),
            stderr=float(fields["stderr"]),
            interval=(low, high),
            notes=tuple(fields["notes"]),
        )
        return cls(**fields)


def _to_json(number: float) -> float | str:
    return float(number) if math.isfinite(number) else str(float(number))


def _check_level(level: float) -> float:
    require(0 < level < 1, "level", level, "must lie strictly between 0 and 1")
    return float(level)


def sample_mean(
    samples: ArrayLike, unit: str, method: str = "sample mean", level: float = LEVEL
) -> Estimate:
    """Mean of independent samples with Student's t interval.

    Raises
    ------
    InputError
        Fewer than two samples, or a sample that is not finite (says which).
    """
    from scipy.stats import t as student

    x = np.asarray(samples, dtype=np.float64).ravel()
    require(x.size >= 2, "samples", x.size, "needs at least 2 samples")
    bad = np.flatnonzero(~np.isfinite(x))
    if bad.size:
        raise InputError(f"samples[{bad[0]}]", x[bad[0]], "must be finite")
    value, stderr = float(x.mean()), float(x.std(ddof=1) / math.sqrt(x.size))
    half = float(student.ppf(0.5 + _check_level(level) / 2, x.size - 1)) * stderr
    return Estimate(
        value, stderr, (value - half, value + half), unit, f"{method}, t interval", x.size
    )


def exponential_mean(
    total: float,
    events: int,
    n: int,
    unit: str = "steps",
    method: str = "exponential likelihood",
    level: float = LEVEL,
) -> Estimate:
    """Mean of an exponential time from `events` seen within `total` time at risk.

    Exact gamma interval: with all `n` paths seen to the end, ``2 total / mean`` is
    chi-square with ``2 events`` degrees of freedom; with time censoring the lower end
    uses ``2 events + 2`` (Garwood), which never covers less than `level`. Without any event
    the value is infinite and only the lower end is finite. Paths that never
    escaped belong in `total`: dropping them gives intervals without coverage.

    Raises
    ------
    InputError
        `total` not positive, or more events than paths.

    Examples
    --------
    >>> print(exponential_mean(total=1000.0, events=10, n=25))
    100 [54.38, 208.5] steps
    """
    from scipy.stats import chi2

    events, n = whole("events", events, 0), whole("n", n)
    require(events <= n, "events", events, f"must not exceed the {n} paths")
    require(0 < total < math.inf, "total", total, "must be a positive finite time")
    tail = (1 - _check_level(level)) / 2
    degrees = 2 * events + (2 if events < n else 0)
    low = 2 * total / float(chi2.ppf(1 - tail, degrees))
    high = 2 * total / float(chi2.ppf(tail, 2 * events)) if events else math.inf
    value = total / events if events else math.inf
    stderr = value / math.sqrt(events) if events else math.inf
    how = f"{method}, exact gamma interval"
    notes = () if events else ("no event seen: the interval's lower end is all that is known",)
    return Estimate(value, stderr, (low, high), unit, how, n, n - events, notes, level)


def censored_mean(
    times: ArrayLike,
    observed: ArrayLike,
    unit: str = "steps",
    method: str = "direct simulation",
    level: float = LEVEL,
) -> Estimate:
    """Mean time to an event from right-censored `times`.

    Parameters
    ----------
    times
        Shape (n,): time of the event, or the time at which watching stopped.
    observed
        Shape (n,), bool: whether the event was seen.

    The exponential likelihood (`exponential_mean`) is used unless all events were
    seen and their coefficient of variation is more than three standard errors from
    the exponential's 1; then the mean needs no model and gets Student's interval, on the
    scale of its logarithm.

    Raises
    ------
    InputError
        Shapes differ, or a time is negative or not finite.

    Examples
    --------
    >>> censored_mean([3.0, 5.0, 10.0], [True, True, False]).value
    9.0
    """
    t = np.asarray(times, dtype=np.float64).ravel()
    seen = np.asarray(observed, dtype=bool).ravel()
    require(t.shape == seen.shape, "observed", seen.shape, f"must have shape {t.shape}")
    require(bool(np.all(np.isfinite(t) & (t >= 0))), "times", t, "must be finite and >= 0")
    fit = exponential_mean(float(t.sum()), int(seen.sum()), t.size, unit, method, level)
    if not seen.all() or t.size < 10:
        return fit
    variation = float(t.std(ddof=1) / t.mean())
    # Standard deviation of the sample coefficient of variation of n exponentials: 1/sqrt(n).
    if abs(variation - 1) * math.sqrt(t.size) <= 3:
        return fit
    note = f"exit times are not exponential (coefficient of variation {variation:.2f})"
    return _positive_mean(t, unit, method, level).with_notes(note)


def _positive_mean(t: np.ndarray, unit: str, method: str, level: float) -> Estimate:
    """Mean of positive times without a model; t interval of its logarithm, so that it is > 0."""
    from scipy.stats import t as student

    mean = sample_mean(t, unit, method, level)
    quantile = float(student.ppf(0.5 + level / 2, t.size - 1))
    spread = math.exp(quantile * mean.stderr / mean.value)
    interval = (mean.value / spread, mean.value * spread)
    return replace(mean, interval=interval, method=f"{method}, t interval of the logarithm")


def share(successes: int, n: int, level: float = LEVEL) -> Estimate:
    """Share of successes with Wilson's score interval.

    Raises
    ------
    InputError
        `successes` outside 0..n, or `n` < 1.

    Examples
    --------
    >>> print(share(0, 20))
    0 [0, 0.1611] 1
    """
    from scipy.stats import norm

    n, k = whole("n", n), whole("successes", successes, 0)
    require(k <= n, "successes", k, f"must not exceed n = {n}")
    z = float(norm.ppf(0.5 + _check_level(level) / 2))
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At k = 0 and k = n the ends are exactly 0 and 1; rounding must not move them.
    low = 0.0 if k == 0 else centre - half
    high = 1.0 if k == n else centre + half
    return Estimate(
        p, math.sqrt(p * (1 - p) / n), (low, high), "1", "share, Wilson interval", n, level=level
    )


def batch_means(series: ArrayLike, unit: str, batches: int = 32, level: float = LEVEL) -> Estimate:
    """Mean of a stationary correlated series by the method of batch means.

    The series is cut into `batches` equal stretches (a remainder at its start is dropped);
    their means are taken as independent. A lag-one correlation of the batch means above
    two standard errors is said in the notes.

    Raises
    ------
    InputError
        Fewer than two values in a batch.
    """
    x = np.asarray(series, dtype=np.float64).ravel()
    batches = whole("batches", batches, 2)
    size = x.size // batches
    require(size >= 2, "series", x.size, f"needs at least {2 * batches} values")
    means = x[x.size - size * batches :].reshape(batches, size).mean(axis=1)
    out = sample_mean(means, unit, f"batch means ({batches} of {size})", level)
    centred = means - means.mean()
    spread = float(centred @ centred)
    lag = float(centred[1:] @ centred[:-1]) / spread if spread > 0 else 0.0
    if lag > 2 / math.sqrt(batches):
        return out.with_notes(f"batches are too short: their lag-one correlation is {lag:.2f}")
    return out


def difference(first: Estimate, second: Estimate) -> float:
    """Distance of two independent estimates in standard errors (a z-score)."""
    return (first.value - second.value) / math.hypot(first.stderr, second.stderr)


def ratio_of_means(top: Estimate, bottom: Estimate) -> Estimate:
    """Ratio of two independent positive estimates, interval from the logarithms."""
    from scipy.stats import norm

    if not (top.determined and bottom.determined and top.value > 0 and bottom.value > 0):
        return Estimate(
            math.nan, math.nan, (0.0, math.inf), "1", "ratio", top.n, notes=("not determined",)
        )
    value = top.value / bottom.value
    log_error = math.hypot(top.stderr / top.value, bottom.stderr / bottom.value)
    spread = math.exp(float(norm.ppf(0.5 + LEVEL / 2)) * log_error)
    return Estimate(
        value, value * log_error, (value / spread, value * spread), "1", "ratio, log-normal", top.n
    )


def table(rows: Sequence[Estimate]) -> list[dict[str, Any]]:
    """Estimates as a list of JSON-safe rows."""
    return [row.to_dict() for row in rows]
