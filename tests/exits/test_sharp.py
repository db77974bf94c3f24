"""The sharp law of SGD with noise of any shape against the chain's own exact law."""

import math
from functools import cache

import numpy as np
import pytest

from batchwell import (
    SGD,
    RunError,
    additive,
    ball,
    box,
    diffusion,
    diffusion_approximation,
    finite_sum,
    half_space,
    problem,
)
from batchwell._jax import jnp
from batchwell.action import hamiltonian, instantons
from batchwell.action.symmetric import log_mean_symmetric
from batchwell.exits import mean_exit_time
from batchwell.exits.amplitude import log_overshoot, step_shift


@cache
def bowl(law, scale=1.0):
    return additive(lambda x: x @ x / 2, law, scale=scale)


@cache
def well(law):
    return additive(lambda x: (x @ x - 1) ** 2 / 4, law)


UNEVEN = box([-1.3], [0.75])
CASES = [
    (bowl("gaussian"), [0.0], UNEVEN, 0.1),
    (bowl("uniform"), [0.0], UNEVEN, 0.1),
    (bowl("exponential"), [0.0], UNEVEN, 0.06),
    (well("uniform"), [-1.0], half_space([1.0], 1.0), 0.08),
    (well("gaussian"), [-1.0], half_space([1.0], 0.0), 0.08),
]


@pytest.mark.parametrize(("loss", "start", "domain", "eta"), CASES)
def test_any_noise_to_what_is_stated(loss, start, domain, eta):
    sgd = SGD(loss, eta)
    exact = mean_exit_time(sgd, start, domain, "law").value
    found = mean_exit_time(sgd, start, domain, "sharp")
    assert found.interval[0] < exact < found.interval[1]
    # A factor 2 left out or put in is seen.
    assert found.interval[1] / found.interval[0] < 2


def test_the_error_falls_with_the_learning_rate():
    off = []
    for eta in (0.12, 0.06, 0.03):
        sgd = SGD(bowl("uniform"), eta, 1)
        exact = mean_exit_time(sgd, [0.0], UNEVEN, "law").value
        off.append(math.log(mean_exit_time(sgd, [0.0], UNEVEN, "sharp").value / exact))
    assert abs(off[2]) < 0.02
    assert abs(off[2]) < 0.7 * abs(off[0])


def test_overshoot_of_gaussian_steps_is_siegmunds():
    # nu = (2 / a^2) exp(-2 sum_n Phi(-a sqrt(n) / 2) / n), a = theta sigma sqrt(eta / eps).
    from scipy.stats import norm

    h = hamiltonian(SGD(bowl("gaussian", 0.7), 0.1))
    x, ratio = np.array([0.6]), 3.0
    theta = 2 * x / 0.49  # H(x, theta) = 0
    a = float(theta[0]) * 0.7 * math.sqrt(ratio)
    n = np.arange(1, 4000)
    expected = math.log(2 / a**2) - 2 * float(np.sum(norm.cdf(-a * np.sqrt(n) / 2) / n))
    assert log_overshoot(h, x, theta, ratio) == pytest.approx(expected, abs=1e-6)
    assert abs(log_overshoot(h, x, theta, 1e-8)) < 1e-3


def test_shift_of_a_linear_chain_is_its_stationary_law():
    # V(eta) = x^2 (2 - eta) / (2 s^2), whatever the scale s of the Gaussian noise.
    sgd = SGD(bowl("gaussian", 0.7), 0.1)
    path = instantons(sgd, [0.0], [0.9])[0]
    assert step_shift(hamiltonian(sgd), path) == pytest.approx(-(0.9**2) / (2 * 0.49), rel=1e-6)


def test_complex_tilts_of_subsets_by_brute_force():
    import itertools

    rng = np.random.default_rng(3)
    k = rng.normal(size=7) + 1j * rng.normal(size=7)
    for size in (1, 3, 6):
        sums = [np.exp(sum(c)) for c in itertools.combinations(k, size)]
        found = np.exp(complex(log_mean_symmetric(jnp.asarray(k), size)))
        assert abs(found - np.mean(sums)) < 1e-12 * abs(np.mean(sums)) + 1e-13


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["with_replacement", "without_replacement"])
def test_finite_data_in_the_plane_against_splitting(mode):
    rng = np.random.default_rng(7)
    data = rng.normal(size=(24, 2)) * [1.0, 0.6]
    data -= data.mean(axis=0)
    loss = finite_sum(lambda x, z: x @ x / 2 - x @ z + 0.1 * x[0] * x[1] ** 2, data, 2)
    sgd, domain = SGD(loss, 0.15, 3, mode), ball([0.0, 0.0], 0.75)
    found = mean_exit_time(sgd, [0.0, 0.0], domain, "sharp")
    options = {"particles": 512, "replicas": 12, "seed": 3}
    seen = mean_exit_time(sgd, [0.0, 0.0], domain, "splitting", **options)
    gap = math.log(found.value / seen.value)
    stated = math.log(found.interval[1] / found.value)
    assert abs(gap) < stated + 4 * seen.stderr / seen.value


@pytest.mark.parametrize("dim", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_exponents_followed_through_batch_sizes_are_those_found_afresh(dim):
    from batchwell.action import quasi_potential
    from batchwell.exits import exponent_map

    data = np.random.default_rng(2).exponential(size=(14, dim)) - 1
    data -= data.mean(axis=0)
    loss = finite_sum(lambda x, z: x @ x / 2 - x @ z, data, dim)
    domain, origin = half_space([1.0, 0.3][:dim], 0.4), [0.0] * dim
    sgd, modes = SGD(loss, 0.1, 1), ("with_replacement", "without_replacement")
    rows = exponent_map(sgd, origin, domain, [5, 1, 2], modes, order=6, starts=2)
    assert [r.batch_size for r in rows] == [5, 1, 2] * 2
    assert len({r.sgd for r in rows[:3]}) == 1
    assert rows[4].sgd == rows[0].sgd  # subsets of one are draws of one
    fresh = SGD(loss, 0.1, 5, "without_replacement")
    expected = quasi_potential(fresh, origin, domain, order=6, starts=2)
    assert rows[3].sgd == pytest.approx(expected, rel=1e-7)
    # Negative control: draws with replacement have another exponent.
    assert abs(rows[3].sgd / rows[0].sgd - 1) > 1e-3


def morse(eta, size):
    return SGD(additive(lambda x: (1 - jnp.exp(-x[0])) ** 2), eta, size)


@pytest.mark.parametrize(("eta", "size"), [(0.2, 4), (0.05, 1)])
def test_a_way_too_steep_for_the_expansion_is_left_out_and_named(eta, size):
    # At x = -1.2 eta f'' is 7.5: the first-order shift there is twice the exponent itself.
    sgd, domain = morse(eta, size), box([-1.2], [2.5])
    exact = mean_exit_time(sgd, [0.0], domain, "law").value
    found = mean_exit_time(sgd, [0.0], domain, "sharp")
    # The drift is weak at 2.5: the layer there is as wide as the drift's own scale, and it is said.
    assert found.interval[0] < exact < found.interval[1] < 2 * found.interval[0]
    assert any("too long for the expansion on the way out at [-1.2]" in n for n in found.notes)


def test_steps_too_long_on_the_only_way_out_are_refused():
    with pytest.raises(RunError, match=r"too long for the expansion.*use law"):
        mean_exit_time(morse(0.2, 4), [0.0], half_space([-1.0], 1.2), "sharp")


def test_the_next_order_of_the_shift_is_in_the_interval():
    # Uniform noise reaches 1.73, the gradient at -0.9 is 1.63: steps shift the exponent by a fifth.
    sgd = SGD(additive(lambda x: x[0] ** 4 / 4 + x[0] ** 2 / 2, "uniform"), 0.2)
    domain = box([-0.9], [1.1])
    exact = mean_exit_time(sgd, [0.2], domain, "law").value
    found = mean_exit_time(sgd, [0.2], domain, "sharp")
    assert found.interval[0] < exact < found.interval[1]


BESIDE = [(False, -0.2), (False, 0.12), (True, 0.05), (True, 0.3)]
FURTHER = [
    (c, y) for c in (False, True) for y in (-0.2, 0.0, 0.05, 0.12, 0.3) if (c, y) not in BESIDE
]


@pytest.mark.parametrize(
    ("chain", "offset"), [*BESIDE, *(pytest.param(*p, marks=pytest.mark.slow) for p in FURTHER)]
)
def test_a_boundary_near_the_saddle_is_seen(chain, offset):
    """The tilted well's saddle lies at 0.0807: boundaries in front of it, at it and behind it."""
    found = problem("tilted-well")
    sgd = SGD(found.loss, 0.025)
    process = sgd if chain else diffusion_approximation(sgd)
    where = half_space([1.0], offset)
    exact = mean_exit_time(process, found.start, where, "law").value
    out = mean_exit_time(process, found.start, where, "sharp")
    # The error that the law itself expects, eps / V and the size of steps: 4 to 6 %.
    assert out.interval[0] < exact < out.interval[1]
    assert abs(out.value / exact - 1) < 0.02


def test_the_law_over_a_saddle_is_not_that_of_a_boundary_near_it():
    """Negative control: 0.04 behind the saddle most crossings return."""
    found = problem("tilted-well")
    process = diffusion_approximation(SGD(found.loss, 0.025))
    near, far = (
        mean_exit_time(process, found.start, half_space([1.0], y), "sharp").value
        for y in (0.12, 0.5)
    )
    assert 1.5 < far / near < 1.7


def maier_stein(stable, beta, eps):
    return diffusion(
        lambda x: jnp.array(
            [x[0] - x[0] ** 3 - beta * x[0] * x[1] ** 2, -stable * (1 + x[0] ** 2) * x[1]]
        ),
        lambda x: math.sqrt(eps) * jnp.eye(2),
        dim=2,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("stable", "beta", "note"), [(1.5, 20.0, "20 %"), (0.7, 8.0, "magnitude")])
def test_two_paths_over_one_saddle_add_up_to_what_is_said(stable, beta, note):
    process, where = maier_stein(stable, beta, 0.05), half_space([1.0, 0.0], 0.5)
    out = mean_exit_time(process, [-1.0, 0.0], where, "sharp")
    assert "2 way(s) out" in out.notes[0]
    assert any("several paths" in text and note in text for text in out.notes)
    seen = mean_exit_time(process, [-1.0, 0.0], where, "splitting", particles=256, threads=1)
    low, high = out.interval
    assert low < seen.interval[1]
    assert seen.interval[0] < high
    # Negative control: one path alone takes twice as long, which a range of 20 % excludes.
    assert stable < 1 or 2 * low > seen.interval[1]


@pytest.mark.parametrize("dim", [2, 3])
def test_flux_over_a_flat_boundary_is_summed_over_all_of_it(dim):
    # A ball around a round bowl: every point is an exit. Radial law, exact: E tau = (2 / eps)
    # int_0^1 r^(1-d) exp(r^2 / eps) int_0^r s^(d-1) exp(-s^2 / eps) ds dr.
    from scipy.integrate import quad

    from batchwell.exits.fan import fan

    bowls = additive(lambda x: x @ x / 2, dim=dim)
    off = []
    for eta in (0.1, 0.05):
        h = hamiltonian(diffusion_approximation(SGD(bowls, eta)))
        found, error = fan(h, np.zeros(dim), ball([0.0] * dim, 1.0), 1.0).log_rate(h)

        def below(r, eps=eta):
            return quad(lambda s: s ** (dim - 1) * math.exp(-s * s / eps), 0, r)[0]

        whole = quad(lambda r, e=eta: r ** (1 - dim) * math.exp(r * r / e) * below(r), 0, 1)[0]
        off.append(-found - math.log(2 / eta * whole))
        assert error < 1e-3
    # Relative error O(eps): halved with it, and far from any factor 2.
    assert abs(off[0]) < 0.3
    assert off[1] / off[0] == pytest.approx(0.5, abs=0.1)


@pytest.mark.slow
def test_flux_over_an_uneven_boundary_and_its_control():
    loss = additive(lambda x: x @ x / 2 + 0.15 * x[0] ** 2 + 0.1 * x[0] ** 3, dim=2)
    flow, domain = diffusion_approximation(SGD(loss, 0.08)), ball([0.0, 0.0], 1.0)
    exact = mean_exit_time(flow, [0.0, 0.0], domain, "law")
    found = mean_exit_time(flow, [0.0, 0.0], domain, "sharp")
    assert "whole boundary" in found.notes[-1]
    assert found.interval[0] < exact.value < found.interval[1]
    # Negative control: a Gaussian around each exit point counts a flat boundary many times.
    from batchwell.exits.channels import channels
    from batchwell.exits.sharp import kramers

    h, origin = hamiltonian(flow), np.zeros(2)
    logs = [-kramers(h, origin, w, domain) for w in channels(flow, origin, domain)]
    apart = -np.logaddexp.reduce(logs) - math.log(0.08 * exact.value)
    assert abs(apart) > 2 * abs(math.log(found.value / exact.value))


def test_a_fan_is_refused_where_it_does_not_cover_the_boundary():
    from batchwell.exits.fan import fan

    h = hamiltonian(diffusion_approximation(SGD(additive(lambda x: x @ x / 2, dim=2), 0.1)))
    assert fan(h, np.zeros(2), half_space([1.0, 0.0], 1.0), 1.0) is None
    stiff = additive(lambda x: x[0] ** 2 / 2 + 20 * x[1] ** 2, dim=2)
    h = hamiltonian(diffusion_approximation(SGD(stiff, 0.01)))
    assert fan(h, np.zeros(2), ball([0.0, 0.0], 1.0), 1.0) is None
