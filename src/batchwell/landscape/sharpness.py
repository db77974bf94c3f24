"""Sharpness in several senses, each from Hessian-vector products alone.

They do not agree in general: which of them says where SGD stays depends on its noise (compare
`Minimum.alignment`), and none is invariant under rescaling of a network's weights (Dinh et al.,
"Sharp minima can generalize for deep nets", ICML 2017).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._jax import jax, jnp, serial
from ..errors import positive
from ..estimate import Estimate
from ..loss import StochasticLoss
from ..points import point
from ..streams import generator
from .spectrum import DENSE, extreme_modes, hessian_spectrum

Array = Any
ASCENTS, ASCENT_STEPS, PROBES, KRYLOV = 8, 60, 32, 40


@dataclass(frozen=True)
class Sharpness:
    """How sharp a minimum is.

    Attributes
    ----------
    lambda_max
        Largest eigenvalue of the Hessian.
    trace
        Sum of its eigenvalues.
    effective_dimension
        sum_i l_i / (l_i + c) over its eigenvalues: how many directions curve more than c.
    worst_increase
        Largest F(x + v) - F(x) found with |v| <= radius (sharpness-aware minimisation's objective;
        Foret et al., ICLR 2021): a lower bound of the true maximum.
    radius, scale
        The radius of `worst_increase` and the c of `effective_dimension`.
    """

    lambda_max: float
    trace: Estimate
    effective_dimension: Estimate
    worst_increase: float
    radius: float
    scale: float


def sharpness(
    loss: StochasticLoss, x: ArrayLike, radius: float = 0.1, scale: float = 0.01
) -> Sharpness:
    """Sharpness of `loss` at x (d,) in four senses.

    Of a loss that `symmetry.quotient` holds on a slice, the sharpness is that of the loss itself.
    Up to 200 parameters trace and effective dimension are exact; above, they are estimated by
    Hutchinson's method and by stochastic Lanczos quadrature (Ubaru, Chen & Saad, SIAM J. Matrix Anal.
    Appl. 38, 2017) with standard errors over 32 probes.

    Parameters
    ----------
    radius
        Of the ball in which the worst increase of F is sought, > 0.
    scale
        c > 0 of the effective dimension sum_i l_i / (l_i + c), l_i the eigenvalues.

    Raises
    ------
    InputError
        x of the wrong shape; a radius or scale that is not positive.

    Examples
    --------
    >>> from batchwell import additive
    >>> bowl = additive(lambda x: x[0] ** 2 + 3 * x[1] ** 2, dim=2)
    >>> s = sharpness(bowl, [0.0, 0.0], radius=0.1, scale=2.0)
    >>> (
    ...     s.lambda_max,
    ...     s.trace.value,
    ...     round(s.effective_dimension.value, 9),
    ...     round(s.worst_increase, 6),
    ... )
    (6.0, 8.0, 1.25, 0.03)
    """
    centre = point("x", x, loss.dim)
    positive("radius", radius)
    positive("scale", scale)
    loss = loss.free or loss
    if loss.dim <= DENSE:
        values = hessian_spectrum(loss, centre)
        largest, way = float(values[-1]), None
        trace, size = _exact(values.sum()), _exact(np.sum(values / (values + scale)))
    else:
        top, vectors = extreme_modes(loss, centre, 1, "LA")
        largest, way = float(top[0]), vectors[:, 0]
        trace, size = _stochastic(loss, centre, scale)
    increase = _worst(loss, centre, radius, way)
    return Sharpness(largest, trace, size, increase, radius, scale)


def _exact(value: float) -> Estimate:
    number = float(value)
    return Estimate(number, 0.0, (number, number), "1", "all eigenvalues", 0)


def _worst(loss: StochasticLoss, x: np.ndarray, radius: float, way: np.ndarray | None) -> float:
    """Projected ascent on the sphere from random directions, and from the sharpest one if known."""
    u = generator(1705_07562, "worst-increase").standard_normal((ASCENTS, loss.dim))
    if way is not None:
        u[0], u[1] = way, -way
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    return float(_ascent(loss)(x, radius, u))


@lru_cache(maxsize=32)
def _ascent(loss: StochasticLoss) -> Callable[..., Any]:
    def highest(x: Array, radius: Array, starts: Array) -> Array:
        def step(_: int, u: Array) -> Array:
            # Power iteration of the gradient: its fixed points are the sphere's stationary points.
            rise = loss.gradient(x + radius * u)
            size = jnp.linalg.norm(rise)
            return jnp.where(size > 0, rise / (size + 1e-300), u)

        def one(u: Array) -> Array:
            u = jax.lax.fori_loop(0, ASCENT_STEPS, step, u)
            return loss.mean(x + radius * u) - loss.mean(x)

        return jnp.max(jax.vmap(one)(starts))

    return serial(jax.jit(highest))


def _stochastic(loss: StochasticLoss, x: np.ndarray, scale: float) -> tuple[Estimate, Estimate]:
    from ..estimate import sample_mean

    signs = generator(1705_07562, "trace").choice([-1.0, 1.0], (PROBES, loss.dim))
    alphas, betas = (np.asarray(a) for a in _lanczos(loss)(x, signs))
    traces, sizes = [], []
    for alpha, beta in zip(alphas, betas, strict=True):
        tridiagonal = np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
        values, vectors = np.linalg.eigh(tridiagonal)
        weights = loss.dim * vectors[0] ** 2
        kept = np.maximum(values, 0.0)
        traces.append(float(weights @ values))
        sizes.append(float(weights @ (kept / (kept + scale))))
    return (
        sample_mean(traces, "1", "Hutchinson"),
        sample_mean(sizes, "1", "stochastic Lanczos quadrature"),
    )


@lru_cache(maxsize=32)
def _lanczos(loss: StochasticLoss) -> Callable[..., Any]:
    """Lanczos with full re-orthogonalisation from each row of `signs`: (alphas, betas) (m, k)."""
    steps = min(KRYLOV, loss.dim)

    def one(x: Array, start: Array) -> tuple[Array, Array]:
        basis = jnp.zeros((steps + 1, loss.dim)).at[0].set(start / jnp.linalg.norm(start))

        def step(k: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            basis, alphas, betas = state
            w = loss.hessian_vector(x, basis[k])
            alpha = jnp.dot(w, basis[k])
            for _ in range(2):
                w = w - basis.T @ (basis @ w)
            beta = jnp.linalg.norm(w)
            basis = basis.at[k + 1].set(jnp.where(beta > 1e-12, w / (beta + 1e-300), 0.0))
            return basis, alphas.at[k].set(alpha), betas.at[k].set(beta)

        begin = (basis, jnp.zeros(steps), jnp.zeros(steps))
        _, alphas, betas = jax.lax.fori_loop(0, steps, step, begin)
        return alphas, betas

    return serial(jax.jit(jax.vmap(one, in_axes=(None, 0))))
