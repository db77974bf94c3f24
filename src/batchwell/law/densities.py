"""Density of the mean of B noise draws, with tails that keep their relative precision.

A minibatch averages B independent examples; where the gradient is affine in one noise, the
step kernel of SGD is this density shifted and scaled.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats
from scipy.interpolate import make_interp_spline

from ..errors import InputError, whole
from ..noise import Noise
from .sums import Tabulated, sum_density, tabulate

Floats = NDArray[np.float64]
Curve = Callable[[Floats], Floats]


@dataclass(frozen=True)
class MeanDensity:
    """Law of the mean of B draws (mean 0, variance 1/B).

    Attributes
    ----------
    pdf, cdf, sf
        Density, lower and upper tail probability.
    kinks
        Where the density or one of its low derivatives jumps.
    smooth
        Whether it has none (then quadrature converges spectrally).
    support
        Ends of the support.
    width
        How wide panels may be against a Gaussian's of equal variance.
    """

    pdf: Curve = field(repr=False)
    cdf: Curve = field(repr=False)
    sf: Curve = field(repr=False)
    support: tuple[float, float]
    kinks: tuple[float, ...] = ()
    width: float = 1.0

    @property
    def smooth(self) -> bool:
        """Whether the density has no kinks."""
        return not self.kinks


def mean_density(law: Noise, batch_size: int = 1) -> MeanDensity:
    """Density of the mean of `batch_size` draws of `law`.

    Raises
    ------
    InputError
        The law has atoms.

    Examples
    --------
    >>> from batchwell import noise_law
    >>> law = mean_density(noise_law("laplace"), 3)
    >>> x = np.linspace(-8, 8, 4001)
    >>> round(float(np.sum(x**2 * law.pdf(x)) * (x[1] - x[0])), 6)
    0.333333
    """
    b = whole("batch_size", batch_size)
    if law.name == "gaussian":
        return _gaussian(b)
    if law.name in _MEANS:
        return _MEANS[law.name](b)
    if law.name in ("student_t", "pareto"):
        assert law.parameter is not None
        return _heavy(law) if b == 1 else _heavy_mean(law.name, law.parameter, b)
    raise InputError("noise", law.name, "has atoms and no density")


def _gaussian(b: int) -> MeanDensity:
    root = math.sqrt(b)

    def pdf(z: Floats) -> Floats:
        return (root / math.sqrt(2 * math.pi)) * np.exp(-0.5 * b * z * z)

    return MeanDensity(
        pdf,
        lambda z: special.ndtr(root * z),
        lambda z: special.ndtr(-root * z),
        (-math.inf, math.inf),
    )


def _uniform(b: int) -> MeanDensity:
    """Irwin-Hall, as a B-spline: the alternating textbook sum loses all digits in the tails."""
    edge = math.sqrt(3.0)
    width = 2 * edge / b  # of one draw's share of the mean

    def spline(t: Floats, degree: int) -> Floats:
        # Cardinal B-splines on [0, degree + 1] by recursion: sums of non-negative terms only.
        t = np.clip(t, -1.0, degree + 2.0)
        shifts = np.arange(degree + 1)
        level = ((t[..., None] >= shifts) & (t[..., None] < shifts + 1)).astype(np.float64)
        for k in range(1, degree + 1):
            s = t[..., None] - shifts[: degree + 1 - k]
            level = (s * level[..., :-1] + (k + 1 - s) * level[..., 1:]) / k
        return level[..., 0]

    def pdf(z: Floats) -> Floats:
        return spline((np.asarray(z) + edge) / width, b - 1) / width

    def cdf(z: Floats) -> Floats:
        t = np.asarray((np.asarray(z) + edge) / width)
        total = sum(spline(np.asarray(t - j), b) for j in range(b + 1))
        return np.where(t >= b, 1.0, np.where(t <= 0, 0.0, total))

    knots = tuple(-edge + width * k for k in range(b + 1))
    return MeanDensity(pdf, cdf, lambda z: cdf(-np.asarray(z)), (-edge, edge), knots)


def _laplace(b: int) -> MeanDensity:
    """Difference of two gamma variables: a polynomial with positive terms times exp(-r)."""
    scale = 1 / (b * math.sqrt(2.0))
    j = np.arange(b)
    log_c = (
        special.gammaln(b + j)
        - special.gammaln(b - j)
        - special.gammaln(j + 1)
        - j * math.log(2)
        - special.gammaln(b)
        - b * math.log(2)
    )

    def pdf(z: Floats) -> Floats:
        r = np.abs(np.asarray(z))[..., None] / scale
        power = np.where(b - 1 - j == 0, 1.0, r ** (b - 1 - j))
        return np.sum(np.exp(log_c - r) * power, axis=-1) / scale

    def tail(r: Floats) -> Floats:  # upper tail at r >= 0, in units of scale
        m = b - j  # r^(m-1) e^-r integrates to an upper incomplete gamma function
        upper = special.gammaincc(m, r[..., None])
        return np.sum(np.exp(log_c + special.gammaln(m)) * upper, axis=-1)

    def sf(z: Floats) -> Floats:
        t = tail(np.abs(np.asarray(z)) / scale)
        return np.where(np.asarray(z) >= 0, t, 1 - t)

    return MeanDensity(pdf, lambda z: sf(-np.asarray(z)), sf, (-math.inf, math.inf), (0.0,))


def _exponential(b: int) -> MeanDensity:
    def shifted(f: Curve) -> Curve:
        return lambda z: f(b * (np.asarray(z) + 1.0))

    def pdf(t: Floats) -> Floats:
        safe = np.maximum(t, 1e-300)
        value = np.exp((b - 1) * np.log(safe) - safe - special.gammaln(b)) * b
        return np.where(t >= 0, value, 0.0)

    return MeanDensity(
        shifted(pdf),
        shifted(lambda t: special.gammainc(b, np.maximum(t, 0))),
        shifted(lambda t: special.gammaincc(b, np.maximum(t, 0))),
        (-1.0, math.inf),
        (-1.0,),
    )


_MEANS = {"uniform": _uniform, "laplace": _laplace, "exponential": _exponential}


def _heavy(law: Noise) -> MeanDensity:
    a = law.parameter
    assert a is not None
    if law.name == "student_t":
        shape = stats.t(a, scale=math.sqrt((a - 2) / a))
        return MeanDensity(shape.pdf, shape.cdf, shape.sf, law.support, width=0.35)
    mean, std = a / (a - 1), math.sqrt(a / (a - 2)) / (a - 1)
    shape = stats.pareto(a, loc=-mean / std, scale=1 / std)
    return MeanDensity(shape.pdf, shape.cdf, shape.sf, law.support, (law.support[0],))


@lru_cache(maxsize=64)
def _heavy_mean(name: str, a: float, b: int) -> MeanDensity:
    """Mean of b Student or Pareto draws, from the density of their sum (`sums`)."""
    if name == "student_t":
        width = math.sqrt(a - 2)  # of (1 + (x / width)^2)^(-(a + 1) / 2), which has variance 1
        norm = special.gammaln((a + 1) / 2) - special.gammaln(a / 2) - math.log(width)
        norm -= 0.5 * math.log(math.pi)

        def log_t(x: Floats) -> Floats:
            return norm - 0.5 * (a + 1) * np.log1p((x / width) ** 2)

        total = sum_density(tabulate(log_t, 1, False, width / 4, a), b)
        return _scaled_symmetric(total, b)
    std = math.sqrt(a / (a - 2)) / (a - 1)

    def log_pareto(y: Floats) -> Floats:
        return math.log(a) - (a + 1) * np.log1p(y)

    total = sum_density(tabulate(log_pareto, 1, True, 1.0, a), b)
    # y = (sum of draws) - b lies in [0, inf); z = (y / b - 1 / (a - 1)) / std.
    return _scaled_one_sided(total, b, 1 / (a - 1), std)


def _tails(total: Tabulated) -> tuple[Curve, Curve]:
    """Logarithms of the upper and (one-sided laws) lower tail probability, as functions of x."""
    v = np.arange(0.0, total.last, 0.01)
    x = total.position(v)
    above = total.integral(x)
    spline = make_interp_spline(v, np.log(above), k=5)

    def upper(y: Floats) -> Floats:
        at = total.coordinate(y)
        edge = np.minimum(at, v[-1])
        far = np.maximum(y / x[-1], 1.0)
        return np.exp(spline(edge) - total.index * np.log(far))

    if not total.one_sided:
        return upper, upper
    # From below, in the variable itself: y^b times a smooth factor.
    below = total.lower(x[1:])
    low = make_interp_spline(v[1:], np.log(below) - total.count * np.log(x[1:]), k=5)

    def lower(y: Floats) -> Floats:
        inside = np.clip(y, x[1], x[-1])
        logs = low(total.coordinate(inside)) + total.count * np.log(np.maximum(y, 1e-290))
        return np.where(y <= 0, 0.0, np.where(y > x[-1], 1 - upper(y), np.exp(logs)))

    return upper, lower


def _scaled_symmetric(total: Tabulated, b: int) -> MeanDensity:
    upper, _ = _tails(total)

    def sf(z: Floats) -> Floats:
        share = upper(b * np.abs(np.asarray(z)))
        return np.where(np.asarray(z) >= 0, share, 1 - share)

    return MeanDensity(
        lambda z: b * np.exp(total.log_pdf(b * np.asarray(z))),
        lambda z: sf(-np.asarray(z)),
        sf,
        (-math.inf, math.inf),
        width=0.35,
    )


def _scaled_one_sided(total: Tabulated, b: int, mean: float, std: float) -> MeanDensity:
    upper, lower = _tails(total)

    def at(z: Floats) -> Floats:
        return b * (mean + std * np.asarray(z, dtype=np.float64))

    return MeanDensity(
        lambda z: b * std * np.exp(total.log_pdf(at(z))),
        lambda z: lower(at(z)),
        lambda z: upper(np.maximum(at(z), 0.0)),
        (-mean / std, math.inf),
        (-mean / std,),
    )


def panel_edges(law: MeanDensity, tail: float = 1e-14) -> Floats:
    """Ends of panels between which `law` is smooth: its kinks, and a widening series around 0.

    Open ends are cut where less than `tail` is left.
    """
    low, high = (_far(law, side, tail) for side in (-1, 1))
    scale = _scale(law)
    cuts = {low, high, *law.kinks, -scale, 0.0, scale}
    inner = sorted(c for c in cuts if low <= c <= high)
    return np.unique(np.concatenate([_graded(a, b, scale) for a, b in itertools.pairwise(inner)]))


def quadrature(law: MeanDensity, per_panel: int = 16, tail: float = 1e-14) -> tuple[Floats, Floats]:
    """Fine nodes and weights (summing to 1) for expectations under `law`."""
    edges = panel_edges(law, tail)
    t, w = np.polynomial.legendre.leggauss(per_panel)
    half = np.diff(edges) / 2
    z = ((edges[1:] + edges[:-1]) / 2)[:, None] + half[:, None] * t
    weights = law.pdf(z) * half[:, None] * w
    return z.ravel(), (weights / weights.sum()).ravel()


def _scale(law: MeanDensity) -> float:
    """A length on which the middle of the density varies: of its central half."""
    step = 1.0
    while law.sf(np.array([step]))[0] < 0.05 and step > 1e-12:
        step /= 2
    return step / 4


def _far(law: MeanDensity, side: int, tail: float) -> float:
    end = law.support[side > 0]
    if math.isfinite(end):
        return end
    z = 1.0
    mass = law.sf if side > 0 else law.cdf
    while mass(np.array([side * z]))[0] > tail and z < 1e12:
        z *= 1.25
    return side * z


def _graded(a: float, b: float, scale: float) -> Floats:
    """Panel edges from a to b, as wide as `scale` near 0 and growing with the distance from it."""
    v = np.arcsinh(np.array([a, b]) / scale)
    count = max(1, math.ceil((v[1] - v[0]) / 0.5))
    out = scale * np.sinh(np.linspace(v[0], v[1], count + 1))
    out[[0, -1]] = a, b
    return out


def gauss_rule(law: MeanDensity, count: int) -> tuple[Floats, Floats]:
    """Gauss nodes and weights (count,) of the law itself: moments up to 2 count - 1 are right.

    By Lanczos' recursion on a fine quadrature (Gautschi, "Orthogonal Polynomials", 2004, 2.2).

    Examples
    --------
    >>> from batchwell import noise_law
    >>> z, w = gauss_rule(mean_density(noise_law("uniform")), 3)
    >>> [round(float(w @ z**k), 12) for k in (0, 2, 4)]
    [1.0, 1.0, 1.8]
    """
    x, weights = quadrature(law)
    diagonal, off = [], []
    last, q, beta = np.zeros_like(x), np.sqrt(weights), 0.0
    basis = [q]
    for _ in range(count):
        alpha = float(q @ (x * q))
        diagonal.append(alpha)
        new = (x - alpha) * q - beta * last
        for v in basis:  # rounding would otherwise cost orthogonality
            new = new - (v @ new) * v
        beta = float(np.linalg.norm(new))
        off.append(beta)
        last, q = q, new / beta
        basis.append(q)
    jacobi = np.diag(diagonal) + np.diag(off[:-1], 1) + np.diag(off[:-1], -1)
    nodes, vectors = np.linalg.eigh(jacobi)
    return nodes, vectors[0] ** 2


def product_nodes(z: Floats, w: Floats, copies: int) -> tuple[Floats, Floats]:
    """Nodes (k, copies) and weights (k,) of independent copies of one rule."""
    if copies == 0:
        return np.zeros((1, 0)), np.ones(1)
    nodes = np.stack([g.ravel() for g in np.meshgrid(*[z] * copies, indexing="ij")], axis=1)
    weights = np.stack([g.ravel() for g in np.meshgrid(*[w] * copies, indexing="ij")], axis=1)
    return nodes, weights.prod(axis=1)
