"""Subset cumulants against exact rationals and against the recursion, with derivatives."""

import math
from fractions import Fraction

import numpy as np
import pytest

from batchwell._jax import jax, jnp
from batchwell.action.symmetric import log_mean_symmetric


def elementary(values, size):
    """e_B by the recursion over examples, in the arithmetic of `values`."""
    e = [Fraction(1)] + [Fraction(0)] * size
    for a in values:
        for j in range(size, 0, -1):
            e[j] += e[j - 1] * a
    return e[size]


@pytest.mark.parametrize(
    ("n", "size", "scale"), [(9, 4, 2.0), (40, 20, 8.0), (90, 1, 5.0), (90, 80, 1.0)]
)
def test_exact_rational_values(n, size, scale):
    rng = np.random.default_rng(n)
    a = [Fraction(float(v)) for v in np.exp(scale * rng.normal(size=n))]
    ratio = elementary(a, size) / math.comb(n, size)
    expected = math.log(ratio.numerator) - math.log(ratio.denominator)
    k = jnp.asarray([math.log(v) for v in a])
    assert float(log_mean_symmetric(k, size)) == pytest.approx(expected, rel=1e-12)
    # The neighbouring size is another number: one alias or one power of r off is seen.
    assert abs(float(log_mean_symmetric(k, size - 1 or 2)) / expected - 1) > 1e-3


@pytest.mark.parametrize("size", [1, 8, 24])
def test_derivatives_to_third_order(size):
    rng = np.random.default_rng(size)
    k, u = jnp.asarray(2 * rng.normal(size=30)), jnp.asarray(rng.normal(size=30))

    def recursion(k):
        def step(e, x):
            return e.at[1:].add(e[:-1] * jnp.exp(x)), None

        return jnp.log(jax.lax.scan(step, jnp.zeros(size + 1).at[0].set(1.0), k)[0][size])

    def fast(k):
        return log_mean_symmetric(k, size)

    for derive in (
        lambda f: jax.grad(f)(k),
        lambda f: jax.hessian(f)(k),
        lambda f: jax.grad(lambda k: u @ jax.jvp(jax.grad(f), (k,), (u,))[1])(k),
    ):
        found, expected = jax.jit(lambda d=derive: (d(fast), d(recursion)))()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_small_exponents_keep_their_digits():
    # log e_B / C(n, B) = B mean(k) + (1/2) B (n - B)/(n - 1) var(k) + O(k^3), k centred.
    n, size = 569, 32
    k = np.random.default_rng(5).normal(size=n)
    k = 1e-5 * (k - k.mean())
    expected = 0.5 * size * (n - size) / (n - 1) * np.var(k)
    assert float(log_mean_symmetric(jnp.asarray(k), size)) == pytest.approx(expected, rel=1e-4)
