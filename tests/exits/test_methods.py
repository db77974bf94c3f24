"""Each exit method against exact digits, in its regime and out of it."""

import math

import numpy as np
import pytest

from batchwell import (
    SGD,
    additive,
    ball,
    box,
    diffusion,
    diffusion_approximation,
    finite_sum,
    half_space,
)
from batchwell._jax import jax, jnp
from batchwell.errors import InputError, RunError
from batchwell.exits import (
    compare_exit_times,
    exponent_map,
    holding_batch_size,
    mean_exit_time,
)

WELL = additive(lambda x: (x @ x - 1) ** 2 / 4)
ACROSS = half_space([1.0], 1.0)
UNIT = ball([0.0], 1.0)


def square(x):
    return x @ x


def test_kramers_of_the_double_well():
    out = mean_exit_time(diffusion_approximation(SGD(WELL, 0.05)), [-1.0], ACROSS, "sharp")
    assert out.value * 0.05 == pytest.approx(math.pi * math.sqrt(2) * math.exp(10), rel=1e-4)
    # T8: the expansion's own error is 3/4 eps.
    assert out.interval[0] < 102108.3655 / 0.05 < out.interval[1]


def test_kramers_with_ito_noise():
    eps = 0.05
    process = diffusion(lambda x: x - x**3, lambda x: jnp.sqrt(eps * (1 + x**2))[:, None], dim=1)
    out = mean_exit_time(process, [-1.0], ACROSS, "sharp")
    expected = math.pi * math.exp((2 * math.log(2) - 1) / eps)  # T9
    assert out.value == pytest.approx(expected, rel=1e-3)


def test_half_of_the_crossings_return_at_a_saddle_on_the_boundary():
    process = diffusion_approximation(SGD(WELL, 0.05))
    beyond = mean_exit_time(process, [-1.0], ACROSS, "sharp")
    onto = mean_exit_time(process, [-1.0], half_space([1.0], 0.0), "sharp")
    assert onto.value == pytest.approx(beyond.value / 2, rel=1e-6)


def test_discrete_kramers_is_closer_to_the_chain_than_kramers_is():
    # T8, Gaussian SGD at eta = .05: 100495.1 units of time; the diffusion's is 102108.4.
    chain = mean_exit_time(SGD(WELL, 0.05), [-1.0], ACROSS, "sharp").value
    flow = mean_exit_time(diffusion_approximation(SGD(WELL, 0.05)), [-1.0], ACROSS, "sharp").value
    assert chain / flow == pytest.approx(100495.1 / 102108.3655, rel=3e-3)


def test_exit_over_a_boundary_against_the_drift():
    eps = 0.1
    ou = diffusion(lambda x: -x, lambda x: math.sqrt(eps) * jnp.eye(1), dim=1)
    out = mean_exit_time(ou, [0.0], ball([0.0], 1.0), "sharp")
    assert out.value == pytest.approx(0.5 * math.sqrt(math.pi * eps) * math.exp(1 / eps), rel=1e-4)
    assert out.interval[0] < 6545.765 < out.interval[1]


def test_prefactor_of_a_drift_that_is_no_gradient():
    # b = -grad U + J grad U keeps V = 2 U; only the growth rate at the saddle changes.
    eps = 0.03

    def potential(x):
        return (x[0] ** 2 - 1) ** 2 / 4 + x[1] ** 2 * (0.6 + 0.3 * x[0])

    slope = jax.grad(potential)
    turn = jnp.array([[-1.0, 0.7], [-0.7, -1.0]])
    process = diffusion(lambda x: turn @ slope(x), lambda x: math.sqrt(eps) * jnp.eye(2), dim=2)
    out = mean_exit_time(process, [-1.0, 0.0], half_space([1.0, 0.0], 0.7), "sharp")
    saddle, bottom = np.diag([-1.0, 1.2]), np.diag([2.0, 0.6])
    growth = np.linalg.eigvals(np.asarray(turn) @ saddle).real.max()
    expected = 2 * math.pi / growth * math.sqrt(1.2 / np.linalg.det(bottom)) * math.exp(0.5 / eps)
    assert out.value == pytest.approx(expected, rel=2e-2)


def test_sharp_refuses_a_chain_it_has_no_law_for():
    with pytest.raises(InputError, match=r"momentum = 0\.5"):
        mean_exit_time(SGD(WELL, 0.1, momentum=0.5), [-1.0], ACROSS, "sharp")
    noisy = SGD(additive(lambda x: (x @ x - 1) ** 2 / 4, "student_t"), 0.1)
    with pytest.raises(InputError, match="exponential moments"):
        mean_exit_time(noisy, [-1.0], ACROSS, "sharp")


def test_a_start_that_flows_out_has_no_barrier():
    with pytest.raises(InputError, match="no barrier"):
        mean_exit_time(SGD(WELL, 0.1), [0.2], half_space([1.0], 0.8), "sharp")


def test_bounded_noise_never_escapes():
    stuck = SGD(additive(lambda x: (x @ x - 1) ** 2 / 4, "rademacher", scale=0.38), 0.1)
    row = exponent_map(stuck, [-1.0], half_space([1.0], 0.0))[0]
    assert row.sgd == math.inf
    assert row.diffusion == pytest.approx(0.5 / 0.38**2)


def test_splitting_of_the_chain_is_unbiased():
    # T7: 117280.42 steps; the mean over 120 replicas is Gaussian: false alarm 6e-5.
    sgd = SGD(additive(lambda x: x @ x / 2), 0.1)
    out = mean_exit_time(sgd, [0.0], UNIT, "splitting", particles=256, replicas=120)
    assert abs(out.value - 117280.42) < 4 * out.stderr
    assert out.stderr < 0.06 * out.value


@pytest.mark.parametrize("killed", [1, 128])
def test_splitting_is_unbiased_however_many_are_killed(killed):
    sgd = SGD(additive(lambda x: x @ x / 2), 0.2)
    options = {"particles": 256, "replicas": 60, "killed": killed, "seed": 3}
    out = mean_exit_time(sgd, [0.0], UNIT, "splitting", **options)
    assert abs(out.value - 559.87408) < 4 * out.stderr
    assert out.stderr < 0.05 * out.value


def test_a_score_with_ties_costs_no_bias():
    # Five levels only: all particles on one step of the stairs die together.
    sgd = SGD(additive(lambda x: x @ x / 2), 0.2)
    options = {"particles": 256, "replicas": 60, "seed": 5}
    stairs = lambda x: jnp.floor(5 * jnp.abs(x[0]) + 0.5)  # noqa: E731
    out = mean_exit_time(sgd, [0.0], UNIT, "splitting", score=stairs, **options)
    assert abs(out.value - 559.87408) < 4 * out.stderr


@pytest.mark.slow
def test_a_chance_of_1e_minus_20_to_five_percent():
    # Exact: the chain's own law, 4.6e21 steps.
    sgd = SGD(additive(lambda x: x @ x / 2), 0.0205)
    exact = mean_exit_time(sgd, [0.0], UNIT, "law").value
    options = {"particles": 4096, "replicas": 16, "seed": 4}
    out = mean_exit_time(sgd, [0.0], UNIT, "splitting", score=lambda x: x @ x, **options)
    assert abs(out.value - exact) < 5 * out.stderr  # t with 15 degrees of freedom: 2e-4
    assert out.stderr < 0.12 * out.value
    assert "not called reliable" in out.notes[-1]
    table = compare_exit_times(
        sgd, [0.0], UNIT, ["law", "splitting"], {"splitting": {"particles": 1024, "seed": 1}}
    )
    assert table.answers["splitting"].notes[-1].endswith("agrees: reliable")


def test_splitting_needs_a_second_method_for_tiny_chances():
    from batchwell.exits.splitting import second_opinion

    first = mean_exit_time(SGD(WELL, 0.05), [-1.0], ACROSS, "law")
    assert "not called reliable" in second_opinion(first, None).notes[-1]
    assert "agrees" in second_opinion(first, first).notes[-1]
    other = mean_exit_time(SGD(WELL, 0.1), [-1.0], ACROSS, "law")
    assert "disagrees" in second_opinion(first, other).notes[-1]


@pytest.mark.parametrize("scatter", [0.3, 0.9, 1.5])
def test_interval_of_log_normal_replicas_covers(scatter):
    # Mean 1. At least 90 % of 95 % intervals of 16 replicas: 1000 of them, 4 standard errors below.
    from scipy.stats import t as student

    from batchwell.exits.splitting import rate_to_time

    rng = np.random.default_rng(8)
    rates = np.exp(scatter * rng.standard_normal((1000, 16)) - scatter**2 / 2)
    found = [rate_to_time(r, "replicas").interval for r in rates]
    assert np.mean([low <= 1.0 <= high for low, high in found]) > 0.9 - 4 * 0.0095
    # Negative control: Student's interval alone, where replicas scatter.
    spread = student.ppf(0.975, 15) * rates.std(axis=1, ddof=1) / 4 / rates.mean(axis=1)
    plain = np.mean(np.abs(np.log(rates.mean(axis=1))) <= spread)
    assert plain < 0.85 or scatter < 1


def test_a_mean_that_rests_on_few_replicas_is_not_called_reliable():
    from batchwell.exits.compare import reliable

    sgd = SGD(additive(lambda x: x @ x / 2), 0.014)  # 1.5e32 steps
    exact = mean_exit_time(sgd, [0.0], UNIT, "law")
    options = {"score": square, "seed": 2, "replicas": 8, "second": exact}
    few = mean_exit_time(sgd, [0.0], UNIT, "splitting", particles=32, **options)
    assert "raise particles to about" in few.notes[-1]
    assert not reliable(few)
    more = mean_exit_time(sgd, [0.0], UNIT, "splitting", particles=512, **options)
    assert more.notes[-1].endswith("agrees: reliable")
    assert abs(math.log(more.value / exact.value)) < 5 * more.stderr / more.value


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.0205, 0.014, 0.0106])
def test_coverage_down_to_1e_minus_40(eta):
    # 40 intervals of 95 % that hold 90 % by what log-normal replicas give: 4 standard errors below it.
    sgd = SGD(additive(lambda x: x @ x / 2), eta)
    exact = mean_exit_time(sgd, [0.0], UNIT, "law").value
    options = {"particles": 128, "replicas": 16, "score": square}
    hits = 0
    for seed in range(40):
        low, high = mean_exit_time(
            sgd, [0.0], UNIT, "splitting", **options, seed=100 + seed
        ).interval
        hits += low <= exact <= high
    assert hits >= 40 * 0.9 - 4 * math.sqrt(40 * 0.09)


def test_crossings_tell_where_rare_paths_come_out():
    # T7 at eta = .1: the rate of the chain; by symmetry half of the exits lie on either side.
    from batchwell.exits.crossings import crossings

    sgd = SGD(additive(lambda x: x @ x / 2), 0.1)
    found = crossings(sgd, [0.0], UNIT, lambda x: x @ x, particles=256, replicas=64, seed=2)
    rates = np.array([c.rate for c in found])
    error = rates.std(ddof=1) / 8
    assert abs(rates.mean() - 1 / 117280.42) < 4 * error
    assert error < 0.1 * rates.mean()
    ends = [c.points for c in found]
    assert all((np.abs(e) >= 1).all() for e in ends)
    right = np.array([c.rate * (c.points > 0).mean() for c in found]) - rates / 2
    assert abs(right.mean()) < 4 * right.std(ddof=1) / 8
    # What comes out has overshot by a part of the noise's step, .1, and departures lie within.
    overshoot = np.abs(np.concatenate(ends)) - 1
    assert 0.01 < overshoot.mean() < 0.1
    assert all((np.abs(c.departed) < 1).all() for c in found)


def test_crossings_refuse_a_single_replica():
    from batchwell.exits.crossings import crossings

    with pytest.raises(InputError, match=r"replicas = 1: must be .*at least 2"):
        crossings(SGD(WELL, 0.1), [-1.0], ACROSS, lambda x: x[0], replicas=1)


@pytest.mark.slow
def test_splitting_in_the_plane_agrees_with_importance_sampling():
    plane = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4 + x[1] ** 2 * (0.6 + 0.4 * x[0]), dim=2)
    where = ([-1.0, 0.0], half_space([1.0, 0.0], 0.8))
    process = SGD(plane, 0.05)
    split = mean_exit_time(process, *where, "splitting", particles=1024, seed=1)
    tilted = mean_exit_time(process, *where, "importance", particles=1024, seed=1)
    assert abs(math.log(split.value / tilted.value)) < 4.5 * math.hypot(
        split.stderr / split.value, tilted.stderr / tilted.value
    )


def test_splitting_says_that_another_minimum_lies_inside():
    with pytest.raises(RunError, match="another minimum lies inside"):
        mean_exit_time(SGD(WELL, 0.02), [-1.0], half_space([1.0], 3.0), "splitting", particles=64)


def test_splitting_refuses_memory():
    with pytest.raises(InputError, match="memory"):
        mean_exit_time(SGD(WELL, 0.1, momentum=0.5), [-1.0], ACROSS, "splitting")


def test_comparison_keeps_refusals_and_pairs():
    noisy = SGD(additive(lambda x: (x @ x - 1) ** 2 / 4, "rademacher"), 0.15)
    out = compare_exit_times(
        noisy,
        [-1.0],
        ACROSS,
        ["direct", "law", "sharp", "action"],
        {"direct": {"paths": 512, "seed": 4}},
    )
    assert set(out.answers) == {"direct", "law", "sharp", "action"}
    assert len(out.pairs) == 6
    assert out.agree, out.verdict
    # Noise of few atoms has a tilt; a uniform law, with infinitely many, has none here.
    smooth = SGD(additive(lambda x: (x @ x - 1) ** 2 / 4, "uniform"), 0.15)
    out = compare_exit_times(smooth, [-1.0], ACROSS, ["law", "importance"])
    assert set(out.answers) == {"law"}
    assert "noise of few atoms" in out.refused["importance"]


def test_batch_size_that_holds():
    sgd = SGD(WELL, 0.2)
    few = holding_batch_size(sgd, [-1.0], half_space([1.0], 0.0), 1e4)
    many = holding_batch_size(sgd, [-1.0], half_space([1.0], 0.0), 1e8)
    assert few.interval[0] <= few.value <= few.interval[1]
    assert many.value > few.value
    # Exact check in one dimension: the law's mean exit time at the answer holds.
    at = SGD(WELL, 0.2, int(many.interval[1]))
    held = mean_exit_time(at, [-1.0], half_space([1.0], 0.0), "law").value
    assert math.exp(-1e8 / held) > 0.5


def test_unbounded_planes_are_sent_back_by_the_law():
    plane = diffusion(lambda x: -x, lambda x: jnp.eye(2), dim=2)
    with pytest.raises(InputError, match="bounded"):
        mean_exit_time(plane, [0.0, 0.0], half_space([1.0, 0.0], 1.0), "law")
    inside = mean_exit_time(plane, [0.0, 0.0], box([-1.0, -1.0], [1.0, 1.0]), "law")
    assert inside.determined


def test_importance_of_a_diffusion_and_its_weights():
    process = diffusion_approximation(SGD(WELL, 0.05))
    out = mean_exit_time(process, [-1.0], ACROSS, "importance", particles=1024, seed=2)
    exact = 102108.3655 / 0.05  # T8; 5.4 errors of t with 7 degrees of freedom: 1e-3
    assert abs(out.value - exact) < 5.4 * out.stderr
    assert out.stderr < 0.08 * out.value
    assert "effective paths" in out.notes[0]


def test_importance_refuses_exits_that_are_not_rare():
    with pytest.raises(InputError, match=r"V/eps = 2.5.*must be at least 5"):
        mean_exit_time(SGD(WELL, 0.2), [-1.0], ACROSS, "importance")


def test_weights_are_checked():
    from batchwell.exits.importance import check_weights

    rng = np.random.default_rng(1)
    # Log-normal weights of spread s: the mean needs about exp(s^2 / 2 + 2 s) of them.
    assert "need about" in check_weights(rng.normal(0.0, 1.0, 4000))
    with pytest.raises(RunError, match="not to be trusted"):
        check_weights(rng.normal(0.0, 4.0, 4000))
    with pytest.raises(RunError, match="got out"):
        check_weights(np.full(100, -np.inf))


@pytest.mark.parametrize("form", ["coins", "data"])
def test_importance_redraws_finitely_many_examples(form):
    """Against the chain's own law; V/eps of the diffusion, 17, would be off by a factor of 20."""
    if form == "coins":
        loss = additive(lambda x: (x @ x - 1) ** 2 / 4, "rademacher", scale=0.7)
    else:  # the same two examples as a data set
        well = lambda x, z: (x @ x - 1) ** 2 / 4 + z * x[0]  # noqa: E731
        loss = finite_sum(well, np.array([-0.7, 0.7]), 1)
    chain, where = SGD(loss, 0.06), ([-1.0], half_space([1.0], 0.3))
    exact = mean_exit_time(chain, *where, "law")
    out = mean_exit_time(chain, *where, "importance", particles=1024, seed=2)
    # t with 7 degrees of freedom: 1e-3.
    assert abs(out.value - exact.value) < 5.4 * out.stderr + exact.interval[1] - exact.value
    assert out.stderr < 0.06 * out.value
    flow = mean_exit_time(diffusion_approximation(chain), *where, "law")
    assert flow.value < exact.value / 10


def test_alias_tables_give_their_chances_back():
    from batchwell.exits.tilt import alias_table

    chances = np.random.default_rng(3).dirichlet(np.full(50, 0.1))
    keep, alias = alias_table(chances)
    back = keep / 50 + np.bincount(alias, (1 - keep) / 50, minlength=50)
    np.testing.assert_allclose(back, chances, atol=1e-15)


@pytest.mark.parametrize(
    "chain",
    [
        SGD(additive(lambda x: (x @ x - 1) ** 2 / 4, "laplace"), 0.1),
        SGD(WELL, 0.1, momentum=0.5),
        SGD(finite_sum(lambda x, z: (x @ x - 1) ** 2 / 4 + z * x[0], np.array([-0.7, 0.7]), 1), 0.1, 1,
            sampling="without_replacement"),
    ],
    ids=["laplace", "momentum", "without replacement"],
)  # fmt: skip
def test_importance_refuses_noise_it_cannot_tilt(chain):
    with pytest.raises(InputError, match=r"must draw with replacement.*use method splitting"):
        mean_exit_time(chain, [-1.0], half_space([1.0], 0.3), "importance")


def test_a_start_in_the_plane_finds_ways_through_the_saddle_only():
    # The boundary lies beyond the saddle, downhill: it is not a way of its own.
    from batchwell.exits.channels import channels

    plane = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4 + x[1] ** 2 * (0.6 + 0.4 * x[0]), dim=2)
    process = diffusion_approximation(SGD(plane, 0.1))
    ways = channels(process, np.array([-1.0, 0.0]), half_space([1.0, 0.0], 0.8), order=8)
    assert len(ways) == 1
    np.testing.assert_allclose(ways[0].path.end, [0.0, 0.0], atol=1e-9)


def test_a_start_at_no_minimum_is_offered_the_nearest():
    with pytest.raises(InputError, match=r"\|drift\| = 0 at the start.*nearest minimum is at \[-1"):
        mean_exit_time(SGD(WELL, 0.1), [0.0], half_space([1.0], 0.5), "action")
    hill = additive(lambda x: -(x @ x) / 2)
    with pytest.raises(InputError, match="no minimum was found in the domain"):
        mean_exit_time(SGD(hill, 0.1), [0.0], UNIT, "splitting")
