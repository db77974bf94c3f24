"""Local escape exponents along rays out of a minimum, of SGD and of its Gaussian surrogate."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from .._jax import jax
from ..domain import Domain
from ..dynamics import SGD
from ..errors import require
from ..loss import StochasticLoss
from ..streams import generator as keyed_generator
from .linear import Linear

Floats = NDArray[np.float64]

RAYS = 16
RAY_POINTS = 12
POINTS = 64  # differentiated at a time


def rays_out(
    sgd: SGD, region: Any, centre: Floats, linear: Linear, seed: int
) -> tuple[Floats, tuple[str, ...]]:
    """Points (rays, k, d) from the minimum outwards, equally spaced on each ray."""
    d = len(centre)
    rng = keyed_generator(seed, "validity-rays")
    ends = [linear.vectors[:, 0], linear.vectors[:, -1]]
    noisy = np.linalg.eigh(linear.vectors @ linear.noise @ linear.vectors.T)[1][:, -1]
    random = rng.standard_normal((RAYS, d)) if d > 1 else np.empty((0, 1))
    directions = np.array([*ends, noisy, *random])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    directions = np.concatenate([directions, -directions])
    if d == 1:
        directions = np.array([[1.0], [-1.0]])
    if has_boundary(region):
        length = np.array([_distance(region, centre, v) for v in directions])
        directions, length = directions[np.isfinite(length)], length[np.isfinite(length)]
        notes: tuple[str, ...] = ()
    else:
        frozen = linear.lyapunov(linear.eta * linear.factor * linear.noise)
        spread = linear.vectors @ frozen @ linear.vectors.T
        # Radius of four standard deviations in each direction.
        inverse = np.linalg.pinv(spread, rcond=1e-10, hermitian=True)
        inner = np.einsum("ri,ij,rj->r", directions, inverse, directions)
        length = 4 / np.sqrt(np.maximum(inner, 1e-12))
        notes = (
            "no boundary was given: escapes are judged within four standard deviations "
            "of the stationary law",
        )
    # Midpoints: the exponent is an integral along the ray by the midpoint rule.
    s = (np.arange(RAY_POINTS * (8 if d == 1 else 1)) + 0.5) / (RAY_POINTS * (8 if d == 1 else 1))
    return centre + length[:, None, None] * s[:, None] * directions[:, None, :], notes


def has_boundary(region: Any) -> bool:
    """Whether rays can be followed to a boundary (a basin's is known only by quenches)."""
    return isinstance(region, Domain) and not region.needs_quench


def _distance(domain: Domain, centre: Floats, v: Floats) -> float:
    """Distance from the minimum to the boundary along v, infinite beyond 1e3."""
    require(bool(domain.contains(centre)), "minimum", centre, f"must lie in the {domain.name}")
    s = np.concatenate([np.linspace(0, 10, 1001), np.logspace(1, 3, 201)])
    outside = np.flatnonzero(~domain.contains(centre + s[:, None] * v))
    if not outside.size:
        return math.inf
    low, high = s[outside[0] - 1], s[outside[0]]
    for _ in range(3):
        t = np.linspace(low, high, 65)
        k = int(np.flatnonzero(~domain.contains(centre + t[:, None] * v))[0])
        low, high = t[k - 1], t[k]
    return float((low + high) / 2)


def escape_numbers(sgd: SGD, rays: Floats) -> dict[str, float]:
    """Local exponents of chain and diffusion along the rays, and the noise's shape there."""
    if not len(rays):
        return {}
    loss = sgd.loss
    flat = rays.reshape(-1, loss.dim)
    ahead = rays[:, -1] - rays[:, 0]
    length = np.linalg.norm(ahead, axis=1, keepdims=True)
    unit = np.repeat(ahead / length, rays.shape[1], axis=0)
    g = np.concatenate(
        [
            _slopes(loss, flat[i : i + POINTS], unit[i : i + POINTS])
            for i in range(0, len(unit), POINTS)
        ]
    )
    w = np.asarray(loss.weights)
    mean = g @ w
    c = g - mean[:, None]
    variance = np.maximum((c * c) @ w, 1e-300)
    chain = np.array([_momentum(row, w) for row in g])
    flow = np.maximum(2 * mean / variance, 0.0)
    shape = (len(rays), rays.shape[1])
    step = length[:, 0] / (rays.shape[1] - 1)
    total_chain = chain.reshape(shape).sum(axis=1) * step
    total_flow = flow.reshape(shape).sum(axis=1) * step
    best = float(total_chain.min() / total_flow.min()) if total_flow.min() > 0 else math.nan
    skew, kurtosis = _shape_of_noise(loss, c, w, variance)
    return {
        "exponent_ratio": best,
        "blocked_rays": float(np.mean(np.isinf(total_chain))),
        "gradient_over_noise": float(np.max(np.abs(mean) / np.sqrt(variance))),
        "skewness": skew,
        "excess_kurtosis": kurtosis,
    }


def _slopes(loss: StochasticLoss, points: Floats, directions: Floats) -> Floats:
    """Slope of each example along `directions` (k, d), k at most `POINTS`: (k, m)."""
    # Filled up, so that one compilation serves all.
    rows = np.minimum(np.arange(POINTS), len(directions) - 1)
    return np.asarray(_compiled_slopes(loss)(points[rows], directions[rows]))[: len(directions)]


@lru_cache(maxsize=32)
def _compiled_slopes(loss: StochasticLoss) -> Callable[..., Any]:
    return jax.jit(jax.vmap(lambda x, v: loss.example_gradients(x) @ v))


def _shape_of_noise(loss: Any, c: Floats, w: Floats, variance: Floats) -> tuple[float, float]:
    law = loss.noise
    if law is not None and (not math.isfinite(law.kurtosis) or not math.isfinite(law.skewness)):
        return float(law.skewness), math.inf
    skew = (c**3 @ w) / variance**1.5
    excess = (c**4 @ w) / variance**2 - 3
    return (float(skew[np.argmax(np.abs(skew))]), float(excess[np.argmax(np.abs(excess))]))


def _momentum(g: Floats, w: Floats) -> float:
    """The positive root p of log E exp(-p g) = 0: local exponent per unit of length.

    0 where the gradient pulls outwards, infinite where no example pushes outwards.
    """
    mean = float(g @ w)
    if mean <= 0:
        return 0.0
    if g.min() >= 0:
        return math.inf

    def cumulant(p: float) -> float:
        top = -p * g
        peak = top.max()
        return float(peak + np.log(np.sum(w * np.exp(top - peak))))

    high = 2 * mean / max(float((g - mean) ** 2 @ w), 1e-300)
    while cumulant(high) < 0:
        high *= 2
    low = high / 2
    while cumulant(low) > 0:
        low /= 2
    return float(brentq(cumulant, low, high, xtol=1e-14, rtol=1e-12))
