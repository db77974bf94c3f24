"""T20: logistic regression on real data. Escape follows SGD's own exponent, not the diffusion's."""

import math

import numpy as np
import pytest

from batchwell import SGD, problem
from batchwell.exits import exponent_map, mean_exit_time
from batchwell.problems.real import breast_cancer_logistic


@pytest.fixture(scope="module")
def case():
    found = problem("breast-cancer-logistic")
    return found.loss, np.array(found.start), found.domain


@pytest.mark.slow
def test_exponents_of_sgd_and_diffusion(case):
    loss, start, domain = case
    row = exponent_map(SGD(loss, 0.2, 2), start, domain, order=8, starts=4)[0]
    assert row.sgd == pytest.approx(0.5054, abs=1e-4)
    assert row.diffusion == pytest.approx(0.3051, abs=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("error::batchwell.ensemble.SlowerEngine")
def test_simulated_slope_is_sgds_own(case):
    # Without a fit: V less the sqrt(eps) of the prefactor explains the slope to 5 %; the
    # diffusion's exponent does not.
    loss, start, domain = case
    first = mean_exit_time(SGD(loss, 0.2, 2), start, domain, paths=1024, seed=1)
    options = {"particles": 512, "replicas": 8, "seed": 1}
    last = mean_exit_time(SGD(loss, 0.2, 4), start, domain, "splitting", **options)
    slope = math.log(last.value / first.value) * 0.1
    error = 0.1 * math.hypot(*(t.stderr / t.value for t in (first, last)))
    off = math.log(2) * 0.05  # log(x2 / x1) / (2 (x2 - x1)) at x = B/eta = 10 and 20
    assert error < 0.01
    assert abs(slope / (0.5054 - off) - 1) < 0.05
    assert slope > 0.3051 - off + 4 * error


@pytest.mark.slow
def test_six_dimensions_by_splitting_agree_with_simulation():
    found = breast_cancer_logistic(5)
    sgd = SGD(found.loss, 0.4, 4)
    seen = mean_exit_time(sgd, found.start, found.domain, paths=512, seed=2)
    options = {"particles": 512, "replicas": 8, "seed": 2, "precision": "float32"}
    split = mean_exit_time(sgd, found.start, found.domain, "splitting", **options)
    gap = math.log(seen.value / split.value)
    assert abs(gap) < 4.5 * math.hypot(seen.stderr / seen.value, split.stderr / split.value)
    assert split.stderr < 0.15 * split.value
