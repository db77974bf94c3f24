"""Kernels beside NumPy twins that are obviously right: the same random bits, path by path.

Whole numbers (generators, orders of data, steps of exits, counts) must agree bit for bit, reals to
rounding. Gradients are written by hand, so that nothing is shared but `streams` and the noise laws.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from batchwell import SGD, additive, ball, diffusion, finite_sum
from batchwell.ensemble import advance, first_exits, generators, observe, start
from batchwell.ensemble.native import compile_kernel
from batchwell.ensemble.vector import Code, module
from batchwell.errors import InputError
from batchwell.noise import NOISES, normal_pair
from batchwell.streams import draw_words, index_below, normal_pair32, path_states, philox_block
from batchwell.streams import uniform as uniform_of

M, SEED = 21, 11
CLOSE = {"rtol": 1e-12, "atol": 1e-13}


class Draws:
    """The random words of M paths, and what is made of them."""

    def __init__(self, generator="xoshiro", stream="paths"):
        self.states, self.generator = path_states(SEED, stream, range(M)), generator

    def words(self, count):
        if self.generator == "xoshiro":
            drawn, self.states = draw_words(self.states, count)
            return [drawn[:, k] for k in range(count)]
        out = []
        for _ in range(-(-count // 4)):
            block, self.states = philox_block(self.states)
            out.extend(block.T)
        return out[:count]

    def normals(self, count):
        pairs = [normal_pair(self.words(4), np) for _ in range((count + 1) // 2)]
        return np.stack([v for pair in pairs for v in pair][:count], axis=1)

    def noise(self, law, count):
        if law.name == "gaussian":
            return self.normals(count)
        return np.stack([law.draw(self.words(law.words), np) for _ in range(count)], axis=1)

    def below(self, n):
        return index_below(self.words(1)[0], n)


GENERATORS = pytest.mark.parametrize("generator", ["xoshiro", "philox"])


# -- normals ----------------------------------------------------------------------------------
@GENERATORS
def test_normals(generator, mode):
    """dX = dW from 0 in one step of length 1: a unit or two in the last place."""
    brownian = diffusion(lambda x: 0 * x, lambda x: jnp.eye(4), 4)
    state = start(brownian, np.zeros(4), M, SEED, substeps=1)
    there = advance(brownian, state, 1, substeps=1, scheme="euler", generator=generator)
    twin = Draws(generator)
    want = twin.normals(4)
    np.testing.assert_array_equal(there.rng, twin.states)
    assert np.abs(there.x - want).max() <= 4 * np.spacing(np.abs(want).max())


def test_single_precision_normals(mode):
    brownian = diffusion(lambda x: 0 * x, lambda x: jnp.eye(4), 4)
    state = start(brownian, np.zeros(4), M, SEED, substeps=1)
    there = advance(brownian, state, 1, substeps=1, scheme="euler", precision="float32")
    twin = Draws()
    want = np.stack([v for _ in range(2) for v in normal_pair32(*twin.words(2))], axis=1)
    np.testing.assert_array_equal(there.rng, twin.states)
    assert np.abs(there.x - want).max() <= 4 * np.spacing(np.float32(np.abs(want).max()))


# -- additive noise ---------------------------------------------------------------------------
SCALE = np.array([[0.7, 0.2], [0.0, 0.5]])


def additive_twin(draws, law, x, steps, size, eta, mu):
    velocity = np.zeros_like(x)
    for _ in range(steps):
        z = np.mean([draws.noise(law, 2) for _ in range(size)], axis=0) if size > 1 else (
            draws.noise(law, 2)
        )  # fmt: skip
        velocity = mu * velocity + x**3 - x + z @ SCALE.T
        x = x - eta * velocity
    return x


@GENERATORS
@pytest.mark.parametrize("law", sorted(NOISES))
def test_sgd_with_additive_noise(law, generator, mode):
    loss = additive(lambda x: jnp.sum(x**4) / 4 - x @ x / 2, law, 2, SCALE)
    for size, mu in ((1, 0.0), (3, 0.5)):
        process = SGD(loss, 0.05, size, momentum=mu)
        there = advance(process, start(process, [0.3, -0.4], M, SEED), 5, generator=generator)
        twin = Draws(generator)
        x = np.tile([0.3, -0.4], (M, 1))
        want = additive_twin(twin, loss.noise, x, 5, size, 0.05, mu)
        np.testing.assert_array_equal(there.rng, twin.states)
        np.testing.assert_allclose(there.x, want, **CLOSE)


# -- minibatches ------------------------------------------------------------------------------
RNG = np.random.default_rng(4)
ROWS, LABELS = RNG.standard_normal((12, 3)), np.where(RNG.random(12) < 0.5, -1.0, 1.0)
LOGISTIC = finite_sum(lambda w, z: jnp.logaddexp(0.0, -z[1] * (z[0] @ w)), (ROWS, LABELS), 3)


def swapped(order, i, j):
    every = np.arange(M)
    order[every, i], order[every, j] = order[every, j], order[every, i].copy()


def chosen(draws, sampling, k, size, order):
    """Rows (M, size) of a minibatch; `order` is shuffled in place."""
    n = len(ROWS)
    if sampling == "with_replacement":
        return np.stack([draws.below(n) for _ in range(size)], axis=1)
    if sampling == "without_replacement":
        for i in range(size):
            swapped(order, np.full(M, i), i + draws.below(n - i))
        return order[:, :size]
    place = k % (n // size)
    if place == 0:
        for last in range(n - 1, 0, -1):
            swapped(order, np.full(M, last), draws.below(last + 1))
    return order[:, place * size : (place + 1) * size]


def logistic_gradient(w, rows):
    z, y = ROWS[rows], LABELS[rows]
    slope = -y / (1 + np.exp(y * np.einsum("mbd,md->mb", z, w)))
    return np.einsum("mb,mbd->md", slope, z) / rows.shape[1]


@GENERATORS
@pytest.mark.parametrize("sampling", ["with_replacement", "without_replacement", "reshuffle"])
def test_minibatch_sgd(sampling, generator, mode):
    for size, mu in ((1, 0.0), (1, 0.6), (4, 0.0), (4, 0.6)):
        process = SGD(LOGISTIC, 0.3, size, sampling, mu)
        there = advance(process, start(process, np.zeros(3), M, SEED), 5, generator=generator)
        twin, w, v = Draws(generator), np.zeros((M, 3)), np.zeros((M, 3))
        order = np.tile(np.arange(12), (M, 1))
        for k in range(5):
            v = mu * v + logistic_gradient(w, chosen(twin, sampling, k, size, order))
            w = w - 0.3 * v
        np.testing.assert_array_equal(there.rng, twin.states)
        np.testing.assert_allclose(there.x, w, **CLOSE)
        if sampling != "with_replacement":
            np.testing.assert_array_equal(there.memory[0], order)


# -- diffusions -------------------------------------------------------------------------------
def drift(x):
    return np.stack([x[:, 0] - x[:, 0] ** 3, -(1 + x[:, 0] ** 2) * x[:, 1]], axis=1)


def factor(x):
    out = np.zeros((len(x), 2, 2))
    out[:, 0, 0] = 0.5 * np.sqrt(1 + x[:, 1] ** 2)
    out[:, 1, 0], out[:, 1, 1] = 0.1 * x[:, 0], 0.4
    return out


PLANE = diffusion(
    lambda x: jnp.array([x[0] - x[0] ** 3, -(1 + x[0] ** 2) * x[1]]),
    lambda x: jnp.array([[0.5 * jnp.sqrt(1 + x[1] ** 2), 0.0], [0.1 * x[0], 0.4]]),
    2,
    0.1,
)


def euler(draws, x, dt):
    kick = np.sqrt(dt) * np.einsum("mij,mj->mi", factor(x), draws.normals(2))
    return x + dt * drift(x) + kick, kick


@GENERATORS
@pytest.mark.parametrize("scheme", ["euler", "heun"])
def test_diffusion(scheme, generator, mode):
    state = start(PLANE, [0.2, -0.1], M, SEED, substeps=2)
    there = advance(PLANE, state, 3, substeps=2, scheme=scheme, generator=generator)
    twin, x, dt = Draws(generator), np.tile([0.2, -0.1], (M, 1)), 0.05
    for _ in range(6):
        ahead, kick = euler(twin, x, dt)
        x = ahead if scheme == "euler" else x + dt / 2 * (drift(x) + drift(ahead)) + kick
    np.testing.assert_array_equal(there.rng, twin.states)
    np.testing.assert_allclose(there.x, x, **CLOSE)


@GENERATORS
def test_weak_order_two(generator, mode):
    """Platen's scheme for one noise: Kloeden & Platen (1992), eq. 15.1.1."""
    process = diffusion(lambda x: jnp.sin(x), lambda x: 0.3 * jnp.cos(x)[:, None], 1, 0.1)

    def a(x):
        return np.sin(x)

    def b(x):
        return 0.3 * np.cos(x)

    there = advance(process, start(process, [0.5], M, SEED, substeps=1), 4, substeps=1,
                    scheme="platen", generator=generator)  # fmt: skip
    twin, x, dt = Draws(generator), np.full((M, 1), 0.5), 0.1
    for _ in range(4):
        w = np.sqrt(dt) * twin.normals(1)
        up, down = (x + a(x) * dt + s * b(x) * np.sqrt(dt) for s in (1, -1))
        x = (
            x + (a(x + a(x) * dt + b(x) * w) + a(x)) * dt / 2
            + (b(up) + b(down) + 2 * b(x)) * w / 4
            + (b(up) - b(down)) * (w**2 - dt) / (4 * np.sqrt(dt))
        )  # fmt: skip
    np.testing.assert_array_equal(there.rng, twin.states)
    np.testing.assert_allclose(there.x, x, rtol=1e-11)


def platen(draws, x, dt):
    """Kloeden & Platen (1992), eq. 15.1.3, term by term: b(y)[:, :, j] is the j-th noise's field."""
    h, w = np.sqrt(dt), np.sqrt(dt) * draws.normals(2)
    sign = np.where(draws.words(1)[0] >> np.uint32(31) == 0, dt, -dt)
    area = {(1, 0): sign, (0, 1): -sign}
    a, b = drift(x), factor(x)
    out = x + dt / 2 * (drift(x + a * dt + np.einsum("mij,mj->mi", b, w)) + a)
    for j in range(2):
        up, down = (factor(x + a * dt + s * h * b[:, :, j])[:, :, j] for s in (1, -1))
        r = 1 - j
        above, below = (factor(x + s * h * b[:, :, r])[:, :, j] for s in (1, -1))
        first, square = w[:, j, None], (w[:, j] ** 2 - dt)[:, None]
        cross = (w[:, j] * w[:, r] + area[r, j])[:, None]
        out += (up + down + 2 * b[:, :, j] + above + below - 2 * b[:, :, j]) * first / 4
        out += ((up - down) * square + (above - below) * cross) / (4 * h)
    return out


@GENERATORS
def test_weak_order_two_of_several_noises(generator, mode):
    state = start(PLANE, [0.2, -0.1], M, SEED, substeps=2)
    there = advance(PLANE, state, 3, 2, scheme="platen", generator=generator)
    twin, x = Draws(generator), np.tile([0.2, -0.1], (M, 1))
    for _ in range(6):
        x = platen(twin, x, 0.05)
    np.testing.assert_array_equal(there.rng, twin.states)
    np.testing.assert_allclose(there.x, x, rtol=1e-11, atol=1e-12)


# -- exits and sums ---------------------------------------------------------------------------
@GENERATORS
@pytest.mark.parametrize("bridge", [False, True])
def test_first_exits(bridge, generator, mode):
    """Level |x|^2 - r^2 or as the ball has it; the bridge takes two more words a step."""
    domain, horizon, dt = ball([0.0, 0.0], 0.8), 60, 0.1
    level = jax.vmap(domain.level)
    slope = jax.vmap(jax.grad(domain.level))
    found = first_exits(PLANE, [0.2, -0.1], domain, horizon, M, SEED, substeps=1, bridge=bridge,
                        scheme="euler", generator=generator)  # fmt: skip
    twin, x = Draws(generator, "exits"), np.tile([0.2, -0.1], (M, 1))
    left, points = np.zeros(M, int), x.copy()
    for k in range(1, horizon + 1):
        before, g = np.asarray(level(x)), np.asarray(slope(x))
        spread = np.einsum("mi,mij->mj", g, factor(x))
        variance = dt * (spread**2).sum(axis=1)
        x, _ = euler(twin, x, dt)
        after = np.asarray(level(x))
        out = after >= 0
        if bridge:
            u = uniform_of(*twin.words(2))
            with np.errstate(over="ignore"):
                out |= u < np.exp(-2 * before * after / variance)
        new = out & (left == 0)
        left[new], points[new] = k, x[new]
        points[left == 0] = x[left == 0]
    np.testing.assert_array_equal(found.observed, left > 0)
    np.testing.assert_array_equal(found.steps, np.where(left > 0, left, horizon))
    np.testing.assert_allclose(found.points, points, rtol=1e-9, atol=1e-11)
    assert found.observed.sum() > 0


@GENERATORS
def test_sums_along_paths(generator, mode):
    state = start(PLANE, [0.2, -0.1], M, SEED, substeps=1)
    seen = observe(PLANE, state, 12, lambda x: jnp.array([x[0], x[0] * x[1]]), every=3,
                   bins=(-1.0, 1.0, 8), substeps=1, scheme="euler", generator=generator)  # fmt: skip
    twin, x = Draws(generator), np.tile([0.2, -0.1], (M, 1))
    totals, squares, values = 0.0, 0.0, []
    for k in range(1, 13):
        x, _ = euler(twin, x, 0.1)
        if k % 3 == 0:
            values.append(np.stack([x[:, 0], x[:, 0] * x[:, 1]], axis=1))
            totals, squares = totals + values[-1], squares + values[-1] ** 2
    np.testing.assert_allclose(seen.totals, totals, **CLOSE)
    np.testing.assert_allclose(seen.squares, squares, **CLOSE)
    for k, column in enumerate(np.concatenate(values).T):
        inner = np.histogram(column, np.linspace(-1, 1, 9))[0]
        outer = [(column < -1).sum(), (column >= 1).sum()]
        np.testing.assert_array_equal(seen.counts[k], [outer[0], *inner, outer[1]])


def test_a_wrong_twin_is_caught():
    """The words of a pair in another order, or a batch summed and not averaged, do not pass."""
    loss = additive(lambda x: jnp.sum(x**4) / 4 - x @ x / 2, "gaussian", 2, SCALE)
    process = SGD(loss, 0.05, 3)
    there = advance(process, start(process, [0.3, -0.4], M, SEED), 5)
    x = np.tile([0.3, -0.4], (M, 1))
    for size, eta in ((2, 0.05), (3, 0.051)):
        want = additive_twin(Draws(), loss.noise, x, 5, size, eta, 0.0)
        assert not np.allclose(there.x, want, rtol=1e-6)


# -- Philox itself ----------------------------------------------------------------------------
# Random123's known-answer vectors for philox4x32-10: counter, key, words.
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0],
     [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
]  # fmt: skip


def philox_kernel():
    """Machine code that turns (counter, key) of 8 lanes, (6, 8), into words (4, 8) in place."""
    c = Code("block", ["args"], 8)
    table = c.load(c.args[0], "ptr")
    given = [c.load(table, "i32", c.i64(8 * k), 8) for k in range(6)]
    for k, word in enumerate(generators.philox(c, given[:4], given[4:])):
        c.store(word, table, c.i64(8 * k))
    return compile_kernel(module([c]), "block")


def test_philox_gives_the_known_answers():
    table = np.zeros((6, 8), np.uint32)
    for lane, (counter, key, _) in enumerate(KNOWN_ANSWERS):
        table[:, lane] = [*counter, *key]
    philox_kernel()(np.array([table.ctypes.data]))
    for lane, (_, _, words) in enumerate(KNOWN_ANSWERS):
        assert table[:4, lane].tolist() == words


def test_philox_carries_into_the_high_word():
    states = np.array([[0xFFFFFFFF, 7, 1, 2]], np.uint32)
    assert philox_block(states)[1].tolist() == [[0, 8, 1, 2]]
    process = diffusion(lambda x: 0 * x, lambda x: jnp.eye(2), 2)
    state = start(process, np.zeros(2), 1, SEED, substeps=1)
    state = dataclasses.replace(state, rng=states)
    there = advance(process, state, 2, substeps=1, scheme="euler", generator="philox")
    assert there.rng.tolist() == [[1, 8, 1, 2]]


def test_xla_has_one_generator():
    process = SGD(LOGISTIC, 0.3, 2)
    with pytest.raises(InputError, match="generator = 'philox': must be xoshiro with engine='xla'"):
        advance(process, start(process, np.zeros(3), 2, SEED), 1, engine="xla", generator="philox")
