"""Torch is part of the test set-up: without it these tests fail, they are not skipped."""

from collections.abc import Iterator

import pytest
import torch
from threadpoolctl import threadpool_limits

torch.set_num_threads(1)  # the models are tiny; threads would only wait for each other


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


@pytest.fixture(autouse=True)
def _same_bits() -> None:
    torch.manual_seed(20260101)
