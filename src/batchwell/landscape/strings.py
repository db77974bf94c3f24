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
from ..ensemble import gradient_flow
from ..loss import StochasticLoss

Array = Any
POINTS = 25
DESCENT_LOOKS = 11  # of a descent, at doubling numbers of steps: 8188 in all
LONGEST_MOVE = 0.3  # of a step of relaxation, in units of the distance between two points


def lines(first: np.ndarray, second: np.ndarray, points: int = POINTS) -> np.ndarray:
    """Straight lines from `first` to `second`, both (m, d): (m, points, d)."""
    s = np.linspace(0.0, 1.0, points)[:, None]
    return np.asarray(first[:, None] + s * (second - first)[:, None])


def descents(
    loss: StochasticLoss,
    first: np.ndarray,
    second: np.ndarray,
    threads: int | None = None,
    points: int = POINTS,
) -> np.ndarray:
    """Curves from the minimum below `first`, over `first` and `second`, to that below `second`.

    Both are (m, d), in neighbouring basins; the curves (m, points, d) follow gradient flow on either
    side, so that they cross the border between the two basins and no other.
    """
    x = np.concatenate([first, second])
    trail, sizes = [x], np.full(len(x), 0.1)
    for k in range(DESCENT_LOOKS):
        flow = gradient_flow(loss, trail[-1], None, 4 << k, 1e-3, sizes, threads)
        trail.append(flow.points)
        sizes = flow.steps
    down = np.stack(trail, axis=1)
    both = np.concatenate([down[: len(first), ::-1], down[len(first) :]], axis=1)
    return np.stack([_spread(curve, points) for curve in both])


def _spread(curve: np.ndarray, points: int) -> np.ndarray:
    """The broken line `curve` (k, d) at `points` equal distances along it."""
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    wanted = np.linspace(0.0, arc[-1], points)
    return np.stack([np.interp(wanted, arc, column) for column in curve.T], axis=1)


def relax(
    loss: StochasticLoss, curves: np.ndarray, rate: float, iterations: int = 300
) -> tuple[np.ndarray, np.ndarray]:
    """Strings that start as `curves` (m, points, d), relaxed, and the loss along them (m, points).

    `rate` is the step of the descent, in units of time: below 1 / (largest curvature). Strings
    that leave the finite numbers become NaN.
    """
    points = curves.shape[1]
    chunk = max(1, 2048 // points)
    parts = [
        _relaxer(loss)(_padded(curves[k : k + chunk], chunk), rate, iterations)
        for k in range(0, len(curves), chunk)
    ]
    relaxed, values = (np.concatenate([np.asarray(p[i]) for p in parts]) for i in (0, 1))
    return relaxed[: len(curves)], values[: len(curves)]


def _padded(curves: np.ndarray, chunk: int) -> np.ndarray:
    # Two compiled shapes in all: one for few strings, one for many.
    size = 16 if len(curves) <= 16 else chunk
    return np.concatenate([curves, np.repeat(curves[:1], max(0, size - len(curves)), axis=0)])


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
