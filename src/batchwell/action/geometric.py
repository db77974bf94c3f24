"""The geometric Lagrangian: cost of moving along a direction, at the cheapest speed.

``l(x, v) = sup { theta . v : H(x, theta) = 0 }`` (Heymann & Vanden-Eijnden, CPAM 61 (2008), eq.
2.9). It is homogeneous of degree one in v: the action of a path is that of its curve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .._jax import jax, jnp
from .hamiltonian import Hamiltonian

Array = Any
# Relative floor of a singular noise: directions without noise cost 1/FLOOR and not infinity.
FLOOR = 1e-6


def lagrangian(h: Hamiltonian, floor: float = FLOOR) -> Callable[[Array, Array], Array]:
    """``l(x, v)``, twice differentiable away from v = 0 and zeros of the drift.

    A singular Sigma of a quadratic H gets `floor` times its mean eigenvalue added
    (`floor_needed` tells whether).
    """
    if h.quadratic and h.noise is not None:
        return _quadratic(h, floor)
    value = _floored(h, floor) if h.quadratic else h.value
    return _implicit(value, momentum(h, floor), h.dim)


def _floored(h: Hamiltonian, floor: float) -> Callable[[Array, Array], Array]:
    """H(x, p) with the ridge of `whitener` under its Sigma."""

    def value(x: Array, p: Array) -> Array:
        drift, sigma = h.local(x)
        ridge = _ridge(jax.lax.stop_gradient(sigma), floor)
        return h.cumulant((drift, sigma), p) + 0.5 * ridge * jnp.dot(p, p)

    return value


def _implicit(value: Any, solve: Any, dim: int) -> Callable[[Array, Array], Array]:
    """l from the solver of theta and mu, with its first two derivatives written out.

    The slope is ``l_x = -mu H_x, l_v = theta``; the curvature follows from the derivative of
    ``mu H_p = v, H = 0``. So nothing is differentiated through the solver, and a second derivative
    takes one Hessian of H in (x, theta), however many unknowns the curve has.
    """

    def at(z: Array) -> tuple[Array, Array, Array]:
        theta, mu = solve(z[:dim], z[dim:])
        return jnp.concatenate([z[:dim], theta]), theta, mu

    def joint(y: Array) -> Array:
        return value(y[:dim], y[dim:])

    def both(z: Array) -> tuple[Array, Array]:
        y, theta, mu = at(z)
        level, slope = jax.value_and_grad(joint)(y)
        # Stationary in theta and mu: an error of the solver enters squared.
        return jnp.dot(theta, z[dim:]) - mu * level, jnp.concatenate([-mu * slope[:dim], theta])

    def curvature(z: Array) -> Array:
        y, _, mu = at(z)
        slope, hess = jax.grad(joint)(y), jax.jacfwd(jax.grad(joint))(y)
        hx, hp, zero = slope[:dim], slope[dim:], jnp.zeros((dim, dim))
        xx, xp, pp = hess[:dim, :dim], hess[:dim, dim:], hess[dim:, dim:]
        # mu H_pp dtheta + H_p dmu = dv - mu H_px dx and H_p . dtheta = -H_x . dx
        right = jnp.block([[-mu * xp.T, jnp.eye(dim)], [-hx[None, :], zero[:1]]])
        border = jnp.block([[mu * pp, hp[:, None]], [hp[None, :], zero[:1, :1]]])
        moved = jnp.linalg.solve(border, right)
        rows = jnp.block([mu * xx, zero]) + jnp.outer(hx, moved[dim]) + mu * xp @ moved[:dim]
        whole = jnp.concatenate([-rows, moved[:dim]])
        return 0.5 * (whole + whole.T)

    first = jax.custom_jvp(both)
    first.defjvp(
        lambda primal, tangent: (
            (out := both(*primal)),
            (jnp.dot(out[1], tangent[0]), curvature(*primal) @ tangent[0]),
        )
    )
    cost = jax.custom_jvp(lambda z: both(z)[0])

    def cost_jvp(primal: Any, tangent: Any) -> tuple[Array, Array]:
        out, slope = first(*primal)
        return out, jnp.dot(slope, tangent[0])

    cost.defjvp(cost_jvp)
    return lambda x, v: cost(jnp.concatenate([x, v]))


def floor_needed(h: Hamiltonian, x: Array) -> bool:
    """Whether the noise at x (d,) leaves out a direction (condition number above 1e10)."""
    values = np.linalg.eigvalsh(np.asarray(h.tensor(jnp.asarray(x))))
    return bool(values[0] <= 1e-10 * values[-1])


def whitener(h: Hamiltonian, floor: float) -> Callable[[Array, Array], Array]:
    """``white(x, v)`` with |white|^2 = v . Sigma(x)^-1 v."""
    if h.noise is None:

        def moving(x: Array, v: Array) -> Array:
            sigma = h.tensor(x)
            lower = jnp.linalg.cholesky(sigma + _ridge(sigma, floor) * jnp.eye(h.dim))
            return jax.scipy.linalg.solve_triangular(lower, v, lower=True)

        return moving
    sigma = np.asarray(h.noise)
    scale = sigma[0, 0]
    if np.array_equal(sigma, scale * np.eye(h.dim)) and scale > 0:
        return lambda x, v: v / np.sqrt(scale)
    values = np.linalg.eigvalsh(sigma)
    ridge = floor * values.mean() if values[0] <= 1e-10 * values[-1] else 0.0
    inverse = np.linalg.inv(np.linalg.cholesky(sigma + ridge * np.eye(h.dim)))
    return lambda x, v: jnp.asarray(inverse) @ v


def _ridge(sigma: Array, floor: float) -> Array:
    values = jax.lax.stop_gradient(jnp.linalg.eigvalsh(sigma))
    return jnp.where(values[0] <= 1e-10 * values[-1], floor * jnp.mean(values), 0.0)


def _quadratic(h: Hamiltonian, floor: float) -> Callable[[Array, Array], Array]:
    white = whitener(h, floor)

    def cost(x: Array, v: Array) -> Array:
        b, w = white(x, h.drift(x)), white(x, v)
        return jnp.sqrt(jnp.dot(b, b) * jnp.dot(w, w)) - jnp.dot(b, w)

    return cost


def momentum(h: Hamiltonian, floor: float = FLOOR) -> Callable[[Array, Array], tuple[Array, Array]]:
    """``(x, v) -> (theta, mu)``: H(x, theta) = 0 and ``v = mu H_p(x, theta)``, mu = dt/ds >= 0."""
    if h.quadratic:
        white = whitener(h, floor)

        def closed(x: Array, v: Array) -> tuple[Array, Array]:
            b, w = white(x, h.drift(x)), white(x, v)
            mu = jnp.sqrt(jnp.dot(w, w) / jnp.maximum(jnp.dot(b, b), 1e-300))
            # white is linear: its transpose brings w / mu - b back to theta.
            back = jax.linear_transpose(lambda y: white(x, y), v)
            return back(w / mu - b)[0], mu

        return closed

    def solve(x: Array, v: Array) -> tuple[Array, Array]:
        here = h.local(x)
        return _conjugate(lambda p: h.cumulant(here, p), v, h.dim)

    # Lanes in step would all wait for the slowest: with many examples each point is solved alone.
    return jax.custom_batching.sequential_vmap(solve) if h.heavy else solve


def _conjugate(cumulant: Callable[[Array], Array], v: Array, dim: int) -> tuple[Array, Array]:
    """Maximise theta . v over the convex set {H <= 0}: (theta, mu).

    Each step replaces H by its quadratic model at theta, whose set is an ellipsoid with the
    diffusion's closed form. Where that does not converge by itself, every step is pulled back
    to H = 0 along the ray from H's minimum.
    """
    gradient, hessian = jax.grad(cumulant), jax.hessian(cumulant)
    # Bounded noise has a vanishing Hessian far out; any added multiple of the identity keeps
    # the fixed point, where the normal H_p is parallel to v.
    ridge = 1e-6 * jnp.trace(hessian(jnp.zeros(dim))) / dim * jnp.eye(dim)

    def ellipsoid(theta: Array) -> Array:
        g, hess = gradient(theta), hessian(theta) + ridge
        both = jnp.linalg.solve(hess, jnp.stack([g, v], axis=1))
        radius = jnp.maximum(g @ both[:, 0] - 2 * cumulant(theta), 0.0)
        spread = jnp.sqrt(radius / jnp.maximum(v @ both[:, 1], 1e-300))
        return theta - both[:, 0] + spread * both[:, 1]

    plain, done = _iterate(ellipsoid, jnp.zeros(dim), 12, jnp.asarray(False))
    value = lambda p: jnp.nan_to_num(cumulant(p), nan=jnp.inf)  # noqa: E731
    middle = _lowest(value, gradient, hessian, jnp.zeros(dim), done)

    def pulled(theta: Array) -> Array:
        new = _to_surface(value, middle, ellipsoid(theta) - middle)
        return jnp.where(jnp.all(jnp.isfinite(new)), new, theta)

    safe, _ = _iterate(pulled, middle, 40, done)
    theta = jnp.where(done, plain, safe)
    g = gradient(theta)
    return theta, jnp.dot(v, g) / jnp.maximum(jnp.dot(g, g), 1e-300)


def _iterate(step: Any, theta: Array, most: int, skip: Array) -> tuple[Array, Array]:
    """Repeat `step` until it moves theta no more; (theta, whether it came to rest).

    Near a zero of the drift rounding moves it for ever: small moves that no longer fall are rest.
    """

    def body(state: tuple[Array, ...]) -> tuple[Array, ...]:
        theta, _, before, k = state
        new = step(theta)
        move = jnp.linalg.norm(new - theta) / jnp.linalg.norm(new)
        done = (move <= 1e-12) | ((move <= 1e-8) & (move >= 0.1 * before))
        return new, done, move, k + 1

    def unfinished(state: tuple[Array, ...]) -> Array:
        theta, done, _, k = state
        return ~skip & ~done & (k < most) & jnp.all(jnp.isfinite(theta))

    start = (theta, jnp.asarray(False), jnp.asarray(jnp.inf), 0)
    theta, done, *_ = jax.lax.while_loop(unfinished, body, start)
    return theta, done


def _lowest(value: Any, gradient: Any, hessian: Any, p: Array, skip: Array) -> Array:
    """Minimum of a convex function by Newton's method, the best of 16 halved steps each time."""
    halves = 2.0 ** -jnp.arange(16)

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        p, _, k = state
        move = -jnp.linalg.solve(hessian(p) + 1e-14 * jnp.eye(p.shape[0]), gradient(p))
        tried = jax.vmap(lambda t: value(p + t * move))(halves)
        best = jnp.argmin(tried)
        t = jnp.where(tried[best] < value(p), halves[best], 0.0)
        return p + t * move, t * jnp.linalg.norm(move), k + 1

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        p, change, k = state
        return ~skip & (k < 60) & (change > 1e-12 * jnp.linalg.norm(p))

    return jax.lax.while_loop(unfinished, step, (p, jnp.asarray(jnp.inf), 0))[0]


def _to_surface(value: Any, middle: Array, ray: Array) -> Array:
    """The point ``middle + t ray``, t > 0, where the convex `value` is 0 (it is < 0 at middle)."""
    line = lambda t: value(middle + t * ray)  # noqa: E731

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        t, low, high, _, k = state
        f, slope = jax.value_and_grad(line)(t)
        low, high = jnp.where(f < 0, t, low), jnp.where(f < 0, high, t)
        new = t - f / slope
        inside = jnp.isfinite(new) & (new > low) & (new < high)
        halved = jnp.where(jnp.isinf(high), 2 * low + 1e-3, 0.5 * (low + high))
        new = jnp.where(inside, new, halved)
        return new, low, high, jnp.abs(new - t) <= 1e-15 * t, k + 1

    def unfinished(state: tuple[Array, ...]) -> Array:
        return ~state[3] & (state[4] < 60)

    start = (jnp.asarray(1.0), jnp.asarray(0.0), jnp.asarray(jnp.inf), jnp.asarray(False), 0)
    return middle + jax.lax.while_loop(unfinished, step, start)[0] * ray
