"""The chain's master equation in 1-D: exit times, expectations, laws."""

import math

import numpy as np
import pytest
from scipy.integrate import quad

from batchwell import SGD, InputError, additive, finite_sum, noise_law, sampled
from batchwell.domain import ball, half_space
from batchwell.law import (
    enumerate_law,
    exit_position,
    exit_time,
    exit_time_map,
    exit_time_variation,
    expectation,
    law_after,
    mean_exit_time,
    moments,
    quasi_stationary,
    relaxation_time,
    spectrum,
    stationary,
    stationary_moments,
    total_variation,
    transfer_operator,
    wasserstein,
)
from batchwell.law.densities import mean_density

parabola = additive(lambda x: x @ x / 2)
well = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4)
coin_well = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4, "rademacher")


@pytest.mark.parametrize(("eta", "steps"), [(0.2, 559.87408), (0.1, 117280.42)])
def test_t7_exit_of_the_gaussian_chain(eta, steps):
    answer = exit_time(transfer_operator(SGD(parabola, eta), (-1, 1)), [0.0])
    assert answer.value == pytest.approx(steps, abs=0.006 if steps > 1e3 else 6e-6)
    assert answer.stderr < 1e-11 * steps
    assert answer.unit == "steps"


@pytest.mark.parametrize(("eta", "time"), [(0.2, 61.878569), (0.1, 705.52791), (0.05, 100495.1)])
def test_t8_double_well_chain(eta, time):
    answer = exit_time(transfer_operator(SGD(well, eta), (-math.inf, 1)), [-1.0])
    assert answer.value * eta == pytest.approx(time, rel=6e-7)


def test_domains_and_intervals_agree():
    sgd = SGD(parabola, 0.2)
    a = exit_time(transfer_operator(sgd, ball([0.0], 1.0)), [0.3]).value
    assert a == pytest.approx(exit_time(transfer_operator(sgd, (-1, 1)), [0.3]).value, rel=1e-12)
    wall = half_space([1.0], 1.0)
    b = exit_time(transfer_operator(SGD(well, 0.2), wall), [-1.0]).value
    assert b == pytest.approx(61.878569 / 0.2, rel=1e-6)


def test_plain_lu_fails_silently_beyond_1e12_steps():
    op = transfer_operator(SGD(parabola, 0.02), (-1, 1))
    truth = exit_time(op, [0.0])
    assert truth.value > 1e22
    assert truth.stderr < 1e-9 * truth.value
    system = np.eye(op.size) - op.rates
    plain = np.linalg.solve(system, np.ones(op.size))
    error = np.max(np.abs(plain - mean_exit_time(op)) / mean_exit_time(op))
    assert error > 0.9  # no warning, no digit right


def test_exit_times_agree_with_refinement_beyond_1e20_steps():
    sgd = SGD(parabola, 0.02)
    a = exit_time(transfer_operator(sgd, (-1, 1)), [0.0]).value
    b = exit_time(transfer_operator(sgd, (-1, 1), nodes=960), [0.0]).value
    assert a == pytest.approx(b, rel=1e-9)


def test_t7_coefficient_of_variation():
    answer = exit_time_variation(transfer_operator(SGD(parabola, 0.1), (-1, 1)), [0.0])
    assert 0.999 < answer.value < 1


def test_exits_by_side():
    op = transfer_operator(SGD(well, 0.1), (-0.5, 0.8))
    chances = exit_position(op, [0.1])
    assert sum(c.value for c in chances.values()) == pytest.approx(1, abs=1e-13)
    mirrored = exit_position(transfer_operator(SGD(well, 0.1), (-0.8, 0.5)), [-0.1])
    assert chances["lower"].value == pytest.approx(mirrored["upper"].value, rel=1e-12)


def test_t2_expectations_of_the_coin_noise_chain():
    op = transfer_operator(SGD(coin_well, 0.0125), (-1.4, 1.4), method="spectral")
    first = expectation(op, lambda x: x[:, 0], [0.5], 160)
    second = expectation(op, lambda x: x[:, 0] ** 2, [0.5], 160)
    assert first.value == pytest.approx(0.965789440636, abs=6e-13)
    assert second.value == pytest.approx(0.936831170449, abs=6e-13)
    assert first.stderr < 1e-12


def test_t2_cosine_at_a_tenth():
    op = transfer_operator(SGD(coin_well, 0.1), (-1.5, 1.5), method="spectral")
    answer = expectation(op, lambda x: np.cos(2 * x[:, 0]), [0.5], 20)
    assert answer.value == pytest.approx(-0.196409653, abs=6e-10)


def test_t6_uniform_law_that_never_leaves():
    sgd = SGD(additive(lambda x: x @ x / 2, "rademacher"), 0.5)
    op = transfer_operator(sgd, (-1.25, 1.25))
    answer = exit_time(op, [0.0])
    assert answer.value == math.inf
    assert "bounded" in answer.notes[0]
    law = stationary(op)
    inside = np.abs(law.nodes[:, 0]) < 0.99
    assert np.max(np.abs(law.density[inside] - 0.5)) < 0.01
    # The same chain on (-.9, .9) does leave.
    assert math.isfinite(exit_time(transfer_operator(sgd, (-0.9, 0.9)), [0.0]).value)


def test_bounded_noise_below_the_slope_never_escapes():
    loss = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4, "rademacher", scale=0.38)
    answer = exit_time(transfer_operator(SGD(loss, 0.05), (-2.0, 0.0)), [-1.0])
    assert answer.value == math.inf
    louder = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4, "rademacher", scale=0.5)
    assert math.isfinite(exit_time(transfer_operator(SGD(louder, 0.2), (-2.0, 0.0)), [-1.0]).value)


def test_forward_and_backward_agree():
    op = transfer_operator(SGD(well, 0.1, 4), (-math.inf, math.inf), include=(0.5,))
    law = law_after(op, [0.5], 20)
    back = expectation(op, lambda x: np.cos(x[:, 0]), [0.5], 20)
    assert law.expect(lambda x: np.cos(x[:, 0])) == pytest.approx(back.value, rel=1e-12)
    assert abs(law.lost) < 1e-12


def test_against_exact_moments():
    sgd = SGD(parabola, 0.1, 3)
    op = transfer_operator(sgd, (-3, 3))
    want = moments(sgd, [1.0], 7, order=4).raw[3][0, 0, 0, 0]
    got = expectation(op, lambda x: x[:, 0] ** 4, [1.0], 7)
    assert got.value == pytest.approx(want, rel=1e-12)
    assert stationary(op).covariance[0, 0] == pytest.approx(
        stationary_moments(sgd).covariance[0, 0], rel=1e-11
    )


@pytest.mark.parametrize("name", ["laplace", "uniform", "exponential"])
@pytest.mark.parametrize("batch", [1, 2])
def test_hat_operators_of_kinked_noise_keep_the_mean(name, batch):
    sgd = SGD(additive(lambda x: x @ x / 2, name), 0.1, batch)
    op = transfer_operator(sgd, (-5, 5), nodes=201)
    assert op.order == 2
    want = moments(sgd, [0.4], 3, order=2)
    got = expectation(op, lambda x: x[:, 0] ** 2, [0.4], 3)
    assert got.value == pytest.approx(want.raw[1][0, 0], rel=2e-3)
    assert abs(got.value - want.raw[1][0, 0]) <= 3 * got.stderr
    assert expectation(op, lambda x: x[:, 0], [0.4], 3).value == pytest.approx(
        want.mean[0], abs=1e-10
    )


def test_skewed_noise_keeps_its_side():
    # Exponential noise: rare large positive noise throws x far to the left.
    sgd = SGD(additive(lambda x: x @ x / 2, "exponential"), 0.2)
    chances = exit_position(transfer_operator(sgd, (-1, 1), nodes=401), [0.0])
    assert chances["lower"].value > 0.9999


def test_finite_data_by_enumeration():
    data = np.array([-1.0, 0.2, 0.9, 1.3])
    loss = finite_sum(lambda x, z: (x[0] - z) ** 4 / 4, data, dim=1)
    for sampling in ("with_replacement", "without_replacement"):
        sgd = SGD(loss, 0.05, 2, sampling)
        op = transfer_operator(sgd, (-2, 2), method="spectral")
        got = expectation(op, lambda x: x[:, 0] ** 2, [0.3], 3).value
        import itertools

        pairs = (
            itertools.product(range(4), repeat=2)
            if sampling == "with_replacement"
            else itertools.combinations(range(4), 2)
        )
        pairs = list(pairs)
        total = 0.0
        for walk in itertools.product(pairs, repeat=3):
            x = 0.3
            for pair in walk:
                x -= 0.05 * np.mean([(x - data[i]) ** 3 for i in pair])
            total += x * x
        assert got == pytest.approx(total / len(pairs) ** 3, rel=1e-12)
        monotone = expectation(transfer_operator(sgd, (-2, 2)), lambda x: x[:, 0] ** 2, [0.3], 3)
        assert monotone.value == pytest.approx(got, abs=3 * monotone.stderr)


def test_multiplicative_noise_chain():
    loss = sampled(
        lambda x, z: (1 + 0.8 * z[0]) * x @ x / 2 + z[1] * x[0], "gaussian", dim=1, noise_dim=2
    )
    sgd = SGD(loss, 0.2)
    op = transfer_operator(sgd, (-6, 6))
    got = expectation(op, lambda x: x[:, 0] ** 2, [0.0], 40).value
    assert got == pytest.approx(moments(sgd, [0.0], 40).raw[1][0, 0], rel=1e-6)


def test_spectrum_of_a_linear_chain():
    op = transfer_operator(SGD(parabola, 0.1), (-4, 4))
    np.testing.assert_allclose(np.abs(spectrum(op, 4)), 0.9 ** np.arange(4), atol=1e-8)
    assert relaxation_time(op).value == pytest.approx(-1 / math.log(0.9), rel=1e-7)


def test_quasi_stationary_rate_matches_the_exit_time():
    op = transfer_operator(SGD(parabola, 0.1), (-1, 1))
    rate = quasi_stationary(op).rate
    leading = float(np.abs(spectrum(op, 1)[0]))
    assert rate == pytest.approx(1 - leading, rel=1e-9)
    assert 1 / rate == pytest.approx(exit_time(op, [0.0]).value, rel=1e-3)


def test_rescaling_of_x_changes_nothing():
    c = 3.0
    scaled = additive(lambda x: (x / c) @ (x / c) / 2 * c**2, scale=c)
    a = exit_time(transfer_operator(SGD(parabola, 0.2), (-1, 1)), [0.2]).value
    b = exit_time(transfer_operator(SGD(scaled, 0.2), (-c, c)), [0.2 * c]).value
    assert a == pytest.approx(b, rel=1e-12)


def test_distances():
    op = transfer_operator(SGD(parabola, 0.1), (-3, 3))
    a, b = law_after(op, [0.5], 5), law_after(op, [0.6], 5)
    assert wasserstein(a, b) == pytest.approx(0.1 * 0.9**5, rel=1e-3)
    assert 0 < total_variation(a, b) < 1
    assert total_variation(a, a) == 0


@pytest.mark.parametrize("name", ["gaussian", "uniform", "laplace", "exponential"])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_mean_densities(name, batch):
    law = mean_density(noise_law(name), batch)
    low, high = max(-30.0, law.support[0]), min(30.0, law.support[1])
    points = sorted(k for k in law.kinks if low < k < high)
    for power, want in ((0, 1.0), (1, 0.0), (2, 1 / batch)):
        got = quad(
            lambda z, p=power: z**p * float(law.pdf(np.array([z]))[0]),
            low,
            high,
            points=points or None,
            limit=200,
        )[0]
        assert got == pytest.approx(want, abs=1e-7)
    z = np.array([-0.7, 0.1, 0.9])
    np.testing.assert_allclose(law.cdf(z) + law.sf(z), 1, atol=1e-12)
    for value in z:
        got = quad(
            lambda t: float(law.pdf(np.array([t]))[0]),
            low,
            value,
            points=[p for p in points if p < value] or None,
            limit=200,
        )[0]
        assert got == pytest.approx(float(law.cdf(np.array([value]))[0]), abs=1e-7)


def test_refusals():
    with pytest.raises(InputError, match="confines"):
        transfer_operator(SGD(additive(lambda x: -x @ x / 2), 0.1), (-math.inf, 1))
    with pytest.raises(InputError, match="momentum"):
        transfer_operator(SGD(parabola, 0.1, momentum=0.5), (-1, 1))
    with pytest.raises(InputError, match="GiB"):
        transfer_operator(SGD(parabola, 1e-7), (-1, 1))
    with pytest.raises(InputError, match="lower end"):
        transfer_operator(SGD(parabola, 0.1), (1, -1))
    with pytest.raises(InputError, match="loses"):
        expectation(transfer_operator(SGD(parabola, 0.5), (-1, 1)), lambda x: x[:, 0], [0.0], 9)
    with pytest.raises(InputError, match="loses"):
        stationary(transfer_operator(SGD(parabola, 0.5), (-1, 1)))
    big = finite_sum(lambda x, z: (x[0] - z) ** 2, np.arange(100.0), dim=1)
    with pytest.raises(InputError, match="batches"):
        transfer_operator(SGD(big, 0.1, 10), (-1, 1))
    with pytest.raises(InputError, match="dimensions"):
        transfer_operator(SGD(additive(lambda x: x @ x, dim=5), 0.1), (-1, 1))


def test_map_over_learning_rates_and_batch_sizes():
    table = exit_time_map(SGD(parabola, 0.1), (-1, 1), [0.1, 0.3], [1, 3], 0.2)
    for i, eta in enumerate((0.1, 0.3)):
        for j, batch in enumerate((1, 3)):
            want = exit_time(transfer_operator(SGD(parabola, eta, batch), (-1, 1)), [0.2]).value
            assert table[i, j] == pytest.approx(want, rel=1e-8)
    with pytest.raises(InputError, match="finite ends"):
        exit_time_map(SGD(well, 0.1), (-math.inf, 1), [0.1], [1], -1.0)
    with pytest.raises(InputError, match="smooth"):
        exit_time_map(SGD(coin_well, 0.1), (-1, 1), [0.1], [1], 0.0)


def test_enumeration_of_a_few_steps():
    data = np.array([-1.0, 0.2, 0.9, 1.3])
    sgd = SGD(finite_sum(lambda x, z: (x[0] - z) ** 4 / 4, data, dim=1), 0.05, 2)
    law = enumerate_law(sgd, [0.3], 4)
    op = transfer_operator(sgd, (-2, 2), method="spectral")
    want = expectation(op, lambda x: np.sin(x[:, 0]), [0.3], 4).value
    assert law.expect(lambda x: np.sin(x[:, 0])) == pytest.approx(want, rel=1e-12)
    assert law.mass.sum() == pytest.approx(1, abs=1e-13)
    assert len(law.mass) < 16**4  # unordered batches
    with pytest.raises(InputError, match="points"):
        enumerate_law(sgd, [0.3], 30)
    with pytest.raises(InputError, match="finitely"):
        enumerate_law(SGD(parabola, 0.1), [0.0], 2)


def test_mass_that_leaves_is_part_of_an_expectations_error():
    """A domain that loses 1e-7 of the law: the error says so; one that loses 1e-5 is refused."""
    sgd = SGD(additive(lambda x: x @ x / 2), 0.1)

    def second(half):
        return expectation(transfer_operator(sgd, (-half, half)), lambda x: x[:, 0] ** 2, [0.5], 10)

    truth = moments(sgd, [0.5], 10).raw[1][0, 0]
    narrow, wide = second(1.5), second(3.0)
    assert abs(narrow.value - truth) <= narrow.stderr < 1e-5
    assert abs(narrow.value - truth) > 10 * wide.stderr
    assert abs(wide.value - truth) <= wide.stderr < 1e-11
    with pytest.raises(InputError, match="loses"):
        second(1.1)
