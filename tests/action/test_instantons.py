"""Actions against closed forms and exact digits: chains, diffusions, every extremal."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
from scipy.linalg import solve_continuous_lyapunov

from batchwell import SGD, additive, ball, diffusion, finite_sum, half_space
from batchwell._jax import jax, jnp
from batchwell.action import hamiltonian, instantons, quasi_potential, ritz, string_action
from batchwell.action.symmetric import log_mean_symmetric
from batchwell.errors import InputError, RunError


@cache
def well(law="gaussian", scale=1.0):
    return SGD(additive(lambda x: (x @ x - 1) ** 2 / 4, law, scale=scale), 0.1)


def maier_stein(beta):
    return diffusion(
        lambda x: jnp.array([x[0] - x[0] ** 3 - beta * x[0] * x[1] ** 2, -(1 + x[0] ** 2) * x[1]]),
        lambda x: jnp.eye(2),
        dim=2,
    )


@pytest.mark.parametrize(
    ("law", "value"),
    [
        ("rademacher", 0.88918772),
        ("uniform", 0.74059902),
        ("laplace", 0.51295498),
        ("gaussian", 0.64),
    ],
)
def test_the_chain_has_its_own_exponent(law, value):
    sgd = SGD(additive(lambda x: x @ x / 2, law), 0.1)
    assert quasi_potential(sgd, [0.0], [0.8]) == pytest.approx(value, abs=1e-8)


def test_bounded_noise_in_the_double_well():
    assert quasi_potential(well("rademacher", 0.7), [-1.0], [0.0]) == pytest.approx(
        1.20216103, abs=1e-8
    )
    with pytest.raises(RunError, match=r"never escapes.*a diffusion would"):
        quasi_potential(well("rademacher", 0.384), [-1.0], [0.0])


def test_heavy_tails_have_no_exponent():
    with pytest.raises(InputError, match="no exponential moments"):
        quasi_potential(well("student_t"), [-1.0], [0.0])


def test_state_dependent_noise():
    process = diffusion(lambda x: x - x**3, lambda x: jnp.sqrt(1 + x**2)[:, None], dim=1)
    assert quasi_potential(process, [-1.0], [0.0]) == pytest.approx(2 * math.log(2) - 1, abs=1e-10)


def test_maier_stein_all_extremals():
    found = instantons(maier_stein(10.0), [-1.0, 0.0], [0.0, 0.0], order=20, all_extremals=True)
    actions = sorted({round(f.action, 5) for f in found})
    assert actions == [0.34004, 0.49046, 0.5]
    assert found[0].action == pytest.approx(0.340041403, abs=1e-9)
    # The straight path is no minimum: it can bend either way.
    assert [f.index for f in found if abs(f.action - 0.5) < 1e-6] == [2]
    # Mirror images are told apart.
    assert sum(abs(f.action - 0.340041403) < 1e-6 for f in found) == 2


def test_maier_stein_below_the_bifurcation():
    assert quasi_potential(maier_stein(3.0), [-1.0, 0.0], [0.0, 0.0]) == pytest.approx(0.5)


def test_anisotropic_noise_is_a_change_of_coordinates():
    # dX = -X dt + S dW: V(x) = x . (S S^T / 2)^-1 x / 2 as A = -1 commutes with everything.
    s = np.array([[1.0, 0.0], [0.4, 0.5]])
    process = diffusion(lambda x: -x, lambda x: jnp.asarray(s), dim=2)
    x = np.array([0.3, 0.7])
    expected = x @ np.linalg.solve(s @ s.T, x)
    assert quasi_potential(process, [0.0, 0.0], x) == pytest.approx(expected, rel=1e-6)


def test_subset_cumulants_by_brute_force():
    k = np.random.default_rng(0).normal(size=8) * 2
    for size in range(1, 8):
        sums = [math.exp(sum(c)) for c in itertools.combinations(k, size)]
        expected = math.log(np.mean(sums))
        assert float(log_mean_symmetric(jnp.asarray(k), size)) == pytest.approx(expected, abs=1e-12)


def test_subsets_have_the_right_second_cumulant():
    data = np.random.default_rng(1).normal(size=(12, 2))
    loss = finite_sum(lambda x, z: jnp.sum((x - z) ** 2) / 2, data, 2)
    x = jnp.asarray([0.3, -0.2])
    for mode in ("with_replacement", "without_replacement"):
        h = hamiltonian(SGD(loss, 0.1, 5, mode))
        tensor, drift = jax.jit(lambda x, h=h: (h.tensor(x), h.drift(x)))(x)
        np.testing.assert_allclose(tensor, loss.covariance(x), rtol=1e-9)
        np.testing.assert_allclose(drift, -loss.gradient(x), rtol=1e-9)


def test_batching_does_not_change_the_exponent():
    data = np.random.default_rng(2).exponential(size=20) - 1
    loss = finite_sum(lambda x, z: x[0] ** 2 / 2 - x[0] * z, data, 1)
    at = float(np.mean(data))
    values = [
        quasi_potential(SGD(loss, 0.1, *how), [at], [at + 0.5])
        for how in ((1,), (8,), (1, "without_replacement"))
    ]
    # A subset of one example is a draw of one example.
    np.testing.assert_allclose(values, values[0], rtol=1e-9)
    gaussian = 0.25 / float(np.var(data))
    assert abs(values[0] / gaussian - 1) > 0.1


def test_momentum_divides_the_exponent():
    plain = SGD(additive(lambda x: x @ x / 2, "uniform"), 0.1)
    heavy = SGD(plain.loss, 0.1, momentum=0.5)
    assert quasi_potential(heavy, [0.0], [0.8]) == pytest.approx(
        0.5 * quasi_potential(plain, [0.0], [0.8]), rel=1e-9
    )


def test_exit_point_is_the_cheapest_point_of_the_boundary():
    flat = diffusion(lambda x: -jnp.array([1.0, 2.0]) * x, lambda x: jnp.eye(2), dim=2)
    best = instantons(flat, [0.0, 0.0], ball([0.0, 0.0], 1.0), order=8)
    assert best[0].action == pytest.approx(1.0, rel=1e-6)
    assert abs(best[0].end[1]) < 1e-4


def test_momentum_along_the_instanton_keeps_h_zero():
    sgd = well("rademacher", 0.7)
    path = instantons(sgd, [-1.0], [0.0])[0]
    values = jax.vmap(hamiltonian(sgd).value)(jnp.asarray(path.path), jnp.asarray(path.theta))
    assert float(jnp.abs(values).max()) < 1e-10


def test_a_boundary_that_no_ray_meets_is_refused():
    with pytest.raises(InputError, match="start"):
        instantons(well(), [1.0], half_space([1.0], 0.0))


@pytest.mark.parametrize("beta", [3.0, 10.0])
def test_the_string_is_a_second_route(beta):
    string = string_action(maier_stein(beta), [-1.0, 0.0], [0.0, 0.0], points=129)
    ritz = quasi_potential(maier_stein(beta), [-1.0, 0.0], [0.0, 0.0])
    assert string.action == pytest.approx(ritz, abs=1e-6)


# Rates of the drift -1 +- 10i, -.75 +- 2.4i; noise that does not commute with it.
TURNING = [[[-1.0, 10.0], [-10.0, -1.0]], [[-1.0, 3.0], [-2.0, -0.5]]]


@pytest.mark.parametrize("drift", [TURNING[0], pytest.param(TURNING[1], marks=pytest.mark.slow)])
def test_a_spiral_out_of_a_rotating_minimum(drift):
    # Linear drift: V = x C^-1 x / 2, A C + C A' + Sigma = 0.
    a, root = np.array(drift), np.linalg.cholesky(np.array([[1.0, 0.3], [0.3, 0.5]]))
    precision = np.linalg.inv(solve_continuous_lyapunov(a, -root @ root.T))
    process = diffusion(lambda x: jnp.asarray(a) @ x, lambda x: jnp.asarray(root), 2)
    path = instantons(process, [0.0, 0.0], [1.0, 0.0])[0]
    assert path.action == pytest.approx(precision[0, 0] / 2, rel=1e-10)
    assert path.error < 1e-9
    # All round the circle: the end is the eigenvector of least cost.
    out = instantons(process, [0.0, 0.0], ball([0.0, 0.0], 1.0))[0]
    assert out.action == pytest.approx(np.linalg.eigvalsh(precision)[0] / 2, rel=1e-8)


@pytest.mark.parametrize("friction", [0.3, 1.0])
@pytest.mark.parametrize("end", [np.zeros(2), half_space([1.0, 0.0], -0.3)])
def test_underdamped_langevin_costs_its_energy(friction, end):
    # dq = p dt, dp = -(U' + g p) dt + sqrt(2 g) dW: V is the energy, p^2 / 2 + U, over the temperature 1.
    process = diffusion(
        lambda x: jnp.array([x[1], x[0] - x[0] ** 3 - friction * x[1]]),
        lambda x: jnp.array([[0.0], [math.sqrt(2 * friction)]]),
        2,
    )
    path = instantons(process, [-1.0, 0.0], end)[0]
    energy = 0.25 if isinstance(end, np.ndarray) else (0.3**2 - 1) ** 2 / 4
    assert path.action == pytest.approx(energy, rel=1e-4)
    assert abs(path.action - energy) < max(100 * path.error, 1e-4 * energy)
    # No noise moves q: the momentum of the velocity alone pushes, and the energy is its cost.
    spent = path.path[:, 1] ** 2 / 2 + (path.path[:, 0] ** 2 - 1) ** 2 / 4
    assert np.all(np.diff(spent[path.parameter > 0.05]) > -1e-6)


def test_what_polynomials_cannot_follow_is_in_the_error():
    # The same spiral without its frame: 16 bubbles are not enough, and the error says so.
    a = jnp.asarray(TURNING[1])
    h = hamiltonian(diffusion(lambda x: a @ x, lambda x: jnp.eye(2), 2))
    x0, x1 = np.zeros(2), np.array([1.0, 0.0])
    found = ritz.minimise(ritz.problem(h, 16, 40, None), x0, x1, np.zeros(32))
    covariance = solve_continuous_lyapunov(np.asarray(a), -np.eye(2))
    wrong = abs(found.action - np.linalg.inv(covariance)[0, 0] / 2)
    assert 1e-5 < wrong < 20 * (found.truncation + found.quadrature)
