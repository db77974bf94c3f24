"""An attached run predicts, watches, and logs what came, by one call."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from batchwell.errors import InputError
from batchwell.report.document import render
from batchwell.report.training.page import training_page
from batchwell.report.training.reading import read_log
from batchwell.training import attach, score
from batchwell.training.forecast import LOOKS

N, D = 60, 3


class Bowl(nn.Module):
    """Example z pulls at x: |H^(1/2) (x - z)|^2 / 2 with H = diag(1.5, 0.8, 0.4)."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(D, dtype=torch.float64))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        bend = torch.tensor([1.5, 0.8, 0.4], dtype=torch.float64)
        return 0.5 * ((self.x - z).square() * bend).sum(1)


def data() -> torch.Tensor:
    z = torch.randn(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return z - z.mean(0)


def losses(model: nn.Module, batch: Any) -> torch.Tensor:
    return model(batch[0])


def forecast(folder: Path, rate: float = 0.2, schedule: Any = 6, **options: Any) -> Any:
    model, z = Bowl(), data()
    loader = DataLoader(TensorDataset(z), 6, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    training = attach(model, optimizer, loader, schedule, logdir=folder)
    while training.epoch < 6:
        for batch in training:
            training.step(losses(model, batch).mean())
    predicted = training.forecast(losses, [(z,)], **options)
    for _ in range(options.get("updates", 1000) // 10 + 1):
        for batch in training:
            training.step(losses(model, batch).mean())
    training.close()
    return predicted


def test_what_came_agrees_in_a_bowl(tmp_path: Path) -> None:
    """Exact there: within 4 standard errors of the looks, and not with the wrong sampling's."""
    predicted = forecast(tmp_path, updates=3200)
    log = read_log(tmp_path)
    came = log.below("came/")
    assert set(log.below("predicted/")) == set(predicted) - {"invariance_limit"} == set(came)
    found, name = came["stationary_excess_loss"], "stationary_excess_loss"
    error = (found.high - found.low) / 4
    assert abs(found.value - predicted[name].value) < 4 * error
    # With replacement it would hover at (eta/2B) tr Sigma (2 - eta H)^-1: far above.
    bend = np.array([1.5, 0.8, 0.4])
    trace = (data().numpy() ** 2).mean(0) * bend**2 / (2 - 0.2 * bend)
    assert 0.2 / 6 / 2 * trace.sum() - found.value > 4 * error
    assert came["eta_lambda_max"].value == pytest.approx(0.3, rel=1e-6)
    page = render(training_page(log))
    assert "stationary excess loss" in page


def test_a_barrier_that_is_not_climbed_is_a_lower_limit(tmp_path: Path) -> None:
    predicted = forecast(tmp_path, barrier=5.0, updates=320)
    found = read_log(tmp_path).below("came/")["escape_exponent"]
    assert found.low == pytest.approx(math.log(320))
    assert math.isinf(found.high)
    rows = score(predicted, {"eta_lambda_max": predicted["eta_lambda_max"]})
    assert rows[0]["verdict"] == "agrees"


def test_a_change_of_the_batch_size_ends_it(tmp_path: Path) -> None:
    forecast(tmp_path, schedule="0:6 420:30", updates=640)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["event"] for row in rows if "event" in row][1] == "forecast given up"
    assert not read_log(tmp_path).below("came/")


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"at least {LOOKS}"):
        forecast(tmp_path, updates=5)
    model = Bowl()
    loader = DataLoader(TensorDataset(data()), 6)
    training = attach(model, torch.optim.Adam(model.parameters()), loader, 6)
    with pytest.raises(InputError, match=r"must be torch\.optim\.SGD"):
        training.forecast(losses, [(data(),)])
