"""Linear algebra of absorbing Markov chains without cancellation.

Transfer operators of SGD and generators of diffusions are the same thing to a solver: non-negative
rates between nodes, a non-negative rate of leaving from each node, and for every question a linear
system with the matrix A = diag(row sums + exits) - rates. Gaussian elimination that never forms the
diagonal by subtraction (Grassmann, Taksar & Heyman, Oper. Res. 33, 1985; for M-matrices with known
row sums Alfa, Xue & Ye, Math. Comp. 71, 2002) keeps every entry of the answer to relative precision
however rare the exit; plain LU loses all digits beyond about 1e12 steps without a warning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas

Floats = NDArray[np.float64]

BLOCK = 96
STRIP = 256  # rows updated at once, lest the product be a second matrix
# Jumps this much rarer than the most frequent one are not followed through an elimination: what
# they could change lies below any rate that a float64 answer can show.
NEGLIGIBLE = 1e-100


@dataclass(frozen=True, eq=False)
class GTH:
    """Factors of A = diag(row sums + exits) - rates, as A = (I - F) (D - U), all non-negative.

    `signed` (n, n), C order, holds -F below the diagonal, D on it and -U above: no other copy is made.
    """

    signed: Floats = field(repr=False)

    def solve(self, rhs: Floats) -> Floats:
        """A^-1 rhs for rhs (n,) or (n, k); no cancellation when rhs >= 0."""
        turned = self.signed.T  # in the order that BLAS reads without a copy
        b = np.asarray(rhs, dtype=np.float64)
        half = blas.dtrsm(1.0, turned, b.reshape(len(b), -1), lower=0, trans_a=1, diag=1)
        return blas.dtrsm(1.0, turned, half, lower=1, trans_a=1).reshape(b.shape)

    def solve_transposed(self, rhs: Floats) -> Floats:
        """A^-T rhs: expected visits to each node from the starting law rhs."""
        turned = self.signed.T
        b = np.asarray(rhs, dtype=np.float64)
        half = blas.dtrsm(1.0, turned, b.reshape(len(b), -1), lower=1)
        return blas.dtrsm(1.0, turned, half, lower=0, diag=1).reshape(b.shape)


def gth_factor(rates: Floats, exits: Floats) -> GTH:
    """Factor A = diag(row sums + exits) - rates for rates (n, n) >= 0, exits (n,) >= 0.

    The diagonal of `rates` is ignored: staying in place changes nothing here.
    Blocks keep the work in matrix products; all of it is sums of non-negative terms. Only the
    stretch that a block's states jump to is touched, so that short steps in a wide domain, whose
    matrix is a band, cost its width squared and not the square of its size.
    """
    a = np.array(rates, dtype=np.float64, order="C")
    e = np.array(exits, dtype=np.float64)
    n, tiny = len(a), NEGLIGIBLE * float(a.max(initial=0.0))
    for k in range(0, n, BLOCK):
        m = min(k + BLOCK, n)
        end = m + _extent(np.any(a[k:m, m:] > tiny, axis=0))
        _eliminate_rows(a, e, k, m, end)
        if m == n:
            break
        upper = -np.triu(a[k:m, k:m], 1) + np.diag(np.diag(a[k:m, k:m]))
        low = m + _extent(np.any(a[m:, k:m] > tiny, axis=1))
        # F (D - U) = A_RK: a triangular solve whose every term is added.
        f = blas.dtrsm(1.0, upper, a[m:low, k:m], side=1, lower=0)
        a[m:low, k:m], a[low:, k:m] = f, 0.0
        for i in range(m, low, STRIP):
            strip = slice(i, min(i + STRIP, low))
            a[strip, m:end] += a[strip, k:m] @ a[k:m, m:end]
        e[m:low] += f @ e[k:m]
    pivots = a.diagonal().copy()
    np.negative(a, out=a)
    np.fill_diagonal(a, pivots)
    return GTH(a)


def _extent(used: Any) -> int:
    """One more than the index of the last entry set; 0 for none."""
    return int(len(used) - used[::-1].argmax()) if used.any() else 0


@numba.njit(cache=True, error_model="numpy")
def _eliminate_rows(a, e, start, stop, n):  # type: ignore[no-untyped-def]
    """Eliminate states start ... stop-1, which jump below n, from each other.

    Pivots are sums, never differences.
    """
    for k in range(start, stop):
        pivot = e[k]
        for j in range(k + 1, n):
            pivot += a[k, j]
        a[k, k] = pivot
        for i in range(k + 1, stop):
            f = a[i, k] / pivot
            a[i, k] = f
            if f != 0.0:
                for j in range(k + 1, n):
                    a[i, j] += f * a[k, j]
                e[i] += f * e[k]


@numba.njit(cache=True, error_model="numpy")
def tridiagonal_solve(down, up, exits, rhs):  # type: ignore[no-untyped-def]
    """GTH for a birth-death chain: rates down (n,), up (n,), exits (n,), rhs (n, k)."""
    n, m = rhs.shape
    e, r = exits.copy(), rhs.copy()
    pivot = np.empty(n)
    for k in range(n - 1):
        pivot[k] = e[k] + up[k]
        f = down[k + 1] / pivot[k]
        e[k + 1] += f * e[k]
        for j in range(m):
            r[k + 1, j] += f * r[k, j]
    pivot[n - 1] = e[n - 1]
    out = np.empty((n, m))
    for j in range(m):
        out[n - 1, j] = r[n - 1, j] / pivot[n - 1]
        for k in range(n - 2, -1, -1):
            out[k, j] = (r[k, j] + up[k] * out[k + 1, j]) / pivot[k]
    return out
