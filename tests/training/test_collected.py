"""These tests need torch: where they are skipped or not found, this one fails."""

import importlib.metadata

import pytest

# At least so many are collected from this folder; raise it as tests are added.
AT_LEAST = 325


def test_torch_tests_were_collected(request: pytest.FixtureRequest) -> None:
    here = request.path.parent
    folder = [item for item in request.session.items if item.path.parent == here]
    picked = {arg.split("::")[0] for arg in request.config.args}
    if any(arg.endswith(".py") for arg in picked) or request.config.option.keyword:
        pytest.skip("only some tests were asked for")
    assert len(folder) >= AT_LEAST
    skipped = [i.name for i in folder if any(True for _ in i.iter_markers("skip"))]
    assert skipped == []


def test_torch_is_the_pinned_one() -> None:
    assert importlib.metadata.version("torch").split("+")[0] == "2.13.0"
