"""Weak errors: orders, constants, and the negative controls that must fail."""

import json
import math
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from batchwell import SGD, InputError, additive, diffusion_approximation, finite_sum
from batchwell.law import expectation, generator, moments, smooth_expectation
from batchwell.weak import expectations, snapshots, weak_error, weak_errors

parabola = additive(lambda x: x @ x / 2)
coin_well = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4, "rademacher")
ROWS = (np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]]), np.array([1.0, -1.0, 2.0]))
squares = finite_sum(lambda x, z: 0.5 * (z[0] @ x - z[1]) ** 2, ROWS, dim=2)


@pytest.fixture(scope="module")
def double_well():
    return weak_errors(
        SGD(coin_well, 0.1), lambda x: x[0], 2.0, [0.1, 0.0125, 0.00625, 0.003125], [0.5]
    )


def test_t2_expectations_to_the_digits(double_well):
    one, two = double_well[1], double_well[2]
    at = one.learning_rates.index(0.0125)
    assert one.chain[at].value == pytest.approx(0.965789440636, abs=6e-13)
    # The eighth digit on, two independent discretisations here agree on ...3867.
    assert one.diffusion[at].value == pytest.approx(0.965221384, abs=4e-9)
    assert one.diffusion[at].value == pytest.approx(0.965221386746, abs=1e-11)
    assert two.diffusion[at].value == pytest.approx(0.965743033, abs=6e-10)
    assert two.errors[at].stderr < 1e-10


def test_t2_order_one_by_a_second_discretisation():
    """Digits of E x and E x^2 at order 1, beyond those that were known before.

    `weak_error` takes Chebyshev collocation of the backward equation; here the same equation
    is solved by exponentially fitted finite differences, extrapolated over five meshes. The two
    share no code but the drift. At 1024 cells they agree to 1e-11 on .965221386746 and
    .935705034202; the coarser meshes here leave errors below 1e-9.
    """
    flow = diffusion_approximation(SGD(coin_well, 0.0125), 1)
    op = generator(flow, (-math.inf, math.inf), nodes=512, include=(0.5,))
    for power, value in ((1, 0.965221386746), (2, 0.935705034202)):
        by_mesh = expectation(op, lambda x, p=power: x[:, 0] ** p, [0.5], 160)
        by_collocation = smooth_expectation(flow, lambda x, p=power: x[:, 0] ** p, [0.5], 160)
        assert by_mesh.value == pytest.approx(value, abs=1e-9)
        assert by_collocation.value == pytest.approx(value, abs=1e-11)


def test_t2_observed_orders(double_well):
    one, two = double_well[1], double_well[2]
    assert one.observed_order.value == pytest.approx(0.96, abs=0.005)
    assert two.observed_order.value == pytest.approx(2.09, abs=0.005)
    assert one.asymptotic
    assert two.asymptotic
    assert two.method == "operators"


def test_t2_order_one_can_be_closer(double_well):
    assert "order 1 is closer" in double_well[2].notes[-1]
    assert "0.1" in double_well[2].notes[-1]


def test_t2_squares_and_cosines():
    sgd = SGD(coin_well, 0.1)
    out = weak_errors(sgd, lambda x: x[0] ** 2, 2.0, [0.025, 0.0125], [0.5])
    assert out[1].chain[1].value == pytest.approx(0.936831170449, abs=6e-13)
    assert out[1].diffusion[1].value == pytest.approx(0.935705033, abs=2e-9)
    assert out[2].diffusion[1].value == pytest.approx(0.936671263, abs=6e-10)
    out = weak_errors(sgd, lambda x: jnp.cos(2 * x[0]), 2.0, [0.1, 0.05], [0.5])
    assert out[1].chain[0].value == pytest.approx(-0.196409653, abs=6e-10)
    assert out[1].diffusion[0].value == pytest.approx(-0.199195658, abs=2e-9)
    assert out[2].diffusion[0].value == pytest.approx(-0.196307555, abs=2e-9)


def test_t1_constants():
    out = weak_errors(SGD(parabola, 0.1), lambda x: x @ x, 1.0, [1 / 256, 1 / 512], [1.0])
    assert out[1].constant.value == pytest.approx(-0.1353353, abs=5e-6)
    assert out[2].constant.value == pytest.approx(0.3421088, abs=5e-5)
    assert out[1].method == "moments"


def test_t3_least_squares_by_moments():
    out = weak_errors(SGD(squares, 0.1), squares.mean, 1.0, [0.1, 0.0125], [1.0, 1.0])
    assert out[1].chain[1].value == pytest.approx(0.8155641356, abs=6e-11)
    assert "order 1 is closer" in out[1].notes[-1]
    assert not out[1].asymptotic


def test_simulation_agrees_with_moments():
    sgd = SGD(parabola, 0.1)
    exact = weak_error(sgd, 1, lambda x: x @ x, 1.0, [0.2, 0.1], [1.0])
    drawn = weak_error(
        sgd, 1, lambda x: x @ x, 1.0, [0.2, 0.1], [1.0], method="simulation", paths=40000
    )
    for a, b in zip(exact.errors, drawn.errors, strict=True):
        assert abs(a.value - b.value) < 4 * b.stderr + 1e-5
        assert b.stderr < 0.03 * abs(b.value)  # coupling pays: a plain difference has 100 %


def test_simulation_does_not_depend_on_earlier_calls():
    def value():
        return (
            weak_error(
                SGD(parabola, 0.1),
                2,
                lambda x: x @ x,
                1.0,
                [1.0, 0.5],
                [1.0],
                method="simulation",
                paths=2048,
                seed=3,
            )
            .errors[1]
            .value
        )

    assert value() == value()


def test_a_wrong_factor_two_in_the_tensor_has_order_zero(monkeypatch):
    def wrong(sgd, order):
        flow = diffusion_approximation(sgd, order)
        return replace(flow, tensor=lambda x: 2 * flow.tensor(x))

    def wrong_drift(sgd, order):
        flow = diffusion_approximation(sgd, order)
        return replace(flow, drift=lambda x: 1.1 * flow.drift(x))

    # A wrong tensor costs a whole order: with O(eta) noise its error is itself O(eta).
    monkeypatch.setattr(expectations, "diffusion_approximation", wrong)
    out = weak_error(SGD(parabola, 0.1), 2, lambda x: x @ x, 1.0, [1 / 128, 1 / 256], [1.0])
    assert out.observed_order.value == pytest.approx(1, abs=0.05)
    assert not out.asymptotic
    monkeypatch.setattr(expectations, "diffusion_approximation", wrong_drift)
    out = weak_error(SGD(parabola, 0.1), 1, lambda x: x @ x, 1.0, [1 / 128, 1 / 256], [1.0])
    assert abs(out.observed_order.value) < 0.1
    assert not out.asymptotic


def test_results_are_fit_for_json(double_well):
    text = json.dumps(double_well[1].to_dict(), allow_nan=False)
    assert json.loads(text)["order"] == 1
    assert "asymptotic regime reached" in str(double_well[1])


def test_snapshots_of_the_double_well():
    out = snapshots(SGD(coin_well, 0.0125), 0.5, [40, 160])
    width = out.centres[0][1] - out.centres[0][0]
    for rows in out.densities.values():
        np.testing.assert_allclose(rows.sum(axis=1) * width, 1, atol=1e-5)
    # Coin noise on a short walk is far in total variation, but close in Wasserstein distance.
    assert out.total_variation["order 1"][0] > 0.1
    assert out.total_variation["order 1"][1] < 0.02
    assert out.wasserstein["order 2"][1] < 0.003
    json.dumps(out.to_dict(), allow_nan=False)


def gaussian_on(points, law):
    gap = points - law.mean
    inverse = np.linalg.inv(law.covariance)
    power = np.einsum("...i,ij,...j->...", gap, inverse, gap)
    return np.exp(-power / 2) / np.sqrt(np.linalg.det(2 * np.pi * law.covariance))


@pytest.mark.parametrize("dim", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_snapshots_of_a_parabola_are_the_exact_gaussians(dim):
    curve, noise = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, 0.0], [-0.4, 0.58]])
    curve, noise = curve[:dim, :dim], noise[:dim, :dim]
    sgd = SGD(additive(lambda x: x @ jnp.asarray(curve) @ x / 2, "gaussian", dim, noise), 0.05)
    x0 = np.array([1.0, 0.0])[:dim]
    out = snapshots(sgd, x0, [4, 20])
    cells = np.stack(np.meshgrid(*out.centres, indexing="ij"), axis=-1)
    volume = np.prod([c[1] - c[0] for c in out.centres])
    processes = {"SGD": sgd, "order 1": diffusion_approximation(sgd, 1)}
    for k, steps in enumerate(out.steps):
        exact = {n: gaussian_on(cells, moments(p, x0, steps)) for n, p in processes.items()}
        for name, density in exact.items():
            gap = 0.5 * np.abs(out.densities[name][k] - density).sum() * volume
            assert gap < out.resolution[k] + 0.003
        variation = 0.5 * np.abs(exact["SGD"] - exact["order 1"]).sum() * volume
        assert variation > 0.04
        assert out.total_variation["order 1"][k] == pytest.approx(variation, rel=0.02)
        # Order 2 is nearer here, and the marginals are densities too.
        assert out.total_variation["order 2"][k] < 0.6 * variation
    width = out.centres[-1][1] - out.centres[-1][0]
    np.testing.assert_allclose(out.marginal("SGD", dim - 1).sum(axis=1) * width, 1, atol=1e-3)


def test_snapshots_with_noise_in_one_direction_only():
    """A diffusion without noise along x1 follows the flow there: no grid spreads it."""
    sgd = SGD(additive(lambda x: x @ x / 2, "gaussian", 2, np.array([[0.5], [0.0]])), 0.1)
    out = snapshots(sgd, [1.0, 1.0], [10])
    middle, mass = out.centres[1], out.marginal("order 1", 1)[0]
    mean = mass @ middle / mass.sum()
    assert mean == pytest.approx(np.exp(-1.0), abs=1e-3)
    assert np.sqrt(mass @ (middle - mean) ** 2 / mass.sum()) < 0.03


def test_refusals():
    sgd = SGD(parabola, 0.1)
    with pytest.raises(InputError, match="divide the horizon"):
        weak_error(sgd, 1, lambda x: x @ x, 1.0, [0.3, 0.1], [1.0])
    with pytest.raises(InputError, match="two values"):
        weak_error(sgd, 1, lambda x: x @ x, 1.0, [0.1], [1.0])
    with pytest.raises(InputError, match="order"):
        weak_error(sgd, 3, lambda x: x @ x, 1.0, [0.2, 0.1], [1.0])
    with pytest.raises(InputError, match="degree 2"):
        weak_error(sgd, 1, lambda x: x[0] ** 3, 1.0, [0.2, 0.1], [1.0], method="moments")
    with pytest.raises(InputError, match="one or two dimensions"):
        snapshots(SGD(additive(lambda x: x @ x, dim=3), 0.1), np.zeros(3), [2])
    with pytest.raises(InputError, match="shape"):
        snapshots(SGD(squares, 0.1), 0.5, [2])


@pytest.mark.slow
def test_martingale_controls_resolve_small_differences():
    """T2 by simulation: noise that no Gaussian can be coupled to."""
    out = weak_errors(
        SGD(coin_well, 0.1),
        lambda x: x[0],
        2.0,
        [0.05, 0.0125],
        [0.5],
        method="simulation",
        paths=16384,
    )
    for order, flow in ((1, 0.965221387), (2, 0.965743033)):
        error = out[order].errors[1]
        assert abs(error.value - (0.965789440636 - flow)) < 4 * error.stderr
        # A plain difference of two samples of this size has a standard error of 1e-3.
        assert error.stderr < 4e-5


@pytest.mark.slow
def test_martingale_controls_of_finite_data():
    """T3 with a subset of two rows each step: the noise depends on x, and its levels fall slowly."""
    sgd = SGD(squares, 0.1, 2, "without_replacement")
    exact = weak_error(sgd, 2, squares.mean, 1.0, [0.1, 0.05], [1.0, 1.0])
    drawn = weak_error(
        sgd, 2, squares.mean, 1.0, [0.1, 0.05], [1.0, 1.0], method="simulation", paths=16384
    )
    for a, b in zip(exact.errors, drawn.errors, strict=True):
        assert abs(a.value - b.value) < 4 * b.stderr
    assert drawn.errors[1].stderr < 4e-6


def test_levels_resolve_errors_below_1e_6_in_three_dimensions():
    """Quadratic loss, Laplace noise that no Gaussian can be coupled to: exact moments are known."""
    curve = jnp.asarray([[1.5, 0.4, 0.0], [0.4, 1.0, -0.3], [0.0, -0.3, 0.7]])
    sgd = SGD(additive(lambda x: x @ curve @ x / 2, "laplace", 3), 0.1)
    ask = (lambda x: x @ x, 0.5, [0.1, 0.05], np.ones(3), (2,))
    exact, drawn = (
        weak_errors(sgd, *ask, method=m, paths=4096)[2] for m in ("moments", "simulation")
    )
    for a, b in zip(exact.errors, drawn.errors, strict=True):
        assert b.stderr < 1e-6
        assert abs(a.value - b.value) < 4 * b.stderr
        assert abs(a.value) > 1000 * b.stderr
    assert drawn.observed_order.value == pytest.approx(exact.observed_order.value, abs=1e-3)


@pytest.mark.slow
def test_simulation_where_no_operator_reaches():
    """Three parameters, logistic loss: order 2 beats order 1, each by many standard errors."""
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((16, 3))
    signs = np.sign(rows @ np.ones(3) + rng.standard_normal(16))
    loss = finite_sum(
        lambda w, z: jnp.logaddexp(0.0, -z[1] * (z[0] @ w)) + 0.05 * w @ w, (rows, signs), dim=3
    )
    out = weak_errors(SGD(loss, 0.1, 4), loss.mean, 1.0, [0.25, 0.125], np.zeros(3), paths=4096)
    one, two = (out[o].errors[1] for o in (1, 2))
    assert out[1].method == "simulation"
    assert abs(one.value) > 20 * one.stderr
    assert abs(two.value) < 0.5 * abs(one.value)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["with_replacement", "without_replacement"])
def test_a_blurred_operator_gives_way_to_a_simulation(sampling):
    """Two parameters, five rows: polynomials leave 5e-4 open to 30 %, coupled paths do not."""
    rows = np.random.default_rng(0).normal(size=(5, 2))
    loss = finite_sum(lambda x, z: jnp.cos(x[0] * z[0] - z[1]) + 0.3 * x @ x, rows, 2)
    ask = (SGD(loss, 0.1, 2, sampling), 1, lambda x: jnp.cos(2 * x[0]), 1.0, [0.1, 0.05])
    blurred = weak_error(*ask, x0=[0.4, 0.3], method="operators")
    sharp = weak_error(*ask, x0=[0.4, 0.3])
    assert sharp.method == "simulation"
    for a, b in zip(sharp.errors, blurred.errors, strict=True):
        assert a.stderr < 0.05 * abs(a.value) < b.stderr
        assert abs(a.value - b.value) < b.stderr + 4 * a.stderr
    # Both say the same of SGD itself, which operators resolve to 1e-6.
    for a, b in zip(sharp.chain, blurred.chain, strict=True):
        assert abs(a.value - b.value) < 4 * a.stderr + b.stderr
