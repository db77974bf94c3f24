"""Bounded noise in a deep well: SGD that may never leave, against simulation and plain elimination."""

import math

import numpy as np
import pytest

from batchwell import SGD, additive, box, exit_time, transfer_operator
from batchwell.ensemble import first_exits
from batchwell.errors import InputError
from batchwell.law import (
    committor,
    committor_values,
    exit_position,
    exit_time_variance,
    exit_time_variation,
    mean_exit_time,
    quasi_stationary,
)

# Out of the left well a push of .3 does not lead (max |f'| = .3849); from near the saddle it may
# go either way: out at .2, or into the well for ever.
CHAINS = {
    noise: SGD(additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4, noise, scale=scale), 0.1)
    for noise, scale in (("rademacher", 0.3), ("uniform", 0.15))
}
PLACE = (-3.0, 0.2)


@pytest.fixture(scope="module", params=CHAINS)
def chain(request):
    return CHAINS[request.param], transfer_operator(CHAINS[request.param], PLACE)


@pytest.mark.parametrize("start", [0.1, -0.05])
def test_sgd_that_may_be_caught(chain, start):
    sgd, op = chain
    time = exit_time(op, [start])
    assert time.value == math.inf
    assert "bounded" in time.notes[0]
    assert exit_time_variance(op, [start]).value == math.inf
    with pytest.raises(InputError, match="must lead out"):
        exit_time_variation(op, [start])
    chances = exit_position(op, [start])
    paths = 4000
    seen = first_exits(sgd, [start], box([PLACE[0]], [PLACE[1]]), 3000, paths, seed=1)
    share, upper = seen.observed.mean(), chances["upper"]
    spread = math.sqrt(upper.value * (1 - upper.value) / paths)
    assert chances["lower"].value == 0
    assert abs(share - upper.value) < 4 * spread + upper.stderr  # 6e-5 for each of four
    assert not abs(share / 2 - upper.value) < 4 * spread + upper.stderr


def test_sgd_that_is_caught_from_the_start(chain):
    _, op = chain
    assert exit_time(op, [-1.0]).value == math.inf
    for part in op.parts:
        answer = committor(op, [-1.0], part)
        assert answer.value == 0
        assert "never leaves" in answer.notes[0]
    times, chances = mean_exit_time(op), committor_values(op, "upper")
    caught = np.abs(op.nodes[:, 0] + 1) < 0.1
    assert np.all(np.isinf(times[caught]))
    assert np.all(chances[caught] == 0)
    assert np.all(np.isfinite(chances))
    with pytest.raises(InputError, match="without a way out"):
        quasi_stationary(op)


def test_beyond_the_well_all_leave_and_times_are_finite():
    """From between the saddle and .2 a push of .04 never leads back: times solve a small system."""
    sgd = SGD(additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4, "rademacher", scale=0.04), 0.1)
    op = transfer_operator(sgd, (-3.0, 0.6))
    time = exit_time(op, [0.3])
    seen = first_exits(sgd, [0.3], box([-3.0], [0.6]), 3000, 4000, seed=2)
    assert seen.observed.all()
    assert math.isfinite(time.value)
    spread = seen.steps.std() / math.sqrt(len(seen.steps))
    assert abs(time.value - seen.steps.mean()) < 4 * spread + time.stderr
    assert exit_position(op, [0.3])["upper"].value == pytest.approx(1, abs=1e-12)
