"""What trainers' callbacks share, driven by a loop that stands for a trainer."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent))

from loops import Indexed, mean_loss, network, parameters
from torch.utils.data import DataLoader

from batchwell.errors import Divergence, InputError
from batchwell.training.follower import Follower
from batchwell.training.measure import Probe
from batchwell.training.schedules import SCHEDULES, constant


class Trainer:
    """Makes the updates that the follower asks for, out of batches of 8."""

    def __init__(self, schedule: Any, folder: Path | None = None, probe: Any = None) -> None:
        self.model = network(dropout=0.0)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, weight_decay=1e-3)
        self.loader = DataLoader(Indexed(104), 8)
        self.follower = Follower(
            schedule, logdir=folder, log=(), log_every=1, keep_every=2, probe=probe
        )
        self.course = self.follower.start(self.model, self.loader, unit=8, main=True)
        self.follower.keep(self.model, self.optimizer)
        self.rates: list[float] = []

    def run(self, updates: int, poison: int | None = None) -> None:
        group, data = self.optimizer.param_groups[0], iter(self.loader)
        while self.course.updates < updates:
            batches = [next(data) for _ in range(self.course.batch_size // 8)]
            for batch in batches:
                loss = mean_loss(self.model, batch)
                loss = loss * math.nan if self.course.updates == poison else loss
                (loss / len(batches)).backward()
            total, parts = 8 * len(batches), len(batches)
            self.follower.before_update(
                self.optimizer, total, float(loss.detach()), last=loss, scale=1.0, parts=parts
            )
            self.rates.append(group["lr"])
            self.optimizer.step()
            self.follower.restore_rates(self.optimizer)
            self.optimizer.zero_grad()
            assert group["lr"] == 0.1
            assert self.follower.finish(self.model, self.optimizer)


def test_rates_are_scaled_for_the_update_alone() -> None:
    trainer = Trainer(SCHEDULES["steps"]("0:8 16:32", coupling="sqrt"))
    trainer.run(4)
    assert trainer.rates == pytest.approx([0.1, 0.1, 0.2, 0.2])
    assert trainer.course.examples == 16 + 64
    assert not trainer.follower.finish(trainer.model, trainer.optimizer)  # nothing was made


def test_a_loss_of_nan_leaves_the_last_good_state(tmp_path: Path) -> None:
    trainer = Trainer(8, tmp_path)
    trainer.run(2)
    good = parameters(trainer.model).clone()
    with pytest.raises(Divergence, match=r"loss is nan at step 3 \(24 examples\).* of step 2,"):
        trainer.run(9, poison=3)
    saved = torch.load(tmp_path / "last_good.pt", weights_only=True)
    assert torch.equal(torch.cat([v.ravel() for v in saved["model"].values()]), good)
    again = Trainer(8)
    again.follower.load_state_dict(json.loads(saved["training"]), again.model)
    assert again.course.updates == 2


def test_nan_at_once_keeps_nothing() -> None:
    with pytest.raises(Divergence, match="no finite loss was seen"):
        Trainer(8).run(1, poison=0)


def test_goes_on_from_its_state() -> None:
    plan = "0:8 24:16"
    whole, first, second = (Trainer(plan) for _ in range(3))
    whole.run(6)
    first.run(3)
    second.follower.load_state_dict(
        json.loads(json.dumps(first.follower.state_dict())), second.model
    )
    assert second.course.state_dict() == first.course.state_dict()
    with pytest.raises(InputError, match="another schedule"):
        Trainer(16).follower.load_state_dict(first.follower.state_dict(), first.model)
    other = torch.nn.Linear(6, 2)
    with pytest.raises(InputError, match="another model"):
        second.follower.load_state_dict(first.follower.state_dict(), other)


def test_noise_is_measured_and_followed() -> None:
    def probe(model: Any) -> Probe:
        return Probe(model, data_size=104, micro_batches="equal", window=3, examples=None)

    trainer = Trainer(SCHEDULES["noise_scale"](8, ratio=9.0, cap=24), probe=probe)
    trainer.run(5)
    assert trainer.course.batch_size > 8
    trainer.follower.close()
    assert not trainer.follower.probe._watch._handles  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (SCHEDULES["noise_scale"](8), "probe = None: must be given"),
        (12, "multiple of 8"),
        (constant(208), "larger than the data"),
    ],
)
def test_refused(schedule: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        Trainer(schedule)
    assert "\n" not in str(caught.value)
