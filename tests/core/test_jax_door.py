"""What passes the one door to JAX is computed right, whatever XLA makes of it."""

import numpy as np
import pytest

from batchwell._jax import jax, jnp


@pytest.mark.parametrize(("dim", "count"), [(3, 32768), (3, 20000), (5, 20000), (6, 16385)])
def test_a_product_that_is_summed_is_right_at_every_size(dim, count):
    """Sizes at which a fused kernel of XLA 0.10 is off by the size of the answer."""
    rng = np.random.default_rng(dim)
    matrix, points = rng.normal(size=(dim, dim)), rng.uniform(-1, 1, (count, dim))
    m = jnp.asarray(matrix)
    got = jax.jit(jax.vmap(lambda x: jnp.sum((m @ x) ** 2)))(points)
    np.testing.assert_allclose(got, np.sum((points @ matrix.T) ** 2, axis=1), rtol=1e-12)
