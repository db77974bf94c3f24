"""Gradient flow of the fused engine against a NumPy twin and against exact flows."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from batchwell import additive, finite_sum
from batchwell.ensemble import Regions, SlowerEngine, flow_xla, gradient_flow
from batchwell.errors import InputError


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


def chebyshev_twin(gradient, x, h, attempts, tolerance, s):
    """One point by the method of Sommeijer, Shampine & Verwer, from its formulas."""
    cheb = np.polynomial.chebyshev.Chebyshev.basis
    w0 = 1 + 2 / 13 / s**2
    t = [cheb(j)(w0) for j in range(s + 1)]
    d1 = [cheb(j).deriv(1)(w0) if j else 0.0 for j in range(s + 1)]
    d2 = [cheb(j).deriv(2)(w0) if j > 1 else 0.0 for j in range(s + 1)]
    b = [0, 0] + [d2[j] / d1[j] ** 2 for j in range(2, s + 1)]
    b[0] = b[1] = b[2]
    w1 = d1[s] / d2[s]
    f = lambda y: -gradient(y)  # noqa: E731
    for _ in range(attempts):
        f0, y = f(x), [x]
        y.append(x + b[1] * w1 * h * f0)
        for j in range(2, s + 1):
            mu, nu, mt = 2 * b[j] * w0 / b[j - 1], -b[j] / b[j - 2], 2 * b[j] * w1 / b[j - 1]
            gt = -(1 - b[j - 1] * t[j - 1]) * mt
            y.append((1 - mu - nu) * x + mu * y[-1] + nu * y[-2] + mt * h * f(y[-1]) + gt * h * f0)
        error = np.linalg.norm(0.8 * (x - y[-1]) + 0.4 * h * (f0 + f(y[-1]))) / tolerance
        if error <= 1:
            x = y[-1]
        h *= np.clip(0.9 * (error + 1e-12) ** (-1 / 3), 0.2, 1.5)
    return x, h


@pytest.mark.parametrize("stages", [5, 15])
def test_chebyshev_flow_is_its_twin_and_xlas(stages):
    loss = network()
    starts = np.random.default_rng(1).standard_normal((11, 8))
    gradient = jax.jit(loss.gradient)
    flow = gradient_flow(loss, starts, max_steps=12, stages=stages)
    for start, end, step in zip(starts, flow.points, flow.steps, strict=True):
        x, h = chebyshev_twin(lambda y: np.asarray(gradient(y)), start, 0.1, 12, 1e-3, stages)
        np.testing.assert_allclose(end, x, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(step, h, rtol=1e-5)
    none = np.empty((0, 8)), np.empty((0, 8, 8)), np.empty(0)
    points, _, _ = flow_xla.flow(loss, starts, np.full(11, 0.1), none, 12, 1e-3, stages)
    np.testing.assert_allclose(flow.points, points, rtol=1e-7, atol=1e-8)


def test_chebyshev_is_of_order_two():
    # x' = -x^3 from 1: x(t) = 1 / sqrt(1 + 2 t). Fixed steps: an error allowed of 1e9.
    loss = additive(lambda x: x[0] ** 4 / 4)
    errors = []
    for steps in (8, 16, 32):
        x, h = np.array([[1.0]]), 1.0 / steps
        for _ in range(steps):
            x = gradient_flow(loss, x, None, 1, 1e9, h, stages=5).points
        errors.append(abs(float(x[0, 0]) - 3**-0.5))
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    assert ((slopes > 1.8) & (slopes < 2.3)).all()


def test_chebyshev_flows_along_a_flat_valley_in_a_fraction_of_the_gradients():
    valley = additive(lambda x: 0.5e-3 * x[0] ** 2 + 2 * (x[1] - 0.1 * x[0] ** 2) ** 2, dim=2)
    ends = Regions(np.zeros((1, 2)), np.eye(2)[None], np.full(1, 0.05))
    plain = gradient_flow(valley, [[2.0, 1.0]], ends, max_steps=1500)
    assert plain.labels.tolist() == [-1]  # 4500 gradients
    long = gradient_flow(valley, [[2.0, 1.0]], ends, max_steps=280, stages=15)
    assert long.labels.tolist() == [0]  # at most 4200


def test_stages_are_refused_in_one_line():
    with pytest.raises(InputError, match="stages = 4: must be odd"):
        gradient_flow(network(), np.zeros((1, 8)), stages=4)


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


@pytest.mark.parametrize("stages", [3, 15])
def test_float32_flows_to_the_same_regions(stages):
    valley = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4 + 2 * (x[1] - x[0] ** 2) ** 2, dim=2)
    centers = np.array([[-1.0, 1.0], [1.0, 1.0]])
    regions = Regions(centers, np.tile(np.eye(2), (2, 1, 1)), np.full(2, 0.1))
    starts = np.random.default_rng(3).uniform(-2, 2, (203, 2))
    starts[:3, 0] = 1e-4, -1e-4, 3e-3  # hard by the border, which is x_1 = 0
    flow = gradient_flow(valley, starts, regions, stages=stages, precision="float32")
    np.testing.assert_array_equal(flow.labels, (starts[:, 0] > 0).astype(int))
    assert (np.linalg.norm(flow.points - centers[flow.labels], axis=1) < 0.1 + 1e-6).all()
    np.testing.assert_array_equal(flow.points, flow.points.astype(np.float32))
    few = gradient_flow(valley, starts[[150, 2]], regions, stages=stages, precision="float32")
    np.testing.assert_array_equal(few.points, flow.points[[150, 2]])


def test_another_precision_is_refused():
    with pytest.raises(InputError, match="precision = 'half'"):
        gradient_flow(network(), np.zeros((1, 8)), precision="half")
