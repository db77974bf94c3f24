"""Run directories under torn writes, full disks and changed settings. Nothing is random."""

import errno
import json
import math
import os
import tomllib
from threading import Thread

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchwell.errors import InputError, RunError
from batchwell.estimate import Estimate, exponential_mean, share
from batchwell.progress import Interrupted, Tracker, time_left, tracked
from batchwell.results import EscapeRow, FinalRow, LineRow, MinimumRow, StudyResult
from batchwell.runs import create, to_toml, write_atomic

SETTINGS = {"problem": "double-well", "seed": 3, "learning_rates": [0.1], "data": {"file": "a"}}
ARRAYS = {"steps": np.arange(5.0), "observed": np.array([True, False])}


@pytest.fixture
def run(tmp_path):
    out = create(tmp_path / "run", SETTINGS)
    out.write_chunk("one", ARRAYS, {"n": 5})
    return out


def test_chunks_come_back(run):
    assert run.has("one")
    assert not run.has("two")
    arrays, facts = run.read_chunk("one")
    assert facts == {"n": 5}
    for key, value in ARRAYS.items():
        np.testing.assert_array_equal(arrays[key], value)
    assert not list(run.path.rglob("*.part"))
    with pytest.raises(RunError, match="two is not finished"):
        run.read_chunk("two")


@pytest.mark.parametrize("file", ["one.steps.npy", "one.observed.npy", "one.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "flipped"])
def test_a_torn_chunk_does_not_count(run, file, damage):
    path = run.path / "chunks" / file
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        half = len(content) // 2
        flipped = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
        path.write_bytes({"empty": b"", "cut": content[:half], "flipped": flipped}[damage])
    assert not run.has("one")
    run.write_chunk("one", ARRAYS, {"n": 5})
    assert run.has("one")


def test_sums_are_those_of_the_files(run):
    import hashlib

    workers = [
        Thread(target=run.write_chunk, args=(f"t{k}", {"a": np.full(3, k)}, {})) for k in range(8)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    lines = (run.path / "SHA256SUMS").read_text().splitlines()
    assert len(lines) == 2 + 8
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((run.path / name).read_bytes()).hexdigest() == digest


def test_pickles_are_neither_written_nor_read(run):
    with pytest.raises(ValueError, match="allow_pickle"):
        run.write_chunk("bad", {"a": np.array([object()])}, {})
    assert not run.has("bad")


def test_resuming_needs_the_same_settings(run):
    same = create(run.path, {**SETTINGS, "workers": 7, "versions": {"numpy": "9"}}, resume=True)
    assert same.has("one")
    for change, key in (
        ({"seed": 4}, "seed"),
        ({"learning_rates": [0.1, 0.2]}, "learning_rates"),
        ({"paths": 9}, "paths"),
        ({"problem": None}, "problem"),
        ({"data": {"file": "b"}}, "data"),
    ):
        with pytest.raises(InputError, match="differs from the run to resume") as caught:
            create(run.path, {**SETTINGS, **change}, resume=True)
        assert caught.value.key == key
        assert "\n" not in str(caught.value)
    assert run.has("one")


def test_a_directory_in_use_is_refused(run, tmp_path):
    with pytest.raises(InputError, match=r"out = .*--resume"):
        create(run.path, SETTINGS)
    with pytest.raises(InputError, match=r"--resume = .*no run to resume"):
        create(tmp_path / "none", SETTINGS, resume=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"out = .*new or empty"):
        create(tmp_path / "full", SETTINGS)
    (run.path / "run.toml").write_text("seed = [")
    with pytest.raises(InputError, match=r"out = .*run\.toml"):
        create(run.path, SETTINGS, resume=True)


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    # Under a regular file nothing can be made, not even by root.
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match="out = ") as caught:
            create(place, SETTINGS)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"run directory = .*cannot be written"):
        write_atomic(tmp_path / "file" / "x", b"")
    with pytest.raises(InputError, match=r"run directory = .*cannot be written"):
        write_atomic(tmp_path / "absent" / "x", b"")


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_loses_nothing(run, monkeypatch, call):
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(
            RunError, match="No space left on device; everything finished"
        ) as caught:
            run.write_chunk("two", ARRAYS, {})
        assert "\n" not in str(caught.value)
        with pytest.raises(RunError, match="No space left"):
            run.write_text("estimates.json", "{}")
    assert {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()} == before
    assert run.has("one")
    assert not run.has("two")
    run.write_chunk("two", ARRAYS, {})
    assert run.has("two")


def test_a_disk_full_at_the_start_can_be_tried_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="No space left"):
            create(tmp_path / "run", SETTINGS)
    assert create(tmp_path / "run", SETTINGS).path.is_dir()


def test_an_interrupted_write_keeps_the_old_file(run, monkeypatch):
    old = (run.path / "run.toml").read_bytes()

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            run.write_text("run.toml", "")
    assert (run.path / "run.toml").read_bytes() == old


# TOML ---------------------------------------------------------------------------------------------

scalars = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
)
leaves = (
    scalars | st.lists(scalars, max_size=4) | st.lists(st.lists(scalars, max_size=2), max_size=2)
)
keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
tables = st.dictionaries(keys, leaves | st.dictionaries(keys, leaves, max_size=3), max_size=5)


@given(tables)
def test_toml_comes_back(table):
    assert tomllib.loads(to_toml(table)) == table


def test_toml_of_numpy_numbers_and_none():
    table = {
        "a": np.float64(0.1),
        "b": np.int64(3),
        "c": None,
        "d": np.bool_(True),
        "e": [np.float64(2)],
    }
    assert tomllib.loads(to_toml(table)) == {"a": 0.1, "b": 3, "d": True, "e": [2.0]}
    assert math.isnan(tomllib.loads(to_toml({"x": math.nan}))["x"])
    deep = {"a": {"b": {"c": 1}}, "t": (1, 2)}
    assert tomllib.loads(to_toml(deep)) == {"a": {"b": {"c": 1}}, "t": [1, 2]}


# Results ------------------------------------------------------------------------------------------


def test_results_survive_json():
    steps = exponential_mean(100.0, 3, 9).with_notes("a note")
    none = exponential_mean(100.0, 0, 9)
    minimum = MinimumRow("A", 0.1, 2.0, 3.0, 0.5, 1.0, 0.9, 4, 0.3, "flat", (1.0, -2.0))
    escapes = (
        EscapeRow("A", "sgd", 0.1, 2, 0.05, 100, 1, steps, 0.01, 2, 1.5),
        EscapeRow("A", "diffusion-1", 0.1, 4, 0.025, 100, 3, none),
        EscapeRow("A", "sgd", 0.1, 8, 0.0125, 100, 3, None, error="diverged"),
    )
    mean = Estimate(1.0, 0.1, (0.8, 1.2), "1", "m", 9)
    finals = (
        FinalRow("A", "B = 4", 0.1, 80, ((4, 20),), {"A": share(3, 9)}, share(3, 9), mean, None),
    )
    result = StudyResult(
        "n", "t", "d", {"seed": 1}, {"numpy": "2"}, (minimum,), {"starts": 4}, escapes, finals,
        (LineRow("A", "B", (0.0, 1.0), (0.1, 0.2)),), ({"text": "yes"},), ("note",), 2.5, True,
    )  # fmt: skip
    text = json.dumps(result.to_dict(), allow_nan=False)
    assert StudyResult.from_dict(json.loads(text)) == result


# Progress -----------------------------------------------------------------------------------------


def test_progress_counts_shares_and_stops():
    seen = []
    tracker = Tracker(2, lambda done, total, task: seen.append((round(done, 9), total, task)))
    report = tracker.report("a")
    report(1, 4)
    report(0, 4)  # never backwards
    tracker.finish("b")
    report(9, 4)
    assert seen == [(0.25, 2, "a"), (0.25, 2, "a"), (1.25, 2, "b"), (2.0, 2, "a")]
    tracker.stop.set()
    with pytest.raises(Interrupted):
        report(1, 4)


def test_progress_without_a_terminal_is_plain_lines(capsys, monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("batchwell.progress.time.monotonic", lambda: float(next(clock)))
    with tracked(4, "Study") as tracker:
        tracker.finish("one")
    with tracked(4, "Study", quiet=True) as tracker:
        tracker.finish("one")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Study: 25 %, ")
    assert err.endswith(" left, at one\n")
    assert err.count("\n") == 1


def test_time_left_in_plain_words(monkeypatch):
    monkeypatch.setattr("batchwell.progress.time.monotonic", lambda: 100.0)
    assert time_left(90.0, 1.0, 4.0) == "30 s left"
    assert time_left(0.0, 1.0, 4.0) == "5 min left"
    assert time_left(99.0, 1.0, 4.0) == "estimating time left"
    assert time_left(0.0, 0.0, 4.0) == "estimating time left"
