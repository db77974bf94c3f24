"""Running moments and histograms against the same sums taken from stored paths."""

import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

from batchwell import SGD, additive, box, diffusion
from batchwell.ensemble import advance, first_exits, observation, observe, positions, start
from batchwell.errors import InputError

PROCESS = SGD(additive(lambda x: jnp.sum(x**4) / 4 - x @ x / 2, dim=2), 0.1)


def watched(x):
    return jnp.stack([x[0], x[0] * x[1], jnp.tanh(x[1])])


@pytest.mark.parametrize("engine", ["fused", "xla"])
def test_sums_are_those_of_stored_paths(engine):
    state = start(PROCESS, [0.5, -0.5], 21, seed=1)
    seen = observe(PROCESS, state, 60, watched, every=3, bins=(-1.0, [1.0, 2.0, 1.0], 7),
                   engine=engine)  # fmt: skip
    x = positions(PROCESS, [0.5, -0.5], range(3, 61, 3), 21, seed=1)
    values = np.stack([x[..., 0], x[..., 0] * x[..., 1], np.tanh(x[..., 1])], axis=-1)
    assert seen.times == 20
    np.testing.assert_allclose(seen.totals, values.sum(0), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(seen.squares, (values**2).sum(0), rtol=1e-11)
    np.testing.assert_allclose(seen.mean, values.mean((0, 1)), rtol=1e-10)
    np.testing.assert_allclose(seen.variance, values.var((0, 1)), rtol=1e-9)
    np.testing.assert_allclose(seen.ensemble.x, x[-1], rtol=1e-12)
    for k in range(3):
        inner = np.histogram(values[..., k], seen.edges[k])[0]
        np.testing.assert_array_equal(seen.counts[k, 1:-1], inner)
        assert seen.counts[k].sum() == 20 * 21
        assert seen.counts[k, 0] == (values[..., k] < -1).sum()


def test_sums_do_not_depend_on_threads_or_chunks():
    state = start(PROCESS, [0.5, -0.5], 50, seed=1)
    one = observe(PROCESS, state, 40, watched, bins=(-1, 1, 5), threads=1)
    two = observe(PROCESS, state, 40, watched, bins=(-1, 1, 5), threads=3)
    np.testing.assert_array_equal(one.totals, two.totals)
    np.testing.assert_array_equal(one.counts, two.counts)
    half = observe(PROCESS, state.take(np.arange(25)), 40, watched, bins=(-1, 1, 5))
    rest = observe(PROCESS, state.take(np.arange(25, 50)), 40, watched, bins=(-1, 1, 5))
    np.testing.assert_array_equal(one.totals, np.concatenate([half.totals, rest.totals]))
    np.testing.assert_array_equal(one.counts, half.counts + rest.counts)


@pytest.mark.parametrize("engine", ["fused", "xla"])
def test_calls_may_end_between_two_observations(engine, monkeypatch):
    """So that a rare observation does not make a long call."""
    state = start(PROCESS, [0.5, -0.5], 9, seed=1)
    one = observe(PROCESS, state, 90, watched, every=30, engine=engine)
    told = []
    monkeypatch.setattr(observation, "time_blocks", lambda n: [(k, 9) for k in range(0, n, 9)])
    two = observe(PROCESS, state, 90, watched, 30, (-1, 1, 5), engine=engine,
                  progress=lambda done, steps: told.append(done))  # fmt: skip
    assert told == list(range(9, 91, 9))
    np.testing.assert_array_equal(one.totals, two.totals)
    assert (one.times, two.counts[0].sum()) == (3, 27)


def test_memory_does_not_grow_with_the_length_of_paths():
    state = start(PROCESS, [0.5, -0.5], 200, seed=1)
    domain, peaks = box([-5.0, -5.0], [5.0, 5.0]), []
    for steps in (100, 100, 2000):  # the first of them compiles
        tracemalloc.start()
        advance(PROCESS, state, steps)
        observe(PROCESS, state, steps, watched, bins=(-1, 1, 5))
        first_exits(PROCESS, [0.5, -0.5], domain, steps, 200, seed=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + 20_000  # paths stored would be 3 MB each


def test_substeps_and_float32():
    process = diffusion(lambda x: -x, lambda x: jnp.eye(1), 1, 0.1)
    state = start(process, [0.0], 40, seed=1, substeps=3)
    seen = observe(process, state, 11, substeps=3, precision="float32")
    end = advance(process, state, 11, substeps=3, precision="float32")
    np.testing.assert_array_equal(seen.ensemble.x, end.x)
    assert seen.times == 11


def test_bad_input_is_refused():
    state = start(PROCESS, [0.5, -0.5], 4, seed=1)
    with pytest.raises(InputError, match="multiple of every = 3"):
        observe(PROCESS, state, 10, every=3)
    with pytest.raises(InputError, match="lower end below"):
        observe(PROCESS, state, 9, bins=(1.0, 1.0, 3))
