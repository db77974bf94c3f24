"""Truth T22: rates of the real network by counting jumps and by splitting, which share no code.

Counting follows paths until they are seen in another basin; splitting multiplies them up to planes
through the saddles around the minimum. Each row is compared at 4 joint standard errors of the
logarithm (false alarm 6e-5 for each).
"""

import math

import numpy as np
import pytest

import batchwell as bw
from batchwell.ensemble import advance, start
from batchwell.estimate import Estimate, exponential_mean
from batchwell.landscape import Landscape, find_minima, find_saddles
from batchwell.metastable import saddle_evidence
from batchwell.metastable.states import StateMap
from batchwell.streams import generator

ETA = 0.5
NETWORK = bw.problem("breast-cancer-network")
ROWS = (2, 9, 6)  # random starts, each the only one needed to reach a minimum of its own
UNKNOWN = 0


def around(row: int) -> Landscape:
    """The one minimum that a random start reaches."""
    starts = NETWORK.start_scale * generator(0, "search-starts").standard_normal((64, 25))
    return find_minima(NETWORK.loss, starts[row : row + 1], NETWORK.symmetry)


def counted(scape: Landscape, batch_size: int, paths: int, steps: int, looks: int) -> Estimate:
    """Mean time until a look finds a path in another basin; censored paths are kept."""
    sgd, states = bw.SGD(NETWORK.loss, ETA, batch_size), StateMap(scape)
    begin = np.repeat(scape.minima[0].x[None], paths, axis=0)
    state = start(sgd, begin, paths, 11, f"two-methods-B{batch_size}")
    watched, exits, every = 0.0, 0, steps // looks
    for _ in range(looks):
        state = advance(sgd, state, every)
        inside = states(state.x) == 0
        watched += every * (inside.sum() + (~inside).sum() / 2)
        exits += int((~inside).sum())
        if not inside.any():
            break
        state = state.take(np.flatnonzero(inside))
    return exponential_mean(watched, exits, paths, "steps", "counted")


def split(scape: Landscape, sizes: list[int], particles: int) -> dict[int, tuple[float, float]]:
    """(log of the mean time, its error) by batch size, where splitting says anything."""
    saddles = find_saddles(scape, neighbours=0, softest=3, repairs=0)
    rows = saddle_evidence(
        bw.SGD(NETWORK.loss, ETA), scape, saddles, sizes, "splitting", particles=particles,
        replicas=4,
    )  # fmt: skip
    return {r.batch_size: (-r.log_rate, r.error) for r in rows}


def apart(direct: Estimate, log_time: float, error: float, exits: int) -> float:
    """Distance of the two in joint standard errors."""
    return abs(math.log(direct.value) - log_time) / math.hypot(error, 1 / math.sqrt(exits))


def test_splitting_agrees_with_counted_jumps_of_a_real_network() -> None:
    scape = around(9)
    direct = counted(scape, 5, paths=48, steps=80_000, looks=16)
    exits = direct.n - direct.n_censored
    assert exits >= 30
    ((size, (log_time, error)),) = split(scape, [5], 64).items()
    # Replicas are few, and so is what is known of their spread: at least 15 %.
    error = max(error, 0.15)
    assert size == 5
    assert apart(direct, log_time, error, exits) < 3
    assert direct.interval[0] < math.exp(log_time + 1.96 * error)
    assert direct.interval[1] > math.exp(log_time - 1.96 * error)
    # Negative control: half the time, or the time at the next batch size, is another one.
    assert max(apart(direct, log_time + s, error, exits) for s in (-math.log(2), math.log(2))) > 3
    assert apart(counted(scape, 4, 48, 80_000, 16), log_time, error, 40) > 4


@pytest.mark.slow
def test_several_minima_and_batch_sizes_agree_and_are_merged() -> None:
    compared = 0
    for row in ROWS:
        scape = around(row)
        for size, (log_time, error) in split(scape, [5, 6], 128).items():
            direct = counted(scape, size, paths=128, steps=300_000, looks=24)
            exits = direct.n - direct.n_censored
            if exits < 5:
                continue
            compared += 1
            assert apart(direct, log_time, max(error, 0.15), exits) < 4
    assert compared >= 3


@pytest.mark.slow
def test_where_a_way_out_is_unknown_splitting_says_nothing() -> None:
    """From this minimum SGD leaves past all the saddles that were found around it."""
    scape = around(UNKNOWN)
    assert split(scape, [5], 64) == {}
