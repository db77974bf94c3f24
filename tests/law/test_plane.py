"""The chain's master equation in 2-D."""

import itertools
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

from batchwell import SGD, InputError, additive, ball, box, finite_sum, sampled
from batchwell.ensemble import first_exits
from batchwell.law import (
    exit_position,
    exit_time,
    expectation,
    law_after,
    moments,
    stationary,
    transfer_operator,
)
from batchwell.law.plane import COPIES
from batchwell.law.reach import reachable_box
from batchwell.weak import weak_errors

bowl = additive(lambda x: x @ x / 2, dim=2)
ROWS = (np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]]), np.array([1.0, -1.0, 2.0]))
squares = finite_sum(lambda x, z: 0.5 * (z[0] @ x - z[1]) ** 2, ROWS, dim=2)


def test_survival_of_independent_coordinates_is_a_product():
    op = transfer_operator(SGD(bowl, 0.2), ((-1, -1), (1, 1)))
    line = transfer_operator(SGD(additive(lambda x: x @ x / 2), 0.2), (-1, 1))
    one = law_after(line, [0.0], 7).mass.sum()
    assert law_after(op, [0.0, 0.0], 7).mass.sum() == pytest.approx(one**2, rel=1e-10)


def test_box_exits_are_symmetric_and_sum_to_one():
    op = transfer_operator(SGD(bowl, 0.2), ((-1, -1), (1, 1)))
    chances = [e.value for e in exit_position(op, [0.0, 0.0]).values()]
    assert sum(chances) == pytest.approx(1, abs=1e-6)
    assert chances[0] == pytest.approx(chances[1], abs=1e-9)
    # Corners count as exits in the second coordinate, so these two are a little larger.
    assert chances[2] == pytest.approx(chances[3], abs=1e-9)


def test_exit_from_a_ball_and_its_rotation():
    h = np.diag([1.0, 1.6])
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])

    def problem(matrix):
        m = jnp.asarray(matrix)
        return SGD(additive(lambda x: x @ m @ x / 2, dim=2), 0.25)

    a = exit_time(transfer_operator(problem(h), ball([0.0, 0.0], 1.0)), [0.3, 0.1])
    b = exit_time(
        transfer_operator(problem(turn @ h @ turn.T), ball([0.0, 0.0], 1.0)), turn @ [0.3, 0.1]
    )
    assert a.value == pytest.approx(b.value, rel=1e-5)
    fine = exit_time(transfer_operator(problem(h), ball([0.0, 0.0], 1.0), nodes=44), [0.3, 0.1])
    assert a.value == pytest.approx(fine.value, rel=1e-5)


def test_full_state_dependent_covariance_against_moments():
    loss = sampled(
        lambda x, z: (
            (x @ x) / 2
            + 0.5 * x[0] * x[1]
            + (1 + 0.3 * x[0]) * z[0] * x[1]
            + (z[0] + 0.5 * z[1]) * x[0]
        ),
        "gaussian",
        dim=2,
        noise_dim=2,
    )
    sgd = SGD(loss, 0.4, 2)
    op = transfer_operator(sgd, ((-2.8, -2.8), (2.8, 2.8)), nodes=80)
    law = moments(sgd, [0.2, -0.1], 5)
    for i, j in ((0, 0), (0, 1), (1, 1)):
        got = expectation(op, lambda x, i=i, j=j: x[:, i] * x[:, j], [0.2, -0.1], 5)
        assert got.value == pytest.approx(law.raw[1][i, j], abs=2e-5)


def test_rare_exits_in_the_plane():
    op = transfer_operator(SGD(bowl, 0.06), ((-1, -1), (1, 1)), nodes=56)
    line = transfer_operator(SGD(additive(lambda x: x @ x / 2), 0.06), (-1, 1))
    # Two independent rare exits: half the time of one.
    assert exit_time(op, [0.0, 0.0]).value == pytest.approx(
        exit_time(line, [0.0]).value / 2, rel=1e-2
    )
    assert exit_time(op, [0.0, 0.0]).value > 1e7


def test_finite_data_by_enumeration():
    sgd = SGD(squares, 0.1)
    op = transfer_operator(sgd, reachable_box(sgd, [1.0, 1.0], 4), method="spectral")
    got = expectation(op, lambda x: np.cos(x[:, 0]) * x[:, 1], [1.0, 1.0], 4)
    total = 0.0
    for walk in itertools.product(range(3), repeat=4):
        x = np.ones(2)
        for i in walk:
            x = x - 0.1 * ROWS[0][i] * (ROWS[0][i] @ x - ROWS[1][i])
        total += np.cos(x[0]) * x[1]
    assert got.value == pytest.approx(total / 81, abs=1e-5)


def test_monotone_push_forward_of_finite_data():
    sgd = SGD(squares, 0.1)
    best = np.linalg.lstsq(*ROWS, rcond=None)[0]
    op = transfer_operator(sgd, ball(best, 1.0), nodes=64)
    assert op.rates.min() >= 0
    np.testing.assert_allclose(op.rates.sum(axis=1) + op.exits.sum(axis=1), 1, atol=1e-9)
    answer = exit_time(op, best)
    # 20000 simulated paths, censored at 10000 steps: 3701 steps on average.
    assert abs(answer.value - 3701) < answer.stderr < 700


def test_stationary_law_of_a_bowl():
    op = transfer_operator(SGD(bowl, 0.2), ((-2.5, -2.5), (2.5, 2.5)))
    np.testing.assert_allclose(stationary(op).covariance, np.eye(2) * 0.2 / 1.8, atol=1e-6)


def test_weak_errors_in_the_plane():
    out = weak_errors(
        SGD(squares, 0.1), squares.mean, 0.5, [0.25, 0.125], [1.0, 1.0], method="operators"
    )
    exact = weak_errors(SGD(squares, 0.1), squares.mean, 0.5, [0.25, 0.125], [1.0, 1.0])
    for order in (1, 2):
        for a, b in zip(out[order].errors, exact[order].errors, strict=True):
            assert a.value == pytest.approx(b.value, abs=3 * a.stderr + 1e-6)


def test_refusals():
    flat = sampled(lambda x, z: x @ x / 2 + z[0] * x[0], "gaussian", dim=2)
    with pytest.raises(InputError, match="full rank"):
        transfer_operator(SGD(flat, 0.1), ((-1, -1), (1, 1)), method="nystrom")
    with pytest.raises(InputError, match="GiB"):
        transfer_operator(SGD(bowl, 0.001), ((-1, -1), (1, 1)))
    with pytest.raises(InputError, match="corners"):
        transfer_operator(SGD(bowl, 0.1), (-1, 1))


def test_a_dense_chain_stays_within_the_memory_that_was_predicted():
    # The operator, its factors, both of the coarser mesh, and strips of a few rows.
    sgd = SGD(bowl, 0.1)
    tracemalloc.start()
    op = transfer_operator(sgd, ball([0.0, 0.0], 1.0))
    exit_time(op, [0.0, 0.0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert op.size > 1000
    assert 2.5 * 8 * op.size**2 < peak < 8 * COPIES * op.size**2


def test_sides_that_finite_data_leave_a_box_through():
    """Against 40000 paths; beyond a corner a side of x1 counts. 6e-5 for each of four."""
    rows = np.random.default_rng(2).normal(size=(5, 2))
    loss = finite_sum(
        lambda x, z: jnp.sum(jnp.cos(x + z)) / 2 + x @ x / 4 + 0.3 * x[0] * x[1], rows, 2
    )
    sgd, low, high = SGD(loss, 0.5), np.array([-0.6, -0.7]), np.array([0.7, 0.5])
    chances = exit_position(transfer_operator(sgd, (low, high)), [0.1, -0.1])
    seen = first_exits(sgd, [0.1, -0.1], box(low, high), 10000, 40000, seed=3).points
    level = (seen[:, 1] > low[1]) & (seen[:, 1] < high[1])
    shares = {
        "x0 lower": level & (seen[:, 0] <= low[0]), "x0 upper": level & (seen[:, 0] >= high[0]),
        "x1 lower": seen[:, 1] <= low[1], "x1 upper": seen[:, 1] >= high[1],
    }  # fmt: skip
    assert set(chances) == set(shares)
    assert sum(c.value for c in chances.values()) == pytest.approx(1, abs=1e-9)
    for name, share in shares.items():
        answer = chances[name]
        assert abs(answer.value - share.mean()) < 4 * share.std() / 200 + answer.stderr
    swapped = chances["x1 lower"].value - shares["x1 upper"].mean()
    assert not abs(swapped) < 4 * shares["x1 upper"].std() / 200 + chances["x1 lower"].stderr
