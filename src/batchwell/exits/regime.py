"""What every exit method asks first: whether the start is inside, and what lies at the bottom."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._jax import jax, jnp
from ..domain import Domain
from ..dynamics import SGD, Diffusion, Process, dimension
from ..errors import InputError, require, whole
from ..loss import StochasticLoss
from ..points import point

Array = Any


def drift_of(process: Process) -> Any:
    """``drift(x)``, per unit of time: of a diffusion its own, of SGD minus the mean gradient.

    Momentum divides it by 1 - mu, as in the diffusion approximation.
    """
    if isinstance(process, Diffusion):
        return process.drift
    gain = 1.0 / (1.0 - process.momentum)
    return lambda x: -gain * process.loss.gradient(x)


def drift_jacobian(process: Process, x: ArrayLike) -> np.ndarray:
    """Jacobian (d, d) of `drift_of` at x (d,)."""
    point = jnp.asarray(x)
    if isinstance(process, Diffusion):
        return np.asarray(jax.jacfwd(process.drift)(point))
    return np.asarray(_hessian(process.loss)(point)) / (process.momentum - 1.0)


@lru_cache(maxsize=32)
def _hessian(loss: StochasticLoss) -> Any:
    # Asked for at every basin and batch size: traced once, not each time.
    return jax.jit(loss.hessian)


def temperature_of(process: Process) -> float:
    """Temperature eps = eta/B (with the finite-population factor); 1 for a process of its own."""
    if isinstance(process, SGD):
        return process.temperature
    return process.sgd.temperature if process.sgd is not None else 1.0


def check_start(process: Process, start: ArrayLike, domain: Domain) -> np.ndarray:
    """`start` as an array (d,) inside `domain`.

    Raises
    ------
    InputError
        Wrong shape, not finite, domain of another dimension, or a start outside of it.
    """
    dim = dimension(process)
    x = point("start", start, dim)
    require(isinstance(domain, Domain), "domain", domain, "must be a Domain, such as ball or box")
    require(domain.dim == dim, "domain", f"dimension {domain.dim}", f"must have dimension {dim}")
    require(bool(domain.contains(x)), "start", x, f"must lie inside the domain ({domain.name})")
    return x


def check_level(domain: Domain) -> None:
    """Refuse a domain that only quenches can tell.

    Raises
    ------
    InputError
        It has no level function.
    """
    if domain.level is None:
        raise InputError("domain", domain.name, "must have a level function here")


def attractor(process: Process, start: ArrayLike, domain: Domain) -> np.ndarray:
    """The stable zero of the drift that the noiseless flow from `start` ends in: (d,).

    Raises
    ------
    InputError
        The flow leaves the domain (says where), or ends at no stable point (says the drift's norm).
    """
    x = check_start(process, start, domain)
    inside, end = flow(process, x, domain)
    if not inside:
        raise InputError(
            "start",
            x,
            "the noiseless flow from it leaves the domain near "
            f"{end}: there is no barrier to overcome",
        )
    drift = drift_of(process)
    point = _newton(drift, end)
    jacobian = np.asarray(jax.jacfwd(drift)(jnp.asarray(point)))
    growth = float(np.linalg.eigvals(jacobian).real.max())
    size = float(np.linalg.norm(np.asarray(drift(jnp.asarray(point)))))
    if growth < 0 and size < 1e-6:
        return point
    here = float(np.linalg.norm(np.asarray(drift(jnp.asarray(x)))))
    raise InputError(
        "start",
        x,
        f"flows to no stable minimum: |drift| = {here:.3g} at the start, {size:.3g} at "
        f"{np.array2string(point, precision=6)} with largest growth rate {growth:.3g}"
        + _offer(process, point, domain),
    )


def _offer(process: Process, point: np.ndarray, domain: Domain) -> str:
    """The minimum that the flow reaches from beside a point at rest, in words."""
    drift = drift_of(process)
    values, vectors = np.linalg.eig(np.asarray(jax.jacfwd(drift)(jnp.asarray(point))))
    push = vectors[:, int(np.argmax(values.real))].real
    push = 1e-3 * (1 + np.linalg.norm(point)) * push / np.linalg.norm(push)
    for sign in (1.0, -1.0):
        beside = point + sign * push
        if not bool(domain.contains(beside)):
            continue
        inside, end = flow(process, beside, domain)
        near = _newton(drift, end) if inside else end
        rates = np.linalg.eigvals(np.asarray(jax.jacfwd(drift)(jnp.asarray(near)))).real
        if inside and rates.max() < 0:
            return f"; the nearest minimum is at {np.array2string(near, precision=6)}"
    return (
        "; no minimum was found in the domain near it: a saddle is left by `saddle_exit`"
        if values.real.max() > 0
        else "; no minimum was found in the domain near it"
    )


# Longest step of a diffusion's scheme, in units of its fastest relaxation time.
FINE_STEP = 0.1


def substeps_of(process: Process, x: np.ndarray, least: int, given: int | None) -> int:
    """`given`, or enough substeps per SGD step for the rates of the drift at x (d,), `least` at least."""
    if given is not None:
        return whole("substeps", given)
    if isinstance(process, SGD):
        return least
    rates = np.linalg.eigvals(np.asarray(jax.jacfwd(process.drift)(jnp.asarray(x))))
    return max(least, math.ceil(process.learning_rate * float(np.abs(rates).max()) / FINE_STEP))


def flow(process: Process, x: np.ndarray, domain: Domain) -> tuple[bool, np.ndarray]:
    """(whether the noiseless flow from x (d,) stays in `domain`, where it ends or leaves)."""
    _, inside, end = _flow(process, domain)(jnp.asarray(x))
    return bool(inside), np.asarray(end)


@lru_cache(maxsize=32)
def _flow(process: Process, domain: Domain) -> Any:
    """Compiled noiseless flow by adaptive Heun steps until the drift is small."""
    drift, level = drift_of(process), domain.level

    def inside(x: Array) -> Array:
        return jnp.asarray(True) if level is None else level(x) < 0

    def keep_going(state: Any) -> Array:
        x, _, k, ok = state
        return ok & (k < 20000) & (jnp.linalg.norm(drift(x)) > 1e-8)

    def body(state: Any) -> Any:
        x, h, k, _ = state
        first = drift(x)
        second = drift(x + h * first)
        error = 0.5 * h * jnp.linalg.norm(second - first)
        good = error <= 1e-3 * (1e-3 + h * jnp.linalg.norm(first)) + 1e-12
        y = jnp.where(good, x + 0.5 * h * (first + second), x)
        return y, jnp.where(good, 1.5 * h, 0.5 * h), k + 1, inside(y)

    @jax.jit
    def run(x: Array) -> tuple[Array, Array, Array]:
        state = (x, jnp.asarray(1e-2), jnp.asarray(0), jnp.asarray(True))
        y, _, k, ok = jax.lax.while_loop(keep_going, body, state)
        return k, ok, y

    return run


def _newton(drift: Any, x: np.ndarray, steps: int = 20) -> np.ndarray:
    """Newton's method on drift = 0, from a point already close."""
    jacobian = jax.jit(jax.jacfwd(drift))
    for _ in range(steps):
        b = np.asarray(drift(jnp.asarray(x)))
        move = np.linalg.lstsq(np.asarray(jacobian(jnp.asarray(x))), -b, rcond=1e-12)[0]
        x = x + move
        if np.linalg.norm(move) <= 1e-13 * (1 + np.linalg.norm(x)):
            break
    return x
