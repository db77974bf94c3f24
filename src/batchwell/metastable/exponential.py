"""Exponentials of generators, and their derivatives, from sums of terms that are not negative.

``exp(A) = exp(-mu) exp(A + mu I)`` by Taylor's series and squarings, mu the largest rate: for a
matrix with off-diagonal entries >= 0 nothing cancels, so that small chances keep their digits
(Moler & Van Loan, SIAM Rev. 45 (2003), method 3; Jensen's uniformisation). Plain products of
small matrices are also several times as fast as LAPACK's solves on busy cores.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
TERMS = 16  # of the series at mu <= 1/2: remainder below 1e-19


def exponential(matrix: Floats) -> Floats:
    """exp of matrices (..., m, m) whose off-diagonal entries are >= 0.

    Examples
    --------
    >>> exponential(np.array([[-1.0, 1.0], [0.0, 0.0]])).round(6).tolist()
    [[0.367879, 0.632121], [0.0, 1.0]]
    """
    shifted, mu, squarings = _scaled(matrix)
    term = out = np.broadcast_to(np.eye(matrix.shape[-1]), matrix.shape)
    for k in range(1, TERMS + 1):
        term = term @ shifted / k
        out = out + term
    out = out * np.exp(-mu)
    for _ in range(squarings):
        out = out @ out
    return np.asarray(out)


def exponential_slope(matrix: Floats, change: Floats) -> tuple[Floats, Floats]:
    """(exp(A), d exp(A + s E)/ds at s = 0) of one matrix A (m, m), off-diagonal >= 0, and E."""
    shifted, mu, squarings = _scaled(matrix)
    by_change = change / 2.0**squarings
    term = out = np.eye(len(matrix))
    slope_term = slope = np.zeros_like(matrix)
    for k in range(1, TERMS + 1):
        slope_term = (slope_term @ shifted + term @ by_change) / k
        term = term @ shifted / k
        out, slope = out + term, slope + slope_term
    out, slope = out * np.exp(-mu), slope * np.exp(-mu)
    for _ in range(squarings):
        slope = out @ slope + slope @ out
        out = out @ out
    return np.asarray(out), np.asarray(slope)


def _scaled(matrix: Floats) -> tuple[Floats, float, int]:
    """(A / 2^s + mu I, mu, s) with mu <= 1/2."""
    largest = float(np.abs(np.diagonal(matrix, axis1=-2, axis2=-1)).max(initial=0.0))
    squarings = max(0, int(np.ceil(np.log2(2 * largest)))) if largest > 0 else 0
    mu = largest / 2.0**squarings
    shifted = matrix / 2.0**squarings + mu * np.eye(matrix.shape[-1])
    return np.maximum(shifted, 0.0), mu, squarings
