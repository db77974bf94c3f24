"""Small models, data and loops that the tests of attaching share."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

torch.set_num_threads(1)  # models this small only lose by more
EXAMPLES, FEATURES, CLASSES = 103, 6, 3


class Indexed(Dataset):
    """Data that say which they are, with noise from all usual generators on each access."""

    def __init__(self, examples: int = EXAMPLES, jitter: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(3)
        self.inputs = torch.randn(examples, FEATURES, generator=generator)
        self.targets = torch.randint(CLASSES, (examples,), generator=generator)
        self.jitter = jitter

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, k: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        inputs = self.inputs[k]
        if self.jitter:
            inputs = inputs + self.jitter * torch.randn(FEATURES)
            inputs = inputs * random.uniform(0.9, 1.1)
            inputs = inputs + self.jitter * np.random.normal()  # noqa: NPY002 - as augmentations do
        return inputs, self.targets[k], k


def network(dropout: float = 0.2, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(FEATURES, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, CLASSES)
    )


def optimiser(model: nn.Module, rate: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)


def loader(batch_size: int = 16, jitter: float = 0.0, **options: Any) -> DataLoader:
    return DataLoader(Indexed(jitter=jitter), batch_size, shuffle=True, **options)


def mean_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def parameters(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().ravel() for p in model.parameters()])


def run(
    training: Any, model: nn.Module, epochs: int, after: Callable[[Any], bool] | None = None
) -> None:
    """Train; `after` each update may say that it is enough."""
    while training.epoch < epochs:
        for batch in training:
            if training.step(mean_loss(model, batch)) and after and after(training):
                return


def simple_data() -> TensorDataset:
    data = Indexed()
    return TensorDataset(data.inputs, data.targets)
