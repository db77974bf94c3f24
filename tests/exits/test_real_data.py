"""T20: logistic regression on real data. Escape follows SGD's own exponent, not the diffusion's."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from batchwell import SGD, diffusion_approximation, finite_sum, problem, sublevel
from batchwell._jax import jax, jnp
from batchwell.exits import exponent_map, mean_exit_time
from batchwell.problems.real import _breast_cancer, breast_cancer_logistic


def test_slope_and_level_are_sgds_own_on_one_feature():
    # T20 in one dimension, where the chain's exit time is known exactly: prefactor, finite steps and
    # overshoot leave nothing open, whatever the batch size.
    features, labels = _breast_cancer(1)
    rows = np.column_stack([features[:40, 0], labels[:40]])
    loss = finite_sum(lambda x, z: jax.nn.softplus(-z[1] * z[0] * x[0]) + 0.025 * x @ x, rows, 1)
    lowest = minimize_scalar(lambda x: float(loss.mean(jnp.array([x]))), tol=1e-12)
    domain = sublevel(loss.mean, float(lowest.fun) + 0.008, dim=1)
    logs = {"law": [], "sharp": [], "diffusion": []}
    for size in (1, 2):
        sgd = SGD(loss, 0.2, size)
        for key, process, method in (
            ("law", sgd, "law"),
            ("sharp", sgd, "sharp"),
            ("diffusion", diffusion_approximation(sgd), "sharp"),
        ):
            out = mean_exit_time(process, [lowest.x], domain, method)
            logs[key].append(math.log(out.value))
    law, sharp, other = (np.array(logs[k]) for k in ("law", "sharp", "diffusion"))
    assert np.abs(sharp / law - 1).max() < 0.02
    assert np.diff(sharp)[0] == pytest.approx(np.diff(law)[0], rel=0.02)
    # Negative control: the diffusion's slope is another one, by far.
    assert abs(np.diff(other)[0] / np.diff(law)[0] - 1) > 0.2


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
@pytest.mark.filterwarnings("error::batchwell.ensemble.SlowerEngine")
def test_prefactor_and_finite_steps_explain_slope_and_level(case):
    # The boundary is flat for SGD (V = .5054 and .5138 at its two ways out): the flux over all of it
    # gives the level to what is stated, Laplace's method at the two is a factor 1.7 off.
    loss, start, domain = case
    options = {"particles": 512, "replicas": 8, "seed": 5}
    seen, own, other = [], [], []
    for size in (3, 8):
        sgd = SGD(loss, 0.2, size)
        seen.append(mean_exit_time(sgd, start, domain, "splitting", **options))
        sharp = mean_exit_time(sgd, start, domain, "sharp")
        own.append(math.log(sharp.value))
        stated = math.log(sharp.interval[1] / sharp.value)
        assert stated < 0.5
        assert (
            abs(own[-1] - math.log(seen[-1].value)) < stated + 4 * seen[-1].stderr / seen[-1].value
        )
        flow = diffusion_approximation(sgd)
        other.append(math.log(mean_exit_time(flow, start, domain, "sharp").value))
    logs = [math.log(t.value) for t in seen]
    error = math.hypot(*(t.stderr / t.value for t in seen))
    slope = logs[1] - logs[0]
    assert abs((own[1] - own[0]) / slope - 1) < 0.05 + 2 * error / slope
    # The diffusion misses the slope by a third, and the level.
    assert abs((other[1] - other[0]) / slope - 1) > 0.25
    assert abs(other[1] / logs[1] - 1) > 0.2


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
