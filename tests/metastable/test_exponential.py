"""Exponentials of generators against SciPy, and their digits where SciPy's have none."""

import math

import numpy as np
import pytest
from scipy.linalg import expm, expm_frechet

from batchwell.metastable.exponential import exponential, exponential_slope


def generator(rng: np.random.Generator, m: int = 7) -> np.ndarray:
    q = rng.random((m, m)) * np.exp(rng.normal(0, 3, (m, m)))
    np.fill_diagonal(q, 0.0)
    return q - np.diag(q.sum(axis=1))


def test_it_is_the_exponential(rng: np.random.Generator) -> None:
    q = np.stack([generator(rng) for _ in range(3)])
    for time in (0.0, 1e-3, 1.0, 30.0):
        got = exponential(q * time)
        for a, b in zip(got, q, strict=True):
            np.testing.assert_allclose(a, expm(b * time), rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(got.sum(axis=-1), 1.0, atol=1e-10)


def test_its_slope_is_the_frechet_derivative(rng: np.random.Generator) -> None:
    q, change = generator(rng), rng.normal(size=(7, 7))
    for time in (0.1, 20.0):
        want = expm_frechet(q * time, change)
        got = exponential_slope(q * time, change)
        np.testing.assert_allclose(got[0], want[0], rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(got[1], want[1], rtol=1e-7, atol=1e-10)


def test_tiny_chances_keep_their_digits() -> None:
    # Ten births in a row at rate k: (k t)^10 / 10! exp(-k t), the last state absorbing.
    k, n = 1e-4, 11
    q = np.diag([-k] * (n - 1) + [0.0]) + np.diag([k] * (n - 1), 1)
    got = exponential(q)[0, 9]
    assert got == pytest.approx(k**9 / math.factorial(9) * math.exp(-k), rel=1e-12)
    assert exponential(np.zeros((2, 2))).tolist() == [[1.0, 0.0], [0.0, 1.0]]
