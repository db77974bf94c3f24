"""The stamp of .venv: when a set-up counts as done, and that finding so takes no time."""

import importlib.util
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = Path("scripts", "setup_env.py")


@pytest.fixture
def setup_env(tmp_path: Path) -> ModuleType:
    """The script, in a checkout of its own whose environment holds the extra `dev`."""
    for name in ("pyproject.toml", "constraints.txt", SCRIPT):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    spec = importlib.util.spec_from_file_location("setup_env", tmp_path / SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.BIN.mkdir(parents=True)
    (module.BIN / "python").symlink_to(sys.executable)
    module.write_stamp({"fingerprint": module.fingerprint(["dev"]), "extras": ["dev"]})
    return module


def test_a_finished_set_up_is_ready(setup_env: ModuleType) -> None:
    assert setup_env.is_ready(set())
    assert setup_env.is_ready({"dev"})
    assert not setup_env.is_ready({"dev", "torch"})


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_file_is_noticed(setup_env: ModuleType, name: str) -> None:
    with (setup_env.ROOT / name).open("a") as file:
        file.write("# changed\n")
    assert not setup_env.is_ready(set())


def test_another_python_is_noticed(setup_env: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_env, "PYTHON", "3.99.0")
    assert not setup_env.is_ready(set())


def test_a_broken_environment_is_noticed(setup_env: ModuleType) -> None:
    (setup_env.BIN / "python").unlink()
    assert not setup_env.is_ready(set())


@pytest.mark.parametrize("text", ["", "{", json.dumps({"extras": ["dev"]})])
def test_a_torn_stamp_is_noticed(setup_env: ModuleType, text: str) -> None:
    setup_env.STAMP.write_text(text)
    assert not setup_env.is_ready(set())


def test_a_failed_install_leaves_no_stamp(
    setup_env: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(command: list[str], lock: int) -> None:
        raise setup_env.SetupError("no network")

    monkeypatch.setattr(setup_env, "call", fail)
    with pytest.raises(setup_env.SetupError, match="no network"):
        setup_env.build({"dev"}, 0)
    assert not setup_env.STAMP.exists()


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("WARNING: Retrying\nNewConnectionError(...)\nERROR: No matching", "cannot be reached"),
        ("note\nERROR: Cannot install a\nERROR: ResolutionImpossible", "ERROR: Cannot install a"),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("Killed", "Killed"),
        ("", "no output"),
    ],
)
def test_a_failure_has_one_line(setup_env: ModuleType, output: str, reason: str) -> None:
    line = setup_env.reason(output)
    assert reason in line
    assert "\n" not in line


def test_a_second_call_starts_at_once(setup_env: ModuleType) -> None:
    command = [sys.executable, setup_env.ROOT / SCRIPT, "--extra", "dev", "--", "echo", "started"]
    seconds = []
    for _ in range(15):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
        assert done.stdout == "started\n"
        if seconds[-1] < 0.2:
            break
    assert min(seconds) < 0.2
