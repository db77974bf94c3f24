"""Simulation: every sampling mode against an obviously right twin on the same random bits, known
laws by simulation, independence of chunks, exits, divergence.

Statistical budget: comparisons at 4 standard errors (6e-5 each) or p-values above 6e-5; 22 of them,
1.4e-3 together. Seeds are fixed. Beside each group stands a process that is wrong by 20 % in its
temperature, or has the wrong order, and that the same comparison rejects.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

from batchwell.domain import Domain, ball, box, half_space
from batchwell.dynamics import SGD, Diffusion, diffusion, diffusion_approximation
from batchwell.ensemble import advance, first_exits, positions, start
from batchwell.ensemble.step import step_of
from batchwell.errors import Divergence, InputError
from batchwell.loss import additive, finite_sum, sampled
from batchwell.metastable import Stage, final_basins, stages
from batchwell.noise import normal_pair
from batchwell.streams import draw_words, path_states

RNG = np.random.default_rng(71)
N = 12
A, Y = RNG.standard_normal((N, 2)), RNG.standard_normal(N)
LEAST = finite_sum(lambda x, z: (jnp.dot(z[0], x) - z[1]) ** 2 / 2, (A, Y), 2)
QUADRATIC = additive(lambda x: x @ x / 2)
COIN = additive(lambda x: x @ x / 2, "rademacher")


def mixed_loss(x, z):
    return (1 + 0.8 * z[0]) * x[0] ** 2 / 2 + z[1] * x[0]


MIXED = sampled(mixed_loss, "gaussian", 1, 2)
# Coins have the same second moments, hence the same diffusions, and four nodes instead of 256.
MIXED_COINS = sampled(mixed_loss, "rademacher", 1, 2)
WELL = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4)
UNIT = ball([0.0], 1.0)
START = np.array([0.7, -0.3])


# The same bits, by hand ---------------------------------------------------------------------------


class Path:
    """One path of SGD in plain Python, drawing words one after the other."""

    def __init__(self, seed: int, path: int, stream: str = "paths") -> None:
        self.rng = path_states(seed, stream, [path])

    def word(self) -> int:
        words, self.rng = draw_words(self.rng, 1)
        return int(words[0, 0])

    def below(self, n: int) -> int:
        return (self.word() * n) >> 32

    def normal_pair(self) -> tuple[float, float]:
        words, self.rng = draw_words(self.rng, 4)
        a, b = normal_pair([words[:, k] for k in range(4)], np)
        return float(a[0]), float(b[0])


def least_gradient(x: np.ndarray, rows: list[int]) -> np.ndarray:
    return np.mean([(A[i] @ x - Y[i]) * A[i] for i in rows], axis=0)


def sgd_twin(sampling: str, size: int, steps: int, path: int, eta: float, mu: float = 0.0):
    """Positions after each step, and the rows of each step."""
    draw, x, velocity = Path(9, path), START.copy(), np.zeros(2)
    order, xs, used = list(range(N)), [], []
    for k in range(steps):
        if sampling == "with_replacement":
            rows = [draw.below(N) for _ in range(size)]
        elif sampling == "without_replacement":
            for i in range(size):
                j = i + draw.below(N - i)
                order[i], order[j] = order[j], order[i]
            rows = order[:size]
        else:
            position = k % (N // size)
            if position == 0:
                for last in range(N - 1, 0, -1):
                    j = draw.below(last + 1)
                    order[last], order[j] = order[j], order[last]
            rows = order[position * size : (position + 1) * size]
        velocity = mu * velocity + least_gradient(x, rows)
        x = x - eta * velocity
        xs.append(x.copy())
        used.append(list(rows))
    return np.array(xs), used


@pytest.mark.parametrize("mu", [0.0, 0.8])
@pytest.mark.parametrize("sampling", ["with_replacement", "without_replacement", "reshuffle"])
def test_sgd_is_its_twin_on_the_same_bits(sampling, mu):
    sgd = SGD(LEAST, 0.1, 4, sampling, mu)
    got = positions(sgd, START, [1, 2, 7, 11], paths=3, seed=9)
    for path in range(3):
        want, used = sgd_twin(sampling, 4, 11, path, 0.1, mu)
        np.testing.assert_allclose(got[:, path], want[[0, 1, 6, 10]], rtol=1e-10, atol=1e-12)
        if sampling != "with_replacement":
            assert all(len(set(rows)) == 4 for rows in used)
        if sampling == "reshuffle":
            for epoch in range(3):
                seen = [row for rows in used[3 * epoch : 3 * epoch + 3] for row in rows]
                assert sorted(seen) == list(range(N))
    # Control: without averaging over the batch the path is another one.
    wrong, _ = sgd_twin(sampling, 4, 11, 0, 0.1 * 4, mu)
    assert np.abs(got[0, 0] - wrong[0]).max() > 1e-3


def test_sgd_with_noise_draws_is_its_twin():
    eta, size = 0.2, 3
    got = positions(SGD(MIXED, eta, size), [0.5], [4], paths=2, seed=9)
    for path in range(2):
        draw, x = Path(9, path), 0.5
        for _ in range(4):
            z = np.array([draw.normal_pair() for _ in range(size)])
            x = x - eta * np.mean((1 + 0.8 * z[:, 0]) * x + z[:, 1])
        assert got[0, path, 0] == pytest.approx(x, rel=1e-11)


def test_the_diffusions_scheme_is_its_twin():
    # Heun in the drift, Ito in the noise, on the multiplicative problem.
    eta, substeps = 0.2, 2
    process = diffusion(
        lambda x: -x - x**3, lambda x: jnp.sqrt(1 + x[:, None] ** 2) * jnp.ones((1, 2)), 1, eta
    )
    got = positions(process, [0.5], [3], paths=2, seed=9, substeps=substeps)
    dt = eta / substeps
    for path in range(2):
        draw, x = Path(9, path), 0.5
        for _ in range(3 * substeps):
            kick = np.sqrt(dt * (1 + x * x)) * sum(draw.normal_pair())
            slope = -x - x**3
            ahead = x + dt * slope + kick
            x = x + dt * (slope - ahead - ahead**3) / 2 + kick
        assert got[0, path, 0] == pytest.approx(x, rel=1e-11)


# Chunks -------------------------------------------------------------------------------------------

PROCESSES = {
    "replacement": SGD(LEAST, 0.1, 4),
    "subset": SGD(LEAST, 0.1, 4, "without_replacement"),
    "epochs": SGD(LEAST, 0.1, 4, "reshuffle", 0.5),
    "diffusion": diffusion_approximation(SGD(LEAST, 0.1, 4), 2),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_results_do_not_depend_on_chunks(name):
    process = PROCESSES[name]
    whole = advance(process, start(process, START, 10, seed=3), 10)
    middle = advance(process, start(process, START, 10, seed=3), 3)
    part = advance(process, start(process, START, [7, 2, 5], seed=3), 10)
    halves, taken = advance(process, middle, 7), advance(process, middle.take([1, 8]), 7)
    assert halves.step == whole.step == 10
    assert taken.paths.tolist() == [1, 8]
    for other, rows in ((part, [7, 2, 5]), (halves, slice(None)), (taken, [1, 8])):
        np.testing.assert_array_equal(other.rng, whole.rng[rows])
        # Random bits are the same; the compiler's vector and scalar logarithms differ by an ulp.
        np.testing.assert_allclose(other.x, whole.x[rows], rtol=1e-13, atol=1e-15)
    np.testing.assert_array_equal(halves.x, whole.x)


def test_seeds_and_streams_give_other_paths():
    ends = [
        positions(QUADRATIC_SGD, [0.0], [5], 4, seed, stream).ravel()
        for seed, stream in ((1, "a"), (2, "a"), (1, "b"))
    ]
    assert len(np.unique(np.concatenate(ends))) == 12


def test_exits_do_not_depend_on_chunks():
    whole = first_exits(QUADRATIC_SGD, [0.0], UNIT, 3000, 12, seed=4)
    part = first_exits(QUADRATIC_SGD, [0.0], UNIT, 3000, [3, 11, 0], seed=4)
    np.testing.assert_array_equal(part.steps, whole.steps[[3, 11, 0]])
    np.testing.assert_array_equal(part.points, whole.points[[3, 11, 0]])
    # A longer watch is the continuation of a shorter one.
    short = first_exits(QUADRATIC_SGD, [0.0], UNIT, 400, 12, seed=4)
    np.testing.assert_array_equal(short.observed, whole.steps <= 400)
    np.testing.assert_array_equal(short.steps, np.minimum(whole.steps, 400))


# Known laws ---------------------------------------------------------------------------------------

QUADRATIC_SGD = SGD(QUADRATIC, 0.2)


def distance(samples: np.ndarray, truth: float) -> float:
    """Distance of a sample mean to `truth` in standard errors."""
    return abs(samples.mean() - truth) / (samples.std() / np.sqrt(samples.size))


def wrong_temperature(process: Diffusion, factor: float = 1.2) -> Diffusion:
    """The same drift with `factor` times the temperature."""
    root = np.sqrt(factor)
    return Diffusion(
        process.dim, process.drift, lambda x: factor * process.tensor(x),
        lambda x, xi: root * process.factor_vector(x, xi), process.noise_dim, process.learning_rate,
    )  # fmt: skip


def second_moment(process, count: int, steps: int, x0: float, substeps: int = 4) -> np.ndarray:
    return positions(process, [x0], [steps], count, seed=5, substeps=substeps)[0, :, 0] ** 2


def test_weak_errors_of_the_quadratic_by_simulation():
    # T1: SGD, orders 1 and 2. 2e5 paths tell all three apart.
    sgd = SGD(QUADRATIC, 0.1)
    truths = (0.1678094622, 0.1785685191, 0.1642442174)
    got = [second_moment(sgd, 200_000, 10, 1.0)]
    got += [second_moment(diffusion_approximation(sgd, k), 200_000, 10, 1.0) for k in (1, 2)]
    table = np.array([[distance(s, t) for t in truths] for s in got])
    assert (np.diag(table) < 4).all(), table
    assert (table[~np.eye(3, dtype=bool)] > 4).all(), table
    wrong = second_moment(wrong_temperature(diffusion_approximation(sgd)), 50_000, 10, 1.0)
    assert distance(wrong, truths[1]) > 4


def test_weak_error_of_least_squares_by_simulation():
    # T3 at eta = .0125.
    rows, targets = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]]), np.array([1.0, -1.0, 2.0])
    loss = finite_sum(lambda x, z: 0.5 * (jnp.dot(z[0], x) - z[1]) ** 2, (rows, targets), 2)

    def losses(process, count):
        x = positions(process, [1.0, 1.0], [80], count, seed=6, substeps=1)[0]
        return ((x @ rows.T - targets) ** 2 / 2).mean(axis=1)

    sgd = SGD(loss, 0.0125)
    chain = losses(sgd, 100_000)
    assert distance(chain, 0.8155641356) < 4
    assert distance(chain, 0.8164431871) > 4  # order 1 is told apart
    first = diffusion_approximation(sgd)
    assert distance(losses(first, 100_000), 0.8164431871) < 4
    assert distance(losses(wrong_temperature(first), 100_000), 0.8164431871) > 4


def test_stationary_covariance_of_a_quadratic_by_simulation():
    # T4.
    hessian, noise = np.array([[2, 0.5], [0.5, 1]]), np.array([[1, -0.4], [-0.4, 0.5]])
    truth = np.array([[0.07365722, -0.0527513], [-0.0527513, 0.08104661]])

    def products(eta, size):
        loss = additive(lambda x: 0.5 * x @ hessian @ x, "gaussian", 2, np.linalg.cholesky(noise))
        x = positions(SGD(loss, eta, size), [0.0, 0.0], [60], 50_000, seed=7)[0]
        return [(x[:, i] * x[:, j], truth[i, j]) for i, j in ((0, 0), (0, 1), (1, 1))]

    assert all(distance(*pair) < 4 for pair in products(0.2, 1))
    assert all(distance(*pair) > 4 for pair in products(0.2, 2))


def test_stationary_variance_under_multiplicative_noise_by_simulation():
    # T5, all three; each must reject the other two. Substeps of eta/8: scheme error below 2e-4;
    # what 24 steps from 0 leave of the start is below 1e-4.
    sgd = SGD(MIXED, 0.2)
    truths = (0.1196172, 0.1068376, 0.0965251)
    coins = SGD(MIXED_COINS, 0.2)
    got = [second_moment(sgd, 20_000, 24, 0.0)]
    got += [second_moment(diffusion_approximation(coins, k), 20_000, 24, 0.0, 8) for k in (1, 2)]
    table = np.array([[distance(s, t) for t in truths] for s in got])
    assert (np.diag(table) < 4).all(), table
    assert (table[~np.eye(3, dtype=bool)] > 4).all(), table
    wrong = second_moment(wrong_temperature(diffusion_approximation(coins)), 20_000, 24, 0.0, 8)
    assert distance(wrong, truths[1]) > 4


def test_coin_noise_is_uniform_and_never_leaves():
    # T6: eta a = 1/2, stationary law uniform on [-1, 1] exactly; the diffusion does leave.
    sgd = SGD(COIN, 0.5)
    x = positions(sgd, [0.0], [60], 20_000, seed=8)[0, :, 0]
    assert np.abs(x).max() <= 1
    assert kstest(x, "uniform", (-1, 2)).pvalue > 6e-5
    assert kstest(x, "norm", (0, np.sqrt(1 / 3))).pvalue < 6e-5  # right variance, wrong law
    edge = box([-1.0 - 1e-12], [1.0 + 1e-12])
    chain = first_exits(sgd, [0.0], edge, 3000, 500, seed=8)
    assert not chain.observed.any()
    assert (chain.steps == 3000).all()
    assert chain.horizon == 3000
    assert first_exits(diffusion_approximation(sgd), [0.0], edge, 3000, 500, seed=8).observed.all()


def test_momentum_has_its_exact_stationary_variance():
    eta, mu = 0.2, 0.7
    step = np.array([[1 - eta, -eta * mu], [1.0, mu]])
    noise = np.outer([-eta, 1.0], [-eta, 1.0])
    truth = np.linalg.solve(np.eye(4) - np.kron(step, step), noise.ravel())[0]
    heavy = second_moment(SGD(QUADRATIC, eta, momentum=mu), 40_000, 80, 0.0)
    assert distance(heavy, truth) < 4
    assert distance(heavy, eta / (2 - eta)) > 4  # that of plain SGD


def test_exit_times_of_the_gaussian_chain():
    # T7: 559.87408 steps at eta = .2.
    exits = first_exits(QUADRATIC_SGD, [0.0], UNIT, 20_000, 4000, seed=9)
    assert exits.observed.all()
    assert distance(exits.steps, 559.87408) < 4
    assert (np.abs(exits.points) >= 1).all()
    assert (exits.steps == exits.steps.round()).all()
    wrong = first_exits(SGD(QUADRATIC, 0.24), [0.0], UNIT, 20_000, 1000, seed=9)
    assert distance(wrong.steps, 559.87408) > 4


# Exits --------------------------------------------------------------------------------------------


def test_first_exits_are_those_of_the_positions():
    paths, horizon = 6, 200
    exits = first_exits(QUADRATIC_SGD, [0.0], ball([0.0], 0.7), horizon, paths, seed=2)
    x = positions(QUADRATIC_SGD, [0.0], range(1, horizon + 1), paths, 2, stream="exits")[:, :, 0]
    for path in range(paths):
        out = np.flatnonzero(np.abs(x[:, path]) >= 0.7)
        assert exits.observed[path] == (out.size > 0)
        step = out[0] + 1 if out.size else horizon
        assert exits.steps[path] == step
        assert exits.points[path, 0] == x[step - 1, path]
    assert 0 < exits.observed.sum() < paths or exits.observed.all()


def test_exits_of_a_diffusion_are_seen_between_steps():
    exits = first_exits(diffusion_approximation(QUADRATIC_SGD), [0.0], UNIT, 400, 64, 2, substeps=8)
    whole = exits.steps[exits.observed] * 8
    assert (whole == whole.round()).all()
    assert (whole % 8 != 0).any()


def test_exits_refuse_what_they_cannot_answer():
    basin = Domain("basin", 1, labels=lambda p: np.zeros(len(p), dtype=int), label=0)
    for call, key in (
        (lambda: first_exits(QUADRATIC_SGD, [0.0], basin, 10, 2, 0), "domain"),
        (lambda: first_exits(QUADRATIC_SGD, [1.5], UNIT, 10, 2, 0), "x0"),
        (lambda: first_exits(QUADRATIC_SGD, [0.0, 0.0], UNIT, 10, 2, 0), "x0"),
        (lambda: first_exits(QUADRATIC_SGD, [np.nan], UNIT, 10, 2, 0), "x0"),
        (lambda: first_exits(QUADRATIC_SGD, [0.0], UNIT, 0, 2, 0), "horizon"),
        (lambda: first_exits(QUADRATIC_SGD, [0.0], half_space([1.0, 0.0], 1.0), 9, 2, 0), "points"),
        (lambda: start(QUADRATIC_SGD, [0.0], 0, 0), "paths"),
        (lambda: start(QUADRATIC_SGD, [0.0], 2, -1), "seed"),
        (lambda: step_of(diffusion_approximation(QUADRATIC_SGD), 0), "substeps"),
        (lambda: positions(QUADRATIC_SGD, [0.0], [3, 1], 2, 0), "at"),
        (lambda: advance(QUADRATIC_SGD, start(QUADRATIC_SGD, [0.0], 2, 0), -1), "steps"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.key == key
        assert "\n" not in str(caught.value)


def test_divergence_names_path_and_step():
    wild = SGD(WELL, 0.9)
    starts = np.array([[0.5], [50.0], [0.4]])
    with pytest.raises(
        Divergence, match=r"path 1 \(1 of 3\) is not finite by step \d+; lower"
    ) as caught:
        advance(wild, start(wild, starts, 3, seed=1), 8)
    assert "\n" not in str(caught.value)
    with pytest.raises(Divergence, match=r"path 7 "):
        first_exits(wild, [50.0], box([-np.inf], [np.inf]), 50, [7], seed=1)
    with pytest.raises(Divergence):
        positions(SGD(QUADRATIC, 2.5), [1.0], [3000], 2, seed=1)


def test_progress_reaches_the_end():
    seen = []
    advance(
        QUADRATIC_SGD, start(QUADRATIC_SGD, [0.0], 2, 0), 100, progress=lambda *a: seen.append(a)
    )
    assert seen[-1] == (100, 100)
    assert [a for a, _ in seen] == sorted(a for a, _ in seen)


# Schedules ----------------------------------------------------------------------------------------


def test_stages_share_the_examples():
    assert stages([2, 8, 32], 960) == (Stage(2, 160), Stage(8, 40), Stage(32, 10))
    with pytest.raises(InputError, match="examples = 10"):
        stages([2, 32], 10)
    with pytest.raises(InputError, match="batch_sizes = "):
        stages([], 10)


def test_each_stage_of_a_schedule_shuffles_its_own_epochs():
    # 12 examples in order: one step amid an epoch must not use the data's own order.
    from batchwell.landscape import find_minima

    pull = finite_sum(lambda x, z: jnp.sum((x - z) ** 2) / 2, np.arange(12.0)[:, None], 1)
    sgd = SGD(pull, 0.5, 4, "reshuffle")
    found = find_minima(pull, [[0.0]])
    captured = []
    import batchwell.metastable.final as module

    original = module.advance

    def spy(process, state, steps, **options):
        out = original(process, state, steps, **options)
        captured.append(out.x.ravel())
        return out

    module.advance = spy
    try:
        final_basins(sgd, [5.5], [Stage(4, 1), Stage(4, 1)], found, paths=40, seed=1)
    finally:
        module.advance = original
    batch_means = 2 * captured[1] - captured[0]
    assert len(np.unique(batch_means.round(9))) > 10
