"""float32 runs against a NumPy twin that draws as `streams` documents."""

import jax.numpy as jnp
import numpy as np
import pytest

from batchwell import SGD, additive, diffusion, half_space
from batchwell.ensemble import advance, first_exits, start
from batchwell.streams import draw_words, normal_pair32, path_states

DT = 0.01
WELL = diffusion(lambda x: x - x**3, lambda x: 0.5 * jnp.eye(1), 1, DT)
PLANE = diffusion(lambda x: -x, lambda x: jnp.eye(2), 2, DT)


def pairs(states, count):
    """`count` pairs of normals: (paths, 2 count), new states."""
    out = []
    for _ in range(count):
        words, states = draw_words(states, 2)
        out.extend(normal_pair32(words[:, 0], words[:, 1]))
    return np.stack(out, axis=1).astype(np.float64), states


def twin_well(steps, paths):
    """Two steps share a pair."""
    states, x = path_states(1, "paths", range(paths)), np.full(paths, -1.0)
    seen = [x]
    for _ in range((steps + 1) // 2):
        z, states = pairs(states, 1)
        for k in range(2):
            x = x + DT * (x - x**3) + 0.5 * np.sqrt(DT) * z[:, k]
            seen.append(x)
    return np.stack(seen)


def test_odd_dimensions_share_pairs(mode):
    state = start(WELL, [-1.0], 40, seed=1, substeps=1)
    seen = twin_well(12, 40)
    for steps in (1, 2, 3, 5):  # begins and ends at odd and even steps
        state = advance(WELL, state, steps, 1, precision="float32", scheme="euler")
        np.testing.assert_allclose(state.x[:, 0], seen[state.step], atol=3e-6)


def test_even_dimensions_draw_step_by_step(mode):
    state = start(PLANE, [1.0, -1.0], 40, seed=1, substeps=1)
    x, states = state.x, state.rng
    for _ in range(7):
        z, states = pairs(states, 1)
        x = x - DT * x + np.sqrt(DT) * z
    end = advance(PLANE, state, 7, 1, precision="float32", scheme="euler")
    np.testing.assert_allclose(end.x, x, atol=3e-6)
    np.testing.assert_array_equal(end.rng, states)


def test_exits_share_pairs(mode):
    found = first_exits(WELL, [-1.0], half_space([1.0], -0.9), 60, 40, seed=1, stream="paths",
                        substeps=1, precision="float32", scheme="euler")  # fmt: skip
    seen = twin_well(60, 40)[1:61]
    want = np.where((seen > -0.9).any(0), (seen > -0.9).argmax(0) + 1, 60)
    assert np.mean(found.steps == want) > 0.95  # rounding moves a few by a step


def test_float32_noise_has_the_moments_of_a_normal():
    """Eight moments at 4 standard errors: false alarm about 5e-4 (a fixed seed: once for all)."""
    z, _ = pairs(path_states(3, "m", range(200_000)), 2)
    n = z.size
    moments = {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}
    for power, (mean, variance) in moments.items():
        assert abs(np.mean(z**power) - mean) < 4 * np.sqrt(variance / n)
    assert abs(np.mean(z[:, 0] * z[:, 1])) < 4 / np.sqrt(n / 4)


@pytest.mark.parametrize("law", ["laplace", "rademacher", "uniform"])
def test_other_laws_are_float64_draws_rounded(law):
    process = SGD(additive(lambda x: x @ x / 2, law), 0.1)
    state = start(process, [1.0], 30, seed=2)
    a = advance(process, state, 5, precision="float32")
    b = advance(process, state, 5)
    np.testing.assert_array_equal(a.rng, b.rng)
    np.testing.assert_allclose(a.x, b.x, atol=2e-6)
