"""Same numbers on every run: fixed seeds, CPU only, and no more threads than cores."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker is one core's worth of work. Numba keeps two threads for the tests that compare.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("NUMBA_NUM_THREADS", "2")

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None, database=None, print_blob=True)
settings.load_profile("fixed")


@pytest.fixture
def rng() -> np.random.Generator:
    """Generator with a fixed seed, fresh for each test."""
    return np.random.default_rng(20260101)
