"""Fields of the quasi-potential against closed forms, known digits and a wrong noise."""

import numpy as np
import pytest
from scipy.linalg import solve_continuous_lyapunov

from batchwell import SGD, additive, diffusion, quasi_potential_field
from batchwell._jax import jnp
from batchwell.errors import InputError

A = np.array([[-1.0, 2.0], [-1.5, -0.5]])
S = np.array([[1.0, 0.0], [0.4, 0.7]])
SQUARE = [(-1, 1), (-1, 1)]


def maier_stein(beta):
    return diffusion(
        lambda x: jnp.array([x[0] - x[0] ** 3 - beta * x[0] * x[1] ** 2, -(1 + x[0] ** 2) * x[1]]),
        lambda x: jnp.eye(2),
        dim=2,
    )


def linear(drift=A, factor=S):
    return diffusion(lambda x: jnp.asarray(drift) @ x, lambda x: jnp.asarray(factor), dim=2)


def exact_linear(field, noise):
    """V = x . C^-1 x / 2 with A C + C A^T + Sigma = 0, at the nodes."""
    x = np.stack(np.meshgrid(*field.axes, indexing="ij"), axis=-1)
    spread = solve_continuous_lyapunov(A, -noise)
    return 0.5 * np.einsum("xyi,ij,xyj->xy", x, np.linalg.inv(spread), x)


def test_a_rotating_drift_with_skewed_noise():
    field = quasi_potential_field(linear(), [0.0, 0.0], SQUARE, nodes=129)
    off = np.abs(field.values - exact_linear(field, S @ S.T))[field.reached]
    assert off.max() < 0.01 * field.edge
    # Negative controls: a missing 1/2, Sigma for its factor, Sigma off by 5 %.
    for wrong in (0.5 * exact_linear(field, S @ S.T), exact_linear(field, S)):
        assert np.abs(field.values - wrong)[field.reached].max() > 0.05 * field.edge
    wrong = exact_linear(field, 1.05 * S @ S.T)
    assert np.abs(field.values - wrong)[field.reached].max() > 3 * off.max()


def test_refusals_are_one_line():
    well = diffusion(lambda x: -x, lambda x: jnp.eye(2), dim=2)
    line = diffusion(lambda x: -x, lambda x: jnp.eye(1), dim=1)
    thin = diffusion(lambda x: -x, lambda x: jnp.array([[1.0], [0.0]]), dim=2)
    coin = SGD(additive(lambda x: x @ x / 2, "rademacher", dim=2), 0.1)
    for process, start, bounds, options, words in [
        (line, [0.0], SQUARE, {}, "must have dimension 2"),
        (well, [0.5, 0.0], SQUARE, {}, r"stable zero.*nearest \(0, 0\)"),
        (linear(-A), [0.0, 0.0], SQUARE, {}, "stable zero.*largest rate"),
        (well, [2.0, 0.0], SQUARE, {}, "inside the bounds"),
        (well, [0.0], SQUARE, {}, "must have shape"),
        (well, [0.0, 0.0], [(1, -1), (-1, 1)], {}, "low < high"),
        (well, [0.0, 0.0], SQUARE, {"nodes": 5}, "nodes = 5"),
        (thin, [0.0, 0.0], SQUARE, {}, "invertible tensor"),
        (coin, [0.0, 0.0], SQUARE, {}, "quasi_potential"),
    ]:
        with pytest.raises(InputError, match=words) as refusal:
            quasi_potential_field(process, start, bounds, **{"nodes": 17, **options})
        assert "\n" not in str(refusal.value)
