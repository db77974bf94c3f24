"""Saddles, stationary points, trees, volumes, sharpness: held to landscapes that are known.

Statistical budget: the shares of two boxes at 4 standard errors (6e-5 each), and Hutchinson's trace
at 4 (6e-5). All else is exact.
"""

import itertools
import math

import numpy as np
import pytest

import batchwell as bw
from batchwell._jax import jax, jnp
from batchwell.errors import Divergence, InputError
from batchwell.landscape import (
    NOWHERE,
    UNDECIDED,
    UNLISTED,
    Passage,
    basin_volumes,
    disconnectivity_tree,
    explained,
    explore,
    extended,
    find_minima,
    find_saddles,
    generalisation,
    quench,
    relisted,
    sharpness,
    stationary_points,
    survey,
    with_explored,
)
from batchwell.landscape.borders import borders
from batchwell.studies.landscape_store import read_survey, survey_arrays
from batchwell.symmetry import NONE


def known(name: str) -> dict[str, np.ndarray]:
    return {k.question: np.array(k.value) for k in bw.problem(name).known}


def rows(points) -> np.ndarray:
    """(n, d + 1): coordinates and loss, in the order of the first coordinate."""
    out = np.array([[*p.x, p.loss] for p in points])
    return out[np.argsort(out[:, 0])]


def sort(table: np.ndarray) -> np.ndarray:
    return table[np.argsort(table[:, 0])]


GRIDS = {
    "mueller-brown": np.stack(
        np.meshgrid(np.linspace(-1.3, 1, 12), np.linspace(-0.3, 1.8, 12)), -1
    ),
    "himmelblau": np.stack(np.meshgrid(np.linspace(-4, 4, 12), np.linspace(-4, 4, 12)), -1),
}


@pytest.mark.parametrize("name", GRIDS)
def test_stationary_points_of_known_surfaces_to_eight_digits(name):
    answers, loss = known(name), bw.problem(name).loss
    points = stationary_points(loss, GRIDS[name].reshape(-1, 2))
    for index, question in enumerate(("minima", "saddles")):
        found = [p for p in points if p.index == index]
        # Mueller & Brown's surface also has stationary points far out, where it is all but flat.
        found = [p for p in found if np.abs(p.x).max() < 5]
        np.testing.assert_allclose(rows(found), sort(answers[question]), atol=1e-8)
        assert not any(p.degenerate for p in found)
    if name == "himmelblau":
        (top,) = (p for p in points if p.index == 2)
        np.testing.assert_allclose([*top.x, top.loss], answers["maximum"], atol=1e-8)
        assert len(points) == 9


@pytest.mark.parametrize("name", GRIDS)
def test_saddles_between_minima_are_all_found_with_their_ends(name):
    answers, problem = known(name), bw.problem(name)
    found = find_minima(problem.loss, GRIDS[name][::3, ::3].reshape(-1, 2))
    np.testing.assert_allclose(rows(found.minima), sort(answers["minima"]), atol=1e-8)
    saddles = find_saddles(found)
    np.testing.assert_allclose(rows(saddles), sort(answers["saddles"]), atol=1e-8)
    for saddle in saddles:
        assert saddle.joins
        assert saddle.gradient_norm < 1e-9
        hessian = np.asarray(problem.loss.hessian(saddle.x))
        np.testing.assert_allclose(np.linalg.eigvalsh(hessian), saddle.eigenvalues, rtol=1e-8)
        image = hessian @ saddle.direction
        np.testing.assert_allclose(image, saddle.eigenvalues[0] * saddle.direction, atol=1e-7)
        # The direction points to the second end.
        kick = 1e-3 * saddle.direction
        sides = quench(problem.loss, [saddle.x - kick, saddle.x + kick], found.attractors)
        reached = sides.attractors.centers[sides.labels]
        for side, end in enumerate(saddle.ends):
            np.testing.assert_allclose(reached[side], found.minima[end].x, atol=1e-8)
            np.testing.assert_allclose(saddle.end_points[side], found.minima[end].x, atol=1e-8)


def test_product_wells_stationary_points_are_counted():
    problem, answers = bw.problem("product-wells"), known("product-wells")
    grid = np.array(list(itertools.product([-1.2, -0.3, 0.05, 0.4, 1.3], repeat=3)))
    points = stationary_points(problem.loss, grid)
    assert len(points) == answers["number of stationary points"] == 27
    for index in range(4):
        assert sum(p.index == index for p in points) == math.comb(3, index) * 2 ** (3 - index)
    landscape = find_minima(problem.loss, [p.x for p in points if p.index == 0])
    saddles = find_saddles(landscape, neighbours=7)
    assert len(saddles) == answers["number of saddles"] == 12
    assert sorted({round(s.loss, 10) for s in saddles}) == [0.25, 0.3125, 0.375]
    # Each pass changes the sign of one coordinate.
    for saddle in saddles:
        a, b = (landscape.minima[k].x for k in saddle.ends)
        assert np.sum(np.sign(a) != np.sign(b)) == 1


def test_the_tree_of_product_wells_merges_at_its_barriers():
    problem = bw.problem("product-wells")
    corners = np.array(list(itertools.product([-1.0, 1.0], repeat=3)))
    landscape = find_minima(problem.loss, corners)
    saddles = find_saddles(landscape, neighbours=7)
    tree = disconnectivity_tree(landscape, saddles)
    for i, j in itertools.combinations(range(8), 2):
        differ = landscape.minima[i].x * landscape.minima[j].x < 0
        # The least way flips one coordinate at a time: its height is that of the hardest flip.
        want = 0.25 * (1 + 0.25 * np.flatnonzero(differ).max())
        assert tree.heights[i, j] == pytest.approx(want, abs=1e-10)
        assert tree.barrier(i, j) == pytest.approx(want, abs=1e-10)
    assert [round(b.height, 6) for b in tree.branches] == [0.25] * 4 + [0.3125] * 2 + [0.375]
    assert sorted(tree.order()) == list(range(8))
    # Control: without the lowest saddles the heights are higher.
    poorer = disconnectivity_tree(landscape, [s for s in saddles if s.loss > 0.26])
    assert poorer.heights.max() == np.inf
    assert poorer.branches[-1].saddle is None


def test_the_trees_leaves_and_barriers_of_himmelblau():
    problem = bw.problem("himmelblau")
    landscape = find_minima(problem.loss, GRIDS["himmelblau"][::3, ::3].reshape(-1, 2))
    tree = disconnectivity_tree(landscape, find_saddles(landscape))
    lowest = sorted(known("himmelblau")["saddles"][:, 2])[:3]
    np.testing.assert_allclose([b.height for b in tree.branches], lowest, atol=1e-8)
    assert tree.branches[0].parts == tuple(
        sorted(tree.branches[0].parts)
    )  # two leaves, by their index
    assert max(tree.branches[0].parts) < 4


def test_two_basins_are_what_they_are_said_to_be():
    problem = bw.problem("two-basins")
    found = find_minima(problem.loss, [[-1.3], [0.6]])
    assert [m.lambda_max for m in found.minima] == pytest.approx([0.8, 3.2], abs=1e-8)
    (saddle,) = find_saddles(found)
    answers = known("two-basins")
    np.testing.assert_allclose([*saddle.x, saddle.loss], answers["saddles"][0], atol=1e-8)
    assert len(saddle.eigenvalues) == 1
    for answer in problem.known:
        if answer.question.startswith("stationary share"):
            eps = answer.settings["temperature"]
            x = np.linspace(-8, 8, 160_001)
            weight = np.exp(-2 * np.asarray(jnp.vectorize(problem.loss.mean, signature="(1)->()")(
                jnp.asarray(x[:, None]))) / eps)  # fmt: skip
            got = weight[x < saddle.x[0]].sum() / weight.sum()
            assert got == pytest.approx(answer.value, abs=1e-4)
            # Control: half the exponent, exp(-F / eps), is another share.
            half = np.sqrt(weight)
            assert abs(half[x < saddle.x[0]].sum() / half.sum() - answer.value) > 1e-3


def test_volumes_of_boxes_are_shares_with_intervals():
    problem = bw.problem("two-basins")
    found = find_minima(problem.loss, [[-1.3], [0.6]])
    border = known("two-basins")["saddles"][0][0]
    flat, sharp = basin_volumes(found, 2000, low=[-1.0], high=[1.0], seed=3)
    want = (border + 1) / 2
    assert abs(flat.value - want) < 4 * math.sqrt(want * (1 - want) / 2000)
    assert flat.value + sharp.value == 1
    assert flat.interval[0] < want < flat.interval[1]
    inside = basin_volumes(found, 50, center=[1.0], radius=0.5)
    assert [v.value for v in inside] == [0, 1]
    with pytest.raises(InputError, match="must be a box or a ball"):
        basin_volumes(found, 10)
    with pytest.raises(InputError, match="high = "):
        basin_volumes(found, 10, low=[1.0], high=[0.0])


def test_sharpness_of_a_quadratic_in_closed_form():
    curvature = np.array([0.1, 1.0, 4.0])
    loss = bw.additive(lambda x: jnp.sum(jnp.asarray(curvature) * x**2) / 2, dim=3)
    s = sharpness(loss, np.zeros(3), radius=0.5, scale=1.0)
    assert s.lambda_max == pytest.approx(4.0)
    assert s.trace.value == pytest.approx(5.1)
    assert s.effective_dimension.value == pytest.approx(0.1 / 1.1 + 0.5 + 0.8)
    assert s.worst_increase == pytest.approx(0.5 * 4 * 0.25)
    with pytest.raises(InputError, match="radius = "):
        sharpness(loss, np.zeros(3), radius=0.0)


def test_sharpness_of_many_parameters_from_products_alone():
    dim = 600
    curvature = np.geomspace(1e-3, 2.0, dim)
    # A rotation keeps the diagonal from being the spectrum.
    u = np.random.default_rng(84).standard_normal(dim)
    u /= np.linalg.norm(u)

    def turn(x):
        return x - 2 * jnp.asarray(u) * jnp.dot(jnp.asarray(u), x)

    loss = bw.additive(lambda x: jnp.sum(jnp.asarray(curvature) * turn(x) ** 2) / 2, dim=dim)
    s = sharpness(loss, np.zeros(dim), radius=1.0, scale=0.1)
    assert s.lambda_max == pytest.approx(2.0, rel=1e-6)
    assert s.worst_increase == pytest.approx(1.0, rel=1e-3)
    exact = np.sum(curvature / (curvature + 0.1))
    for got, want in ((s.trace, curvature.sum()), (s.effective_dimension, exact)):
        assert abs(got.value - want) < 4 * got.stderr + 1e-3 * want
        assert got.stderr < 0.05 * want
    # Control: the trace is not d times the largest eigenvalue.
    assert abs(s.trace.value - dim * 2.0) > 4 * s.trace.stderr


def test_ends_that_no_search_listed_are_said_and_listed_later():
    problem = bw.problem("himmelblau")
    partial = find_minima(problem.loss, [[3.0, 2.0], [3.5, -1.8]])
    assert len(partial.minima) == 2
    saddles = find_saddles(partial, softest=2)
    assert any(UNLISTED in s.ends for s in saddles)
    points = np.concatenate([s.end_points for s in saddles])
    more = extended(partial, points[np.isfinite(points).all(axis=1)])
    assert len(more.minima) > 2
    assert all(min(s.ends) >= 0 for s in relisted(saddles, more))
    assert sorted(m.label for m in more.minima) == list("ACDE")[: len(more.minima)]


def test_a_descent_that_reaches_no_minimum_ends_nowhere():
    # One minimum at 0, a pass at 2, and beyond it a slope that flattens for ever.
    loss = bw.additive(lambda x: x[0] ** 2 * jnp.exp(-x[0]))
    (saddle,) = find_saddles(find_minima(loss, [[0.1]]))
    assert saddle.x == pytest.approx([2.0], abs=1e-8)
    assert saddle.ends == (0, NOWHERE)
    assert not saddle.joins
    assert np.isnan(saddle.end_points[1]).all()
    # The direction points to the second end, down the slope.
    assert saddle.direction == pytest.approx([1.0])


def test_exploration_finds_minima_that_starts_missed():
    problem = bw.problem("mueller-brown")
    found = find_minima(problem.loss, [[-0.56, 1.44]])
    sgd = bw.SGD(problem.loss, 0.02, 1)
    seen = explore(sgd, found, np.tile(found.minima[0].x, (16, 1)), steps=6000, every=20, seed=2)
    assert len(with_explored(found, seen).minima) == 3
    assert seen.points.shape == (len(seen.transitions), 2, 2)
    for (a, b), (before, after) in list(zip(seen.transitions, seen.points, strict=True))[:5]:
        labels = quench(problem.loss, [before, after], seen.attractors).labels
        assert labels.tolist() == [a, b]


WELL = bw.additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4)  # far out too steep for any learning rate


def test_a_path_that_diverges_while_exploring_is_named_and_the_others_kept():
    found = find_minima(WELL, [[-0.5], [0.5]])
    sgd = bw.SGD(WELL, 0.3, 2)
    starts = [[-1.0]] * 8
    kept = explore(sgd, found, starts, steps=400, every=10, seed=1)
    seen = explore(sgd, found, [*starts, [30.0]], steps=400, every=10, seed=1)
    # What the others do is the same to the bit, and their crossings lead somewhere.
    assert np.array_equal(seen.labels[:, :8], kept.labels)
    assert np.array_equal(seen.points, kept.points)
    assert len(kept.transitions) > 0
    assert (seen.labels[1:, 8] == UNDECIDED).all()
    (lost,) = seen.diverged
    assert (lost.path, lost.batch_size, lost.learning_rate) == (8, 2, 0.3)
    # The step: from 30, x falls by .3 x^3 (noise is nothing beside it), past 3.1e9 in two steps.
    x, steps = 30.0, 0
    while abs(x) <= 1e8 * (1 + 30.0):
        x -= 0.3 * (x**3 - x)
        steps += 1
    assert lost.step == steps == 2
    (note,) = with_explored(found, seen).notes
    assert f"(batch size 2, learning rate 0.3), path 8 (at step {steps}) diverged" in note
    # Negative control: nothing is named where nothing diverged.
    assert kept.diverged == ()
    assert with_explored(found, kept).notes == ()


def test_where_all_exploring_paths_diverge_the_search_says_so():
    found = find_minima(WELL, [[-0.5], [0.5]])
    words = r"all 2 .*batch size 2, learning rate 0.3.*path 0 \(at step \d+\), path 1 .*lower the"
    with pytest.raises(Divergence, match=words) as error:
        explore(bw.SGD(WELL, 0.3, 2), found, [[30.0], [-30.0]], steps=100, every=10)
    assert "\n" not in str(error.value)


def test_a_survey_goes_on_without_the_paths_that_diverged():
    # Starts in a third well whose floor is too sharp for this learning rate: SGD cannot stay.
    sharp = lambda x: 60.0 * (x[0] - 6) ** 2 - 5.0  # noqa: E731
    well = lambda x: (x[0] ** 2 - 1) ** 2 / 4  # noqa: E731
    loss = bw.additive(lambda x: jnp.where(x[0] < 3, well(x), sharp(x)))
    done = survey(bw.SGD(loss, 0.3, 1), [[-0.5], [0.5], [6.1]], steps=400, every=10, seed=1)
    (lost,) = done.landscape.diverged
    assert lost.path == 2
    # A study's run directory keeps it.
    again, _, _ = read_survey(loss, NONE, *survey_arrays(done))
    assert again.diverged == (lost,)
    assert len(done.landscape.minima) == 3
    assert done.explained == (1, 0, 1)


def test_a_survey_joins_what_sgd_crossed():
    problem = bw.problem("himmelblau")
    done = survey(bw.SGD(problem.loss, 0.2, 1), [[3.0, 2.0]], steps=3000, every=20, seed=3, paths=8)
    joined, _, seen = done.explained
    assert seen >= 1
    assert joined == seen
    assert all(passage.times > 0 for passage in done.crossed.values())


def test_a_crossing_without_a_pass_of_its_own_is_explained_by_lower_passes_around():
    # Himmelblau's four minima lie in a ring of four passes: none joins those that face each other.
    problem = bw.problem("himmelblau")
    found = find_minima(problem.loss, GRIDS["himmelblau"][::3, ::3].reshape(-1, 2))
    saddles = find_saddles(found)
    tree = disconnectivity_tree(found, saddles)
    joined = {tuple(sorted(s.ends)) for s in saddles}
    across = next((i, j) for i in range(4) for j in range(i) if (j, i) not in joined)
    pair, over = (across[1], across[0]), tree.heights[across]
    assert explained({pair: Passage(3, over + 1e-9)}, found, saddles) == (0, 1, 1)
    # Negative controls: crossed below the passes around; of unknown height; over to an own image.
    assert explained({pair: Passage(3, over - 1e-9)}, found, saddles) == (0, 0, 1)
    assert explained({pair: Passage(3)}, found, saddles) == (0, 0, 1)
    assert explained({(1, 1): Passage(1, 1e9)}, found, saddles) == (0, 0, 1)
    assert explained({min(joined): Passage(1)}, found, saddles) == (1, 0, 1)


def test_borders_lie_between_basins():
    problem = bw.problem("himmelblau")
    found = find_minima(problem.loss, GRIDS["himmelblau"][::3, ::3].reshape(-1, 2))
    ends = np.array([m.x for m in found.minima])
    first, second = borders(found, ends[[0, 1, 2]], ends[[1, 2, 3]])
    own = [m.attractor for m in found.minima]
    assert quench(problem.loss, first, found.attractors).labels.tolist() == own[:3]
    assert (quench(problem.loss, second, found.attractors).labels != own[:3]).all()
    gaps = np.linalg.norm(second - first, axis=1) / np.linalg.norm(ends[:3] - ends[1:], axis=1)
    assert gaps == pytest.approx(2.0**-12)


def test_generalisation_is_a_rank_correlation_with_an_interval_and_may_be_no():
    problem = bw.problem("himmelblau")
    found = find_minima(problem.loss, GRIDS["himmelblau"][::3, ::3].reshape(-1, 2))
    curvature = jax.hessian(problem.loss.mean)
    tests = {
        "sharp is worse": bw.additive(lambda x: jnp.trace(curvature(x)) ** 2, dim=2),
        "sharp is better": bw.additive(lambda x: -jnp.trace(curvature(x)), dim=2),
        "unrelated": bw.additive(lambda x: jnp.sin(40 * x[0]), dim=2),
    }
    done = generalisation(found, tests)
    worse, better = (done.correlations["trace", k] for k in ("sharp is worse", "sharp is better"))
    assert (worse.value, better.value) == (pytest.approx(1.0), pytest.approx(-1.0))
    assert worse.interval[0] <= 1 <= worse.interval[1]
    assert "no measurably" in done.verdict("unrelated", "trace")
    assert "have a lower sharp is worse" in done.verdict("sharp is worse", "trace")
    assert "have a higher sharp is better" in done.verdict("sharp is better", "trace")
    with pytest.raises(InputError, match="other = 1"):
        generalisation(found, {"other": bw.additive(lambda x: x[0])})


def test_wrong_pairs_are_refused():
    problem = bw.problem("two-basins")
    found = find_minima(problem.loss, [[-1.3], [0.6]])
    with pytest.raises(InputError, match="pairs = "):
        find_saddles(found, [([0.0, 1.0], [1.0, 2.0])])
    with pytest.raises(InputError, match="neighbours = -1"):
        find_saddles(found, neighbours=-1)


def test_minima_and_saddles_of_many_parameters_from_products_alone(monkeypatch):
    """A double well along a hidden direction among 300 parameters, coupled to the others."""
    dim = 230
    u = np.random.default_rng(85).standard_normal(dim)
    mirror, curvature = (
        jnp.asarray(u / np.linalg.norm(u)),
        jnp.asarray(np.geomspace(0.1, 2, dim - 1)),
    )

    def surface(x):
        y = x - 2 * mirror * jnp.dot(mirror, x)
        return (y[0] ** 2 - 1) ** 2 / 4 + jnp.dot(curvature, (y[1:] - 0.05 * y[0] ** 2) ** 2) / 2

    loss = bw.additive(surface, dim=dim, scale=np.eye(dim)[:, :2])
    # Not one Hessian is formed.
    monkeypatch.setattr(type(loss), "hessian", lambda self, x: pytest.fail("a dense Hessian"))
    starts = 0.5 * np.random.default_rng(86).standard_normal((4, dim))
    found = find_minima(loss, starts)
    assert len(found.minima) == 2
    assert found.undecided == 0
    for m in found.minima:
        assert m.loss == pytest.approx(0, abs=1e-12)
        # In y: 2 + .01 sum(c) at the well's own entry, c elsewhere; a mirror keeps the trace.
        assert m.trace == pytest.approx(2 + (1 + 0.01) * float(curvature.sum()), rel=1e-6)
        assert m.noise_trace == pytest.approx(2)
    (saddle,) = find_saddles(found, softest=0)
    assert saddle.joins
    assert saddle.loss == pytest.approx(0.25, abs=1e-9)
    assert saddle.eigenvalues == pytest.approx([-1.0, 0.1], abs=1e-5)
    assert saddle.gradient_norm < 1e-9


def test_flat_directions_are_said_with_their_remedy():
    ring = bw.additive(lambda x: (x @ x - 1) ** 2 / 4, dim=2)
    with pytest.raises(bw.RunError, match="flat directions"):
        find_minima(ring, [[0.5, 0.2], [-1.0, 1.0]])
    # Weight decay alone does not break a rotation; fixing what it moves does.
    fixed = bw.additive(lambda x: (x @ x - 1) ** 2 / 4)
    assert len(find_minima(fixed, [[0.5], [-0.5]]).minima) == 2


def test_a_loss_without_lower_bound_is_said_to_have_none():
    with pytest.raises(bw.Divergence, match="no lower bound"):
        find_minima(bw.additive(lambda x: x[0]), [[0.0]])


def test_trust_regions_hold_no_saddle():
    """In many dimensions a narrow way out leads over a saddle that random directions miss."""
    dim = 20

    # The valley is bent: along y the well's bottom moves sideways, to a pass at distance 1.
    def surface(x):
        y, rest = x[0], x[1:]
        return 1e-2 * (y**2 / 2 - y**3 / 3) + jnp.sum((rest - y**2) ** 2) / 2

    loss = bw.additive(surface, dim=dim)
    found = quench(loss, [[0.1] + [0.0] * (dim - 1)], max_steps=20_000)
    assert np.linalg.norm(found.attractors.centers[0]) < 1e-8
    # The pass: y = 1, rest = 1.
    pass_ = np.ones(dim)
    assert found.attractors.radii[0] < np.linalg.norm(pass_)
    assert (found.attractors.labels(pass_[None]) == -1).all()
