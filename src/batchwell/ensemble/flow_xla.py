"""Gradient flow on XLA: the reference of `flow`, and its stand-in for losses without fused form."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np

from .._jax import jax, jnp, serial
from ..loss import StochasticLoss
from .chebyshev import GROWTH, STABILISED_GROWTH, chebyshev

Array = Any


def flow(
    loss: StochasticLoss,
    x: np.ndarray,
    steps: np.ndarray,
    regions: tuple[np.ndarray, np.ndarray, np.ndarray],
    max_steps: int,
    tolerance: float,
    stages: int = 3,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(points (n, d), labels (n,), step sizes (n,)); regions are centers, roots, radii."""
    size = 8
    while size < len(x):  # few compiled shapes instead of one per number of points
        size *= 4
    padded = [np.concatenate([a, np.repeat(a[:1], size - len(a), axis=0)]) for a in (x, steps)]
    out = _compiled(loss, stages)(*padded, max_steps, tolerance, *regions)
    ends, labels, sizes = (np.asarray(a)[: len(x)] for a in out)
    return ends, labels, sizes


@lru_cache(maxsize=32)
def _compiled(loss: StochasticLoss, stages: int) -> Callable[..., Any]:
    attempt = bogacki_shampine if stages == 3 else partial(runge_kutta_chebyshev, stages)

    def one(x: Array, h: Array, attempts: Array, tolerance: Array, *regions: Array) -> Any:
        def body(state: Any) -> Any:
            x, k1, h, left, _ = state
            x, k1, h = attempt(lambda y: -loss.gradient(y), x, k1, h, tolerance)
            return x, k1, h, left - 1, label_of(x, *regions)

        def going(state: Any) -> Array:
            return (state[3] > 0) & (state[4] < 0)

        begin = (x, -loss.gradient(x), h, attempts, jnp.asarray(-1))
        x, _, h, _, label = jax.lax.while_loop(going, body, begin)
        return x, label, h

    return serial(jax.jit(jax.vmap(one, in_axes=(0, 0, None, None, None, None, None))))


def label_of(x: Array, centers: Array, roots: Array, radii: Array) -> Array:
    """The first region that holds x, or -1."""
    if len(radii) == 0:
        return jnp.asarray(-1)
    moved = jnp.einsum("kij,kj->ki", roots, x - centers)
    inside = jnp.sum(moved**2, axis=1) < radii**2
    return jnp.where(jnp.any(inside), jnp.argmax(inside), -1)


def bogacki_shampine(
    f: Callable[[Array], Array], x: Array, k1: Array, h: Array, tolerance: Array
) -> tuple[Array, Array, Array]:
    """One attempted step of the 3(2) pair: (x, f(x), next h); x stays if refused."""
    k2 = f(x + 0.5 * h * k1)
    k3 = f(x + 0.75 * h * k2)
    y = x + h * (2 * k1 + 3 * k2 + 4 * k3) / 9
    k4 = f(y)
    error = jnp.linalg.norm(h * (-5 * k1 / 72 + k2 / 12 + k3 / 9 - k4 / 8)) / tolerance
    return _accept(error, x, y, k1, k4, h, GROWTH)


def runge_kutta_chebyshev(
    stages: int, f: Callable[[Array], Array], x: Array, k1: Array, h: Array, tolerance: Array
) -> tuple[Array, Array, Array]:
    """One attempted step of `chebyshev`'s method, as `bogacki_shampine`."""
    first, rows = chebyshev(stages)

    def stage(pair: tuple[Array, Array], w: Array) -> tuple[tuple[Array, Array], None]:
        last, over = pair
        new = w[0] * x + w[1] * last + w[2] * over + h * (w[3] * f(last) + w[4] * k1)
        return (new, last), None

    (y, _), _ = jax.lax.scan(stage, (x + first * h * k1, x), jnp.asarray(rows))
    k4 = f(y)
    error = jnp.linalg.norm(0.8 * (x - y) + 0.4 * h * (k1 + k4)) / tolerance
    return _accept(error, x, y, k1, k4, h, STABILISED_GROWTH)


def _accept(
    error: Array, x: Array, y: Array, k1: Array, k4: Array, h: Array, growth: float
) -> tuple[Array, Array, Array]:
    good = error <= 1
    factor = jnp.clip(0.9 * (error + 1e-12) ** (-1 / 3), 0.2, growth)
    factor = jnp.where(jnp.isnan(error), 0.2, factor)
    return jnp.where(good, y, x), jnp.where(good, k4, k1), h * factor
