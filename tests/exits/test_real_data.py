"""T20: logistic regression on real data. Escape follows SGD's own exponent, not the diffusion's."""

import math

import numpy as np
import pytest

from batchwell import SGD, finite_sum, sublevel
from batchwell._jax import jnp
from batchwell.exits import exponent_map, mean_exit_time


@pytest.fixture(scope="module")
def case():
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    main = x @ np.linalg.svd(x, full_matrices=False)[2][:2].T
    data = (np.column_stack([main / main.std(0), np.ones(len(x))]), 2.0 * y - 1.0)
    loss = finite_sum(lambda w, z: jnp.logaddexp(0.0, -z[1] * (z[0] @ w)) + 0.025 * w @ w, data, 3)
    w = jnp.zeros(3)
    for _ in range(30):
        w = w - jnp.linalg.solve(loss.hessian(w), loss.gradient(w))
    lowest = float(loss.mean(w))
    return loss, np.asarray(w), sublevel(lambda v: loss.mean(v) - lowest, 0.02, 3)


@pytest.mark.slow
def test_exponents_of_sgd_and_diffusion(case):
    loss, start, domain = case
    row = exponent_map(SGD(loss, 0.2, 2), start, domain, order=8, starts=4)[0]
    assert row.sgd == pytest.approx(0.5054, abs=1e-4)
    assert row.diffusion == pytest.approx(0.3051, abs=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:simulating on XLA")
def test_simulated_slope_is_sgds_own(case):
    loss, start, domain = case
    sizes, times = (2, 3), []
    for size in sizes:
        out = mean_exit_time(
            SGD(loss, 0.2, size), start, domain, paths=512, seed=1, max_path_steps=1e8
        )
        times.append(out)
    slope = math.log(times[1].value / times[0].value) * 0.2
    error = 0.2 * math.hypot(*(t.stderr / t.value for t in times))
    # Measured .445-.471 for SGD, .314-.318 for Gaussian noise of the same covariance.
    assert 0.445 - 3 * error < slope < 0.471 + 3 * error
    assert slope > 0.318 + 3 * error
