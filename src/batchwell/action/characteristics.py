"""Extremals in the plane by Hamilton's equations: the route for noise that leaves out a direction.

Where Sigma is singular the action of almost every curve is infinite and nothing can be minimised over
curves; Hamilton's equations have no such trouble. All extremals out of a stable zero of the drift
leave it on the manifold ``p = C^-1 (x - x0)``, C the stationary covariance, which is invertible where
the drift carries the noise everywhere (underdamped Langevin). In the plane they are a family of one
angle: all are followed at once, and those that pass through the end are refined. Day & Darden,
Appl. Math. Optim. 13 (1985); Freidlin & Wentzell, "Random Perturbations", ch. 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.linalg import expm, solve_continuous_lyapunov

from .._jax import jax, jnp
from ..domain import Domain
from .frame import turns
from .hamiltonian import Hamiltonian

ANGLES = 96
# Distance from the zero at which extremals begin, and to the end at which they count as there.
NEAR, THERE = 1e-3, 1e-2
# Followed for so many of the slowest and of the fastest times of the zero: from NEAR to the end, and
# slowly past a saddle; in steps of the fastest over FINE.
SLOWEST, FASTEST, FINE = 10.0, 40.0, 25
ROUNDS, MOST = 6, 6


@dataclass(frozen=True)
class Characteristic:
    """An extremal: times (k,), points (k, 2), momenta (k, 2), its action, and how near it came."""

    times: np.ndarray
    points: np.ndarray
    theta: np.ndarray
    action: float
    gap: float


@dataclass(frozen=True)
class _Family:
    """Extremals out of x0 by their angle; states are (x, p, S, t)."""

    x0: np.ndarray
    root: np.ndarray  # C = root root^T
    growth: np.ndarray  # x' = growth (x - x0) near x0
    size: float  # Q-norm of the start
    flow: Callable[[np.ndarray], np.ndarray]

    def begin(self, angles: np.ndarray) -> np.ndarray:
        round_ = np.stack([np.cos(angles), np.sin(angles)])
        p = np.linalg.solve(self.root.T, self.size * round_)
        spent = np.full((1, len(angles)), 0.5 * self.size**2)
        start = self.x0[:, None] + self.size * self.root @ round_
        return np.concatenate([start, p, spent, np.zeros((1, len(angles)))])

    def follow(self, angles: np.ndarray) -> np.ndarray:
        """States (k, 6, angles) along the extremals."""
        return np.asarray(self.flow(self.begin(angles)))


@lru_cache(maxsize=32)
def _compiled(h: Hamiltonian, at: tuple[float, ...], reach: float, step: float, steps: int) -> Any:
    x0 = jnp.asarray(at)

    def one(state: Any) -> Any:
        x, p = state[:2], state[2:4]
        hx, hp = jax.grad(h.value, argnums=(0, 1))(x, p)
        # Slower far away, where extremals may run to infinity in finite time: the curve is the same.
        slow = 1 + jnp.sum((x - x0) ** 2) ** 2 / (3 * reach) ** 4
        return jnp.concatenate([hp, -hx, jnp.dot(p, hp)[None], jnp.ones(1)]) / slow

    rates = jax.vmap(one, in_axes=1, out_axes=1)

    def classic(y: Any, _: None) -> tuple[Any, Any]:  # Runge-Kutta of order 4
        a = rates(y)
        b = rates(y + 0.5 * step * a)
        c = rates(y + 0.5 * step * b)
        d = rates(y + step * c)
        new = y + step / 6 * (a + 2 * b + 2 * c + d)
        return new, y

    return jax.jit(lambda start: jax.lax.scan(classic, start, None, length=steps)[1])


def _family(h: Hamiltonian, x0: np.ndarray, reach: float) -> _Family | None:
    """None where x0 is no stable zero, or the drift does not carry the noise everywhere."""
    slope = np.asarray(jax.jacfwd(h.drift)(jnp.asarray(x0)))
    sigma = np.asarray(h.tensor(jnp.asarray(x0)))
    rates = np.linalg.eigvals(slope)
    slowest, fastest = -float(rates.real.max()), float(np.abs(rates).max())
    if not turns(slope) or np.linalg.norm(h.drift(jnp.asarray(x0))) > 1e-6:
        return None
    c = solve_continuous_lyapunov(slope, -sigma)
    if np.linalg.cond(c) > 1e10:
        return None
    size = NEAR * reach / math.sqrt(float(np.linalg.eigvalsh(c)[-1]))
    growth = slope + sigma @ np.linalg.inv(c)
    steps = math.ceil(FINE * (SLOWEST * fastest / slowest + FASTEST))
    flow = _compiled(h, tuple(x0.tolist()), reach, 1 / (FINE * fastest), steps)
    return _Family(x0, np.linalg.cholesky(c), growth, size, flow)


def characteristics(
    h: Hamiltonian, x0: np.ndarray, end: np.ndarray | Domain
) -> list[Characteristic]:
    """Extremals from x0 (2,) to a point, or to the cheapest points of a domain's boundary.

    Least action first; empty where the method does not apply or nothing passes the end. The zero must
    be a focus: out of a node all but one angle follow the fast direction, too few to be refined.
    """
    targets = end if isinstance(end, Domain) else np.asarray(end)
    reach = _reach(x0, targets)
    family = _family(h, x0, reach)
    if family is None:
        return []
    measure = _crossing(targets) if isinstance(targets, Domain) else _passing(targets)
    angles = 2 * math.pi * np.arange(ANGLES) / ANGLES
    costs = _costs(family, measure, angles)
    least = np.flatnonzero((costs <= np.roll(costs, 1)) & (costs < np.roll(costs, -1)))
    # Those that come nearest: the others pass by.
    least = least[np.argsort(costs[least])][:MOST]
    found = [_refined(family, measure, angles[k]) for k in least]
    return sorted((f for f in found if f.gap < THERE * reach), key=lambda f: f.action)


def _costs(family: _Family, measure: Any, angles: np.ndarray) -> np.ndarray:
    states = family.follow(angles)
    return np.array([measure(states[:, :, k])[0] for k in range(len(angles))])


def _refined(family: _Family, measure: Any, angle: float) -> Characteristic:
    """The least of the extremals within one step of `angle`, by finer and finer steps."""
    wide = 2 * math.pi / ANGLES
    for _ in range(ROUNDS):
        angles = angle + wide * np.linspace(-1, 1, ANGLES)
        angle = float(angles[np.argmin(_costs(family, measure, angles))])
        wide *= 4 / ANGLES
    curve = family.follow(np.full(ANGLES, angle))[:, :, 0]
    _, last, action, gap = measure(curve)
    curve = curve[: last + 1]
    times, points, theta = _linear(family, curve[0, :2] - family.x0)
    return Characteristic(
        np.concatenate([times, curve[:, 5]]),
        np.concatenate([points, curve[:, :2]]),
        np.concatenate([theta, curve[:, 2:4]]),
        action,
        gap,
    )


def _linear(family: _Family, start: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times < 0, points and momenta of the way from x0 to the family's beginning."""
    slowest = float(np.linalg.eigvals(family.growth).real.min())
    times = np.linspace(-7.0 / slowest, 0.0, 400)[:-1]
    steps = np.asarray(expm(times[:, None, None] * family.growth)) @ start
    precision = np.linalg.inv(family.root @ family.root.T)
    return times, family.x0 + steps, steps @ precision


def _reach(x0: np.ndarray, end: np.ndarray | Domain) -> float:
    if not isinstance(end, Domain):
        return float(np.linalg.norm(end - x0))
    from .fixed_points import rays

    hits = rays(x0, end, np.vstack([np.eye(2), -np.eye(2)]))
    return float(min(np.linalg.norm(p - x0) for p in hits)) if len(hits) else 1.0


def _passing(x1: np.ndarray) -> Any:
    """Nearest approach to the point x1: (distance, index, action there carried to x1, distance)."""

    def measure(states: np.ndarray) -> tuple[float, int, float, float]:
        gaps = np.nan_to_num(np.linalg.norm(states[:, :2] - x1, axis=1), nan=np.inf)
        k = int(np.argmin(gaps))
        action = float(states[k, 4] + states[k, 2:4] @ (x1 - states[k, :2]))
        return float(gaps[k]), k, action, float(gaps[k])

    return measure


def _crossing(domain: Domain) -> Any:
    """First way out of the domain: (action there, index, action, 0); inf where it stays inside."""
    assert domain.level is not None
    inside = jax.jit(jax.vmap(domain.level))

    def measure(states: np.ndarray) -> tuple[float, int, float, float]:
        levels = np.asarray(inside(jnp.asarray(states[:, :2])))
        out = np.flatnonzero(levels >= 0)
        if not out.size or out[0] == 0:
            return math.inf, 0, math.inf, math.inf
        k = int(out[0])
        share = levels[k - 1] / (levels[k - 1] - levels[k])
        action = float(states[k - 1, 4] + share * (states[k, 4] - states[k - 1, 4]))
        return action, k, action, 0.0

    return measure
