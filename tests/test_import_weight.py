"""`import batchwell` and `batchwell --help` answer at once, and the facade is complete."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import batchwell

HEAVY = {"jax", "numba", "torch", "pandas", "plotly", "scipy", "sklearn", "xarray"}
IMPORT_SECONDS = 0.050
HELP_SECONDS = 0.250

PROBE = """
import json, sys, time
start = time.perf_counter()
import {name}
seconds = time.perf_counter() - start
print(json.dumps([seconds, sorted({{module.split(".")[0] for module in sys.modules}})]))
"""


def best(measure: Callable[[], float], limit: float, tries: int = 25) -> float:
    """Fastest of several tries: other processes can only add time. Stops once within the limit."""
    fastest = float("inf")
    for _ in range(tries):
        fastest = min(fastest, measure())
        if fastest <= limit:
            break
        time.sleep(0.05)
    return fastest


def run(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(path)} if path else None
    return subprocess.run(
        [sys.executable, *arguments], env=environment, check=True, capture_output=True, text=True
    )


def probe(name: str, path: Path | None = None) -> tuple[float, set[str]]:
    """Seconds that importing name takes in a fresh process, and the packages loaded by then."""
    seconds, loaded = json.loads(run("-c", PROBE.format(name=name), path=path).stdout)
    return seconds, set(loaded)


def modules_of_run(*arguments: str, path: Path | None = None) -> set[str]:
    """Packages that a whole run of the interpreter loads."""
    lines = run("-X", "importtime", *arguments, path=path).stderr.splitlines()
    rows = [line.rsplit("|", 1) for line in lines if line.startswith("import time:")]
    return {row[1].strip().split(".")[0] for row in rows}


def wall(*arguments: str) -> float:
    start = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - start


def test_import_is_light() -> None:
    _, loaded = probe("batchwell")
    assert loaded & HEAVY == set()
    assert best(lambda: probe("batchwell")[0], IMPORT_SECONDS) <= IMPORT_SECONDS


def test_help_is_light() -> None:
    loaded = modules_of_run("-m", "batchwell", "--help")
    assert "click" in loaded
    assert "jax" not in loaded
    assert best(lambda: wall("-m", "batchwell", "--help"), HELP_SECONDS) <= HELP_SECONDS


def test_a_heavy_package_is_caught(tmp_path: Path) -> None:
    package = tmp_path / "heavyweight"
    package.mkdir()
    (package / "__init__.py").write_text("import time, pandas\ntime.sleep(0.06)\n")
    (package / "__main__.py").write_text("")
    seconds, loaded = probe("heavyweight", tmp_path)
    assert {"pandas"} <= loaded & HEAVY
    assert seconds > IMPORT_SECONDS
    assert "pandas" in modules_of_run("-m", "heavyweight", path=tmp_path)


def test_facade_names_resolve() -> None:
    assert list(batchwell.__all__) == sorted(set(batchwell.__all__))
    assert set(batchwell.__all__) <= set(dir(batchwell))
    missing = [name for name in batchwell.__all__ if getattr(batchwell, name, None) is None]
    assert missing == []


def test_facade_refuses_unknown_names() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = batchwell.no_such_name
