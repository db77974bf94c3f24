"""Shapes and kinds of losses at the edge of what is usual: both engines must agree on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from batchwell import SGD, Diffusion, additive, diffusion_approximation, finite_sum, sampled
from batchwell.ensemble import advance, start

RNG = np.random.default_rng(8)


def classes(x, z):
    """Cross-entropy with whole-number labels in a dict, and a truth value."""
    scores = x.reshape(3, 2) @ z["row"]
    picked = jax.nn.log_softmax(scores)[z["label"]]
    return jnp.where(z["heavy"], -2.0 * picked, -picked)


LABELLED = finite_sum(
    classes,
    {"row": RNG.standard_normal((7, 2)), "label": np.arange(7) % 3, "heavy": np.arange(7) > 4}, 6,
)  # fmt: skip
ONE = finite_sum(lambda x, z: (x[0] - z) ** 2, np.array([0.3]), 1)
MATRICES = finite_sum(lambda x, z: x @ z @ x / 2 + x[0], RNG.standard_normal((4, 3, 3)), 3)
WIDE_ROWS = finite_sum(lambda x, z: jnp.tanh(z @ x).sum(), RNG.standard_normal((5, 70, 1)), 1)
NOISELESS = Diffusion(
    2, lambda x: -x, lambda x: jnp.zeros((2, 2)), lambda x, xi: jnp.zeros(2), 0, 0.1
)
PROCESSES = {
    "labels": SGD(LABELLED, 0.3, 2),
    "labels, subset": SGD(LABELLED, 0.3, 7, "without_replacement"),
    "labels, diffusion": diffusion_approximation(SGD(LABELLED, 0.3, 2), 2),
    "one example": SGD(ONE, 0.3, 5),
    "one example, epochs": SGD(ONE, 0.3, 1, "reshuffle"),
    "matrices": SGD(MATRICES, 0.1, 3, momentum=0.3),
    "long rows": SGD(WIDE_ROWS, 0.01, 2),
    "no noise": NOISELESS,
    "skewed": SGD(sampled(lambda x, z: z[0] * x[0] ** 2 + x[0], "pareto", 1), 0.1, 4),
    "few noises": diffusion_approximation(
        SGD(additive(lambda x: jnp.sum(x**2), dim=4, scale=np.ones((4, 1))), 0.1)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("paths", [1, 5])
def test_engines_agree(name, paths):
    process = PROCESSES[name]
    dim = process.loss.dim if isinstance(process, SGD) else process.dim
    state = start(process, np.linspace(0.2, 0.4, dim), paths, seed=3)
    fused = advance(process, state, 6, engine="fused")
    plain = advance(process, state, 6, engine="xla")
    np.testing.assert_array_equal(fused.rng, plain.rng)
    np.testing.assert_allclose(fused.x, plain.x, rtol=1e-11, atol=1e-12)
    single = advance(process, state, 6, engine="fused", precision="float32")
    assert np.isfinite(single.x).all()
