"""Prefactors along an instanton: the transport equation, the shift of finite steps, overshoot.

With B fixed and the learning rate small, SGD's density is ``K exp(-V / eps)``: V of H(x, p), and the
logarithm of K a sum of what a process in continuous time has (`amplitude`) and of the steps'
own shift of the exponent (`step_shift`). Where the chain leaves over a boundary against its
drift it lands beyond it (`log_overshoot`).

Sources: Naeh, Klosek, Matkowsky & Schuss, SIAM J. Appl. Math. 50 (1990); Bouchet & Reygner, Ann.
Henri Poincare 17 (2016), eq. 1.10; Siegmund, "Sequential Analysis" (1985), ch. 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np

from .._jax import jax, jnp
from ..action import Hamiltonian, Instanton
from ..action.instanton import fejer
from ..errors import RunError

# Nodes of the overshoot's integral: smooth and even, so the midpoint rule does.
NODES, FEW_NODES = 4096, 256


def inverse_covariance(h: Hamiltonian, x: np.ndarray) -> np.ndarray:
    """Second derivatives of V at a zero of the drift: C^-1 with A C + C A^T + Sigma = 0."""
    from scipy.linalg import solve_continuous_lyapunov

    a = np.asarray(jax.jacfwd(h.drift)(jnp.asarray(x)))
    c = solve_continuous_lyapunov(a, -np.asarray(h.tensor(jnp.asarray(x))))
    return np.asarray(np.linalg.inv(c))


def amplitude(
    h: Hamiltonian, at_minimum: np.ndarray, path: Instanton, ends_at_rest: bool
) -> tuple[float, np.ndarray]:
    """(integral of F dt along the instanton, second derivatives of V at its end).

    Q = V'' obeys ``dQ/dt = -(H_xx + H_xp Q + Q H_px + Q H_pp Q)`` and the amplitude of the
    quasi-stationary density ``d log K / dt = -F``, with
    ``F = div b + (d_i Sigma_ij) theta_j + Sigma : Q / 2``. Integrated in r = log(s / (1 - s)), in
    which time runs evenly at both ends. Near a saddle the equation is unstable along the path,
    where Q is known, ``Q dx = d theta``: in the second half only Q across the path is integrated. A
    polynomial curve of K terms does not resolve the last 2 / K^2 of its approach to a saddle,
    where F vanishes anyway: the integral stops there.
    """
    from scipy.integrate import solve_ivp

    d, spline = h.dim, _splines(h, path)
    by_angle = spline.derivative()
    square, at = d * d, 3 * h.dim**2

    def whole_q(row: np.ndarray, slope: np.ndarray, across: np.ndarray) -> np.ndarray:
        e, pace = row[at + 1 : at + 1 + d], row[-1]
        e = e / np.linalg.norm(e)
        known = slope[at + 1 + d : at + 1 + 2 * d] / pace
        p = np.eye(d) - np.outer(e, e)
        mixed = np.outer(e, known) + np.outer(known, e) - (e @ known) * np.outer(e, e)
        return np.asarray(p @ across @ p + mixed)

    def both(r: float) -> tuple[np.ndarray, np.ndarray]:
        angle = 2 * math.atan(math.exp(0.5 * r))
        return spline(angle), by_angle(angle) * (0.5 * math.sin(angle))

    def full(r: float, state: np.ndarray) -> np.ndarray:
        row, q = both(r)[0], state[:-1].reshape(d, d)
        change, f = flow(row, q)
        return np.concatenate([change.ravel(), [f]])

    def flow(row: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, float]:
        xx, px, pp = (row[k * square : (k + 1) * square].reshape(d, d) for k in range(3))
        time = row[-2]
        change = -(xx + px.T @ q + q @ px + q @ pp @ q) * time
        return change, (row[at] + 0.5 * np.sum(pp * q)) * time

    def across_only(r: float, state: np.ndarray) -> np.ndarray:
        row, slope = both(r)
        q = whole_q(row, slope, state[:-1].reshape(d, d))
        change, f = flow(row, q)
        e, de = row[at + 1 : at + 1 + d], slope[at + 1 : at + 1 + d]
        p, dp = np.eye(d) - np.outer(e, e), -np.outer(de, e) - np.outer(e, de)
        across = p @ change @ p + dp @ q @ p + p @ q @ dp
        return np.concatenate([across.ravel(), [f]])

    low, high = np.log(path.parameter / (1 - path.parameter))[[0, -1]]
    terms = len(path.coefficients)
    if ends_at_rest and terms:
        high = min(high, math.log(terms**2 / 2 - 1))
    state = np.concatenate([at_minimum.ravel(), [0.0]])
    # In one dimension all of Q is known from the path.
    parts = [(across_only, low, high)] if d == 1 else [(full, low, 0.0), (across_only, 0.0, high)]
    for rates, begin, stop in parts:
        done = solve_ivp(rates, (begin, stop), state, method="LSODA", rtol=1e-8, atol=1e-10)
        state = done.y[:, -1]
        if not done.success or not np.all(np.isfinite(state)):
            raise RunError("the second derivatives of V blow up along the instanton (a caustic)")
    q = whole_q(*both(high), state[:-1].reshape(d, d))
    return float(state[-1]), 0.5 * (q + q.T)


def _splines(h: Hamiltonian, path: Instanton) -> Any:
    """Second derivatives of H, tangent, theta, dt/dr and |dx|/dr, r = log(s / (1 - s)).

    As functions of the angle with s = (1 - cos angle) / 2, in which the points are evenly spread.
    """
    from scipy.interpolate import make_interp_spline

    s = path.parameter
    angle, jac = np.arccos(1 - 2 * s), s * (1 - s)
    velocity = (
        make_interp_spline(angle, path.path, k=5).derivative()(angle)
        / (0.5 * np.sin(angle))[:, None]
    )
    speed = np.linalg.norm(velocity, axis=1)
    columns = [
        _along(h, path),
        velocity / speed[:, None],
        path.theta,
        (path.clock * jac)[:, None],
        (speed * jac)[:, None],
    ]
    return make_interp_spline(angle, np.concatenate(columns, axis=1), k=5)


def _along(h: Hamiltonian, path: Instanton) -> np.ndarray:
    """Rows of H_xx, H_px (row p, column x), H_pp, div b + (d_i Sigma_ij) theta_j, for each point."""
    return np.asarray(_rows(h.family)(h.knobs, path.path, path.theta))


@lru_cache(maxsize=64)
def _rows(family: Callable[..., Hamiltonian]) -> Any:
    def row(h: Hamiltonian, x: Any, p: Any) -> Any:
        xx = jax.hessian(h.value, argnums=0)(x, p)
        px = jax.jacfwd(jax.grad(h.value, argnums=1), argnums=0)(x, p)
        pp = h.tensor(x) if h.quadratic else jax.hessian(h.value, argnums=1)(x, p)
        # tr H_px at theta is div b + (d_i Sigma_ij) theta_j.
        return jnp.concatenate([xx.ravel(), px.ravel(), pp.ravel(), jnp.trace(px)[None]])

    return jax.jit(lambda knobs, *at: jax.vmap(partial(row, family(*knobs)))(*at))


def step_shift(h: Hamiltonian, path: Instanton) -> float:
    """V1 of ``V(eta) = V + eta V1 + O(eta^2)``, the exponent of steps of size eta: ``-int dp.dx / 2``.

    From the symbol ``exp((eta / eps) H(x, p))`` of one step, whose transport equation adds
    ``H_x . H_p / 2`` per unit of time. Zero between zeros of a gradient drift with
    isotropic Gaussian noise, where the shift is of second order (`discrete_kramers`).
    """
    spline = _splines(h, path)
    angle = np.arccos(1 - 2 * path.parameter)
    at, d = 3 * h.dim**2, h.dim
    row, slope = spline(angle), spline.derivative()(angle)
    # dx/ds = e |dx/dr| dr/ds and ds = s (1 - s) dr: per s, and dt/ds the clock.
    jac = path.parameter * (1 - path.parameter)
    e = row[:, at + 1 : at + 1 + d]
    velocity = e * (row[:, -1] / jac)[:, None]
    push = slope[:, at + 1 + d : at + 1 + 2 * d] / (0.5 * np.sin(angle))[:, None]
    return -0.5 * float(fejer(len(angle)) @ (np.sum(velocity * push, axis=1) / path.clock))


def log_overshoot(h: Hamiltonian, x: np.ndarray, theta: np.ndarray, ratio: float) -> float:
    """Log of E exp(-theta . R), R the mean overshoot's law of steps tilted by theta, at x (d,).

    ``ratio`` is eta / eps. With ``M(z) = E exp(z theta . step)``, ``M(0) = M(1) = 1``, Spitzer's identity
    gives the factor by which an exit rate in continuous time shrinks,

    ``1 / (m theta) exp{ (1 / pi) int dw / (1 + w^2) log |1 - M((1 + i w) / 2)| }``,

    m the mean tilted step (Siegmund (1985), eq. 8.44 and 8.50, by Parseval's formula). It tends to 1
    for small steps.
    """
    return float(_overshoot(h, NODES)(jnp.asarray(x), jnp.asarray(theta), ratio))


def log_overshoots(
    h: Hamiltonian, points: np.ndarray, thetas: np.ndarray, ratio: float
) -> np.ndarray:
    """`log_overshoot` at many points (n, d), to three digits."""
    one = _overshoot(h, FEW_NODES)
    pairs = zip(points, thetas, strict=True)
    return np.array([float(one(jnp.asarray(x), jnp.asarray(p), ratio)) for x, p in pairs])


@lru_cache(maxsize=32)
def _overshoot(h: Hamiltonian, nodes: int) -> Any:
    w = np.tan((np.arange(nodes) + 0.5) / nodes * math.pi / 2)

    @jax.jit
    def one(x: Any, theta: Any, ratio: Any) -> Any:
        pace = ratio * (theta @ jax.grad(h.value, argnums=1)(x, theta))
        local = h.local(x)
        logs = jax.vmap(lambda v: h.cumulant(local, theta * (0.5 + 0.5j * v)))(jnp.asarray(w))
        return jnp.mean(jnp.log(jnp.abs(1 - jnp.exp(ratio * logs)))) - jnp.log(pace)

    return one
