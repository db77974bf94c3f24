"""One step of a process: the only thing that simulation knows.

SGD in its three sampling modes, and the diffusion's scheme, all become one function
``advance(k, x, memory, rng) -> (x, memory, rng)`` of one path; engines run many side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._jax import jax, jnp
from ..dynamics import SGD, Diffusion, Process
from ..errors import one_of, whole
from ..loss import StochasticLoss
from . import rng as keyed

Array = Any
Memory = Any
Gradient = Callable[[Array, Array, Memory, Array], tuple[Array, Memory, Array]]


@dataclass(frozen=True)
class Step:
    """A process as simulation sees it.

    Attributes
    ----------
    memory
        ``memory(x)``: what a path carries beside x at step 0 (velocity, order of
        the data); a pytree, empty for most.
    advance
        ``advance(k, x, memory, rng)``: one step; k counts them from 0.
    per_sgd_step
        How many of these steps make one SGD step (substeps of a diffusion).
    """

    memory: Callable[[Array], Memory]
    advance: Callable[[Array, Array, Memory, Array], tuple[Array, Memory, Array]]
    per_sgd_step: int = 1


def step_of(process: Process, substeps: int = 4, scheme: str = "heun") -> Step:
    """The step of SGD (exact) or of a diffusion (`substeps` of `scheme` per SGD step).

    Schemes are "heun", "euler" (Euler-Maruyama, weak order 1) and "platen" (weak order 2 for any
    noise; its cost grows with the square of the noise's dimension).

    Examples
    --------
    >>> from batchwell import SGD, additive
    >>> step_of(SGD(additive(lambda x: x @ x / 2), 0.1)).per_sgd_step
    1
    """
    if isinstance(process, SGD):
        return _sgd_step(process)
    one_of("scheme", scheme, SCHEMES)
    return SCHEMES[scheme](process, whole("substeps", substeps))


def _sgd_step(sgd: SGD) -> Step:
    gradient, data_memory = _minibatch_gradient(sgd)
    eta, mu = sgd.learning_rate, sgd.momentum

    def memory(x: Array) -> Memory:
        return (data_memory(), jnp.zeros_like(x)) if mu else (data_memory(),)

    def advance(k: Array, x: Array, carried: Memory, rng: Array) -> tuple[Array, Memory, Array]:
        g, data, rng = gradient(k, x, carried[0], rng)
        if not mu:
            return x - eta * g, (data,), rng
        velocity = mu * carried[1] + g
        return x - eta * velocity, (data, velocity), rng

    return Step(memory, advance)


def _minibatch_gradient(sgd: SGD) -> tuple[Gradient, Callable[[], Memory]]:
    loss, size = sgd.loss, sgd.batch_size
    if loss.noise is not None:
        return _sampled_gradient(loss, size), lambda: ()
    n = loss.size

    def of_rows(x: Array, rows: Array) -> Array:
        batch = jax.tree.map(lambda a: a[rows], loss.nodes)
        return jax.grad(lambda y: jnp.mean(jax.vmap(loss.function, in_axes=(None, 0))(y, batch)))(x)

    def replaced(k: Array, x: Array, data: Memory, rng: Array) -> tuple[Array, Memory, Array]:
        rows, rng = keyed.indices(rng, size, n)
        return of_rows(x, rows), data, rng

    def subset(k: Array, x: Array, order: Array, rng: Array) -> tuple[Array, Memory, Array]:
        order, rng = keyed.subset_first(rng, order, size)
        return of_rows(x, order[:size]), order, rng

    def epoch(k: Array, x: Array, order: Array, rng: Array) -> tuple[Array, Memory, Array]:
        # k is the same for all paths, so this stays a branch when paths are mapped.
        position = k % (n // size)
        order, rng = jax.lax.cond(
            position == 0, lambda: keyed.shuffled(rng, order), lambda: (order, rng)
        )
        rows = jax.lax.dynamic_slice(order, (position * size,), (size,))
        return of_rows(x, rows), order, rng

    if sgd.sampling == "with_replacement":
        return replaced, lambda: ()
    ordered = jnp.arange(n, dtype=jnp.int32)
    return (subset if sgd.sampling == "without_replacement" else epoch), lambda: ordered


def _sampled_gradient(loss: StochasticLoss, size: int) -> Gradient:
    law, width = loss.noise, loss.noise_dim
    assert law is not None

    def gradient(k: Array, x: Array, data: Memory, rng: Array) -> tuple[Array, Memory, Array]:
        flat, rng = keyed.draws(rng, law, size * width)
        z = flat.reshape(size, width)
        g = jax.grad(lambda y: jnp.mean(jax.vmap(loss.function, in_axes=(None, 0))(y, z)))(x)
        return g, data, rng

    return gradient


def _heun_step(process: Diffusion, substeps: int) -> Step:
    """Heun in the drift, Ito-Euler in the noise: error O(dt^2 + eps dt) for small noise.

    Milstein & Tretyakov, "Numerical methods in the weak sense for stochastic differential equations
    with small noise" (SIAM J. Numer. Anal. 34, 1997). Exactly weak order 2 for additive
    noise. Plain Euler at dt = eta would be Gaussian SGD, not the diffusion.
    """
    dt = process.learning_rate / substeps

    def advance(k: Array, x: Array, carried: Memory, rng: Array) -> tuple[Array, Memory, Array]:
        xi, rng = keyed.normals(rng, process.noise_dim)
        kick = jnp.sqrt(dt) * process.factor_vector(x, xi)
        slope = process.drift(x)
        ahead = process.drift(x + dt * slope + kick)
        return x + 0.5 * dt * (slope + ahead) + kick, carried, rng

    return Step(lambda x: (), advance, substeps)


def _euler_step(process: Diffusion, substeps: int) -> Step:
    dt = process.learning_rate / substeps

    def advance(k: Array, x: Array, carried: Memory, rng: Array) -> tuple[Array, Memory, Array]:
        xi, rng = keyed.normals(rng, process.noise_dim)
        kick = jnp.sqrt(dt) * process.factor_vector(x, xi)
        return x + dt * process.drift(x) + kick, carried, rng

    return Step(lambda x: (), advance, substeps)


def _platen_step(process: Diffusion, substeps: int) -> Step:
    dt, m = process.learning_rate / substeps, process.noise_dim

    def advance(k: Array, x: Array, carried: Memory, rng: Array) -> tuple[Array, Memory, Array]:
        xi, rng = keyed.normals(rng, m)
        drawn, rng = keyed.words(rng, pairs_of(m))
        signs = jnp.where(drawn >> jnp.uint32(31) == 0, 1.0, -1.0)
        return platen(process, x, xi, signs, jnp.asarray(dt)), carried, rng

    return Step(lambda x: (), advance, substeps)


def pairs_of(m: int) -> int:
    """Pairs of m noises: the signs that a Platen step draws, one word each."""
    return m * (m - 1) // 2


def platen(process: Diffusion, x: Array, xi: Array, signs: Array, dt: Array) -> Array:
    """One step of Platen's explicit scheme of weak order 2 for Ito equations.

    Kloeden & Platen, "Numerical Solution of Stochastic Differential Equations" (1992), eq. 15.1.3.
    `signs`, (m (m - 1) / 2,), make the two-point variables that stand for the Levy areas.
    """
    m = process.noise_dim
    h, unit = jnp.sqrt(dt), jnp.eye(m)
    jumps = jnp.zeros((m, m)).at[np.tril_indices(m, -1)].set(signs * dt)
    areas = jnp.outer(xi, xi) * dt + jumps - jumps.T  # [r, j]: dW_r dW_j + V_rj

    def column(y: Array, e: Array) -> Array:
        return process.factor_vector(y, e)

    def columns(y: Array) -> Array:
        return jax.vmap(column, in_axes=(None, 0))(y, unit)

    a, b = process.drift(x), columns(x)
    later = process.drift(x + a * dt + (h * xi) @ b)
    up, down = (jax.vmap(column)(x + a * dt + s * h * b, unit) for s in (1.0, -1.0))
    out = x + 0.5 * dt * (a + later) + 0.25 * h * xi @ (up + down + 2 * b)
    out = out + 0.25 * h * (xi**2 - 1) @ (up - down)
    if m == 1:
        return out
    above, below = (jax.vmap(columns)(x + s * h * b) for s in (1.0, -1.0))  # [r, j, :]
    others = 1.0 - unit
    out = out + 0.25 * h * jnp.einsum("rj,j,rjd->d", others, xi, above + below - 2 * b[None])
    return out + 0.25 / h * jnp.einsum("rj,rj,rjd->d", others, areas, above - below)


SCHEMES: dict[str, Callable[[Diffusion, int], Step]] = {
    "heun": _heun_step,
    "euler": _euler_step,
    "platen": _platen_step,
}
