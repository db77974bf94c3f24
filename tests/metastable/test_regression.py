"""The regression over batch sizes on jumps drawn from rates that are known."""

import numpy as np
import pytest

from batchwell.metastable.regression import RateFit, fit_rates

SIZES = np.array([1, 2, 3, 4, 6, 8, 16, 32.0])
COUNTED = np.array([True, True, False, True, True, True, True, False])
M = 6


def truth(rng: np.random.Generator) -> np.ndarray:
    """Rates (n, m, m) = a exp(-V B), levels and slopes scattered over states and edges."""
    level, slope = rng.normal(-3, 1, M), rng.normal(0.8, 0.2, M)
    branch, bend = rng.normal(0, 1, (M, M)), rng.normal(0, 0.1, (M, M))
    logs = level[:, None] + branch - (slope[:, None] + bend) * SIZES[:, None, None]
    return np.where(np.eye(M, dtype=bool), 0.0, np.exp(logs))


@pytest.fixture(scope="module")
def fitted() -> tuple[RateFit, np.ndarray]:
    rng = np.random.default_rng(0)
    rates = truth(rng)
    exposure = np.where(COUNTED[:, None, None], 2e5, 0.0) * np.ones((1, M, M))
    jumps = rng.poisson(rates * exposure).astype(float)
    edges = np.argwhere(~np.eye(M, dtype=bool))
    fit = fit_rates(jumps, exposure, SIZES, edges, 200, 0)
    return fit, np.log(rates[:, edges[:, 0], edges[:, 1]])


def test_intervals_cover_the_truth_inside_between_and_beyond(
    fitted: tuple[RateFit, np.ndarray],
) -> None:
    fit, true = fitted
    low, high = np.percentile(fit.draws, [2.5, 97.5], axis=0)
    covered = (true > low) & (true < high)
    # 30 edges at each of 8 batch sizes, dependent: below 85 % of all is more than 4 errors off
    # even with 60 independent ones.
    assert covered.mean() > 0.85
    assert covered[~COUNTED].mean() > 0.8
    widths = np.median(high - low, axis=1)
    assert widths[-1] > 2 * widths[-2] > 2 * widths[0]  # extrapolation is known to be one
    assert fit.spreads.slope_mean == pytest.approx(0.8, abs=0.3)
    assert fit.spreads.residual < 0.2  # the law holds here: no model error is found


def test_where_jumps_abound_rates_are_the_counted_ones(
    fitted: tuple[RateFit, np.ndarray],
) -> None:
    fit, true = fitted
    off = fit.log_rates[0] - true[0]
    assert np.abs(off).max() < 0.1
    # Negative control: a factor 2 in time would be seen at once.
    assert np.abs(fit.log_rates[0] + np.log(2) - true[0]).min() > 0.5


def test_no_jump_in_long_time_bounds_the_rate_from_above() -> None:
    # One edge back and forth, never seen beyond B = 2 in 1e7 steps.
    exposure = np.zeros((3, 2, 2))
    exposure[:, 0, 1] = exposure[:, 1, 0] = (1e4, 1e4, 1e7)
    jumps = np.zeros((3, 2, 2))
    jumps[:, 0, 1] = jumps[:, 1, 0] = (100, 50, 0)
    fit = fit_rates(jumps, exposure, np.array([1, 2, 3.0]), np.array([[0, 1], [1, 0]]), 400, 1)
    # Chance of no jump at rate k: exp(-1e7 k); its 97.5 % bound alone is 3.7e-7.
    assert np.percentile(np.exp(fit.draws[:, 2, 0]), 97.5) < 4e-7
    assert np.exp(fit.log_rates[1, 0]) == pytest.approx(5e-3, rel=0.4)


def test_a_curve_that_the_law_misses_widens_the_intervals() -> None:
    rng = np.random.default_rng(3)
    logs = -4.0 - 3.0 * np.log2(SIZES) ** 0.5 - 0.02 * SIZES
    rates = np.where(np.eye(4, dtype=bool), 0.0, np.exp(logs)[:, None, None])
    exposure = np.where(COUNTED[:, None, None], 1e6, 0.0) * np.ones((1, 4, 4))
    edges = np.argwhere(~np.eye(4, dtype=bool))
    jumps = rng.poisson(rates * exposure).astype(float)
    fit = fit_rates(jumps, exposure, SIZES, edges, 200, 0)
    assert fit.spreads.residual > 0.3
    low, high = np.percentile(fit.draws[2], [2.5, 97.5], axis=0)  # B = 3, left out
    assert np.mean((low < logs[2]) & (logs[2] < high)) > 0.7
