"""The probe: unbiased, with intervals that cover, and training that does not notice it.

Statistical tests have fixed seeds; beside each stands an estimator that must fail it.
"""

import ast
import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import batchwell
from batchwell.errors import BatchwellError, Divergence, InputError
from batchwell.estimate import Estimate
from batchwell.training import (
    AccumulationProbe,
    GradientNoise,
    Probe,
    combine,
    from_accumulated,
    noise_factor,
)
from batchwell.training.noise import SAMPLING_MODES, StepNoise, solve_step

# ---- estimators ----


def gradients(n: int, d: int, seed: int, mean: float) -> np.ndarray:
    """Skewed, unequal gradients of n examples."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d)) * rng.gamma(2.0, 0.5, (n, 1)) * np.linspace(0.3, 2, d)
    return rows - rows.mean(0) + mean


def truth(rows: np.ndarray) -> tuple[float, float]:
    mean = rows.mean(0)
    return float(mean @ mean), float(((rows - mean) ** 2).sum(1).mean())


def epoch(rows: np.ndarray, b: int, rng: np.random.Generator, n: int | None) -> list[StepNoise]:
    order = rng.permutation(len(rows)).reshape(-1, b)
    out = []
    for batch in order:
        picked = rows[batch]
        mean = picked.mean(0)
        small = float((picked[: min(b, 32)] ** 2).sum(1).mean())
        out.append(solve_step(small, 1.0, float(mean @ mean), noise_factor(b, n), b))
    return out


def z_scores(values: list[float], exact: float) -> float:
    x = np.array(values)
    return float((x.mean() - exact) / (x.std(ddof=1) / np.sqrt(len(x))))


def test_shuffled_epochs_are_unbiased_where_every_infinite_data_formula_is_not() -> None:
    rows = gradients(48, 6, 1, 0.02)
    square, trace = truth(rows)
    rng, wrong_rng = np.random.default_rng(2), np.random.default_rng(2)
    right = [combine(epoch(rows, 6, rng, 48)) for _ in range(200)]
    wrong = [combine(epoch(rows, 6, wrong_rng, None)) for _ in range(200)]
    assert abs(z_scores([r.gradient_norm_squared.value for r in right], square)) < 2
    assert abs(z_scores([r.noise_trace.value for r in right], trace)) < 2
    # The bias of McCandlish's formula is -tr Sigma / (n - 1), whatever the batch size.
    values = [r.gradient_norm_squared.value for r in wrong]
    assert z_scores(values, square) < -4
    assert abs(z_scores(values, square - trace / 47)) < 2


@pytest.mark.parametrize(("mean", "b"), [(0.3, 32), (0.1, 32), (0.3, 8), (1.0, 64)])
def test_intervals_cover(mean: float, b: int) -> None:
    """Of 95 % intervals from 20 steps 92-98 % hold the truth; 1000 repeats know that to 0.7 %."""
    rows = gradients(20 * 16 * b, 12, 3, mean)
    square, trace = truth(rows)
    rng = np.random.default_rng(4)
    steps = [s for _ in range(63) for s in epoch(rows, b, rng, len(rows))]
    exact = {
        "gradient_norm_squared": square,
        "noise_trace": trace,
        "gradient_noise_scale": trace / square,
    }
    blocks = [combine(steps[k : k + 20]) for k in range(0, 20000, 20)]
    assert len(blocks) == 1000
    for name, value in exact.items():
        intervals = np.array([getattr(block, name).interval for block in blocks])
        covered = ((intervals[:, 0] <= value) & (value <= intervals[:, 1])).mean()
        assert 0.92 <= covered <= 0.98, (name, covered)
        if np.isfinite(intervals).all():  # negative control: half as wide, they hold too little
            middle, half = intervals.mean(1), np.diff(intervals)[:, 0] / 4
            assert (abs(value - middle) <= half).mean() < 0.8


def test_a_gradient_drowned_in_noise_is_not_determined() -> None:
    noise = combine(epoch(gradients(640, 12, 3, 0.0), 32, np.random.default_rng(5), 640))
    assert not noise.determined
    scale = noise.gradient_noise_scale
    assert scale.interval[1] == np.inf
    assert scale.interval[0] > 0  # how noisy it is at least is still known
    assert any("not determined" in note for note in scale.notes)


def test_one_step_has_no_interval() -> None:
    noise = combine([StepNoise(1.0, 4.0, 8)])
    assert noise.gradient_noise_scale.interval == (0.0, np.inf)
    assert not noise.determined


def test_accumulated_ragged_micro_batches_agree_with_all_pairs() -> None:
    """Unbiased for unequal sizes, both ways of averaging, with and without replacement."""
    rows = gradients(23, 4, 6, 0.5)
    square, trace = truth(rows)
    sizes, rng = [7, 7, 2], np.random.default_rng(7)
    cuts = np.cumsum(sizes)[:-1]
    for how, n in [("by_size", 23), ("equal", 23), ("by_size", None)]:
        found = []
        for _ in range(3000):
            picked = rng.permutation(23)[:16] if n else rng.integers(0, 23, 16)
            means = [rows[part].mean(0) for part in np.split(picked, cuts)]
            weights = np.array(sizes) / 16 if how == "by_size" else np.full(3, 1 / 3)
            whole = weights @ np.array(means)
            norms = [float(m @ m) for m in means]
            found.append(
                from_accumulated(norms, sizes, whole @ whole, data_size=n, micro_batches=how)
            )
        assert abs(z_scores([f.gradient_norm_squared for f in found], square)) < 4
        assert abs(z_scores([f.noise_trace for f in found], trace)) < 4


def test_noise_survives_json() -> None:
    noise = combine(epoch(gradients(64, 3, 1, 0.0), 8, np.random.default_rng(0), 64))
    again = GradientNoise.from_dict(json.loads(json.dumps(noise.to_dict(), allow_nan=False)))
    assert again == noise
    assert isinstance(again.noise_trace, Estimate)


def test_names_of_sampling_modes_are_the_library_s() -> None:
    """Read, not imported: `dynamics` brings JAX along."""
    page = Path(batchwell.__file__).with_name("dynamics.py").read_text()
    (line,) = [v for v in page.splitlines() if v.startswith("SAMPLING_MODES = ")]
    assert ast.literal_eval(line.partition(" = ")[2]) == SAMPLING_MODES


# ---- the probe ----


def network(*extra: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), *extra, nn.Linear(8, 3))


def data(n: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 5), torch.randint(0, 3, (n,))


def exact(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    rows = []
    for k in range(len(x)):
        found = torch.autograd.grad(F.cross_entropy(model(x[[k]]), y[[k]]), model.parameters())
        rows.append(torch.cat([g.flatten() for g in found]).double().numpy())
    return truth(np.array(rows))


def test_the_probe_is_unbiased_over_200_epochs() -> None:
    model, (x, y) = network(), data()
    square, trace = exact(model, x, y)
    with Probe(model, data_size=48, window=4, examples=5) as probe:
        found = []
        for _ in range(200):
            for batch in torch.randperm(48).split(12):
                model.zero_grad()
                loss = F.cross_entropy(model(x[batch]), y[batch])
                loss.backward()
                probe.step(loss)
            found.append(probe.noise())
    assert abs(z_scores([f.gradient_norm_squared.value for f in found], square)) < 2
    assert abs(z_scores([f.noise_trace.value for f in found], trace)) < 2
    assert z_scores([f.gradient_norm_squared.value for f in found], square + trace / 47) < -4


def train(model: nn.Module, steps: int = 6, **options: Any) -> list[torch.Tensor]:
    torch.manual_seed(3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    probe = Probe(model, **options) if options else None
    losses = []
    for _ in range(steps):
        x, y = data(12)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        if probe is not None:
            probe.step(loss)
        optimizer.step()
        losses.append(loss.detach())
    return [*losses, torch.get_rng_state(), *(v for _, v in sorted(model.state_dict().items()))]


@pytest.mark.parametrize("every", [1, 3])
def test_training_is_bit_identical_with_a_probe(every: int) -> None:
    class Scaled(nn.Module):
        """A module without a rule: it is run again for single examples."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    base = network(Scaled(), nn.LayerNorm(8))
    plain, watched = copy.deepcopy(base), copy.deepcopy(base)
    names = list(watched.state_dict())
    pairs = zip(train(plain), train(watched, every=every, examples=4), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert list(watched.state_dict()) == names


def test_dropout_that_counts_as_noise_draws_the_same_numbers() -> None:
    base = network(nn.Dropout(0.3))
    plain, watched = copy.deepcopy(base), copy.deepcopy(base)
    pairs = zip(train(plain), train(watched, dropout="noise"), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def step(
    model: nn.Module, loss_of: Callable[[Any, Any], Any] = F.cross_entropy, **options: Any
) -> Any:
    x, y = data(12)
    with Probe(model, examples=None, **options) as probe:
        row = None
        while row is None and probe.steps < 2:  # the first may find out what hooks do not see
            model.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()
            row = probe.step(loss)
        return row


def test_a_declared_sum_says_the_same_as_a_mean() -> None:
    model, (x, y) = network(), data(12)
    rows = []
    for how in ("mean", "sum"):
        model.zero_grad()
        with Probe(model, examples=None, reduction=how) as probe:
            loss = F.cross_entropy(model(x), y, reduction=how)
            loss.backward()
            rows.append(probe.step(loss))
    assert rows[0].noise_trace == pytest.approx(rows[1].noise_trace, rel=1e-5)
    assert rows[0].gradient_norm_squared == pytest.approx(rows[1].gradient_norm_squared, rel=1e-4)


SUMS: dict[str, Callable[[Any, Any], Any]] = {
    "cross entropy": lambda out, y: F.cross_entropy(out, y, reduction="sum"),
    "square": lambda out, y: out.square().sum(),
    "by rows": lambda out, y: F.cross_entropy(out, y, reduction="none").sum(),
    "with a penalty of the output": lambda out, y: F.mse_loss(
        out, out.detach() + 1, reduction="sum"
    ),
}
MEANS: dict[str, Callable[[Any, Any], Any]] = {
    "mean of sums": lambda out, y: out.square().sum(1).mean(),
    "divided": lambda out, y: F.cross_entropy(out, y, reduction="sum") / len(y),
    "of log-probabilities": lambda out, y: -out.log_softmax(1)[torch.arange(len(y)), y].mean(),
}


@pytest.mark.parametrize("name", SUMS)
def test_an_undeclared_sum_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r'reduction = .mean.: .* reduction="sum"'):
        step(network(), SUMS[name])


@pytest.mark.parametrize("name", MEANS)
def test_a_mean_is_not_taken_for_a_sum(name: str) -> None:
    assert step(network(), MEANS[name]).noise_trace > 0


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x)


class Centred(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


def penalised(out: torch.Tensor, y: torch.Tensor, model: nn.Module) -> torch.Tensor:
    return F.cross_entropy(out, y) + 0.1 * sum(p.square().sum() for p in model.parameters())


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: network(nn.BatchNorm1d(8)), r"model\.2 = 'BatchNorm1d': .*eval\(\).*GroupNorm"),
        (lambda: network(nn.Dropout(0.1)), r"model\.2 = 'Dropout': .*dropout=\"noise\""),
        (lambda: network(Noisy()), "random forward.*eval"),
        (lambda: network().requires_grad_(False), "must have a parameter"),
        (lambda: network(Centred()), "makes examples depend on each other"),
        (lambda: nn.DataParallel(network()), "DistributedDataParallel"),
        (lambda: nn.LSTM(5, 3, 2, dropout=0.5), "'LSTM'"),
    ],
)
def test_models_that_cannot_be_measured_are_refused_with_the_remedy(
    model: Callable[[], nn.Module], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        step(model())


def test_gradients_from_the_step_before_are_found() -> None:
    model = network()
    with Probe(model) as probe:
        x, y = data(12)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        assert probe.step(loss) is not None
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        with pytest.raises(InputError, match="zero_grad"):
            probe.step(loss)
        loss = F.cross_entropy(model(x), y)
        model.zero_grad()  # between forward and backward will do
        loss.backward()
        assert probe.step(loss) is not None


def test_what_turns_bad_later_is_refused_when_it_does() -> None:
    model, (x, _) = network(nn.BatchNorm1d(8)), data(12)
    model[2].eval()
    Probe(model)
    model(x)
    model.train()
    with pytest.raises(InputError, match="BatchNorm1d"):
        model(x)


def test_a_penalty_in_the_loss_is_found_and_weight_decay_is_the_remedy() -> None:
    model = network()
    with pytest.raises(InputError, match="penalty in the loss: use the optimiser's weight_decay"):
        step(model, lambda out, y: penalised(out, y, model))
    x, y = data(12)
    model.zero_grad()
    with Probe(model, examples=None, data_size=12, weight_decay=0.2) as probe:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        row = probe.step(loss)
    norm = sum((p.grad + 0.2 * p.detach()).square().sum() for p in model.parameters())
    # The batch is the data: its gradient is exact, and no noise is taken off.
    assert row.gradient_norm_squared == pytest.approx(float(norm), rel=1e-5)


@pytest.mark.parametrize("how", ["by_size", "equal"])
def test_ragged_micro_batches_are_weighted_as_they_were(how: str) -> None:
    model, (x, y) = network(), data(12)
    parts = torch.arange(12).split([5, 5, 2])
    with Probe(model, examples=None, data_size=30, micro_batches=how) as probe:
        for part in parts:
            share = len(part) / 12 if how == "by_size" else 1 / 3
            loss = F.cross_entropy(model(x[part]), y[part])
            (loss * share).backward()
        row = probe.step(loss)
    norms = []
    for part in parts:
        found = torch.autograd.grad(F.cross_entropy(model(x[part]), y[part]), model.parameters())
        norms.append(found)
    weights = [len(p) / 12 if how == "by_size" else 1 / 3 for p in parts]
    whole = [sum(w * g[k] for w, g in zip(weights, norms, strict=True)) for k in range(4)]
    big = sum(float(g.double().square().sum()) for g in whole)
    squares = sum(w * w / len(p) for w, p in zip(weights, parts, strict=True))
    small = sum(exact(model, x, y))  # |G|^2 + tr Sigma of these 12: their mean |g|^2
    factor = (squares - 1 / 30) * 30 / 29
    want = solve_step(small, 1.0, big, factor, 12)
    assert row.noise_trace == pytest.approx(want.noise_trace, rel=1e-5)
    assert row.gradient_norm_squared == pytest.approx(want.gradient_norm_squared, rel=1e-4)


def test_ragged_micro_batches_must_say_how_they_are_weighted() -> None:
    model, (x, y) = network(), data(12)
    with Probe(model) as probe:
        for part in torch.arange(12).split([5, 5, 2]):
            loss = F.cross_entropy(model(x[part]), y[part])
            loss.backward()
        with pytest.raises(InputError, match=r"micro_batches.*by_size.*equal"):
            probe.step(loss)


def test_two_probes_on_one_model_are_refused() -> None:
    model = network()
    with Probe(model), pytest.raises(InputError, match="has a probe already"):
        Probe(nn.Sequential(model[0], nn.Tanh()))
    Probe(model).close()


def test_a_loss_that_is_not_finite_says_at_which_step() -> None:
    model, (x, y) = network(), data(12)
    with Probe(model) as probe:
        for k in range(3):
            loss = F.cross_entropy(model(x), y) * (float("nan") if k == 2 else 1.0)
            loss.backward()
            if k < 2:
                probe.step(loss)
                model.zero_grad()
        with pytest.raises(Divergence, match="the loss is nan at step 2, batch size 12"):
            probe.step(loss)


def test_more_is_refused_or_said_in_one_line() -> None:
    model, (x, y) = network(), data(12)
    probe = Probe(model, data_size=10)
    with pytest.raises(InputError, match="needs a measured step"):
        probe.noise()
    with pytest.raises(InputError, match="must have a tensor with a dimension 0"):
        model(torch.tensor(1.0))
    with pytest.raises(BatchwellError, match="forward was not called"):
        probe.step(torch.tensor(1.0))
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    with pytest.raises(InputError, match="batch_size = 12: must not exceed the 10 examples"):
        probe.step(loss)


def test_state_goes_on_where_it_was() -> None:
    """Also what the first batch had shown: this model's scale has no layer of its own."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.scale = network(), nn.Linear(1, 3, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) * self.scale.weight[:, 0]

    model, (x, y) = Scaled(), data(24)

    def run(probe: Probe, batches: list[int]) -> None:
        for k in batches:
            model.zero_grad()
            loss = F.cross_entropy(model(x[k::3]), y[k::3])
            loss.backward()
            probe.step(loss)

    with Probe(model, every=2, examples=4) as probe:
        run(probe, [0, 1, 2, 0])
        assert list(probe.fallbacks) == ["scale.weight"]
        state = json.loads(json.dumps(probe.state_dict()))
        run(probe, [1, 2, 0])
        whole = probe.noise()
    with Probe(model, every=2, examples=4) as probe:
        probe.load_state_dict(state)
        run(probe, [1, 2, 0])
        assert probe.noise() == whole


def test_missing_torch_is_one_line() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import batchwell.training as t\n"
        "try: t.Probe\n"
        "except Exception as e: print(type(e).__name__, e)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == 'RunError torch is not installed: pip install "batchwell[torch]"\n'


def test_the_wing_does_not_load_torch_before_it_is_used() -> None:
    code = "import sys, batchwell.training as t; t.GradientNoise; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"


# ---- micro-batches, and what they leave for free ----


@pytest.mark.parametrize("how", ["by_size", "equal"])
def test_accumulation_gives_the_noise_for_free(how: str) -> None:
    model, (x, y) = network(nn.PReLU()), data(12)
    parts = torch.arange(12).split([5, 5, 2])
    norms = []
    with AccumulationProbe(model, data_size=30, micro_batches=how) as probe:
        F.cross_entropy(model(x), y)  # a forward that was only looked at
        for part in parts:
            share = len(part) / 12 if how == "by_size" else 1 / 3
            loss = F.cross_entropy(model(x[part]), y[part])
            (loss * share).backward()
            norms.append(exact_square(model, x[part], y[part]))
        row = probe.step(loss)
    total = sum(float(p.grad.double().square().sum()) for p in model.parameters())
    want = from_accumulated(norms, [5, 5, 2], total, data_size=30, micro_batches=how)
    assert row.noise_trace == pytest.approx(want.noise_trace, rel=1e-4)
    assert row.gradient_norm_squared == pytest.approx(want.gradient_norm_squared, rel=1e-4)


def exact_square(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    twin = copy.deepcopy(model)
    twin.zero_grad()
    F.cross_entropy(twin(x), y).backward()
    return sum(float(p.grad.double().square().sum()) for p in twin.parameters())


def test_accumulation_needs_two_micro_batches() -> None:
    model, (x, y) = network(), data(12)
    with AccumulationProbe(model) as probe:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        with pytest.raises(InputError, match="micro-batches = 1: must be at least 2"):
            probe.step(loss)


def test_accumulating_with_a_probe_is_bit_identical() -> None:
    base, out = network(), []
    for probed in (False, True):
        model = copy.deepcopy(base)
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        probe = AccumulationProbe(model, every=2) if probed else None
        for _ in range(4):
            optimizer.zero_grad()
            for _ in range(3):
                x, y = data(4)
                loss = F.cross_entropy(model(x), y) / 3
                loss.backward()
            if probe:
                probe.step(loss)
            optimizer.step()
        out.append([*model.state_dict().values(), torch.get_rng_state()])
    assert probe is not None
    assert probe.noise().steps == 2
    assert all(torch.equal(a, b) for a, b in zip(*out, strict=True))


def test_a_model_called_twice_for_one_loss_is_refused() -> None:
    model, (x, y) = network(), data(12)
    with Probe(model) as probe:
        loss = F.cross_entropy(model(x) + model(2 * x), y)
        loss.backward()
        with pytest.raises(InputError, match=r"called twice before one backward: .* wrap both"):
            probe.step(loss)


def test_a_state_of_another_model_is_refused() -> None:
    model, (x, y) = network(), data(12)
    model.scale = nn.Parameter(torch.ones(()))
    with Probe(model) as probe:
        F.cross_entropy(model(x), y).backward()
        probe.step(1.0)
        state = probe.state_dict()
    state["layout"] = {"5": {"weight": "5.weight"}}
    with Probe(network()) as probe, pytest.raises(InputError, match="is of another model"):
        probe.load_state_dict(state)
