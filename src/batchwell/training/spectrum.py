"""The noise's spectral measure: how much gradient noise lies at which curvature.

Everything that a quadratic loss with additive noise does at stationarity is tr[Sigma f(H)] for some
f. The measure behind it is built once, from eigenvectors where curvature is large (or negative) and
from Lanczos started at random draws of the noise elsewhere; every prediction is then a sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import require, whole
from ..estimate import LEVEL, Estimate
from ..streams import generator
from . import lanczos
from .curvature import hessian_eigenvalues
from .lanczos import Vector
from .local import LocalLoss
from .own_curvature import OwnCurvature, own_curvature, sample_beyond


@dataclass(frozen=True, eq=False)
class NoiseSpectrum:
    """Sigma seen in the eigenbasis of H, at fixed parameters.

    Attributes
    ----------
    values, weights, slopes
        (k,) eigenvalues of H that were resolved, q^T Sigma q and |q . grad F| of each.
    nodes, node_weights
        (starts, steps) Gauss quadrature of the rest of the measure, one row for each draw.
    errors
        (k,) bounds on the distance of `values` to eigenvalues.
    loss, gradient_norm_squared, noise_trace, noise_max
        F, |grad F|^2, tr Sigma (all exact for the data) and the largest eigenvalue of Sigma.
    decrement
        grad F^T H^-1 grad F / 2 over positive curvature: how far F is above the minimum of its
        quadratic approximation.
    n, dim
        Examples and parameters.
    own
        How examples differ in curvature; None takes it to be the same for all.
    """

    values: Vector
    weights: Vector
    slopes: Vector
    nodes: Vector = field(repr=False)
    node_weights: Vector = field(repr=False)
    errors: Vector = field(repr=False)
    loss: float
    gradient_norm_squared: float
    noise_trace: float
    noise_max: float
    decrement: float
    n: int
    dim: int
    own: OwnCurvature | None = field(default=None, repr=False)

    @property
    def lambda_max(self) -> float:
        """Sharpness: the largest eigenvalue of H."""
        return float(self.values.max())

    @property
    def lambda_min(self) -> float:
        """Smallest eigenvalue of H that was resolved."""
        return float(min(self.values.min(), self.nodes.min(initial=math.inf)))

    def trace_of(self, function: Callable[[Vector], Vector], unit: str, method: str) -> Estimate:
        """tr[Sigma f(H)] for an elementwise `function` f, with Student's t interval over draws."""
        known = float(self.weights @ function(self.values))
        if not self.nodes.size:
            return Estimate(known, 0.0, (known, known), unit, method, self.n)
        from scipy.stats import t as student

        rows = (self.node_weights * function(self.nodes)).sum(1)
        # The rest's trace is known exactly: what differs between draws is its size above all.
        sizes = self.node_weights.sum(1)
        rest = max(0.0, self.noise_trace - float(self.weights.sum()))
        value = rest * float(rows.sum() / sizes.sum())
        spread = rows - sizes * (rows.sum() / sizes.sum())
        stderr = rest * float(spread.std(ddof=1) / math.sqrt(len(rows)) / sizes.mean())
        half = float(student.ppf(0.5 + LEVEL / 2, len(rows) - 1)) * stderr
        interval = (known + value - half, known + value + half)
        return Estimate(known + value, stderr, interval, unit, method, len(rows))


def noise_spectrum(
    local: LocalLoss,
    top: int = 10,
    bottom: int = 0,
    *,
    starts: int = 8,
    steps: int = 20,
    max_products: int = 200,
    seed: int = 0,
) -> NoiseSpectrum:
    """Build the measure: about 2 `top` + `starts` x `steps` products with H.

    Ask for `bottom` eigenvalues at a saddle; the directions of negative curvature are theirs.

    Raises
    ------
    InputError
        More eigenvalues than parameters.

    References
    ----------
    Golub & Meurant, Matrices, Moments and Quadrature (2010), chapters 6 and 7.
    """
    whole("starts", starts, 2)
    require(top + bottom <= local.dim, "top", top, f"must be at most {local.dim} with bottom")
    ends = hessian_eigenvalues(local, top, bottom, max_products=max_products, seed=seed)
    basis = np.column_stack([ends.top_vectors, ends.bottom_vectors])
    slopes = np.array([local.slopes(q) for q in basis.T])
    noise, gradient = local.noise(), local.gradient()
    largest = lanczos.extreme_eigenvalues(
        local.covariance, local.dim, 1, max_products=min(60, local.dim), tolerance=1e-3, seed=seed
    )
    values = np.concatenate([ends.top, ends.bottom])
    own = own_curvature(local, basis, slopes)
    steps = min(steps, local.dim - basis.shape[1])
    nodes, weights, beyond = _rest(local, basis, values, own, starts, steps, seed)
    return NoiseSpectrum(
        values,
        slopes.var(axis=1),
        abs(basis.T @ gradient),
        nodes,
        weights,
        np.concatenate([ends.top_errors, ends.bottom_errors]),
        local.value(),
        noise.gradient_norm_squared.value,
        noise.noise_trace.value,
        float(largest.top[0] + largest.top_errors[0]),
        _decrement(local, gradient, min(max_products, local.dim)),
        local.n,
        local.dim,
        replace(own, beyond=beyond),
    )


def _rest(
    local: LocalLoss,
    basis: Vector,
    values: Vector,
    own: OwnCurvature,
    starts: int,
    steps: int,
    seed: int,
) -> tuple[Vector, Vector, Vector]:
    """Quadrature of draws z of the noise, projected off `basis`, E z z^T = Sigma; `own.beyond`."""
    if steps < 1:
        return np.empty((0, 0)), np.empty((0, 0)), np.empty(0)

    def off(v: Vector) -> Vector:
        return v - basis @ (basis.T @ v)

    nodes, weights = np.zeros((starts, steps)), np.zeros((starts, steps))
    beyond = np.zeros(starts)
    for k in range(starts):
        draw = generator(seed, "noise draw", k).standard_normal(local.n)
        noise = local.weighted_gradient((draw - draw.mean()) / math.sqrt(local.n))
        z = off(noise)
        built = lanczos.lanczos(lambda v: off(local.hessian(v)), z, steps)
        ritz, _, vectors = built.ritz()
        nodes[k], weights[k] = ritz, float(z @ z) * vectors[0] ** 2
        pairs = ritz, built.basis @ vectors
        beyond[k] = sample_beyond(local, own, basis, pairs, noise, values, seed, k)
    return nodes, weights, beyond


def _decrement(local: LocalLoss, gradient: Vector, steps: int) -> float:
    size = float(gradient @ gradient)
    if size == 0:
        return 0.0

    def settled(built: lanczos.Krylov) -> bool:
        k = built.diagonal.size
        return k >= 10 and k % 5 == 0 and built.off_diagonal[-1] < 1e-8 * abs(built.diagonal).max()

    values, _, vectors = lanczos.lanczos(local.hessian, gradient, min(40, steps), settled).ritz()
    positive = values > 1e-9 * abs(values).max()
    return 0.5 * size * float((vectors[0, positive] ** 2 / values[positive]).sum())
