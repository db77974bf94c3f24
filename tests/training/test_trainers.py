"""Lightning, Transformers' Trainer and Accelerate make the updates that the schedule asks for."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
sys.path.append(str(Path(__file__).parent))

from loops import Indexed, mean_loss, network, parameters  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from batchwell.errors import Divergence, InputError  # noqa: E402
from batchwell.training.loop import attach  # noqa: E402
from batchwell.training.measure import Probe  # noqa: E402
from batchwell.training.schedules import SCHEDULES, constant  # noqa: E402


def installed(name: str) -> Any:
    """A library, or a test skipped with the reason: it is missing, or does not import here.

    Not where the trainers are what is tested: ``make test-trainers`` fails then.
    """
    if os.environ.get("BATCHWELL_TRAINERS"):
        return importlib.import_module(name)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        pytest.skip(f'{error}: pip install "batchwell[trainers]"')
    except Exception as error:  # such as a torchvision that does not fit torch
        pytest.skip(f"{name} does not import here: {error}")


pytestmark = pytest.mark.filterwarnings("ignore")
# 104 examples in batches of 8; sizes change at 32 examples, seen at the boundary after 32 or 48.
PLAN = "0:16 32:24 56:40"
SIZES = [16, 16, 24, 40, 8]


def by_hand(sizes: list[int], epochs: int = 1, rate: float = 0.1) -> torch.Tensor:
    model, data = network(dropout=0.0), Indexed(104)
    at = 0
    for size in sizes:
        rows = slice(at % 104, at % 104 + size)
        loss = mean_loss(model, (data.inputs[rows], data.targets[rows]))
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p -= rate * g
        at += size
    return parameters(model)


def logged(folder: Path) -> list[tuple[int, float]]:
    rows = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [(row["examples"], row["batch_size"]) for row in rows if "batch_size" in row]


# ---- Lightning ----


@pytest.fixture(scope="module")
def lightning() -> Any:
    return installed("lightning.pytorch")


def lightning_fit(lightning: Any, schedule: Any, folder: Path, **options: Any) -> Any:
    from batchwell.training.lightning import LightningSchedule

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(dropout=0.0)
            self.poison = options.pop("poison", None)
            self.automatic_optimization = not options.pop("manual", False)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = mean_loss(self.net, batch)
            return loss * float("nan") if batch_idx == self.poison else loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    checkpoint = options.pop("ckpt_path", None)
    micro, probe = options.pop("micro", 8), options.pop("probe", None)
    module = Module()
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[
            LightningSchedule(schedule, logdir=folder, log_every=1, keep_every=1, probe=probe)
        ],
        **{"max_epochs": 1, "enable_checkpointing": False, **options},
    )
    trainer.fit(module, DataLoader(Indexed(104), micro), ckpt_path=checkpoint)
    return trainer, module


@pytest.mark.parametrize(
    ("micro", "sizes"), [(8, SIZES), (16, [16, 16, 32, 40])], ids=["even", "ragged"]
)
def test_lightning(lightning: Any, micro: int, sizes: list[int], tmp_path: Path) -> None:
    plan = PLAN if micro == 8 else "0:16 32:32 64:64"  # of the last, 16 + 16 + 8 are left
    trainer, module = lightning_fit(lightning, plan, tmp_path, micro=micro)
    assert trainer.global_step == len(sizes)
    assert trainer.accumulate_grad_batches == 1
    assert torch.allclose(parameters(module.net), by_hand(sizes), atol=1e-6)
    assert [examples for examples, _ in logged(tmp_path)] == [
        sum(sizes[: k + 1]) for k in range(len(sizes))
    ]


def test_lightning_as_without_at_its_own_batch_size(lightning: Any, tmp_path: Path) -> None:
    _, module = lightning_fit(lightning, 8, tmp_path)
    assert torch.allclose(parameters(module.net), by_hand([8] * 13), atol=1e-7)
    assert not torch.allclose(parameters(module.net), by_hand(SIZES), atol=1e-4)


def test_lightning_learning_rate_follows(lightning: Any, tmp_path: Path) -> None:
    plan = constant(16, coupling="linear", reference=32)
    trainer, module = lightning_fit(lightning, plan, tmp_path)
    assert torch.allclose(parameters(module.net), by_hand([16] * 6 + [8], rate=0.05), atol=1e-6)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.1


def test_lightning_follows_the_noise(lightning: Any, tmp_path: Path) -> None:
    def probe(module: Any) -> Probe:
        return Probe(module.net, data_size=104, micro_batches="by_size", window=4)

    plan = SCHEDULES["noise_scale"](8, hysteresis=1.0)
    lightning_fit(lightning, plan, tmp_path, probe=probe, max_epochs=4)
    sizes = [size for _, size in logged(tmp_path)]
    assert sizes[0] == 8
    assert sizes[-1] > 8
    assert "noise_scale/high" in (tmp_path / "log.jsonl").read_text()
    with pytest.raises(InputError, match="follows the gradient noise"):
        lightning_fit(lightning, plan, tmp_path)


def test_lightning_goes_on_from_a_checkpoint(lightning: Any, tmp_path: Path) -> None:
    whole, module = lightning_fit(lightning, "0:16 150:48", tmp_path / "a", max_epochs=2)
    first, _ = lightning_fit(lightning, "0:16 150:48", tmp_path / "b", enable_checkpointing=True)
    first.save_checkpoint(tmp_path / "state.ckpt")
    second, again = lightning_fit(
        lightning, "0:16 150:48", tmp_path / "b", max_epochs=2, ckpt_path=tmp_path / "state.ckpt"
    )
    assert second.global_step == whole.global_step
    assert torch.equal(parameters(module.net), parameters(again.net))


def test_lightning_stops_at_nan_and_keeps_the_last_good_state(
    lightning: Any, tmp_path: Path
) -> None:
    with pytest.raises(
        Divergence, match=r"loss is nan at step 2 \(32 examples\), batch size 24.* of step 1,"
    ):
        lightning_fit(lightning, PLAN, tmp_path, poison=5)
    saved = torch.load(tmp_path / "last_good.pt", weights_only=True)
    weights = torch.cat([v.ravel() for v in saved["model"].values()])
    assert torch.allclose(weights, by_hand([16]), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"manual": True}, "automatic_optimization"),
        ({"accumulate_grad_batches": 2}, "must be left at 1"),
    ],
)
def test_lightning_refuses(
    lightning: Any, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        lightning_fit(lightning, 16, tmp_path, **options)


# ---- Transformers ----


@pytest.fixture(scope="module")
def transformers() -> Any:
    installed("accelerate")
    library = installed("transformers")
    try:
        library.Trainer  # noqa: B018 - loaded when it is first used
    except Exception as error:
        pytest.skip(f"transformers.Trainer does not import here: {error}")
    return library


class Labelled(Indexed):
    def __getitem__(self, k: int) -> Any:
        return {"x": self.inputs[k], "labels": self.targets[k]}


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network(dropout=0.0)
        self.seen: list[int] = []
        self.poison: int | None = None

    def forward(self, x: Any, labels: Any) -> Any:
        self.seen.append(len(x))
        loss = mean_loss(self.net, (x, labels))
        return {"loss": loss * float("nan") if len(self.seen) == self.poison else loss}


class SumNet(Net):
    """Divides by the examples of the whole update, as language models do."""

    def forward(self, x: Any, labels: Any, num_items_in_batch: Any = None, **_: Any) -> Any:
        loss = super().forward(x, labels)["loss"]
        share = 1.0 if num_items_in_batch is None else len(x) / num_items_in_batch
        return {"loss": loss * share}


def transformers_fit(
    transformers: Any, schedule: Any, folder: Path, epochs: int = 1, **options: Any
) -> Any:
    from torch.utils.data import SequentialSampler

    from batchwell.training.transformers import TransformersSchedule

    class Trainer(transformers.Trainer):
        def _get_train_sampler(self, *given: Any) -> Any:
            return (
                super()._get_train_sampler(*given)
                if shuffled
                else SequentialSampler(self.train_dataset)
            )

    shuffled, checkpoint = options.pop("shuffled", False), options.pop("checkpoint", None)
    model, probe = options.pop("model", Net)(), options.pop("probe", None)
    model.poison = options.pop("poison", None)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        num_train_epochs=epochs,
        learning_rate=0.1,
        max_grad_norm=options.pop("max_grad_norm", 0.0),
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy=options.pop("save_strategy", "no"),
        **{"gradient_accumulation_steps": 2, "lr_scheduler_type": "constant", **options},
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=Labelled(104),
        optimizers=(torch.optim.SGD(model.parameters(), lr=0.1), None),
        callbacks=[
            TransformersSchedule(schedule, logdir=folder, log_every=1, keep_every=1, probe=probe)
        ],
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer, model


def test_transformers(transformers: Any, tmp_path: Path) -> None:
    """From 32 examples on 32 at a time; 104 leave 8 for the last update."""
    trainer, model = transformers_fit(transformers, "0:16 32:32", tmp_path)
    sizes = [16, 16, 32, 32, 8]
    assert trainer.state.global_step == len(sizes)
    assert torch.allclose(parameters(model.net), by_hand(sizes), atol=1e-6)
    assert trainer.args.gradient_accumulation_steps == 2
    assert [examples for examples, _ in logged(tmp_path)] == [16, 32, 64, 96, 104]


def test_transformers_begins_a_size_where_the_trainer_can(
    transformers: Any, tmp_path: Path
) -> None:
    """48 wanted from 32 on: 4 batches are no multiple of 6, the 6 after the next update are."""
    trainer, model = transformers_fit(transformers, "0:16 32:48", tmp_path, epochs=2)
    sizes = [16, 16, 16, 48, 8, 48, 48, 8]
    assert trainer.state.global_step == len(sizes)
    assert torch.allclose(parameters(model.net), by_hand(sizes), atol=1e-6)


def test_transformers_learning_rate_schedule_keeps_its_pace(
    transformers: Any, tmp_path: Path
) -> None:
    trainer, _ = transformers_fit(
        transformers, "0:16 32:32", tmp_path, epochs=4, lr_scheduler_type="linear"
    )
    # Planned: 7 updates of 16 an epoch. Epoch 1: 1 1 2 2 1; then 2 2 2 1 each.
    assert trainer.lr_scheduler.get_last_lr()[0] == 0.0
    assert trainer.lr_scheduler.last_epoch == 28


@pytest.mark.parametrize("at", [2, 4, 5, 7])
def test_transformers_goes_on_from_a_checkpoint(transformers: Any, at: int, tmp_path: Path) -> None:
    """Amid an epoch, after growth, and at an epoch's end (5); shuffled, with a falling rate."""
    options = {"epochs": 2, "shuffled": True, "lr_scheduler_type": "linear"}
    saves = {"save_strategy": "steps", "save_steps": 1}
    plan = "0:16 32:32 150:64"
    _, model = transformers_fit(transformers, plan, tmp_path / "a", **options, **saves)
    checkpoint = str(tmp_path / "a" / f"checkpoint-{at}")
    _, again = transformers_fit(
        transformers, plan, tmp_path / "b", checkpoint=checkpoint, **options
    )
    assert torch.equal(parameters(model.net), parameters(again.net))
    assert logged(tmp_path / "b") == logged(tmp_path / "a")[at:]
    assert len(again.seen) == len(model.seen) - sum([0, 2, 4, 8, 12, 13, 17, 21][at : at + 1])


def test_transformers_refuses_a_checkpoint_of_something_else(
    transformers: Any, tmp_path: Path
) -> None:
    saves = {"save_strategy": "steps", "save_steps": 1}
    transformers_fit(transformers, "0:16 32:32", tmp_path / "a", **saves)
    checkpoint = tmp_path / "a" / "checkpoint-3"
    with pytest.raises(InputError, match="another schedule"):
        transformers_fit(transformers, 16, tmp_path / "b", checkpoint=str(checkpoint))
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    state["stateful_callbacks"].pop("batchwell")
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="without this callback"):
        transformers_fit(transformers, "0:16 32:32", tmp_path / "b", checkpoint=str(checkpoint))


def test_transformers_follows_the_noise(transformers: Any, tmp_path: Path) -> None:
    def probe(model: Any) -> Probe:
        return Probe(model, data_size=104, micro_batches="equal", window=4)

    plan = SCHEDULES["noise_scale"](16, hysteresis=1.0)
    transformers_fit(transformers, plan, tmp_path, probe=probe, epochs=4)
    sizes = [size for _, size in logged(tmp_path)]
    assert sizes[0] == 16
    assert sizes[-1] > 16
    assert "noise_scale/high" in (tmp_path / "log.jsonl").read_text()
    with pytest.raises(InputError, match="max_grad_norm"):
        transformers_fit(transformers, plan, tmp_path, probe=probe, max_grad_norm=1.0)


def test_transformers_losses_that_are_shares_of_the_update(
    transformers: Any, tmp_path: Path
) -> None:
    """What is logged is the update's mean loss, whoever divides it."""
    losses = []
    for net in (Net, SumNet):
        folder = tmp_path / net.__name__
        _, model = transformers_fit(transformers, "0:16 32:32", folder, model=net)
        rows = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
        losses.append([row["loss"] for row in rows if "loss" in row])
        assert torch.allclose(parameters(model.net), by_hand([16, 16, 32, 32, 8]), atol=1e-6)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_transformers_stops_at_nan_and_keeps_the_last_good_state(
    transformers: Any, tmp_path: Path
) -> None:
    with pytest.raises(Divergence, match=r"loss is nan at step 2 \(32 examples\).* of step 1,"):
        transformers_fit(transformers, "0:16 32:32", tmp_path, poison=6)
    saved = torch.load(tmp_path / "last_good.pt", weights_only=True)
    weights = torch.cat([v.ravel() for v in saved["model"].values()])
    assert torch.allclose(weights, by_hand([16]), atol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "options", "words"),
    [
        (32, {}, "must be 4"),
        ("0:24", {}, "must be 3"),
        ("0:12", {}, "must be 1"),
        ("0:16 32:24", {}, "multiple of 16, the schedule's first size"),
        (SCHEDULES["noise_scale"](16), {}, "follows the gradient noise"),
    ],
)
def test_transformers_refuses(
    transformers: Any, schedule: Any, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        transformers_fit(transformers, schedule, tmp_path, **options)


# ---- Accelerate ----


def test_accelerate(tmp_path: Path) -> None:
    accelerate = installed("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    net = network(dropout=0.0)
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    model, opt, loader = accelerator.prepare(net, opt, DataLoader(Indexed(104), 8))
    training = attach(model, opt, loader, PLAN, backward=accelerator.backward)
    for batch in training:
        training.step(mean_loss(model, batch))
    assert training.course.updates == len(SIZES)
    assert torch.allclose(parameters(net), by_hand(SIZES), atol=1e-6)


def test_what_is_missing_is_said_in_one_line() -> None:
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    sys.modules[name] = None\n"
        "    try: importlib.import_module(f'batchwell.training.{name}')\n"
        "    except Exception as error: print(type(error).__name__, error)"
    )
    command = [sys.executable, "-c", code, "lightning", "transformers"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        assert line.startswith("RunError")
        assert 'is not installed: pip install "batchwell[trainers]"' in line
    assert len(done.stdout.splitlines()) == 2
