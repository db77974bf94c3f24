"""Predictions against simulated chains: each sampling mode's own formula, and none of the others'."""

import json
import math
from dataclasses import replace
from functools import lru_cache
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.nn import functional as F

from batchwell.errors import InputError, RunError
from batchwell.estimate import Estimate, sample_mean
from batchwell.training import (
    LocalLoss,
    NoiseSpectrum,
    critical_batch_size,
    equivalent_pairs,
    escape_exponent,
    invariance_limit,
    nearby_minimum,
    noise_spectrum,
    predictions,
    saddle_escape_steps,
    score,
    stationary_loss,
    temperature,
)
from batchwell.training.epochs import epoch_sizes, excess, gathered
from batchwell.training.noise import SAMPLING_MODES

D, N = 6, 24


class Offset(nn.Module):
    """Examples pull at one point: f_i(x) = (x - z_i)^T H (x - z_i) / 2, constant noise exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(D, dtype=torch.float64))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.x - z


def pieces(values: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((D, D)))[0]
    z = 2 * rng.standard_normal((N, D))
    return basis @ np.diag(values) @ basis.T, z - z.mean(0)


BOWL, SADDLE = (3.0, 1.5, 0.8, 0.3, 0.1, 0.05), (2.0, 1.0, 0.5, 0.4, 0.3, -0.6)


@lru_cache(maxsize=4)
def quadratic(values: tuple[float, ...]) -> LocalLoss:
    hessian, z = (torch.tensor(v) for v in pieces(values))
    return LocalLoss(Offset(), lambda m, b: 0.5 * ((m(b) @ hessian) * m(b)).sum(1), [z])


@lru_cache(maxsize=4)
def bowl() -> NoiseSpectrum:
    return noise_spectrum(quadratic(BOWL), top=2, starts=16, steps=4)


def indices(mode: str, b: int, paths: int, rng: np.random.Generator) -> Any:
    """Batches (paths, b) for ever."""
    while True:
        if mode == "with_replacement":
            yield rng.integers(0, N, (paths, b))
            continue
        order = rng.permuted(np.tile(np.arange(N), (paths, 1)), axis=1)
        for k in range(N // b if mode == "reshuffle" else 1):
            yield order[:, k * b : (k + 1) * b]


@lru_cache(maxsize=16)
def hovering(mode: str, eta: float, b: int, paths: int = 400, epochs: int = 60) -> Estimate:
    """Mean excess loss over epochs after as many for settling; paths are independent."""
    hessian, z = pieces(BOWL)
    rng = np.random.default_rng(7)
    batches, length = indices(mode, b, paths, rng), N // b
    # Started from the prediction's own law in the slow directions would be circular: wait instead.
    x, total = np.zeros((paths, D)), np.zeros(paths)
    for k in range(8 * epochs * length):
        if k >= 7 * epochs * length:
            total += 0.5 * np.einsum("pi,ij,pj->p", x, hessian, x)
        x = x - eta * (x - z[next(batches)].mean(1)) @ hessian
    return sample_mean(total / (epochs * length), "loss")


@pytest.mark.parametrize(("eta", "b"), [(0.3, 4), (0.5, 8)])
@pytest.mark.parametrize("mode", SAMPLING_MODES)
def test_each_sampling_mode_has_its_own_stationary_loss(mode: str, eta: float, b: int) -> None:
    """4 standard errors; 6 comparisons: false alarm 4e-4."""
    came = hovering(mode, eta, b)
    for other in SAMPLING_MODES:
        predicted = stationary_loss(bowl(), eta, b, other)
        z = (predicted.value - came.value) / math.hypot(predicted.stderr, came.stderr)
        assert (abs(z) < 4) == (other == mode), (other, z)


def test_the_spectrum_s_draws_agree_with_all_directions() -> None:
    whole = noise_spectrum(quadratic(BOWL), top=D)
    for mode in SAMPLING_MODES:
        exact, drawn = (stationary_loss(s, 0.3, 4, mode) for s in (whole, bowl()))
        assert exact.stderr == 0
        assert abs(drawn.value - exact.value) <= 4 * drawn.stderr < 0.01 * exact.value
    hessian, z = pieces(BOWL)
    assert whole.noise_trace == pytest.approx(np.trace(hessian @ (z.T @ z / N) @ hessian))


def test_small_steps_forget_curvature_and_epochs_gain_two_orders() -> None:
    """(eta c / 4) tr Sigma as eta goes to 0; eta^3 at the ends of epochs."""
    whole = noise_spectrum(quadratic(BOWL), top=D)
    eta = 1e-5
    base = stationary_loss(whole, eta, 4, "with_replacement").value
    assert base == pytest.approx(eta / 4 / 4 * whole.noise_trace, rel=1e-4)
    ends = [stationary_loss(whole, e, 4, when="epoch_end").value for e in (1e-3, 2e-3)]
    assert ends[1] / ends[0] == pytest.approx(8, rel=0.02)


@pytest.mark.parametrize("leftover", ["kept", "dropped"])
@pytest.mark.parametrize(("n", "b"), [(5, 2), (6, 2), (5, 4), (4, 4)])
def test_epochs_are_exact_to_the_last_permutation(n: int, b: int, leftover: str) -> None:
    """Against the second moments of all n! orders of one-dimensional data, put through the chain."""
    rng = np.random.default_rng(4)
    z = rng.standard_normal(n)
    z -= z.mean()
    sizes = epoch_sizes(n, b, leftover)
    cuts = np.cumsum(sizes).astype(int)
    orders = np.array(list(permutations(range(n))))[:, : cuts[-1]]
    noises = np.array([part.mean(1) for part in np.split(z[orders], cuts[:-1], axis=1)])
    moments = noises @ noises.T / len(orders)
    eta, curvature = 0.3, 0.7
    growth, steps = 1 - eta * curvature, len(sizes)
    weights = np.array([[growth ** (k - 1 - j) if j < k else 0.0 for j in range(steps)]
                        for k in range(steps + 1)])  # fmt: skip
    parts = eta**2 * np.einsum("ki,ij,kj->k", weights, moments, weights)
    end = parts[-1] / (1 - growth ** (2 * steps))
    average = np.mean([growth ** (2 * k) * end + parts[k] for k in range(steps)])
    for when, variance in (("epoch_end", end), ("average", average)):
        formula = excess(eta, curvature, sizes, n, when) * float(z @ z / n)
        assert formula == pytest.approx(curvature / 2 * variance, rel=1e-10, abs=1e-18)
    shrunk = 1.2 ** -np.arange(1.0, steps + 1)
    sums = shrunk @ moments @ shrunk / (1 - 1.2 ** (-2 * steps))
    assert gathered(0.2, sizes, n) * float(z @ z / n) == pytest.approx(sums, rel=1e-10, abs=1e-18)


def test_examples_left_over_matter() -> None:
    """24 = 4 x 5 + 4: dropped, the epochs' noises no longer sum to zero; kept, the last is larger."""
    whole = noise_spectrum(quadratic(BOWL), top=D)
    kept, dropped = (
        stationary_loss(whole, 0.01, 5, when="epoch_end", leftover=how).value
        for how in ("kept", "dropped")
    )
    assert dropped > 1.2 * kept


def test_before_it_is_settled_the_excess_is_smaller() -> None:
    whole = noise_spectrum(quadratic(BOWL), top=D)
    hessian, z = pieces(BOWL)
    rng, x = np.random.default_rng(1), np.zeros((4000, D))
    for _ in range(4):
        x = x - 0.1 * (x - z[rng.integers(0, N, (4000, 4))].mean(1)) @ hessian
    came = sample_mean(0.5 * np.einsum("pi,ij,pj->p", x, hessian, x), "loss")
    predicted = stationary_loss(whole, 0.1, 4, "with_replacement", steps=4)
    assert abs(predicted.value - came.value) < 4 * came.stderr
    assert predicted.value < 0.9 * stationary_loss(whole, 0.1, 4, "with_replacement").value


def classifier() -> tuple[LocalLoss, np.ndarray, np.ndarray]:
    data = load_breast_cancer()
    x = (data.data - data.data.mean(0)) / data.data.std(0)
    x, y = x[:568, :8], data.target[:568].astype(float)
    model = nn.Linear(8, 1).double()
    pair = (torch.tensor(x), torch.tensor(y))

    def losses(m: nn.Module, b: Any) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(m(b[0])[:, 0], b[1], reduction="none")

    here = LocalLoss(model, losses, [pair], weight_decay=0.05)
    return nearby_minimum(here, tolerance=1e-8), np.column_stack([x, np.ones(568)]), y


@pytest.mark.parametrize("mode", ["with_replacement", "reshuffle"])
def test_logistic_regression_hovers_where_predicted(mode: str) -> None:
    """Real data, where noise does change with the parameters: within 10 %, by an honest margin."""
    local, x, y = classifier()
    spectrum = noise_spectrum(local, top=9)
    eta, b, paths, n = 0.2, 8, 60, 568
    rng = np.random.default_rng(3)
    w = np.tile(local.x, (paths, 1))
    found = np.zeros(paths)
    for epoch in range(30):
        order = rng.permuted(np.tile(np.arange(n), (paths, 1)), axis=1)
        if mode == "with_replacement":
            order = rng.integers(0, n, (paths, n))
        for batch in np.split(order, n // b, axis=1):
            if epoch >= 6:
                m = w @ x.T
                full = np.logaddexp(0, m) - y * m
                found += full.mean(1) + 0.025 * (w**2).sum(1)
            rows = x[batch]
            slope = 1 / (1 + np.exp(-np.einsum("pbi,pi->pb", rows, w))) - y[batch]
            w = w - eta * ((slope[..., None] * rows).mean(1) + 0.05 * w)
    came = sample_mean(found / (24 * n // b) - local.value(), "loss")
    predicted = stationary_loss(spectrum, eta, b, mode)
    assert predicted.value == pytest.approx(came.value, rel=0.1)
    other = {"reshuffle": "with_replacement", "with_replacement": "reshuffle"}[mode]
    assert stationary_loss(spectrum, eta, b, other).value != pytest.approx(came.value, rel=0.1)
    assert not any("not at a stationary" in note for note in predicted.notes)


def regression(b: int, mode: str, eta: float) -> tuple[LocalLoss, float, float]:
    """Least squares: its stationary excess by the chain's exact second moments, and with H for H_i."""
    rng = np.random.default_rng(11)
    n, d = 60, 6
    x = rng.standard_normal((n, d)) * np.geomspace(1, 0.3, d)
    y = x @ rng.standard_normal(d) + 0.5 * rng.standard_normal(n)
    hessian = x.T @ x / n
    best = np.linalg.solve(hessian, x.T @ y / n)
    model = nn.Linear(d, 1, bias=False).double()
    model.weight.data[:] = torch.tensor(best)
    pair = (torch.tensor(x), torch.tensor(y))
    local = LocalLoss(model, lambda m, b: 0.5 * (m(b[0])[:, 0] - b[1]).square(), [pair])
    gradients = (x @ best - y)[:, None] * x
    factor = 1 / b if mode == "with_replacement" else (n - b) / (n - 1) / b
    noise = eta**2 * factor * (gradients.T @ gradients).ravel() / n
    one = np.eye(d) - eta * hessian
    steps = np.zeros((2, d * d, d * d))
    for row in x:  # with all that a batch does, and with its mean alone
        own = eta * (np.outer(row, row) - hessian)
        steps += [np.kron(one, one) / n + factor * np.kron(own, own) / n, np.kron(one, one) / n]
    found = (np.linalg.solve(np.eye(d * d) - step, noise).reshape(d, d) for step in steps)
    whole, frozen = (0.5 * float(np.trace(hessian @ m)) for m in found)
    return local, whole, frozen


@pytest.mark.parametrize("mode", ["with_replacement", "without_replacement"])
@pytest.mark.parametrize(("eta", "b"), [(0.1, 4), (0.3, 3)])
def test_least_squares_hover_exactly_where_predicted(mode: str, eta: float, b: int) -> None:
    local, exact, frozen = regression(b, mode, eta)
    found = stationary_loss(noise_spectrum(local, top=6), eta, b, mode)
    assert found.value == pytest.approx(exact, rel=1e-6)
    assert exact > 1.03 * frozen  # control: one curvature for all would be seen


def test_what_is_not_resolved_is_drawn() -> None:
    """4 standard errors of 200 draws; the part that is drawn is not small against them."""
    eta, b = 0.1, 4
    local, exact, _ = regression(b, "with_replacement", eta)
    spectrum = noise_spectrum(local, top=2, starts=200)
    found = stationary_loss(spectrum, eta, b, "with_replacement")
    assert abs(found.value - exact) < 4 * found.stderr
    without = replace(spectrum, own=replace(spectrum.own, beyond=np.empty(0)))
    less = stationary_loss(without, eta, b, "with_replacement")
    assert abs(less.value - exact) > 4 * found.stderr


def test_finite_steps_with_own_curvature_settle() -> None:
    local, exact, _ = regression(4, "with_replacement", 0.1)
    spectrum = noise_spectrum(local, top=6)
    found = [
        stationary_loss(spectrum, 0.1, 4, "with_replacement", steps=k).value
        for k in (1, 50, 10_000)
    ]
    assert found == sorted(found)
    assert found[0] < 0.1 * exact
    assert found[2] == pytest.approx(exact, rel=1e-6)


def test_own_curvature_bounds_the_learning_rate() -> None:
    """f = (a + b xi) x^2 / 2: stable in mean square below eta = 2 a / (a^2 + b^2)."""
    a, spread = 1.0, 2.0
    slopes = torch.tensor([[a + spread], [a - spread]], dtype=torch.float64)
    pull = torch.tensor([[0.5], [-0.5]], dtype=torch.float64)
    model = nn.Linear(1, 1, bias=False).double()
    model.weight.data[:] = 0.0
    local = LocalLoss(
        model,
        lambda m, b: (0.5 * b[0] * m.weight.square() + b[1] * m.weight)[:, 0],
        [(slopes, pull)],
    )
    spectrum = noise_spectrum(local, top=1)
    limit = 2 * a / (a**2 + spread**2)
    below, above = (
        stationary_loss(spectrum, eta, 1, "with_replacement").value
        for eta in (0.99 * limit, 1.01 * limit)
    )
    assert math.isfinite(below)
    assert above == math.inf
    # Full batches know no noise.
    assert stationary_loss(spectrum, 0.1, 2, "without_replacement").value == 0


def test_flat_directions_leave_a_lower_bound() -> None:
    """What is drawn beyond the resolved directions may be more than a first order can say."""
    local, exact, _ = regression(4, "with_replacement", 0.1)
    spectrum = noise_spectrum(local, top=2)
    wide = replace(spectrum, own=replace(spectrum.own, beyond=1e6 * spectrum.own.beyond))
    found = stationary_loss(wide, 0.1, 4, "with_replacement")
    assert math.isfinite(found.value)
    assert not found.determined
    assert found.interval[0] < exact
    assert any("lower bound" in note for note in found.notes)


def ramp(slope: float = 0.0) -> NoiseSpectrum:
    """The saddle of the library's known answers: lambda = sigma = 1."""
    none = np.empty((0, 0))
    one = np.array([1.0])
    return NoiseSpectrum(
        -one, one, slope * one, none, none, 0 * one, 0.0, slope**2, 1.0, 1.0, 0.0, 10**9, 1
    )


@pytest.mark.parametrize(("eta", "steps"), [(0.1, 23.252648), (0.02, 149.225941)])
def test_saddle_escape_has_the_chain_s_known_answer(eta: float, steps: float) -> None:
    """What is left out is the overshoot's square, 0.6 eta of a step here."""
    (found,) = saddle_escape_steps(ramp(), eta, 1, drop=0.5)
    assert found.value == pytest.approx(steps, abs=eta)
    diffusion = 0.5 * (math.log(4 / eta) + 0.5772157) - eta / 4
    assert abs(diffusion / eta - steps) > 10 * eta


@pytest.mark.parametrize("mode", SAMPLING_MODES)
def test_saddle_escape_of_a_chain_with_data(mode: str) -> None:
    spectrum = noise_spectrum(quadratic(SADDLE), top=D - 1, bottom=1)
    eta, b, drop, paths = 0.05, 4, 400.0, 3000
    hessian, z = pieces(SADDLE)
    vector = np.linalg.eigh(hessian)[1][:, 0]
    pull = 0.6 * (z @ vector)  # of each example along the direction
    batches = indices(mode, b, paths, np.random.default_rng(11))
    x, left = np.zeros(paths), np.zeros(paths)
    level = math.sqrt(2 * drop / 0.6)
    for _ in range(2000):
        inside = abs(x) < level
        if not inside.any():
            break
        left += inside
        step = 0.6 * x - pull[next(batches)].mean(1)
        x = np.where(inside, x + eta * step, x)
    came = sample_mean(left, "steps")
    predicted = saddle_escape_steps(spectrum, eta, b, drop, mode)[0]
    # An epoch's noise is not Gaussian for 6 steps: half a step more.
    assert abs(predicted.value - came.value) < 4 * came.stderr + 0.5
    wrong = {"reshuffle": "with_replacement"}.get(mode, "reshuffle")
    other = saddle_escape_steps(spectrum, eta, b, drop, wrong)[0]
    assert abs(other.value - came.value) > 4 * came.stderr + 0.5


def test_a_saddle_left_on_the_way_is_left_sooner() -> None:
    (found,) = saddle_escape_steps(ramp(slope=0.9), 0.1, 1, drop=0.5)
    rng = np.random.default_rng(0)
    x, steps = np.full(20000, 0.9), np.zeros(20000)
    while (inside := abs(x) < 1).any():
        steps += inside
        x = np.where(inside, 1.1 * x + 0.1 * rng.standard_normal(20000), x)
    # So close to the level the formula's corrections are its whole answer: within one step.
    assert abs(found.value - steps.mean()) < 1
    (deep,) = saddle_escape_steps(ramp(slope=0.9), 0.1, 1, drop=5000.0)
    assert deep.value == pytest.approx(math.log(100 / 0.9) / math.log(1.1) + 0.5, abs=1.0)


def test_the_escape_exponent_is_a_bound_and_tight_in_one_dimension() -> None:
    none, one = np.empty((0, 0)), np.array([1.0])
    well = NoiseSpectrum(one, one, 0 * one, none, none, 0 * one, 0, 0, 1.0, 1.0, 0, 10**9, 1)
    exponent = escape_exponent(well, 0.1, 1, barrier=0.5)  # exit |x| = 1: V = 1, eps = .1
    assert exponent.value == pytest.approx(10.0)
    # Known mean exit times of the diffusion, in time: .2 66.2282042903586; .1 6545.76506341078.
    assert math.log(6545.76506341078 / 66.2282042903586) == pytest.approx(5.0, abs=0.5)
    assert exponent.value <= math.log(6545.76506341078 / 0.1)
    assert math.isinf(exponent.interval[1])
    double = escape_exponent(well, 0.1, 2, barrier=0.5)
    assert double.value == pytest.approx(20.0)


def test_pairs_keep_what_they_say_until_curvature_counts() -> None:
    pairs = equivalent_pairs(bowl(), 0.01, 2, [0.005, 0.01, 0.05, 0.3])
    assert [p.batch_size for p in pairs] == pytest.approx([1.0, 2.0, 10.0, 60.0])
    base = stationary_loss(bowl(), 0.01, 2, "with_replacement").value
    for p in pairs[1:]:
        one = stationary_loss(bowl(), p.learning_rate, 1, "with_replacement").value
        assert one / p.batch_size_same_loss.value == pytest.approx(base, rel=1e-6)
        assert one / p.batch_size == pytest.approx(base * p.loss_ratio.value, rel=1e-6)
    assert pairs[3].loss_ratio.value > 1.4
    subset = equivalent_pairs(bowl(), 0.1, 4, [0.05], "without_replacement")[0]
    eps = [
        temperature(e, b, N, "without_replacement")
        for e, b in [(0.1, 4), (0.05, subset.batch_size)]
    ]
    assert eps[0] == pytest.approx(eps[1])
    limit = invariance_limit(bowl(), 0.05)
    (there,) = equivalent_pairs(bowl(), 1e-9, 1, [limit.value])
    assert there.loss_ratio.value == pytest.approx(1.05, rel=1e-3)
    assert limit.value < 2 / 3.0


def test_errors_of_pairs_are_those_of_the_draws() -> None:
    """Other draws of the same spectrum spread as the standard error says (chi-square of 15)."""
    whole = noise_spectrum(quadratic(BOWL), top=D)
    exact = equivalent_pairs(whole, 0.01, 2, [0.3])[0]
    assert exact.loss_ratio.stderr == 0
    drawn = [
        equivalent_pairs(
            noise_spectrum(quadratic(BOWL), 2, starts=8, steps=4, seed=k), 0.01, 2, [0.3]
        )[0]
        for k in range(15)
    ]
    for name in ("loss_ratio", "batch_size_same_loss"):
        truth = getattr(exact, name).value
        z = [(getattr(p, name).value - truth) / getattr(p, name).stderr for p in drawn]
        assert 4 < sum(v * v for v in z) < 60
    assert drawn[0].loss_ratio.interval[0] < exact.loss_ratio.value


def test_critical_batch_size_is_that_of_the_dense_matrices() -> None:
    hessian, z = pieces(BOWL)
    here = quadratic(BOWL).moved(np.ones(D))
    gradient = hessian @ np.ones(D)
    sigma = hessian @ (z.T @ z / N) @ hessian
    exact = np.trace(hessian @ sigma) / (gradient @ hessian @ gradient)
    assert critical_batch_size(here).value == pytest.approx(exact)


def test_scores_say_how_far_off() -> None:
    predicted = predictions(bowl(), 0.3, 4, "with_replacement", barrier=1.0)
    epochs = predictions(bowl(), 0.3, 4, barrier=1.0)  # reshuffled: no temperature
    assert "temperature" not in epochs
    assert any("fresh subsets" in note for note in epochs["escape_exponent"].notes)
    came = {
        "stationary_excess_loss": hovering("with_replacement", 0.3, 4),
        "escape_exponent": Estimate(1e3, 1.0, (998.0, 1002.0), "1", "", 9),
        "eta_lambda_max": Estimate(1.8, 0.1, (1.6, 2.0), "1", "", 9),
        "unasked": Estimate(0.0, 0.0, (0.0, 0.0), "1", "", 1),
    }
    rows = {row["name"]: row for row in score(predicted, came)}
    assert rows["stationary_excess_loss"]["verdict"] == "agrees"
    assert rows["escape_exponent"]["verdict"] == "bound holds"
    assert rows["eta_lambda_max"]["verdict"].startswith("too low: 0.5 of what came, 9")
    assert "unasked" not in rows
    json.dumps(list(rows.values()), allow_nan=False)
    wrong = {"stationary_excess_loss": hovering("reshuffle", 0.3, 4)}
    assert score(predicted, wrong)[0]["verdict"].startswith("too high: 1.28 of what came")
    near = {"stationary_excess_loss": hovering("without_replacement", 0.3, 4)}
    assert score(predicted, near)[0]["verdict"].startswith("close: 1.15 of what came")


def test_what_has_no_answer_is_refused() -> None:
    with pytest.raises(InputError, match=r"must be below 2 / lambda_max = 0\.66"):
        stationary_loss(bowl(), 0.7, 4)
    with pytest.raises(InputError, match="must not exceed the 24 examples"):
        stationary_loss(bowl(), 0.1, 25)
    with pytest.raises(InputError, match="no negative curvature"):
        saddle_escape_steps(bowl(), 0.1, 4, drop=1.0)
    with pytest.raises(InputError, match="has no temperature"):
        escape_exponent(bowl(), 0.1, 4, 1.0, "reshuffle")
    flat = LocalLoss(nn.Linear(2, 1), lambda m, x: m(x)[:, 0], [torch.randn(5, 2)])
    with pytest.raises(RunError, match="no minimum within"):
        nearby_minimum(flat, max_iterations=3)


def test_a_point_far_from_stationary_is_said_to_be() -> None:
    far = noise_spectrum(quadratic(BOWL).moved(np.full(D, 3.0)), top=D)
    found = stationary_loss(far, 0.01, 8)
    assert any("not at a stationary point" in note for note in found.notes)
    hessian = pieces(BOWL)[0]
    assert far.decrement == pytest.approx(4.5 * hessian.sum(), rel=1e-6)
