"""Random streams: published vectors, independence of chunks, and the JAX twin bit by bit.

Statistical budget: 3 comparisons of counts or moments at 4 standard errors (6e-5 each); all else
is exact.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, kstest

from batchwell.ensemble import rng as keyed
from batchwell.errors import InputError
from batchwell.noise import NOISES, normal_pair
from batchwell.streams import (
    draw_words,
    generator,
    index_below,
    next_words,
    path_states,
    philox,
    stream_key,
    uniform,
)

M32 = 0xFFFFFFFF


def philox_twin(counter: list[int], key: list[int]) -> list[int]:
    """Philox-4x32-10 with Python integers, as in the paper's figure."""
    c, k = list(counter), list(key)
    for _ in range(10):
        left, right = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(right >> 32) ^ c[1] ^ k[0], right & M32, (left >> 32) ^ c[3] ^ k[1], left & M32]
        k = [(k[0] + 0x9E3779B9) & M32, (k[1] + 0xBB67AE85) & M32]
    return c


def xoshiro_twin(s: list[int]) -> tuple[int, list[int]]:
    """xoshiro128++ with Python integers, transcribed from the authors' C code."""

    def rotl(x: int, k: int) -> int:
        return ((x << k) | (x >> (32 - k))) & M32

    s = list(s)
    result = (rotl((s[0] + s[3]) & M32, 7) + s[0]) & M32
    t = (s[1] << 9) & M32
    s[2] ^= s[0]
    s[3] ^= s[1]
    s[1] ^= s[2]
    s[0] ^= s[3]
    s[2] ^= t
    s[3] = rotl(s[3], 11)
    return result, s


class Words:
    """Words of one path, one after the other, from the Python twin."""

    def __init__(self, state: np.ndarray) -> None:
        self.state = [int(v) for v in state]

    def __call__(self) -> int:
        word, self.state = xoshiro_twin(self.state)
        return word

    def below(self, n: int) -> int:
        return (self() * n) >> 32


@pytest.mark.parametrize(
    ("counter", "key", "out"),
    # Random123's known-answer vectors for philox4x32-10.
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([M32] * 4, [M32] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter, key, out):
    assert philox_twin(counter, key) == out
    got = philox(np.array([counter], dtype=np.uint32), (key[0], key[1]))
    assert got[0].tolist() == out


words32 = st.integers(0, M32)


@given(st.lists(words32, min_size=4, max_size=4), st.tuples(words32, words32))
def test_philox_is_its_twin(counter, key):
    got = philox(np.array(counter, dtype=np.uint32), key)
    assert got.tolist() == philox_twin(counter, list(key))


def test_xoshiro_known_answer():
    # State 1, 2, 3, 4: the vector that the reference C code gives (also rand_xoshiro's test).
    out = [641, 1573767, 3222811527, 3517856514, 836907274, 4247214768, 3867114732, 1355841295]
    state = np.array([[1, 2, 3, 4]], dtype=np.uint32)
    assert draw_words(state, 8)[0][0].tolist() == out


@given(st.lists(words32, min_size=4, max_size=4))
def test_xoshiro_is_its_twin(state):
    word, after = next_words(np.array([state], dtype=np.uint32))
    want, next_state = xoshiro_twin(state)
    assert int(word[0]) == want
    assert after[0].tolist() == next_state


def test_no_state_is_the_fixed_point():
    assert (path_states(3, "s", np.arange(10_000)) != 0).any(axis=1).all()


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8))
def test_states_depend_on_seed_name_and_index_alone(seed, index):
    whole = path_states(seed, "a", np.array(index, dtype=np.uint64))
    for row, k in zip(whole, index, strict=True):
        assert (path_states(seed, "a", np.array([k], dtype=np.uint64))[0] == row).all()
    assert not (path_states(seed, "b", np.array(index, dtype=np.uint64)) == whole).all()


def test_a_high_index_uses_both_counter_words():
    low, high = path_states(1, "s", np.array([5, 5 + 2**32], dtype=np.uint64))
    assert (low != high).any()


def test_words_do_not_depend_on_how_they_are_drawn():
    state = path_states(5, "s", range(6))
    all_at_once, end = draw_words(state, 20)
    first, middle = draw_words(state[2:4], 7)
    second, last = draw_words(middle, 13)
    assert (np.hstack([first, second]) == all_at_once[2:4]).all()
    assert (last == end[2:4]).all()


def test_keys_differ_and_seeds_are_checked():
    keys = {stream_key(s, n) for s in range(50) for n in ("a", "b", "ab", "")}
    assert len(keys) == 200
    for seed in (-1, 2**64, 0.5, True, "1"):
        with pytest.raises(InputError, match="seed = "):
            stream_key(seed, "a")  # type: ignore[arg-type]
    a, b = (generator(1, "x", p).random(4) for p in (0, 1))
    assert (a == generator(1, "x").random(4)).all()
    assert (a != b).any()


@given(words32, words32)
def test_uniforms_lie_strictly_inside(first, second):
    u = float(uniform(np.uint32(first), np.uint32(second)))
    assert 0 < u < 1
    exact = ((first >> 5) * 2**26 + (second >> 6) + 0.5) * 2.0**-53
    assert u == min(exact, 1 - 2.0**-53)


def test_uniforms_at_the_ends():
    zero, top = np.uint32(0), np.uint32(M32)
    assert uniform(zero, zero) == 2.0**-54
    assert uniform(top, top) == 1 - 2.0**-53
    assert np.isfinite(normal_pair([zero, zero, zero, zero], np)).all()
    assert np.isfinite(normal_pair([top, top, top, top], np)).all()


@given(words32, st.integers(1, 2**31 - 1))
def test_indices_stay_in_range(word, n):
    assert int(index_below(np.array([word], dtype=np.uint32), n)[0]) == (word * n) >> 32


def test_uniforms_and_indices_are_uniform():
    # A p-value below 6e-5 is the false alarm.
    words, _ = draw_words(path_states(20260101, "uniform", range(5_000)), 20)
    u = uniform(words[:, :10], words[:, 10:])
    assert kstest(u.ravel(), "uniform").pvalue > 6e-5
    counts = np.bincount(index_below(words, 120).ravel(), minlength=120)
    statistic = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    assert chi2.sf(statistic, 119) > 6e-5
    # Control: a remainder that leaves out a single index is seen.
    counts = np.bincount(index_below(words, 119).ravel(), minlength=120)
    assert chi2.sf(float(((counts - counts.mean()) ** 2 / counts.mean()).sum()), 119) < 1e-12


def test_paths_are_not_correlated():
    words, _ = draw_words(path_states(1, "s", range(2_000)), 64)
    u = uniform(words[:, ::2], words[:, 1::2]) - 0.5
    neighbours = (u[1:] * u[:-1]).mean() * 12 * np.sqrt(u[1:].size)
    successive = (u[:, 1:] * u[:, :-1]).mean() * 12 * np.sqrt(u[:, 1:].size)
    assert abs(neighbours) < 4
    assert abs(successive) < 4


STATES = path_states(99, "twin", range(16))


def test_jax_words_are_the_same_bits():
    drawn, after = jax.vmap(lambda s: keyed.words(s, 37))(STATES)
    want, end = draw_words(STATES, 37)
    assert (np.asarray(drawn) == want).all()
    assert (np.asarray(after) == end).all()


def test_jax_indices_and_normals_are_the_same():
    def both(state):
        rows, state = keyed.indices(state, 9, 569)
        return rows, *keyed.normals(state, 7)

    rows, values, after = (np.asarray(a) for a in jax.jit(jax.vmap(both))(STATES))
    words, state = draw_words(STATES, 9)
    assert (rows == index_below(words, 569)).all()
    words, state = draw_words(state, 16)
    quads = words.reshape(16, 4, 4)
    pairs = normal_pair([quads[:, :, k] for k in range(4)], np)
    want = np.stack(pairs, axis=2).reshape(16, 8)[:, :7]
    np.testing.assert_allclose(values, want, rtol=1e-13, atol=1e-14)
    assert (after == state).all()


@pytest.mark.parametrize("name", sorted(NOISES))
def test_jax_draws_are_the_same(name):
    law = NOISES[name]()
    values, after = jax.vmap(lambda s: keyed.draws(s, law, 4))(STATES)
    per = 2 if name == "gaussian" else law.words
    words, state = draw_words(STATES, 4 * per)
    if name == "gaussian":
        quads = words.reshape(16, 2, 4)
        want = np.stack(normal_pair([quads[:, :, k] for k in range(4)], np), 2).reshape(16, 4)
    else:
        cells = words.reshape(16, 4, per)
        want = law.draw([cells[:, :, k] for k in range(per)], np)
    np.testing.assert_allclose(np.asarray(values), want, rtol=1e-12, atol=1e-14)
    assert (np.asarray(after) == state).all()


def test_jax_shuffles_are_fisher_yates():
    n, count = 11, 4
    order = jnp.arange(n, dtype=jnp.int32)

    def both(state):
        whole, state = keyed.shuffled(state, order)
        part, state = keyed.subset_first(state, whole, count)
        return whole, part, state

    whole, part, after = (np.asarray(a) for a in jax.jit(jax.vmap(both))(STATES))
    for row in range(len(STATES)):
        draw, perm = Words(STATES[row]), list(range(n))
        for last in range(n - 1, 0, -1):
            j = draw.below(last + 1)
            perm[last], perm[j] = perm[j], perm[last]
        assert whole[row].tolist() == perm
        for k in range(count):
            j = k + draw.below(n - k)
            perm[k], perm[j] = perm[j], perm[k]
        assert part[row].tolist() == perm
        assert after[row].tolist() == draw.state


def test_shuffles_and_subsets_are_uniform():
    states = path_states(7, "shuffles", range(24_000))
    order = jnp.arange(4, dtype=jnp.int32)
    whole = np.asarray(jax.vmap(lambda s: keyed.shuffled(s, order)[0])(states))
    part = np.asarray(jax.vmap(lambda s: keyed.subset_first(s, order, 2)[0])(states))
    for codes, kinds in ((whole @ [64, 16, 4, 1], 24), (np.sort(part[:, :2]) @ [4, 1], 6)):
        _, counts = np.unique(codes, return_counts=True)
        assert len(counts) == kinds
        statistic = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
        assert chi2.sf(statistic, kinds - 1) > 6e-5
