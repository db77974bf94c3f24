"""Diffusions with noise in some directions, or nowhere at some points: solved, or refused with why."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from batchwell import InputError, diffusion
from batchwell.law import exit_time, generator
from batchwell.law.generator import evolve

BOX = ((-1.0, -1.0), (1.0, 1.0))
ROOT = math.sqrt(0.5)


def along_x0(drift):
    return diffusion(drift, lambda x: jnp.array([[ROOT], [0.0]]), 2)


def test_a_direction_that_only_contracts_changes_nothing():
    """T7 in x0; x1 has no noise and moves inwards."""
    flow = along_x0(lambda x: jnp.stack([-x[0], -0.3 * x[1]]))
    out = exit_time(generator(flow, BOX, nodes=64), [0.0, 0.4])
    assert out.value == pytest.approx(4.50160241622907, rel=2e-4)


def test_time_as_a_coordinate_ends_the_watch():
    """dx1 = dt: the exit time is min(tau, 1 - x1), whose mean is the integral of the survival."""
    flow = along_x0(lambda x: jnp.stack([-x[0], jnp.ones_like(x[0])]))
    start = 1 / 64
    line = generator(diffusion(lambda x: -x, lambda x: ROOT * jnp.eye(1), 1), (-1, 1), 128)
    t, w = np.polynomial.legendre.leggauss(12)
    ends = (1 - start) / 2 * (t + 1)
    alive = [line.at([0.0], evolve(line, np.ones(line.size), s)) for s in ends]
    truth = (1 - start) / 2 * float(w @ alive)
    op = generator(flow, ((-1, 0), (1, 1)), nodes=128)
    out = exit_time(op, [0.0, start])
    assert abs(out.value - truth) < 2 * out.stderr + 1e-4
    # Unextrapolated first-order differences are far off: the order is declared right.
    assert op.order == 1
    assert abs(op.at([0.0, start], op.solve(np.ones(op.size))) - truth) > 1e-4


def test_noise_that_vanishes_at_a_point_lets_drift_through():
    """dX = dt + |X|/2 dW leaves (-1, 1) above: E tau = 1 - x exactly, as X - t is a martingale."""
    flow = diffusion(lambda x: 1.0 + 0.0 * x, lambda x: 0.5 * jnp.abs(x)[:, None], 1)
    op = generator(flow, (-1, 1))
    assert exit_time(op, [-0.5]).value == pytest.approx(1.5, abs=1e-3)
    assert exit_time(op, [0.5]).value == pytest.approx(0.5, abs=1e-3)
    rough = generator(flow, (-1, 1), 64)
    law = rough.weights / rough.weights.sum()
    assert rough.solve_transposed(law).sum() == pytest.approx(
        law @ rough.solve(np.ones(rough.size))
    )


def test_a_trap_is_never_left_and_says_where():
    flow = diffusion(lambda x: -x, lambda x: jnp.array([[0.2], [0.0]]) * x[0], 2)
    out = exit_time(generator(flow, BOX, nodes=32), [0.5, 0.5])
    assert out.value == math.inf
    assert "no noise leads out" in out.notes[0]


def test_noise_across_the_axes_in_one_direction_is_refused():
    flow = diffusion(lambda x: -x, lambda x: jnp.array([[0.5], [0.3]]), 2)
    with pytest.raises(InputError, match="turn the coordinates"):
        generator(flow, BOX, nodes=32)
