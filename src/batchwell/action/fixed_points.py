"""Zeros of a drift: minima, saddles and what leaves them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .._jax import jax, jnp
from ..domain import Domain

Array = Any
FAR = 1e3


@dataclass(frozen=True)
class FixedPoint:
    """A zero of the drift.

    Attributes
    ----------
    x
        Where, (d,).
    rates
        Eigenvalues (d,) of the drift's Jacobian, largest real part first.
    index
        How many of them have positive real part: 0 for an attractor, 1 for a saddle.
    level
        The domain's level function there: negative inside, 0 on the boundary.
    """

    x: np.ndarray
    rates: np.ndarray
    index: int
    level: float


def rays(x0: np.ndarray, domain: Domain, directions: np.ndarray) -> list[np.ndarray]:
    """Boundary points that the rays from x0 (d,) along `directions` (m, d) meet first."""
    assert domain.level is not None
    level = _levels(domain)
    reach = np.geomspace(1e-3, FAR, 400)
    out = []
    for u in directions:
        outside = np.flatnonzero(level(x0 + reach[:, None] * u) >= 0)
        if not outside.size:
            continue
        high = reach[outside[0]]
        low = reach[outside[0] - 1] if outside[0] else 0.0
        for _ in range(4):
            grid = np.linspace(low, high, 33)
            k = int(np.flatnonzero(level(x0 + grid[:, None] * u) >= 0)[0])
            low, high = grid[max(k - 1, 0)], grid[k]
        out.append(x0 + high * u)
    return out


def spread_directions(jacobian: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Both signs of the real principal directions of `jacobian`, then `count` random ones."""
    vectors = np.linalg.eigh(0.5 * (jacobian + jacobian.T))[1].T[::-1]
    rng = np.random.Generator(np.random.Philox(seed))
    random = rng.standard_normal((count, len(jacobian)))
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    both = np.concatenate([vectors, -vectors])
    return both if len(jacobian) == 1 else np.concatenate([both, random])


def fixed_points(
    drift: Callable[[Array], Array], domain: Domain, x0: np.ndarray, count: int = 24
) -> list[FixedPoint]:
    """Zeros of `drift` inside `domain` or on its boundary, by Newton's method from rays.

    A search from finitely many seeds: what it does not find may still exist.
    """
    jacobian = jax.jit(jax.jacfwd(drift))
    directions = spread_directions(np.asarray(jacobian(jnp.asarray(x0))), count)
    ends = rays(x0, domain, directions)
    reach = max([float(np.linalg.norm(e - x0)) for e in ends], default=1.0)
    ends = ends + [x0 + reach * u for u in directions]
    fractions = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0, 1.1)
    seeds = np.array([x0 + f * (e - x0) for e in ends for f in fractions])
    found = np.asarray(newton(drift)(jnp.asarray(seeds)))
    sizes = np.linalg.norm(np.asarray(jax.vmap(drift)(jnp.asarray(found))), axis=1)
    good = found[np.isfinite(found).all(axis=1) & (sizes < 1e-9 * (1 + reach))]
    levels = _levels(domain)(good) if len(good) else np.zeros(0)
    out: list[FixedPoint] = []
    for x, level in zip(good, levels, strict=True):
        # On the boundary a level of rounding size counts as 0.
        if level > 1e-7 * reach or any(np.linalg.norm(x - p.x) < 1e-6 * (1 + reach) for p in out):
            continue
        rates = np.linalg.eigvals(np.asarray(jacobian(jnp.asarray(x))))
        rates = rates[np.argsort(-rates.real)]
        out.append(FixedPoint(x, rates, int((rates.real > 0).sum()), float(level)))
    return out


@lru_cache(maxsize=32)
def newton(drift: Callable[[Array], Array]) -> Any:
    """Compiled damped Newton from many seeds (m, d)."""
    jacobian = jax.jacfwd(drift)

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, _, k = state
        b = drift(x)
        move = -jnp.linalg.solve(jacobian(x) + 1e-14 * jnp.eye(x.shape[0]), b)
        tried = jax.vmap(lambda t: jnp.linalg.norm(drift(x + t * move)))(2.0 ** -jnp.arange(10))
        new = x + 2.0 ** -jnp.nanargmin(tried) * move
        return new, jnp.linalg.norm(new - x) <= 1e-14 * (1 + jnp.linalg.norm(new)), k + 1

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        x, done, k = state
        return ~done & (k < 40) & jnp.all(jnp.isfinite(x))

    def run(x: Array) -> Array:
        return jax.lax.while_loop(unfinished, step, (x, jnp.asarray(False), 0))[0]

    return jax.jit(jax.vmap(run))


def _levels(domain: Domain) -> Callable[[np.ndarray], np.ndarray]:
    level = domain.level
    assert level is not None
    many = jax.vmap(level)
    return lambda points: np.asarray(many(jnp.asarray(points)))
