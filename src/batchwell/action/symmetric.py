"""Elementary symmetric polynomials: the cumulant function of a random subset.

The sum over a uniformly random B-subset S of n numbers has
``E exp(sum_S k_i) = e_B(exp k) / C(n, B)``, e_B the elementary symmetric polynomial.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import gammaln

from .._jax import jax, jnp

Array = Any


def log_mean_symmetric(exponents: Array, size: int) -> Array:
    """log[e_B(exp k) / C(n, B)] of k (n,), B = `size`: scalar.

    With tilted inclusion chances ``pi_i = r a_i / (1 + r a_i)``, a = exp k, of sum B,
    e_B = r^-B prod(1 + r a_i) P(B included), and P is the mean of a characteristic function
    over equally spaced angles: exact up to aliases B +- M, which lie at least 12 standard
    deviations off. r is held fixed in derivatives: the product does not depend on it.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> float(log_mean_symmetric(jnp.log(jnp.array([1.0, 2.0, 3.0])), 2).round(9))
    1.299282984
    """
    n = exponents.shape[0]
    shift = jax.lax.stop_gradient(jnp.mean(exponents))
    k = exponents - shift
    rho = jax.lax.stop_gradient(_saddle(jax.lax.stop_gradient(k), size))
    pi = jax.nn.sigmoid(k + rho)
    angles, weights = _angles(n)
    phi = jnp.asarray(angles)[:, None]
    # |1 + pi (e^{i phi} - 1)|^2 = 1 - 2 pi (1 - pi)(1 - cos phi)
    radius = 0.5 * jnp.sum(jnp.log1p(-2 * pi * (1 - pi) * (1 - jnp.cos(phi))), axis=1)
    turn = jnp.sum(jnp.arctan2(pi * jnp.sin(phi), 1 - pi + pi * jnp.cos(phi)), axis=1)
    chance = jnp.dot(jnp.asarray(weights), jnp.exp(radius) * jnp.cos(turn - size * phi[:, 0]))
    count = gammaln(n + 1) - gammaln(size + 1) - gammaln(n - size + 1)
    product = jnp.sum(jax.nn.softplus(k + rho)) - size * rho
    return product + jnp.log(chance) + size * shift - count


def _angles(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Half circle of M angles and their weights; the midpoints avoid phi = pi."""
    m = min(n + 1, 2 * math.ceil(12 * math.sqrt(n / 4)) + 2)
    m += m % 2  # even, so that the midpoint angles pair up
    return (np.arange(m // 2) + 0.5) * (2 * math.pi / m), np.full(m // 2, 2.0 / m)


def _saddle(k: Array, size: int) -> Array:
    """Rho = log r with sum of sigmoid(k + rho) equal to `size`, by safeguarded Newton."""
    n = k.shape[0]
    guess = math.log(size / (n - size))
    lower, upper = guess - jnp.max(k), guess - jnp.min(k)

    def step(_: int, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        rho, low, high = state
        pi = jax.nn.sigmoid(k + rho)
        excess = jnp.sum(pi) - size
        low, high = jnp.where(excess < 0, rho, low), jnp.where(excess < 0, high, rho)
        new = rho - excess / jnp.maximum(jnp.sum(pi * (1 - pi)), 1e-300)
        return jnp.where((new > low) & (new < high), new, 0.5 * (low + high)), low, high

    return jax.lax.fori_loop(0, 60, step, (0.5 * (lower + upper), lower, upper))[0]
