"""Processes whose noise is pushed along instantons, with the log of their weight carried beside x.

Every law of noise is multiplied by ``exp(theta . push)`` and divided by its mean (Cramer's tilt, which
is the law that SGD has on its way out: Dembo & Zeitouni, "Large Deviations Techniques and
Applications", section 3.7); theta is the instanton's momentum at the nearest of its points. Gaussian
noise is shifted; of finitely many examples the likely ones of the way out are drawn more often.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._jax import jax, jnp
from ..action import hamiltonian
from ..dynamics import SGD, Diffusion, Process
from ..errors import InputError
from ..loss import StochasticLoss
from ..noise import noise_law
from .channels import Channel
from .regime import temperature_of

Array = Any
# Noises up to which the mean drift over a step is taken with its second derivatives.
SMALL_WIDTH = 4
# Points of an instanton at which its momentum is tabulated.
PLACES = 43
# Numbers in the tables of tilted examples.
MAX_TABLE = 2**26
ROOT12 = math.sqrt(12.0)  # between the ends of a uniform law of variance 1


def check_tilt(process: Process) -> None:
    """Refuse what has no tilt here: says what, and what to use instead."""
    if not isinstance(process, SGD):
        return
    gaussian = process.loss.noise is not None and process.loss.noise.name == "gaussian"
    possible = (gaussian and hamiltonian(process).quadratic) or finitely_many(process.loss)
    if process.momentum or process.sampling != "with_replacement" or not possible:
        raise InputError(
            "process",
            "this SGD",
            "must draw with replacement from data or from noise of few atoms, or have Gaussian "
            "noise that enters the gradient affinely, and no momentum; use method splitting",
        )


def finitely_many(loss: StochasticLoss) -> bool:
    """Whether the nodes of a loss are all its examples."""
    law = loss.noise
    if law is None:
        return True
    return law.atoms and loss.size == len(law.rule.nodes) ** loss.noise_dim


def tilted(
    process: Process, ways: list[Channel], strength: float, substeps: int
) -> tuple[Process, int]:
    """(the pushed process, with the log weight as one more coordinate; its substeps).

    `strength` multiplies the push.
    """
    every = max(1, len(ways[0].path.path) // PLACES)
    points = np.concatenate([w.path.path[::every] for w in ways])
    theta = strength * np.concatenate([w.path.theta[::every] for w in ways])
    if isinstance(process, SGD) and finitely_many(process.loss):
        return _redrawn(process, points, theta), 1
    return _shifted(process, points, theta, substeps)


# -- finitely many examples --------------------------------------------------------------------------
def _redrawn(sgd: SGD, points: np.ndarray, theta: np.ndarray) -> SGD:
    """SGD whose examples are drawn with the chances that they have at the nearest of `points`.

    Of two uniform numbers one names an example, the other decides between it and its alias
    (Walker, ACM Trans. Math. Softw. 3 (1977)).
    """
    loss, d = sgd.loss, sgd.loss.dim
    chances = _tilted_chances(loss, points, theta)
    keep, alias = (jnp.asarray(a) for a in zip(*map(alias_table, chances), strict=True))
    paid = jnp.log(jnp.asarray(loss.weights)) - jnp.log(jnp.asarray(chances))
    places, per_example = jnp.asarray(points), -sgd.batch_size / sgd.learning_rate

    def function(y: Array, z: Array) -> Array:
        x = y[:d]
        at = jnp.argmin(jnp.sum((places - jax.lax.stop_gradient(x)) ** 2, axis=1))
        u = z / ROOT12 + 0.5
        named = jnp.clip((u[0] * loss.size).astype(int), 0, loss.size - 1)
        i = jnp.where(u[1] < keep[at, named], named, alias[at, named])
        row = jax.tree.map(lambda a: a[i], loss.nodes)
        return loss.function(x, row) + per_example * paid[at, i] * y[d]

    law = noise_law("uniform")
    pushed = StochasticLoss(
        function, d + 1, jnp.zeros((1, 2)), jnp.ones(1), law, 2, name=f"{loss.name}, tilted"
    )
    return SGD(pushed, sgd.learning_rate, sgd.batch_size)


def _tilted_chances(loss: StochasticLoss, points: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Chances (k, n) of the examples under the tilt exp(-theta . g) at each of the points (k, d)."""
    size = len(points) * loss.size
    if size > MAX_TABLE:
        raise InputError(
            "process", f"{loss.size} examples", f"must be at most {MAX_TABLE // len(points)}"
        )
    gradients = jax.jit(loss.example_gradients)
    pushes = [
        -np.asarray(gradients(jnp.asarray(x))) @ p for x, p in zip(points, theta, strict=True)
    ]
    logs = np.log(np.asarray(loss.weights)) + np.array(pushes)
    # No example may lose its chance: its weight would be infinite.
    chances = np.maximum(np.exp(logs - logs.max(axis=1, keepdims=True)), 1e-12)
    return np.asarray(chances / chances.sum(axis=1, keepdims=True))


def alias_table(chances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(share kept of each cell (n,), which index the rest of the cell goes to (n,)).

    Examples
    --------
    >>> keep, alias = alias_table(np.array([0.75, 0.25]))
    >>> keep.tolist(), alias.tolist()
    ([1.0, 0.5], [0, 0])
    """
    n = len(chances)
    keep, alias = chances * n, np.arange(n)
    small, large = list(np.flatnonzero(keep < 1)), list(np.flatnonzero(keep >= 1))
    while small and large:
        poor, rich = small.pop(), large[-1]
        alias[poor] = rich
        keep[rich] -= 1.0 - keep[poor]
        if keep[rich] < 1:
            small.append(large.pop())
    keep[small + large] = 1.0  # what rounding left over
    return keep, alias


# -- Gaussian noise ----------------------------------------------------------------------------------
def _shifted(
    process: Process, points: np.ndarray, theta: np.ndarray, substeps: int
) -> tuple[Diffusion, int]:
    """A process of Gaussian noise, shifted by ``factor^T theta / eps``, in Euler steps.

    ``log w = - sum (u . xi + |u|^2 / 2)``, u the shift of the standard normals xi.
    """
    d = points.shape[1]
    mean, noise, width = _gaussian_step(process, substeps)
    eps = temperature_of(process)
    sgd = isinstance(process, SGD)
    substeps = 1 if sgd else substeps
    clock = 1.0 if sgd else process.learning_rate
    dt = clock / substeps
    places, momenta = jnp.asarray(points), jnp.asarray(theta)

    def push(x: Array) -> Array:
        gap = jnp.sum((places - x) ** 2, axis=1)
        near = (gap <= jnp.min(gap)).astype(x.dtype)
        p = (near @ momenta) / jnp.sum(near)
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
    return *_heun_step(process, process.learning_rate / substeps), process.noise_dim


def _heun_step(process: Diffusion, dt: float) -> tuple[Any, Any]:
    """Heun's step, with its dependence on the noise through the drift to second order.

    The step itself is not affine in the noise, which a closed-form weight needs; what is left out
    is O(dt^2) smaller than the noise.
    """
    width, root = process.noise_dim, math.sqrt(dt)

    def kick(x: Array, xi: Array) -> Array:
        return root * process.factor_vector(x, xi)

    def noise(x: Array, xi: Array) -> Array:
        pushed = kick(x, xi)
        ahead = x + dt * process.drift(x)
        return pushed + 0.5 * dt * jax.jvp(process.drift, (ahead,), (pushed,))[1]

    def mean(x: Array) -> Array:
        slope = process.drift(x)
        ahead = x + dt * slope
        if width > SMALL_WIDTH:
            return x + 0.5 * dt * (slope + process.drift(ahead))
        # Mean over the noise of the drift ahead, by the rule of 2 points a direction.
        kicks = jnp.stack([math.sqrt(width) * kick(x, e) for e in jnp.eye(width)])
        seen = [process.drift(ahead + sign * k) for k in kicks for sign in (1.0, -1.0)]
        return x + 0.5 * dt * (slope + sum(seen) / (2 * width))

    return mean, noise
