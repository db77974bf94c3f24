"""Strings: curves between two minima that relax towards the path of least gradient.

All points of a curve descend together and are spread evenly again after each step, so that the
curve comes to rest on minimum-energy paths, whose highest points are saddles (E, Ren &
Vanden-Eijnden, "Simplified and improved string method", J. Chem. Phys. 126, 2007, sec. II). Here
strings only have to come near: `climb` finishes. Least *action* paths of a process, which
differ from these where its noise depends on x, are `action.string_action`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from .._jax import jax, jnp, serial
from ..loss import StochasticLoss

Array = Any
LONGEST_MOVE = 0.3  # of a step of relaxation, in units of the distance between two points


def relax(
    loss: StochasticLoss,
    first: np.ndarray,
    second: np.ndarray,
    rate: float,
    points: int = 17,
    iterations: int = 300,
) -> tuple[np.ndarray, np.ndarray]:
    """Strings from `first` to `second`, both (m, d): curves (m, points, d), losses (m, points).

    `rate` is the step of the descent, in units of time: below 1 / (largest curvature). Curves
    that leave the finite numbers become NaN.
    """
    s = np.linspace(0.0, 1.0, points)[:, None]
    lines = first[:, None] + s * (second - first)[:, None]
    chunk = max(1, 4096 // points)
    parts = [
        _relaxer(loss)(_padded(lines[k : k + chunk], chunk), rate, iterations)
        for k in range(0, len(lines), chunk)
    ]
    curves, values = (np.concatenate([np.asarray(p[i]) for p in parts]) for i in (0, 1))
    return curves[: len(lines)], values[: len(lines)]


def _padded(lines: np.ndarray, chunk: int) -> np.ndarray:
    # Two compiled shapes in all: one for few strings, one for many.
    size = 16 if len(lines) <= 16 else chunk
    return np.concatenate([lines, np.repeat(lines[:1], max(0, size - len(lines)), axis=0)])


@lru_cache(maxsize=32)
def _relaxer(loss: StochasticLoss) -> Callable[..., Any]:
    gradients = jax.vmap(loss.gradient)

    def one(curve: Array, rate: Array, iterations: Array) -> tuple[Array, Array]:
        def step(_: int, x: Array) -> Array:
            spacing = jnp.linalg.norm(x[1:] - x[:-1], axis=1).mean()
            move = rate * gradients(x[1:-1])
            size = jnp.linalg.norm(move, axis=1, keepdims=True)
            move = move * jnp.minimum(1.0, LONGEST_MOVE * spacing / (size + 1e-300))
            return _even(x.at[1:-1].add(-move))

        x = jax.lax.fori_loop(0, iterations, step, curve)
        return x, jax.vmap(loss.mean)(x)

    return serial(jax.jit(jax.vmap(one, in_axes=(0, None, None))))


def _even(x: Array) -> Array:
    """The broken line x (points, d) with its points at equal distances along it."""
    arc = jnp.concatenate([jnp.zeros(1), jnp.cumsum(jnp.linalg.norm(x[1:] - x[:-1], axis=1))])
    wanted = jnp.linspace(0.0, arc[-1], x.shape[0])
    inner = jax.vmap(lambda column: jnp.interp(wanted, arc, column), in_axes=1, out_axes=1)(x)
    return inner.at[0].set(x[0]).at[-1].set(x[-1])


def summits(curves: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inner maxima of the loss along each curve: points (k, d) and unit tangents (k, d)."""
    points, tangents = [], []
    for curve, height in zip(curves, values, strict=True):
        if not np.isfinite(height).all():
            continue
        inner = np.flatnonzero((height[1:-1] >= height[:-2]) & (height[1:-1] > height[2:])) + 1
        for k in inner:
            along = curve[k + 1] - curve[k - 1]
            size = float(np.linalg.norm(along))
            if size > 0:
                points.append(curve[k])
                tangents.append(along / size)
    dim = curves.shape[2]
    return np.array(points).reshape(-1, dim), np.array(tangents).reshape(-1, dim)
