"""Curvature by products against dense matrices, curvlinops' and those of known spectra."""

from typing import Any

import curvlinops
import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from batchwell.errors import Divergence, InputError
from batchwell.training import (
    LocalLoss,
    hessian_density,
    hessian_eigenvalues,
    hessian_trace,
    noise_eigenvalues,
    noise_shape,
    overlap,
)
from batchwell.training.lanczos import extreme_eigenvalues, spectral_density, trace

N = 300


def digits(n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x[:n] / 16), torch.tensor(y[:n])


def losses(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def trained(width: int, steps: int) -> nn.Module:
    torch.manual_seed(1)
    x, y = digits()
    model = nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10)).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(steps):
        rows = torch.randint(0, N, (64,))
        optimizer.zero_grad()
        losses(model, (x[rows], y[rows])).mean().backward()
        optimizer.step()
    return model


P = 460


def oracle(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> Any:
    return curvlinops.HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), [data], check_deterministic=False
    )


@pytest.fixture(scope="module")
def network() -> tuple[LocalLoss, np.ndarray, np.ndarray]:
    """An MLP amid training, its Hessian (curvlinops) and its gradients, by a loop."""
    model, data = trained(6, 150), digits()
    dense = oracle(model, data) @ torch.eye(P, dtype=torch.float64)
    return LocalLoss(model, losses, [data]), dense.detach().numpy(), gradients(model, data)


def gradients(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> np.ndarray:
    rows = []
    for x, y in zip(*data, strict=True):
        found = torch.autograd.grad(losses(model, (x[None], y[None]))[0], model.parameters())
        rows.append(torch.cat([g.flatten() for g in found]).numpy())
    return np.array(rows)


def test_five_largest_eigenvalues_to_1e_4_within_30_products() -> None:
    model, data = trained(32, 150), digits()
    local = LocalLoss(model, losses, [data])
    assert local.dim == 2410
    operator = oracle(model, data).to_scipy()
    found = hessian_eigenvalues(local, top=5)
    high = eigsh(operator, 5, which="LA", return_eigenvectors=False, tol=1e-8)
    np.testing.assert_allclose(found.top, np.sort(high)[::-1], rtol=1e-4)
    assert found.products <= 30
    assert found.converged
    residual = operator @ found.top_vectors - found.top_vectors * found.top
    assert np.linalg.norm(residual, axis=0).max() <= 1e-4 * found.top[0]


def test_both_ends_are_those_of_the_dense_matrix(network: Any) -> None:
    local, dense, _ = network
    exact = np.linalg.eigvalsh(dense)
    ends = hessian_eigenvalues(local, top=2, bottom=3)
    np.testing.assert_allclose(ends.top, exact[::-1][:2], rtol=1e-6)
    np.testing.assert_allclose(ends.bottom, exact[:3], rtol=1e-4)
    assert (abs(ends.bottom - exact[:3]) <= ends.bottom_errors + 1e-9).all()


def test_trace_to_two_percent_at_60_products_with_a_standard_error_that_is_right(
    network: Any,
) -> None:
    local, dense, _ = network
    exact = float(np.trace(dense))
    assert abs(hessian_trace(local).value / exact - 1) < 0.02
    found = [trace(lambda v: dense @ v, P, 60, seed=k) for k in range(12)]
    errors = np.array([f.value - exact for f in found])
    assert np.sqrt((errors**2).mean()) < 0.02 * exact
    # chi-square of 12 z-scores: 3.1 ... 34 but for a chance of 2e-3 (t-distributed: a bit wider)
    assert 2 < ((errors / [f.stderr for f in found]) ** 2).sum() < 45


def test_products_are_those_of_the_dense_matrices(network: Any) -> None:
    local, dense, rows = network
    v = np.random.default_rng(0).standard_normal(P)
    np.testing.assert_allclose(local.hessian(v), dense @ v, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(local.slopes(v), rows @ v, rtol=1e-8, atol=1e-10)
    sigma = np.cov(rows.T, bias=True)
    np.testing.assert_allclose(local.covariance(v), sigma @ v, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(local.gradient(), rows.mean(0), rtol=1e-8, atol=1e-12)


def test_noise_and_its_overlap_with_curvature(network: Any) -> None:
    local, dense, rows = network
    sigma = np.cov(rows.T, bias=True)
    noise = local.noise()
    assert noise.noise_trace.value == pytest.approx(np.trace(sigma), rel=1e-10)
    square = float((rows.mean(0) ** 2).sum())
    assert noise.gradient_norm_squared.value == pytest.approx(square, rel=1e-8)
    top = noise_eigenvalues(local, top=3).top
    centred = rows - rows.mean(0)  # the Gram matrix has the same eigenvalues
    np.testing.assert_allclose(
        top, np.linalg.eigvalsh(centred @ centred.T / N)[::-1][:3], rtol=1e-6
    )
    product = float((dense * sigma).sum())
    exact = {
        "hessian_trace": np.trace(dense),
        "noise_trace": np.trace(sigma),
        "trace_product": product,
        "alignment": product / np.linalg.norm(dense) / np.linalg.norm(sigma),
    }
    found = overlap(local, 60)
    for name, value in exact.items():
        estimate = getattr(found, name)
        assert abs(estimate.value - value) < 4 * estimate.stderr + 1e-12, name
        assert estimate.stderr < 0.03 * value, name
    assert abs(found.alignment.value - exact["alignment"] / 2) > 4 * found.alignment.stderr


def test_density_has_the_moments_and_the_mass(network: Any) -> None:
    local, dense, _ = network
    density = hessian_density(local, starts=4, steps=15)
    assert np.trapezoid(density.density, density.grid) == pytest.approx(1, abs=1e-3)
    for order, exact in [(1, np.trace(dense) / P), (2, (dense**2).sum() / P)]:
        moment = density.moment(order)
        assert abs(moment.value - exact) < 4 * moment.stderr


def small(n: int = 60) -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    x, y = digits(n)
    return nn.Linear(64, 10).double(), (x, y)


def test_unequal_batches_weigh_by_their_examples() -> None:
    model, (x, y) = small()
    whole = LocalLoss(model, losses, [(x, y)])
    parts = LocalLoss(
        model,
        losses,
        list(zip(x.split([1, 36, 20, 2, 1]), y.split([1, 36, 20, 2, 1]), strict=True)),
    )
    v = np.random.default_rng(0).standard_normal(650)
    np.testing.assert_allclose(parts.hessian(v), whole.hessian(v), rtol=1e-10)
    np.testing.assert_allclose(parts.covariance(v), whole.covariance(v), rtol=1e-10, atol=1e-14)
    assert parts.value() == pytest.approx(whole.value(), rel=1e-12)
    traces = [here.noise().noise_trace.value for here in (parts, whole)]
    assert traces[0] == pytest.approx(traces[1], rel=1e-10)


def test_weight_decay_is_in_the_curvature_and_not_in_the_noise() -> None:
    model, data = small()
    plain, decayed = (LocalLoss(model, losses, [data], weight_decay=w) for w in (0.0, 0.3))
    v = np.random.default_rng(0).standard_normal(650)
    np.testing.assert_allclose(decayed.hessian(v) - plain.hessian(v), 0.3 * v, rtol=1e-8)
    np.testing.assert_allclose(decayed.gradient() - plain.gradient(), 0.3 * plain.x, rtol=1e-8)
    assert decayed.noise().noise_trace == plain.noise().noise_trace


def test_the_model_is_left_as_it_was() -> None:
    model, data = small()
    model = model.float().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    here = LocalLoss(model, losses, [data])
    overlap(here, 12)
    here.noise()
    assert model.training
    assert all(p.grad is None and p.dtype == torch.float32 for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_attention_has_second_derivatives() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)
    x = torch.randn(20, 3, 8)
    here = LocalLoss(model, lambda m, x: m(x).square().mean((1, 2)) + m(x)[:, 0, 0], [x])
    v, w = np.random.default_rng(0).standard_normal((2, here.dim))
    assert v @ here.hessian(w) == pytest.approx(w @ here.hessian(v), rel=1e-8)
    step = 1e-5
    moved = []
    for sign in (1, -1):
        other = LocalLoss(model, lambda m, x: m(x).square().mean((1, 2)) + m(x)[:, 0, 0], [x])
        with torch.no_grad():
            for p, d in zip(other._parameters, other._parts(v), strict=True):
                p += sign * step * d
        moved.append(other.gradient())
    np.testing.assert_allclose((moved[0] - moved[1]) / (2 * step), here.hessian(v), atol=1e-6)


@pytest.mark.parametrize(
    ("model", "function", "error", "says"),
    [
        (nn.Linear(64, 10), lambda m, b: losses(m, b).mean(), InputError, 'reduction="none"'),
        (nn.Sequential(nn.Dropout(0.1), nn.Linear(64, 10)), losses, InputError, r"eval\(\)"),
        (nn.Linear(64, 10), lambda m, b: losses(m, b) + torch.rand(1), InputError, "evaluations"),
        (nn.Linear(64, 10), lambda m, b: losses(m, b) / 0, Divergence, "batch 0"),
    ],
)
def test_what_cannot_be_asked_is_refused(model: Any, function: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        LocalLoss(model, function, [digits(30)])


def test_noise_is_judged_by_direction() -> None:
    """Gaussian slopes of different size in each coordinate: none is heavy-tailed, pooled they are."""
    torch.manual_seed(5)
    scales = torch.logspace(-2, 2, 6)
    z = torch.randn(3000, 6) * scales
    z[:, 0] = torch.distributions.StudentT(2.5).sample((3000,)) * scales[0]
    model = nn.Linear(6, 1, bias=False)
    here = LocalLoss(model, lambda m, z: m(z)[:, 0], [z])
    shapes = noise_shape(here, np.eye(6))
    assert [s.p_gaussian > 1e-3 for s in shapes] == [False, *[True] * 5]
    for s in shapes[1:]:
        assert abs(s.excess_kurtosis.value) < 4 * s.excess_kurtosis.stderr
        assert s.tail_index.value == pytest.approx(s.gaussian_tail_index, rel=0.35)
    low, high = shapes[0].tail_index.interval
    assert low < 2.5 < high
    pooled = noise_shape(here, np.ones((6, 1)))[0]
    assert pooled.variance == pytest.approx(float(np.var(z.numpy().sum(1)) / 6), rel=1e-5)


def test_lanczos_sees_no_ghosts_and_survives_a_closed_space() -> None:
    values = np.concatenate([[100.0, 99.0, 50.0], np.linspace(0, 1, 97)])
    found = extreme_eigenvalues(lambda v: values * v, 100, top=6, max_products=100)
    np.testing.assert_allclose(found.top, np.sort(values)[::-1][:6], rtol=1e-6)
    rank_two = np.diag([3.0, 1.0, 0.0, 0.0, 0.0])
    found = extreme_eigenvalues(lambda v: rank_two @ v, 5, top=2, bottom=2)
    np.testing.assert_allclose([*found.top, *found.bottom], [3, 1, 0, 0], atol=1e-12)
    with pytest.raises(InputError, match="top"):
        extreme_eigenvalues(lambda v: v, 3, top=4)


def test_density_of_a_known_spectrum() -> None:
    values = np.random.default_rng(0).choice([0.0, 1.0, 4.0], 400, p=[0.7, 0.2, 0.1])
    density = spectral_density(lambda v: values * v, 400, starts=8, steps=10)
    near = [(abs(density.grid - c) < 0.4) for c in (0.0, 1.0, 4.0)]
    masses = [np.trapezoid(density.density[m], density.grid[m]) for m in near]
    np.testing.assert_allclose(masses, [(values == c).mean() for c in (0, 1, 4)], atol=0.05)
