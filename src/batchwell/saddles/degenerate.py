"""Saddles without noise along their unstable direction: what leaves them all the same.

To second order the stable coordinates, which do have noise, push: by the curvature of the drift and by
noise that grows away from the saddle. Where that vanishes too only rounding is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .._jax import jax, jnp
from ..errors import InputError, RunError

Array = Any
# Below this size of the unstable noise, relative to the whole, it counts as none.
NO_NOISE = 1e-24


def second_order_seed(
    drift: Callable[[Array], Array],
    tensor: Callable[[Array], Array],
    x: np.ndarray,
    left: np.ndarray,
    rate: float,
) -> tuple[float, float]:
    """(mean, variance) of the unstable coordinate's seed from second-order noise at x (d,).

    With C the covariance of the stable coordinates y and ``Q = left . b''``: the seed is
    ``int e^{-rate t} (y.Q y / 2 + noise) dt``, its mean ``tr(Q C) / (2 rate)``, its variance that of
    the noise ``left . Sigma left`` averaged over y, over ``2 rate``, and that of the push.
    """
    from scipy.integrate import quad_vec
    from scipy.linalg import expm

    point = jnp.asarray(x)
    jacobian = np.asarray(jax.jacfwd(drift)(point))
    stable = _onto_stable(jacobian)
    size = np.asarray(tensor(point))
    held = jacobian @ stable
    still = stable @ size @ stable.T

    def spread(t: float) -> np.ndarray:
        e = expm(held * t) @ stable
        return np.asarray(e @ still @ e.T)

    slowest = _slowest(jacobian)
    if not math.isfinite(slowest):
        return 0.0, 0.0
    covariance = quad_vec(spread, 0.0, 40.0 / slowest, epsrel=1e-6)[0]
    curved = np.asarray(jax.hessian(lambda y: jnp.dot(left, drift(y)))(point))
    noise = np.asarray(jax.hessian(lambda y: left @ tensor(y) @ left)(point))

    def memory(t: float) -> float:
        moved = curved @ expm(held * t) @ stable @ covariance
        return 0.5 * math.exp(-rate * t) * float(np.trace(moved @ moved))

    pushed = float(quad_vec(memory, 0.0, 40.0 / (rate + slowest), epsrel=1e-6)[0]) / rate
    mean = 0.5 * float(np.sum(curved * covariance)) / rate
    return mean, pushed + max(0.25 * float(np.sum(noise * covariance)) / rate, 0.0)


def _onto_stable(jacobian: np.ndarray) -> np.ndarray:
    """Projection (d, d) onto the stable directions along the others."""
    rates, right = np.linalg.eig(jacobian)
    keep = np.diag((rates.real < 0).astype(float))
    return np.asarray((right @ keep @ np.linalg.inv(right)).real)


def _slowest(jacobian: np.ndarray) -> float:
    rates = -np.linalg.eigvals(jacobian).real
    return float(rates[rates > 0].min()) if np.any(rates > 0) else math.inf


def refuse(x: np.ndarray, offset: float, length: float, log_growth: float) -> None:
    """Raise for a saddle that nothing pushes off: with the time of an off-centre start or of rounding.

    `offset` and `length` are measured along the unstable direction.
    """
    if offset:
        steps = math.log(length / abs(offset)) / log_growth
        raise InputError(
            "process",
            "no noise along the unstable direction",
            "must have some: this off-centre start follows the noiseless flow and leaves after about "
            f"{max(steps, 0.0):.4g} steps",
        )
    rounding = 2.0**-53 * max(float(np.abs(x).max()), 1e-8)
    raise RunError(
        "degenerate saddle: no noise along the unstable direction to first or second order; rounding "
        f"({rounding:.2g}) would need about {math.log(length / rounding) / log_growth:.3g} steps"
    )
