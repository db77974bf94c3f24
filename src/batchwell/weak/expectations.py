"""E phi of SGD and of its diffusions by the most exact means that apply."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._jax import jax, jnp, traced
from ..dynamics import SGD, Diffusion, diffusion_approximation
from ..errors import require
from ..estimate import Estimate
from ..law import expectation, is_quadratic, moments, transfer_operator
from ..law.operator import Operator, deterministic
from ..law.reach import reachable_box, reachable_interval
from ..law.smooth import smooth_expectation
from .coupled import simulated

Array = Any
Floats = NDArray[np.float64]
Phi = Callable[[Array], Array]

METHODS = ("auto", "moments", "operators", "simulation")


def real_valued(phi: Phi, d: int) -> Phi:
    """`phi` as float64, also where it returns whole numbers or truth values.

    Raises
    ------
    InputError
        It does not return one real number, or is not written in jax.numpy.
    """
    require(callable(phi), "phi", phi, "must be a function of one point")
    x = jax.ShapeDtypeStruct((d,), jnp.float64)
    out = traced("phi", phi, x, call=f"x of shape ({d},)")
    kind = getattr(out, "dtype", np.dtype(object)).kind
    good = getattr(out, "shape", None) == () and kind in "biuf"
    require(good, "phi", f"returns {out}", "must return one real number")
    return phi if kind == "f" else lambda x: jnp.asarray(phi(x), dtype=jnp.float64)


def choose(sgd: SGD, phi: Phi, method: str) -> str:
    """The method that "auto" stands for; any other is itself."""
    if method != "auto":
        return method
    if _quadratic_parts(phi, sgd.loss.dim) is not None and is_quadratic(sgd.loss):
        return "moments"
    return "operators" if sgd.loss.dim <= 2 and sgd.momentum == 0 else "simulation"


def _quadratic_parts(phi: Phi, d: int) -> tuple[float, Floats, Floats] | None:
    """Value, slope and Hessian at 0 if phi is a polynomial of degree 2, else None."""
    zero = jnp.zeros(d)
    value, slope = float(phi(zero)), np.asarray(jax.grad(phi)(zero))
    curve = np.asarray(jax.hessian(phi)(zero))
    rng = np.random.Generator(np.random.Philox(1708))
    for _ in range(3):
        x = rng.standard_normal(d)
        want, got = float(phi(jnp.asarray(x))), value + slope @ x + x @ curve @ x / 2
        if not abs(want - got) <= 1e-10 * (1 + abs(want)):
            return None
    return value, slope, curve


def both_expectations(
    chosen: str,
    sgd: SGD,
    phi: Phi,
    start: Floats,
    steps: int,
    orders: Sequence[int],
    paths: int,
    seed: int,
) -> dict[int, tuple[Estimate, Estimate, Estimate]]:
    """For each order: error, E phi of SGD, E phi of the diffusion."""
    if chosen == "simulation":
        return {o: simulated(sgd, o, phi, start, steps, paths, seed) for o in orders}
    expect = _by_moments if chosen == "moments" else _by_operators
    chain = expect(sgd, phi, start, steps)
    out = {}
    for o in orders:
        flow = expect(diffusion_approximation(sgd, o), phi, start, steps)
        spread = chain.stderr + flow.stderr
        error = deterministic(chain.value - flow.value, spread, "1", chosen)
        out[o] = (error, chain, flow)
    return out


def _by_moments(process: SGD | Diffusion, phi: Phi, start: Floats, steps: int) -> Estimate:
    parts = _quadratic_parts(phi, len(start))
    require(parts is not None, "phi", "not of degree 2", "must be a polynomial of degree 2")
    assert parts is not None
    value, slope, curve = parts
    law = moments(process, start, steps)
    result = value + slope @ law.mean + np.sum(curve * law.raw[1]) / 2
    return deterministic(float(result), 1e-14 * (1 + abs(float(result))), "1", "exact moments")


def _by_operators(process: SGD | Diffusion, phi: Phi, start: Floats, steps: int) -> Estimate:
    many = jax.jit(jax.vmap(phi))

    def values(points: Floats) -> Floats:
        return np.asarray(many(jnp.asarray(points)))

    sgd = process if isinstance(process, SGD) else process.sgd
    assert sgd is not None
    if len(start) == 1:
        if isinstance(process, Diffusion):
            return smooth_expectation(process, values, start, steps)
        return expectation(_line_operator(process, float(start[0]), steps), values, start, steps)
    require(len(start) == 2, "method", "operators", "is for 1 and 2 dimensions")
    place: Any = reachable_box(sgd, start, steps)
    if isinstance(process, Diffusion):
        return smooth_expectation(process, values, start, steps, place)
    gaussian = sgd.loss.noise is not None and sgd.loss.noise.name == "gaussian"
    op = transfer_operator(process, place, method="nystrom" if gaussian else "spectral")
    return expectation(op, values, start, steps)


def _line_operator(sgd: SGD, start: float, steps: int) -> Operator:
    bounded = reachable_interval(sgd, start, steps)
    if bounded is not None:
        return transfer_operator(sgd, bounded, method="spectral")
    whole_line = (-math.inf, math.inf)
    noise = sgd.loss.noise
    # Kinks in the noise leave E phi smooth: a Gauss rule serves it better than split mass.
    light = noise is not None and noise.name in ("uniform", "laplace", "exponential")
    return transfer_operator(
        sgd, whole_line, method="spectral" if light else "auto", include=(start,)
    )
