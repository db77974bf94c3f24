"""The noiseless motion off a saddle, with the curvature of the drift: when and where it leaves.

A path that leaves a saddle follows its unstable manifold. Compared with linear growth, curvature
changes the time by a constant: ``lim_{r -> 0} [time from x + r u to the boundary - log(L / r) / lambda]``
(Bakhtin, "Exit asymptotics for small diffusion about an unstable equilibrium", SPA 118 (2008), sec. 2).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._jax import jax, jnp
from ..domain import Domain
from ..dynamics import SGD, Diffusion, Process, dimension
from ..exits.regime import drift_of
from ..linearity import affine_in
from ..loss import StochasticLoss

Floats = NDArray[np.float64]
# Where the motion starts, over the boundary's distance: what it leaves out is as small.
NEAR = 1e-5
PHASES = 8  # starts over one step of growth: a chain's fraction of a step averages out
PATIENCE = 300.0  # growth times after which the motion is taken to rest inside
FINE = 0.02  # growth by which a diffusion's motion is stepped


def is_linear(process: Process) -> bool:
    """Whether the drift is seen to be affine: its motion then has a closed form."""
    dim = dimension(process)
    return affine_in(drift_of(process), (jax.ShapeDtypeStruct((dim,), jnp.float64),), 0)


def straightened(
    process: Process,
    x: Floats,
    direction: Floats,
    domain: Domain,
    scale: float,
    growth: float,
    rate: float,
) -> tuple[tuple[float, float], Floats]:
    """(reach, points (2, d)) of the two branches of the unstable manifold along +-`direction` (d,).

    A reach is the distance at which linear growth, of log `growth` a step and `rate` per time, would leave when the motion
    does; inf for a branch that stays inside. The points are where they leave, or rest.
    `scale` is a length of the domain.
    """
    near, phases = NEAR * scale, np.arange(PHASES) / PHASES
    sides = np.array([1.0, -1.0])
    sizes = near * np.exp(growth * phases)
    starts = x + (sides[:, None] * sizes).reshape(-1, 1) * direction
    steps, points = leaving(process, starts, domain, growth, rate)
    steps = steps.reshape(2, PHASES) + phases
    with np.errstate(over="ignore"):
        reach = near * np.exp(growth * steps.mean(axis=1))
    return (float(reach[0]), float(reach[1])), points.reshape(2, PHASES, -1)[:, 0]


def leaving(
    process: Process, starts: Floats, domain: Domain, growth: float, rate: float
) -> tuple[Floats, Floats]:
    """(SGD steps (m,), points (m, d)) at which the noiseless motion from `starts` leaves.

    Steps are inf, and points where it has come to, if it stays inside for 300 growth times; `growth` is
    the slowest log growth a step, `rate` that of the drift. SGD moves by whole steps, its last one
    shared out by the level; momentum enters by steps that grow as its own do.
    """
    if isinstance(process, SGD):
        source: StochasticLoss | Diffusion = process.loss
        # The loss's own curvature along the slowest direction is rate (1 - mu).
        pace, per_step = math.expm1(growth) / (rate * (1.0 - process.momentum)), 1.0
    else:
        source, eta = process, process.learning_rate
        rates = np.linalg.eigvals(np.asarray(jax.jacfwd(process.drift)(jnp.asarray(starts[0]))))
        fastest = float(np.abs(rates).max())
        pace = min(FINE * eta / growth, 0.5 / max(fastest, 1e-300))
        per_step = pace / eta
    most = math.ceil(PATIENCE / (growth * per_step))
    when, points = _motion(source, domain)(jnp.asarray(starts), pace, most)
    return np.asarray(when) * per_step, np.asarray(points)


@lru_cache(maxsize=32)
def _motion(source: StochasticLoss | Diffusion, domain: Domain) -> Any:
    """Compiled motion of many points until all are out, for any length of step."""
    assert domain.level is not None
    level = jax.vmap(domain.level)
    if isinstance(source, StochasticLoss):
        one: Any = lambda x, dt: x - dt * source.gradient(x)  # noqa: E731
    else:
        one = lambda x, dt: _runge_kutta(source.drift, x, dt)  # noqa: E731
    step = jax.vmap(one, in_axes=(0, None))

    def body(state: Any, dt: Any) -> Any:
        x, old, when, k = state
        y = step(x, dt)
        new = level(y)
        inside = jnp.isinf(when)
        out = inside & (new >= 0)
        share = jnp.where(out, old / jnp.where(out, old - new, 1.0), 1.0)
        moved = x + share[:, None] * (y - x)
        x = jnp.where(inside[:, None], moved, x)
        return x, jnp.where(inside, new, old), jnp.where(out, k + share, when), k + 1

    @jax.jit
    def run(x: Any, dt: Any, most: Any) -> Any:
        state = (x, level(x), jnp.full(len(x), jnp.inf), jnp.asarray(0))
        going = lambda s: jnp.any(jnp.isinf(s[2])) & (s[3] < most)  # noqa: E731
        x, _, when, _ = jax.lax.while_loop(going, lambda s: body(s, dt), state)
        return when, x

    return run


def _runge_kutta(drift: Any, x: Any, dt: Any) -> Any:
    a = drift(x)
    b = drift(x + 0.5 * dt * a)
    c = drift(x + 0.5 * dt * b)
    d = drift(x + dt * c)
    return x + dt / 6 * (a + 2 * b + 2 * c + d)
