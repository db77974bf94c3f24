"""Curvature and noise at fixed parameters: spectra, traces, their overlap, and the noise's shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import require, whole
from ..estimate import LEVEL, Estimate
from . import lanczos
from .lanczos import Density, Extremes, Vector
from .local import LocalLoss


def hessian_eigenvalues(
    local: LocalLoss,
    top: int = 5,
    bottom: int = 0,
    *,
    max_products: int = 100,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> Extremes:
    """Largest and smallest eigenvalues of the Hessian: see `lanczos.extreme_eigenvalues`.

    Parameters
    ----------
    top, bottom
        How many of either end.
    tolerance
        Relative to the largest |eigenvalue|; what was reached is stated for each.

    Examples
    --------
    `docs/training.md` has one for each function of this module.
    """
    return lanczos.extreme_eigenvalues(
        local.hessian,
        local.dim,
        top,
        bottom,
        max_products=max_products,
        tolerance=tolerance,
        seed=seed,
    )


def noise_eigenvalues(
    local: LocalLoss,
    top: int = 5,
    *,
    max_products: int = 100,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> Extremes:
    """Largest eigenvalues of Sigma, the covariance of one example's gradient.

    Parameters
    ----------
    top
        How many.
    tolerance
        Relative to the largest; what was reached is stated for each.
    """
    return lanczos.extreme_eigenvalues(
        local.covariance,
        local.dim,
        top,
        max_products=max_products,
        tolerance=tolerance,
        seed=seed,
    )


def hessian_trace(local: LocalLoss, products: int = 60, *, seed: int = 0) -> Estimate:
    """tr H by Hutch++, with its standard error: see `lanczos.trace`.

    References
    ----------
    Meyer, Musco, Musco & Woodruff, "Hutch++" (SOSA 2021), algorithm 1.
    """
    return lanczos.trace(local.hessian, local.dim, products, unit="loss", seed=seed)


def hessian_density(
    local: LocalLoss,
    *,
    starts: int = 6,
    steps: int = 20,
    width: float | None = None,
    seed: int = 0,
) -> Density:
    """Density of the Hessian's eigenvalues: see `lanczos.spectral_density`.

    Parameters
    ----------
    starts, steps
        Random vectors, and products from each.
    width
        Standard deviation of the Gaussian that each node is drawn as; 1 % of the range unless given.

    References
    ----------
    Ubaru, Chen & Saad, SIAM J. Matrix Anal. Appl. 38 (2017) 1075.
    """
    return lanczos.spectral_density(
        local.hessian, local.dim, starts=starts, steps=steps, width=width, seed=seed
    )


@dataclass(frozen=True)
class Overlap:
    """How noise and curvature lie to each other.

    Attributes
    ----------
    hessian_trace, noise_trace
        tr H and tr Sigma.
    trace_product
        tr(H Sigma).
    alignment
        tr(H Sigma) / (|H|_F |Sigma|_F): 1 if noise is shaped like curvature, as
        `batchwell.find_minima` has it.
    products
        Products with H and with Sigma, each.
    """

    hessian_trace: Estimate
    noise_trace: Estimate
    trace_product: Estimate
    alignment: Estimate
    products: int


def overlap(local: LocalLoss, products: int = 60, *, seed: int = 0) -> Overlap:
    """tr(H Sigma) and its companions from the same products.

    For any orthonormal Q, tr A = tr Q^T A Q + tr P A P with P = 1 - Q Q^T. Q is taken
    from the ranges of H and Sigma; the second term, which is left, is averaged over random signs.

    Raises
    ------
    InputError
        Fewer than 12 products.

    References
    ----------
    Meyer, Musco, Musco & Woodruff, "Hutch++" (SOSA 2021), there for one matrix.
    """
    quarter = whole("products", products, 12) // 4
    dim, exact = local.dim, local.dim <= whole("products", products)
    if exact:
        basis, probes = np.eye(dim), np.empty((0, dim))
    else:
        signs = lanczos.random_signs(dim, 2 * quarter, seed, "overlap")
        sketch = [f(v) for v in signs[:quarter] for f in (local.hessian, local.covariance)]
        basis, probes = lanczos.orthonormal(np.column_stack(sketch)), signs[quarter:]
    pairs = [(local.hessian(q), local.covariance(q)) for q in basis.T]
    known = np.array(
        [[q @ h, q @ s, h @ s, h @ h, s @ s] for q, (h, s) in zip(basis.T, pairs, strict=True)]
    ).sum(0)
    rows = []
    for v in probes:
        v = v - basis @ (basis.T @ v)
        h, s = local.hessian(v), local.covariance(v)
        rows.append([v @ h, v @ s, h @ s, h @ h, s @ s])
    found = np.array(rows).reshape(len(rows), 5)
    how = "every direction" if exact else f"Hutch++ with {4 * quarter} products of each"
    read: list[tuple[str, Callable[[Vector], float]]] = [
        ("loss", lambda m: m[0]),
        ("loss^2", lambda m: m[1]),
        ("loss^3", lambda m: m[2]),
        ("1", lambda m: m[2] / math.sqrt(m[3] * m[4]) if m[3] * m[4] > 0 else 0.0),
    ]
    out = [_jackknife(known, found, function, unit, how) for unit, function in read]
    return Overlap(out[0], out[1], out[2], out[3], dim if exact else 4 * quarter)


def _jackknife(
    known: Vector, rows: Vector, function: Callable[[Vector], float], unit: str, how: str
) -> Estimate:
    """A function of known + the mean of rows (m, k), its error by leaving out one row each time."""
    if not len(rows):
        value = float(function(known))
        return Estimate(value, 0.0, (value, value), unit, how, known.size)
    from scipy.stats import t as student

    m, sums = len(rows), rows.sum(0)
    value = float(function(known + sums / m))
    without = np.array([function(known + (sums - row) / (m - 1)) for row in rows])
    stderr = math.sqrt((m - 1) / m * float(((without - without.mean()) ** 2).sum()))
    half = float(student.ppf(0.5 + LEVEL / 2, m - 1)) * stderr
    return Estimate(
        value, stderr, (value - half, value + half), unit, f"{how}, jackknife, t interval", m
    )


@dataclass(frozen=True)
class DirectionNoise:
    """The noise of one example's gradient along one direction.

    Attributes
    ----------
    variance
        Of the slope along the direction, over the data.
    skewness, excess_kurtosis
        0 for a Gaussian; those of a batch's gradient are smaller by sqrt(B) and by B.
    tail_index
        Hill's: P(|slope| > s) falls like s to the minus this. Below 2 the variance would be
        infinite.
    gaussian_tail_index
        What Gaussian slopes would show for as many examples: the same number says nothing.
    p_gaussian
        Chance of slopes so far from Gaussian, if they were (D'Agostino-Pearson).
    """

    variance: float
    skewness: Estimate
    excess_kurtosis: Estimate
    tail_index: Estimate
    gaussian_tail_index: float
    p_gaussian: float


def noise_shape(local: LocalLoss, directions: ArrayLike) -> tuple[DirectionNoise, ...]:
    """Gaussianity and tails of the gradient noise along each of `directions` (dim, k).

    Directions are looked at one by one: pooled coordinates of different variance look
    heavy-tailed even where each is Gaussian.

    Raises
    ------
    InputError
        Fewer than 20 examples, or directions of another length.

    References
    ----------
    Hill, Ann. Stat. 3 (1975) 1163; Simsekli, Sagun & Gurbuzbalaban (ICML 2019), who pool; Xie,
    Sato & Sugiyama (ICLR 2021), who look at directions.
    """
    vectors = np.atleast_2d(np.asarray(directions, dtype=np.float64).T).T
    require(vectors.shape[0] == local.dim, "directions", vectors.shape, f"must be ({local.dim}, k)")
    require(local.n >= 20, "batches", local.n, "needs at least 20 examples")
    return tuple(_shape(local.slopes(v / np.linalg.norm(v))) for v in vectors.T)


def _shape(slopes: Vector) -> DirectionNoise:
    from scipy.stats import kurtosis, normaltest, skew

    centred = slopes - slopes.mean()
    variance = float(centred @ centred) / centred.size
    blocks = np.array_split(np.arange(centred.size), min(50, centred.size // 4))
    read = {"skewness": skew, "excess_kurtosis": kurtosis}
    moments = {name: _by_blocks(f, centred, blocks, name) for name, f in read.items()}
    count = max(5, int(centred.size**0.6))
    ordered = np.sort(abs(centred))[::-1]
    return DirectionNoise(
        variance,
        moments["skewness"],
        moments["excess_kurtosis"],
        _hill(ordered, count),
        _gaussian_hill(centred.size, count),
        float(normaltest(centred).pvalue) if variance > 0 else math.nan,
    )


def _by_blocks(
    function: Callable[[Vector], float], x: Vector, blocks: list[NDArray[np.intp]], name: str
) -> Estimate:
    """Leaving out one block of examples at a time."""
    value, m = float(function(x)), len(blocks)
    without = np.array([function(np.delete(x, block)) for block in blocks])
    stderr = math.sqrt((m - 1) / m * float(((without - without.mean()) ** 2).sum()))
    half = 1.959963984540054 * stderr
    return Estimate(value, stderr, (value - half, value + half), "1", f"{name}, jackknife", x.size)


def _hill(ordered: Vector, count: int) -> Estimate:
    """Of the `count` largest moduli; sums of exponentials, so that its interval is exact."""
    from scipy.stats import chi2

    total = float(np.log(ordered[:count] / ordered[count]).sum()) if ordered[count] > 0 else 0.0
    if total <= 0:
        return Estimate(
            math.nan, math.nan, (0.0, math.inf), "1", "Hill", count, notes=("no tail to look at",)
        )
    index = count / total
    low, high = (float(chi2.ppf(q, 2 * count)) / (2 * total) for q in (0.025, 0.975))
    how = f"Hill, {count} largest moduli, exact gamma interval for a power law"
    return Estimate(index, index / math.sqrt(count), (low, high), "1", how, count)


def _gaussian_hill(n: int, count: int) -> float:
    """Hill's index at the expected order statistics of n Gaussian moduli."""
    from scipy.stats import halfnorm

    ranks = np.arange(1, count + 2)
    moduli = halfnorm.isf((ranks - 0.5) / n)
    return float(count / np.log(moduli[:count] / moduli[count]).sum())
