"""The command line as a user meets it: exit codes, one line for each mistake, no traceback."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from batchwell.cli import main

QUICK = [
    "--quiet",
    "--workers",
    "1",
    *(
        f"--set={pair}"
        for pair in (
            "starts=8",
            "batch_sizes=[1, 2]",
            "horizon=200",
            "paths=8",
            "diffusion_paths=4",
            "examples=200",
            "final_paths=8",
            "learning_rates=[0.3]",
        )
    ),
]

LOSS = """
import jax
import batchwell

def loss(w, z):
    x, y = z
    return jax.nn.softplus(-y * (x @ w)) + 0.05 * w @ w

def vector(w, z):
    return w

def noisy(w, z):
    import numpy
    return loss(w, z) + numpy.random.rand()

def steps(w, z):
    return jax.numpy.floor(10 * w[0]) + w @ w
"""

SETTINGS = """
loss = "loss"
dim = 2
starts = 4
learning_rates = [0.5]
batch_sizes = [1, 4]
horizon = 100
paths = 4
diffusion_paths = 4
examples = 100
final_paths = 4

[data]
file = "data.csv"
target = "label"
"""


def call(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, list(words))
    return done.exit_code, done.output


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(5)
    rows = np.column_stack([rng.normal(size=(20, 2)), rng.choice([-1, 1], 20)])
    np.savetxt("data.csv", rows, delimiter=",", header="a,b,label", comments="")
    Path("my_loss.py").write_text(LOSS)
    Path("my.toml").write_text(SETTINGS)
    return tmp_path


def test_study_prints_a_table_and_the_place_of_the_report(tmp_path: Path) -> None:
    code, text = call("study", "double-well", "--out", str(tmp_path / "r"), *QUICK)
    assert code == 0, text
    assert "Mean SGD steps" in text
    assert "report:" in text
    assert (tmp_path / "r" / "report.html").is_file()


def test_own_loss_and_data(own: Path) -> None:
    code, text = call("study", "my.toml", "--code", "my_loss.py", "--quiet")
    assert code == 0, text
    assert (own / "runs" / "loss" / "report.html").is_file()


def test_a_settings_file_alone_never_runs_code(own: Path) -> None:
    Path("my_loss.py").write_text("open('ran', 'w')\n" + LOSS)
    code, text = call("study", "my.toml", "--quiet")
    assert code == 2
    assert "--code" in text
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (('"loss"\ndim', '"vector"\ndim'), "must return one real number"),
        (('"loss"\ndim', '"noisy"\ndim'), "hidden randomness"),
        (('"loss"\ndim', '"steps"\ndim'), "differentiable"),
        (('"loss"\ndim', '"absent"\ndim'), "no such name"),
        (("dim = 2", "dim = 3"), "must accept x of shape (3,)"),
        (("dim = 2", 'dim = "2"'), "dim ="),
        (("starts = 4", "starts = 0"), "starts = 0"),
        (("starts = 4", "start = 4"), "start = 4: unknown key"),
        (("[0.5]", "[0]"), "learning_rates.0"),
        (
            ("[1, 4]", '[1, 4]\nsampling = "without_replacement"\ngrowing = [[2, 32]]'),
            "20 examples",
        ),
        (("data.csv", "nothing.csv"), "no such data file"),
        (('"label"', '"lable"'), "no such column"),
        (("starts = 4", "starts = = 4"), "not valid TOML"),
    ],
)
def test_mistakes_are_one_line_with_exit_code_2(
    own: Path, edit: tuple[str, str], message: str
) -> None:
    text = Path("my.toml").read_text()
    assert edit[0] in text
    Path("my.toml").write_text(text.replace(*edit, 1))
    code, output = call("study", "my.toml", "--code", "my_loss.py", "--quiet")
    assert code == 2, output
    assert message in output
    assert output.startswith("error: ")
    assert output.count("\n") == 1
    assert not Path("runs").exists()


def test_nan_data_are_refused_with_their_place(own: Path) -> None:
    rows = Path("data.csv").read_text().splitlines()
    rows[3] = "nan," + rows[3].split(",", 1)[1]
    Path("data.csv").write_text("\n".join(rows))
    code, output = call("study", "my.toml", "--code", "my_loss.py", "--quiet")
    assert code == 2
    assert "data[2, 0] = nan" in output


def test_debug_shows_the_traceback(own: Path) -> None:
    done = CliRunner().invoke(main, ["--debug", "study", "no-such-problem"])
    assert done.exception is not None
    assert type(done.exception).__name__ == "InputError"


def test_unwritable_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, output = call("study", "double-well", "--out", str(tmp_path / "file" / "run"), *QUICK)
    assert code == 2
    assert output.startswith("error: out = ")


def test_a_diverging_cell_gives_exit_code_1_and_a_report(tmp_path: Path) -> None:
    code, output = call(
        "study", "double-well", "--out", str(tmp_path / "r"), *QUICK, "--set=learning_rates=[9.0]"
    )
    assert code == 1
    assert "failed:" in output
    assert (tmp_path / "r" / "report.html").is_file()


def test_new_writes_a_template_that_is_valid(own: Path) -> None:
    from batchwell.settings import read_settings

    assert call("new", "fresh.toml")[0] == 0
    assert read_settings("fresh.toml").loss == "loss"
    code, output = call("new", "fresh.toml")
    assert code == 2
    assert "--force" in output


@pytest.mark.parametrize("pair", ["paths", "paths=many", "=3"])
def test_set_wants_key_and_value(pair: str) -> None:
    code, output = call("study", "double-well", f"--set={pair}")
    assert code == 2
    assert output.startswith("error: --set")


def test_the_gallery_is_listed_with_its_answers() -> None:
    assert "breast-cancer-network" in call("problems")[1]
    code, text = call("problems", "double-well")
    assert code == 0
    assert "66.26862636" in text
    assert call("problems", "triple-well")[0] == 2


def test_ctrl_c_leaves_a_usable_run(tmp_path: Path) -> None:
    """A real process, a real signal."""
    out = tmp_path / "run"
    words = [
        "study",
        "double-well",
        "--out",
        str(out),
        "--workers",
        "1",
        "--set=paths=1000",
        "--set=horizon=1000000",
        "--set=learning_rates=[0.1]",
        "--set=diffusion_orders=[1]",
    ]
    # Whoever runs the tests in the background has SIGINT ignored, which processes inherit.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    running = subprocess.Popen(
        [sys.executable, "-c", f"{heard}; from batchwell.cli import main; main()", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    deadline = time.monotonic() + 60
    while not (out / "chunks" / "minima.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(2)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert "not finished" in (out / "report.html").read_text()


def test_weak_prints_both_orders_and_writes_a_report(tmp_path: Path) -> None:
    """Least squares at eta = .0125: order 1 is off by -.000879, order 2 by +.000203."""
    folder = tmp_path / "weak"
    code, text = call("weak", "least-squares", "--observable", "loss", "--out", str(folder))
    assert code == 0, text
    assert "-8.790515e-04" in text
    assert "+2.031236e-04" in text
    page = (folder / "report.html").read_text()
    assert "misses SGD&#39;s mean of F(x) at time T = 1 by 8.79 × 10⁻⁴ at order 1" in page
    assert json.loads((folder / "weak.json").read_text())["horizon"] == 1.0
    code, text = call("weak", "least-squares", "--out", str(folder))
    assert (code, text.count("\n")) == (2, 1)
    assert "new or empty" in text


def test_weak_takes_one_order_and_another_start(tmp_path: Path) -> None:
    words = ["--order", "1", "--start", "1,0", "--learning-rate", ".1,.05"]
    code, text = call("weak", "quadratic", *words, "--out", str(tmp_path / "one"))
    assert code == 0, text
    assert "order 1:" in text
    assert "order 2:" not in text
    code, text = call("weak", "quadratic", "--start", "1", "--out", str(tmp_path / "two"))
    assert (code, text.count("\n")) == (2, 1)
    assert "must have shape (2,)" in text


def test_exit_asks_sgd_and_its_diffusion_side_by_side(tmp_path: Path) -> None:
    words = ["--learning-rate", ".2", "--batch-size", "1", "--method", "law", "--quiet"]
    words += ["--method", "importance"]
    code, text = call("exit", "double-well", *words, "--out", str(tmp_path / "new"))
    assert code == 0, text
    assert "309.393" in text  # SGD, 61.878569 / .2
    assert "331.343" in text  # diffusion, 66.26862636 / .2
    page = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert "309.39" in page
    answers = json.loads((tmp_path / "new" / "answers.json").read_text(encoding="utf-8"))
    given = [(row["process"], row["method"], "value" in row) for row in answers["answers"]]
    both = [("law", True), ("importance", False)]
    assert given == [(name, *row) for name in ("SGD", "diffusion") for row in both]
    # A method that does not apply says why in one line.
    assert "fewer than two methods answered" in text
    assert "SGD, importance, 0.2/1: process = 'V/eps = 2.5': must be at least 5" in text


def test_numbers_and_domains_are_checked() -> None:
    code, text = call("exit", "double-well", "--learning-rate", "fast")
    assert (code, text.count("\n")) == (2, 1)
    assert "--learning-rate = 'fast'" in text
    assert "no domain" in call("exit", "least-squares")[1]
    assert "--batch-size" in call("exit", "double-well", "--batch-size", "1.5")[1]
    assert "one of square, first, cosine" in call("weak", "double-well", "--observable", "x")[1]


@pytest.mark.parametrize("size", ["inf", "nan", "1.5", "0", "1e30"])
@pytest.mark.parametrize("command", ["exit", "landscape"])
def test_batch_sizes_are_whole_numbers_that_fit(command: str, size: str) -> None:
    code, text = call(command, "double-well", "--batch-size", f"2,{size}")
    assert (code, text.count("\n")) == (2, 1)
    assert "--batch-size = " in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seed", "-1"], "--seed = -1: must be a whole number"),
        (["--learning-rate", ".1,-1"], "--learning-rate = -1.0"),
        (["--method", "law", "--method", "lwa"], "did you mean law?"),
        (["--out", "/proc/no/such"], "--out = '/proc/no/such': cannot be written"),
    ],
)
def test_exit_refuses_before_it_works(words: list[str], said: str) -> None:
    code, text = call("exit", "double-well", *words)
    assert (code, text.count("\n")) == (2, 1)
    assert said in text


def test_weak_refuses_a_place_that_cannot_be_written() -> None:
    code, text = call("weak", "quadratic", "--out", "/proc/no/such")
    assert (code, text.count("\n")) == (2, 1)
    assert "cannot be written" in text


def test_what_is_no_npz_is_told_without_a_word_of_unsafe_loading(own: Path) -> None:
    Path("data.npz").write_bytes(b"not an archive")
    text = Path("my.toml").read_text().replace("data.csv", "data.npz")
    Path("my.toml").write_text(text.replace('target = "label"\n', ""))
    code, output = call("study", "my.toml", "--code", "my_loss.py", "--quiet")
    assert (code, output.count("\n")) == (2, 1)
    assert "is no NPZ file" in output
    assert "pickle" not in output
