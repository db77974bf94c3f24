"""Sparse LU of M-matrices on grids, without pivots: the multifrontal method on a nested dissection.

Every separator of the dissection is eliminated as one dense block, a front, to which the two halves
that it separates have added what is left of them; large fronts run at the speed of dense products.
M-matrices with a dominant diagonal need no pivoting.

Source: Duff & Reid, "The multifrontal solution of indefinite sparse symmetric linear equations"
(ACM Trans. Math. Softw. 9, 1983); George, "Nested dissection" (SIAM J. Numer. Anal. 10, 1973).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEAF = 20  # nodes that are eliminated together at the bottom
BLOCK = 32  # columns of a front between two dense products
SMALL = 64  # size of a front up to which plain loops are faster


@dataclass(frozen=True, eq=False)
class Dissection:
    """Elimination order of grid nodes and its fronts, children before parents.

    Attributes
    ----------
    order
        (n,) nodes in the order of their elimination.
    stops
        (f,) end of each front's own stretch of `order`; it starts where the last one stops.
    split
        (f,) whether a front separates two halves (its children are the last two that are left).
    """

    order: Ints = field(repr=False)
    stops: Ints = field(repr=False)
    split: NDArray[np.bool_] = field(repr=False)


def nested_dissection(index: Ints, reach: int = 1) -> Dissection:
    """Recursive bisection of grid nodes (n, d), coupled over up to `reach` cells; separators last.

    Examples
    --------
    >>> grid = np.array([[i, j] for i in range(20) for j in range(20)])
    >>> sorted(nested_dissection(grid).order.tolist()) == list(range(400))
    True
    """
    order = np.arange(len(index))
    stops, split = _dissect(np.ascontiguousarray(index), order, reach, LEAF)
    return Dissection(order, stops, split)


class FrontalLU:
    """LU factors of a sparse (n, n) M-matrix, structure taken as symmetric.

    Raises
    ------
    ValueError
        Nodes are coupled beyond the reach of the dissection.

    Examples
    --------
    >>> chain = sparse.diags_array([-1.0, 2.5, -1.0], offsets=[-1, 0, 1], shape=(50, 50)).tocsr()
    >>> lu = FrontalLU(chain, nested_dissection(np.arange(50)[:, None]))
    >>> bool(np.allclose(chain @ lu.solve(np.ones(50)), 1))
    True
    """

    def __init__(self, matrix: Any, dissection: Dissection) -> None:
        p = self._order = dissection.order
        place = np.empty_like(p)
        place[p] = np.arange(len(p))
        a = sparse.csr_array(matrix)
        rows, columns = _permuted(a, p, place), _permuted(sparse.csr_array(a.T), p, place)
        tree = dissection.stops, dissection.split
        self._tree = dissection.stops
        self._start, self._rest = _structure(*rows[:2], *columns[:2], *tree)
        self._offset, size = _offsets(self._tree, self._start)
        self._factors = np.empty(size)
        _eliminate(
            *rows,
            *columns,
            *tree,
            self._start,
            self._rest,
            self._offset,
            self._factors,
            BLOCK,
            SMALL,
        )

    def solve(self, rhs: Floats, transposed: bool = False) -> Floats:
        """Solution of matrix x = rhs, or of its transpose, for rhs (n,) or (n, k)."""
        b = np.asarray(rhs, dtype=np.float64)
        columns = np.ascontiguousarray(b.reshape(len(b), -1)[self._order].T)
        sweep = _sweep_transposed if transposed else _sweep
        sweep(self._tree, self._start, self._rest, self._offset, self._factors, columns)
        out = np.empty((len(b), len(columns)))
        out[self._order] = columns.T
        return out.reshape(b.shape)


def _permuted(a: Any, order: Ints, place: Ints) -> tuple[Ints, Ints, Floats]:
    """Row starts, columns and values of a CSR matrix with rows and columns in elimination order."""
    counts = np.diff(a.indptr)[order]
    start = np.concatenate([[0], np.cumsum(counts)])
    take = np.repeat(a.indptr[order] - start[:-1], counts) + np.arange(start[-1])
    return start, place[a.indices[take]], a.data[take].astype(np.float64)


@numba.njit(cache=True)
def _dissect(index, order, reach, leaf):  # type: ignore[no-untyped-def]
    """Sort each stretch of `order` into lower half, upper half, separator; then the halves."""
    n, d = index.shape
    buffer = np.empty(n, dtype=order.dtype)
    stops, split = [0], [False]
    stack = [(0, n, False)]
    while len(stack) > 0:
        start, stop, done = stack.pop()
        if done:
            stops.append(stop)
            split.append(True)
            continue
        axis, span, least = 0, -1, 0
        for k in range(d):
            low = high = index[order[start], k] if stop > start else 0
            for i in range(start, stop):
                low, high = min(low, index[order[i], k]), max(high, index[order[i], k])
            if high - low > span:
                axis, span, least = k, high - low, low
        if stop - start <= leaf or span < 2 * reach + 1:
            stops.append(stop)
            split.append(False)
            continue
        cut = least + (span + 1) // 2
        place = start
        ends = [0, 0]
        for part in range(3):
            for i in range(start, stop):
                v = index[order[i], axis]
                where = 0 if v < cut else (2 if v < cut + reach else 1)
                if where == part:
                    buffer[place] = order[i]
                    place += 1
            if part < 2:
                ends[part] = place
        order[start:stop] = buffer[start:stop]
        stack.append((ends[1], stop, True))
        stack.append((ends[0], ends[1], False))
        stack.append((start, ends[0], False))
    return np.array(stops[1:]), np.array(split[1:])


@numba.njit(cache=True)
def _structure(start, column, start_t, column_t, stops, split):  # type: ignore[no-untyped-def]
    """Later nodes that each front meets: starts (f + 1,) into one array of sorted positions."""
    count = len(stops)
    seen = np.full(len(start) - 1, -1)
    out = np.empty(len(start) * 8, dtype=np.int64)
    begin = np.zeros(count + 1, dtype=np.int64)
    waiting = [0]
    waiting.pop()
    first = 0
    for f in range(count):
        stop, n = stops[f], begin[f]
        children = 2 if split[f] else 0
        most = begin[f] + 1
        for c in range(children):
            child = waiting[len(waiting) - 1 - c]
            most += begin[child + 1] - begin[child]
        most += start[stop] - start[first] + start_t[stop] - start_t[first]
        if most > len(out):
            bigger = np.empty(2 * most, dtype=np.int64)
            bigger[:n] = out[:n]
            out = bigger
        for _ in range(children):
            child = waiting.pop()
            for k in range(begin[child], begin[child + 1]):
                q = out[k]
                if q < first:
                    raise ValueError("nodes are coupled beyond the reach of the dissection")
                if q >= stop and seen[q] != f:
                    seen[q] = f
                    out[n] = q
                    n += 1
        for k in range(start[first], start[stop]):
            q = column[k]
            if q >= stop and seen[q] != f:
                seen[q] = f
                out[n] = q
                n += 1
        for k in range(start_t[first], start_t[stop]):
            q = column_t[k]
            if q >= stop and seen[q] != f:
                seen[q] = f
                out[n] = q
                n += 1
        out[begin[f] : n].sort()
        begin[f + 1] = n
        waiting.append(f)
        first = stop
    return begin, out[: begin[count]].copy()


@numba.njit(cache=True)
def _offsets(stops, begin):  # type: ignore[no-untyped-def]
    """Where the factors of each front lie: its own rows (s, s + u), then (u, s) below them."""
    offset = np.zeros(len(stops) + 1, dtype=np.int64)
    first = 0
    for f in range(len(stops)):
        s, u = stops[f] - first, begin[f + 1] - begin[f]
        offset[f + 1] = offset[f] + s * (s + u) + u * s
        first = stops[f]
    return offset, offset[len(stops)]


@numba.njit(cache=True, error_model="numpy")
def _eliminate(  # type: ignore[no-untyped-def]
    start,
    column,
    value,
    start_t,
    column_t,
    value_t,
    stops,
    split,
    begin,
    rest,
    offset,
    out,
    block,
    small,
):
    """Factors of all fronts; what is left of each waits on a stack for its parent."""
    place = np.empty(len(start) - 1, dtype=np.int64)
    left = [np.empty((1, 1))]
    waiting = [0]
    left.pop()
    waiting.pop()
    first = 0
    for f in range(len(stops)):
        stop = stops[f]
        later = rest[begin[f] : begin[f + 1]]
        s, u = stop - first, len(later)
        m = s + u
        front = np.zeros((m, m))
        for i in range(s):
            place[first + i] = i
        for i in range(u):
            place[later[i]] = s + i
        for p in range(first, stop):
            for k in range(start[p], start[p + 1]):
                if column[k] >= first:
                    front[p - first, place[column[k]]] += value[k]
            for k in range(start_t[p], start_t[p + 1]):
                if column_t[k] >= stop:
                    front[place[column_t[k]], p - first] += value_t[k]
        if split[f]:
            for _ in range(2):
                child, update = waiting.pop(), left.pop()
                held = rest[begin[child] : begin[child + 1]]
                to = np.empty(len(held), dtype=np.int64)
                for i in range(len(held)):
                    to[i] = place[held[i]]
                for i in range(len(held)):
                    for j in range(len(held)):
                        front[to[i], to[j]] += update[i, j]
        _factor_front(front, s, block if m > small else max(m, 1))
        at = offset[f]
        out[at : at + s * m] = front[:s].copy().reshape(-1)
        out[at + s * m : at + s * m + u * s] = front[s:, :s].copy().reshape(-1)
        left.append(front[s:, s:].copy())
        waiting.append(f)
        first = stop


@numba.njit(cache=True, error_model="numpy", fastmath={"contract"})
def _factor_front(front, s, block):  # type: ignore[no-untyped-def]
    """Eliminate the first s columns of a dense (m, m) front in place, `block` at a time."""
    m = len(front)
    for a in range(0, s, block):
        b = min(a + block, s)
        wide = block < m  # then only the panel is updated at once, the rest by a product
        edge = b if wide else m
        for k in range(a, b):
            pivot = 1.0 / front[k, k]
            for i in range(k + 1, m):
                factor = front[i, k] * pivot
                front[i, k] = factor
                if factor != 0.0:
                    for j in range(k + 1, edge):
                        front[i, j] -= factor * front[k, j]
        if not wide:
            continue
        for k in range(a, b):
            for i in range(k + 1, b):
                factor = front[i, k]
                if factor != 0.0:
                    for j in range(b, m):
                        front[i, j] -= factor * front[k, j]
        if b < m:
            product = np.dot(front[b:, a:b].copy(), front[a:b, b:].copy())
            for i in range(b, m):
                for j in range(b, m):
                    front[i, j] -= product[i - b, j - b]


# Sums may be reordered, so that they run on vector registers.
SUMS = {"reassoc", "contract", "nsz"}


@numba.njit(cache=True, error_model="numpy")
def _front(f, stops, begin, rest, offset, factors):  # type: ignore[no-untyped-def]
    """First node, later nodes, own rows (s, s + u) and rows below (u, s) of a front."""
    first = stops[f - 1] if f > 0 else 0
    later = rest[begin[f] : begin[f + 1]]
    s, u = stops[f] - first, len(later)
    middle = offset[f] + s * (s + u)
    own = factors[offset[f] : middle].reshape(s, s + u)
    return first, later, own, factors[middle : offset[f + 1]].reshape(u, s)


@numba.njit(cache=True, error_model="numpy", fastmath=SUMS)
def _sweep(stops, begin, rest, offset, factors, columns):  # type: ignore[no-untyped-def]
    """LU x = x in place for each x of `columns` (k, n), in elimination order."""
    for f in range(len(stops)):
        first, later, own, below = _front(f, stops, begin, rest, offset, factors)
        s = len(own)
        for x in columns:
            for i in range(s):
                total = 0.0
                for j in range(i):
                    total += own[i, j] * x[first + j]
                x[first + i] -= total
            for i in range(len(later)):
                total = 0.0
                for j in range(s):
                    total += below[i, j] * x[first + j]
                x[later[i]] -= total
    for f in range(len(stops) - 1, -1, -1):
        first, later, own, _ = _front(f, stops, begin, rest, offset, factors)
        s = len(own)
        for x in columns:
            known = x[later]
            for i in range(s - 1, -1, -1):
                total = 0.0
                for j in range(len(known)):
                    total += own[i, s + j] * known[j]
                for j in range(i + 1, s):
                    total += own[i, j] * x[first + j]
                x[first + i] = (x[first + i] - total) / own[i, i]


@numba.njit(cache=True, error_model="numpy", fastmath=SUMS)
def _sweep_transposed(stops, begin, rest, offset, factors, columns):  # type: ignore[no-untyped-def]
    """(LU)^T x = x in place for each x of `columns` (k, n), in elimination order."""
    for f in range(len(stops)):
        first, later, own, _ = _front(f, stops, begin, rest, offset, factors)
        s = len(own)
        for x in columns:
            change = np.zeros(len(later))
            for i in range(s):
                x[first + i] /= own[i, i]
                v = x[first + i]
                for j in range(i + 1, s):
                    x[first + j] -= own[i, j] * v
                for j in range(len(change)):
                    change[j] += own[i, s + j] * v
            for j in range(len(change)):
                x[later[j]] -= change[j]
    for f in range(len(stops) - 1, -1, -1):
        first, later, own, below = _front(f, stops, begin, rest, offset, factors)
        s = len(own)
        for x in columns:
            for i in range(len(later)):
                v = x[later[i]]
                for j in range(s):
                    x[first + j] -= below[i, j] * v
            for i in range(s - 1, -1, -1):
                v = x[first + i]
                for j in range(i):
                    x[first + j] -= own[i, j] * v
