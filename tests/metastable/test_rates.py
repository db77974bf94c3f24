"""Rates in a two-basin problem of unequal curvature, against the chain's own transfer operator.

F = (x^2 - 1)^2 / 4 + .08 x + .05 exp(-8 (x - 1)^2) with Gaussian noise of variance 1: minima of
curvature .86 and 2.23. The share of time in each basin and the slowest relaxation time are known to
all digits from the master equation, and the share at small learning rate from quadrature.
"""

import re
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq

from batchwell import SGD, additive, find_minima, problem
from batchwell.errors import Divergence, InputError
from batchwell.landscape import Landscape
from batchwell.law import relaxation_time, stationary_expectation, transfer_operator
from batchwell.metastable import (
    Looks,
    Stage,
    TransitionRates,
    check_against_runs,
    count_jumps,
    known_network,
    occupation,
    rates_from_counts,
    relaxation_times,
    stationary_law,
    transition_rates,
)
from batchwell.metastable.jumps import _pairs, _Watch, expected_jumps
from batchwell.metastable.states import StateMap

ETA, SIZES = 0.1, (1, 2, 3)
# (share of time left of the saddle, relaxation time in steps) by `exact`, all digits.
KNOWN = {
    1: (0.9762998327, 835.6134973),
    2: (0.9996172401, 10665.9046),
    3: (0.9999940039, 132173.0888),
}
WELL = problem("tilted-well").loss


@pytest.fixture(scope="module")
def landscape() -> Landscape:
    return find_minima(WELL, [[-1.2], [1.2]])


@pytest.fixture(scope="module")
def rates(landscape: Landscape) -> TransitionRates:
    return transition_rates(
        landscape, ETA, SIZES, paths=64, target=400, horizon=200_000, seed=1, threads=2
    )


def saddle() -> float:
    return float(brentq(lambda x: float(WELL.gradient(jnp.array([x]))[0]), -0.6, 0.6))


def exact(batch_size: int) -> tuple[float, float]:
    """(share of time left of the saddle, relaxation time in steps) of the chain."""
    op = transfer_operator(SGD(WELL, ETA, batch_size), (-2.3, 2.3))
    top = saddle()
    left = stationary_expectation(op, lambda x: (x[:, 0] < top).astype(float))
    return left.value, relaxation_time(op).value


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_the_known_digits_are_those_of_the_master_equation(size: int) -> None:
    assert exact(size) == pytest.approx(KNOWN[size], rel=1e-8)


def by_quadrature(batch_size: int) -> float:
    """Share left of the saddle of exp(-2 F / eps), eps = eta / B."""

    def weight(x: float) -> float:
        return float(np.exp(-2 * batch_size / ETA * float(WELL.mean(jnp.array([x])))))

    top = saddle()
    left, right = quad(weight, -2.3, top)[0], quad(weight, top, 2.3)[0]
    return left / (left + right)


def test_relaxation_and_stationary_shares_are_the_chains(rates: TransitionRates) -> None:
    # Two comparisons of 4 standard errors: false alarm 1.3e-4.
    share, time = KNOWN[1]
    # The chain is close to its diffusion at this learning rate: both routes to the truth agree.
    assert share == pytest.approx(by_quadrature(1), abs=2e-3)
    sharp = rates.labels[1]
    net = stationary_law(rates.network, 1)[sharp]
    assert abs(net.value - share) < 4 * net.stderr
    relax = relaxation_times(rates.network, 1)[0]
    assert abs(relax.value - time) < 4 * relax.stderr
    assert relax.stderr < 0.06 * time
    # Negative control: another temperature's truth is far off.
    wrong_share, wrong_time = KNOWN[2]
    assert abs(net.value - wrong_share) > 5 * net.stderr
    assert abs(relax.value - wrong_time) > 8 * relax.stderr


def test_slow_relaxation_agrees_at_every_batch_size(rates: TransitionRates) -> None:
    # Rare jumps of the sharp well at B = 3 (2e10 steps) are not seen; the flat well's decide.
    for size in SIZES[1:]:
        relax = relaxation_times(rates.network, size)[0]
        _, time = KNOWN[size]
        assert abs(np.log(relax.value / time)) < 4 * relax.stderr / relax.value


def test_a_state_that_is_never_left_gets_a_bound(landscape: Landscape) -> None:
    cold = transition_rates(landscape, 0.05, [4], paths=4, horizon=2_000, looks=4)
    assert all(np.isinf(e.time.value) for e in cold.escapes)
    assert all(e.time.interval[0] > 500 for e in cold.escapes if e.state != "elsewhere")
    assert cold.edges == ()
    assert cold.spreads is None
    assert any("lower bounds" in note for note in cold.notes)


def test_short_lags_would_count_returns_as_jumps(landscape: Landscape) -> None:
    """Why lags are as long as stays: the same estimator at a short lag is off by many errors."""
    sgd = SGD(WELL, ETA, 1)
    counts = count_jumps(sgd, landscape, 64, 24, 200_000, 400, seed=1, threads=2)
    watch = _Watch(sgd, StateMap(landscape), 1500, 1, "short", 2)
    series = watch.follow(np.repeat([0, 1], 64), 4)
    jumps, steps = expected_jumps([Looks(4, _pairs(series, 3))])
    short = replace(counts, jumps=jumps, exposure=steps)
    relax = relaxation_times(rates_from_counts(landscape, sgd, [short]).network, 1)[0]
    assert relax.value + 4 * relax.stderr < KNOWN[1][1]


def test_counts_do_not_depend_on_threads(landscape: Landscape) -> None:
    sgd = SGD(WELL, ETA, 1)
    one, two = (count_jumps(sgd, landscape, 4, 6, 20_000, seed=3, threads=t) for t in (1, 2))
    np.testing.assert_array_equal(one.jumps, two.jumps)
    other = count_jumps(sgd, landscape, 4, 6, 20_000, seed=4, threads=1)
    assert not np.array_equal(one.jumps, other.jumps)


def test_occupation_is_that_of_runs_the_rates_did_not_see(
    rates: TransitionRates, landscape: Landscape
) -> None:
    sgd = SGD(WELL, ETA)
    checks = check_against_runs(
        rates.network, sgd, landscape, [1, 2], [300, 1500, 6000], start_from="A", paths=400
    )
    assert len(checks) == 6
    # 12 cells, two a time tell the same: at 95 % each, 2 or more of 6 outside has chance 3 %;
    # 3 or more 2e-3.
    assert sum(c.inside < c.cells for c in checks) <= 2
    assert sum(c.cells for c in checks) >= 11
    # Negative control: rates twice as high are rejected by the same runs.
    fast = replace(rates.network, log_rates=rates.network.log_rates + np.log(2.0))
    wrong = check_against_runs(
        fast, sgd, landscape, [1, 2], [300, 1500, 6000], start_from="A", paths=400
    )
    assert sum(c.inside < c.cells for c in wrong) >= 4


def test_looks_that_are_too_rare_bound_a_rate_only() -> None:
    # All 38 paths had left at their first look: the rate is at least some 4 / 4096.
    jumps, _ = expected_jumps([Looks(4096, np.array([[0.0, 38.0], [0.0, 500.0]]))])
    assert jumps[0, 1] < 1
    # With looks at which half stay, the same number of departures is worth as many jumps.
    some, steps = expected_jumps([Looks(64, np.array([[40.0, 38.0], [0.0, 500.0]]))])
    assert some[0, 1] == pytest.approx(38, rel=0.2)
    assert steps[0] / some[0, 1] == pytest.approx(-64 / np.log(40 / 78), rel=1e-3)


def test_likelihood_recovers_a_generator_from_looks_as_rare_as_stays() -> None:
    from scipy.linalg import expm

    q = np.array([[-0.03, 0.02, 0.01], [0.05, -0.06, 0.01], [0.002, 0.003, -0.005]])
    counts = 1e9 * expm(20 * q)  # expected pairs: the fixed point must be the generator
    jumps, steps = expected_jumps([Looks(20, counts)])
    got = jumps / steps[:, None]
    np.testing.assert_allclose(got[~np.eye(3, dtype=bool)], q[~np.eye(3, dtype=bool)], rtol=1e-3)
    # Plain counts over time would be off by far more.
    plain = counts[0, 1] / (20 * counts[0].sum())
    assert abs(plain / q[0, 1] - 1) > 0.1


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"batch_sizes": [2, 1]}, "batch_sizes"),
        ({"batch_sizes": []}, "batch_sizes"),
        ({"batch_sizes": [0]}, "batch_sizes"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"horizon": 3}, "horizon"),
        ({"paths": 0}, "paths"),
        ({"sampling": "without_replacement"}, "sampling"),
    ],
)
def test_refusals_are_one_line(landscape: Landscape, change, word) -> None:
    given = {"learning_rate": 0.1, "batch_sizes": [1], **change}
    with pytest.raises(InputError) as error:
        transition_rates(landscape, **given)
    assert str(error.value).startswith(word)
    assert "\n" not in str(error.value)


def test_flat_directions_are_said() -> None:
    from batchwell.errors import RunError

    with pytest.raises(RunError, match="flat directions"):
        find_minima(additive(lambda x: x[0] ** 2, dim=2), [[1.0, 1.0]])


def test_a_basin_left_before_it_relaxes_is_said_to_remember() -> None:
    """Along y it relaxes in 1 / (.2 * 2e-3) = 2500 steps; along x it is left within hundreds."""

    def counted(soft: float) -> tuple[str, ...]:
        loss = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4 + soft * x[1] ** 2 / 2, dim=2)
        found = find_minima(loss, [[-1.0, 0.1], [1.0, 0.0]])
        sgd = SGD(loss, 0.2)
        seen = [count_jumps(sgd, found, paths=8, looks=8, horizon=2000, target=8, memory=False)]
        return rates_from_counts(found, sgd, seen, draws=8).notes

    assert any("A, C are left before their flattest" in note for note in counted(2e-3))
    assert not any("left before their flattest" in note for note in counted(1.0))


SHARP = additive(
    lambda x: jnp.where(x[0] < 3, (x[0] ** 2 - 1) ** 2 / 4, 60.0 * (x[0] - 6) ** 2 - 5.0)
)  # wells at -1 and 1, and one at 6 whose floor is too sharp for a learning rate of .3


def test_paths_that_diverge_while_jumps_are_counted_are_named_and_the_others_kept() -> None:
    found = find_minima(SHARP, [[-0.5], [0.5], [6.1]])
    sgd = SGD(SHARP, 0.3)
    counts = count_jumps(sgd, found, paths=16, looks=24, horizon=4000, seed=1)
    sharp, elsewhere = 2, 3
    assert {d.origin for d in counts.diverged} == {found.minima[sharp].label}
    assert all(d.batch_size == 1 and d.learning_rate == 0.3 for d in counts.diverged)
    # At 6 steps are x -> 6 - 35 (x - 6) + .3 noise: some four steps to a slope too steep to survive.
    assert all(2 <= d.step <= 12 for d in counts.diverged)
    # What left the sharp well and fell in no other one is elsewhere, and stays there.
    assert counts.jumps[sharp, elsewhere] > 0
    assert counts.jumps[elsewhere].sum() == 0
    # The others jump as they do where none diverges.
    alone = count_jumps(sgd, find_minima(SHARP, [[-0.5], [0.5]]), 16, 24, 4000, seed=1)
    assert alone.diverged == ()  # the negative control
    for i in (0, 1):
        one, other = (c.exposure[i] / c.jumps[i].sum() for c in (counts, alone))
        events = min(c.jumps[i].sum() for c in (counts, alone))
        assert events > 5
        assert abs(np.log(one / other)) < 4 * np.sqrt(2 / events)
    rates = rates_from_counts(found, sgd, [counts], draws=8)
    (note,) = [n for n in rates.notes if "diverged" in n]
    assert re.search(
        r"counted \(batch size 1, learning rate 0.3\), path \d+ from D \(at step", note
    )
    assert "elsewhere from then on" in note
    # Of a schedule started there the network says what became of the paths: most are elsewhere.
    ended = occupation(rates.network, "D", [Stage(1, 40)])[-1]["elsewhere"].value
    began = counts.jumps[sharp]
    assert ended == pytest.approx(began[elsewhere] / began.sum(), abs=0.15)
    assert ended > 0.5


def test_where_all_counted_paths_diverge_the_error_says_so() -> None:
    found = find_minima(SHARP, [[6.1]])
    words = r"all 8 paths of SGD diverged \(batch size 1, learning rate 0.3\): path 0 from A \(at"
    with pytest.raises(Divergence, match=words):
        count_jumps(SGD(SHARP, 0.3), found, paths=8, looks=4, horizon=100)


def test_bad_input_is_named_before_work_starts(landscape: Landscape) -> None:
    with pytest.raises(InputError, match=r"^rare = 'magic': must be one of formula, splitting"):
        transition_rates(landscape, ETA, [1, 2], rare="magic")
    with pytest.raises(InputError, match=r"^steps = -2"):
        Stage(1, -2)
    other = known_network(["a", "b"], [1], [[[0, 0.1], [0.1, 0]]])
    with pytest.raises(InputError, match=r"^network = .* must be of the landscape's"):
        check_against_runs(other, SGD(WELL, ETA), landscape, [1], [10])


def test_a_stay_is_a_bound_where_no_exit_was_seen(landscape: Landscape) -> None:
    rates = transition_rates(landscape, ETA, [8, 16], paths=4, looks=2, horizon=50, target=1)
    stay = rates.stay("C", 8)
    assert stay.n_censored == stay.n
    assert 0 < stay.interval[0] < 4 * 50 * 10
    with pytest.raises(InputError, match=r"^batch_size = 4: must be one of \(8, 16\)"):
        rates.stay("C", 4)
