"""Quench, minima, symmetries and trust regions on landscapes whose basins are known. All exact."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from batchwell.errors import Divergence, InputError, RunError
from batchwell.landscape import (
    UNDECIDED,
    basin,
    classify,
    find_minima,
    landscape_of,
    line_profile,
    polish,
    quench,
    reach,
    shapes,
)
from batchwell.landscape.attractors import Attractors, add_attractor, no_attractors
from batchwell.loss import additive, finite_sum
from batchwell.symmetry import NONE, Symmetry, align, hidden_units

WELL = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4)
# Two wells in the plane; the border is x = 0, approached along a stiff valley.
PLANE = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4 + 4 * x[1] ** 2, dim=2)
# Four wells of a product: basins are the quadrants.
FOUR = additive(lambda x: jnp.sum((x**2 - 1) ** 2) / 4, dim=2)
# A curved one without symmetry, whose basins only integration knows.
CURVED = additive(
    lambda x: (x[0] ** 2 - 1) ** 2 / 4 + 0.15 * x[0] + (x[1] - 0.5 * x[0] ** 2 + 0.3 * x[0]) ** 2,
    dim=2,
)
KNOWN = quench(WELL, [[-1.2], [0.8]]).attractors
PLANE_KNOWN = quench(PLANE, [[-1.2, 0.1], [0.8, 0.1]]).attractors


def flow_end(loss, x: np.ndarray) -> np.ndarray:
    """Where scipy's integrator says that gradient flow from x ends (time 200)."""
    import jax

    gradient = jax.jit(loss.gradient)
    out = solve_ivp(
        lambda _, y: -np.asarray(gradient(y)), (0, 200), x, method="LSODA", rtol=1e-8, atol=1e-10
    )
    return out.y[:, -1]


def test_attractors_are_polished_minima():
    assert KNOWN.centers.ravel() == pytest.approx([-1.0, 1.0], abs=1e-12)
    assert (KNOWN.radii > 0).all()
    # x F'(1 + x) = x^2 (1 + x)(2 + x) stays positive up to the saddle, at distance 1.
    assert (KNOWN.radii < 1).all()


@given(st.lists(st.floats(-3, 3).filter(lambda v: abs(v) > 1e-3), min_size=1, max_size=64))
@settings(max_examples=25)
def test_the_double_wells_basins_are_the_signs(points):
    # Padded to one size so that nothing is compiled twice.
    x = np.resize(np.array(points), (64, 1))
    labels = quench(WELL, x, KNOWN).labels
    np.testing.assert_array_equal(labels, (x.ravel() > 0).astype(int))


def test_points_hard_by_the_border_are_decided():
    tiny = np.array([1e-6, -1e-6, 1e-4, -1e-4] * 16)[:, None]
    np.testing.assert_array_equal(quench(WELL, tiny, KNOWN).labels, tiny.ravel() > 0)


@given(st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=64))
@settings(max_examples=15)
def test_the_basins_in_the_plane_are_the_signs(points):
    x = np.resize(np.array(points), (64, 2))
    x[np.abs(x[:, 0]) < 1e-2, 0] = 0.5
    domain = basin(PLANE, PLANE_KNOWN, own=1)
    np.testing.assert_array_equal(domain.contains(x), x[:, 0] > 0)
    np.testing.assert_array_equal(quench(PLANE, x, PLANE_KNOWN).labels, (x[:, 0] > 0).astype(int))


def test_new_minima_join_the_known_ones():
    x = np.random.default_rng(81).uniform(-2, 2, (64, 2))
    x = x[np.abs(x).min(axis=1) > 1e-2]
    result = quench(FOUR, x)
    assert len(result.attractors) == 4
    reached = result.attractors.centers[result.labels]
    np.testing.assert_allclose(reached, np.sign(x), atol=1e-9)
    again = quench(FOUR, x, result.attractors)
    np.testing.assert_array_equal(again.labels, result.labels)
    assert len(again.attractors) == 4


def test_curved_basins_are_those_of_an_integrator():
    x = np.random.default_rng(82).uniform(-2.5, 2.5, (48, 2))
    result = quench(CURVED, x)
    ends = np.array([flow_end(CURVED, p) for p in x])
    assert len(result.attractors) == 2
    assert set(result.labels) == {0, 1}
    # Starts within 1e-6 of the border would be nobody's fault; these seeds have none.
    np.testing.assert_allclose(result.attractors.centers[result.labels], ends, atol=1e-5)


@pytest.mark.parametrize("loss", [WELL, PLANE, CURVED], ids=["well", "plane", "curved"])
def test_trust_regions_lie_in_their_own_basin(loss):
    rng = np.random.default_rng(83)
    known = quench(loss, rng.uniform(-1.5, 1.5, (16, loss.dim))).attractors
    assert len(known) == 2
    for k in range(2):
        u = rng.standard_normal((12, loss.dim))
        u *= 0.999 * known.radii[k] / np.linalg.norm(u, axis=1, keepdims=True)
        points = known.centers[k] + np.linalg.solve(known.roots[k], u.T).T
        assert (known.labels(points) == k).all()
        # Just outside, the region claims nothing.
        outside = known.centers[k] + np.linalg.solve(known.roots[k], 1.01 * u.T).T
        assert (known.labels(outside) != k).all()
        for point in points:
            np.testing.assert_allclose(flow_end(loss, point), known.centers[k], atol=1e-5)


def test_polish_keeps_minima_only():
    ends = polish(WELL, np.array([[0.9], [-1.1], [0.05]]))
    assert ends[:2].ravel() == pytest.approx([1.0, -1.0], abs=1e-12)
    assert np.isnan(ends[2]).all()  # Newton ends on the saddle there


def test_a_flat_loss_is_refused():
    flat = additive(lambda x: (x[0] - 1) ** 2 / 2 + 0 * x[1], dim=2)
    result = quench(flat, np.random.default_rng(84).standard_normal((4, 2)), max_steps=400)
    assert (result.labels == UNDECIDED).all()
    with pytest.raises(RunError, match="flat directions") as caught:
        landscape_of(flat, NONE, result)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="must be isolated"):
        add_attractor(flat, no_attractors(2), np.array([1.0, 0.0]))


def test_starts_that_run_away_are_named_and_the_others_kept():
    # The flow's error control keeps it finite: it must be caught running away.
    cliff = additive(lambda x: jnp.where(x[0] > 0, -x[0], (x[0] + 1) ** 2))
    found = find_minima(cliff, [[-0.5], [1.0], [-3.0], [2.0]])
    assert [r.point for r in found.runaways] == [1, 3]
    assert all(r.distance > 1e8 for r in found.runaways)
    assert found.labels.tolist() == [0, UNDECIDED, 0, UNDECIDED]
    (minimum,) = found.minima
    assert (minimum.x[0], minimum.starts) == (pytest.approx(-1.0), 2)
    (note,) = found.notes
    assert note.startswith("Of 4 starts, gradient flow from point 1 (past |x| = ")
    assert find_minima(cliff, [[-0.5]]).notes == ()


def test_a_loss_without_any_minimum_diverges_in_one_line():
    with pytest.raises(Divergence, match=r"from point 0 .* of 1 runs away .* no lower bound") as e:
        find_minima(additive(lambda x: -x[0]), [[1.0]])
    assert "\n" not in str(e.value)
    with pytest.raises(InputError, match=r"row 1: .* finite"):
        find_minima(WELL, [[0.5], [math.nan]])


def test_a_quench_that_was_expected_home_names_the_same_runaways():
    cliff = additive(lambda x: jnp.where(x[0] > 0, -x[0], (x[0] + 1) ** 2))
    known = quench(cliff, [[-0.5]]).attractors
    seen = reach(cliff, np.array([[-0.9], [-2.0], [3.0]]), known, 0)
    assert seen.labels.tolist() == [0, 0, UNDECIDED]
    assert [r.point for r in seen.runaways] == [2]


def test_a_loss_that_falls_ever_steeper_has_no_minimum():
    fall = additive(lambda x: -(x[0] ** 3))
    result = quench(fall, [[1.0], [2.0]], max_steps=200)
    assert (result.labels == UNDECIDED).all()
    with pytest.raises(RunError, match="without lower bound"):
        landscape_of(fall, NONE, result)


def test_minima_are_sorted_counted_and_described():
    tilted = finite_sum(
        lambda x, z: (x[0] ** 2 - 1) ** 2 / 4 + 0.1 * x[0] + z * x[0], np.array([1.0, -1.0]), 1
    )
    found = find_minima(tilted, np.array([[0.7], [-0.2], [-1.0], [1.5]]))
    assert [m.label for m in found.minima] == ["A", "C"]
    assert [m.starts for m in found.minima] == [2, 2]
    for m in found.minima:
        x = float(m.x[0])
        assert x**3 - x + 0.1 == pytest.approx(0, abs=1e-12)
        assert m.loss == pytest.approx((x * x - 1) ** 2 / 4 + 0.1 * x)
        assert m.lambda_max == m.lambda_min == m.trace == pytest.approx(3 * x * x - 1)
        assert m.noise_trace == pytest.approx(1.0)
        assert m.alignment == pytest.approx(1.0)
    assert found["A"].lambda_max < found["C"].lambda_max
    assert found["A"].x[0] > 0 > found["C"].x[0]
    assert (found.starts, found.undecided) == (4, 0)
    with pytest.raises(KeyError):
        found["D"]
    rows = shapes(tilted, np.array([found["C"].x]))
    assert rows["loss"][0] == pytest.approx(found["C"].loss)


# Symmetry -----------------------------------------------------------------------------------------

UNITS = hidden_units([[0, 2], [1, 3]])


@given(st.lists(st.floats(-5, 5), min_size=8, max_size=8))
def test_alignment_is_the_best_of_all_moves(values):
    x, reference = np.array(values[:4]), np.array(values[4:])
    moves = []
    for first, second in (([0, 2], [1, 3]), ([1, 3], [0, 2])):
        for s in (1, -1):
            for t in (1, -1):
                y = np.empty(4)
                y[[0, 2]], y[[1, 3]] = s * x[first], t * x[second]
                moves.append(np.linalg.norm(y - reference))
    got = UNITS.distance(x, reference)
    assert got == pytest.approx(min(moves), abs=1e-9)
    assert np.linalg.norm(UNITS.align(x, reference)) == pytest.approx(np.linalg.norm(x))
    np.testing.assert_array_equal(align(NONE, x, reference), x)


def test_without_odd_activation_signs_count():
    even = hidden_units([[0, 2], [1, 3]], odd=False)
    x = np.array([1.0, 5.0, 2.0, 6.0])
    assert even.distance(x[[1, 0, 3, 2]], x) == 0
    assert even.distance(-x, x) > 1
    assert UNITS.distance(-x, x) == 0
    for units in ([[0, 1], [1, 2]], [0, 1]):
        with pytest.raises(InputError, match="units = "):
            hidden_units(units)


def network(w, z):
    """Two tanh units, one input: output sum_j v_j tanh(u_j t)."""
    score = jnp.dot(w[2:], jnp.tanh(w[:2] * z[0]))
    return (score - z[1]) ** 2 / 2 + 1e-2 * jnp.dot(w, w)


@pytest.fixture(scope="module")
def searched():
    t = np.linspace(-2, 2, 9)
    loss = finite_sum(network, (t, np.tanh(2.5 * t) - 0.6 * np.tanh(0.6 * t)), 4)
    starts = np.random.default_rng(85).standard_normal((24, 4))
    return loss, find_minima(loss, starts), find_minima(loss, starts, UNITS)


def test_mirror_images_are_one_minimum(searched):
    loss, plain, found = searched
    assert len(found.minima) < len(plain.minima)
    assert sum(m.starts for m in found.minima) == found.starts - found.undecided
    for i, m in enumerate(found.minima):
        for other in found.minima[i + 1 :]:
            assert UNITS.distance(m.x, other.x) > 1e-3
        for image in (m.x[[1, 0, 3, 2]], m.x * [-1, 1, -1, 1]):
            assert float(loss.mean(image)) == pytest.approx(m.loss)
            assert classify(image[None], found.minima, UNITS).tolist() == [i]
        assert np.linalg.norm(np.asarray(loss.gradient(m.x))) < 1e-9
        assert m.lambda_min > 0
    # Attractors of the plain search all belong to a class of the other.
    assert (classify(plain.attractors.centers, found.minima, UNITS) >= 0).all()


def test_images_share_the_radius_that_was_searched_for_once(searched):
    loss, _, found = searched
    x = found.minima[0].x
    images = [x, x[[1, 0, 3, 2]], x * [-1, 1, -1, 1]]
    known = no_attractors(4)
    for image in images:
        known = add_attractor(loss, known, image)
    assert len(known.measured) == 1
    assert known.radii[0] == known.radii[1] == known.radii[2]
    # Each searched for on its own comes out the same: the radius hangs on no order.
    alone = [add_attractor(loss, no_attractors(4), image).radii[0] for image in images]
    np.testing.assert_allclose(alone, known.radii, rtol=1e-12)
    # Read back from disk, without that memory.
    read = Attractors(known.centers[:1], known.roots[:1], known.radii[:1] / 2)
    assert add_attractor(loss, read, images[2]).radii[1] == known.radii[0] / 2


def test_lines_go_to_the_nearest_image(searched):
    loss, _, found = searched
    x = found.minima[0].x
    image = x[[1, 0, 3, 2]] * [-1, 1, -1, 1]
    s, values = line_profile(loss, x, image, UNITS, points=5)
    assert s.tolist() == [0, 0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(values, found.minima[0].loss, rtol=1e-9)
    _, crossed = line_profile(loss, x, image, NONE, points=5)
    assert crossed[0] == pytest.approx(crossed[-1])
    assert crossed[2] > crossed[0] + 1e-3


def test_wrong_shapes_are_refused():
    with pytest.raises(InputError, match="points = "):
        quench(WELL, [[1.0, 2.0]])
    with pytest.raises(InputError, match="own = 5"):
        basin(WELL, KNOWN, own=5)
    with pytest.raises(InputError, match="points = "):
        basin(WELL, KNOWN, own=0).contains([[1.0, 2.0]])
    assert isinstance(NONE, Symmetry)


@pytest.mark.parametrize("starts", [[], [[1.0, 2.0]], "abc", [[np.inf]], None])
def test_starts_that_are_no_points_are_refused_by_name(starts):
    loss = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4)
    with pytest.raises(InputError, match=r"^starts = .*must") as error:
        find_minima(loss, starts)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"^loss = .*must be a StochasticLoss"):
        find_minima(lambda x: x[0] ** 2, [[1.0]])
    with pytest.raises(InputError, match=r"^first = .*shape"):
        line_profile(loss, [1.0, 2.0], [0.0])
    assert len(find_minima(loss, [0.5]).minima) == 1  # one point is one row
