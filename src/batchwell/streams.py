"""Keyed random streams: one xoshiro128++ generator per path, seeded by Philox-4x32-10.

A stream is named by (root seed, stream name, path index) and by nothing else, so the
bits a path sees do not depend on how many paths run beside it, in which chunk, lane,
thread or worker. This module is the reference in NumPy: every engine must give the same
bits (`ensemble.rng` is its JAX twin).

Sources: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC11);
Blackman & Vigna, "Scrambled linear pseudorandom number generators" (2021).
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError, whole

U32 = NDArray[np.uint32]
_MASK = np.uint64(0xFFFFFFFF)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)


def stream_key(seed: int, name: str) -> tuple[int, int]:
    """The 64-bit Philox key, as two 32-bit words, of stream `name` under root `seed`.

    Raises
    ------
    InputError
        `seed` is not a whole number in 0 ... 2**64 - 1.

    Examples
    --------
    >>> stream_key(0, "paths") == stream_key(0, "paths") != stream_key(1, "paths")
    True
    """
    seed = whole("seed", seed, 0)
    if seed >= 2**64:
        raise InputError("seed", seed, "must be below 2**64")
    digest = hashlib.sha256(seed.to_bytes(8, "little") + name.encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def philox(counter: U32, key: tuple[int, int]) -> U32:
    """Philox-4x32-10 of `counter`, shape (..., 4), under `key`; same shape."""
    words = [counter[..., i].astype(np.uint64) for i in range(4)]
    k0, k1 = key
    for _ in range(10):
        p0, p1 = words[0] * _MULTIPLIERS[0], words[2] * _MULTIPLIERS[1]
        words = [
            (p1 >> np.uint64(32)) ^ words[1] ^ np.uint64(k0),
            p1 & _MASK,
            (p0 >> np.uint64(32)) ^ words[3] ^ np.uint64(k1),
            p0 & _MASK,
        ]
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack(words, axis=-1).astype(np.uint32)


def path_states(seed: int, name: str, paths: ArrayLike) -> U32:
    """Initial xoshiro128++ states, shape (len(paths), 4), of the given path indices.

    Examples
    --------
    >>> a, b = path_states(7, "sgd", range(10)), path_states(7, "sgd", [3, 9])
    >>> bool((a[[3, 9]] == b).all())
    True
    """
    index = np.asarray(paths, dtype=np.uint64).ravel()
    counter = np.zeros((index.size, 4), dtype=np.uint32)
    counter[:, 0] = (index & _MASK).astype(np.uint32)
    counter[:, 1] = (index >> np.uint64(32)).astype(np.uint32)
    states = philox(counter, stream_key(seed, name))
    states[(states == 0).all(axis=1), 0] = 1  # the all-zero state is xoshiro's fixed point
    return states


def _rotl(x: U32, k: int) -> U32:
    return (x << np.uint32(k)) | (x >> np.uint32(32 - k))


def next_words(states: U32) -> tuple[U32, U32]:
    """One 32-bit word from each generator: (words (n,), new states (n, 4))."""
    s0, s1, s2, s3 = (states[:, i] for i in range(4))
    word = _rotl(s0 + s3, 7) + s0
    t = s1 << np.uint32(9)
    s2, s3 = s2 ^ s0, s3 ^ s1
    s1, s0 = s1 ^ s2, s0 ^ s3
    return word, np.stack([s0, s1, s2 ^ t, _rotl(s3, 11)], axis=1)


def draw_words(states: U32, count: int) -> tuple[U32, U32]:
    """`count` words from each generator: (words (n, count), new states)."""
    out = np.empty((states.shape[0], count), dtype=np.uint32)
    for k in range(count):
        out[:, k], states = next_words(states)
    return out, states


def philox_block(states: U32) -> tuple[U32, U32]:
    """Four words from each generator of ``generator="philox"``: (words (n, 4), new states (n, 4)).

    A state is a counter of blocks (low word, high word) and a key (two words).
    """
    counter = states.copy()
    counter[:, 2:] = 0
    out = np.stack([
        philox(row, (int(s[2]), int(s[3]))) for row, s in zip(counter, states, strict=True)
    ])  # fmt: skip
    after = states.copy()
    after[:, 0] += np.uint32(1)
    after[:, 1] += (after[:, 0] == 0).astype(np.uint32)
    return out, after


def uniform(first: Any, second: Any, xp: Any = np) -> Any:
    """Two words -> a float64 strictly inside (0, 1), on the grid (k + 1/2) / 2**53.

    `xp` is the array namespace (numpy or jax.numpy), so that engines share one formula.
    The top point, which would round to 1, is clipped to the largest double below 1.
    """
    high = (first >> np.uint32(5)).astype(np.float64)
    low = (second >> np.uint32(6)).astype(np.float64)
    # 1 - 2**-53 is the largest double below 1; a logarithm must never meet 0 or 1.
    return xp.minimum((high * 67108864.0 + low + 0.5) * 2.0**-53, 1.0 - 2.0**-53)


def index_below(word: Any, n: int) -> Any:
    """A word -> a whole number in 0 ... n-1 by multiply-shift.

    Its bias is below n / 2**32 relative (1e-6 for n = 4000), far under any sampling error here.
    """
    return ((word.astype(np.uint64) * np.uint64(n)) >> np.uint64(32)).astype(np.int32)


def generator(seed: int, name: str, path: int = 0) -> np.random.Generator:
    """A NumPy generator keyed the same way, for set-up work outside the engines."""
    words = [*stream_key(seed, name), whole("path", path, 0)]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


def normal_pair32(first: Any, second: Any) -> tuple[Any, Any]:
    """Two words -> two float32 standard normals: the noise of ``precision="float32"``.

    Box-Muller on 32-bit uniforms: tails end at 6.8 standard deviations (chance 1e-11 a draw).
    """
    u = first.astype(np.float32) * np.float32(2.0**-32) + np.float32(2.0**-33)
    radius = np.sqrt(np.maximum(np.float32(-2.0) * np.log(u), np.float32(0.0)))
    angle = second.astype(np.float64) * (np.pi / 2**31)
    return radius * np.cos(angle).astype(np.float32), radius * np.sin(angle).astype(np.float32)
