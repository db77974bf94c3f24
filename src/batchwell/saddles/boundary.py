"""What noise does where a path off a saddle meets the boundary: a constant of the mean exit time.

The time T(q) that the noiseless motion takes from q to the boundary changes by ``T'' : C / 2`` at
the exit point, C what noise has spread the path to there: the stationary covariance of the stable
coordinates, minus that of the seed for the unstable ones, whose noise to come has been counted in the
seed (Dynkin's formula along the way out). For one direction alone ``-N / (4 lambda^2 L^2)``.
Overshoot of the chain: Siegmund, "Sequential Analysis" (1985), ch. 8.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._jax import jax, jnp
from ..domain import Domain
from .index import Unstable, exit_times, net_of_seeds

Floats = NDArray[np.float64]
LOG2_HELD = 7  # of points that stand for the stable spread
UNSTABLE = 1e-12


@dataclass(frozen=True, eq=False)
class Linearised:
    """A process linearised at a saddle.

    Attributes
    ----------
    jacobian, noise
        (d, d), of the drift and per unit of time.
    part
        Its unstable directions.
    seed
        (k, k) covariance of their seed.
    learning_rate, chain
        Length of an SGD step; whether the process moves by such steps.
    pace
        Growth per step over the drift's: ``log(1 + eta lambda) / (eta lambda)`` of the chain.
    """

    jacobian: Floats
    noise: Floats
    part: Unstable
    seed: Floats
    learning_rate: float
    chain: bool
    pace: float


def spread(linear: Linearised, steps: float) -> tuple[Floats, Floats]:
    """(C (d, d) after about `steps` SGD steps, its block of the stable coordinates)."""
    eta = linear.learning_rate
    rates, right = np.linalg.eig(linear.jacobian)
    back = np.linalg.inv(right)
    noise = back @ linear.noise @ back.T
    grown = 1 + eta * rates if linear.chain else np.exp(eta * rates)
    product = np.outer(grown, grown)
    gone = 1 - product if linear.chain else -eta * np.add.outer(rates, rates)
    still = np.abs(gone) < 1e-9
    unstable = rates.real > UNSTABLE
    both = np.outer(unstable, unstable)
    power = np.where(both, 1.0, product) ** steps
    since = np.where(
        still, eta * steps * noise, eta * noise * (1 - power) / np.where(still, 1.0, gone)
    )
    since = np.where(both, 0.0, since)
    stable = np.where(np.outer(~unstable, ~unstable), since, 0.0)
    mixed, held = ((right @ c @ right.T).real for c in (since, stable))
    basis = linear.part.basis
    whole = mixed - basis @ linear.seed @ basis.T
    return 0.5 * (whole + whole.T), 0.5 * (held + held.T)


def noise_steps(
    linear: Linearised, drift: Any, x: Floats, points: Floats, domain: Domain, steps: float
) -> tuple[Floats, float]:
    """(SGD steps (m,) that noise adds to exits at `points` (m, d), share of spreads outside).

    A stable coordinate is held while the path leaves, as fresh noise keeps it up: its effect is averaged
    over its law, however wide, and only the rest is of second order in C. Along a single unstable
    direction the seed's part is ``-s^2 log g / (2 v^2)``, v the speed per step there: it
    holds for a drift that is not linear too.
    """
    covariance, held = spread(linear, steps)
    part, single = linear.part, linear.part.basis.shape[1] == 1
    unstable = linear.pace * (part.basis @ part.dual @ linear.jacobian)
    jacobian = jnp.asarray(linear.jacobian)
    moving = drift if single else lambda p: jacobian @ (p - x)
    along = part.basis @ linear.seed @ part.basis.T
    log_growth = linear.pace * float(np.trace(part.flow)) if single else 0.0
    out = []
    local = jax.jit(jax.vmap(lambda p: _at(domain.level, lambda q: linear.pace * moving(q), p)))
    for p, n, bend, b, slope in zip(points, *map(np.asarray, local(points)), strict=True):
        tensor = covariance + along if single else covariance
        second = _half_curvature(n, bend, b, slope.T @ n, n @ slope @ b, tensor)
        straight = unstable @ (p - x)
        second -= _half_curvature(n, bend, straight, 0 * n, n @ unstable @ straight, held)
        out.append(second - 0.5 * log_growth * float(n @ along @ n) / float(n @ b) ** 2)
    times, outside = _held(replace(part, flow=linear.pace * part.flow), points, x, domain, held)
    return (np.array(out) + times) / linear.learning_rate, outside


def _at(level: Any, drift: Any, p: Any) -> Any:
    return jax.grad(level)(p), jax.hessian(level)(p), drift(p), jax.jacfwd(drift)(p)


def _half_curvature(
    n: Floats, bend: Floats, b: Floats, tilt: Floats, turn: float, c: Floats
) -> float:
    """``T'' : C / 2`` at a boundary of slope n (d,) and Hessian `bend` met at velocity b (d,).

    By implicit differentiation of level(motion) = 0; `tilt` is J^T n, `turn` n . J b.
    """
    v = float(n @ b)
    across, along = c @ n, tilt + bend @ b
    total = np.sum(bend * c) - 2 / v * along @ across + (b @ bend @ b + turn) / v**2 * n @ across
    return -float(total) / (2 * v)


def _held(
    part: Unstable, points: Floats, x: Floats, domain: Domain, covariance: Floats
) -> tuple[Floats, float]:
    """(mean time (m,) to the boundary from `points` displaced by the stable spread, share outside)."""
    sizes, axes = np.linalg.eigh(covariance)
    wide = sizes > 1e-14 * max(float(np.trace(covariance)), 1e-300)
    if not wide.any():
        return np.zeros(len(points)), 0.0
    count = int(wide.sum())
    net = net_of_seeds(np.diag(sizes[wide]), np.zeros(count), LOG2_HELD - 1)
    moved = np.concatenate([net, -net]) @ axes[:, wide].T
    values, vectors = np.linalg.eig(part.flow)
    back = 3.0 / float(values.real.min())
    shrink = (vectors @ np.diag(np.exp(-values * back)) @ np.linalg.inv(vectors)).real
    z = (points - x) @ part.dual.T
    rest = points - z @ part.basis.T
    origins = (rest[:, None] + moved).reshape(-1, len(x))
    inside = domain.contains(origins)
    seeds = np.repeat(z @ shrink.T, len(moved), axis=0)
    times, _ = exit_times(part.flow, part.basis, seeds, origins, domain)
    good = inside & np.isfinite(times)
    weights = good.reshape(len(points), -1)
    times = np.where(good, times - back, 0.0).reshape(len(points), -1)
    return times.sum(axis=1) / np.maximum(weights.sum(axis=1), 1), 1 - float(good.mean())


def overshoot_steps(
    drift: Any, tensor: Any, points: Floats, domain: Domain, learning_rate: float
) -> Floats:
    """SGD steps (m,) by which the chain's overshoot delays what leaves at `points` (m, d)."""
    level: Any = domain.level

    def one(p: Any) -> Any:
        n = jax.grad(level)(p)
        return n @ drift(p), n @ tensor(p) @ n

    speeds, noise = map(np.asarray, jax.jit(jax.vmap(one))(jnp.asarray(points)))
    sizes = np.sqrt(np.maximum(learning_rate * noise, 1e-300))
    paces = learning_rate * np.maximum(speeds, 1e-3 * np.abs(speeds).max()) / sizes
    return np.array([mean_overshoot(p) / p for p in paces])


def mean_overshoot(pace: float) -> float:
    """Mean limiting overshoot of a random walk with N(pace, 1) steps over a far level.

    ``(1 + pace^2) / (2 pace) - sum_n E max(-S_n, 0) / n``.

    Examples
    --------
    >>> round(mean_overshoot(1e-4), 3)  # -zeta(1/2) / sqrt(2 pi) for a driftless walk
    0.583
    """
    from scipy.stats import norm

    if pace < 1e-2:  # the sum converges too slowly; its expansion (Siegmund 1985, 10.37)
        return 0.5825971579390107 + pace / 4
    if pace > 8:
        return (1 + pace**2) / (2 * pace)
    n = np.arange(1.0, 4 + (9 / pace) ** 2)
    mean, std = n * pace, np.sqrt(n)
    below = std * norm.pdf(mean / std) - mean * norm.sf(mean / std)
    return float((1 + pace**2) / (2 * pace) - np.sum(below / n))
