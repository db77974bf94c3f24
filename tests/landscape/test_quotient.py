"""Continuous symmetries divided out, against orbits that are known. All exact."""

import jax.numpy as jnp
import numpy as np
import pytest

import batchwell as bw
from batchwell.errors import InputError, RunError
from batchwell.landscape import find_minima, find_saddles, sharpness
from batchwell.symmetry import fixing, null_directions, quotient, rescaling

PRODUCT = bw.additive(lambda x: (x[0] * x[1] - 1) ** 2 / 2, dim=2)
HELD = quotient(PRODUCT, rescaling([[0]], [[1]]))
STARTS = [[0.3, 2.0], [-2.0, -0.1], [3.0, 0.2], [-0.5, -1.0]]


def relu_network():
    """Two ReLU units without biases on 6 rows: (in 2 x 2, out 2), scaled freely unit by unit."""
    rng = np.random.default_rng(3)
    inputs = rng.standard_normal((6, 2))
    targets = np.maximum(inputs @ [1.0, 0.5], 0) - np.maximum(inputs @ [-0.7, 1.0], 0) + 0.1

    def loss(w, z):
        hidden = jnp.maximum(w[:4].reshape(2, 2) @ z[0], 0.0)
        return 0.5 * (jnp.dot(w[4:], hidden) - z[1]) ** 2

    return bw.finite_sum(loss, (inputs, targets), 6)


def test_a_product_has_two_orbits_of_minima_and_a_saddle_between():
    with pytest.raises(RunError, match=r"flat directions .*symmetry\.quotient"):
        find_minima(PRODUCT, STARTS)
    found = find_minima(HELD, STARTS)
    assert found.undecided == 0
    assert sorted(m.x.round(9).tolist() for m in found.minima) == [[-1.0, -1.0], [1.0, 1.0]]
    for m in found.minima:
        # H = [[v^2, 2uv - 1], [., u^2]] at u = v = 1: 2 across the orbit, 0 along it.
        assert (m.lambda_max, m.lambda_min, m.trace) == pytest.approx((2.0, 2.0, 2.0))
        assert sharpness(HELD, m.x).trace.value == pytest.approx(2.0)
    (saddle,) = [s for s in find_saddles(found) if s.joins]
    assert saddle.x == pytest.approx([0.0, 0.0], abs=1e-9)
    assert saddle.loss == pytest.approx(0.5)
    assert saddle.eigenvalues[0] == pytest.approx(-1.0)


@pytest.mark.parametrize("strength", [0.2, 1.0])
def test_what_is_found_does_not_depend_on_how_the_slice_is_held(strength):
    held = quotient(relu_network(), rescaling([[0, 1], [2, 3]], [[4], [5]]), strength)
    found = find_minima(held, np.random.default_rng(1).standard_normal((6, 6)))
    free = held.free
    assert found.minima
    for m in found.minima:
        assert np.linalg.norm(np.asarray(free.gradient(jnp.asarray(m.x)))) < 1e-8
        w = m.x
        assert [w[0] ** 2 + w[1] ** 2, w[2] ** 2 + w[3] ** 2] == pytest.approx(list(w[4:] ** 2))
        values = np.linalg.eigvalsh(np.asarray(free.hessian(jnp.asarray(w))))
        assert values[:2] == pytest.approx([0, 0], abs=1e-9)
        assert m.lambda_min == pytest.approx(values[2])
        assert m.lambda_max == pytest.approx(values[-1])
        assert m.loss == pytest.approx(float(free.mean(jnp.asarray(w))))
        # Negative control: on the slice the Hessian is as it is; along the orbit it changes.
        moved = w * np.array([3, 3, 1, 1, 1 / 3, 1])
        other = np.linalg.eigvalsh(np.asarray(free.hessian(jnp.asarray(moved))))
        assert abs(other[-1] / values[-1] - 1) > 0.05
        assert float(free.mean(jnp.asarray(moved))) == pytest.approx(m.loss)
        assert len(null_directions(free, w)) == 2


def test_a_loss_without_the_symmetry_is_refused():
    decay = bw.additive(lambda x: (x[0] * x[1] - 1) ** 2 / 2 + 0.01 * x @ x, dim=2)
    with pytest.raises(InputError, match="no symmetry of this loss"):
        quotient(decay, rescaling([[0]], [[1]]))
    # Weight decay is the other way: it picks a point of each orbit by itself.
    assert len(find_minima(decay, STARTS).minima) == 2
    with pytest.raises(InputError, match="each coordinate once"):
        rescaling([[0, 1]], [[1]])


def test_a_rotation_is_divided_out_by_fixing_what_it_turns_to_zero():
    ring = bw.additive(
        lambda x: (x[:2] @ x[:2] - 1) ** 2 / 4 + 2 * (x[2] - 1) ** 2, dim=3, scale=np.eye(3)[:, :2]
    )
    with pytest.raises(RunError, match="flat directions"):
        find_minima(ring, [[0.5, 0.2, 0.0], [-1.0, 1.0, 0.3]])
    assert abs(null_directions(ring, [0.6, 0.8, 1.0])[0]) == pytest.approx([0.8, 0.6, 0.0])
    held = fixing(ring, [1])
    found = find_minima(held, [[0.5, 0.0], [-1.0, 0.3]])
    assert sorted(m.x.round(9).tolist() for m in found.minima) == [[-1.0, 1.0], [1.0, 1.0]]
    # Sigma = diag(1, 1, 0) without its second row and column.
    assert np.asarray(held.covariance(jnp.array([1.0, 1.0]))) == pytest.approx(np.diag([1.0, 0.0]))
    with pytest.raises(InputError, match=r"distinct and in 0 \.\.\. 2"):
        fixing(ring, [3])
    with pytest.raises(InputError, match="at least one parameter"):
        fixing(ring, [0, 1, 2])


def test_what_is_no_gauge_is_refused_by_name():
    product = bw.additive(lambda x: (x[0] * x[1] - 1) ** 2 / 2, dim=2)
    with pytest.raises(InputError, match=r"^gauge = \[\]: must be a Gauge"):
        quotient(product, [])
