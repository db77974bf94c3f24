"""Exit from saddles: constants against exact ones, full law against simulation, refusals."""

from functools import cache

import numpy as np
import pytest

from batchwell import (
    SGD,
    additive,
    ball,
    box,
    diffusion,
    diffusion_approximation,
    half_space,
    sampled,
)
from batchwell._jax import jnp
from batchwell.errors import InputError, RunError
from batchwell.exits import mean_exit_time
from batchwell.saddles import (
    batch_size_law,
    escape_laws,
    exact_quantile,
    exact_survival,
    exit_sides,
    mean_overshoot,
    saddle_exit,
    saddle_sequence,
)

HILL = additive(lambda x: -(x @ x) / 2)
UNIT = ball([0.0], 1.0)


@pytest.mark.parametrize(
    ("eps", "time", "within"), [(1e-2, 3.2818210350, 3e-5), (1e-4, 5.5869001971, 3e-9)]
)
def test_diffusion_mean_and_variance(eps, time, within):
    law = saddle_exit(diffusion_approximation(SGD(HILL, eps)), [0.0], UNIT)
    assert law.mean * eps == pytest.approx(time, abs=within)
    assert law.variance * eps**2 == pytest.approx(np.pi**2 / 8)
    assert law.side == 0.5


@pytest.mark.parametrize(
    ("eta", "steps", "within"), [(0.1, 23.252648, 8e-3), (0.02, 149.225941, 2e-3)]
)
def test_the_chain_has_its_own_constant(eta, steps, within):
    law = saddle_exit(SGD(HILL, eta), [0.0], UNIT)
    assert law.mean == pytest.approx(steps, abs=within)
    # Negative control: without the overshoot the mean is off by more than half a step.
    assert abs(law.mean - law.shift - steps) > 0.5


def test_off_centre_start_and_sides_match_simulation():
    sgd, interval = SGD(HILL, 0.02), box([-1.0], [2.0])
    law = saddle_exit(sgd, [0.0], interval, start=[0.2])
    seen = saddle_exit(sgd, [0.0], interval, start=[0.2], method="direct", paths=8192)
    assert abs(law.mean - seen.value) < 4 * seen.stderr
    side = exit_sides(sgd, [0.2], interval, [1.0], paths=8192)
    assert abs(side.value - law.side) < 4 * side.stderr


def test_quantiles_and_survival_invert_each_other():
    law = saddle_exit(SGD(HILL, 0.05), [0.0], UNIT)
    levels = np.array([0.05, 0.5, 0.95])
    np.testing.assert_allclose(1 - law.survival(law.quantile(levels)), levels, atol=1e-9)
    steps = np.linspace(0, 2000, 400001)
    mean = np.sum(law.survival(steps)) * (steps[1] - steps[0])
    assert mean == pytest.approx(law.mean, rel=2e-3)


def test_doubling_the_batch_adds_a_constant():
    means = batch_size_law(SGD(HILL, 0.02), [0.0], UNIT, [8, 16, 32, 64])
    np.testing.assert_allclose(np.diff(means), np.log(2) / (2 * np.log1p(0.02)), rtol=0.02)


def test_almost_linear_law():
    steps = [saddle_exit(SGD(HILL, eta), [0.0], UNIT).mean for eta in (1e-3, 1e-4)]
    # (1/eta) log(1/eta): ten times the rate costs ten times the steps and a bit.
    assert 10 < steps[1] / steps[0] < 14


def test_a_saddle_in_the_plane_uses_its_unstable_direction():
    plane = additive(lambda x: (x[1] ** 2 - x[0] ** 2) / 2, dim=2)
    law = saddle_exit(SGD(plane, 0.02), [0.0, 0.0], box([-1.0, -np.inf], [1.0, np.inf]))
    assert law.mean == pytest.approx(149.225941, abs=2e-3)
    np.testing.assert_allclose(law.direction, [1.0, 0.0], atol=1e-12)


@cache
def hill_of(*rates):
    slope = jnp.asarray(rates)
    return additive(lambda x: -(slope * x) @ x / 2, dim=len(rates))


@pytest.mark.parametrize("dim", [2, 3])
def test_several_equal_directions_against_the_radial_equation(dim):
    # T(0) = int_0^L dr r^(1-k) e^(-r^2 lambda/eps) (2/eps) int_0^r s^(k-1) e^(s^2 lambda/eps) ds.
    lam, eps, length = 0.8, 0.01, 0.9
    r = np.linspace(0, length, 40001)[1:] - length / 80000
    dr, power = length / 40000, lam / eps
    s = r[::8]
    inner = [
        np.sum((r[r <= q] / q) ** (dim - 1) * np.exp(power * (r[r <= q] ** 2 - q**2))) for q in s
    ]
    exact = np.sum(2 / eps * np.array(inner)) * dr * dr * 8
    process = diffusion_approximation(SGD(hill_of(*[lam] * dim), eps))
    law = saddle_exit(process, [0.0] * dim, ball([0.0] * dim, length))
    assert law.mean * eps == pytest.approx(exact, rel=1e-3)
    assert law.side == pytest.approx(0.5, abs=1e-3)
    np.testing.assert_allclose(1 - law.survival(law.quantile([0.1, 0.9])), [0.1, 0.9], atol=1e-3)
    # Negative control: the fastest direction alone takes far longer.
    alone = saddle_exit(diffusion_approximation(SGD(HILL, eps / lam)), [0.0], ball([0.0], length))
    assert alone.mean * (eps / lam) / lam > 1.2 * exact
    assert any(f"index {dim}" in note for note in law.notes)


@pytest.mark.parametrize("rates", [(1.0, 0.2), (1.3, 0.9)])
def test_several_unequal_directions_match_simulation(rates):
    sgd, disc = SGD(hill_of(*rates), 0.05, 2), ball([0.0, 0.0], 0.9)
    law = saddle_exit(sgd, [0.0, 0.0], disc)
    seen = saddle_exit(sgd, [0.0, 0.0], disc, method="direct", paths=8192)
    assert abs(law.mean - seen.value) < 4 * seen.stderr
    with pytest.raises(InputError, match="single unstable direction"):
        exact_survival(law)


def test_a_spiral_is_a_pair_of_equal_directions():
    turn = jnp.array([[0.8, 1.5], [-1.5, 0.8]])
    disc = ball([0.0, 0.0], 1.0)
    spiral = diffusion(lambda x: turn @ x, lambda x: 0.1 * jnp.eye(2), dim=2)
    straight = diffusion(lambda x: 0.8 * x, lambda x: 0.1 * jnp.eye(2), dim=2)
    found = saddle_exit(spiral, [0.0, 0.0], disc)
    assert found.mean == pytest.approx(saddle_exit(straight, [0.0, 0.0], disc).mean, rel=1e-4)
    assert any("spiral" in note for note in found.notes)


def saddle_of(*rates):
    slope = jnp.asarray(rates)
    return additive(lambda x: -(slope * x) @ x / 2, dim=len(rates), scale=0.6)


def test_the_stable_spread_counts_at_a_curved_boundary():
    # Both against the generator of the diffusion on the disc, exact to its mesh.
    eps, disc = 0.03, ball([0.0, 0.0], 0.9)
    process = diffusion_approximation(SGD(saddle_of(1.3, -0.4), eps))
    exact = mean_exit_time(process, [0.0, 0.0], disc, "law")
    law = saddle_exit(process, [0.0, 0.0], disc)
    assert abs(law.mean - exact.value) * eps < 1e-3
    # Negative control: a slab in place of the disc is left later.
    slab = saddle_exit(process, [0.0, 0.0], box([-0.9, -np.inf], [0.9, np.inf]))
    assert (slab.mean - exact.value) * eps > 4e-3


def test_fifty_stable_directions_shorten_the_way():
    sgd, sphere = SGD(saddle_of(1.3, *[-0.7] * 49), 0.04, 4), ball([0.0] * 50, 1.1)
    law = saddle_exit(sgd, [0.0] * 50, sphere)
    seen = saddle_exit(sgd, [0.0] * 50, sphere, method="direct", paths=8192, seed=4)
    assert abs(law.mean - seen.value) < 4 * seen.stderr
    # Half of log(1 - |y|^2 / L^2) over the growth rate, |y|^2 = 49 eps .36 / 1.4.
    alone = saddle_exit(SGD(saddle_of(1.3), 0.04, 4), [0.0], ball([0.0], 1.1)).mean
    shorter = -0.5 * np.log(1 - 49 * 0.01 * 0.36 / 1.4 / 1.21) / np.log1p(0.052)
    assert alone - law.mean == pytest.approx(shorter, rel=0.1)


WELL = additive(lambda x: (x @ x - 1) ** 2 / 4)


@pytest.mark.parametrize("chain", [True, False])
def test_the_drift_s_curvature_is_in_the_constant(chain):
    sgd = SGD(WELL, 0.02, 4)
    process = sgd if chain else diffusion_approximation(sgd)
    law, near = saddle_exit(process, [0.0], ball([0.0], 0.8)), ball([0.0], 0.8)
    exact = mean_exit_time(process, [0.0], near, "law").value
    # Beyond the constants the error is O(eps), eps = 0.005, over the slope there, 0.29, squared.
    assert abs(law.mean - exact) * law.log_growth < 0.005
    # x / sqrt(1 - x^2) grows linearly: in closed form.
    assert law.reach[0] == pytest.approx(0.8 / 0.6, rel=2e-2 if chain else 1e-4)
    # Negative control: the linear flow leaves earlier by log(1 / 0.6).
    shorter = np.log(law.reach[0] / law.distance[0]) / law.log_growth
    assert shorter * law.log_growth > 0.48


def test_two_curved_unstable_directions_match_simulation():
    def hills(x):
        slopes = 1.2 * x[0] ** 2 + 0.5 * x[1] ** 2
        return -slopes / 2 + 0.3 * x[0] ** 2 * x[1] + 0.2 * x[0] ** 4 + 0.1 * x[1] ** 4

    sgd, disc = SGD(additive(hills, dim=2), 0.03, 8), ball([0.0, 0.0], 0.7)
    law = saddle_exit(sgd, [0.0, 0.0], disc)
    seen = saddle_exit(sgd, [0.0, 0.0], disc, method="direct", paths=8192)
    assert abs(law.mean - seen.value) < 4 * seen.stderr
    # Negative control: the same rates without curvature.
    bare = saddle_exit(SGD(hill_of(1.2, 0.5), 0.03, 8), [0.0, 0.0], disc)
    assert abs(bare.mean - seen.value) > 8 * seen.stderr


def test_a_start_aside_in_the_stable_directions():
    sgd, disc = SGD(saddle_of(1.3, -0.7), 0.04, 4), ball([0.0, 0.0], 1.1)
    start = [0.3, 0.5]
    law = saddle_exit(sgd, [0.0, 0.0], disc, start=start)
    seen = saddle_exit(sgd, [0.0, 0.0], disc, start=start, method="direct", paths=8192)
    assert abs(law.mean - seen.value) < 4 * seen.stderr + 0.05


def test_momentum_grows_by_its_own_factor():
    sgd, wide = SGD(additive(lambda x: -0.8 * (x @ x) / 2), 0.05, 1, momentum=0.9), ball([0.0], 2.0)
    law = saddle_exit(sgd, [0.0], wide)
    g = np.roots([1.0, -(1 + 0.9 + 0.05 * 0.8), 0.9]).max()
    assert law.log_growth == pytest.approx(np.log(g))
    seen = saddle_exit(sgd, [0.0], wide, method="direct", paths=8192)
    assert abs(law.mean - seen.value) < 4 * seen.stderr + 0.3  # overshoot of steps with memory
    # Negative control: the limit of small learning rates, growth 1 + 10 eta lambda.
    assert abs(law.mean * np.log(g) / np.log(1.4) - seen.value) > 5


def test_a_flow_that_rests_inside_is_no_exit():
    with pytest.raises(InputError, match=r"stays inside near .*mean_exit_time from there"):
        saddle_exit(SGD(WELL, 0.05), [0.0], ball([0.0], 2.0))
    law = saddle_exit(SGD(WELL, 0.05, 4), [0.0], half_space([1.0], 0.5))
    assert np.isinf(law.mean)
    assert law.survival(1e4) == pytest.approx(0.5, abs=1e-6)
    assert np.isinf(law.quantile(0.6))
    assert np.isfinite(law.quantile(0.4))
    assert "with chance 0.5" in law.notes[-1]


def test_a_simulation_that_does_not_end_says_how_far_it_got():
    half, options = half_space([1.0], 0.5), {"paths": 64, "horizon": 2000}
    seen = saddle_exit(SGD(WELL, 0.05, 4), [0.0], half, method="direct", **options)
    assert "still inside after 2000 steps" in seen.notes[-1]


def test_sequences_add_up():
    total = saddle_sequence(SGD(HILL, 0.02), [[0.0], [0.0]], [UNIT, ball([0.0], 0.5)])
    assert total.mean == pytest.approx(sum(s.mean for s in total.stages))


def test_no_noise_along_the_unstable_direction_is_said():
    flat = sampled(lambda x, z: (x[1] ** 2 - x[0] ** 2) / 2 + z[0] * x[1], "gaussian", dim=2)
    with pytest.raises(RunError, match="no noise along the unstable direction"):
        saddle_exit(SGD(flat, 0.1), [0.0, 0.0], ball([0.0, 0.0], 1.0))
    with pytest.raises(InputError, match=r"leaves after about 24\.16 steps"):  # log 10 / log 1.1
        saddle_exit(SGD(flat, 0.1), [0.0, 0.0], ball([0.0, 0.0], 1.0), start=[0.1, 0.0])


def test_second_order_noise_leaves_a_degenerate_saddle():
    bent = sampled(
        lambda x, z: (x[1] ** 2 - x[0] ** 2) / 2 + 0.8 * x[0] * x[1] ** 2 + z[0] * x[1],
        "gaussian",
        dim=2,
    )
    sgd, disc = SGD(bent, 0.05, 40), ball([0.0, 0.0], 1.0)
    law = saddle_exit(sgd, [0.0, 0.0], disc)
    # <y^2> = eps / 2 pushes by 0.8 eps / 2 towards -x: the seed's mean, over lambda = 1.
    assert law.offset == pytest.approx(-0.4 * sgd.temperature, rel=1e-4)
    seen = saddle_exit(sgd, [0.0, 0.0], disc, method="direct", paths=1024)
    # Right in its logarithm: the constant is not, by a relaxation time or so.
    assert abs(law.mean - seen.value) < 1 / 0.05
    assert law.mean > 1.3 * saddle_exit(SGD(HILL, 0.05, 40), [0.0], UNIT).mean
    assert "degenerate" in law.notes[0]


def test_what_is_no_saddle_is_named():
    well = additive(lambda x: jnp.sum((x**2 - 1) ** 2) / 4)
    with pytest.raises(InputError, match=r"norm is 0\.09.*saddle of index 1"):
        saddle_exit(SGD(well, 0.1), [0.1], UNIT)
    with pytest.raises(InputError, match="no unstable direction"):
        saddle_exit(SGD(well, 0.1), [-1.0], half_space([1.0], 0.0))


def test_overshoot_of_a_gaussian_walk():
    rng = np.random.default_rng(5)
    walks = np.cumsum(rng.normal(1.0, 1.0, (20000, 60)), axis=1)
    first = np.argmax(walks > 20, axis=1)
    over = walks[np.arange(len(walks)), first] - 20
    assert abs(over.mean() - mean_overshoot(1.0)) < 4 * over.std() / np.sqrt(len(over))


@pytest.mark.parametrize(("eta", "steps"), [(0.1, 23.252648), (0.02, 149.225941)])
def test_the_exact_law_and_its_limit(eta, steps):
    law = saddle_exit(SGD(HILL, eta), [0.0], UNIT)
    survival = exact_survival(law)
    assert survival.sum() == pytest.approx(steps, abs=2e-6)
    # The limit law's quantiles lie within two steps of the exact ones, in the middle and the tail.
    levels = np.array([0.1, 0.5, 0.9, 0.99])
    np.testing.assert_allclose(law.quantile(levels), exact_quantile(survival, levels), atol=2.0)
    # Gumbel's tail: one factor g per step.
    late = exact_quantile(survival, 0.999).astype(int)
    assert survival[late] / survival[late + 1] == pytest.approx(1 + eta, rel=2e-3)
    # Negative control: a growth rate off by a factor 2 is told apart.
    wrong = saddle_exit(SGD(additive(lambda x: -(x @ x)), eta), [0.0], UNIT)
    assert abs(wrong.quantile(0.5) - exact_quantile(survival, 0.5)) > 5


def test_the_exact_law_of_an_off_centre_start():
    sgd, interval = SGD(HILL, 0.05), box([-1.0], [2.0])
    law = saddle_exit(sgd, [0.0], interval, start=[0.2])
    seen = saddle_exit(sgd, [0.0], interval, start=[0.2], method="direct", paths=8192)
    assert abs(exact_survival(law).sum() - seen.value) < 4 * seen.stderr
    with pytest.raises(InputError, match="not of a diffusion"):
        exact_survival(saddle_exit(diffusion_approximation(sgd), [0.0], interval))


def test_the_almost_linear_law_stays_below_the_exponential_one():
    laws = escape_laws(SGD(HILL, 0.05), [0.0], UNIT, exponent=0.5, log_prefactor=1.0)
    saddle, leading = laws.by_batch["saddle"], laws.by_batch["log law"]
    np.testing.assert_allclose(saddle[5:], leading[5:], rtol=0.02)
    steps = np.diff(saddle[4:])  # each doubling adds log 2 / (2 log(1 + eta lambda))
    np.testing.assert_allclose(steps, np.log(2) / (2 * np.log(1.05)), rtol=0.03)
    ratio = laws.by_batch["minimum"][1:] / laws.by_batch["minimum"][:-1]
    np.testing.assert_allclose(np.log(ratio[:3]), 0.5 * np.array([1, 2, 4]) / 0.05)
