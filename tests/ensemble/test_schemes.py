"""Weak orders of the schemes, where noises do not commute.

For dX = A X dt + B1 X dW_1 + B2 X dW_2 the second moments obey a linear system: E X X^T at time T is
known to rounding.
"""

import jax.numpy as jnp
import numpy as np
from scipy.linalg import expm

from batchwell import diffusion
from batchwell.ensemble import advance, start

A = np.array([[-1.0, 0.4], [-0.4, -1.0]])
B1 = np.array([[0.9, 0.0], [0.3, 0.2]])
B2 = np.array([[0.0, 0.5], [0.8, 0.0]])
X0, T = np.array([1.0, 0.5]), 1.0
PATHS = 400_000


def factor(x):
    return jnp.stack([jnp.asarray(B1) @ x, jnp.asarray(B2) @ x], axis=1)


def exact():
    """E X X^T from d/dt P = A P + P A^T + sum B P B^T."""
    eye = np.eye(2)
    lift = np.kron(A, eye) + np.kron(eye, A) + np.kron(B1, B1) + np.kron(B2, B2)
    return (expm(T * lift) @ np.outer(X0, X0).ravel()).reshape(2, 2)


def second_moments(scheme, steps):
    process = diffusion(lambda x: jnp.asarray(A) @ x, factor, 2, T / steps)
    state = start(process, X0, PATHS, seed=7, substeps=1)
    x = advance(process, state, steps, 1, scheme=scheme).x
    products = np.stack([x[:, 0] ** 2, x[:, 0] * x[:, 1], x[:, 1] ** 2], axis=1)
    return products.mean(0), products.std(0) / np.sqrt(PATHS)


def test_platen_is_of_weak_order_two_and_euler_is_not():
    """Three moments at 4 standard errors plus the order-2 bias at dt = 1/8: false alarm 2e-4.

    The negative control: Euler at the same step misses by more than ten standard errors.
    """
    want = exact()[[0, 0, 1], [0, 1, 1]]
    got, error = second_moments("platen", 8)
    assert (abs(got - want) < 4 * error + 0.02 * abs(want)).all(), (got - want) / error
    crude, error = second_moments("euler", 8)
    assert (abs(crude - want) > 10 * error).any()


def test_levy_areas_matter():
    """Without the two-point variables' antisymmetry, the mixed moment would be wrong."""
    want = exact()[0, 1]
    got, error = second_moments("platen", 16)
    assert abs(got[1] - want) < 4 * error[1] + 0.006 * abs(want)
