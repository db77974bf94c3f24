"""Numbers behind the figures: slope of log time in B/eta, survival against the exponential law."""

import numpy as np

from batchwell import SGD, additive, ball, half_space
from batchwell.ensemble import first_exits
from batchwell.exits import exit_scan, fitted_exponent, survival_curve


def test_slope_of_the_chains_law_tends_to_its_own_exponent():
    coins = SGD(additive(lambda x: (x @ x - 1) ** 2 / 4, "rademacher", scale=0.7), 0.05)
    rows = exit_scan(coins, [-1.0], half_space([1.0], 0.3), [0.05, 0.04], [1], ["law"])
    slope = fitted_exponent(rows, "law").value
    own, other = rows[0].exponents.sgd, rows[0].exponents.diffusion
    # The diffusion's exponent loses clearly: the slope lies within 4 % of SGD's own.
    assert abs(slope / own - 1) < 0.04
    assert slope / other > 1.1


def test_survival_is_close_to_exponential():
    sgd = SGD(additive(lambda x: x @ x / 2), 0.14)
    curve = survival_curve(first_exits(sgd, [0.0], ball([0.0], 1.0), 100000, 2000, seed=3))
    # Kolmogorov-Smirnov at 2000 samples: .0435 is the 1e-3 quantile, plus the short transient.
    assert np.abs(curve["share"] - curve["exponential"]).max() < 0.05
