"""`GradientNoise`: what a measurement of gradient noise says, and the estimators behind it.

A gradient that weights examples with w (summing to 1) has E|G_w|^2 = |grad F|^2 + c(w) tr Sigma.
Two averages with different c are therefore two linear equations for the two unknowns, solved
without bias (McCandlish, Kaplan & Amodei, arXiv:1812.06162, appendix A.1, there for infinite
data). Here c knows the finite data set, which matters for every mode but sampling with replacement:
a batch of a shuffled epoch is a subset, and taking c = 1/B for it biases |grad F|^2 by
-tr Sigma / (n - 1).

Pure arithmetic on Python floats: nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import InputError, finite, one_of, positive, require, whole
from ..estimate import LEVEL, Estimate

# The same names as of `batchwell.SGD`, which is not imported since it would load JAX.
SAMPLING_MODES = ("with_replacement", "without_replacement", "reshuffle")
NOT_DETERMINED = (
    "not determined: the interval of |grad F|^2 reaches zero; measure more steps or larger batches"
)
_MOVING = "mean over the steps measured; the parameters move between them"


@dataclass(frozen=True)
class GradientNoise:
    """Gradient noise of one model on one data set.

    Attributes
    ----------
    gradient_norm_squared
        |grad F|^2, unbiased: it may come out negative where noise drowns it.
    noise_trace
        tr Sigma, Sigma the covariance of ONE example's gradient.
    gradient_noise_scale
        tr Sigma / |grad F|^2, in examples. ``inf`` where |grad F|^2 came out negative.
    batch_size
        Examples in each step that was measured (mean of the steps, rounded).
    examples
        Examples seen by the measurement.
    steps
        Steps measured.
    sampling
        "with_replacement", "without_replacement" or "reshuffle": how batches were drawn.
    data_size
        Examples n in the data set; ``None`` for a stream, which is taken as infinite.
    """

    gradient_norm_squared: Estimate
    noise_trace: Estimate
    gradient_noise_scale: Estimate
    batch_size: int
    examples: int
    steps: int
    sampling: str = "reshuffle"
    data_size: int | None = None

    @property
    def determined(self) -> bool:
        """Whether |grad F|^2 differs from zero by more than chance, so that a ratio to it exists."""
        return self.gradient_norm_squared.interval[0] > 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe dictionary: infinities and NaN become strings."""
        out: dict[str, Any] = {name: getattr(self, name).to_dict() for name in _ESTIMATES}
        return out | {name: getattr(self, name) for name in _COUNTS}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GradientNoise:
        """Inverse of `to_dict`."""
        fields: dict[str, Any] = {name: Estimate.from_dict(data[name]) for name in _ESTIMATES}
        return cls(**fields | {name: data[name] for name in _COUNTS})


_ESTIMATES = ("gradient_norm_squared", "noise_trace", "gradient_noise_scale")
_COUNTS = ("batch_size", "examples", "steps", "sampling", "data_size")


@dataclass(frozen=True)
class StepNoise:
    """What one step says: unbiased, and far too noisy to be read alone."""

    gradient_norm_squared: float
    noise_trace: float
    batch_size: int


def noise_factor(
    batch_size: float, data_size: int | None = None, sampling: str = "reshuffle"
) -> float:
    """The c in E|G_B|^2 = |grad F|^2 + c tr Sigma of a batch: 1/B, or (n-B)/((n-1)B) of a subset.

    One batch of a reshuffled epoch, at parameters that had not seen the epoch, is a subset.

    Raises
    ------
    InputError
        The batch is larger than the data.

    Examples
    --------
    >>> noise_factor(4), noise_factor(4, 5), noise_factor(4, 5, "with_replacement")
    (0.25, 0.0625, 0.25)
    """
    return weight_factor(1.0 / positive("batch_size", batch_size), data_size, sampling)


def weight_factor(
    weights_squared: float, data_size: int | None = None, sampling: str = "reshuffle"
) -> float:
    """The c of a gradient whose examples are weighted by w, from the sum of w^2 (1/B if equal)."""
    one_of("sampling", sampling, SAMPLING_MODES)
    if sampling == "with_replacement" or data_size is None:
        return weights_squared
    n = whole("data_size", data_size)
    # 1/n is the least that distinct examples' weights can reach: the whole data set.
    require(
        weights_squared >= (1 - 1e-9) / n,
        "batch_size",
        round(1 / weights_squared),
        f"must not exceed the {n} examples of the data",
    )
    return 0.0 if n == 1 else max(0.0, (weights_squared - 1.0 / n) * n / (n - 1))


def solve_step(
    small: float, small_factor: float, big: float, big_factor: float, batch_size: int
) -> StepNoise:
    """The step's |grad F|^2 and tr Sigma from mean |G|^2 at two factors c.

    Parameters
    ----------
    small, big
        Mean of |G|^2 over small batches (single examples: c = 1), and |G|^2 of the whole one.
    small_factor, big_factor
        Their c, see `noise_factor`.
    batch_size
        Examples in the whole batch.

    Raises
    ------
    InputError
        Both factors are the same: one batch size alone says nothing on noise.

    Examples
    --------
    >>> solve_step(small=5.0, small_factor=1.0, big=2.0, big_factor=0.25, batch_size=4)
    StepNoise(gradient_norm_squared=1.0, noise_trace=4.0, batch_size=4)
    """
    require(
        small_factor > big_factor * (1 + 1e-12),
        "batch_size",
        batch_size,
        "must be larger than the batches it is compared with: at least 2 examples or micro-batches",
    )
    trace = (small - big) / (small_factor - big_factor)
    return StepNoise(big - big_factor * trace, trace, batch_size)


def from_accumulated(
    micro_gradient_norms_squared: Sequence[float],
    sizes: Sequence[int],
    total_norm_squared: float,
    *,
    data_size: int | None = None,
    sampling: str = "reshuffle",
    micro_batches: str = "by_size",
) -> StepNoise:
    """One step's noise from the gradients of its micro-batches, or of the processes of DDP.

    Parameters
    ----------
    micro_gradient_norms_squared
        |G_j|^2 of the MEAN gradient of each micro-batch.
    sizes
        Examples b_j in each; they may differ.
    total_norm_squared
        |G|^2 of the gradient that the optimiser gets.
    data_size, sampling
        See `GradientNoise`.
    micro_batches
        How G was averaged: "by_size", G = sum b_j G_j / B, or "equal", G = sum G_j / J
        (every loss divided by the number of micro-batches).

    Raises
    ------
    InputError
        Fewer than two micro-batches, lengths differ, or a number that is not finite.

    References
    ----------
    McCandlish, Kaplan & Amodei, arXiv:1812.06162, appendix A.1.

    Examples
    --------
    >>> from_accumulated([3.0, 5.0], [8, 8], 2.5)
    StepNoise(gradient_norm_squared=1.0, noise_trace=24.0, batch_size=16)
    """
    norms = [finite("micro_gradient_norms_squared", v) for v in micro_gradient_norms_squared]
    counts = [whole("sizes", b) for b in sizes]
    require(len(norms) >= 2, "micro_gradient_norms_squared", len(norms), "needs at least 2")
    require(len(counts) == len(norms), "sizes", len(counts), f"must be {len(norms)} sizes")
    one_of("micro_batches", micro_batches, ("by_size", "equal"))
    total = sum(counts)
    shares = [b / total if micro_batches == "by_size" else 1 / len(counts) for b in counts]
    squares = sum(v * v / b for v, b in zip(shares, counts, strict=True))
    small = sum(b * v for b, v in zip(counts, norms, strict=True)) / total
    factors = (noise_factor(b, data_size, sampling) for b in counts)
    small_factor = sum(b * c for b, c in zip(counts, factors, strict=True)) / total
    big_factor = weight_factor(squares, data_size, sampling)
    big = finite("total_norm_squared", total_norm_squared)
    return solve_step(small, small_factor, big, big_factor, total)


def combine(
    steps: Iterable[StepNoise],
    *,
    sampling: str = "reshuffle",
    data_size: int | None = None,
    method: str = "per-example norms",
    level: float = LEVEL,
) -> GradientNoise:
    """The noise that several steps say together, with intervals.

    Means of the steps with Student's t intervals (of the logarithm for tr Sigma); the ratio with Fieller's interval, which
    stays right, and becomes one-sided, where |grad F|^2 is not told from zero. Steps are taken as
    independent. Those of one epoch are less spread than that, and a drift of the
    parameters adds to their spread: both make the intervals wider than need be, not narrower.

    Parameters
    ----------
    steps
        What the steps said, in their order.
    method
        How they were measured, for the answer.
    level
        Of the intervals.

    Raises
    ------
    InputError
        No step, or a number that is not finite (says which step).

    References
    ----------
    Fieller, J. R. Stat. Soc. B 16 (1954) 175.

    Examples
    --------
    >>> rows = [StepNoise(1.0, 8.0, 4), StepNoise(1.2, 9.0, 4), StepNoise(0.9, 7.0, 4)]
    >>> print(combine(rows).gradient_noise_scale)
    7.742 [7.205, 8.688] examples
    """
    rows = list(steps)
    require(len(rows) >= 1, "steps", 0, "needs a measured step, of at least 2 examples")
    one_of("sampling", sampling, SAMPLING_MODES)
    pairs = np.array([(r.gradient_norm_squared, r.noise_trace) for r in rows])
    bad = np.flatnonzero(~np.isfinite(pairs).all(axis=1))
    if bad.size:
        raise InputError(f"steps[{bad[0]}]", rows[bad[0]], "must be finite")
    mean = pairs.mean(axis=0)
    if len(rows) == 1:
        spread, quantile = np.full((2, 2), math.inf), math.inf
    else:
        spread, quantile = np.cov(pairs.T) / len(rows), _quantile(level, len(rows) - 1)
    size = sum(r.batch_size for r in rows)
    return GradientNoise(
        *_estimates(mean, spread, quantile, len(rows), method, level),
        batch_size=round(size / len(rows)),
        examples=size,
        steps=len(rows),
        sampling=sampling,
        data_size=data_size,
    )


@lru_cache(maxsize=256)
def _quantile(level: float, degrees: int) -> float:
    from scipy.stats import t as student

    return float(student.ppf(0.5 + level / 2, degrees))


def _estimates(
    mean: np.ndarray, spread: np.ndarray, quantile: float, n: int, method: str, level: float
) -> tuple[Estimate, Estimate, Estimate]:
    """|grad F|^2, tr Sigma and their ratio from their means, covariance and t quantile."""
    errors = [math.sqrt(v) for v in np.diag(spread)]
    notes = (_MOVING,) if n > 1 else ("one step alone: it says nothing on its own error",)
    how = f"{method}, t interval over steps"
    low, high = float(mean[0]) - quantile * errors[0], float(mean[0]) + quantile * errors[0]
    square = Estimate(
        float(mean[0]), errors[0], (low, high), "loss^2", how, n, notes=notes, level=level
    )
    trace = Estimate(
        float(mean[1]),
        errors[1],
        positive_interval(float(mean[1]), errors[1], quantile),
        "loss^2",
        f"{how} of the logarithm",
        n,
        notes=notes,
        level=level,
    )
    return square, trace, _scale(square, trace, float(spread[0, 1]), quantile, method)


def positive_interval(value: float, stderr: float, quantile: float) -> tuple[float, float]:
    """Of the logarithm: sums of squares are skewed, and a plain interval would cover too little."""
    if value <= 0 or not math.isfinite(stderr):
        return 0.0, math.inf
    spread = math.exp(min(quantile * stderr / value, 700.0))
    return value / spread, value * spread


def _scale(
    square: Estimate, trace: Estimate, covariance: float, quantile: float, method: str
) -> Estimate:
    known = square.interval[0] > 0
    value = trace.value / square.value if square.value > 0 else math.inf
    variance = trace.stderr**2 - 2 * value * covariance + value**2 * square.stderr**2
    return Estimate(
        value,
        math.sqrt(max(variance, 0.0)) / square.value if known else math.inf,
        _fieller(square, trace, covariance, quantile),
        "examples",
        f"{method}, ratio of means, Fieller interval",
        square.n,
        notes=square.notes if known else (*square.notes, NOT_DETERMINED),
        level=square.level,
    )


def _fieller(
    bottom: Estimate, top: Estimate, covariance: float, quantile: float
) -> tuple[float, float]:
    """All ratios r >= 0 for which top - r bottom is within chance of zero."""
    if not math.isfinite(quantile):
        return 0.0, math.inf
    q = quantile * quantile
    a = bottom.value**2 - q * bottom.stderr**2
    b = top.value * bottom.value - q * covariance
    c = top.value**2 - q * top.stderr**2
    root = b * b - a * c
    if a > 0 and bottom.value > 0:
        half = math.sqrt(max(root, 0.0))
        return max(0.0, (b - half) / a), max(0.0, (b + half) / a)
    # a r^2 - 2 b r + c <= 0 opens downwards: what lies beyond its larger root, or everything.
    if a >= 0 or root <= 0 or c <= 0:
        return 0.0, math.inf
    return (b - math.sqrt(root)) / a, math.inf


def exact_noise(
    gradient_norm_squared: float, noise_trace: float, data_size: int, sampling: str = "reshuffle"
) -> GradientNoise:
    """`GradientNoise` of a pass over all `data_size` examples at fixed parameters: no sampling."""
    n = whole("data_size", data_size, 2)
    values = {
        "gradient_norm_squared": (gradient_norm_squared, "loss^2"),
        "noise_trace": (noise_trace, "loss^2"),
        "gradient_noise_scale": (
            noise_trace / gradient_norm_squared if gradient_norm_squared > 0 else math.inf,
            "examples",
        ),
    }
    how = "every example of the data, at fixed parameters"
    return GradientNoise(
        **{k: Estimate(v, 0.0, (v, v), unit, how, n) for k, (v, unit) in values.items()},
        batch_size=n,
        examples=n,
        steps=1,
        sampling=one_of("sampling", sampling, SAMPLING_MODES),
        data_size=n,
    )
