"""Iterative solves for large grids in 3-D, to relative precision in every component.

The chance of leaving before returning to a well spans many powers of ten. Scaling the unknown by a
guess of itself (from a coarser mesh) turns it into numbers near 1, so that a small residual means
small relative errors everywhere (Doob's transform, used as a preconditioner).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, bicgstab

from ..errors import RunError

Floats = NDArray[np.float64]

TOLERANCE = 1e-11
MAX_ITERATIONS = 2000


class IncompleteLU:
    """Incomplete LU of an M-matrix on its own pattern: it exists and has positive pivots."""

    def __init__(self, matrix: sparse.csr_array) -> None:
        a = matrix.sorted_indices()
        self.matrix = a
        self._factors = a.data.copy()
        self._start, self._column = a.indptr, a.indices
        self._diagonal = _factor(self._start, self._column, self._factors)

    def apply(self, rhs: Floats) -> Floats:
        """Approximate solution of matrix x = rhs, both (n,)."""
        return _sweep(self._start, self._column, self._factors, self._diagonal, rhs)

    def solve(self, rhs: Floats, guess: Floats) -> Floats:
        """Solution of matrix x = rhs for rhs >= 0, `guess` > 0 a rough picture of x."""
        n = len(rhs)
        row = 1.0 / (self.matrix.diagonal() * guess)
        system: Any = LinearOperator(
            (n, n), matvec=lambda w: row * (self.matrix @ (guess * w)), dtype=np.float64
        )
        inverse: Any = LinearOperator(
            (n, n), matvec=lambda r: self.apply(r / row) / guess, dtype=np.float64
        )
        w, info = bicgstab(
            system,
            row * rhs,
            x0=np.ones(n),
            rtol=TOLERANCE,
            atol=0.0,
            M=inverse,
            maxiter=MAX_ITERATIONS,
        )
        if info != 0:
            raise RunError(
                f"the iterative solver did not converge in {MAX_ITERATIONS} steps: use "
                "fewer nodes (below 40 per direction the solver is direct)"
            )
        return guess * w


@numba.njit(cache=True, error_model="numpy")
def _factor(start, column, data):  # type: ignore[no-untyped-def]
    n = len(start) - 1
    diagonal = np.empty(n, dtype=np.int64)
    place = np.full(n, -1, dtype=np.int64)
    for i in range(n):
        for k in range(start[i], start[i + 1]):
            place[column[k]] = k
            if column[k] == i:
                diagonal[i] = k
        for k in range(start[i], start[i + 1]):
            j = column[k]
            if j >= i:
                break
            data[k] /= data[diagonal[j]]
            for m in range(diagonal[j] + 1, start[j + 1]):
                p = place[column[m]]
                if p >= 0:
                    data[p] -= data[k] * data[m]
        for k in range(start[i], start[i + 1]):
            place[column[k]] = -1
    return diagonal


@numba.njit(cache=True, error_model="numpy")
def _sweep(start, column, data, diagonal, rhs):  # type: ignore[no-untyped-def]
    n = len(rhs)
    x = rhs.copy()
    for i in range(n):
        for k in range(start[i], diagonal[i]):
            x[i] -= data[k] * x[column[k]]
    for i in range(n - 1, -1, -1):
        for k in range(diagonal[i] + 1, start[i + 1]):
            x[i] -= data[k] * x[column[k]]
        x[i] /= data[diagonal[i]]
    return x
