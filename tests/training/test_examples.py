"""The examples run, at small size, and say what their tables promise."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def claims() -> Any:
    sys.path.insert(0, str(FOLDER))
    return importlib.import_module("claims")


@pytest.fixture(scope="module")
def adaptive(claims: Any) -> Any:
    return importlib.import_module("adaptive")


def rows(text: str) -> list[list[str]]:
    lines = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in text.splitlines()]
    assert len({len(line) for line in lines if line != lines[1]}) == 1
    return lines[2:]


SMALL = {
    "sharpness": {"seeds": 2, "epochs": 1},
    "order": {"seeds": 2, "epochs": 1},
    "decay": {"seeds": 2, "epochs": 1},
    "escapes": {"seeds": 4, "steps": 200, "starts": 8},
    "stationary": {"seeds": 2, "updates": 300},
}


def test_every_claim_is_tried(claims: Any) -> None:
    assert set(SMALL) == set(claims.CLAIMS)


@pytest.mark.parametrize("name", SMALL)
def test_claim_runs(name: str, claims: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "escapes":
        quench = claims._quench
        monkeypatch.setattr(claims, "_quench", lambda w, count=300: quench(w, min(count, 300)))
        points = quench(claims.torch.randn(2, 25, dtype=claims.torch.float64), 300)
        monkeypatch.setattr(claims, "_minima", lambda _: [(1.0, 0.5, point) for point in points])
    assert len(rows(claims.CLAIMS[name](**SMALL[name]))) >= 6


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "wine", "teacher"])
def test_benchmark_runs(name: str, adaptive: Any) -> None:
    assert set(adaptive.DATA) == {"digits", "breast_cancer", "wine", "teacher"}
    text, outcomes = adaptive.run(name, seeds=2, examples=160)
    table = rows(text)
    assert len(table) == len(outcomes)
    assert sum("best by hand" in row[0] for row in table) == 1
