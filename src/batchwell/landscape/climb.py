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
from scipy.sparse.linalg import LinearOperator, cg

from .._jax import jax, jnp, serial
from ..loss import StochasticLoss
from .attractors import gradient_at
from .spectrum import DENSE, extreme_modes, hessian_operator

Array = Any
FIRST_RADIUS, LONGEST_STEP = 0.02, 0.2  # of a step, times 1 + |x|
TRUSTED, GOOD = 0.5, 0.15  # error of the quadratic model, as a share of the gradient or its change
ROUND, ROUNDS = 8, 12
BATCH = 64


def climb(
    loss: StochasticLoss, points: np.ndarray, directions: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Follow `directions` uphill from `points`, both (m, d), to where the climb comes to rest.

    Steps are as long as the quadratic model of F is right, so that the climb ends close by.

    Returns
    -------
    tuple
        Points (m, d), NaN where the gradient norm did not fall below `tolerance`, and the number of
        steps taken (m,). Of which index the points are is left to the caller.
    """
    if loss.dim > DENSE:
        pairs = zip(points, directions, strict=True)
        ends = [climb_by_products(loss, x, way, tolerance) for x, way in pairs]
        return (
            np.array([x for x, _ in ends]).reshape(points.shape),
            np.array([k for _, k in ends]),
        )
    out, taken = np.full(points.shape, np.nan), np.zeros(len(points), int)
    rows, x, way = np.arange(len(points)), np.array(points), np.array(directions)
    radius = FIRST_RADIUS * (1.0 + np.linalg.norm(x, axis=1))
    for _ in range(ROUNDS):
        if not len(rows):
            break
        x, way, radius, norms = _round(loss, x, way, radius)
        taken[rows] += ROUND
        done = norms < tolerance
        out[rows[done]] = x[done]
        keep = np.isfinite(x).all(axis=1) & ~done
        rows, x, way, radius = rows[keep], x[keep], way[keep], radius[keep]
    return out, taken


def climb_by_products(
    loss: StochasticLoss, x: np.ndarray, way: np.ndarray, tolerance: float
) -> tuple[np.ndarray, int]:
    """`climb` from one point (d,) by Hessian-vector products alone: (point, steps).

    Lanczos gives the lowest mode, conjugate gradients Newton's step across it (Munro & Wales, Phys.
    Rev. B 59, 1999).
    """
    slope_at = gradient_at(loss)
    radius, slope = FIRST_RADIUS * (1.0 + float(np.linalg.norm(x))), np.asarray(slope_at(x))
    for k in range(ROUND * ROUNDS):
        if np.linalg.norm(slope) < tolerance:
            return x, k
        hessian = hessian_operator(loss, x)
        values, vectors = extreme_modes(loss, x, 1, "SA", 1e-6)
        mode = vectors[:, 0] if values[0] < 0 else way
        curvature = float(mode @ (hessian @ mode))
        move = _across(hessian, mode, slope) + _along(mode, slope, curvature, radius)
        move *= min(1.0, radius / (float(np.linalg.norm(move)) + 1e-300))
        there, change = np.asarray(slope_at(x + move)), hessian @ move
        size = max(float(np.linalg.norm(change)), float(np.linalg.norm(slope)))
        error = float(np.linalg.norm(there - slope - change)) / (size + 1e-300)
        if error < TRUSTED:
            x, slope, way = x + move, there, mode
        radius *= (2.0 if error < GOOD else 1.0) if error < TRUSTED else 0.3
        radius = min(radius, LONGEST_STEP * (1.0 + float(np.linalg.norm(x))))
    return np.full_like(x, np.nan), ROUND * ROUNDS


def _along(mode: np.ndarray, slope: np.ndarray, curvature: float, radius: float) -> np.ndarray:
    """Uphill along the mode, no longer than the radius."""
    part = float(mode @ slope)
    return np.asarray(mode * part / max(abs(curvature), abs(part) / radius, 1e-300))


def _across(hessian: LinearOperator, mode: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Newton's step downhill across the mode; the plain gradient where curvature is not positive."""

    def off(v: np.ndarray) -> np.ndarray:
        return np.asarray(v - (mode @ v) * mode)

    def inner(v: np.ndarray) -> np.ndarray:
        return off(hessian @ off(np.ravel(v))) + (mode @ np.ravel(v)) * mode

    right = -off(slope)
    size = float(np.linalg.norm(slope))
    operator = LinearOperator(hessian.shape, matvec=inner, dtype=np.float64)
    move, _ = cg(operator, right, rtol=min(0.1, size), maxiter=400)
    return move if move @ right > 0 else right


def _round(loss: StochasticLoss, *state: np.ndarray) -> tuple[np.ndarray, ...]:
    parts, count = [], len(state[0])
    for k in range(0, count, BATCH):
        here = [a[k : k + BATCH] for a in state]
        # Two compiled shapes in all.
        fill = np.arange(8 if len(here[0]) <= 8 else BATCH) % len(here[0])
        out = _climber(loss)(*(a[fill] for a in here))
        parts.append([np.asarray(a)[: len(here[0])] for a in out])
    return tuple(np.concatenate([p[i] for p in parts]) for i in range(4))


@lru_cache(maxsize=32)
def _climber(loss: StochasticLoss) -> Callable[..., Any]:
    def step(_: int, state: tuple[Array, ...]) -> tuple[Array, ...]:
        x, way, radius, gradient = state
        hessian = loss.hessian(x)
        values, vectors = jnp.linalg.eigh(hessian)
        # As soon as one direction curves down it is the way; until then the one given is kept.
        nearest = jnp.argmax(jnp.abs(way @ vectors))
        mode = jnp.where(values[0] < 0, 0, nearest)
        signs = jnp.where(jnp.arange(x.shape[0]) == mode, -1.0, 1.0)
        slopes = vectors.T @ gradient
        # No component is longer than the radius: a vanishing curvature would drown all others.
        move = -vectors @ (
            signs * slopes / jnp.maximum(jnp.abs(values), jnp.abs(slopes) / radius + 1e-300)
        )
        move = move * jnp.minimum(1.0, radius / (jnp.linalg.norm(move) + 1e-300))
        there = loss.gradient(x + move)
        change = hessian @ move
        size = jnp.maximum(jnp.linalg.norm(change), jnp.linalg.norm(gradient))
        error = jnp.linalg.norm(there - gradient - change) / (size + 1e-300)
        good = error < TRUSTED
        radius = radius * jnp.where(good, jnp.where(error < GOOD, 2.0, 1.0), 0.3)
        radius = jnp.minimum(radius, LONGEST_STEP * (1.0 + jnp.linalg.norm(x)))
        return (
            jnp.where(good, x + move, x),
            vectors[:, mode],
            radius,
            jnp.where(good, there, gradient),
        )

    def one(x: Array, way: Array, radius: Array) -> tuple[Array, ...]:
        begin = (x, way, radius, loss.gradient(x))
        x, way, radius, gradient = jax.lax.fori_loop(0, ROUND, step, begin)
        return x, way, radius, jnp.linalg.norm(gradient)

    return serial(jax.jit(jax.vmap(one)))
