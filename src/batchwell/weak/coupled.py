"""Pairs of SGD and its diffusion, simulated with martingale controls.

Source: Milstein & Tretyakov, "Practical variance reduction via regression for simulating diffusions"
(SIAM J. Numer. Anal. 47, 2009).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._jax import jax, jnp
from ..dynamics import SGD, Diffusion, diffusion_approximation
from ..errors import require, whole
from ..estimate import Estimate, sample_mean
from ..streams import generator as keyed_generator

Array = Any
Floats = NDArray[np.float64]
Phi = Callable[[Array], Array]

CHUNK = 2048
SUBSTEPS = 4


def simulated(
    sgd: SGD, order: int, phi: Phi, x0: Floats, steps: int, paths: int, seed: int
) -> tuple[Estimate, Estimate, Estimate]:
    """Pairs of SGD and its diffusion, each with a martingale subtracted from its phi.

    The martingale (`_Control`) has mean 0 exactly and carries all of phi that is linear or
    quadratic in the noise, so that only cubic terms are left to chance. Gaussian noise is
    moreover shared by the pair, and taken with both signs.
    """
    paths = whole("paths", paths, 2 * CHUNK)
    require(sgd.momentum == 0, "momentum", sgd.momentum, "must be 0 here")
    run = _pairs(sgd, diffusion_approximation(sgd, order), phi, x0, steps)
    parts = [run(keyed_generator(seed, "weak-pairs", c)) for c in range(-(-paths // CHUNK))]
    chain, flow = (np.concatenate([p[i] for p in parts]) for i in (0, 1))
    name = "simulated pairs with martingale controls"
    return tuple(sample_mean(v, "1", name) for v in (chain - flow, chain, flow))  # type: ignore[return-value]


@dataclass(frozen=True)
class _Control:
    """Quadratic picture of u_k(x) = E phi(x_K | x_k = x) around gradient descent's path.

    Attributes
    ----------
    path
        (K + 1, d) gradient descent from x0.
    slope, curve
        (K + 1, d) and (K + 1, d, d): first and second derivatives of u_k on the path.
    """

    path: Floats
    slope: Floats
    curve: Floats


def _control(sgd: SGD, phi: Phi, x0: Floats, steps: int) -> _Control:
    eta, d = sgd.learning_rate, len(x0)
    gradient = jax.jit(sgd.loss.gradient)

    @jax.jit
    def back(x: Array, p: Array, curve: Array) -> tuple[Array, Array]:
        step = jnp.eye(d) - eta * sgd.loss.hessian(x)
        bend = jax.hessian(lambda y: jnp.dot(p, sgd.loss.gradient(y)))(x)
        return step.T @ p, step.T @ curve @ step - eta * bend

    path = [jnp.asarray(x0)]
    for _ in range(steps):
        path.append(path[-1] - eta * gradient(path[-1]))
    slope, curve = [jax.grad(phi)(path[-1])], [jax.hessian(phi)(path[-1])]
    for x in reversed(path[:-1]):
        p, c = back(x, slope[-1], curve[-1])
        slope.append(p)
        curve.append(c)
    return _Control(*(np.stack(v) for v in (path, slope[::-1], curve[::-1])))


def _pairs(
    sgd: SGD, flow: Diffusion, phi: Phi, x0: Floats, steps: int
) -> Callable[[np.random.Generator], tuple[Floats, Floats]]:
    """One chunk: controlled phi of SGD and of its diffusion (extrapolated over substeps)."""
    loss, eta, fine = sgd.loss, sgd.learning_rate, 2 * SUBSTEPS
    gaussian = loss.noise is not None and loss.noise.name == "gaussian"
    control = _control(sgd, phi, x0, steps)

    def gain(middle: Array, noise: Array, spread: Array, at: Any) -> Array:
        """The martingale's increment; its mean given the past is 0 by construction."""
        path, p, curve = at
        linear = (p + curve @ (middle - path)) @ noise
        return linear + 0.5 * (noise @ curve @ noise - jnp.sum(curve * spread))

    def chain_step(x: Array, m: Array, batch: Array, dw: Array, at: Any) -> tuple[Array, Array]:
        mean = loss.gradient(x)
        if gaussian:
            noise = math.sqrt(sgd.batch_factor * eta) * loss.factor_vector(x, dw)
        else:
            examples = jax.tree.map(lambda v: v[batch], loss.nodes) if loss.n else batch
            g = jax.vmap(loss.example_gradient, in_axes=(None, 0))(x, examples).mean(axis=0)
            noise = eta * (mean - g)
        middle = x - eta * mean
        return middle + noise, m + gain(middle, noise, eta**2 * sgd.noise_covariance(x), at)

    def flow_step(y: Array, m: Array, dw: Array, h: float, at: Any) -> tuple[Array, Array]:
        # Heun in the drift, Ito in the noise: weak order 2 for additive noise.
        b, noise = flow.drift(y), flow.factor_vector(y, dw)
        middle = y + h * b
        new = y + 0.5 * h * (b + flow.drift(middle + noise)) + noise
        return new, m + gain(middle, noise, h * flow.tensor(y), at)

    def between(ends: Any, share: Any) -> Any:
        return jax.tree.map(lambda v: (1 - share) * v[0] + share * v[1], ends)

    def substeps(y: Array, m: Array, increments: Array, ends: Any) -> tuple[Array, Array]:
        count = len(increments)
        shares = jnp.arange(1, count + 1) / count

        def one(carry: Any, step: Any) -> Any:
            (y, m), (dw, share) = carry, step
            return flow_step(y, m, dw, eta / count, between(ends, share)), None

        return jax.lax.scan(one, (y, m), (increments, shares))[0]

    def advance(state: Any, dw: Array, batch: Array, ends: Any) -> Any:
        (x, mx), (y, my), (z, mz) = state
        x, mx = chain_step(x, mx, batch, dw.sum(axis=0), between(ends, 1.0))
        y, my = substeps(y, my, dw, ends)
        z, mz = substeps(z, mz, dw.reshape(SUBSTEPS, 2, -1).sum(axis=1), ends)
        return (x, mx), (y, my), (z, mz)

    many = jax.jit(jax.vmap(advance, in_axes=(0, 0, 0, None)))
    values = jax.jit(jax.vmap(phi))
    tables = (control.path, control.slope, control.curve)

    def run(rng: np.random.Generator) -> tuple[Floats, Floats]:
        start = np.broadcast_to(x0, (2 * CHUNK, len(x0))), np.zeros(2 * CHUNK)
        state = (start, start, start)
        for k in range(steps):
            half = math.sqrt(eta / fine) * rng.standard_normal((CHUNK, fine, flow.noise_dim))
            batch = _draw_batches(sgd, rng, 2 * CHUNK)
            ends = tuple(t[k : k + 2] for t in tables)
            state = many(state, np.concatenate([half, -half]), batch, ends)
        x, y, z = (
            (np.asarray(values(s)) - np.asarray(m)).reshape(2, CHUNK).mean(axis=0) for s, m in state
        )
        return x, 2 * y - z

    return run


def _draw_batches(sgd: SGD, rng: np.random.Generator, paths: int) -> np.ndarray:
    """Rows of the data (paths, B), or noise (paths, B, noise_dim); nothing if Gaussian."""
    loss, b = sgd.loss, sgd.batch_size
    if loss.noise is None:
        n = loss.size
        if sgd.sampling == "with_replacement":
            return rng.integers(0, n, (paths, b))
        return np.argsort(rng.random((paths, n)), axis=1)[:, :b]
    if loss.noise.name == "gaussian":
        return np.zeros((paths, 0))
    shape = (loss.noise.words, paths, b, loss.noise_dim)
    words = rng.integers(0, 2**32, shape, dtype=np.uint32)
    return np.asarray(loss.noise.draw(list(words), np))
