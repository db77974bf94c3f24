"""JAX twin of `batchwell.streams`: the same bits, for one path at a time (vmap for many).

A generator is an array of four uint32 words; every function returns (value, new state).
"""

from __future__ import annotations

from typing import Any

from .._jax import jax, jnp
from ..noise import Noise, normal_pair
from ..streams import index_below

Array = Any


def _rotl(x: Array, k: int) -> Array:
    return (x << jnp.uint32(k)) | (x >> jnp.uint32(32 - k))


def next_word(state: Array) -> tuple[Array, Array]:
    """One word of xoshiro128++ from `state` (4,)."""
    s0, s1, s2, s3 = state
    word = _rotl(s0 + s3, 7) + s0
    t = s1 << jnp.uint32(9)
    s2, s3 = s2 ^ s0, s3 ^ s1
    s1, s0 = s1 ^ s2, s0 ^ s3
    return word, jnp.stack([s0, s1, s2 ^ t, _rotl(s3, 11)])


def words(state: Array, count: int) -> tuple[Array, Array]:
    """`count` words in order: shape (count,)."""

    def draw(s: Array, _: None) -> tuple[Array, Array]:
        word, s = next_word(s)
        return s, word

    state, out = jax.lax.scan(draw, state, None, length=count, unroll=min(count, 8))
    return out, state


def indices(state: Array, count: int, n: int) -> tuple[Array, Array]:
    """`count` independent indices in 0 ... n-1, one word each."""
    drawn, state = words(state, count)
    return index_below(drawn, n), state


def normals(state: Array, count: int) -> tuple[Array, Array]:
    """`count` standard normals, four words a pair (a spare one is thrown away)."""
    pairs = (count + 1) // 2
    drawn, state = words(state, 4 * pairs)
    quad = drawn.reshape(pairs, 4)
    first, second = normal_pair([quad[:, k] for k in range(4)], jnp)
    return jnp.stack([first, second], axis=1).ravel()[:count], state


def draws(state: Array, law: Noise, count: int) -> tuple[Array, Array]:
    """`count` independent draws of a noise law."""
    if law.name == "gaussian":
        return normals(state, count)
    drawn, state = words(state, law.words * count)
    table = drawn.reshape(count, law.words)
    return law.draw([table[:, k] for k in range(law.words)], jnp), state


def shuffled(state: Array, order: Array) -> tuple[Array, Array]:
    """A uniformly random order by Fisher-Yates, last position first."""
    n = order.shape[0]

    def swap(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        perm, s = carry
        last = n - 1 - k
        word, s = next_word(s)
        wide = word.astype(jnp.uint64) * (last + 1).astype(jnp.uint64)
        return _swapped(perm, last, (wide >> jnp.uint64(32)).astype(jnp.int32)), s

    return jax.lax.fori_loop(0, n - 1, swap, (order, state))


def subset_first(state: Array, order: Array, count: int) -> tuple[Array, Array]:
    """Partial Fisher-Yates: afterwards the first `count` entries are a uniform subset.

    `order` may be any permutation, so it is carried from step to step and never rebuilt.
    """
    n = order.shape[0]

    def swap(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        perm, s = carry
        word, s = next_word(s)
        wide = word.astype(jnp.uint64) * (n - k).astype(jnp.uint64)
        return _swapped(perm, k, k + (wide >> jnp.uint64(32)).astype(jnp.int32)), s

    return jax.lax.fori_loop(0, count, swap, (order, state))


def _swapped(order: Array, i: Array, j: Array) -> Array:
    a, b = order[i], order[j]
    return order.at[i].set(b).at[j].set(a)
