"""Noise as the kernels draw it: against NumPy on the same words, and against its law.

Budget: 7 laws, a Kolmogorov-Smirnov test and two moments each at 6e-5: 1.3e-3 for the file, once for
all (seeds are fixed).
"""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from batchwell import NOISES, SGD, additive, noise_law
from batchwell.ensemble import advance, start
from batchwell.streams import draw_words, index_below, path_states

PATHS = 40_000
ALARM = 6e-5
LAWS = {
    "gaussian": stats.norm(),
    "uniform": stats.uniform(-np.sqrt(3), 2 * np.sqrt(3)),
    "laplace": stats.laplace(scale=np.sqrt(0.5)),
    "exponential": stats.expon(loc=-1),
    "student_t": stats.t(5, scale=np.sqrt(3 / 5)),
    "pareto": stats.pareto(5, loc=-1.25 / np.sqrt(5 / 48), scale=1 / np.sqrt(5 / 48)),
}


def drawn(law, paths=PATHS, precision="float64"):
    """One draw per path: a flat loss moves by -eta times its noise."""
    process = SGD(additive(lambda x: 0.0 * x[0], law), 1.0)
    state = start(process, [0.0], paths, seed=11)
    return -advance(process, state, 1, precision=precision).x[:, 0]


@pytest.mark.parametrize("law", NOISES)
def test_draws_are_their_numpy_twins(law):
    words, _ = draw_words(path_states(11, "paths", range(2000)), noise_law(law).words)
    want = noise_law(law).draw([words[:, k] for k in range(words.shape[1])], np)
    np.testing.assert_allclose(drawn(law, 2000), want, rtol=2e-14, atol=4e-15)


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("law", LAWS)
def test_draws_follow_their_law(law, precision):
    z = drawn(law, precision=precision)
    assert stats.kstest(z, LAWS[law].cdf).pvalue > ALARM
    wrong = z * 1.05  # the negative control: a scale off by 5 %
    assert stats.kstest(wrong, LAWS[law].cdf).pvalue < ALARM


@pytest.mark.parametrize("law", NOISES)
def test_mean_and_variance(law):
    z, kurtosis = drawn(law), noise_law(law).kurtosis
    assert abs(z.mean()) < 4 / np.sqrt(PATHS)
    if np.isfinite(kurtosis):
        assert abs(z.var() - 1) < 4 * np.sqrt(max(kurtosis - 1, 1e-9) / PATHS) + 1e-3


def test_indices_are_those_of_the_reference_bit_for_bit():
    """A loss that moves by the number of its example shows which one was drawn."""
    from batchwell import finite_sum

    process = SGD(finite_sum(lambda x, z: -z * x[0], np.arange(37.0), 1), 1.0)
    state = start(process, [0.0], 500, seed=2)
    words, states = draw_words(state.rng, 3)
    end = advance(process, state, 3)
    want = sum(index_below(words[:, k], 37) for k in range(3))
    np.testing.assert_array_equal(end.x[:, 0], want)
    np.testing.assert_array_equal(end.rng, states)


def test_subsets_and_epochs_are_uniform_and_without_repeats():
    """Epochs visit every example once; subsets of 3 of 5 are equally frequent (10 of them).

    Chi-squared at 6e-5.
    """
    from batchwell import finite_sum

    powers = finite_sum(lambda x, z: -z * x[0], 2.0 ** np.arange(5), 1)
    epoch = SGD(powers, 1.0, 1, "reshuffle")
    state = advance(epoch, start(epoch, [0.0], 300, seed=2), 5)
    np.testing.assert_array_equal(state.x, np.full((300, 1), 31.0))
    subset = SGD(powers, 3.0, 3, "without_replacement")
    x = advance(subset, start(subset, [0.0], 20_000, seed=2), 1).x[:, 0].round().astype(int)
    assert all(bin(v).count("1") == 3 for v in set(x.tolist()))
    counts = np.bincount(x, minlength=32)
    assert stats.chisquare(counts[counts > 0]).pvalue > ALARM
    assert (counts > 0).sum() == 10


def test_float32_word_order():
    """Two float32 normals come from two words: 3-dimensional noise takes six for two steps."""
    process = SGD(additive(lambda x: 0.0 * jnp.sum(x), dim=3), 1.0)
    state = start(process, np.zeros(3), 9, seed=2)
    _, states = draw_words(state.rng, 6)
    np.testing.assert_array_equal(advance(process, state, 2, precision="float32").rng, states)
    np.testing.assert_array_equal(advance(process, state, 1, precision="float32").rng, state.rng)
