"""Fields of the quasi-potential against closed forms, known digits and a wrong noise."""

import numpy as np
import pytest
from scipy.linalg import solve_continuous_lyapunov

from batchwell import SGD, additive, diffusion, diffusion_approximation, quasi_potential_field
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
    assert (off <= field.errors[field.reached] + 1e-12).mean() > 0.95
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


def test_a_double_well_is_twice_its_barrier():
    process = diffusion(lambda x: jnp.array([x[0] - x[0] ** 3, -x[1]]), lambda x: jnp.eye(2), dim=2)
    field = quasi_potential_field(process, [-1.0, 0.0], [(-2, 2), (-1, 1)], nodes=(129, 65))
    # Downhill from the pass is free: the other minimum costs what the pass does.
    for end in ([0.0, 0.0], [1.0, 0.0]):
        # A method of first order: what it states is below the spacing.
        assert abs(field(end) - 0.5) < field.error(end) < 4 / 128
    # Up against the drift, beside the axis: V = 2 F.
    assert field([-0.5, 0.5]) == pytest.approx(2 * 0.75**2 / 4 + 0.25, abs=5e-3)


def test_maier_stein_finds_the_bent_path_alone():
    off = {}
    for nodes in (65, 129):
        field = quasi_potential_field(
            maier_stein(10.0), [-1.0, 0.0], [(-1.5, 0.5), (-1, 1)], nodes=nodes
        )
        off[nodes] = abs(field([0.0, 0.0]) - 0.340041403)
    assert off[129] < field.error([0.0, 0.0]) < 2 / 128
    assert off[129] < 1e-3
    assert off[129] < off[65]
    path = field.path([0.0, 0.0])
    np.testing.assert_allclose(path[[0, -1]], [[-1.0, 0.0], [0.0, 0.0]], atol=1e-12)
    assert 0.1 < np.abs(path[:, 1]).max() < 0.8  # the straight path costs 0.5
    assert cost(maier_stein(10.0), path) == pytest.approx(0.340041403, rel=0.01)


def cost(process, path):
    """Geometric action of a polygon with unit noise, midpoint rule."""
    v, middle = np.diff(path, axis=0), 0.5 * (path[1:] + path[:-1])
    b = np.array([process.drift(jnp.asarray(x)) for x in middle])
    return (np.linalg.norm(v, axis=1) * np.linalg.norm(b, axis=1) - (v * b).sum(axis=1)).sum()


def test_noise_that_depends_on_the_place():
    # Per axis V' = 2 x / (1 + x^2): V = log(1 + x^2) + log(1 + y^2).
    process = diffusion(lambda x: -x, lambda x: jnp.diag(jnp.sqrt(1 + x**2)), dim=2)
    field = quasi_potential_field(process, [0.0, 0.0], SQUARE, nodes=65)
    x, y = np.meshgrid(*field.axes, indexing="ij")
    exact = np.log1p(x**2) + np.log1p(y**2)
    assert np.abs(field.values - exact)[field.reached].max() < 5e-3
    # Negative control: noise frozen at the minimum.
    assert np.abs(field.values - x**2 - y**2)[field.reached].max() > 0.05


def test_sgd_by_its_gaussian_noise():
    sgd = SGD(additive(lambda x: x @ x / 2, dim=2), learning_rate=0.1, batch_size=4)
    for process in (sgd, diffusion_approximation(sgd)):
        field = quasi_potential_field(process, [0.0, 0.0], SQUARE, nodes=33)
        assert field([0.5, 0.25]) == pytest.approx(0.3125, abs=0.01)
        assert field.temperature == pytest.approx(0.025)
