"""The geometric minimum action method: a second, independent route to the action.

A discretised curve relaxes by ``x_t = lambda^2 x'' - lambda H_px x' + H_pp H_x + lambda lambda' x'``
and is kept at equal arc length. Heymann & Vanden-Eijnden, "The geometric minimum action method"
(CPAM 61, 2008), sec. 3; second differences implicit, everything else explicit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._jax import jax, jnp
from ..dynamics import Process
from ..errors import RunError, require, whole
from .geometric import lagrangian, momentum
from .hamiltonian import Hamiltonian, hamiltonian

Array = Any


@dataclass(frozen=True)
class StringPath:
    """A relaxed curve.

    Attributes
    ----------
    action
        V, extrapolated from the full and every second point.
    error
        Size of that extrapolation.
    path
        (points, d).
    iterations
        Relaxation steps taken.
    """

    action: float
    error: float
    path: np.ndarray
    iterations: int


def string_action(
    process: Process,
    start: ArrayLike,
    end: ArrayLike,
    *,
    points: int = 129,
    path: ArrayLike | None = None,
    step: float = 0.1,
    tolerance: float = 1e-8,
    most: int = 4000,
) -> StringPath:
    """Least action from `start` to `end`, both (d,), by relaxing a string of `points`.

    Parameters
    ----------
    path
        (points, d) initial curve; a bowed line by default.
    step
        Relaxation step.
    tolerance
        Stop when a step moves the string by less, relative to its length.

    Raises
    ------
    InputError
        Shapes.
    RunError
        Not relaxed after `most` steps (says how far off).

    Examples
    --------
    >>> from batchwell import SGD, additive
    >>> sgd = SGD(additive(lambda x: x @ x / 2, dim=2), learning_rate=0.1)
    >>> round(string_action(sgd, [0.0, 0.0], [0.6, 0.8]).action, 6)
    1.0
    """
    h = hamiltonian(process)
    x0, x1 = (np.asarray(v, dtype=np.float64) for v in (start, end))
    require(x0.shape == x1.shape == (h.dim,), "end", x1.shape, f"must have shape ({h.dim},)")
    n = whole("points", points, 9)
    require(n % 2 == 1, "points", n, "must be odd: every second point is used for its error")
    x = _bowed(x0, x1, n) if path is None else np.array(path, dtype=np.float64)
    require(x.shape == (n, h.dim), "path", x.shape, f"must have shape ({n}, {h.dim})")
    length = float(np.linalg.norm(np.diff(x, axis=0), axis=1).sum())
    last, moved, count = _relaxer(h, n)(jnp.asarray(x), step, tolerance * step * length, most)
    relaxed, change, k = np.asarray(last), float(moved) / (step * length), int(count)
    if not np.all(np.isfinite(relaxed)):
        raise RunError(f"the string left the finite numbers in step {k}: lower step")
    if not change < max(1e3 * tolerance, 1e-4):
        raise RunError(f"the string moved by {change:.2g} of its length in step {k}: lower step")
    fine, coarse = (_action(h, relaxed[::every]) for every in (1, 2))
    return StringPath(fine + (fine - coarse) / 3, abs(fine - coarse) / 3, relaxed, k)


def _bowed(x0: np.ndarray, x1: np.ndarray, n: int) -> np.ndarray:
    """A line with a slight bow: a straight one may sit on a saddle of the action."""
    s = np.linspace(0, 1, n)[:, None]
    line = x0 + s * (x1 - x0)
    if len(x0) == 1:
        return np.asarray(line)
    side = np.roll(x1 - x0, 1) * np.where(np.arange(len(x0)) % 2, 1.0, -1.0)
    return np.asarray(line + 0.2 * s * (1 - s) * side)


@lru_cache(maxsize=32)
def _relaxer(h: Hamiltonian, n: int) -> Any:
    """Compiled ``(x (n, d), step, tolerance, most) -> (x, last move, steps taken)``."""
    move = _mover(h, n)

    @jax.jit
    def run(x: Array, step: Array, tolerance: Array, most: Array) -> tuple[Array, Array, Array]:
        def body(state: Any) -> Any:
            x, _, k = state
            new = equal_arcs(move(x, step))
            return new, jnp.max(jnp.abs(new - x)), k + 1

        def unfinished(state: Any) -> Array:
            # A NaN compares false and ends the loop.
            return (state[1] >= tolerance) & (state[2] < most)

        return jax.lax.while_loop(unfinished, body, (x, jnp.asarray(jnp.inf), 0))

    return run


def _mover(h: Hamiltonian, n: int) -> Any:
    """Relaxation step of the whole string (n, d)."""
    ds = 1.0 / (n - 1)
    solve = jax.vmap(momentum(h))

    def forces(x: Array, p: Array, v: Array, lam: Array) -> Array:
        h_x = jax.grad(h.value, argnums=0)(x, p)
        # H_px v = d/de H_p(x + e v, p)
        h_pxv = jax.jvp(lambda y: jax.grad(h.value, argnums=1)(y, p), (x,), (v,))[1]
        h_pp_hx = jax.jvp(lambda q: jax.grad(h.value, argnums=1)(x, q), (p,), (h_x,))[1]
        return -lam * h_pxv + h_pp_hx

    def move(x: Array, tau: Array) -> Array:
        v = (x[2:] - x[:-2]) / (2 * ds)
        theta, mu = solve(x[1:-1], v)
        lam = 1.0 / jnp.maximum(mu, 1e-300)
        ends = jnp.stack([2 * lam[0] - lam[1], 2 * lam[-1] - lam[-2]])
        ends = jnp.maximum(ends, 0.0)
        padded = jnp.concatenate([ends[:1], lam, ends[1:]])
        slope = (padded[2:] - padded[:-2]) / (2 * ds)
        push = jax.vmap(forces)(x[1:-1], theta, v, lam) + (lam * slope)[:, None] * v
        c = tau * (lam / ds) ** 2
        right = x[1:-1] + tau * push
        right = right.at[0].add(c[0] * x[0]).at[-1].add(c[-1] * x[-1])
        below = jnp.concatenate([jnp.zeros(1), -c[1:]])
        above = jnp.concatenate([-c[:-1], jnp.zeros(1)])
        inner = jax.lax.linalg.tridiagonal_solve(below, 1 + 2 * c, above, right)
        return jnp.concatenate([x[:1], inner, x[-1:]])

    return move


def equal_arcs(x: Array) -> Array:
    """The curve (n, d) with its points at equal arc length, by cubic Hermite pieces."""
    gaps = jnp.linalg.norm(jnp.diff(x, axis=0), axis=1)
    arc = jnp.concatenate([jnp.zeros(1), jnp.cumsum(gaps)])
    chord = jnp.diff(x, axis=0) / gaps[:, None]
    left, right = gaps[:-1, None], gaps[1:, None]
    inner = (right * chord[:-1] + left * chord[1:]) / (left + right)  # of parabolas through three
    slope = jnp.concatenate(
        [(2 * chord[0] - inner[0])[None], inner, (2 * chord[-1] - inner[-1])[None]]
    )
    wanted = jnp.linspace(0.0, 1.0, x.shape[0]) * arc[-1]
    k = jnp.clip(jnp.searchsorted(arc, wanted, side="right") - 1, 0, x.shape[0] - 2)
    h = gaps[k][:, None]
    t = (wanted - arc[k])[:, None] / h
    start, end = x[k], x[k + 1]
    out = (
        start
        + t * (end - start)
        + t
        * (1 - t)
        * (h * slope[k] * (1 - t) - h * slope[k + 1] * t - (end - start) * (1 - 2 * t))
    )
    return out.at[0].set(x[0]).at[-1].set(x[-1])


def _action(h: Hamiltonian, x: np.ndarray) -> float:
    """Geometric action of a broken line by the midpoint rule: error O(1 / n^2)."""
    middle, steps = 0.5 * (x[1:] + x[:-1]), np.diff(x, axis=0)
    return float(jnp.sum(_cost(h)(jnp.asarray(middle), jnp.asarray(steps))))


@lru_cache(maxsize=32)
def _cost(h: Hamiltonian) -> Any:
    return jax.jit(jax.vmap(lagrangian(h)))
