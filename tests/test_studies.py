"""The main job end to end, on problems small enough for a test.

Statistical checks use fixed seeds. The one comparison with a known mean is at 4 standard errors
(false alarm 6e-5); intervals are compared with what the same run would say if it were wrong.
"""

import json
import threading
from pathlib import Path

import numpy as np
import pytest

import batchwell as bw
from batchwell import runs
from batchwell.errors import Divergence, InputError, RunError
from batchwell.progress import Interrupted
from batchwell.results import StudyResult
from batchwell.studies import cells, network, work

SMALL = {
    "starts": 8,
    "learning_rates": [0.3],
    "batch_sizes": [1, 2],
    "horizon": 400,
    "paths": 16,
    "diffusion_paths": 8,
    "examples": 400,
    "final_paths": 16,
    "quiet": True,
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> bw.Study:
    return bw.study("tilted-well", tmp_path_factory.mktemp("run") / "a", **SMALL)


def test_it_finds_both_wells_and_orders_them_by_sharpness(done: bw.Study) -> None:
    minima = done.result.minima
    assert [m.label for m in minima] == ["A", "C"]
    assert minima[0].lambda_max < minima[1].lambda_max
    assert sum(m.starts for m in minima) == SMALL["starts"]
    assert {m.role for m in minima} == {"flat", "sharp"}


def test_every_cell_is_there_once_with_an_interval(done: bw.Study) -> None:
    seen = {(e.minimum, e.process, e.batch_size) for e in done.result.escapes}
    assert len(seen) == len(done.result.escapes) == 2 * 3 * 2
    for row in done.result.escapes:
        assert row.steps is not None
        assert row.steps.interval[0] <= row.steps.value <= row.steps.interval[1]
        assert row.steps.n == (16 if row.process == "sgd" else 8)
        assert row.temperature == pytest.approx(0.3 / row.batch_size)


def test_final_shares_add_up_and_spend_the_same_examples(done: bw.Study) -> None:
    for row in done.result.finals:
        assert sum(s.value for s in row.shares.values()) == pytest.approx(1)
        assert sum(b * k for b, k in row.stages) <= row.examples
        assert sum(b * (k + 1) for b, k in row.stages) > row.examples


def test_sgd_exit_times_are_those_of_the_double_well(tmp_path: Path) -> None:
    """Gaussian SGD at eta = .2 leaves x < 0 in a mean time that direct simulation also finds."""
    out = bw.study(
        "double-well",
        tmp_path / "run",
        **{
            **SMALL,
            "learning_rates": [0.2],
            "batch_sizes": [1],
            "paths": 256,
            "horizon": 5000,
            "diffusion_orders": [1],
            "minima": ["A"],
            "looks": 100_000,  # after every step
        },
    )
    row = next(e for e in out.result.escapes if e.process == "sgd")
    sgd = bw.SGD(bw.problem("double-well").loss, 0.2)
    side = -1.0 if out.result.minima[0].x[0] < 0 else 1.0
    direct = bw.mean_exit_time(sgd, [side], bw.half_space([-side], 0.0), paths=2048, seed=3)
    z = (row.steps.value - direct.value) / np.hypot(row.steps.stderr, direct.stderr)
    assert abs(z) < 4
    # Negative control: half the batch would double the temperature, and be seen at once.
    hot = bw.mean_exit_time(
        bw.SGD(sgd.loss, 0.4), [side], bw.half_space([-side], 0.0), paths=512, seed=3
    )
    assert abs(row.steps.value - hot.value) / np.hypot(row.steps.stderr, hot.stderr) > 4


def test_the_run_directory_is_complete_and_its_sums_hold(done: bw.Study) -> None:
    import hashlib

    names = {p.name for p in done.path.iterdir()}
    assert {"run.toml", "chunks", "SHA256SUMS", "estimates.json", "report.html"} <= names
    for line in (done.path / "SHA256SUMS").read_text().splitlines():
        digest, name = line[:64], line[66:]
        assert hashlib.sha256((done.path / name).read_bytes()).hexdigest() == digest
    again = StudyResult.from_dict(json.loads((done.path / "estimates.json").read_text()))
    assert again.escapes == done.result.escapes
    assert again.finals == done.result.finals


def test_results_do_not_depend_on_workers(done: bw.Study, tmp_path: Path) -> None:
    other = bw.study("tilted-well", tmp_path / "b", workers=1, **SMALL)
    strip = [(e.minimum, e.process, e.batch_size, e.steps) for e in other.result.escapes]
    assert strip == [(e.minimum, e.process, e.batch_size, e.steps) for e in done.result.escapes]
    assert other.result.finals == done.result.finals


def test_resume_computes_only_what_is_missing(
    done: bw.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = done.path / "chunks" / "escape-A-sgd-eta0.3-B1.json"
    kept = gone.read_bytes()
    gone.unlink()
    ran: list[str] = []
    real = cells.run_escape

    def counted(plan, landscape, cell, *more):  # type: ignore[no-untyped-def]
        ran.append(cell.name)
        return real(plan, landscape, cell, *more)

    monkeypatch.setattr(work, "run_escape", counted)
    again = bw.study("tilted-well", done.path, resume=True, **SMALL)
    assert ran == ["escape-A-sgd-eta0.3-B1"]
    plain = [(e.minimum, e.process, e.batch_size, e.steps) for e in again.result.escapes]
    assert plain == [(e.minimum, e.process, e.batch_size, e.steps) for e in done.result.escapes]
    assert json.loads(kept)["files"] == json.loads(gone.read_bytes())["files"]


def test_other_settings_cannot_resume(done: bw.Study) -> None:
    with pytest.raises(InputError, match="learning_rates"):
        bw.study("tilted-well", done.path, resume=True, **{**SMALL, "learning_rates": [0.2]})
    with pytest.raises(InputError, match="--resume"):
        bw.study("tilted-well", done.path, **SMALL)


def test_an_interrupt_keeps_what_is_finished_and_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count, lock = cells.run_escape, [0], threading.Lock()

    def interrupted(plan, landscape, cell, *more):  # type: ignore[no-untyped-def]
        with lock:
            count[0] += 1
            if count[0] > 3:
                raise Interrupted
        return real(plan, landscape, cell, *more)

    monkeypatch.setattr(work, "run_escape", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bw.study("tilted-well", tmp_path / "run", workers=1, **SMALL)
    stopped = json.loads((tmp_path / "run" / "estimates.json").read_text())
    assert stopped["finished"] is False
    assert len(stopped["escapes"]) == 3
    assert "--resume" in (tmp_path / "run" / "report.html").read_text()
    monkeypatch.undo()
    out = bw.study("tilted-well", tmp_path / "run", resume=True, **SMALL)
    assert out.result.finished
    assert len(out.result.escapes) == 12


def test_a_diverging_cell_is_named_and_the_others_stay(tmp_path: Path) -> None:
    well = bw.additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4, "gaussian", name="well")
    changes = {**SMALL, "learning_rates": [0.3, 6.0], "batch_sizes": [1], "diffusion_orders": [1]}
    out = bw.study(well, tmp_path / "run", **changes)
    failed = [e for e in out.result.escapes if e.error]
    fine = [e for e in out.result.escapes if not e.error]
    assert failed
    assert {e.learning_rate for e in failed} == {6.0}
    assert all("not finite by step" in e.error for e in failed)
    assert {0.3} <= {e.learning_rate for e in fine}
    assert "not finite by step" in out.report.read_text()


def test_a_full_disk_stops_with_one_line_and_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    real, written = runs.write_atomic, [0]

    def full(path: Path, content: bytes, key: str = "run directory") -> None:
        written[0] += 1
        if written[0] == 12:
            raise RunError(f"{path}: {errno.errorcode[errno.ENOSPC]}")
        real(path, content, key)

    monkeypatch.setattr(runs, "write_atomic", full)
    with pytest.raises(RunError, match="ENOSPC"):
        bw.study("tilted-well", tmp_path / "run", workers=1, **SMALL)
    monkeypatch.undo()
    assert bw.study("tilted-well", tmp_path / "run", resume=True, **SMALL).result.finished


@pytest.mark.parametrize(
    ("what", "changes", "message"),
    [
        ("double-wall", {}, "problem = 'double-wall'"),
        ("maier-stein", {}, "has no loss"),
        ("double-well", {"learning_rates": [-1.0]}, "learning_rates.0 = -1.0"),
        ("double-well", {"learning_rate": 0.1}, "unknown key"),
        ("double-well", {"batch_sizes": [1, 1]}, "must not repeat"),
        ("double-well", {"sampling": "without_replacement"}, "only with_replacement"),
        ("double-well", {"examples": 3, "batch_sizes": [8]}, "too few for a step"),
        ("least-squares", {"sampling": "without_replacement", "batch_sizes": [4]}, "3 examples"),
        ("double-well", {"minima": ["Q"]}, "minima = 'Q'"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    tmp_path: Path, what: str, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=r".") as caught:
        bw.study(what, tmp_path / "run", **{**SMALL, **changes})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_replacement_uses_the_finite_population_factor(tmp_path: Path) -> None:
    out = bw.study(
        "least-squares",
        tmp_path / "run",
        **{
            **SMALL,
            "sampling": "without_replacement",
            "learning_rates": [0.1],
            "batch_sizes": [2],
            "horizon": 50,
            "examples": 100,
        },
    )
    assert {e.temperature for e in out.result.escapes} == {0.1 * (3 - 2) / ((3 - 1) * 2)}


def test_reshuffled_epochs_get_no_diffusion_and_say_why(tmp_path: Path) -> None:
    out = bw.study(
        "least-squares",
        tmp_path / "run",
        **{
            **SMALL,
            "sampling": "reshuffle",
            "learning_rates": [0.1],
            "batch_sizes": [1, 3],
            "growing": [],
            "horizon": 50,
            "examples": 100,
        },
    )
    assert {e.process for e in out.result.escapes} == {"sgd"}
    assert any("Reshuffled" in note for note in out.result.notes)


def test_momentum_leaves_the_second_order_out(tmp_path: Path) -> None:
    out = bw.study("double-well", tmp_path / "run", momentum=0.5, **SMALL)
    assert {e.process for e in out.result.escapes} == {"sgd", "diffusion-1"}


def test_divergence_is_a_run_error() -> None:
    assert issubclass(Divergence, RunError)
    assert Divergence("x").exit_code == 1


def test_runs_without_a_name_get_places_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = {**SMALL, "diffusion_orders": [], "horizon": 20}
    places = [bw.study("double-well", **quick).path for _ in range(2)]
    assert [p.name for p in places] == ["double-well", "double-well-2"]
    again = bw.study("double-well", resume=True, **quick)
    assert again.path.name == "double-well-2"


def test_a_study_can_ask_for_the_network_of_its_basins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = bw.study("tilted-well", tmp_path / "run", network=True, **SMALL)
    assert out.network is not None
    assert out.network.finished
    assert [m.label for m in out.network.landscape.minima] == [m.label for m in out.result.minima]
    text = out.report.read_text(encoding="utf-8")
    for title in ("Disconnectivity tree", "Transition graph", "How large may the batch be, when?"):
        assert title in text
    assert 'id="explorer" hidden="hidden"' in text
    assert "Growing the batch" in out.answer
    rows = json.loads((out.path / "estimates.json").read_text())
    assert StudyResult.from_dict(rows).escapes == out.result.escapes
    (crossing,) = rows["network"]["passes"]
    assert sorted(crossing["between"]) == ["A", "C"]
    assert crossing["loss"] == pytest.approx(max(out.result.lines[0].loss), rel=1e-3)
    assert {r["state"] for r in rows["network"]["stays"]} == {"A", "C", "elsewhere"}

    # A network that cannot be finished takes nothing else with it.
    def diverge(*args, **options):  # type: ignore[no-untyped-def]
        raise Divergence("path 3 is not finite by step 7")

    for chunk in (out.path / "chunks").glob("jumps-*"):
        chunk.unlink()
    monkeypatch.setattr(network, "count_jumps", diverge)
    less = bw.study("tilted-well", out.path, network=True, resume=True, **SMALL)
    assert less.result.finished
    assert less.result.escapes == out.result.escapes
    assert any("path 3 is not finite by step 7" in note for note in less.result.notes)
    assert "path 3 is not finite by step 7" in less.report.read_text(encoding="utf-8")
