"""What the examples share: real data in memory, small networks, one training run, paired seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from torch import nn
from torch.utils.data import DataLoader, Dataset

from batchwell.estimate import Estimate, sample_mean
from batchwell.training import LocalLoss, attach, hessian_eigenvalues

torch.set_num_threads(1)  # networks this small only lose by more


class Rows(Dataset):
    """Data in memory; a whole batch is one indexing."""

    def __init__(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inputs[k], self.targets[k]

    def __getitems__(self, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inputs[rows], self.targets[rows]


def _as_is(batch: Any) -> Any:
    return batch


@dataclass(frozen=True)
class Data:
    """A training and a test set."""

    train: Rows
    test: Rows
    classes: int

    def loader(self, batch_size: int) -> DataLoader:
        """Shuffled batches."""
        return DataLoader(self.train, batch_size, shuffle=True, collate_fn=_as_is)


def _split(x: np.ndarray, y: np.ndarray, flip: float, classes: int) -> Data:
    random = np.random.default_rng(0)
    order = random.permutation(len(y))
    x, y = x[order], y[order].copy()
    count = int(0.8 * len(y))
    wrong = random.random(count) < flip
    y[:count][wrong] = random.integers(classes, size=int(wrong.sum()))
    inputs, targets = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    return Data(
        Rows(inputs[:count], targets[:count]), Rows(inputs[count:], targets[count:]), classes
    )


def digits(flip: float = 0.0) -> Data:
    """8 x 8 pictures of digits: 1437 to train on, of which a share gets a random label."""
    x, y = load_digits(return_X_y=True)
    return _split(x / 16.0, y, flip, 10)


def breast_cancer(flip: float = 0.0) -> Data:
    """30 standardised measurements of tumours: 455 to train on."""
    x, y = load_breast_cancer(return_X_y=True)
    return _split((x - x.mean(0)) / x.std(0), y, flip, 2)


def wine(flip: float = 0.0) -> Data:
    """13 standardised measurements of wines of three makers: 142 to train on."""
    x, y = load_wine(return_X_y=True)
    return _split((x - x.mean(0)) / x.std(0), y, flip, 3)


def teacher(flip: float = 0.0) -> Data:
    """1500 Gaussian inputs of 20 features; labels drawn as a fixed network of tanh units says."""
    random = np.random.default_rng(7)
    x = random.normal(size=(1875, 20))
    hidden = np.tanh(x @ random.normal(size=(20, 8)) / np.sqrt(20))
    scores = 2.0 * hidden @ random.normal(size=(8, 5)) + random.gumbel(size=(1875, 5))
    return _split(x, scores.argmax(1), flip, 5)


def network(data: Data, seed: int, width: int = 32) -> nn.Module:
    """One hidden layer of tanh units."""
    torch.manual_seed(seed)
    features = data.train.inputs.shape[1]
    return nn.Sequential(nn.Linear(features, width), nn.Tanh(), nn.Linear(width, data.classes))


def loss_of(model: nn.Module, rows: Rows, decay: float = 0.0) -> torch.Tensor:
    """Mean cross-entropy over all rows, with the penalty that weight decay descends."""
    loss = nn.functional.cross_entropy(model(rows.inputs), rows.targets)
    if decay:
        loss = loss + decay / 2 * sum(p.square().sum() for p in model.parameters())
    return loss


def sharpness(model: nn.Module, rows: Rows, decay: float = 0.0) -> float:
    """Largest eigenvalue of the Hessian of the training loss."""

    def losses(net: Any, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(net(batch[0]), batch[1], reduction="none")

    local = LocalLoss(model, losses, [(rows.inputs, rows.targets)], weight_decay=decay)
    return float(hessian_eigenvalues(local, top=1, tolerance=1e-3).top[0])


@dataclass(frozen=True)
class Outcome:
    """What a training came to."""

    loss: float
    test_loss: float
    test_accuracy: float
    updates: int
    sharpness: float
    sizes: tuple[int, ...]


def train(
    data: Data,
    schedule: Any,
    examples: int,
    seed: int,
    *,
    learning_rate: float = 0.1,
    momentum: float = 0.0,
    decay: float = 0.0,
    rate_at: Callable[[int], float] | None = None,
    measure_sharpness: bool = False,
    **options: Any,
) -> Outcome:
    """Train a network from a seed for a number of examples; seeds fix start and order alike.

    `rate_at` gives the factor on the learning rate at a number of examples.
    """
    model = network(data, seed)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=learning_rate, momentum=momentum, weight_decay=decay
    )
    first = schedule if isinstance(schedule, int) else getattr(schedule, "first", 1)
    loader = data.loader(int(first))
    training = attach(model, optimizer, loader, schedule, knob="sampler", keep_every=0, **options)
    sizes = []
    while training.course.examples < examples:
        for inputs, targets in training:
            if rate_at is not None:
                optimizer.param_groups[0]["lr"] = learning_rate * rate_at(training.course.examples)
            training.step(nn.functional.cross_entropy(model(inputs), targets))
            sizes.append(training.batch_size)
            if training.course.examples >= examples:
                break
    training.close()
    return _outcome(model, data, decay, training.course.updates, sizes, measure_sharpness)


def _outcome(
    model: nn.Module, data: Data, decay: float, updates: int, sizes: list[int], sharp: bool
) -> Outcome:
    with torch.no_grad():
        loss = float(loss_of(model, data.train, decay))
        outputs = model(data.test.inputs)
        test = float(nn.functional.cross_entropy(outputs, data.test.targets))
        right = float((outputs.argmax(1) == data.test.targets).double().mean())
    top = sharpness(model, data.train, decay) if sharp else float("nan")
    seen = tuple(dict.fromkeys(sizes))
    return Outcome(loss, test, right, updates, top, seen)


def mean(values: Iterable[float], unit: str = "1") -> Estimate:
    """Mean over seeds with its t interval."""
    return sample_mean(np.asarray(list(values)), unit, "over seeds")


def paired(first: Sequence[float], second: Sequence[float], unit: str = "1") -> Estimate:
    """Mean of first - second over the same seeds, with its t interval."""
    return mean((a - b for a, b in zip(first, second, strict=True)), unit)


def shown(value: Estimate, digits: int = 3) -> str:
    """An estimate as text."""
    low, high = value.interval
    return f"{value.value:.{digits}g} [{low:.{digits}g}, {high:.{digits}g}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
