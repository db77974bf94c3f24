"""Densities of sums of heavy-tailed draws, by convolution of positive terms.

A Fourier inversion of the characteristic function leaves an absolute error of 1e-16 and so no digit
of a far tail, which is where exits come from. Here the density of a sum of 2m draws is the integral
of the product of two densities of m draws on nodes graded around both of their centres; nothing is
subtracted, so that tails keep their relative precision. Between nodes log densities are splines
of a logarithmic coordinate, beyond the last one they continue their power law. The mass, which is 1
only if all of it is right, is checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import BSpline, make_interp_spline

from ..errors import RunError

Floats = NDArray[np.float64]
Curve = Callable[[Floats], Floats]

FARTHEST = 1e7  # in units of the scale; the power law continues beyond
SPACING, PER_PANEL, PANEL = 0.04, 10, 0.4
MASS_TOLERANCE = 1e-9
TINY = 1e-290


@dataclass(frozen=True, eq=False)
class Tabulated:
    """A density known at nodes of a logarithmic coordinate v; x = scale sinh(v), or expm1(v).

    Attributes
    ----------
    count
        Draws in the sum.
    one_sided
        Whether x >= 0 with density ``x**(count - 1)`` times a smooth function there; otherwise
        it is symmetric.
    scale
        Length on which the density varies near 0.
    index
        Tail index: the density falls like ``x**-(index + 1)``.
    spline
        Of the logarithm of the smooth factor in v.
    last
        Largest v.
    """

    count: int
    one_sided: bool
    scale: float
    index: float
    spline: BSpline = field(repr=False)
    last: float

    def position(self, v: Floats) -> Floats:
        """X at the coordinate v."""
        return self.scale * (np.expm1(v) if self.one_sided else np.sinh(v))

    def stretch(self, v: Floats) -> Floats:
        """Derivative of x in v."""
        return self.scale * (np.exp(v) if self.one_sided else np.cosh(v))

    def coordinate(self, x: Floats) -> Floats:
        """V at x."""
        if self.one_sided:
            return np.log1p(np.maximum(x, 0.0) / self.scale)
        return np.arcsinh(np.abs(x) / self.scale)

    def log_factor(self, x: Floats) -> Floats:
        """Logarithm of the smooth factor at x."""
        v = self.coordinate(x)
        value = np.asarray(self.spline(np.minimum(v, self.last)))
        edge = float(self.position(np.array([self.last]))[0])
        ratio = np.maximum(np.abs(x) / edge, 1.0)
        return value - (self.index + 1 + self._power) * np.log(ratio)

    @property
    def _power(self) -> int:
        return self.count - 1 if self.one_sided else 0

    def log_pdf(self, x: ArrayLike) -> Floats:
        """Logarithm of the density at x."""
        at = np.asarray(x, dtype=np.float64)
        if not self.one_sided:
            return self.log_factor(at)
        inside = np.maximum(at, TINY)
        value = self.log_factor(inside) + self._power * np.log(inside)
        return np.where(at < 0, -np.inf, value)

    def integral(self, low: Floats, power: int = 0) -> Floats:
        """Integral of ``x**power`` times the density from each of sorted `low` >= 0 to infinity."""
        edges = np.append(self.coordinate(low), self.last)
        out = np.empty(len(low))
        t, w = np.polynomial.legendre.leggauss(PER_PANEL)
        end = float(self.position(edges[-1:])[0])
        value = end ** (power + 1) * math.exp(float(self.log_pdf(end))) / (self.index - power)
        for k in range(len(low) - 1, -1, -1):
            parts = np.linspace(
                edges[k], edges[k + 1], 1 + max(1, math.ceil((edges[k + 1] - edges[k]) / PANEL))
            )
            half, middle = np.diff(parts) / 2, (parts[1:] + parts[:-1]) / 2
            v = middle[:, None] + half[:, None] * t
            x = self.position(v)
            terms = np.exp(self.log_pdf(x)) * self.stretch(v) * x**power
            value += float(half @ (terms @ w))
            out[k] = value
        return out

    def lower(self, high: Floats) -> Floats:
        """One-sided: integral of the density from 0 to each of sorted `high` > 0."""
        edges = np.concatenate([[0.0], self.coordinate(high)])
        steps = np.diff(edges)
        total = np.zeros(len(high))
        for v, w in _panels(edges[:-1], edges[:-1] + steps, 1):
            total += np.sum(np.exp(self.log_pdf(self.position(v))) * self.stretch(v) * w, axis=1)
        return np.cumsum(total)


def tabulate(
    log_factor: Curve, count: int, one_sided: bool, scale: float, index: float
) -> Tabulated:
    """Put the logarithm of a density (of its smooth factor, if one-sided) on nodes."""
    last = math.log(FARTHEST)
    spacing = SPACING / (1 + math.log2(count)) if one_sided else SPACING
    first = 0 if one_sided else -8  # mirror images, so that the spline knows that it is even
    v = np.arange(first, math.ceil(last / spacing) + 1) * spacing
    x = scale * (np.expm1(v) if one_sided else np.sinh(v))
    spline = make_interp_spline(v, log_factor(np.abs(x)), k=7)
    return Tabulated(count, one_sided, scale, index, spline, float(v[-1]))


def sum_density(one: Tabulated, count: int) -> Tabulated:
    """Density of the sum of `count` draws of `one`, by repeated doubling.

    Raises
    ------
    RunError
        The mass is not 1 to 1e-9.
    """
    total: Tabulated | None = None
    power, left = one, count
    while left:
        if left % 2:
            total = power if total is None else convolve(total, power)
        left //= 2
        if left:
            power = convolve(power, power)
    assert total is not None
    mass = float(total.integral(np.zeros(1))[0]) * (1 if total.one_sided else 2)
    if not abs(mass - 1) < MASS_TOLERANCE:
        raise RunError(f"the density of the sum of {count} draws has mass {mass:.12g}, not 1")
    return total


def convolve(first: Tabulated, second: Tabulated) -> Tabulated:
    """Density of the sum of two independent variables."""
    half = _half_line if first.one_sided else _whole_line
    scale = first.scale if first.one_sided else math.hypot(first.scale, second.scale)

    def value(x: Floats) -> Floats:
        # Each half is integrated in the coordinate graded around its own centre.
        return np.logaddexp(half(first, second, x), half(second, first, x))

    count = first.count + second.count
    return tabulate(value, count, first.one_sided, scale, first.index)


def _panels(low: Floats, high: Floats, count: int) -> Iterator[tuple[Floats, Floats]]:
    """Nodes (n, q) and weights (n, q) of each of `count` panels between low and high (n,)."""
    t, w = np.polynomial.legendre.leggauss(PER_PANEL)
    for k in range(count):
        a, b = low + (high - low) * k / count, low + (high - low) * (k + 1) / count
        half = ((b - a) / 2)[:, None]
        yield ((a + b) / 2)[:, None] + half * t, half * w


def _whole_line(near: Tabulated, other: Tabulated, x: Floats) -> Floats:
    """Log of the integral of near(u) other(x - u) over u < x / 2, for x >= 0 (n,)."""
    high = near.coordinate(x / 2)
    total = np.full_like(x, -np.inf)
    for v, w in _panels(np.full_like(x, -near.last), high, math.ceil(2 * near.last / PANEL)):
        u = near.position(v)
        logs = near.log_pdf(u) + other.log_pdf(x[:, None] - u)
        total = np.logaddexp(total, _log_sum(logs, near.stretch(v) * w))
    return total


def _log_sum(logs: Floats, weights: Floats) -> Floats:
    """Log of the sum over the last axis of weights exp(logs), without underflow."""
    top = logs.max(axis=1)
    return top + np.log(np.sum(np.exp(logs - top[:, None]) * weights, axis=1))


def _half_line(near: Tabulated, other: Tabulated, x: Floats) -> Floats:
    """Log of the integral of near(u) other(x - u) over 0 < u < x / 2, less that of x**(count - 1)."""
    m, n = near.count, other.count
    safe = np.maximum(x, 1e-9 * near.scale)
    total = np.full_like(x, -np.inf)
    panels = math.ceil((1 + math.log2(m)) * near.last / PANEL)
    for v, w in _panels(np.zeros_like(x), near.coordinate(safe / 2), panels):
        u = near.position(v)
        share = np.maximum(u / safe[:, None], TINY)
        logs = near.log_factor(u) + other.log_factor(safe[:, None] - u)
        logs = logs + (m - 1) * np.log(share) + (n - 1) * np.log1p(-share)
        total = np.logaddexp(total, _log_sum(logs, near.stretch(v) * w / safe[:, None]))
    return total
