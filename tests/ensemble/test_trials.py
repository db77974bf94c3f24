"""Trials: both engines alike, ends as defined, and a trial run again passes the same points."""

import numpy as np
import pytest

from batchwell import SGD, additive, ball, diffusion_approximation
from batchwell.ensemble import CORE, GOAL, OUT, STOPPED, Table, run_trials, start

BOWL = additive(lambda x: x @ x / 2, dim=2)
UNIT = ball([0.0, 0.0], 1.0)
SGD_ = SGD(BOWL, 0.1)


def square(x):
    return x @ x


def grid(d):
    axes = np.meshgrid(*[np.linspace(-1, 1, 21)] * d, indexing="ij")
    return Table(np.full(d, -1.0), np.full(d, 0.1), sum(a**2 for a in axes))


def paths(count=400, seed=2):
    return start(SGD_, [0.5, 0.2], count, seed)


@pytest.mark.parametrize("score", [square, grid(2), grid(1)], ids=["formula", "plane", "line"])
@pytest.mark.parametrize("process", [SGD_, diffusion_approximation(SGD_)], ids=["chain", "flow"])
def test_engines_agree(process, score):
    goals = np.linspace(0.4, 0.9, 400)
    one, two = (
        run_trials(process, paths(), UNIT, score, 0.05, goals, 10**6, engine=engine)
        for engine in ("fused", "xla")
    )
    np.testing.assert_array_equal(one.fates, two.fates)
    np.testing.assert_array_equal(one.steps, two.steps)
    np.testing.assert_allclose(one.points, two.points, atol=1e-12)
    np.testing.assert_allclose(one.best, two.best, atol=1e-12)


def test_ends_are_what_they_are_called():
    done = run_trials(SGD_, start(SGD_, [0.6, 0.7], 400, 2), UNIT, square, 0.05, 0.97, 10**6)
    score = np.sum(done.points**2, axis=1)
    assert set(np.unique(done.fates)) == {CORE, GOAL, OUT}
    assert (score[done.fates == CORE] <= 0.05).all()
    assert ((score > 0.97) & (score < 1))[done.fates == GOAL].all()
    assert (score[done.fates == OUT] >= 1).all()
    ahead = done.fates != CORE
    np.testing.assert_allclose(done.best[ahead], score[ahead], rtol=1e-12)
    short = run_trials(SGD_, paths(), UNIT, square, 0.0, np.inf, 7)
    assert (short.fates[short.steps == 7] == STOPPED).mean() > 0.9


def test_a_trial_run_again_passes_where_it_passed():
    # What splitting rests on: with another goal the same path, up to its first point beyond.
    free = run_trials(SGD_, paths(), UNIT, square, 0.05, np.inf, 10**6)
    inner = (free.fates == CORE) & (free.best > 0.4)
    again = run_trials(SGD_, paths().take(inner), UNIT, square, 0.05, 0.4, 10**6)
    assert inner.sum() > 20
    assert (again.fates == GOAL).all()
    assert (again.steps < free.steps[inner]).all()
    top = run_trials(SGD_, paths().take(inner), UNIT, square, 0.05, free.best[inner], 10**6)
    np.testing.assert_array_equal(top.points, free.points[inner])  # a tie is not beyond
    # Negative control: other generators pass elsewhere.
    other = run_trials(SGD_, paths(seed=3).take(inner), UNIT, square, 0.05, 0.4, 10**6)
    assert not np.array_equal(other.fates, again.fates)


def test_threads_and_lanes_change_nothing():
    one = run_trials(SGD_, paths(), UNIT, square, 0.05, 0.8, 10**6, threads=1)
    two = run_trials(SGD_, paths(), UNIT, square, 0.05, 0.8, 10**6, threads=3)
    part = run_trials(SGD_, paths().take(range(5, 9)), UNIT, square, 0.05, 0.8, 10**6)
    np.testing.assert_array_equal(one.points, two.points)
    np.testing.assert_array_equal(one.points[5:9], part.points)
