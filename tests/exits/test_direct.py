"""Direct simulation against exact exit times; censoring; what is refused."""

import pytest

from batchwell import SGD, additive, ball, diffusion_approximation, half_space
from batchwell.errors import InputError, RunError
from batchwell.exits import EXIT_METHODS, mean_exit_time

QUADRATIC = additive(lambda x: x @ x / 2)
UNIT = ball([0.0], 1.0)


def test_gaussian_chain_agrees_with_the_exact_mean():
    # T7: 559.87408 steps. False alarm below 1e-4 at 4 standard errors.
    out = mean_exit_time(SGD(QUADRATIC, 0.2), [0.0], UNIT, paths=2048, seed=3)
    assert abs(out.value - 559.87408) < 4 * out.stderr
    assert out.unit == "steps"


def test_ornstein_uhlenbeck_agrees_with_the_exact_mean():
    # T7 at eps = .2: 66.2282 units of time, 331.141 steps of length .2.
    process = diffusion_approximation(SGD(QUADRATIC, 0.2))
    out = mean_exit_time(process, [0.0], UNIT, paths=4096, seed=5, substeps=16)
    assert abs(out.value - 331.141021) < 4 * out.stderr + 0.005 * out.value
    assert any("overshoot" in note for note in out.notes)


def test_the_moved_boundary_is_what_removes_the_bias():
    # Negative control: the same paths against the unmoved boundary must lose.
    from batchwell.ensemble import first_exits

    process = diffusion_approximation(SGD(QUADRATIC, 0.2))
    raw = first_exits(process, [0.0], UNIT, 8192, 4096, seed=5, substeps=4)
    assert raw.steps.mean() > 1.08 * 331.141021


def test_censored_paths_count():
    out = mean_exit_time(SGD(QUADRATIC, 0.2), [0.0], UNIT, paths=1024, horizon=300, seed=2)
    assert out.n_censored > 300
    assert out.interval[0] < 559.87408 < out.interval[1]
    assert any("censored" in note for note in out.notes)


def test_too_few_events_says_what_is_needed():
    with pytest.raises(RunError, match="too few events: 0 exits of 50 paths within 10 steps"):
        mean_exit_time(SGD(QUADRATIC, 0.05), [0.0], UNIT, paths=50, horizon=10)


@pytest.mark.parametrize("method", EXIT_METHODS)
def test_every_method_refuses_a_start_outside(method):
    with pytest.raises(InputError, match="start"):
        mean_exit_time(SGD(QUADRATIC, 0.1), [2.0], UNIT, method=method)


def test_unknown_method_lists_the_roster():
    with pytest.raises(InputError, match="direct"):
        mean_exit_time(SGD(QUADRATIC, 0.1), [0.0], UNIT, method="guess")


def test_wrong_dimension_is_named():
    with pytest.raises(InputError, match="dimension"):
        mean_exit_time(SGD(QUADRATIC, 0.1), [0.0], half_space([1.0, 0.0], 1.0))
