"""Arguments as people give them: taken where their meaning is plain, refused in one line elsewhere."""

import jax.numpy as jnp
import numpy as np
import pytest

from batchwell import (
    SGD,
    additive,
    ball,
    diffusion_approximation,
    exit_time,
    exit_time_bounds,
    finite_sum,
    generator,
    moments,
    transfer_operator,
    validity,
    weak_error,
)
from batchwell.ensemble import first_exits, positions
from batchwell.errors import InputError
from batchwell.law import enumerate_law, exit_time_map, expectation

LINE = SGD(additive(lambda x: x @ x / 2), 0.1)
ROWS = np.array([0.5, -0.5, 1.0])
COIN = SGD(finite_sum(lambda x, z: (x[0] - z) ** 2 / 2, ROWS, 1), 0.2)
OPERATOR = transfer_operator(LINE, (-1, 1))
ERRORS = dict(phi=lambda x: x @ x, horizon=1.0, learning_rates=[0.1, 0.05], start=[1.0])


def weak(**changed):
    return weak_error(LINE, 1, **{**ERRORS, **changed})


def same(one, other):
    np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_a_bare_number_is_a_point_of_the_line():
    same(positions(LINE, 1, [2], 3, 0), positions(LINE, [1.0], [2], 3, 0))
    same(moments(LINE, 1, 3).mean, moments(LINE, [1.0], 3).mean)
    same(exit_time(OPERATOR, 0).value, exit_time(OPERATOR, [0.0]).value)
    same(weak(start=1).errors[0].value, weak().errors[0].value)
    same(exit_time_map(LINE, (-1, 1), 0.1, 1, [0.0]), exit_time_map(LINE, (-1, 1), [0.1], [1], 0))
    bounds = [exit_time_bounds(COIN, (-0.4, 0.4), x, cells=16).interval for x in (0, [0.0])]
    same(*bounds)
    same(enumerate_law(COIN, 0, 2).nodes, enumerate_law(COIN, [0.0], 2).nodes)
    assert validity(LINE, 0).numbers == pytest.approx(validity(LINE, [0.0]).numbers, nan_ok=True)


def test_whole_numbers_and_lists_are_points_and_data():
    lists = finite_sum(lambda x, z: (x @ z - 1) ** 2 / 2, [[1, 2], [3, 4]], 2)
    arrays = finite_sum(lambda x, z: (x @ z - 1) ** 2 / 2, np.array([[1.0, 2.0], [3.0, 4.0]]), 2)
    x = np.ones(2)
    for name in ("mean", "gradient", "hessian", "covariance", "factor", "losses"):
        want = getattr(arrays, name)(x)
        for points in ([1, 1], np.ones(2, dtype=int), np.ones(2, dtype=np.float32)):
            same(getattr(lists, name)(points), want)


def test_a_function_of_truth_values_is_an_average():
    """P(x > 0) after one step from .1: 1 - Phi(-.09 / .1)."""
    from scipy.stats import norm

    op = transfer_operator(LINE, (-np.inf, np.inf))
    found = expectation(op, lambda x: x[:, 0] > 0, [0.1], 1)
    assert abs(found.value - norm.cdf(0.9)) < 1e-2  # a jump within a panel
    booleans, reals = (weak(phi=phi) for phi in (lambda x: x[0] > 0, lambda x: (x[0] > 0) * 1.0))
    same([e.value for e in booleans.errors], [e.value for e in reals.errors])


def python_branch(x):
    return x[0] if x[0] > 0 else 0.0


LOSS = LINE.loss
FLOW = diffusion_approximation(LINE)
REFUSED = {
    "no loss": (lambda: SGD(lambda x: x, 0.1), "loss", "made by finite_sum"),
    "diffusion of a loss": (lambda: diffusion_approximation(LOSS), "sgd", "must be an SGD"),
    "paths of a loss": (lambda: positions(LOSS, [1.0], [2], 3, 0), "process", "SGD or a Diffusion"),
    "moments of a loss": (lambda: moments(LOSS, [1.0], 2), "process", "SGD or a Diffusion"),
    "operator of a diffusion": (lambda: transfer_operator(FLOW, (-1, 1)), "sgd", "must be an SGD"),
    "generator of SGD": (lambda: generator(LINE, (-1, 1)), "diffusion", "must be a Diffusion"),
    "verdict on a diffusion": (lambda: validity(FLOW, [0.0]), "sgd", "must be an SGD"),
    "question to SGD": (lambda: exit_time(LINE, [0.0]), "operator", "transfer_operator"),
    "start in words": (lambda: positions(LINE, "a", [2], 3, 0), "x0", "shape (1,)"),
    "ragged starts": (lambda: positions(LINE, [[1.0], [2.0, 3.0]], [2], 2, 0), "x0", "shape (1,)"),
    "complex start": (lambda: positions(LINE, [1j], [2], 3, 0), "x0", "shape (1,)"),
    "no times": (lambda: positions(LINE, [1.0], [], 3, 0), "at", "a list of steps"),
    "no substeps": (lambda: positions(LINE, [1.0], [2], 3, 0, substeps=0), "substeps", "at least 1"),
    "no domain": (lambda: first_exits(LINE, [0.0], (-1, 1), 9, 3, 0), "domain", "must be a Domain"),
    "points in words": (lambda: ball([0.0], 1).contains("a"), "points", "numbers"),
    "scale in words": (lambda: additive(lambda x: x @ x, scale="a"), "scale", "a number or"),
    "ragged data": (lambda: finite_sum(lambda x, z: x[0], [[1], [2, 3]], 1), "data", "one length"),
    "NaN start": (lambda: moments(LINE, [np.nan], 2), "start", "finite"),
    "NaN start, atoms": (lambda: enumerate_law(COIN, [np.nan], 2), "start", "finite"),
    "NaN start, weak": (lambda: weak(start=[np.nan]), "start", "finite"),
    "place in words": (lambda: transfer_operator(LINE, "ab"), "interval", "(lower, upper)"),
    "no place": (lambda: transfer_operator(LINE, None), "interval", "(lower, upper)"),
    "start outside": (lambda: exit_time(OPERATOR, [2.0]), "start", "inside the domain"),
    "start outside, map": (
        lambda: exit_time_map(LINE, (-1, 1), [0.1], [1], 5.0), "start", "inside the interval"
    ),
    "empty map": (lambda: exit_time_map(LINE, (-1, 1), [], [1], 0), "learning_rates", "empty"),
    "phi of one point": (
        lambda: expectation(transfer_operator(LINE, (-9, 9)), lambda x: x[0], [0.0], 5),
        "phi", "points (m, d) to (m,)",
    ),
    "one learning rate": (lambda: weak(learning_rates=0.1), "learning_rates", "at least two"),
    "phi of many values": (lambda: weak(phi=lambda x: jnp.stack([x, x])), "phi", "one real number"),
    "phi in NumPy": (lambda: weak(phi=lambda x: np.sin(x[0])), "phi", "in jax.numpy"),
    "phi with a branch": (lambda: weak(phi=python_branch), "phi", "without Python branches"),
    "no phi": (lambda: weak(phi=None), "phi", "must be a function"),
    "domain of another space": (
        lambda: validity(LINE, ball([0.0, 0.0], 1.0), minimum=[0.0]), "region", "dimension 1"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused_in_one_line(what):
    call, key, remedy = REFUSED[what]
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert text.startswith(key), text
    assert "\n" not in text
    assert remedy in text, text
