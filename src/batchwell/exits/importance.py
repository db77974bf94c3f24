"""Importance sampling: noise pushed along the instanton, paid back by weights.

The chance that a departure from the core gets out is the mean of ``1{out} w`` over paths whose
Gaussian noise is shifted by ``factor^T theta / eps``, theta the instanton's momentum at the nearest
of its points, with ``log w = - sum (u . xi + |u|^2 / 2)``. Source: Dupuis & Wang, "Importance
sampling, large deviations, and differential games" (Stochastics 76, 2004): a tilt that depends
on the state, so that paths which stray are not pushed on. Whether there are enough paths for their
weights: Chatterjee & Diaconis, "The sample size required in importance sampling" (Ann. Appl. Probab.
28, 2018).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._jax import jax, jnp
from ..action import hamiltonian
from ..domain import Domain
from ..dynamics import SGD, Diffusion, Process
from ..ensemble import OUT, Table
from ..errors import InputError, RunError, whole
from ..estimate import Estimate
from ..streams import generator
from .channels import Channel, channels
from .departures import Core, core_of, departures, relaxation_steps
from .regime import attractor, temperature_of
from .scores import default_score
from .splitting import rate_to_time

Array = Any
# Below this exponent V/eps the way out is no narrow path.
RARE = 5.0
# Largest share of the sum that one weight may have.
LARGEST = 0.05
# Points of an instanton at which its momentum is tabulated.
PLACES = 43


def importance(
    process: Process,
    start: ArrayLike,
    domain: Domain,
    *,
    particles: int = 4096,
    replicas: int = 8,
    seed: int = 0,
    substeps: int = 8,
    threads: int | None = None,
) -> Estimate:
    """Mean exit time in SGD steps by sampling along the instanton.

    Raises
    ------
    InputError
        SGD whose noise is not Gaussian (use `splitting`), momentum, exits that are not rare (V/eps
        below 5: says it), a bad start, or a domain without a level function.
    RunError
        Weights that are not to be trusted with so few paths (says how many they need), or no path
        out.

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
    exponent = ways[0].path.exponent
    if exponent < RARE:
        raise InputError(
            "process",
            f"V/eps = {exponent:.3g}",
            f"must be at least {RARE:g} for paths to follow the instanton; use method direct",
        )
    best = [w for w in ways if w.path.exponent < exponent + 3]
    score = default_score(process, minimum, domain)
    relaxation = relaxation_steps(process, minimum)
    core = core_of(process, domain, minimum, score, seed, substeps, relaxation, threads)
    pushed = _pushed(core, best)
    rates, logs = [], []
    for k in range(replicas):
        time, points = departures(core, f"importance/{k}", particles)
        logs.append(_weights(pushed, points, k))
        rates.append(np.exp(logs[-1]).mean() / time)
    weights = check_weights(np.concatenate(logs))
    out = rate_to_time(np.array(rates), "importance sampling along the instanton")
    return out.with_notes(weights)


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


def check_weights(logs: np.ndarray) -> str:
    """Whether a mean of exp(logs) (n,), -inf for weight 0, is to be trusted; a note that it is.

    The mean needs about ``exp(D + 2 s)`` paths, D and s mean and standard deviation of the log of
    the weight over its mean, under the law that the weights lead to (Chatterjee & Diaconis, Theorem
    1.1), and no weight may be a large share of the sum (ibid., section 1.3).

    Raises
    ------
    RunError
        Says how many paths would be needed, or the largest share.

    Examples
    --------
    >>> check_weights(np.zeros(100))
    '100 effective paths of 100; weights need about 1'
    """
    if not np.isfinite(logs.max()):
        raise RunError(f"no tilted path of {len(logs)} got out: use method splitting")
    w = np.exp(logs - logs.max())
    share = w / w.sum()
    seen = share > 0
    ratio = np.log(share[seen] * len(logs))
    entropy = float(share[seen] @ ratio)
    spread = math.sqrt(float(share[seen] @ (ratio - entropy) ** 2))
    need = math.exp(min(entropy + 2 * spread, 700.0))
    effective = 1.0 / float(share @ share)
    if need > len(logs) or share.max() > LARGEST:
        raise RunError(
            f"weights not to be trusted: {len(logs)} paths, about {need:.2g} needed, largest weight "
            f"{share.max():.0%} of the sum; the instanton does not carry the exits: use splitting"
        )
    return f"{effective:.0f} effective paths of {len(logs)}; weights need about {need:.2g}"


def _pushed(core: Core, ways: list[Channel]) -> Core:
    """The core with its process pushed, and the log weight as one more coordinate."""
    d, level, score = core.domain.dim, core.domain.level, core.score
    assert level is not None
    domain = Domain(core.domain.name, d + 1, lambda y: level(y[:d]))
    process, substeps = _tilted(core, ways)
    return replace(
        core,
        process=process,
        domain=domain,
        score=score if isinstance(score, Table) else lambda y: score(y[:d]),
        minimum=np.append(core.minimum, 0.0),
        substeps=substeps,
        scheme="euler",
    )


def _weights(core: Core, points: np.ndarray, k: int) -> np.ndarray:
    """Log weights (m,) of pushed paths from random `points`; -inf for those not out."""
    count = len(points)
    chosen = points[generator(core.seed, f"importance/{k}/choice").integers(0, count, count)]
    there = ~core.domain.contains(np.column_stack([chosen, np.zeros(count)]))
    logs = np.where(there, 0.0, -np.inf)  # a departure may jump out at once
    starts = np.column_stack([chosen, np.zeros(count)])[~there]
    if len(starts):
        paths = core.paths(f"importance/{k}", starts, np.flatnonzero(~there))
        done = core.trials(paths, math.inf)
        logs[~there] = np.where(done.fates == OUT, done.points[:, -1], -np.inf)
    return logs


def _tilted(core: Core, ways: list[Channel]) -> tuple[Diffusion, int]:
    """(the pushed process with its log weight, in Euler steps; substeps)."""
    process, d = core.process, core.domain.dim
    mean, noise, width = _gaussian_step(process, core.substeps)
    eps = temperature_of(process)
    sgd = isinstance(process, SGD)
    substeps = 1 if sgd else core.substeps
    clock = 1.0 if sgd else process.learning_rate
    dt = clock / substeps
    every = max(1, len(ways[0].path.path) // PLACES)
    points = jnp.asarray(np.concatenate([w.path.path[::every] for w in ways]))
    theta = jnp.asarray(np.concatenate([w.path.theta[::every] for w in ways]))

    def push(x: Array) -> Array:
        gap = jnp.sum((points - x) ** 2, axis=1)
        near = (gap <= jnp.min(gap)).astype(x.dtype)
        p = (near @ theta) / jnp.sum(near)
        return jax.linear_transpose(lambda z: noise(x, z), jnp.zeros(width))(p)[0] / eps

    def drift(y: Array) -> Array:
        x = y[:d]
        u = push(x)
        return jnp.append(mean(x) - x + noise(x, u), -0.5 * jnp.dot(u, u)) / dt

    def factor(y: Array, xi: Array) -> Array:
        x = y[:d]
        return jnp.append(noise(x, xi), -jnp.dot(push(x), xi)) / math.sqrt(dt)

    def tensor(y: Array) -> Array:
        columns = jax.vmap(lambda e: factor(y, e))(jnp.eye(width))
        return columns.T @ columns

    return Diffusion(d + 1, drift, tensor, factor, width, clock), substeps


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
