"""Estimates: coverage of every interval, known values, and the round trip to JSON.

Statistical budget: six simulated coverages are compared at 4 standard errors of a binomial share
(false alarm 6e-5 each, 4e-4 together); Wilson's coverage is summed exactly and costs nothing.
"""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from batchwell.errors import InputError
from batchwell.estimate import (
    Estimate,
    batch_means,
    censored_mean,
    difference,
    exponential_mean,
    ratio_of_means,
    sample_mean,
    share,
    table,
)

TAIL = 0.025
REPEATS = 2000
SLACK = 4 * math.sqrt(TAIL * (1 - TAIL) / REPEATS)
MEAN, PATHS, HORIZON = 100.0, 20, 150.0


def misses(intervals: list[tuple[float, float]], truth: float) -> tuple[float, float]:
    """Shares of intervals that lie wholly above, and wholly below, the truth."""
    low, high = np.array(intervals).T
    return float(np.mean(low > truth)), float(np.mean(high < truth))


@pytest.fixture(scope="module")
def exponential_times() -> np.ndarray:
    return np.random.default_rng(11).exponential(MEAN, (REPEATS, PATHS))


def test_gamma_interval_covers_when_all_events_are_seen(exponential_times):
    intervals = [exponential_mean(t.sum(), PATHS, PATHS).interval for t in exponential_times]
    above, below = misses(intervals, MEAN)
    assert abs(above - TAIL) < SLACK
    assert abs(below - TAIL) < SLACK


def test_gamma_interval_covers_under_censoring(exponential_times):
    intervals = []
    for t in exponential_times:
        seen = t < HORIZON
        out = censored_mean(np.minimum(t, HORIZON), seen)
        assert out.n_censored == int((~seen).sum())
        intervals.append(out.interval)
    above, below = misses(intervals, MEAN)
    assert above < TAIL + SLACK
    assert below < TAIL + SLACK
    assert above + below > 0.02  # exact in each tail, not merely wide


def test_dropping_censored_paths_has_no_coverage(exponential_times):
    # Negative control: what the censored likelihood is for.
    intervals = []
    for t in exponential_times:
        kept = t[t < 0.5 * MEAN]
        if kept.size >= 2:
            intervals.append(exponential_mean(kept.sum(), kept.size, kept.size).interval)
    above, below = misses(intervals, MEAN)
    assert 1 - above - below < 0.1


def test_times_that_are_not_exponential_get_a_t_interval():
    rng = np.random.default_rng(12)
    outs = [censored_mean(t, np.ones(40, bool)) for t in rng.gamma(16.0, 10.0, (500, 40))]
    assert all("t interval" in o.method and "not exponential" in o.notes[0] for o in outs)
    low, high = np.array([o.interval for o in outs]).T
    covered = np.mean((low < 160.0) & (high > 160.0))
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 500)


def test_gamma_interval_against_printed_quantiles():
    # chi-square with 20 degrees of freedom: 9.59078, 34.16961; with 22: 36.78071.
    complete = exponential_mean(1000.0, 10, 10)
    assert complete.interval == pytest.approx((2000 / 34.16961, 2000 / 9.59078), rel=1e-5)
    assert complete.value == 100.0
    assert complete.stderr == pytest.approx(100 / math.sqrt(10))
    assert exponential_mean(1000.0, 10, 11).interval[0] == pytest.approx(2000 / 36.78071, rel=1e-5)


def test_no_event_gives_a_lower_end_only():
    out = exponential_mean(5000.0, 0, 12)
    assert math.isinf(out.value)
    assert math.isinf(out.interval[1])
    # Chance of no event within total T at mean m is exp(-T/m) = 2.5 %.
    assert out.interval[0] == pytest.approx(5000 / math.log(40))
    assert str(out).startswith("> ")
    assert not out.determined
    assert out.notes


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    # Newcombe, "Two-sided confidence intervals for the single proportion", table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_printed_values(k, n, low, high):
    assert share(k, n).interval == pytest.approx((low, high), abs=5e-5)


def test_wilson_covers_exactly_summed():
    n, k = 50, np.arange(51)
    low, high = np.array([share(int(i), n).interval for i in k]).T
    wald = 1.96 * np.sqrt(k / n * (1 - k / n) / n)
    coverage, plain = [], []
    for p in np.linspace(0.02, 0.98, 97):
        weight = binom.pmf(k, n, p)
        coverage.append(weight[(low <= p) & (p <= high)].sum())
        plain.append(weight[(k / n - wald <= p) & (p <= k / n + wald)].sum())
    assert abs(np.mean(coverage) - 0.95) < 0.01
    assert min(coverage) > 0.88
    assert min(plain) < 0.7  # control: the textbook interval fails near the ends


def test_batch_means_cover_a_correlated_series():
    phi, size, repeats = 0.8, 32 * 64, 1000
    rng = np.random.default_rng(13)
    noise = rng.standard_normal((size, repeats))
    x = np.empty_like(noise)
    x[0] = noise[0] / math.sqrt(1 - phi**2)
    for k in range(1, size):
        x[k] = phi * x[k - 1] + noise[k]
    outs = [batch_means(series, "1") for series in x.T]
    covered = np.mean([o.interval[0] < 0 < o.interval[1] for o in outs])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / repeats) + 0.005
    naive = [sample_mean(series, "1").interval for series in x.T[:200]]
    assert np.mean([low < 0 < high for low, high in naive]) < 0.7
    truth = 1 / (1 - phi) / math.sqrt(size)
    assert np.mean([o.stderr for o in outs]) == pytest.approx(truth, rel=0.05)


def test_batches_that_are_too_short_are_named():
    slow = np.cumsum(np.random.default_rng(14).standard_normal(640))
    assert "too short" in batch_means(slow, "1").notes[0]
    assert batch_means(np.random.default_rng(15).standard_normal(640), "1").notes == ()


def test_sample_mean_is_students():
    out = sample_mean([1.0, 2.0, 3.0], "1")
    # t with 2 degrees of freedom at 97.5 %: 4.302653.
    half = 4.302653 / math.sqrt(3)
    assert out.interval == pytest.approx((2 - half, 2 + half), rel=1e-6)
    assert out.stderr == pytest.approx(1 / math.sqrt(3))


positive = st.floats(1e-6, 1e12)
anything = st.floats(allow_nan=True, allow_infinity=True)


@given(anything, anything, anything, anything, st.lists(st.text(max_size=20), max_size=3))
def test_estimates_survive_json(value, stderr, low, high, notes):
    out = Estimate(value, stderr, (low, high), "steps", "m", 7, 3, tuple(notes), 0.9)
    text = json.dumps(out.to_dict(), allow_nan=False)
    back = Estimate.from_dict(json.loads(text))
    assert repr(back) == repr(out)
    assert table([out]) == [out.to_dict()]


@given(
    positive, st.integers(0, 500), st.integers(0, 500), st.floats(0.01, 100), st.floats(0.5, 0.99)
)
def test_exponential_mean_properties(total, events, more, factor, level):
    n = events + more
    if n == 0:
        n = 1
    out = exponential_mean(total, events, n, level=level)
    assert out.interval[0] <= out.value <= out.interval[1]
    assert out.n_censored == n - events
    scaled = exponential_mean(total * factor, events, n, level=level)
    assert scaled.interval == pytest.approx(tuple(factor * v for v in out.interval), rel=1e-9)
    wider = exponential_mean(total, events, n, level=0.995)
    assert wider.interval[0] <= out.interval[0]
    assert wider.interval[1] >= out.interval[1]


@given(st.integers(1, 10_000), st.data())
def test_share_properties(n, data):
    k = data.draw(st.integers(0, n))
    out, mirror = share(k, n), share(n - k, n)
    assert 0 <= out.interval[0] <= out.value <= out.interval[1] <= 1
    assert out.interval == pytest.approx(
        (1 - mirror.interval[1], 1 - mirror.interval[0]), abs=1e-12
    )


@given(positive, positive, st.floats(0.001, 0.5), st.floats(0.001, 0.5))
def test_ratios_turn_over(a, b, ra, rb):
    first = Estimate(a, ra * a, (0.9 * a, 1.1 * a), "steps", "m", 5)
    second = Estimate(b, rb * b, (0.9 * b, 1.1 * b), "steps", "m", 5)
    up, down = ratio_of_means(first, second), ratio_of_means(second, first)
    assert up.value * down.value == pytest.approx(1)
    assert up.interval[0] * down.interval[1] == pytest.approx(1)
    assert difference(first, second) == -difference(second, first)


def test_a_ratio_with_an_unseen_event_is_not_determined():
    seen, unseen = exponential_mean(10.0, 5, 5), exponential_mean(10.0, 0, 5)
    assert not ratio_of_means(unseen, seen).determined


@pytest.mark.parametrize(
    ("call", "key"),
    [
        (lambda: exponential_mean(0.0, 1, 2), "total"),
        (lambda: exponential_mean(math.inf, 1, 2), "total"),
        (lambda: exponential_mean(1.0, 3, 2), "events"),
        (lambda: exponential_mean(1.0, 1, 2, level=1.0), "level"),
        (lambda: share(3, 2), "successes"),
        (lambda: share(0, 0), "n"),
        (lambda: sample_mean([1.0], "1"), "samples"),
        (lambda: sample_mean([1.0, math.nan], "1"), "samples[1]"),
        (lambda: censored_mean([1.0], [True, False]), "observed"),
        (lambda: censored_mean([-1.0], [True]), "times"),
        (lambda: batch_means(np.zeros(10), "1", batches=8), "series"),
    ],
)
def test_refusals_name_the_key(call, key):
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.key == key
    assert "\n" not in str(caught.value)
