"""The chain's own action at finite learning rate, with and without momentum."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from batchwell import SGD, additive, ball, half_space, sampled, stationary_moments
from batchwell.action import chain, chain_action, hamiltonian, instantons, quasi_potential
from batchwell.errors import InputError


@cache
def linear(momentum=0.0, eta=0.2):
    return SGD(additive(lambda x: x @ x / 2, "gaussian", scale=0.7), eta, 2, momentum=momentum)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_linear_chain_is_its_stationary_law(momentum):
    sgd = linear(momentum)
    variance = stationary_moments(sgd).covariance[0, 0]
    found = chain_action(sgd, [0.0], [1.3])
    assert found.exponent == pytest.approx(1.3**2 / (2 * variance), rel=1e-9)
    # The diffusion's limit is another number: momentum and step size are both seen.
    limit = quasi_potential(sgd, [0.0], [1.3])
    assert abs(found.action / limit - 1) > 0.005


def test_wrong_sign_of_the_memory_loses():
    sgd = linear(0.9)
    expected = 0.5 / stationary_moments(sgd).covariance[0, 0]
    h = hamiltonian(replace(sgd, momentum=0.0))
    wrong = chain._terms(h, sgd.learning_rate, -sgd.momentum)
    line = np.linspace(0, 1, 400)[:, None]
    path, _ = chain._newton(wrong, line)
    assert abs(float(wrong.total(path)) / h.temperature / expected - 1) > 0.5
    right = chain._terms(h, sgd.learning_rate, sgd.momentum)
    path, _ = chain._newton(right, line)
    assert float(right.total(path)) / h.temperature == pytest.approx(expected, rel=1e-9)


def test_two_dimensions_agree_with_the_stationary_covariance():
    a = np.array([[1.0, 0.3], [0.3, 0.5]])
    loss = additive(lambda x: x @ a @ x / 2, "gaussian", dim=2)
    sgd = SGD(loss, 0.3, momentum=0.6)
    x = np.array([0.4, -0.9])
    expected = x @ np.linalg.solve(stationary_moments(sgd).covariance, x) / 2
    assert chain_action(sgd, [0.0, 0.0], x).exponent == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_shift_of_the_exponent_in_a_double_well():
    # W = 2 Delta f - (eta^2/3) int f' f''^2 dx on [-1, 0] for f = (x^2 - 1)^2 / 4, to O(eta^3).
    # f' f''^2 = (x^3 - x)(3x^2 - 1)^2, whose integral over [-1, 0] is 1/8.
    grid = np.linspace(-1, 0, 200_001)
    slope = (grid**3 - grid) * (3 * grid**2 - 1) ** 2
    integral = float(np.sum((slope[1:] + slope[:-1]) / 2) * (grid[1] - grid[0]))
    assert integral == pytest.approx(0.125, abs=1e-8)
    loss = additive(lambda x: (x @ x - 1) ** 2 / 4)
    shifts = []
    for eta in (0.1, 0.05):
        action = chain_action(SGD(loss, eta), [-1.0], [0.0], steps=round(18 / eta)).action
        shifts.append((action - 0.5) / eta**2)
    assert shifts[1] == pytest.approx(-integral / 3, rel=0.03)
    # A step size twice as large moves four times as far: the rest is of higher order.
    assert shifts[0] == pytest.approx(shifts[1], rel=0.1)


@pytest.mark.slow
def test_bounded_noise_through_the_legendre_transform():
    sgd = SGD(additive(lambda x: x @ x / 2, "rademacher"), 0.02)
    value = chain_action(sgd, [0.0], [0.8]).action
    assert value == pytest.approx(0.88918772, rel=0.02)
    assert value != pytest.approx(0.64, rel=0.2)


def test_starts_that_are_no_minimum_are_refused():
    with pytest.raises(InputError, match="no minimum"):
        chain_action(linear(), [0.5], [1.0])


def test_the_cheapest_way_over_an_edge_of_a_linear_chain():
    # V = eps x.C^-1 x / 2, C stationary: over the plane n.x = 1 it is eps / (2 n.C n), at C n / n.C n.
    a = np.array([[1.0, 0.3], [0.3, 0.5]])
    sgd = SGD(additive(lambda x: x @ a @ x / 2, "gaussian", dim=2), 0.3)
    n = np.array([0.6, 0.8])
    spread = stationary_moments(sgd).covariance
    found = chain_action(sgd, [0.0, 0.0], half_space(n, 1.0))
    assert found.exponent == pytest.approx(0.5 / (n @ spread @ n), rel=1e-8)
    np.testing.assert_allclose(found.end, spread @ n / (n @ spread @ n), atol=1e-5)
    assert found.error < 1e-8 * found.action
    # Negative control: the limit of small steps costs more and ends elsewhere.
    limit = instantons(sgd, [0.0, 0.0], half_space(n, 1.0))[0]
    assert limit.action > 1.05 * found.action
    assert np.abs(limit.end - found.end).max() > 1e-3


@pytest.mark.slow
def test_the_edge_of_a_curved_domain_beats_its_neighbours():
    loss = additive(lambda x: x[0] ** 2 / 2 + 0.3 * x[1] ** 2 + 0.2 * x[0] ** 2 * x[1], dim=2)
    sgd = SGD(loss, 0.15)
    domain = ball([0.3, 0.1], 0.8)
    found = chain_action(sgd, [0.0, 0.0], domain)
    assert np.linalg.norm(found.end - [0.3, 0.1]) == pytest.approx(0.8, abs=1e-9)
    angle = np.arctan2(*(found.end - [0.3, 0.1])[::-1])
    for off in (-0.03, 0.03):
        beside = np.array([0.3, 0.1]) + 0.8 * np.array([np.cos(angle + off), np.sin(angle + off)])
        assert chain_action(sgd, [0.0, 0.0], beside).action > found.action


def test_too_few_steps_are_seen_by_doubling_them():
    few = chain_action(linear(), [0.0], [1.0], steps=6)
    many = chain_action(linear(), [0.0], [1.0])
    assert few.error > 0.5 * (few.action - many.action) > 1e-4
    assert many.error < 1e-9


def test_singular_noise_is_refused():
    thin = sampled(lambda x, z: x @ x / 2 + z[0] * x[0], "gaussian", dim=2)
    with pytest.raises(InputError, match="noise in all directions"):
        chain_action(SGD(thin, 0.1), [0.0, 0.0], [0.5, 0.0])
    with pytest.raises(InputError, match="inside the domain"):
        chain_action(linear(), [0.0], half_space([1.0], -0.5))
