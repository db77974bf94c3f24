"""The page of a training: what the log says, and nothing that was trained again or torn."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from batchwell.cli import main
from batchwell.errors import InputError
from batchwell.report.document import render
from batchwell.report.training.page import answer, training_page
from batchwell.report.training.reading import Trained, read_log, thinned


def row(step: int, batch_size: int = 16, **values: Any) -> dict[str, Any]:
    shared = {"examples": 16 * step, "loss": 1.0 / step, "batch_size": batch_size}
    return {"step": step, **shared, "learning_rate": 0.1, "temperature": 0.1 / batch_size, **values}


def scale(value: float, low: float, high: float) -> dict[str, float]:
    return {"noise_scale": value, "noise_scale/low": low, "noise_scale/high": high}


ROWS = [
    {"event": "started", "step": 0, "schedule": {"name": "noise_scale"}, "data_size": 1797},
    row(1),
    row(2, **scale(40.0, 30.0, 60.0)),
    row(3, 32),
    row(4, 32, **{"predicted/loss": 0.2, "predicted/loss/low": 0.1, "predicted/loss/high": 0.3}),
    row(5, 32, **{"predicted/escape_steps": 9.0, "came/escape_steps": 20.0}),
    row(6, 32, **{"came/loss": 0.25, "came/loss/low": 0.2, "came/loss/high": 0.3}),
]


def written(folder: Path, rows: list[dict[str, Any]], tail: str = "") -> Trained:
    text = "".join(json.dumps(r) + "\n" for r in rows)
    (folder / "log.jsonl").write_text(text + tail)
    return read_log(folder)


def test_series_and_intervals(tmp_path: Path) -> None:
    log = written(tmp_path, ROWS)
    assert [p.value for p in log.points("batch_size")] == [16, 16, 32, 32, 32, 32]
    point = log.last("noise_scale")
    assert point is not None
    assert (point.examples, point.low, point.high) == (32, 30.0, 60.0)
    assert log.torn == 0


def test_a_torn_line_is_left_out_and_said(tmp_path: Path) -> None:
    log = written(tmp_path, ROWS, '{"step": 7, "loss": 0.0')
    assert log.torn == 1
    assert log.last("loss").step == 6  # type: ignore[union-attr]
    assert "Left out of the log, as unreadable: 1 line." in render(training_page(log))


def test_what_was_trained_again_counts_once(tmp_path: Path) -> None:
    again = [{"event": "resumed", "step": 3}, row(4, 64)]
    log = written(tmp_path, [*ROWS, *again])
    assert [p.step for p in log.points("loss")] == [1, 2, 3, 4]
    assert log.last("batch_size").value == 64  # type: ignore[union-attr]
    assert log.below("predicted/") == {}
    assert "Gone on from a saved state at update 3." in render(training_page(log))


def test_of_two_trainings_in_one_log_the_last_is_shown(tmp_path: Path) -> None:
    log = written(tmp_path, [*ROWS, {**ROWS[0], "data_size": 5}, row(1, 8), row(2, 8)])
    assert [(p.step, p.value) for p in log.points("batch_size")] == [(1, 8), (2, 8)]
    assert (log.start["data_size"], log.before) == (5, 1)
    assert "The log holds 1 training from before this one" in render(training_page(log))


def test_a_training_started_anew_and_gone_on_with_is_one(tmp_path: Path) -> None:
    again = [ROWS[0], {"event": "resumed", "step": 3}, row(4, 64)]
    log = written(tmp_path, [*ROWS, *again])
    assert [p.step for p in log.points("loss")] == [1, 2, 3, 4]
    assert log.before == 0
    assert [e["event"] for e in log.events] == ["started", "resumed"]


def test_a_training_that_only_started_hides_none(tmp_path: Path) -> None:
    assert written(tmp_path, [*ROWS, ROWS[0]]).last("loss").step == 6  # type: ignore[union-attr]


def test_answer(tmp_path: Path) -> None:
    text = answer(written(tmp_path, ROWS))
    assert "fell from 1.00 to 0.167 over 96 examples and 6 updates" in text
    assert "grew from 16 to 32" in text
    assert "40.0 [30.0, 60.0] examples at the end; the batch size 32 lies within" in text
    assert "1 of 2 predictions agreed" in text


def test_an_undetermined_scale_is_a_limit(tmp_path: Path) -> None:
    log = written(tmp_path, [*ROWS, row(7, 32, **scale(math.inf, 80.0, math.inf))])
    assert "at least 80 examples" in answer(log)
    page = render(training_page(log))
    assert "only a lower limit is known" in page
    assert "more than 80" in page


def test_a_limit_short_of_the_prediction_decides_nothing(tmp_path: Path) -> None:
    bound = {
        "predicted/exponent": 6.0,
        "predicted/exponent/low": 6.0,
        "predicted/exponent/high": "inf",
    }
    verdicts = []
    for low in (5.0, 7.0):
        came = {"came/exponent": "inf", "came/exponent/low": low, "came/exponent/high": "inf"}
        page = render(training_page(written(tmp_path, [*ROWS, row(7, 32, **bound, **came)])))
        verdicts.append(("not decided" in page, "3 predictions" in page))
    assert verdicts == [(True, False), (False, True)]


def test_a_smooth_growth_is_shown_in_a_few_rows(tmp_path: Path) -> None:
    log = written(tmp_path, [row(k, 16 + k) for k in range(1, 60)])
    page = render(training_page(log))
    assert "Changes of the batch size: 12 of 59" in page


def test_page_holds_all_sections_and_escapes(tmp_path: Path) -> None:
    odd = {"predicted/<b>": 1.0, "came/<b>": 3.0}
    page = render(training_page(written(tmp_path, [*ROWS, row(7, 32, **odd)])))
    for key in ("loss", "schedule", "noise", "temperature", "predictions", "settings"):
        assert f'<section id="{key}"' in page
    assert "apart: 3.00 times the prediction" in page
    assert "<b>" not in page.replace("<body>", "")
    assert "&lt;b&gt;" in page


def test_little_logged_still_makes_a_page(tmp_path: Path) -> None:
    page = render(training_page(written(tmp_path, [{"step": 1, "examples": 4, "sharpness": 2.0}])))
    assert "No loss was logged." in page
    assert "not measured: give attach a Probe" in page


@pytest.mark.parametrize(
    "text", [None, "", "{}\n[1]\nnonsense\n", '{"event": "started", "step": 0}\n']
)
def test_no_log_is_one_line(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(InputError) as caught:
        read_log(tmp_path)
    assert "\n" not in str(caught.value)


def test_thinning_keeps_the_mean(tmp_path: Path) -> None:
    points = written(tmp_path, [row(k) for k in range(1, 101)]).points("loss")
    thin = thinned(points, 10)
    assert len(thin) == 10
    assert thin[-1].examples == 1600
    assert sum(p.value for p in thin) * 10 == pytest.approx(sum(p.value for p in points))


def test_command_writes_the_page_without_torch(tmp_path: Path) -> None:
    written(tmp_path, ROWS)
    code = (
        "import sys; from batchwell.cli import main\n"
        f"try: main(['train-report', {str(tmp_path)!r}])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'jax'} & set(sys.modules)), "
        "[m for m in sys.modules if m.startswith('batchwell.training')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] []"
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_command_refuses_in_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["train-report", str(tmp_path / "none")])
    assert done.exit_code == 2
    assert "holds no log.jsonl" in done.output
    assert len(done.output.splitlines()) == 1
