"""Attaching: same bits as without, right weights, right sizes, resumable, and it stops in time."""

import json
import math
import random
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
sys.path.append(str(Path(__file__).parent))

from loops import (  # noqa: E402
    EXAMPLES,
    Indexed,
    loader,
    mean_loss,
    network,
    optimiser,
    parameters,
    run,
)
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, IterableDataset  # noqa: E402

from batchwell.errors import Divergence, InputError, RunError  # noqa: E402
from batchwell.estimate import Estimate  # noqa: E402
from batchwell.training.accumulate import AccumulationProbe  # noqa: E402
from batchwell.training.log import JsonLines, to_tensorboard  # noqa: E402
from batchwell.training.loop import Training, attach  # noqa: E402
from batchwell.training.measure import Probe  # noqa: E402
from batchwell.training.noise import GradientNoise  # noqa: E402
from batchwell.training.schedules import SCHEDULES  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
EPOCHS = 3


class Measured:
    """Stands for a probe: measures once, at the update numbered `at`."""

    every = window = 1
    known = True

    def __init__(self, at: int, scale: float) -> None:
        self.at, self.scale, self.steps = at, scale, 0

    def step(self, loss: Any, scale: float) -> None:
        self.steps += 1

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.steps}

    def noise(self) -> GradientNoise | None:
        if self.steps != self.at:
            return None
        sure = Estimate(self.scale, 0.0, (self.scale, self.scale), "examples", "given", 9)
        return GradientNoise(sure, sure, sure, 16, 100, 9)


def reseed(seed: int) -> None:
    for generator in (torch.manual_seed, random.seed, np.random.seed):
        generator(seed)


def numpy_state() -> list[int]:
    return np.random.get_state()[1].tolist()  # noqa: NPY002 - the generator that others use


def attached(jitter: float = 0.0, schedule: Any = 16, workers: int = 0, **options: Any) -> Any:
    model = network()
    training = attach(
        model, optimiser(model), loader(16, jitter, num_workers=workers), schedule, **options
    )
    return model, training


@pytest.mark.parametrize("knob", ["accumulation", "sampler"])
@pytest.mark.parametrize("workers", [0, 2])
def test_bit_identical_to_the_plain_loop(knob: str, workers: int) -> None:
    reseed(0)
    model = network()
    opt = optimiser(model)
    plain = loader(16, jitter=0.1, num_workers=workers)
    for _ in range(EPOCHS):
        for batch in plain:
            mean_loss(model, batch).backward()
            opt.step()
            opt.zero_grad()
    generator_after = torch.get_rng_state()

    reseed(0)
    other, training = attached(0.1, 16, workers, knob=knob)
    run(training, other, EPOCHS)
    assert torch.equal(parameters(model), parameters(other))
    assert torch.equal(generator_after, torch.get_rng_state())


def test_not_identical_to_another_batch_size() -> None:
    results = []
    for size in (16, 32):
        model, training = attached(0.0, size)
        run(training, model, 1)
        results.append(parameters(model))
    assert not torch.allclose(*results, atol=1e-4)


def test_ragged_batches_are_weighted_by_their_examples() -> None:
    """103 examples in batches of 16 leave one of 7: the last update of 48 sees 16 + 16 + 7 = 39."""
    model = network(dropout=0.0)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    training = attach(model, opt, DataLoader(Indexed(), 16), 48)
    twin = network(dropout=0.0)
    data = Indexed()
    run(training, model, 1)
    for start, stop in ((0, 48), (48, 96), (96, 103)):
        batch = (data.inputs[start:stop], data.targets[start:stop])
        grads = torch.autograd.grad(mean_loss(twin, batch), list(twin.parameters()))
        with torch.no_grad():
            for p, g in zip(twin.parameters(), grads, strict=True):
                p -= 0.1 * g
    assert torch.allclose(parameters(model), parameters(twin), rtol=0, atol=1e-6)
    assert training.course.updates == 3
    assert training.course.examples == EXAMPLES


def test_ragged_batch_within_an_update() -> None:
    """Micro-batches of 60 and 43: equal weights would be wrong, and differ."""
    model = network(dropout=0.0)
    before = parameters(model).clone()
    opt = torch.optim.SGD(model.parameters(), lr=1.0)
    training = attach(
        model,
        opt,
        [
            (Indexed().inputs[:60], Indexed().targets[:60]),
            (Indexed().inputs[60:], Indexed().targets[60:]),
        ],
        103,
    )
    run(training, model, 1)
    moved = before - parameters(model)

    def gradient(weights: tuple[float, float]) -> torch.Tensor:
        twin, data = network(dropout=0.0), Indexed()
        parts = [slice(0, 60), slice(60, 103)]
        loss = sum(
            w * mean_loss(twin, (data.inputs[part], data.targets[part]))
            for w, part in zip(weights, parts, strict=True)
        )
        return torch.cat([g.ravel() for g in torch.autograd.grad(loss, list(twin.parameters()))])

    assert torch.allclose(moved, gradient((60 / 103, 43 / 103)), atol=1e-6)
    assert not torch.allclose(moved, gradient((0.5, 0.5)), atol=1e-4)


@pytest.mark.parametrize("knob", ["accumulation", "sampler"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop_at", [3, 9])
def test_resume_amid_an_epoch_is_bit_identical(
    knob: str, workers: int, stop_at: int, tmp_path: Path
) -> None:
    plan = "0:16 150:48"
    reseed(0)
    jitter = 0.1 if knob == "accumulation" or not workers else 0.0  # its workers begin anew
    whole, training = attached(jitter, plan, workers, knob=knob)
    run(training, whole, EPOCHS)
    after = torch.get_rng_state(), random.getstate(), numpy_state()

    reseed(0)
    model, training = attached(jitter, plan, workers, knob=knob)
    run(training, model, EPOCHS, after=lambda t: t.course.updates == stop_at)
    saved = json.dumps(training.state_dict())
    assert len(saved) < 50_000
    weights, momentum = model.state_dict(), training.optimizer.state_dict()

    reseed(99)
    again, training = attached(jitter, plan, workers, knob=knob)
    torch.rand(5)
    again.load_state_dict(weights)
    training.optimizer.load_state_dict(momentum)
    told = pytest.warns(UserWarning, match="begin anew")
    with told if workers and knob == "sampler" else nullcontext():
        training.load_state_dict(json.loads(saved))
    run(training, again, EPOCHS)
    assert torch.equal(parameters(whole), parameters(again))
    assert torch.equal(after[0], torch.get_rng_state())
    assert after[1:] == (random.getstate(), numpy_state())


def test_persistent_workers_generators_are_said_not_to_come_back() -> None:
    model = network()
    data = loader(16, num_workers=1, persistent_workers=True)
    training = attach(model, optimiser(model), data, 16)
    with pytest.warns(UserWarning, match="persistent_workers=False"):
        training.load_state_dict(training.state_dict())


@pytest.mark.parametrize("generator", [random.seed, np.random.seed])
def test_a_generator_left_alone_would_show(generator: Any) -> None:
    """Augmentations by Python's and NumPy's generators are part of what resuming must restore."""
    ends = []
    for seed in (0, 1):
        reseed(0)
        model, training = attached(0.1)
        generator(seed)
        run(training, model, 1)
        ends.append(parameters(model))
    assert not torch.equal(*ends)


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_no_stale_batches(workers: int, persistent: bool) -> None:
    """A measurement changes the size while workers hold batches of the old one."""
    model = network()
    data = loader(8, num_workers=workers, persistent_workers=persistent)
    training = attach(
        model,
        optimiser(model),
        data,
        SCHEDULES["noise_scale"](8, multiple_of=8),
        knob="sampler",
        probe=Measured(at=3, scale=32.0),
    )
    sizes, seen = [], []
    for _ in range(2):
        for batch in training:
            assert len(batch[2]) in (training.batch_size, 103 - 24 - 2 * 32, 103 % 32)
            sizes.append(len(batch[2]))
            seen += batch[2].tolist()
            training.step(mean_loss(model, batch))
    assert sizes == [8, 8, 8, 32, 32, 15, 32, 32, 32, 7]
    assert sorted(seen[:103]) == sorted(seen[103:]) == list(range(103))


def test_a_planned_change_drops_nothing_that_workers_loaded() -> None:
    _, training = attached(0.0, "0:16 48:32", 2, knob="sampler")
    training._batches._load_again = None  # any dropping would call it
    assert [len(b[2]) for b in training if training.step(torch.ones((), requires_grad=True))] == [
        16, 16, 16, 32, 23
    ]  # fmt: skip


def test_learning_rate_follows_for_the_moment_of_the_update() -> None:
    seen: list[float] = []

    class Spy(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure)

    model = network()
    opt = Spy(model.parameters(), lr=0.1)
    plan = SCHEDULES["steps"]("0:16 48:64", coupling="linear", warmup=32)
    run(attach(model, opt, loader(16), plan), model, 1)
    assert seen == pytest.approx([0.05, 0.1, 0.1, 0.4])
    assert opt.param_groups[0]["lr"] == 0.1


def probed(schedule: Any, batch_size: int = 16) -> Any:
    model = network(dropout=0.0)
    probe = Probe(model, data_size=EXAMPLES, micro_batches="by_size", examples=None, window=4)
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    return model, attach(model, opt, loader(batch_size), schedule, probe=probe), probe


def test_a_probe_sees_the_gradients_that_the_update_gets() -> None:
    """At one batch size, measured over micro-batches of 16 or at once: the same examples."""
    rows = []
    for micro in (16, 48):
        model, training, probe = probed(48, micro)
        steps: list[Any] = []
        step = probe.step
        probe.step = lambda *a, keep=steps, call=step, **k: keep.append(call(*a, **k))
        run(training, model, 2)
        rows.append([(r.gradient_norm_squared, r.noise_trace) for r in steps[1:]])
        training.close()
    assert rows[0] == [pytest.approx(row, rel=1e-4, abs=1e-7) for row in rows[1]]


def test_resume_of_a_measured_schedule_is_bit_identical() -> None:
    plan = SCHEDULES["noise_scale"](16, hysteresis=1.0)
    whole, training, _ = probed(plan)
    run(training, whole, 4)
    sizes = training.batch_size
    training.close()
    assert sizes > 16  # else this says nothing

    model, training, _ = probed(plan)
    run(training, model, 4, after=lambda t: t.course.updates == 6)
    saved = json.dumps(training.state_dict())
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    training.close()
    again, training, _ = probed(plan)
    again.load_state_dict(weights)
    training.load_state_dict(json.loads(saved))
    run(training, again, 4)
    training.close()
    assert training.batch_size == sizes
    assert torch.equal(parameters(whole), parameters(again))


def test_a_batch_of_one_example_is_not_measured() -> None:
    """103 examples in batches of 17 leave one over."""
    model, training, probe = probed(17, 17)
    run(training, model, 3)
    training.close()
    assert probe.steps == training.course.updates == 3 * 7
    assert probe.noise().steps == 4  # its window is full


def test_accumulated_gradients_measure_too() -> None:
    """48 = 3 x 16; of 103 examples the last update has one micro-batch, of 7."""
    model = network(dropout=0.0)
    probe = AccumulationProbe(model, data_size=EXAMPLES, micro_batches="by_size", window=6)
    training = attach(model, optimiser(model), loader(16), 48, probe=probe)
    run(training, model, 4)
    training.close()
    assert training.course.updates == probe.steps == 12
    assert probe.noise().batch_size == 48


def test_a_schedule_that_needs_noise_gets_a_probe() -> None:
    model, training = network(dropout=0.0), None
    training = attach(model, optimiser(model), loader(16), SCHEDULES["noise_scale"](16))
    assert training._loop.probe is not None
    training.close()


def poison(model: nn.Module, training: Training, at: int) -> None:
    for _ in range(9):
        for batch in training:
            loss = mean_loss(model, batch)
            training.step(loss * math.nan if training.course.updates == at else loss)


def test_a_loss_of_nan_stops_with_where_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    model, training = attached(logdir=tmp_path, keep_every=4)
    kept: dict[int, torch.Tensor] = {}
    finish = training.course.finish

    def spy(*values: Any) -> None:
        finish(*values)
        kept[training.course.updates] = parameters(model).clone()

    training.course.finish = spy
    with pytest.raises(Divergence, match=r"loss is nan at step 11 \(167 examples\)") as caught:
        poison(model, training, 11)
    for words in ("batch size 16", "learning rate 0.1", "of step 8", "last_good.pt"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert torch.equal(parameters(model), kept[11])  # the update was not made
    saved = torch.load(tmp_path / "last_good.pt", weights_only=True)
    model.load_state_dict(saved["model"])
    assert torch.equal(parameters(model), kept[8])
    training.restore_last_good()
    assert training.course.updates == 8
    run(training, model, 2)
    assert torch.isfinite(parameters(model)).all()


def test_nan_at_once_keeps_nothing() -> None:
    model, training = attached()
    with pytest.raises(Divergence, match="no finite loss was seen"):
        poison(model, training, 0)


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(torch.randn(40, 6))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m, o: attach(m, o, DataLoader(Stream(), 4), 4), "has no length"),
        (lambda m, o: attach(m, o, loader(16), 112), "larger than the data"),
        (lambda m, o: attach(m, o, loader(16), 40), "multiple of 16"),
        (lambda m, o: attach(m, o, loader(16), "0:16 1k:8"), "shrinks"),
        (lambda m, o: attach(m, o, loader(16), 16, knob="magic"), "accumulation, sampler"),
        (lambda m, o: attach(m, o, [torch.ones(4, 6)], 4, knob="sampler"), "knob='accumulation'"),
        (lambda m, o: attach(m, o, loader(16), 16, logdir="/proc/none"), "cannot be written"),
    ],
)
def test_refused(make: Any, words: str) -> None:
    model = network()
    with pytest.raises(InputError, match=words) as caught:
        make(model, optimiser(model))
    assert "\n" not in str(caught.value)


def test_a_state_of_something_else_is_refused() -> None:
    _, training = attached()
    state = training.state_dict()
    wider = nn.Linear(6, 4)
    others = [
        (attach(wider, optimiser(wider), loader(16), 16), "another model"),
        (attached(schedule=32)[1], "schedule"),
        (attached(knob="sampler")[1], "knob"),
    ]
    for other, words in others:
        with pytest.raises(InputError, match=words) as caught:
            other.load_state_dict(state)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="must be what state_dict gave"):
        training.load_state_dict({"model": state["model"]})


def test_state_amid_an_accumulation_is_refused() -> None:
    model, training = attached(schedule=48)
    for batch in training:
        assert not training.step(mean_loss(model, batch))
        break
    with pytest.raises(RunError, match="amid an accumulation"):
        training.state_dict()
    with pytest.raises(RunError, match="without a batch"):
        training.step(torch.zeros(()))


def test_log_is_lines_of_json_and_every_log_gets_the_same(tmp_path: Path) -> None:
    calls: list[tuple[dict[str, float], int]] = []
    points: list[tuple[str, float, int]] = []

    class Writer:
        def add_scalar(self, name: str, value: float, step: int) -> None:
            points.append((name, value, step))

    model, training = attached(
        schedule="0:16 48:32",
        logdir=tmp_path,
        log=[lambda values, step: calls.append((values, step)), to_tensorboard(Writer())],
        log_every=2,
    )
    run(training, model, 1)
    training.record("sharpness", Estimate(3.0, 0.5, (2.0, 4.0), "1", "given", 9))
    training.close()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[0]["event"] == "started"
    values = [row for row in rows if "event" not in row]
    places = [(row["step"], row["examples"]) for row in values]
    # Update 4 changes nothing but is due, as every second one; 5 is the record.
    assert places == [(1, 16), (2, 32), (3, 48), (4, 80), (5, 103)]
    assert [{"step": step, **call} for call, step in calls] == values
    assert values[-1]["sharpness/high"] == 4.0
    assert ("batchwell/sharpness", 3.0, 5) in points
    # Momentum .9 makes a step ten times as long: eta / ((1 - .9) B).
    assert values[0]["temperature"] == pytest.approx(0.1 / 0.1 / 16)


def test_a_torn_line_is_ended_by_the_next_run(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    log = JsonLines(tmp_path)
    log({"loss": 0.25, "limit": math.inf}, 3)
    log.close()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(lines[2]) == {"step": 3, "loss": 0.25, "limit": "inf"}
