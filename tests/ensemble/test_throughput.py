"""A floor under the engine's speed, as a ratio to C on the same machine.

The usual failure is silent: something stops being vectorised and the engine is 8 to 20 times
slower. The floors are a third of what is reached, so that a busy machine does not trip them.
"""

import importlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FLOOR = {"well": 0.35, "large": 0.3, "exits": 0.3, "logistic": 0.25}


@pytest.fixture(scope="module")
def bench():
    if shutil.which("gcc") is None:
        pytest.skip("no gcc: the C reference cannot be built")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("cases"), importlib.import_module("timing")
    finally:
        sys.path.remove(str(BENCHMARKS))


def best_ratio(bench, case):
    """The best of five: noise of a shared machine only ever slows one of the two."""
    _, timing = bench
    case.fused(), case.c()
    return max(timing.rate(case.fused) for _ in range(5)) / max(
        timing.rate(case.c) for _ in range(5)
    )


def test_plain_steps(bench):
    case = bench[0].ensemble_case("", bench[0].WELL, [-1.0], 4096, 500, 0, "well")
    assert best_ratio(bench, case) > FLOOR["well"]


def test_array_code(bench):
    assert best_ratio(bench, bench[0].large_case(512, 50)) > FLOOR["large"]


def test_first_exits(bench):
    assert best_ratio(bench, bench[0].exit_case(2048)) > FLOOR["exits"]


def test_minibatches(bench):
    case = bench[0].logistic_case("with_replacement", 8, 256)
    assert best_ratio(bench, case) > FLOOR["logistic"]


def test_the_reference_leaves_subnormal_numbers_alone(bench):
    """Code linked with -ffast-math would switch them off for every test after this one."""
    importlib.import_module("reference").library()
    assert np.float64(5e-324) * np.float64(1.0) > 0
