"""Elimination without cancellation, on bands and on full matrices, against exact rational arithmetic."""

from fractions import Fraction

import numpy as np
import pytest

from batchwell.law.markov import gth_factor


def band(n, width, exit_rate, seed):
    """Random rates up to `width` places away, and a rare exit from the last state alone."""
    rng = np.random.default_rng(seed)
    rates = np.triu(np.tril(rng.random((n, n)), width), -width)
    np.fill_diagonal(rates, 0.0)
    exits = np.zeros(n)
    exits[-1] = exit_rate
    return rates, exits


def exact(rates, exits):
    """A^-1 1 by Gaussian elimination over the rationals."""
    n = len(rates)
    a = [[-Fraction(v) for v in row] for row in rates]
    for i in range(n):
        a[i][i] = sum((Fraction(v) for j, v in enumerate(rates[i]) if j != i), Fraction(exits[i]))
    b = [Fraction(1)] * n
    for k in range(n):
        for i in range(k + 1, n):
            f = a[i][k] / a[k][k]
            if f:
                a[i] = [x - f * y for x, y in zip(a[i], a[k], strict=True)]
                b[i] -= f * b[k]
    out = [Fraction(0)] * n
    for k in reversed(range(n)):
        out[k] = (b[k] - sum(a[k][j] * out[j] for j in range(k + 1, n))) / a[k][k]
    return np.array([float(v) for v in out])


@pytest.mark.parametrize(("n", "width"), [(7, 6), (31, 2), (40, 39)])
@pytest.mark.parametrize("rare", [1e-3, 1e-30])
def test_exit_times_keep_all_digits(n, width, rare):
    rates, exits = band(n, width, rare, n)
    got = gth_factor(rates, exits).solve(np.ones(n))
    np.testing.assert_allclose(got, exact(rates, exits), rtol=1e-12)


def test_a_wide_band_over_many_blocks():
    """A birth-death chain: mean time from 0 to the exit at the end is a known double sum."""
    n, up, down = 700, 0.3, 0.29
    rates = np.diag(np.full(n - 1, up), 1) + np.diag(np.full(n - 1, down), -1)
    exits = np.zeros(n)
    exits[-1] = up
    ratio = down / up
    # E T from 0 = sum over m of (1/up) (1 + r + ... + r^m)
    want = sum((1 - ratio ** (m + 1)) / (1 - ratio) / up for m in range(n))
    factors = gth_factor(rates, exits)
    assert factors.solve(np.ones(n))[0] == pytest.approx(want, rel=1e-12)
    assert factors.solve_transposed(np.eye(n)[0]).sum() == pytest.approx(want, rel=1e-12)
    rates[0, -1] = 1e-9  # one far jump: no longer a band, and it must count
    assert gth_factor(rates, exits).solve(np.ones(n))[0] < want * (1 - 1e-9)


def test_plain_elimination_loses_the_rare_exit():
    """The negative control: LU on the same matrix is off by more than a tenth."""
    rates, exits = band(31, 2, 1e-30, 31)
    a = np.diag(rates.sum(axis=1) + exits) - rates
    plain = np.linalg.solve(a, np.ones(31))
    assert np.abs(plain / exact(rates, exits) - 1).max() > 0.1
