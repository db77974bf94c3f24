"""Eigenvalues, traces and densities of symmetric matrices that are known by their products only.

Plain linear algebra in float64: nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import require, whole
from ..estimate import Estimate, sample_mean
from ..streams import generator

Vector = NDArray[np.float64]
Product = Callable[[Vector], Vector]
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Krylov:
    """What Lanczos has built: ``A basis = basis T + residual e_k^T``, T tridiagonal.

    Attributes
    ----------
    diagonal, off_diagonal
        T, (k,) and (k,); the last off-diagonal entry is the residual's norm.
    basis
        (d, k) orthonormal columns.
    """

    diagonal: Vector
    off_diagonal: Vector
    basis: Vector = field(repr=False)

    def ritz(self) -> tuple[Vector, Vector, Vector]:
        """Ritz values in ascending order, error bounds (k,), and T's eigenvectors (k, k).

        Within its bound of each Ritz value lies an eigenvalue.
        """
        from scipy.linalg import eigh_tridiagonal

        values, vectors = eigh_tridiagonal(self.diagonal, self.off_diagonal[:-1])
        return values, abs(self.off_diagonal[-1] * vectors[-1]), vectors


@dataclass(frozen=True, eq=False)
class Extremes:
    """Ends of a spectrum.

    Attributes
    ----------
    top
        (k,) largest eigenvalues, descending.
    bottom
        (k,) smallest ones, ascending.
    top_vectors, bottom_vectors
        (d, k) unit eigenvectors.
    top_errors, bottom_errors
        (k,) bounds on the distance to an eigenvalue.
    products
        Matrix-vector products that were spent.
    converged
        Whether every bound is below the tolerance asked for, relative to the largest modulus.
    """

    top: Vector
    bottom: Vector
    top_vectors: Vector = field(repr=False)
    bottom_vectors: Vector = field(repr=False)
    top_errors: Vector = field(repr=False)
    bottom_errors: Vector = field(repr=False)
    products: int
    converged: bool


def extreme_eigenvalues(
    product: Product,
    dim: int,
    top: int = 5,
    bottom: int = 0,
    *,
    max_products: int = 100,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> Extremes:
    """The `top` largest and `bottom` smallest eigenvalues of a symmetric matrix by Lanczos.

    Every vector is orthogonalised twice against all before it: without that, converged eigenvalues
    come back as ghosts. Copies of a multiple eigenvalue beyond the first may not be seen.

    Parameters
    ----------
    product
        v -> A v, (dim,) to (dim,).

    Raises
    ------
    InputError
        More eigenvalues asked for than `dim` or `max_products` allow.

    References
    ----------
    Paige, Ph.D. thesis, London (1971); Parlett, The Symmetric Eigenvalue Problem (1980), ch. 13.

    Examples
    --------
    >>> values = np.array([9.0, 4.0, 1.0, -2.0])
    >>> extreme_eigenvalues(lambda v: values * v, 4, top=2, bottom=1).top.round(6)
    array([9., 4.])
    """
    dim, top, bottom = whole("dim", dim), whole("top", top, 0), whole("bottom", bottom, 0)
    limit = min(dim, whole("max_products", max_products))
    require(1 <= top + bottom <= limit, "top", top, f"top and bottom must be 1 to {limit} together")

    def settled(built: Krylov) -> bool:
        size = built.diagonal.size
        # A Ritz value may sit on an inner eigenvalue for a while: two steps more tell.
        if size < min(limit, top + bottom + 2):
            return False
        values, errors, _ = built.ritz()
        return bool((errors[_ends(size, top, bottom)] <= tolerance * abs(values).max()).all())

    start = generator(seed, "lanczos").standard_normal(dim)
    built = lanczos(product, start, limit, settled)
    values, errors, vectors = built.ritz()
    ends = _ends(values.size, top, bottom)
    upper, lower = ends[:top], ends[top:]
    return Extremes(
        values[upper],
        values[lower],
        built.basis @ vectors[:, upper],
        built.basis @ vectors[:, lower],
        errors[upper],
        errors[lower],
        values.size,
        settled(built) or values.size == dim,
    )


def _ends(size: int, top: int, bottom: int) -> NDArray[np.intp]:
    return np.r_[size - 1 : size - 1 - top : -1, 0:bottom].astype(np.intp)


def lanczos(
    product: Product,
    start: Vector,
    steps: int,
    stop: Callable[[Krylov], bool] = lambda built: False,
) -> Krylov:
    """At most `steps` Lanczos steps from `start` (d,), with full re-orthogonalisation.

    Where the space closes early, it goes on with a fresh orthogonal direction, so that
    the rest of the spectrum is seen too.
    """
    dim = start.size
    basis, diagonal, off = np.empty((dim, steps)), np.empty(steps), np.empty(steps)
    q, scale = start / np.linalg.norm(start), 0.0
    for k in range(steps):
        basis[:, k] = q
        known = basis[:, : k + 1]
        w = np.array(product(q), dtype=np.float64)
        diagonal[k] = q @ w
        scale = max(scale, float(np.linalg.norm(w)))
        w = _orthogonal(w, known)
        off[k] = np.linalg.norm(w)
        if off[k] <= _TINY * scale:
            off[k] = 0.0
            w = _orthogonal(generator(0, "lanczos restart", k).standard_normal(dim), known)
        q = w / max(float(np.linalg.norm(w)), _TINY**2)
        built = Krylov(diagonal[: k + 1], off[: k + 1], known)
        if stop(built):
            break
    return built


def _orthogonal(w: Vector, basis: Vector) -> Vector:
    for _ in range(2):  # twice is enough (Kahan, in Parlett 1980, section 6.9)
        w = w - basis @ (basis.T @ w)
    return w


def trace(
    product: Product, dim: int, products: int = 60, *, unit: str = "1", seed: int = 0
) -> Estimate:
    """tr A of a symmetric matrix by Hutch++, with its standard error.

    A third of the products finds the range that dominates, a third takes its trace
    exactly, and the last third estimates the rest by Hutchinson's average over random signs.

    Raises
    ------
    InputError
        Fewer than 6 products.

    References
    ----------
    Meyer, Musco, Musco & Woodruff, "Hutch++" (SOSA 2021), algorithm 1.

    Examples
    --------
    >>> values = 2.0 ** -np.arange(40)
    >>> print(trace(lambda v: values * v, 40, 30))
    2.018 [1.993, 2.044] 1
    """
    dim, third = whole("dim", dim), whole("products", products, 6) // 3
    if dim <= products:
        exact = float(sum(product(e) @ e for e in np.eye(dim)))
        return Estimate(exact, 0.0, (exact, exact), unit, "every diagonal entry", dim)
    signs = random_signs(dim, 2 * third, seed)
    basis = orthonormal(np.column_stack([product(v) for v in signs[:third]]))
    known = float(sum(q @ product(q) for q in basis.T))
    rest = []
    for v in signs[third:]:
        v = v - basis @ (basis.T @ v)
        rest.append(float(v @ product(v)))
    out = sample_mean(rest, unit, f"Hutch++ with {3 * third} products")
    low, high = out.interval
    return Estimate(
        known + out.value, out.stderr, (known + low, known + high), unit, out.method, out.n
    )


def random_signs(dim: int, count: int, seed: int, name: str = "signs") -> Vector:
    """(count, dim) of +-1; each row has a stream of its own."""
    rows = [generator(seed, name, k).integers(0, 2, dim) for k in range(count)]
    return 2.0 * np.array(rows, dtype=np.float64).reshape(count, dim) - 1.0


def orthonormal(columns: Vector) -> Vector:
    """An orthonormal basis of what the columns span; columns that add nothing are left out."""
    left, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    return left[:, sizes > 1e-10 * sizes[0]] if sizes.size and sizes[0] > 0 else columns[:, :0]


@dataclass(frozen=True, eq=False)
class Density:
    """A spectrum as a density.

    Attributes
    ----------
    grid
        (m,) places.
    density, stderr
        (m,) share of eigenvalues per unit, and its standard error over the random starts.
    nodes, weights
        (starts, steps) the quadrature before smoothing; weights of a start sum to 1.
    width
        Standard deviation of the Gaussian that smooths.
    """

    grid: Vector = field(repr=False)
    density: Vector = field(repr=False)
    stderr: Vector = field(repr=False)
    nodes: Vector = field(repr=False)
    weights: Vector = field(repr=False)
    width: float

    def moment(self, order: int) -> Estimate:
        """Mean of the eigenvalues' power `order`: tr A^order / d."""
        rows = (self.weights * self.nodes**order).sum(1)
        return sample_mean(rows, "1", "stochastic Lanczos quadrature")


def spectral_density(
    product: Product,
    dim: int,
    *,
    starts: int = 6,
    steps: int = 20,
    points: int = 400,
    width: float | None = None,
    seed: int = 0,
) -> Density:
    """Density of the eigenvalues by stochastic Lanczos quadrature, smoothed by a Gaussian.

    `width` is 1 % of the spectrum's range unless given. Costs starts times steps products.

    References
    ----------
    Ubaru, Chen & Saad, SIAM J. Matrix Anal. Appl. 38 (2017) 1075; Ghorbani, Krishnan & Xiao,
    "An investigation into neural net optimization via Hessian eigenvalue density" (ICML 2019).
    """
    starts, steps = whole("starts", starts, 2), min(dim, whole("steps", steps, 2))
    nodes, weights = np.empty((starts, steps)), np.empty((starts, steps))
    for k, row in enumerate(random_signs(dim, starts, seed, "density")):
        values, _, vectors = lanczos(product, row, steps).ritz()
        nodes[k], weights[k] = values, vectors[0] ** 2
    low, high = float(nodes.min()), float(nodes.max())
    spread = max(high - low, _TINY)
    sigma = 0.01 * spread if width is None else width
    grid = np.linspace(low - 4 * sigma, high + 4 * sigma, whole("points", points, 2))
    bumps = np.exp(-0.5 * ((grid - nodes[..., None]) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
    rows = (weights[..., None] * bumps).sum(1)
    stderr = rows.std(axis=0, ddof=1) / np.sqrt(starts)
    return Density(grid, rows.mean(axis=0), stderr, nodes, weights, float(sigma))
