"""Exits from basins against exits from a half-space, which the basin of the double well is.

Statistical budget: 3 comparisons at 4 standard errors (6e-5 each); the rest is exact.
"""

import numpy as np
import pytest

from batchwell.domain import half_space
from batchwell.dynamics import SGD, diffusion_approximation
from batchwell.ensemble import first_exits
from batchwell.errors import InputError
from batchwell.estimate import difference
from batchwell.exits import basin as basin_module
from batchwell.exits.basin import BasinExits, basin_exits
from batchwell.landscape import basin, quench
from batchwell.loss import additive

WELL = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4)
BOTH = quench(WELL, [[-1.2], [0.8]]).attractors
LEFT = basin(WELL, BOTH, own=0)
NEGATIVE = half_space([1.0], 0.0)
SGD_HOT = SGD(WELL, 0.3)


@pytest.fixture(scope="module")
def every_step() -> BasinExits:
    return basin_exits(SGD_HOT, [-1.0], LEFT, 1500, 200, seed=3, check_every=1)


def test_looking_at_every_step_is_exact(every_step):
    # Same stream, same paths: the basin is x < 0, so the two must agree path by path.
    level = first_exits(SGD_HOT, [-1.0], NEGATIVE, 1500, 200, seed=3, stream="basin-exits")
    np.testing.assert_array_equal(every_step.observed, level.observed)
    np.testing.assert_array_equal(every_step.steps, level.steps)
    out = every_step.observed
    np.testing.assert_allclose(every_step.points[out], level.points[out], rtol=1e-12)
    assert (every_step.points[out] >= 0).all()
    assert (every_step.labels[out] == 1).all()
    assert any("every step" in note for note in every_step.mean().notes)


def test_rare_looks_miss_and_say_so(every_step):
    rare = basin_exits(SGD_HOT, [-1.0], LEFT, 1500, 200, seed=3, check_every=8)
    assert rare.check_every == 8
    # Excursions over the border and back are missed: times can only grow, but for the middle rule.
    assert (rare.steps >= every_step.steps - 4).all()
    assert rare.mean().value > every_step.mean().value
    assert rare.check_shift is not None
    assert rare.check_shift > 0
    fine = rare.steps.sum() / rare.observed.sum()
    coarse = rare.coarse_steps.sum() / rare.coarse_observed.sum()
    assert rare.check_shift == pytest.approx(coarse / fine - 1)
    assert any("every 8 steps" in note and "+" in note for note in rare.mean().notes)
    # Looks at 8, 16, ...: a path first found outside at look k left in the 8 steps before.
    assert set(np.unique(rare.steps[rare.observed] % 8)) == {4.5}
    assert set(np.unique(rare.coarse_steps[rare.coarse_observed] % 16)) == {8.5}


def test_looks_taken_together_are_the_looks_one_by_one(monkeypatch):
    how = (SGD(WELL, 0.2), [-1.0], LEFT, 203, 40, 3)
    together = basin_exits(*how, check_every=5)
    monkeypatch.setattr(basin_module, "POINTS_TOGETHER", 1)
    single = basin_exits(*how, check_every=5)
    for name in ("steps", "observed", "labels", "points", "coarse_steps", "coarse_observed"):
        np.testing.assert_array_equal(getattr(together, name), getattr(single, name), name)
    assert 0 < single.observed.sum() < 40  # some were still inside, so that looks were joined


def test_the_pilots_interval_agrees_with_every_step(every_step):
    chosen = basin_exits(SGD_HOT, [-1.0], LEFT, 1500, 400, seed=4)
    assert 1 <= chosen.check_every <= 3
    assert abs(difference(chosen.mean(), every_step.mean())) < 4
    # Control: a temperature 20 % lower is told apart.
    cold = basin_exits(SGD(WELL, 0.24), [-1.0], LEFT, 1500, 400, seed=4, check_every=1)
    assert abs(difference(cold.mean(), every_step.mean())) > 4


def test_unfinished_paths_are_censored():
    exits = basin_exits(SGD_HOT, [-1.0], LEFT, 21, 200, seed=3, check_every=4)
    missing = ~exits.observed
    assert 0 < missing.sum() < 200
    assert (exits.steps[missing] == 21).all()
    assert (exits.labels[missing] == 0).all()
    assert (exits.points[missing] < 0).all()
    assert exits.mean().n_censored == missing.sum()
    assert exits.steps[~missing].max() <= 21
    none = basin_exits(SGD(WELL, 0.01), [-1.0], LEFT, 50, 8, seed=3, check_every=10)
    assert none.check_shift is None
    assert np.isinf(none.mean().value)
    assert none.mean().interval[0] == pytest.approx(400 / np.log(40))


def test_a_diffusion_leaves_its_basin_too():
    process = diffusion_approximation(SGD_HOT)
    exits = basin_exits(process, [-1.0], LEFT, 1500, 200, seed=5, check_every=1, substeps=4)
    level = first_exits(process, [-1.0], NEGATIVE, 1500, 200, seed=5, substeps=4)
    # Looks at whole steps miss what substeps see: later, by less than a quarter.
    ratio = exits.mean().value / (level.steps.sum() / level.observed.sum())
    assert 0.8 < ratio < 1.45


def test_what_is_no_basin_is_refused():
    for call, key in (
        (lambda: basin_exits(SGD_HOT, [-1.0], NEGATIVE, 10), "domain"),
        (lambda: basin_exits(SGD_HOT, [1.0], LEFT, 10), "x0"),
        (lambda: basin_exits(SGD_HOT, [-1.0], LEFT, 0), "horizon"),
        (lambda: basin_exits(SGD_HOT, [-1.0], LEFT, 10, 4, check_every=0), "check_every"),
        (lambda: basin_exits(SGD_HOT, [-1.0], LEFT, 10, 0, check_every=1), "paths"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.key == key
