"""Truth T22: rates of the real network, predicted for a batch size that the fit did not see."""

import numpy as np
import pytest

import batchwell as bw
from batchwell.landscape import Landscape, find_minima
from batchwell.metastable import (
    JumpCounts,
    check_against_runs,
    count_jumps,
    escape_time,
    rates_from_counts,
)
from batchwell.streams import generator

pytestmark = pytest.mark.slow
ETA, SIZES = 0.5, (2, 3, 4, 6)


@pytest.fixture(scope="module")
def landscape() -> Landscape:
    network = bw.problem("breast-cancer-network")
    starts = network.start_scale * generator(0, "search-starts").standard_normal((24, 25))
    return find_minima(network.loss, starts, network.symmetry)


@pytest.fixture(scope="module")
def counts(landscape: Landscape) -> list[JumpCounts]:
    return [
        count_jumps(bw.SGD(landscape.loss, ETA, b), landscape, paths=6, horizon=50_000)
        for b in SIZES
    ]


def test_escape_times_at_a_batch_size_left_out(
    landscape: Landscape, counts: list[JumpCounts]
) -> None:
    """The goal is 15 % of the logarithm; what the regression misses lies in the worst cells."""
    held = counts[2]
    sgd = bw.SGD(landscape.loss, ETA)
    rates = rates_from_counts(landscape, sgd, [counts[0], counts[1], counts[3]], draws=0)
    errors = []
    for i in range(len(landscape.minima)):
        exits = held.jumps[i].sum()
        if exits >= 15 and held.exposure[i] / exits > 10:
            predicted = escape_time(rates.network, rates.labels[i], 4).value
            errors.append(np.log(predicted) / np.log(held.exposure[i] / exits) - 1)
    assert len(errors) >= 3
    assert np.mean(np.abs(errors) <= 0.15) >= 0.7
    # Negative control: the times at B = 2 instead are further off.
    wrong = [
        np.log(escape_time(rates.network, rates.labels[i], 2).value)
        / np.log(held.exposure[i] / held.jumps[i].sum())
        - 1
        for i in range(len(landscape.minima))
        if held.jumps[i].sum() >= 15 and held.exposure[i] / held.jumps[i].sum() > 10
    ]
    assert np.median(np.abs(wrong)) > 2 * np.median(np.abs(errors))


def test_shares_over_time_are_those_of_runs_not_seen(
    landscape: Landscape, counts: list[JumpCounts]
) -> None:
    sgd = bw.SGD(landscape.loss, ETA)
    network = rates_from_counts(landscape, sgd, counts).network
    checks = check_against_runs(network, sgd, landscape, [3, 6], [500, 2000, 8000], paths=200)
    cells, inside = sum(c.cells for c in checks), sum(c.inside for c in checks)
    # 90 % is the goal; cells of one ensemble are not independent, so 80 % is asked for.
    assert cells >= 20
    assert inside >= 0.8 * cells
