"""Direct simulation against exact exit times; censoring; what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from batchwell import SGD, additive, ball, diffusion_approximation, finite_sum, half_space, sublevel
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


@pytest.mark.parametrize("sampling", ["with_replacement", "without_replacement"])
def test_real_minibatches_agree_with_a_simulation_written_out_in_numpy(sampling):
    # Two comparisons at 4 joint errors: false alarm 1.2e-4.
    rng = np.random.default_rng(5)
    rows, targets = rng.normal(size=(12, 3)), rng.normal(size=12)
    best = np.linalg.lstsq(rows, targets, rcond=None)[0]
    loss = finite_sum(lambda x, z: 0.5 * (z[0] @ x - z[1]) ** 2, (rows, targets), 3)
    eta, size, paths = 0.08, 3, 1000
    x, times, live = np.tile(best, (paths, 1)), np.zeros(paths), np.arange(paths)
    for k in range(1, 200_000):
        if sampling == "with_replacement":
            chosen = rng.integers(0, 12, (len(live), size))
        else:
            chosen = np.argsort(rng.random((len(live), 12)), axis=1)[:, :size]
        misfit = np.einsum("mbd,md->mb", rows[chosen], x[live]) - targets[chosen]
        x[live] -= eta * np.einsum("mb,mbd->md", misfit, rows[chosen]) / size
        left = np.sum((x[live] - best) ** 2, axis=1) >= 0.125
        times[live[left]] = k
        live = live[~left]
        if not len(live):
            break
    out = mean_exit_time(SGD(loss, eta, size, sampling=sampling), best, ball(best, 0.125**0.5))
    gap = np.hypot(out.stderr, times.std(ddof=1) / paths**0.5)
    assert not len(live)
    assert abs(out.value - times.mean()) < 4 * gap


def test_a_chain_that_runs_away_beyond_the_domain_is_refused_for_what_it_is():
    # Outside of the well cubes make it diverge; there is no rare exit, and direct has the answer.
    well = SGD(additive(lambda x: (x @ x - 1) ** 2 / 4, "laplace"), 0.9)
    with pytest.raises(InputError, match=r"paths out within 10 steps.*use method direct"):
        mean_exit_time(well, [-1.0], half_space([1.0], 1.0), "splitting")
    assert 4 < mean_exit_time(well, [-1.0], half_space([1.0], 1.0), paths=512).value < 7


def test_a_costly_step_gets_fewer_paths_and_says_so(monkeypatch):
    from batchwell.exits import direct

    whole = mean_exit_time(SGD(QUADRATIC, 0.2), [0.0], UNIT, paths=1024, seed=7)
    monkeypatch.setattr(direct, "WORK", 1e6)
    work = direct.step_work(SGD(QUADRATIC, 0.2), UNIT, 1)
    few = mean_exit_time(SGD(QUADRATIC, 0.2), [0.0], UNIT, paths=1024, seed=7)
    assert 64 <= few.n < 1024
    assert any("1024 paths" in note for note in few.notes)
    assert few.n * whole.value < 2e6 / work
    assert abs(few.value - whole.value) < 4 * few.stderr


def test_a_budget_too_small_for_twenty_events_is_not_spent(monkeypatch):
    from batchwell.exits import direct

    monkeypatch.setattr(direct, "WORK", 1e6)
    with pytest.raises(RunError, match="of 64 paths within 512 steps"):
        mean_exit_time(SGD(QUADRATIC, 0.05), [0.0], UNIT, paths=1024)


def test_a_step_that_sums_over_all_examples_is_known_to_be_costly():
    from batchwell.exits.work import step_work

    rows = np.linspace(-1, 1, 400)[:, None]
    sgd = SGD(finite_sum(lambda x, z: jnp.log1p((x[0] - z[0][0]) ** 2), (rows,), 1), 0.1)
    own, through = UNIT, sublevel(sgd.loss.mean, 2.0, 1)
    one, level, diffusive = (
        step_work(p, domain, 4)
        for p, domain in ((sgd, own), (sgd, through), (diffusion_approximation(sgd), own))
    )
    assert level > 50 * one
    assert diffusive > 4 * 50 * one
    assert step_work(SGD(sgd.loss, 0.1, 40), own, 4) == pytest.approx(40 * one, rel=0.2)
