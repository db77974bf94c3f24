"""Sums of heavy-tailed noise, and 2-D chains whose noise is not Gaussian or acts in one direction."""

import math

import numpy as np
import pytest
from scipy import integrate, special

from batchwell import SGD, InputError, additive, ball, noise_law
from batchwell.law import exit_time, expectation, moments, transfer_operator
from batchwell.law.densities import gauss_rule, mean_density, quadrature
from batchwell.law.questions import mean_exit_time


def bowl(noise, dim=1, scale=1.0):
    return additive(lambda x: x @ x / 2, noise, dim, scale)


@pytest.mark.parametrize(("name", "sizes"), [("student_t", (2, 3, 16)), ("pareto", (2, 5))])
def test_heavy_sums_have_the_right_mass_variance_and_tails(name, sizes):
    one = mean_density(noise_law(name), 1)
    for b in sizes:
        law = mean_density(noise_law(name), b)
        z, w = quadrature(law)
        assert w @ z == pytest.approx(0, abs=1e-9)
        assert b * (w @ z**2) == pytest.approx(1, abs=1e-6)  # less what lies beyond the cut
        at = np.array([-0.4, -0.1, 0.0, 0.3, 2.0]) / math.sqrt(b)
        np.testing.assert_allclose(law.cdf(at) + law.sf(at), 1, atol=1e-9)
        # Far out one large draw makes the mean: B P(z_1 > B z), to relative precision.
        far = np.array([1e4])
        np.testing.assert_allclose(law.sf(far), b * one.sf(b * far), rtol=1e-2 / b)


def test_student_means_against_the_characteristic_function():
    nu, b = 5.0, 4
    law = mean_density(noise_law("student_t"), b)

    def phi(t):
        s = math.sqrt(nu - 2) * t / b
        if s < 1e-9:
            return 1.0
        return special.kv(nu / 2, s) * s ** (nu / 2) / (2 ** (nu / 2 - 1) * special.gamma(nu / 2))

    for z in (0.0, 0.4, 1.0):
        truth, _ = integrate.quad(
            lambda t, z=z: phi(t) ** b * math.cos(t * z), 0, 40, epsabs=1e-13, limit=400
        )
        assert law.pdf(np.array([z]))[0] == pytest.approx(truth / math.pi, rel=1e-9)
        # Negative control: another batch size is another law.
        other = mean_density(noise_law("student_t"), 5).pdf(np.array([z]))[0]
        assert other != pytest.approx(truth / math.pi, rel=1e-2)


def test_gauss_rules_of_noise_laws_hold_its_moments():
    for name in ("uniform", "laplace", "exponential"):
        z, w = gauss_rule(mean_density(noise_law(name), 3), 4)
        kurtosis = 3 + (noise_law(name).kurtosis - 3) / 3
        np.testing.assert_allclose([w @ z, 3 * w @ z**2, 9 * w @ z**4], [0, 1, kurtosis], atol=1e-9)


def test_exit_times_with_means_of_student_draws():
    """B = 2 of Student noise: more nodes change nothing, and it is not Gaussian."""
    sgd = SGD(bowl("student_t"), 0.3, 2)
    op = transfer_operator(sgd, (-1, 1))
    value = exit_time(op, [0.0])
    assert value.stderr < 1e-8 * value.value
    finer = exit_time(transfer_operator(sgd, (-1, 1), nodes=480), [0.0])
    assert finer.value == pytest.approx(value.value, rel=1e-9)
    gaussian = exit_time(transfer_operator(SGD(bowl("gaussian"), 0.3, 2), (-1, 1)), [0.0])
    assert value.value < 0.5 * gaussian.value


def both_coordinates(noise, eta):
    """Mean exit time from the square |x1|, |x2| < 1 of two independent 1-D chains, to 1e-4."""

    def on(nodes):
        op = transfer_operator(SGD(bowl(noise), eta), (-1, 1), nodes=nodes)
        row, alive = op.row(np.zeros((1, 1)))[0], np.ones(op.size)
        survival = [1.0]
        while survival[-1] > 1e-6:
            survival.append(float((row @ alive)[0]))
            alive = op.rates @ alive
        return np.sum(np.square(survival))

    coarse, fine = on(101), on(201)
    return fine + (fine - coarse) / 3


@pytest.mark.parametrize(
    ("noise", "close"), [("uniform", 1e-2), ("laplace", 8e-4), ("exponential", 6e-4)]
)
def test_a_square_is_left_when_one_of_two_coordinates_leaves(noise, close):
    """Kinks of the noise and corners of the square cost no order: fourth, once extrapolated.

    A uniform density jumps, so that its expected steps have kinks of their own: nearly second.
    """
    truth = both_coordinates(noise, 0.3)
    square = ((-1, -1), (1, 1))
    out = exit_time(transfer_operator(SGD(bowl(noise, 2), 0.3), square, nodes=36), [0.0, 0.0])
    assert out.value == pytest.approx(truth, rel=close)
    assert abs(out.value - truth) <= out.stderr < 0.05 * truth
    # The same noise halved in one direction is far away.
    half = SGD(bowl(noise, 2, np.diag([1.0, 0.5])), 0.3)
    other = exit_time(transfer_operator(half, square, nodes=36), [0.0, 0.0])
    assert abs(other.value - truth) > 5 * other.stderr


def test_lines_agree_with_the_gaussian_operator_on_a_disc():
    scale = np.array([[1.0, 0.0], [0.5, 0.8]])
    sgd = SGD(bowl("gaussian", 2, scale), 0.3)
    disc = ball([0.0, 0.0], 1.0)
    truth = exit_time(transfer_operator(sgd, disc), [0.2, 0.1])
    lines = exit_time(transfer_operator(sgd, disc, method="hat", nodes=24), [0.2, 0.1])
    assert abs(lines.value - truth.value) < 3 * lines.stderr
    assert lines.stderr < 0.05 * truth.value


def test_every_row_of_lines_keeps_the_mass():
    for place in (((-1, -1), (1, 1)), ball([0.0, 0.0], 1.0)):
        for mix in (np.eye(2), np.array([[1.0, 0.5], [0.5, 1.0]]), np.ones((2, 2)) / 2):
            op = transfer_operator(SGD(bowl("laplace", 2, mix), 0.3), place, nodes=12)
            total = op.rates.sum(axis=1) + op.exits.sum(axis=1)
            np.testing.assert_allclose(total, 1, atol=1e-9)
            assert (op.rates >= 0).all()


@pytest.mark.parametrize("noise", ["gaussian", "laplace"])
def test_noise_in_one_direction_only_is_solved(noise):
    """x2 just contracts: the square is left through x1 alone, as in one dimension."""
    sgd = SGD(bowl(noise, 2, np.array([[1.0], [0.0]])), 0.3)
    op = transfer_operator(sgd, ((-1, -1), (1, 1)), nodes=32)
    out = exit_time(op, [0.0, 0.3])
    one = exit_time(transfer_operator(SGD(bowl(noise), 0.3), (-1, 1)), [0.0])
    assert abs(out.value - one.value) < 3 * out.stderr
    assert out.stderr < 0.05 * one.value
    assert np.all(mean_exit_time(op) > 0)


def test_refusals():
    with pytest.raises(InputError, match="for Gaussian noise"):
        transfer_operator(SGD(bowl("laplace", 2), 0.3), ((-1, -1), (1, 1)), method="nystrom")
    with pytest.raises(InputError, match="has atoms"):
        mean_density(noise_law("rademacher"), 2)
    many = additive(lambda x: x @ x / 2, "laplace", 2, np.ones((2, 4)))
    with pytest.raises(InputError, match="more than 3 non-Gaussian"):
        transfer_operator(SGD(many, 0.3), ((-1, -1), (1, 1)))


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("noise", ["uniform", "laplace", "exponential"])
def test_expectations_under_noise_with_kinks_are_exact(noise, dim):
    """E x1^4 after 8 steps needs skewness and kurtosis of the noise; moments know it exactly."""
    sgd = SGD(bowl(noise, dim), 0.1, 2)
    x0 = np.full(dim, 0.7)
    place = (-math.inf, math.inf) if dim == 1 else ((-9, -9), (9, 9))
    include = {"include": (0.7,)} if dim == 1 else {}
    op = transfer_operator(sgd, place, method="spectral", **include)
    out = expectation(op, lambda x: x[:, 0] ** 4, x0, 8)
    truth = moments(sgd, x0, 8, 4).raw[3][(0,) * 4]
    assert out.value == pytest.approx(truth, abs=1e-8)
    gaussian = moments(SGD(bowl("gaussian", dim), 0.1, 2), x0, 8, 4).raw[3][(0,) * 4]
    assert abs(gaussian - truth) > 1e-5
