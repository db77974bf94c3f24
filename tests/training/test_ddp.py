"""Several processes under DDP over gloo make the updates that one process makes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
sys.path.append(str(Path(__file__).parent))

from loops import Indexed, mean_loss, network, parameters  # noqa: E402

from batchwell.training.noise import StepNoise, combine  # noqa: E402

WORKER = Path(__file__).with_name("ddp_worker.py")
WORLD = 2
# 104 examples: 16, 16, then 48 at a time, the last of them ragged: 24.
SIZES = [16, 16, 48, 24]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the processes of three trainings wrote."""
    place = tmp_path_factory.mktemp("ddp")
    running = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(WORLD), str(place)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD)
    ]
    for process in running:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    return place


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads((folder / f"out{rank}.json").read_text())[name] for rank in range(WORLD)]


def by_hand(sizes: list[int]) -> torch.Tensor:
    """Plain SGD on the same examples: rank r has r, r + 2, ..., so an update takes a run of rows."""
    model, data, at = network(dropout=0.0), Indexed(104), 0
    for size in sizes:
        batch = (data.inputs[at : at + size], data.targets[at : at + size])
        grads = torch.autograd.grad(mean_loss(model, batch), list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p -= 0.1 * g
        at += size
    return parameters(model)


@pytest.mark.parametrize("knob", ["accumulation", "sampler"])
def test_two_processes_are_as_one(knob: str, folder: Path) -> None:
    out = rows(folder, knob)
    for row in out:
        assert (row["updates"], row["examples"]) == (len(SIZES), 104)
        assert torch.allclose(torch.tensor(row["parameters"]), by_hand(SIZES), atol=1e-6)
    assert out[0]["parameters"] == out[1]["parameters"]
    # Gradients travel once an update and not with every micro-batch.
    assert out[0]["reduced"] == len(SIZES)
    log = (folder / knob / "log.jsonl").read_text().splitlines()
    assert sum("started" in line for line in log) == 1  # one process logs


@pytest.mark.parametrize("name", ["noise", "free"])
def test_all_processes_follow_the_same_noise(name: str, folder: Path) -> None:
    first, second = (row["sizes"] for row in rows(folder, name))
    assert first == second
    assert "noise_scale/high" in (folder / name / "log.jsonl").read_text()
    if name == "noise":  # two gradients an update say too little for that
        assert first[-1] > first[0] == 16


def exact() -> tuple[float, float]:
    """|grad F|^2 and tr Sigma of the network at its start, over all 24 examples."""
    model, data = network(dropout=0.0), Indexed(24)
    rows = []
    for k in range(24):
        loss = mean_loss(model, (data.inputs[k : k + 1], data.targets[k : k + 1]))
        grads = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([g.ravel() for g in grads]).double())
    each = torch.stack(rows)
    mean = each.mean(0)
    return float(mean @ mean), float((each - mean).square().sum(1).mean())


def off(values: list[float], truth: float) -> float:
    """How many standard errors the mean is off."""
    found = torch.tensor(values, dtype=torch.float64)
    return float((found.mean() - truth) / (found.std() / len(found) ** 0.5))


@pytest.mark.parametrize("name", ["even", "ragged"])
def test_noise_from_the_all_reduce_is_unbiased(name: str, folder: Path) -> None:
    """Four comparisons at 4 standard errors: a false alarm in 4,000 machines' seeds."""
    first, second = (row["rows"] for row in rows(folder, name))
    assert first == second  # each process comes to the same numbers
    assert {size for _, _, size in first} == {12 if name == "even" else 10}
    for k, truth in enumerate(exact()):
        assert abs(off([row[k] for row in first], truth)) < 4


def test_data_taken_for_infinite_would_show(folder: Path) -> None:
    """The peers' estimator: off by -tr Sigma / (n - 1)."""
    square, trace = exact()
    values = [row[0] for row in rows(folder, "stream")[0]["rows"]]
    assert off(values, square) < -6
    assert abs(off(values, square - trace / 23)) < 4


def test_intervals_from_the_all_reduce_cover(folder: Path) -> None:
    """40 windows of 10 steps: fewer than 32 covers of 95 % are 1.3 in 10,000."""
    found = [
        StepNoise(*row) for name in ("even", "ragged") for row in rows(folder, name)[0]["rows"]
    ]
    windows = [combine(found[k : k + 10]) for k in range(0, len(found), 10)]
    for name, truth in zip(("gradient_norm_squared", "noise_trace"), exact(), strict=True):
        intervals = [getattr(noise, name).interval for noise in windows]
        covered = sum(low <= truth <= high for low, high in intervals)
        assert covered >= 32
        missed = sum(low <= truth * 1.5 <= high for low, high in intervals)
        assert missed < 32  # negative control: something else is not covered so often


def test_wrong_sizes_would_show() -> None:
    assert not torch.allclose(by_hand(SIZES), by_hand([16, 16, 72]), atol=1e-4)


def test_a_loss_of_nan_on_one_process_stops_all(folder: Path) -> None:
    for row in rows(folder, "nan"):
        assert "loss is nan at step 2 (32 examples), batch size 48" in row["error"]
        assert torch.allclose(torch.tensor(row["parameters"]), by_hand([16, 16]), atol=1e-6)
