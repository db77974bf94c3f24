"""Claims of the paper and its neighbours, run for real: digits and breast_cancer, paired seeds.

    python examples/claims.py [sharpness order decay escapes stationary] [--seeds 10]

Each claim is a function that trains, compares over the same seeds, and answers in Markdown.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from batchwell.estimate import Estimate, censored_mean
from batchwell.training import LocalLoss, attach, nearby_minimum
from batchwell.training.predict import stationary_loss
from batchwell.training.schedules import steps
from batchwell.training.spectrum import NoiseSpectrum, noise_spectrum
from training import (
    Outcome,
    Rows,
    _as_is,
    breast_cancer,
    digits,
    mean,
    paired,
    shown,
    table,
    train,
)

DECAY = 1e-3
DATA = {"digits": digits, "breast_cancer": breast_cancer}


def sharpness(seeds: int = 10, epochs: int = 40) -> str:
    """Keskar et al. (2017), and the paper's reading of it: sharpness grows as eta/B falls."""
    rows = []
    for name, make in DATA.items():
        data = make(0.2)
        settings = [(0.2, 8), (0.2, 32), (0.2, 128), (0.8, 32), (0.8, 128)]
        outs = {
            key: _many(data, key[1], key[0], epochs, seeds, measure_sharpness=True)
            for key in settings
        }
        logs = {key: [math.log(o.sharpness) for o in out] for key, out in outs.items()}
        for key in settings:
            ratio = paired(logs[key], logs[settings[0]])
            rows.append(
                [
                    name,
                    f"{key[0]:g}",
                    str(key[1]),
                    f"{key[0] / key[1]:g}",
                    shown(mean(o.sharpness for o in outs[key])),
                    shown(mean(o.loss for o in outs[key])),
                    "1" if key == settings[0] else shown(_exponential(ratio)),
                ]
            )
    head = ["data", "η", "B", "η/B", "λmax", "training loss", "λmax over the first row's"]
    return table(head, rows)


def order(seeds: int = 10, epochs: int = 40) -> str:
    """The paper's advice: small batches first, then large ones; here against the other order."""
    rows = []
    for name, make in DATA.items():
        data = make(0.2)
        examples = epochs * len(data.train)
        half = examples // 2
        outs = {
            "16 then 128": _plan(data, f"0:16 {half}:128", examples, seeds),
            "128 then 16": _plan(data, f"0:128 {half}:16", examples, seeds),
        }
        for key, out in outs.items():
            rows.append([name, key, *_row(out)])
        first, second = outs.values()
        rows.append([name, "difference", *_differences(first, second), ""])
    return table(
        ["data", "batch size", "training loss", "test loss", "test accuracy", "updates"], rows
    )


def decay(seeds: int = 10, epochs: int = 40) -> str:
    """Smith et al. (2018): growing the batch does what decaying the learning rate does."""
    rows = []
    for name, make in DATA.items():
        data = make(0.2)
        examples = epochs * len(data.train)
        first, second = examples // 2, examples * 3 // 4

        def rate(at: int, first: int = first, second: int = second) -> float:
            return 1.0 if at < first else 0.25 if at < second else 0.0625

        outs = {
            "η falls 4-fold twice, B = 16": _plan(data, "0:16", examples, seeds, rate_at=rate),
            "B grows 4-fold twice": _plan(data, f"0:16 {first}:64 {second}:256", examples, seeds),
            "neither": _plan(data, "0:16", examples, seeds),
        }
        for key, out in outs.items():
            rows.append([name, key, *_row(out)])
        decayed, grown, neither = outs.values()
        rows.append([name, "grown - decayed", *_differences(grown, decayed), ""])
        rows.append([name, "neither - decayed", *_differences(neither, decayed), ""])
    head = ["data", "plan", "training loss", "test loss", "test accuracy", "updates"]
    return table(head, rows)


def _many(data: Any, schedule: Any, rate: float, epochs: int, seeds: int, **options: Any) -> Any:
    examples = epochs * len(data.train)
    return [
        train(data, schedule, examples, seed, learning_rate=rate, decay=DECAY, **options)
        for seed in range(seeds)
    ]


def _plan(data: Any, plan: str, examples: int, seeds: int, **options: Any) -> list[Outcome]:
    schedule = steps(plan, may_shrink=True)
    return [
        train(data, schedule, examples, seed, learning_rate=0.2, decay=DECAY, **options)
        for seed in range(seeds)
    ]


def _row(outs: Sequence[Outcome]) -> list[str]:
    values = ([o.loss for o in outs], [o.test_loss for o in outs], [o.test_accuracy for o in outs])
    return [*(shown(mean(v)) for v in values), f"{outs[0].updates}"]


def _differences(first: Sequence[Outcome], second: Sequence[Outcome]) -> list[str]:
    names = ("loss", "test_loss", "test_accuracy")
    return [
        shown(paired([getattr(o, n) for o in first], [getattr(o, n) for o in second]))
        for n in names
    ]


def _exponential(value: Estimate) -> Estimate:
    low, high = (math.exp(v) for v in value.interval)
    centre = math.exp(value.value)
    return Estimate(centre, centre * value.stderr, (low, high), "1", value.method, value.n)


# ---- escapes ----

UNITS, INPUTS, PENALTY, ETA = 4, 4, 1e-3, 0.5


def _small_data() -> tuple[torch.Tensor, torch.Tensor]:
    """120 tumours in 4 whitened principal components; 15 % of the labels flipped."""
    x, y = load_breast_cancer(return_X_y=True)
    x = PCA(INPUTS, whiten=True, random_state=0).fit_transform((x - x.mean(0)) / x.std(0))
    random = np.random.default_rng(0)
    rows = random.choice(len(y), 120, replace=False)
    sign = np.where(y[rows] == 1, 1.0, -1.0) * np.where(random.random(120) < 0.15, -1.0, 1.0)
    return torch.tensor(x[rows]), torch.tensor(sign)


def _losses(w: torch.Tensor, x: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Mean loss of each of many networks, w (runs, 25), on their own rows: x (runs, B, 4)."""
    parts = torch.split(w, [UNITS * INPUTS, UNITS, UNITS, 1], dim=1)
    hidden = torch.tanh(x @ parts[0].view(-1, UNITS, INPUTS).mT + parts[1].unsqueeze(1))
    out = (hidden @ parts[2].unsqueeze(2)).squeeze(2) + parts[3]
    return nn.functional.softplus(-sign * out).mean(1) + PENALTY / 2 * w.square().sum(1)


def _descend(
    w: torch.Tensor, count: int, rows: Callable[[], torch.Tensor], momentum: float = 0.0
) -> torch.Tensor:
    """`count` updates of all runs with one optimiser; `rows` gives (runs, B) indices."""
    x, sign = _small_data()
    w = w.clone().requires_grad_(True)
    optimizer = torch.optim.SGD([w], lr=ETA, momentum=momentum)
    for _ in range(count):
        chosen = rows()
        optimizer.zero_grad()
        _losses(w, x[chosen], sign[chosen]).sum().backward()
        optimizer.step()
    return w.detach()


def _quench(w: torch.Tensor, count: int = 600) -> torch.Tensor:
    """Gradient descent, with momentum, five times as fast."""
    every = torch.arange(120).expand(len(w), 120)
    return _descend(w, count, lambda: every, momentum=0.8)


def _minima(starts: int = 48) -> list[tuple[float, float, torch.Tensor]]:
    """(sharpness, loss, point) of minima that gradient descent finds, sharpest last."""
    x, sign = _small_data()
    generator = torch.Generator().manual_seed(0)
    found = _quench(torch.randn(starts, 25, generator=generator, dtype=torch.float64), 5_000)

    def loss(w: torch.Tensor) -> torch.Tensor:
        return _losses(w[None], x[None], sign[None])[0]

    out: list[tuple[float, float, torch.Tensor]] = []
    for w in found:
        spectrum = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, w))
        value = float(loss(w))
        if spectrum[0] > 0 and all(abs(value - other) > 1e-5 for _, other, _ in out):
            out.append((float(spectrum[-1]), value, w))
    return sorted(out, key=lambda row: row[0])


def escapes(seeds: int = 64, steps: int = 4000, starts: int = 48) -> str:
    """The paper's central claim: a minimum is left after times that grow fast in B / eta."""
    minima = _minima(starts)
    rows = []
    for which in (len(minima) // 2, len(minima) - 1):
        top, value, point = minima[which]
        for size in (2, 4, 8, 16):
            time_to_leave = _escape_time(point, value, size, seeds, steps)
            text = (
                f"> {time_to_leave.interval[0]:.0f}"
                if time_to_leave.n_censored == time_to_leave.n
                else shown(time_to_leave)
            )
            left = time_to_leave.n - time_to_leave.n_censored
            rows.append([f"{top:.2f}", f"{value:.3f}", str(size), f"{left} of {seeds}", text])
    return table(["λmax", "loss", "B", "left", "mean steps to leave"], rows)


def _escape_time(
    point: torch.Tensor, value: float, size: int, runs: int, steps: int, every: int = 250
) -> Estimate:
    """Mean steps until gradient descent from where SGD is no longer leads back."""
    x, sign = _small_data()
    generator = torch.Generator().manual_seed(size)
    w = point.expand(runs, 25).clone()
    left = np.full(runs, np.inf)
    for at in range(every, steps + 1, every):
        w = _descend(w, every, lambda: torch.randint(120, (runs, size), generator=generator))
        down = _quench(w)
        home = (_losses(down, x[None].expand(runs, -1, -1), sign.expand(runs, -1)) - value).abs()
        left[(home.numpy() > 1e-3) & np.isinf(left)] = at - every / 2
        if np.isfinite(left).all():
            break
    seen = np.isfinite(left)
    return censored_mean(np.where(seen, left, steps), seen)


# ---- stationary loss ----

STRONG = 0.05  # penalty of the logistic regression


def stationary(seeds: int = 4, updates: int = 6000) -> str:
    """Stationary excess loss of logistic regression, predicted and measured, by sampling."""
    spectrum, lowest = _measured_at_the_minimum()
    rows = []
    for rate, size in ((0.4, 4), (0.4, 16), (0.1, 4)):
        for sampling in ("with_replacement", "reshuffle"):
            predicted = stationary_loss(spectrum, rate, size, sampling, leftover="dropped").value
            runs = (_excess(rate, size, sampling, seed, updates, lowest) for seed in range(seeds))
            came = mean(runs, "loss")
            chains = [
                mean(_chain(kind, rate, size, sampling, 24 * seeds, updates)) for kind in CHAINS
            ]
            ratios = [shown(_over(value, predicted)) for value in (came, *chains)]
            texts = [f"{predicted:.3g}", shown(came), *ratios]
            rows.append([f"{rate:g}", str(size), sampling.replace("_", " "), *texts])
    head = ["η", "B", "sampling", "predicted", "came", "came / predicted", *CHAINS]
    return table(head, rows)


def _over(value: Estimate, base: float) -> Estimate:
    low, high = (v / base for v in value.interval)
    return replace(value, value=value.value / base, interval=(low, high))


# What the prediction assumes, given up one after the other: chains of the same data.
CHAINS = ("one curvature for all", "each its own curvature", "the loss itself")


def _chain(kind: str, rate: float, size: int, sampling: str, runs: int, updates: int) -> np.ndarray:
    """Mean excess loss of each of `runs` chains from the minimum, over all but the first third."""
    local, rows = _at_the_minimum(), _components()
    x, n = local.x, len(rows)
    signed = np.column_stack([rows.inputs.numpy(), np.ones(n)]) * rows.targets.numpy()[:, None]
    chance = 1 / (1 + np.exp(signed @ x))
    gradients, bend = STRONG * x - signed * chance[:, None], chance * (1 - chance)
    hessian = (signed * bend[:, None]).T @ signed / n + STRONG * np.eye(len(x))

    def slope(offset: np.ndarray, batch: np.ndarray) -> np.ndarray:
        if kind == CHAINS[0]:
            return gradients[batch].mean(1) + offset @ hessian
        part = signed[batch]
        along = np.einsum("rbd,rd->rb", part, offset if kind == CHAINS[1] else x + offset)
        if kind == CHAINS[1]:
            moved = np.einsum("rb,rbd->rd", along * bend[batch], part) / size
            return gradients[batch].mean(1) + moved + STRONG * offset
        pulls = np.einsum("rb,rbd->rd", 1 / (1 + np.exp(along)), part) / size
        return STRONG * (x + offset) - pulls

    def excess(offset: np.ndarray) -> np.ndarray:
        if kind != CHAINS[2]:
            return 0.5 * np.einsum("ri,ij,rj->r", offset, hessian, offset)
        there = x + offset
        return np.logaddexp(0, -there @ signed.T).mean(1) + STRONG / 2 * (there**2).sum(1)

    offset, total = np.zeros((runs, len(x))), np.zeros(runs)
    random = np.random.default_rng([CHAINS.index(kind), size, round(1000 * rate)])
    base = float(excess(offset[:1])[0])
    length = n // size
    epochs = max(3, updates // length)
    for epoch in range(epochs):
        order = random.permuted(np.tile(np.arange(n), (runs, 1)), axis=1)
        if sampling == "with_replacement":
            order = random.integers(n, size=(runs, n))
        for k in range(length):
            if epoch >= epochs // 3:
                total += excess(offset) - base
            offset = offset - rate * slope(offset, order[:, k * size : (k + 1) * size])
    return total / ((epochs - epochs // 3) * length)


class Logistic(nn.Module):
    """Logistic regression on 5 principal components and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 1, dtype=torch.float64)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Log odds."""
        return self.linear(x).squeeze(-1)


def _components() -> Rows:
    x, y = load_breast_cancer(return_X_y=True)
    x = PCA(5, random_state=0).fit_transform((x - x.mean(0)) / x.std(0))
    sign = torch.where(torch.tensor(y) == 1, 1.0, -1.0).double()
    return Rows(torch.tensor(x / x.std(0)), sign)


def _each(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.softplus(-batch[1] * model(batch[0]))


def _objective(model: nn.Module, rows: Rows) -> torch.Tensor:
    penalty = STRONG / 2 * sum(p.square().sum() for p in model.parameters())
    return _each(model, (rows.inputs, rows.targets)).mean() + penalty


def _at_the_minimum() -> LocalLoss:
    rows = _components()
    local = LocalLoss(Logistic(), _each, [(rows.inputs, rows.targets)], weight_decay=STRONG)
    return nearby_minimum(local, tolerance=1e-10)


def _measured_at_the_minimum() -> tuple[NoiseSpectrum, float]:
    """The measurement that predictions are made from, and the least loss."""
    local = _at_the_minimum()
    return noise_spectrum(local, top=6), local.value()


def _excess(rate: float, size: int, sampling: str, seed: int, updates: int, lowest: float) -> float:
    """Mean excess loss over the second half of a training."""
    torch.manual_seed(seed)
    rows = _components()
    order = RandomSampler(rows, replacement=sampling == "with_replacement")
    loader = DataLoader(rows, size, sampler=order, collate_fn=_as_is, drop_last=True)
    model = Logistic()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, weight_decay=STRONG)
    training = attach(model, optimizer, loader, size, keep_every=0)
    seen: list[float] = []
    while training.course.updates < updates:
        for batch in training:
            training.step(_each(model, batch).mean())
            now = training.course.updates
            # Every second epoch is enough; all places in an epoch are looked at alike.
            if now > updates // 2 and training.epoch % 2 == 0:
                with torch.no_grad():
                    seen.append(_objective(model, rows).item() - lowest)
            if now >= updates:
                break
    return float(np.mean(seen))


CLAIMS: dict[str, Callable[..., str]] = {
    "sharpness": sharpness,
    "order": order,
    "decay": decay,
    "escapes": escapes,
    "stationary": stationary,
}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("claims", nargs="*", default=list(CLAIMS), choices=list(CLAIMS))
    parser.add_argument("--seeds", type=int, help="seeds, or runs, of each setting")
    options = parser.parse_args()
    for name in options.claims:
        start = time.process_time()
        given = {} if options.seeds is None else {"seeds": options.seeds}
        claim = CLAIMS[name]
        print(f"## {name}: {claim.__doc__}\n\n{claim(**given)}\n")
        print(f"({time.process_time() - start:.0f} s of processor time)\n", flush=True)


if __name__ == "__main__":
    main()
