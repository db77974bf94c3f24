"""Torch is part of the test set-up: without it these tests fail, they are not skipped."""

import pytest
import torch

torch.set_num_threads(1)  # the models are tiny; threads would only wait for each other


@pytest.fixture(autouse=True)
def _same_bits() -> None:
    torch.manual_seed(20260101)
