"""Optimal control of networks against closed forms, finite differences and its own rivals."""

import jax.numpy as jnp
import numpy as np
import pytest

from batchwell import SGD, additive, find_minima
from batchwell.errors import InputError
from batchwell.metastable import (
    FAMILIES,
    MarkovNetwork,
    known_network,
    optimal_schedule,
    state_weights,
    transition_rates,
    verify_schedules,
    with_scores,
)
from batchwell.metastable.control import score_gradient


def network(m: int = 4, seed: int = 2) -> MarkovNetwork:
    """Rates a exp(-V B) per step between m states."""
    rng = np.random.default_rng(seed)
    a, v = 0.05 * rng.random((m, m)), rng.uniform(0.05, 0.5, (m, m))
    rates = [np.where(np.eye(m, dtype=bool), 0.0, a * np.exp(-v * b)) for b in (1, 4, 16)]
    names = [f"s{i}" for i in range(m)]
    return known_network(names, [1, 4, 16], rates, sharpness=np.arange(1.0, m + 1))


def two_sizes() -> MarkovNetwork:
    """Two states, two batch sizes: small steps reach the good state soon, large ones keep it."""
    fast = [[0.0, 0.004], [0.010, 0.0]]
    slow = [[0.0, 0.0004], [0.004, 0.0]]
    return known_network(["good", "bad"], [1, 2], [fast, slow], sharpness=[1.0, 2.0])


def bang_bang(budget: float) -> tuple[float, float]:
    """(share of the good state at the end, examples at B = 1) of the optimal control.

    With p the chance of the good state, dp/de = r_in(B) (1 - p) - r_out(B) p per example: the
    better of two batch sizes maximises the right side at each p, which changes sides once, at p*.
    """
    into, out = np.array([0.010, 0.004 / 2]), np.array([0.004, 0.0004 / 2])
    switch = (into[0] - into[1]) / (into[0] - into[1] + out[0] - out[1])
    total = into + out
    end = into / total
    first = -np.log(1 - switch / end[0]) / total[0]
    p = end[1] + (switch - end[1]) * np.exp(-total[1] * (budget - first))
    return float(p), float(first)


def test_two_states_switch_once_where_the_closed_form_says() -> None:
    budget, stages = 1600, 400
    plan = optimal_schedule(two_sizes(), budget, ["good"], start="bad", stages=stages)
    value, first = bang_bang(budget)
    assert plan.best.batch_sizes == (1, 2)
    assert plan.best.stages[0].steps == pytest.approx(first, abs=2 * budget / stages)
    assert plan.best.score.value == pytest.approx(value, abs=1e-5)
    # Both constants and the reverse are worse by far more than that.
    others = {r.name: r.score.value for r in plan.rivals}
    assert max(others["constant B = 1"], others["constant B = 2"]) < value - 0.01
    assert others["step, shrinking"] < value - 0.01
    assert "predicted to beat every constant" in plan.verdict


def test_the_adjoint_gradient_is_that_of_finite_differences() -> None:
    net, rng = network(), np.random.default_rng(5)
    p, w = rng.dirichlet(np.ones(4)), rng.normal(size=4)
    b = np.array([1.7, 6.0, 2.5, 12.3, 20.0])
    value, slope = score_gradient(net, p, w, b, share=300.0)
    for k in range(len(b)):
        h = 1e-4 * b[k]
        up, down = b.copy(), b.copy()
        up[k], down[k] = b[k] + h, b[k] - h
        ends = [score_gradient(net, p, w, x, share=300.0)[0] for x in (up, down)]
        assert slope[k] == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-5, abs=1e-10)
    assert np.abs(slope).min() > 1e-7  # a check of zeros would check nothing
    assert value == pytest.approx(float(score_gradient(net, p, w, b, 300.0)[0]))


def test_no_rival_beats_the_optimum() -> None:
    for seed in (2, 3, 4):
        plan = optimal_schedule(network(seed=seed), 4000, ["s0", "s1"], start="s3")
        assert all(r.score.value <= plan.best.score.value + 1e-12 for r in plan.rivals)
        names = {r.name for r in plan.rivals}
        assert {*FAMILIES, "step", "step, shrinking", "best that grows"} <= names
        assert {f"{f}, shrinking" for f in FAMILIES} <= names
        for rival in (plan.best, *plan.rivals):
            assert sum(s.batch_size * s.steps for s in rival.stages) <= 4000


def test_where_batch_size_changes_nothing_growth_is_not_said_to_win() -> None:
    # Rates per example, not per step: every schedule is the same.
    rates = [[[0.0, 1e-4 * b], [3e-4 * b, 0.0]] for b in (1, 2, 4)]
    net = known_network(["a", "b"], [1, 2, 4], rates, sharpness=[1.0, 2.0])
    plan = optimal_schedule(net, 4096, "flattest", start="b")
    assert "does not beat a constant" in plan.verdict or "not predicted to beat" in plan.verdict
    assert abs(plan.gain.value) < 1e-3


def test_objectives() -> None:
    net = network(8)
    assert np.flatnonzero(state_weights(net, "flattest")[0]).tolist() == [0, 1]
    # Held-out scores, smaller is better, need not be ordered as sharpness is.
    scored = with_scores(net, {f"s{k}": abs(k - 5.2) for k in range(7)})
    weights, words = state_weights(scored, "best_validation")
    assert np.flatnonzero(weights).tolist() == [5, 6]
    assert words == "chance to end in the states with the best validation score: s5, s6"
    assert np.flatnonzero(state_weights(scored, "flattest")[0]).tolist() == [0, 1]
    assert state_weights(net, {"s2": 0.5, "s3": 1.0})[0].tolist()[2:4] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"objective": "flat"}, "objective"),
        ({"objective": ["nowhere"]}, "state"),
        ({"objective": {"s0": float("nan")}}, "objective.s0"),
        ({"objective": ["s0", "s1", "s2", "s3"]}, "objective"),
        ({"objective": "lowest_loss"}, "objective"),
        (
            {"objective": "best_validation"},
            "objective = 'best_validation': needs a network that "
            "knows held-out scores of its states: with_scores(",
        ),
        ({"budget": 8}, "budget"),
        ({"budget": 0}, "budget"),
        ({"smallest": 8, "largest": 4}, "largest"),
        ({"start": "nowhere"}, "state"),
        ({"stages": 0}, "stages"),
    ],
)
def test_refusals_are_one_line(change, word) -> None:
    given = {"budget": 1000, "objective": "flattest", **change}
    with pytest.raises(InputError) as error:
        optimal_schedule(network(), given.pop("budget"), given.pop("objective"), **given)
    assert str(error.value).startswith(word)
    assert "\n" not in str(error.value)


def test_validation_scores_move_the_schedule_and_a_mapping_gives_the_same() -> None:
    """The state that scores best is the one that only small batches reach: growth is of no use."""
    net = two_sizes()
    flat = optimal_schedule(net, 1600, "flattest", start="bad", stages=40)
    good = with_scores(net, {"good": 0.1, "bad": 0.3})
    same = optimal_schedule(good, 1600, "best_validation", start="bad", stages=40)
    assert same.best.batch_sizes == flat.best.batch_sizes == (1, 2)
    assert same.best.score.value == flat.best.score.value
    # Negative control: with the scores the other way round, one stays where one began.
    bad = with_scores(net, {"good": 0.3, "bad": 0.1})
    other = optimal_schedule(bad, 1600, "best_validation", start="bad", stages=40)
    by_hand = optimal_schedule(net, 1600, {"bad": 1.0}, start="bad", stages=40)
    assert other.best.batch_sizes == by_hand.best.batch_sizes != flat.best.batch_sizes
    assert other.best.score.value == pytest.approx(by_hand.best.score.value, abs=1e-12)
    for scores, word in (({"nowhere": 1.0}, "state"), ({"bad": float("nan")}, "scores.bad")):
        with pytest.raises(InputError, match=word):
            with_scores(net, scores)


def test_schedules_end_where_predicted_in_real_runs() -> None:
    """Two wells of unequal curvature: 12 or more cells at 95 %; 4 outside have chance < 2e-3."""
    well = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4 * (1 - 0.4 * jnp.tanh(x[0])), "gaussian")
    found = find_minima(well, [[-1.0], [1.0]])
    flat = next(m.label for m in found.minima if m.x[0] > 0)
    sharp = next(m.label for m in found.minima if m.x[0] < 0)
    rates = transition_rates(
        found, 0.15, [1, 2, 3, 4], paths=48, target=300, horizon=150_000, threads=2
    )
    plan = optimal_schedule(rates.network, 12_000, [flat], start=sharp, stages=8)
    seen = verify_schedules(plan, SGD(well, 0.15), found, rivals=5, paths=400, threads=2)
    assert sum(c.cells - c.inside for c in seen.checks) <= 3
    assert seen.checks[0].measured_score is not None
    assert seen.gain.n == 800 or seen.verdict.startswith("no growing")
    assert "constant" in seen.verdict
