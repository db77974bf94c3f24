"""Sparse LU on grids: beside SciPy's, on every shape of grid that generators make."""

import numpy as np
import pytest
from scipy import sparse
from scipy.sparse.linalg import spsolve

from batchwell.law.multifrontal import FrontalLU, nested_dissection


def cells(shape, keep=lambda x: np.ones(len(x), dtype=bool)):
    index = np.stack([a.ravel() for a in np.indices(shape)], axis=1)
    return index[keep(index)]


def one_way(index, reach, seed):
    """Random M-matrix, neither symmetric nor of symmetric pattern, coupling cells within `reach`."""
    rng = np.random.default_rng(seed)
    n = len(index)
    number = {tuple(c): i for i, c in enumerate(index)}
    rows, columns = [], []
    for i, c in enumerate(index):
        for step in rng.integers(-reach, reach + 1, (6, index.shape[1])):
            j = number.get(tuple(c + step), i)
            if j != i:
                rows.append(i)
                columns.append(j)
    rates = sparse.csr_array((rng.exponential(size=len(rows)), (rows, columns)), shape=(n, n))
    leaving = np.where(rng.random(n) < 0.1, 1.0, 1e-6)
    return (sparse.diags_array(np.asarray(rates.sum(axis=1)).ravel() + leaving) - rates).tocsr()


GRIDS = {
    "square": (cells((40, 37)), 1),
    "far coupling": (cells((30, 31)), 3),
    "two pieces and a hole": (cells((41, 40), lambda x: (x[:, 0] != 20) & (x[:, 1] > 3)), 1),
    "ring": (cells((48, 48), lambda x: abs(np.hypot(*(x - 24).T) - 16) < 6), 2),
    "space": (cells((11, 12, 10)), 1),
    "line": (cells((300,)), 1),
    "one node": (cells((1, 1)), 1),
}


@pytest.mark.parametrize("name", GRIDS)
def test_factors_solve_forwards_and_transposed(name):
    index, reach = GRIDS[name]
    matrix = one_way(index, reach, len(index))
    lu = FrontalLU(matrix, nested_dissection(index, reach))
    rhs = np.random.default_rng(1).random((len(index), 2))
    for transposed, a in ((False, matrix), (True, matrix.T)):
        x = lu.solve(rhs, transposed)
        np.testing.assert_allclose(x, spsolve(a.tocsc(), rhs).reshape(rhs.shape), rtol=1e-8)
        np.testing.assert_allclose(lu.solve(rhs[:, 1], transposed), x[:, 1], rtol=1e-12)


def test_a_reach_that_is_too_short_is_refused():
    index, reach = GRIDS["far coupling"]
    with pytest.raises(ValueError, match="reach"):
        FrontalLU(one_way(index, reach, 5), nested_dissection(index, 1))
