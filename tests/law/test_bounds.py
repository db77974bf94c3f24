"""Two-sided bounds of the push-forward of atoms: they enclose, they close in, and they refuse."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from batchwell import SGD, InputError, additive, finite_sum
from batchwell.law import (
    enumerate_law,
    exit_time,
    exit_time_bounds,
    law_after,
    transfer_operator,
    transport_error,
    wasserstein,
)

coin_bowl = additive(lambda x: x @ x / 2, "rademacher")
coin_well = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4, "rademacher", scale=0.7)
waves = finite_sum(
    lambda x, z: jnp.cos(x[0] * z[0] + z[1]) + 0.05 * x[0] ** 2,
    np.random.default_rng(0).normal(size=(5, 2)) * [2.0, 1.0],
    dim=1,
)


@pytest.mark.parametrize(
    ("loss", "eta", "ends", "start"),
    [(coin_bowl, 0.1, (-0.5, 0.5), 0.0), (waves, 0.3, (-1.0, 3.0), 1.0)],
)
def test_bounds_enclose_and_close_in(loss, eta, ends, start):
    sgd = SGD(loss, eta)
    rough = exit_time_bounds(sgd, ends, start, 750)
    fine = exit_time_bounds(sgd, ends, start, 1500)
    answer = exit_time(transfer_operator(sgd, ends, nodes=800), [start])
    assert rough.interval[0] <= fine.interval[0] < answer.value < fine.interval[1]
    assert fine.interval[1] <= rough.interval[1]
    width = [math.log(b.interval[1] / b.interval[0]) for b in (rough, fine)]
    assert width[1] < 0.65 * width[0]  # first order in the cells
    # Negative control: half the batch noise is outside of the bounds.
    quiet = exit_time(transfer_operator(SGD(loss, eta, 2), ends, nodes=800), [start])
    assert quiet.value > fine.interval[1]


def test_bounds_by_simulation_of_the_same_chain():
    """2e4 paths of the coin chain, to 4 standard errors (false alarm 6e-5)."""
    rng = np.random.default_rng(3)
    x, steps = np.zeros(20000), np.zeros(20000)
    alive = np.ones(len(x), dtype=bool)
    while alive.any():
        x[alive] = 0.9 * x[alive] + 0.1 * rng.choice([-1.0, 1.0], int(alive.sum()))
        steps[alive] += 1
        alive &= np.abs(x) < 0.5
    low, high = exit_time_bounds(SGD(coin_bowl, 0.1), (-0.5, 0.5), 0.0, 1500).interval
    error = 4 * steps.std() / math.sqrt(len(steps))
    assert low - error < steps.mean() < high + error


def test_metastable_exits_are_enclosed():
    bounds = exit_time_bounds(SGD(coin_well, 0.1), (-2.5, 0.0), -1.0, 1500)
    low, high = bounds.interval
    assert 2e6 < low < 4.21e6 < high < 1e7


def test_noise_that_cannot_leave_has_no_finite_upper_bound():
    quiet = SGD(additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4, "rademacher", scale=0.2), 0.1)
    assert exit_time_bounds(quiet, (-2.0, 0.0), -1.0, 400).interval[1] == math.inf


def test_the_transport_bound_holds_and_is_of_the_order_of_the_cells():
    sgd = SGD(waves, 0.3)
    exact = enumerate_law(sgd, [1.0], 6)
    errors = []
    for nodes in (201, 401):
        law = law_after(transfer_operator(sgd, (-8, 8), nodes, "hat"), [1.0], 6)
        bound = transport_error(sgd, (-8, 8), 1.0, 6, nodes)
        assert wasserstein(law, exact) <= bound
        errors.append(bound)
    assert errors[1] < 0.7 * errors[0]


def test_refusals():
    with pytest.raises(InputError, match="has a density"):
        exit_time_bounds(SGD(additive(lambda x: x @ x / 2), 0.1), (-1, 1), 0.0)
    with pytest.raises(InputError, match="finite ends"):
        exit_time_bounds(SGD(coin_bowl, 0.1), (-math.inf, 1), 0.0)
    with pytest.raises(InputError, match="inside"):
        exit_time_bounds(SGD(coin_bowl, 0.1), (-1, 1), 2.0)
