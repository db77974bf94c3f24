"""Importance sampling: noise pushed along the instanton, paid back by weights.

The chance that a departure from the core gets out is the mean of ``1{out} w`` over paths whose
Gaussian noise is shifted by ``factor^T theta / eps``, theta the instanton's momentum at the nearest
of its points, with ``log w = - sum (u . xi + |u|^2 / 2)``. Source: Dupuis & Wang, "Importance
sampling, large deviations, and differential games" (Stochastics 76, 2004): a tilt that depends
on the state, so that paths which stray are not pushed on. Flux of departures as in `splitting`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._jax import jax, jnp
from ..action import hamiltonian
from ..domain import Domain
from ..dynamics import SGD, Process
from ..ensemble import rng as keyed
from ..errors import InputError, RunError, whole
from ..estimate import Estimate
from ..streams import generator, path_states
from .channels import Channel, channels
from .regime import attractor, temperature_of
from .scores import score_along
from .splitting import Levels, SplittingRun

Array = Any
# Fewer effective paths than this and the mean of the weights is not to be trusted.
EFFECTIVE = 50.0


def importance(
    process: Process,
    start: ArrayLike,
    domain: Domain,
    *,
    particles: int = 4096,
    replicas: int = 8,
    seed: int = 0,
    substeps: int = 8,
) -> Estimate:
    """Mean exit time in SGD steps by sampling along the instanton.

    Raises
    ------
    InputError
        SGD whose noise is not Gaussian (use `splitting`), momentum, a bad start, or a domain
        without a level function.
    RunError
        Fewer than 50 effective paths, or no path out: says how many.

    Examples
    --------
    >>> from batchwell import SGD, additive, ball
    >>> sgd = SGD(additive(lambda x: x @ x / 2), learning_rate=0.1)
    >>> out = importance(sgd, [0.0], ball([0.0], 1.0), particles=1024, seed=1)
    >>> abs(out.value - 117280.42) < 4 * out.stderr
    True
    """
    particles, replicas = whole("particles", particles, 64), whole("replicas", replicas, 2)
    if domain.level is None:
        raise InputError("domain", domain.name, "must have a level function here")
    minimum = attractor(process, start, domain)
    _check(process)
    ways = channels(process, minimum, domain)
    best = [w for w in ways if w.path.exponent < ways[0].path.exponent + 3]
    score = score_along(minimum, [w.path for w in best])
    run = SplittingRun(process, domain, minimum, score, particles, seed, substeps)
    core = run.core()
    trial = _tilted(process, domain, score, best, minimum, substeps)
    pairs, sizes = [], []
    for k in range(replicas):
        flux, starts = run.departures(f"importance/{k}", core.core, core.values[0])
        logs = _weights(trial, starts, core, particles, seed, k)
        top = logs.max()
        if not np.isfinite(top):
            raise RunError(f"no tilted path of {particles} got out: use method splitting")
        w = np.exp(logs - top)
        pairs.append(flux * math.exp(top) * w.mean())
        sizes.append(w.sum() ** 2 / np.sum(w**2))
    return _answer(np.array(pairs), float(np.sum(sizes)), particles)


def _check(process: Process) -> None:
    if isinstance(process, SGD):
        gaussian = process.loss.noise is not None and process.loss.noise.name == "gaussian"
        if not gaussian or process.momentum or not hamiltonian(process).quadratic:
            raise InputError(
                "process",
                "this SGD",
                "must have Gaussian noise that enters the "
                "gradient affinely, and no momentum; use method splitting",
            )


def _answer(rates: np.ndarray, effective: float, particles: int) -> Estimate:
    from scipy.stats import t as student

    n = len(rates)
    if effective < EFFECTIVE:
        raise RunError(
            f"only {effective:.0f} effective paths of {n * particles}, {EFFECTIVE:g} "
            "needed: the instanton does not carry the exits; use method splitting"
        )
    rate = float(rates.mean())
    relative = float(rates.std(ddof=1) / math.sqrt(n)) / rate
    spread = math.exp(float(student.ppf(0.975, n - 1)) * relative)
    value = 1.0 / rate
    note = f"{effective:.0f} effective paths of {n * particles}; weights checked"
    return Estimate(
        value,
        value * relative,
        (value / spread, value * spread),
        "steps",
        "importance sampling along the instanton, t interval over replicas",
        n,
        notes=(note,),
    )


def _weights(
    trial: Callable[..., Any], starts: np.ndarray, core: Levels, particles: int, seed: int, k: int
) -> np.ndarray:
    """Log weights (particles,) of tilted paths from random `starts`; -inf for those not out."""
    choice = generator(seed, f"importance/{k}/choice").integers(0, len(starts), particles)
    states = path_states(seed, f"importance/{k}", np.arange(particles))
    fate, logs = trial(jnp.asarray(starts[choice]), jnp.asarray(states), core.core)
    return np.where(np.asarray(fate) == 2, np.asarray(logs), -np.inf)


def _tilted(
    process: Process,
    domain: Domain,
    score: Any,
    ways: list[Channel],
    minimum: np.ndarray,
    substeps: int,
) -> Callable[..., Any]:
    """Compiled: tilted paths until core (fate 1) or outside (2), with their log weights."""
    mean, noise, width = _gaussian_step(process, substeps)
    eps, level = temperature_of(process), domain.level
    assert level is not None
    points = jnp.asarray(np.concatenate([w.path.path for w in ways]))
    theta = jnp.asarray(np.concatenate([w.path.theta for w in ways]))

    def one(x: Array, rng: Array) -> tuple[Array, Array, Array]:
        p = theta[jnp.argmin(jnp.sum((points - x) ** 2, axis=1))]
        xi, rng = keyed.normals(rng, width)
        u = jax.linear_transpose(lambda z: noise(x, z), xi)(p)[0] / eps
        return mean(x) + noise(x, xi + u), rng, -jnp.dot(u, xi) - 0.5 * jnp.dot(u, u)

    step, scores, levels = jax.vmap(one), jax.vmap(score), jax.vmap(level)

    def body(state: Any) -> Any:
        x, rng, fate, logs, core = state
        y, rng, gain = step(x, rng)
        alive = fate == 0
        y = jnp.where(alive[:, None], y, x)
        new = jnp.where(~(levels(y) < 0), 2, jnp.where(scores(y) <= core, 1, 0))
        return y, rng, jnp.where(alive, new, fate), logs + jnp.where(alive, gain, 0.0), core

    @jax.jit
    def run(x: Array, rng: Array, core: Array) -> tuple[Array, Array]:
        fate = jnp.where(levels(x) < 0, 0, 2)
        state = (x, rng, fate, jnp.zeros(x.shape[0]), core)
        _, _, fate, logs, _ = jax.lax.while_loop(lambda s: jnp.any(s[2] == 0), body, state)
        return fate, logs

    return run


def _gaussian_step(process: Process, substeps: int) -> tuple[Any, Any, int]:
    """(mean of the next x, linear map of standard normals to its noise, their number)."""
    if isinstance(process, SGD):
        loss, eta = process.loss, process.learning_rate
        zero = jnp.zeros(loss.noise_dim)
        size = eta / math.sqrt(process.batch_size)

        def noise(x: Array, xi: Array) -> Array:
            pushed = jax.jvp(lambda z: loss.example_gradient(x, z), (zero,), (xi,))[1]
            return -size * pushed

        return lambda x: x - eta * loss.example_gradient(x, zero), noise, loss.noise_dim
    dt = process.learning_rate / substeps

    def heun(x: Array) -> Array:
        slope = process.drift(x)
        return x + 0.5 * dt * (slope + process.drift(x + dt * slope))

    return heun, lambda x, xi: math.sqrt(dt) * process.factor_vector(x, xi), process.noise_dim
