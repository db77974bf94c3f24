"""Chebyshev-Ritz: the geometric action minimised over polynomial curves.

Curves are ``x(s) = x0 + s (x1 - x0) + s (1 - s) sum_k c_k T_k(2 s - 1)``, 0 <= s <= 1, the
action a Gauss-Legendre sum; derivatives come from automatic differentiation. Convergence is
spectral for smooth instantons; around a minimum with a rotating drift, in a frame that turns (`frame`). Kikuchi, Singh, Cates & Adhikari, Phys. Rev. Research 2, 033208
(2020), with the geometric action in place of the one over time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from .._jax import jax, jnp
from ..domain import Domain
from .frame import Frame
from .geometric import lagrangian
from .hamiltonian import Hamiltonian

Array = Any
# Of a turning path all but exp(-2 DEPTH) of the action is integrated.
DEPTH = 12.0
# Above this many unknowns no Hessian is formed.
MANY = 160


class Basis(NamedTuple):
    """Bubble polynomials at quadrature nodes: curve = line + `shape` @ c, velocity likewise.

    In a turning frame ``turns`` (nodes, d, d) are applied to both, and `spin` (d, d) is its generator.
    """

    s: np.ndarray
    weights: np.ndarray
    shape: np.ndarray
    slope: np.ndarray
    turns: np.ndarray | None = None
    spin: np.ndarray | None = None


@lru_cache(maxsize=64)
def basis(order: int, nodes: int, frame: Frame | None = None) -> Basis:
    """`order` bubbles at `nodes` Gauss-Legendre nodes of (0, 1); of every panel of a turning frame."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    if frame is None:
        return _basis_at((x + 1) / 2, w / 2, order)
    # Turns are even in -log s: panels of at most three radians of the action, which turns twice as fast.
    speed = float(np.abs(np.linalg.eigvals(frame.spin)).max())
    edges = np.linspace(0.0, DEPTH, math.ceil(DEPTH * max(1.0, 2 * speed / 3)) + 1)
    half = 0.5 * np.diff(edges)[:, None]
    u = (edges[:-1, None] + half * (1 + x)).ravel()
    return _basis_at(np.exp(-u), (half * w).ravel() * np.exp(-u), order, frame)


def _basis_at(s: np.ndarray, w: np.ndarray, order: int, frame: Frame | None = None) -> Basis:
    plain = _bubbles_at(s, w, order)
    if frame is None:
        return plain
    return plain._replace(turns=frame.turns(s), spin=frame.spin)


def _bubbles_at(s: np.ndarray, w: np.ndarray, order: int) -> Basis:
    eye = [np.polynomial.Chebyshev.basis(k, domain=[0, 1]) for k in range(order)]
    bubble = np.polynomial.Chebyshev.fit([0, 0.5, 1], [0, 0.25, 0], 2, domain=[0, 1])
    shapes = [bubble * e for e in eye]
    if not shapes:  # in one dimension every curve is the straight one
        return Basis(s, w, np.zeros((len(s), 0)), np.zeros((len(s), 0)))
    shape = np.stack([f(s) for f in shapes], axis=1)
    return Basis(s, w, shape, np.stack([f.deriv()(s) for f in shapes], axis=1))


def curve(x0: Array, x1: Array, c: Array, on: Basis) -> tuple[Array, Array]:
    """Points and velocities (nodes, d) of the curve with coefficients c (order, d)."""
    line = x1 - x0
    step = jnp.asarray(on.s)[:, None] * line + jnp.asarray(on.shape) @ c
    velocity = line + jnp.asarray(on.slope) @ c
    if on.turns is not None:
        # The velocity of s^K y is s^K (y' + K y / s).
        velocity = velocity + step @ jnp.asarray(on.spin).T / jnp.asarray(on.s)[:, None]
        step, velocity = (
            jnp.einsum("mij,mj->mi", jnp.asarray(on.turns), v) for v in (step, velocity)
        )
    return x0 + step, velocity


def curve_at(
    x0: np.ndarray, x1: np.ndarray, c: np.ndarray, s: np.ndarray, frame: Frame | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Points and velocities (len(s), d) of the curve at parameters `s`."""
    # A turning frame has no limit at s = 0, where the step vanishes.
    at = np.maximum(np.asarray(s, dtype=float), 1e-300)
    points, velocity = curve(x0, x1, c, _basis_at(at, np.zeros(len(at)), len(c), frame))
    return np.asarray(points), np.asarray(velocity)


def points_on(
    x0: np.ndarray, x1: np.ndarray, c: np.ndarray, s: np.ndarray, frame: Frame | None = None
) -> np.ndarray:
    """Points (len(s), d) of the curve at parameters `s`."""
    return curve_at(x0, x1, c, s, frame)[0]


@dataclass(frozen=True, eq=False)
class Problem:
    """Compiled functions of the unknowns ``u`` = coefficients, and the end point where it is free.

    `action` is the geometric action; `objective` adds the price of an uneven speed, which
    is zero at the constant speed that every curve can have, and fixes the parametrisation (in a
    turning `frame` the speed in its metric, in which turns change no length).
    """

    dim: int
    order: int
    free_end: bool
    action: Any
    objective: Any
    gradient: Any
    hessian: Any
    second: bool
    fine: Any
    end: Any
    frame: Frame | None

    def split(self, u: np.ndarray, x1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Unknowns -> (coefficients (order, d), end point (d,))."""
        size = self.order * self.dim
        c = np.asarray(u[:size]).reshape(self.order, self.dim)
        return c, np.asarray(self.end(u[size:])) if self.free_end else x1


@lru_cache(maxsize=64)
def problem(
    h: Hamiltonian, order: int, nodes: int, domain: Domain | None, frame: Frame | None = None
) -> Problem:
    """The Ritz problem of `h`; with a `domain` the end is free on its boundary."""
    compiled = _compiled(h.family, h.dim, order, nodes, domain, frame)
    measured, value_and_slope, hessian = (partial(f, h.knobs) for f in compiled[:3])
    whole = basis(order, nodes, frame)
    # Both halves of (0, 1) with rules of the same size: one compiled function serves all.
    halves = [_basis_at((k + whole.s) / 2, whole.weights / 2, order) for k in (0, 1)]
    finer = halves if frame is None else [basis(order, nodes + 8, frame)]

    def coarse(u: Array, x0: Array, x1: Array) -> float:
        value = float(measured(u, x0, x1, whole))
        return value if value > -np.inf else np.inf  # out of reach of the noise

    def fine(u: Array, x0: Array, x1: Array) -> float:
        return sum(float(measured(u, x0, x1, on)) for on in finer)

    free = domain is not None
    return Problem(
        h.dim,
        order,
        free,
        coarse,
        value_and_slope,
        lambda *at: value_and_slope(*at)[1],
        hessian,
        (order + free) * h.dim <= MANY,
        fine,
        compiled[3],
        frame,
    )


@lru_cache(maxsize=64)
def _compiled(
    family: Callable[..., Hamiltonian],
    dim: int,
    order: int,
    nodes: int,
    domain: Domain | None,
    frame: Frame | None,
) -> tuple[Any, Any, Any, Any]:
    """(action, value and slope, Hessian, end), the first three of knobs and unknowns."""
    free = domain is not None
    end = retraction(domain) if domain is not None else lambda y: y

    def unpack(u: Array, x1: Array) -> tuple[Array, Array]:
        c = u[: order * dim].reshape(order, dim)
        return c, end(u[order * dim :]) if free else x1

    def cost(knobs: Any, points: Array, velocity: Array) -> Array:
        return jax.vmap(lagrangian(family(*knobs)))(points, velocity)

    def action(knobs: Any, u: Array, x0: Array, x1: Array, on: Basis) -> Array:
        c, stop = unpack(u, x1)
        return jnp.dot(jnp.asarray(on.weights), cost(knobs, *curve(x0, stop, c, on)))

    def objective(knobs: Any, u: Array, x0: Array, x1: Array, weight: Array) -> Array:
        on = basis(order, nodes, frame)
        c, stop = unpack(u, x1)
        points, velocity = curve(x0, stop, c, on)
        w = jnp.asarray(on.weights)
        seen = velocity if frame is None else velocity @ jnp.asarray(frame.metric).T
        square = jnp.sum(seen**2, axis=1)
        mean = jnp.dot(w, square)
        # Var(|v|^2) / mean^2: no dimension, smooth, zero at constant speed.
        uneven = jnp.dot(w, (square / mean - 1) ** 2)
        off = jnp.sum((u[order * dim :] - stop) ** 2) / mean if free else 0.0
        return jnp.dot(w, cost(knobs, points, velocity)) + weight * (uneven + off)

    hessian = jax.jacfwd(jax.grad(objective, argnums=1), argnums=1)
    slope = jax.value_and_grad(objective, argnums=1)
    return jax.jit(action), jax.jit(slope), jax.jit(hessian), jax.jit(end)


def retraction(domain: Domain) -> Any:
    """``end(y)``: the boundary point reached from y along the level function's gradient."""
    level = domain.level
    assert level is not None

    def end(y: Array) -> Array:
        for _ in range(6):
            value, slope = jax.value_and_grad(level)(y)
            y = y - value * slope / jnp.maximum(jnp.dot(slope, slope), 1e-300)
        return y

    return end


@dataclass(frozen=True)
class Found:
    """A stationary curve: action, coefficients, end, sizes of what is left, negative curvatures.

    `truncation` is what the last two bubbles change: bubbles that were left out change less.
    """

    action: float
    coefficients: np.ndarray
    end: np.ndarray
    residual: float
    quadrature: float
    truncation: float
    index: int
    quasi: bool


def minimise(
    p: Problem,
    x0: np.ndarray,
    x1: np.ndarray,
    u: np.ndarray,
    stationary: bool = False,
) -> Found:
    """Minimise from unknowns `u`, or find the nearest stationary curve of any index."""
    weight = 0.1 * abs(float(p.action(u, x0, x1))) + 1e-12
    if u.size and not p.second:
        u = _large(p, u, x0, x1, weight)
    elif u.size:
        solver = _stationary if stationary else _small
        # Long waves first: short ones alone can fold a curve back on itself.
        for modes in sorted({min(4, p.order), p.order}):
            u = solver(p, u, x0, x1, weight, _active(p, modes))
    return _found(p, u, x0, x1, weight)


def _active(p: Problem, modes: int) -> np.ndarray:
    """Indices of the unknowns that belong to the first `modes` bubbles, and of the end point."""
    size = p.order * p.dim
    ends = np.arange(size, size + p.dim) if p.free_end else np.arange(0)
    return np.concatenate([np.arange(modes * p.dim), ends])


def _large(p: Problem, u: np.ndarray, x0: np.ndarray, x1: np.ndarray, w: float) -> np.ndarray:
    from scipy.optimize import minimize

    def both(v: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = p.objective(v, x0, x1, w)
        return float(value), np.asarray(slope)

    options = {"maxiter": 2000, "maxcor": 20, "ftol": 1e-14, "gtol": 1e-9}
    out = minimize(both, u, jac=True, method="L-BFGS-B", options=options)
    return np.asarray(out.x)


def _small(
    p: Problem, u: np.ndarray, x0: np.ndarray, x1: np.ndarray, w: float, active: np.ndarray
) -> np.ndarray:
    """Newton with negative and flat curvatures turned up, and backtracking."""
    value, slope = p.objective(u, x0, x1, w)
    for _ in range(60):
        g = np.asarray(slope)[active]
        hess = np.asarray(p.hessian(u, x0, x1, w))[np.ix_(active, active)]
        if not np.all(np.isfinite(hess)):
            break
        values, vectors = np.linalg.eigh(hess)
        size = np.maximum(np.abs(values), 1e-10 * np.abs(values).max())
        move = -vectors @ ((vectors.T @ g) / size)
        expected = float(-g @ move)
        if expected <= 1e-15 * abs(float(value)):
            # A flat end may still be a maximum in some direction: step off along it.
            if values[0] >= -1e-6 * values[-1]:
                break
            move, expected = 0.05 * vectors[:, 0] * np.linalg.norm(x1 - x0), 0.0
        for k in range(30):
            trial = u.copy()
            trial[active] += 0.5**k * move
            new, new_slope = p.objective(trial, x0, x1, w)
            if float(new) <= float(value) - 1e-4 * 0.5**k * expected:
                break
        else:
            break
        u, value, slope = trial, new, new_slope
    return u


def _stationary(
    p: Problem, u: np.ndarray, x0: np.ndarray, x1: np.ndarray, w: float, active: np.ndarray
) -> np.ndarray:
    """Levenberg-Marquardt on gradient = 0: reaches minima and saddles of the action alike."""
    from scipy.optimize import least_squares

    def at(v: np.ndarray) -> np.ndarray:
        full = u.copy()
        full[active] = v
        return full

    def gradient(v: np.ndarray) -> np.ndarray:
        return np.nan_to_num(np.asarray(p.gradient(at(v), x0, x1, w))[active], nan=1e6)

    def hessian(v: np.ndarray) -> np.ndarray:
        return np.nan_to_num(np.asarray(p.hessian(at(v), x0, x1, w))[np.ix_(active, active)])

    tight = {"xtol": 1e-14, "ftol": 1e-14, "gtol": 1e-14}
    out = least_squares(gradient, u[active], jac=hessian, method="lm", max_nfev=200, **tight)
    return at(np.asarray(out.x))


def _found(p: Problem, u: np.ndarray, x0: np.ndarray, x1: np.ndarray, w: float) -> Found:
    action = float(p.action(u, x0, x1))
    c, end = p.split(u, x1)
    with np.errstate(over="ignore"):  # a curve out of reach of the noise
        residual = float(np.linalg.norm(p.gradient(u, x0, x1, w))) if u.size else 0.0
    index = 0
    if u.size and p.second:
        hess = np.asarray(p.hessian(u, x0, x1, w))
        values = np.linalg.eigvalsh(hess) if np.all(np.isfinite(hess)) else np.zeros(1)
        index = int((values < -1e-6 * np.abs(values).max()).sum())
    fine = float(p.fine(u, x0, x1))
    shorter = np.array(u)
    shorter[max(p.order - 2, 0) * p.dim : p.order * p.dim] = 0.0
    truncation = abs(float(p.fine(shorter, x0, x1)) - fine)
    return Found(action, c, end, residual, abs(fine - action), truncation, index, not p.second)
