"""Gradient flow of the fused engine against a NumPy twin and against exact flows."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np

from batchwell import additive, finite_sum
from batchwell.ensemble import Regions, SlowerEngine, flow_xla, gradient_flow


def network(n=31):
    rng = np.random.default_rng(22)
    data = rng.standard_normal((n, 3)), np.where(rng.random(n) < 0.5, -1.0, 1.0)

    def loss(w, z):
        hidden = jnp.tanh(w[:6].reshape(2, 3) @ z[0])
        return jnp.logaddexp(0.0, -z[1] * (w[6:] @ hidden)) + 5e-3 * w @ w

    return finite_sum(loss, data, 8)


def twin(gradient, x, h, attempts, tolerance):
    """One point, step by step, as the textbook has the pair 3(2)."""
    for _ in range(attempts):
        k1 = -gradient(x)
        k2 = -gradient(x + h / 2 * k1)
        k3 = -gradient(x + 3 * h / 4 * k2)
        y = x + h * (2 * k1 + 3 * k2 + 4 * k3) / 9
        k4 = -gradient(y)
        error = np.linalg.norm(h * (-5 / 72 * k1 + k2 / 12 + k3 / 9 - k4 / 8)) / tolerance
        if error <= 1:
            x = y
        h *= np.clip(0.9 * (error + 1e-12) ** (-1 / 3), 0.2, 5.0)
    return x, h


def test_flow_is_its_twin():
    loss = network()
    starts = np.random.default_rng(1).standard_normal((11, 8))
    gradient = jax.jit(loss.gradient)
    flow = gradient_flow(loss, starts, max_steps=20)
    for start, end, step in zip(starts, flow.points, flow.steps, strict=True):
        x, h = twin(lambda y: np.asarray(gradient(y)), start, 0.1, 20, 1e-3)
        np.testing.assert_allclose(end, x, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(step, h, rtol=1e-6)
    assert (flow.labels == -1).all()


def test_flow_stops_in_the_right_region_on_any_number_of_threads():
    valley = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4 + 2 * x[1] ** 2, dim=2)
    regions = Regions(
        np.array([[-1.0, 0.0], [1.0, 0.0]]),
        np.tile(np.diag([1.0, 2.0]), (2, 1, 1)),
        np.full(2, 0.1),
    )
    starts = np.random.default_rng(2).uniform(-2, 2, (200, 2))
    one = gradient_flow(valley, starts, regions, threads=1)
    two = gradient_flow(valley, starts, regions, threads=3)
    np.testing.assert_array_equal(one.labels, (starts[:, 0] > 0).astype(int))
    np.testing.assert_array_equal(one.points, two.points)
    moved = (one.points - regions.centers[one.labels]) * [1.0, 2.0]
    assert (np.linalg.norm(moved, axis=1) < 0.1).all()
    few = gradient_flow(valley, starts[[150, 3]], regions)
    np.testing.assert_array_equal(few.points, one.points[[150, 3]])


def test_points_are_given_up_after_max_steps():
    flat = additive(lambda x: 1e-9 * x[0])
    flow = gradient_flow(
        flat,
        [[0.0], [1.0]],
        Regions(np.array([[-9.0]]), np.ones((1, 1, 1)), np.ones(1)),
        max_steps=7,
    )
    assert flow.labels.tolist() == [-1, -1]


def test_xla_gives_the_same_flow():
    loss = network()
    starts = np.random.default_rng(4).standard_normal((40, 8))
    ends = gradient_flow(loss, starts, max_steps=60).points
    regions = Regions(ends[:3], np.tile(np.eye(8), (3, 1, 1)), np.full(3, 0.05))
    given = regions.centers, regions.roots, regions.radii
    fused = gradient_flow(loss, starts, regions, max_steps=80)
    points, labels, steps = flow_xla.flow(loss, starts, np.full(40, 0.1), given, 80, 1e-3)
    np.testing.assert_array_equal(fused.labels, labels)
    assert set(labels[:3]) == {0, 1, 2}
    np.testing.assert_allclose(fused.points, points, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(fused.steps, steps, rtol=1e-5)


def test_a_loss_without_fused_form_flows_on_xla():
    loss = additive(lambda x: jnp.sort(x**2)[0] + jnp.cosh(x[1]), dim=2)
    regions = Regions(np.zeros((1, 2)), np.eye(2)[None], np.full(1, 0.2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlowerEngine)
        flow = gradient_flow(loss, [[0.1, 0.5], [0.01, 0.02]], regions)
    assert flow.labels.tolist() == [0, 0]
    np.testing.assert_array_equal(flow.points[1], [0.01, 0.02])
