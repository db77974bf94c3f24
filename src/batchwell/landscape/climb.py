"""Eigenvector following: uphill along one direction, downhill along all others, to a saddle.

Each step is Newton's with the curvature's signs set to those of a saddle of index 1 (Cerjan &
Miller, J. Chem. Phys. 75, 1981; Wales, "Energy Landscapes", 2003, sec. 6.2); near one it is Newton's
own, so that what it converges to is polished.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from .._jax import jax, jnp, serial
from ..loss import StochasticLoss

Array = Any
LONGEST_STEP = 0.03  # times 1 + |x|
ROUND, ROUNDS = 8, 12
BATCH = 64


def climb(
    loss: StochasticLoss, points: np.ndarray, directions: np.ndarray, tolerance: float
) -> np.ndarray:
    """Follow `directions` uphill from `points`, both (m, d); (k, d) where it came to rest.

    At rest means a gradient norm below `tolerance`; of which index such points are is left to
    the caller.
    """
    found, x, way = [], np.array(points), np.array(directions)
    for _ in range(ROUNDS):
        if not len(x):
            break
        x, way, norms = _round(loss, x, way)
        found.append(x[norms < tolerance])
        going = np.isfinite(x).all(axis=1) & (norms >= tolerance)
        x, way = x[going], way[going]
    return np.concatenate(found) if found else np.array(points)


def _round(
    loss: StochasticLoss, x: np.ndarray, way: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    parts = []
    for k in range(0, len(x), BATCH):
        here, there = x[k : k + BATCH], way[k : k + BATCH]
        size = 8 if len(here) <= 8 else BATCH
        fill = np.arange(size) % len(here)
        out = _climber(loss)(here[fill], there[fill])
        parts.append([np.asarray(a)[: len(here)] for a in out])
    ends, ways, norms = (np.concatenate([p[i] for p in parts]) for i in range(3))
    return ends, ways, norms


@lru_cache(maxsize=32)
def _climber(loss: StochasticLoss) -> Callable[[Array, Array], Any]:
    def step(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        x, way = state
        gradient = loss.gradient(x)
        values, vectors = jnp.linalg.eigh(loss.hessian(x))
        # As soon as one direction curves down it is the way; until then the one given is kept.
        nearest = jnp.argmax(jnp.abs(way @ vectors))
        mode = jnp.where(values[0] < 0, 0, nearest)
        signs = jnp.where(jnp.arange(x.shape[0]) == mode, -1.0, 1.0)
        size = jnp.maximum(jnp.abs(values), 1e-12 * jnp.max(jnp.abs(values)))
        move = -vectors @ (signs * (vectors.T @ gradient) / size)
        longest = LONGEST_STEP * (1.0 + jnp.linalg.norm(x))
        move = move * jnp.minimum(1.0, longest / (jnp.linalg.norm(move) + 1e-300))
        return x + move, vectors[:, mode]

    def one(x: Array, way: Array) -> tuple[Array, Array, Array]:
        x, way = jax.lax.fori_loop(0, ROUND, step, (x, way))
        return x, way, jnp.linalg.norm(loss.gradient(x))

    return serial(jax.jit(jax.vmap(one)))
