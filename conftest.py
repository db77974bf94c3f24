"""What doctests and tests share: programs that XLA compiled, and modules without their extra."""

import os
import shutil
import tempfile
from importlib.util import find_spec

import pytest

# The tests need torch and have it; the trainers on top of it are the user's choice.
_TRAINERS = ("lightning", "transformers")
collect_ignore = [
    f"src/batchwell/training/{name}.py" for name in _TRAINERS if find_spec(name) is None
]


def pytest_configure(config: pytest.Config) -> None:
    """Have XLA compile a program once a run, not once in each worker, subprocess and loss.

    Half of the tests' time is XLA's, most of it for the same small programs. What it makes is
    thrown away at the end of the run: the next may be on another processor.
    """
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # a worker has its parent's
        shared = tempfile.mkdtemp(prefix="batchwell-tests-")
        config.add_cleanup(lambda: shutil.rmtree(shared, ignore_errors=True))
        os.environ["JAX_COMPILATION_CACHE_DIR"] = shared
