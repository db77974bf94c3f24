"""Exit rates over a boundary that the drift leads away from, summed over all ways to it.

Where V is flat along a boundary, no narrow Gaussian around one exit point holds the exits. From the
minimum one characteristic of H leads to each point of a boundary (``x' = H_p, p' = -H_x``); on it lie
V, the amplitude and the spreading of its neighbours, so that the flux through the whole boundary is
an integral over the directions in which characteristics leave. With the flow's Jacobian X on
``p = grad V`` the amplitude obeys ``d log K / dt = -tr H_px - tr(H_pp Q) / 2`` and
``d log det X / dt = tr H_px + tr(H_pp Q)``: what a tube of characteristics carries grows like
``sqrt(det X) exp(-int tr H_px dt / 2)``, and no Riccati equation is left.

Sources: Ludwig, "Persistence of dynamical systems under random perturbations" (SIAM Review 17, 1975);
Maier & Stein, "Limiting exit location distributions in the stochastic exit problem" (SIAM J. Appl.
Math. 57, 1997); Naeh, Klosek, Matkowsky & Schuss, SIAM J. Appl. Math. 50 (1990).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.linalg import expm

from .._jax import jax, jnp
from ..action import Hamiltonian
from ..domain import Domain
from .amplitude import inverse_covariance, log_overshoots

Array = Any
# Characteristics begin at this share of the distance out; a step is this share of the fastest time.
BEGIN, STEP = 0.02, 0.2
# Fastest over slowest rate beyond which directions at the start do not tell the ends apart.
STIFF = 6.0
# Polar and azimuthal directions in 3 dimensions, directions in 2.
POLAR, AROUND = 12, 24
# Ends whose log of the flux lies further below the largest one carry nothing.
NEGLIGIBLE = 12.0


@dataclass(frozen=True, eq=False)
class Fan:
    """Characteristics from a minimum in all directions, up to a boundary.

    Attributes
    ----------
    share
        (n,) share of each direction of the sphere: a quadrature rule, its sum the sphere's area.
    ends, momenta
        (n, d) where they meet the boundary, and grad V there.
    action, shift
        (n,) V, and V1 of ``V + eta V1`` for steps of size eta.
    log_flux
        (n,) log of the flux per direction, without ``exp(-V / eps)`` and ``(2 pi eps)^(-d/2)``.
    crossed
        (n,) whether neighbours have crossed on the way (a caustic): what it carries is an error.
    """

    share: np.ndarray
    ends: np.ndarray
    momenta: np.ndarray
    action: np.ndarray
    shift: np.ndarray
    log_flux: np.ndarray
    crossed: np.ndarray

    def log_rate(self, h: Hamiltonian, eta: float = 0.0) -> tuple[float, float]:
        """(log of the rate per unit of time, its error by the directions).

        The error is what half of the directions alone would change, and what crossed ones carry.

        `eta` is the size of SGD's steps, 0 for a diffusion.
        """
        eps = h.temperature
        logs = self.log_flux - (self.action + eta * self.shift) / eps + np.log(self.share)
        if eta:
            near = logs > logs.max() - NEGLIGIBLE
            logs = np.where(near, logs, -np.inf)
            logs[near] += log_overshoots(h, self.ends[near], self.momenta[near], eta / eps)
        area = len(self.ends[0]) / 2 * math.log(2 * math.pi * eps)
        whole = float(np.logaddexp.reduce(logs))
        # Every second meridian alone: the rule of half as many.
        half = [float(np.logaddexp.reduce(logs[k::2])) + math.log(2.0) for k in (0, 1)]
        crossed = float(np.exp(logs[self.crossed] - whole).sum())
        return whole - area, abs(half[0] - half[1]) / 2 + crossed


def fan(h: Hamiltonian, minimum: np.ndarray, domain: Domain, action: float) -> Fan | None:
    """Characteristics of H from `minimum` (d,) to the boundary of `domain`, in 2 or 3 dimensions.

    `action` is the least V on the boundary, for the scale. None where they do not cover the boundary
    one by one: a rate far above the others, or ends that are not reached (beyond a saddle, or at
    infinity). They do not depend on the temperature, and are found once for all.
    """
    if h.dim not in (2, 3):
        return None
    return _fan(h.family, h.knobs, tuple(minimum.tolist()), domain, action)


@lru_cache(maxsize=32)
def _fan(
    family: Any, knobs: tuple[float, ...], at: tuple[float, ...], domain: Domain, action: float
) -> Fan | None:
    h, minimum = family(*knobs), np.array(at)
    d = h.dim
    q = inverse_covariance(h, minimum)
    outwards = np.asarray(jax.jacfwd(h.drift)(jnp.asarray(minimum))) + (
        np.asarray(h.tensor(jnp.asarray(minimum))) @ q
    )
    rates = np.linalg.eigvals(outwards)
    slowest, fastest = float(rates.real.min()), float(np.abs(rates).max())
    if slowest <= 0 or fastest > STIFF * slowest:
        return None
    # In the coordinates z, x = minimum + root z, V is |z|^2 / 2 near the minimum.
    root = np.linalg.cholesky(np.linalg.inv(q))
    growth = np.linalg.solve(root, outwards @ root)
    ahead = -math.log(BEGIN) / slowest
    directions, share = _directions(d)
    radius = math.sqrt(2 * action)
    starts = radius * directions @ expm(-growth * ahead).T @ root.T
    run = _run(family, domain)
    dt, most = STEP / fastest, math.ceil(3 * ahead * fastest / STEP)
    fixed = jnp.asarray(minimum), jnp.asarray(q), dt, most
    rows = [run(knobs, jnp.asarray(s), *fixed) for s in starts]
    out = np.array([np.asarray(r) for r in rows])
    ends, momenta, found, spread, pace = np.split(out, [d, 2 * d, 2 * d + 3, 2 * d + 4], axis=1)
    flow = np.einsum("ni,ij,nj->n", directions, growth, directions)
    if not np.isfinite(out).all() or flow.min() <= 0:
        return None
    crossed = (spread[:, 0] <= 0) | (pace[:, 0] <= 0)
    log_flux = d * math.log(radius) - ahead * float(np.trace(growth)) + np.log(flow)
    log_flux = log_flux + 0.5 * np.log(np.abs(spread[:, 0])) - 0.5 * found[:, 1]
    return Fan(share, ends, momenta, found[:, 0], found[:, 2], log_flux, crossed)


def _directions(d: int) -> tuple[np.ndarray, np.ndarray]:
    """Directions (n, d) and their shares (n,): evenly around, by Gauss-Legendre from pole to pole."""
    if d == 2:
        angle = math.pi * np.arange(2 * AROUND) / AROUND
        return np.stack([np.cos(angle), np.sin(angle)], axis=1), np.full(
            2 * AROUND, math.pi / AROUND
        )
    heights, weights = np.polynomial.legendre.leggauss(POLAR)
    angle = 2 * math.pi * np.arange(AROUND) / AROUND
    z, phi = (a.ravel() for a in np.meshgrid(heights, angle, indexing="ij"))
    flat = np.sqrt(1 - z * z)
    rule = np.repeat(weights, AROUND) * 2 * math.pi / AROUND
    return np.stack([flat * np.cos(phi), flat * np.sin(phi), z], axis=1), rule


@lru_cache(maxsize=16)
def _run(family: Any, domain: Domain) -> Any:
    """Compiled ``(knobs, start less minimum, minimum, V'' there, dt, most steps) -> row``.

    The row: end (d), momentum (d), V, int tr H_px dt, V1, det X, and the speed through the boundary;
    NaN where the boundary is not reached. One characteristic at a time: a step may sum over all
    examples, whose arrays then stay small.
    """
    level = domain.level
    assert level is not None

    @jax.jit
    def run(knobs: Any, gap: Array, minimum: Array, q: Array, dt: Array, most: Array) -> Array:
        h, d = family(*knobs), len(minimum)
        by_p = jax.grad(h.value, argnums=1)
        step = _stepper(h)
        begin = [minimum + gap, q @ gap, jnp.stack([0.5 * gap @ q @ gap, 0.0, 0.0])]
        first = jnp.concatenate([*begin, jnp.eye(d).ravel(), q.ravel()])
        going = lambda c: (level(c[0][:d]) < 0) & (c[2] < most)  # noqa: E731
        last, before, _ = jax.lax.while_loop(
            going, lambda c: (step(c[0], dt), c[0], c[2] + 1), (first, first, 0)
        )

        def pace(z: Array) -> Array:
            return jax.grad(level)(z[:d]) @ by_p(z[:d], z[d : 2 * d])

        def closer(_: Any, t: Array) -> Array:
            z = step(before, t)
            return t - level(z[:d]) / pace(z)

        end = step(before, jax.lax.fori_loop(0, 4, closer, 0.5 * dt))
        spread = jnp.linalg.det(end[2 * d + 3 : 2 * d + 3 + d * d].reshape(d, d))
        row = jnp.concatenate([end[: 2 * d + 3], jnp.stack([spread, pace(end)])])
        return jnp.where(level(last[:d]) >= 0, row, jnp.nan)

    return run


def _stepper(h: Hamiltonian) -> Any:
    """Runge-Kutta step of order 4 of (x, p, V, int tr H_px dt, V1, X and P (d, d))."""
    d = h.dim
    by_x, by_p = jax.grad(h.value, argnums=0), jax.grad(h.value, argnums=1)

    def motion(z: Array) -> Array:
        return jnp.concatenate([by_p(z[:d], z[d:]), -by_x(z[:d], z[d:])])

    def rates(state: Array) -> Array:
        z, near = state[: 2 * d], state[2 * d + 3 :].reshape(2 * d, d)
        change, table = motion(z), jax.jacfwd(motion)(z)
        mixed = jnp.trace(table[:d, :d])
        sums = jnp.stack([z[d:] @ change[:d], mixed, -0.5 * change[:d] @ change[d:]])
        return jnp.concatenate([change, sums, (table @ near).ravel()])

    def step(state: Array, dt: Array) -> Array:
        a = rates(state)
        b = rates(state + 0.5 * dt * a)
        c = rates(state + 0.5 * dt * b)
        return state + dt / 6 * (a + 2 * b + 2 * c + rates(state + dt * c))

    return step
