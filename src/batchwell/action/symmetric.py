"""Elementary symmetric polynomials: the cumulant function of a random subset.

The sum over a uniformly random B-subset S of n numbers has
``E exp(sum_S k_i) = e_B(exp k) / C(n, B)``, e_B the elementary symmetric polynomial.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from .._jax import jax, jnp

Array = Any
# Aliases are kept below exp(-44) = 8e-20: times any sqrt(2 pi n) still less than rounding.
SMALL = 44.0


def log_mean_symmetric(exponents: Array, size: Array | int, nodes: int | None = None) -> Array:
    """log[e_B(exp k) / C(n, B)] of k (n,), B = `size` < n: scalar.

    A traced `size` needs `nodes` (`node_count`), so that one compiled function serves many sizes.

    Cauchy's integral of prod(1 + z a_i) / z^(B+1), a = exp k, by the trapezoid rule on the circle
    through the saddle r, O(n) a node. With inclusion chances ``pi_i = r a_i / (1 + r a_i)`` of
    sum B it reads e_B = r^-B prod(1 + r a_i) P(B included), and the rule of M nodes is exact
    up to P(B +- M included), which Chernoff's bound puts below rounding. Everything is
    taken relative to k = 0, so that small k cost no digits. Derivatives hold r fixed, of which
    e_B does not depend; the first two are written out: sums over nodes before sums over examples.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> float(log_mean_symmetric(jnp.log(jnp.array([1.0, 2.0, 3.0])), 2).round(9))
    1.299282984
    """
    nodes = node_count(exponents.shape[0], int(size)) if nodes is None else nodes
    if jnp.iscomplexobj(exponents):
        return _turned(exponents, size, nodes)
    shift = jax.lax.stop_gradient(jnp.mean(exponents))
    # d(mean) = 0 by the stop: the derivative of `size * shift` is in the chances' sum, B.
    return _centred(exponents - shift, jnp.asarray(size, float), nodes) + size * shift


def _turned(k: Array, size: Array | int, nodes: int) -> Array:
    """The same for complex k (n,), on the circle of their real parts; no derivatives."""
    n = k.shape[0]
    half = jnp.asarray(_angles(nodes))
    angles, start = jnp.concatenate([half, -half]), _logit(n, size)
    rho = _saddle(jnp.real(k), size)
    turned = jnp.exp(k + rho + 1j * angles[:, None])
    terms = jnp.sum(jnp.log1p(turned) - jnp.log1p(size / (n - size)), axis=1)
    parts = jnp.exp(terms - 1j * size * angles - size * (rho - start))
    return jnp.log(jnp.mean(parts)) - _flat(n, size, nodes)


class _Nodes(NamedTuple):
    """Complex weights (M,) whose real parts sum to 1, tilts q = z a / (1 + z a) (M, n)."""

    weights: Array
    real: Array
    imag: Array
    log_chance: Array

    def mean(self, factor: Array) -> Array:
        """Re sum_m w_m factor_m q_m, shape (n,), for complex factors (M,)."""
        u = self.weights * factor
        return jnp.real(u) @ self.real - jnp.imag(u) @ self.imag


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _centred(k: Array, size: Array, nodes: int) -> Array:
    n = k.shape[0]
    rho, start = _saddle(k, size), _logit(n, size)
    # log(1 + r a) - log(1 + r0), r0 the saddle of k = 0.
    product = jnp.sum(jnp.log1p(size / n * jnp.expm1(k + rho - start))) - size * (rho - start)
    return product + _nodes(k, size, rho, nodes).log_chance - _flat(n, size, nodes)


@_centred.defjvp
def _centred_jvp(nodes: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    return _centred(*primals, nodes), jnp.dot(_included(*primals, nodes), tangents[0])


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _included(k: Array, size: Array, nodes: int) -> Array:
    """Chance of each example to be in the tilted subset: the gradient, shape (n,)."""
    at = _nodes(k, size, _saddle(k, size), nodes)
    return at.mean(jnp.ones_like(at.weights))


@_included.defjvp
def _included_jvp(nodes: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (k, size), (t, _) = primals, tangents
    at = _nodes(k, size, _saddle(k, size), nodes)
    wr, wi = jnp.real(at.weights), jnp.imag(at.weights)
    chances = wr @ at.real - wi @ at.imag
    square = wr @ (at.real**2 - at.imag**2) - 2 * (wi @ (at.real * at.imag))
    both = at.mean(jax.lax.complex(at.real @ t, at.imag @ t))
    return chances, (chances - square) * t + both - chances * jnp.dot(chances, t)


def _nodes(k: Array, size: Array, rho: Array, nodes: int) -> _Nodes:
    angles = jnp.asarray(_angles(nodes))
    real, imag = _tilts(k + rho, nodes)
    turned = jnp.exp(-1j * size * angles) / len(angles)
    parts = turned * _characteristic(k + rho, nodes)
    chance = jnp.sum(jnp.real(parts))
    return _Nodes(parts / chance, real, imag, jnp.log(chance))


def _tilts(t: Array, nodes: int) -> tuple[Array, Array]:
    """Real and imaginary part (M, n) of q = z a / (1 + z a), t = log(r a)."""
    angles = jnp.asarray(_angles(nodes))[:, None]
    pi = jax.nn.sigmoid(t)
    both, cos = pi * (1 - pi), jnp.cos(angles)
    below = 1 - 2 * both * (1 - cos)  # |1 + pi (e^{i phi} - 1)|^2
    return (pi * pi + both * cos) / below, both * jnp.sin(angles) / below


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _characteristic(t: Array, nodes: int) -> Array:
    """prod_i (1 + pi_i (e^{i phi} - 1)), shape (M,): E e^{i phi N} of the number included."""
    angles = jnp.asarray(_angles(nodes))[:, None]
    pi = jax.nn.sigmoid(t)
    return jnp.prod(jax.lax.complex(1 + pi * (jnp.cos(angles) - 1), pi * jnp.sin(angles)), axis=1)


@_characteristic.defjvp
def _characteristic_jvp(nodes: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (t,), (dt,) = primals, tangents
    (real, imag), value = _tilts(t, nodes), _characteristic(t, nodes)
    return value, value * jax.lax.complex((real - jax.nn.sigmoid(t)) @ dt, imag @ dt)


def _angles(nodes: int) -> np.ndarray:
    """Upper half of M equally spaced angles; the midpoints avoid phi = pi."""
    return (np.arange(nodes // 2) + 0.5) * (2 * math.pi / nodes)


def _logit(n: int, size: Array | int) -> Array:
    """log r of the saddle at k = 0."""
    return jnp.log(size / (n - size))


# Sizes up to this one share a rule, larger ones another: many nodes cost more than a compilation.
SMALL_BATCH = 32


@lru_cache(maxsize=256)
def node_count(n: int, size: int) -> int:
    """Even number M of nodes, the same for all sizes up to 32 and for all above."""
    low, high = (1, min(SMALL_BATCH, n - 1)) if size <= SMALL_BATCH else (SMALL_BATCH + 1, n - 1)
    return max(_count(n, b) for b in range(low, high + 1))


@lru_cache(maxsize=256)
def _count(n: int, size: int) -> int:
    """Even M with P(B +- M) <= exp(-SMALL): Chernoff's bound for sums of mean B, or Hoeffding's."""
    b, most = min(size, n - size), max(size, n - size) + 1
    m = 2
    while m < most and max(b * ((1 + m / b) * math.log1p(m / b) - m / b), 2 * m * m / n) < SMALL:
        m += 2
    return m


def _flat(n: int, size: Array | int, nodes: int) -> Array:
    """log P(B included) at k = 0, by the same rule: its rounding is shared."""
    angles = jnp.asarray(_angles(nodes))
    turned = 1 + size / n * (jnp.exp(1j * angles) - 1)
    return jnp.log(jnp.mean(jnp.real(turned**n * jnp.exp(-1j * size * angles))))


def _saddle(k: Array, size: Array | int) -> Array:
    """Rho = log r with sum of sigmoid(k + rho) near `size`, by safeguarded Newton."""
    k = jax.lax.stop_gradient(k)
    guess = _logit(k.shape[0], size)
    lower, upper = guess - jnp.max(k), guess - jnp.min(k)

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        rho, low, high, _, count = state
        pi = jax.nn.sigmoid(k + rho)
        excess = jnp.sum(pi) - size
        low, high = jnp.where(excess < 0, rho, low), jnp.where(excess < 0, high, rho)
        new = rho - excess / jnp.maximum(jnp.sum(pi * (1 - pi)), 1e-300)
        new = jnp.where((new > low) & (new < high), new, 0.5 * (low + high))
        return new, low, high, jnp.abs(excess), count + 1

    def unfinished(state: tuple[Array, ...]) -> Array:
        # Any radius will do for the result: only the bound on aliases wants the saddle.
        return (state[3] > 1e-4) & (state[4] < 60)

    middle = jnp.clip(guess, lower, upper)
    return jax.lax.while_loop(unfinished, step, (middle, lower, upper, jnp.inf, 0))[0]
