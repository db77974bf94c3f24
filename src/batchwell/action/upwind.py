"""The ordered line integral method: least geometric action on a regular grid of the plane.

Nodes are accepted in the order of their values, as in Dijkstra's algorithm. A node is reached by
a straight segment of up to `radius` grid steps from a node of the accepted front (one point), or
from the edge between two neighbours of it (triangle), whose values are interpolated linearly.
The action of a segment is Simpson's: the midpoint rule's error would favour long segments. Drift
and noise are given on a grid of half the spacing, which holds every midpoint between nodes.

Sources: Sethian & Vladimirsky, SIAM J. Numer. Anal. 41 (2003); Cameron, Physica D 241 (2012);
Dahiya & Cameron, J. Sci. Comput. 75 (2018), "OLIM-SIM".
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

UNKNOWN, CONSIDERED, FRONT, DONE = 0, 1, 2, 3
# Of the position along an edge, to which the value is insensitive to first order.
EDGE_TOLERANCE = 1e-7
EDGE_ITERATIONS = 24


@numba.njit(cache=True, error_model="numpy")
def _swap(heap: Any, place: Any, a: int, b: int) -> None:
    heap[a], heap[b] = heap[b], heap[a]
    place[heap[a]], place[heap[b]] = a, b


@numba.njit(cache=True, error_model="numpy")
def _raise(heap: Any, place: Any, value: Any, k: int) -> None:
    while k > 0 and value[heap[k]] < value[heap[(k - 1) // 2]]:
        _swap(heap, place, k, (k - 1) // 2)
        k = (k - 1) // 2


@numba.njit(cache=True, error_model="numpy")
def _pop(heap: Any, place: Any, value: Any, size: int) -> int:
    """Least of `size` nodes; the other size - 1 stay a heap."""
    _swap(heap, place, 0, size - 1)
    k, size = 0, size - 1
    while 2 * k + 1 < size:
        child = 2 * k + 1
        if child + 1 < size and value[heap[child + 1]] < value[heap[child]]:
            child += 1
        if value[heap[k]] <= value[heap[child]]:
            break
        _swap(heap, place, k, child)
        k = child
    return int(heap[size])


@numba.njit(cache=True, error_model="numpy")
def _dot(m: Any, x0: float, x1: float, y0: float, y1: float) -> float:
    """x . M y of a symmetric M = (m00, m01, m11)."""
    return m[0] * x0 * y0 + m[1] * (x0 * y1 + x1 * y0) + m[2] * x1 * y1


@numba.njit(cache=True, error_model="numpy")
def _at(s: float, v: Any, dv: Any, b: Any, db: Any, m: Any, dm: Any) -> Any:
    """|v| |b| - v . b and its derivative in s, all of v, b and the metric m linear in s."""
    v0, v1, b0, b1 = v[0] + s * dv[0], v[1] + s * dv[1], b[0] + s * db[0], b[1] + s * db[1]
    here = (m[0] + s * dm[0], m[1] + s * dm[1], m[2] + s * dm[2])
    q, r = _dot(here, v0, v1, v0, v1), _dot(here, b0, b1, b0, b1)
    dq = 2 * _dot(here, dv[0], dv[1], v0, v1) + _dot(dm, v0, v1, v0, v1)
    dr = 2 * _dot(here, db[0], db[1], b0, b1) + _dot(dm, b0, b1, b0, b1)
    turn = _dot(here, dv[0], dv[1], b0, b1) + _dot(here, v0, v1, db[0], db[1])
    turn += _dot(dm, v0, v1, b0, b1)
    root = np.sqrt(q * r)
    slope = (dq * r + q * dr) / (2 * root) if root > 0 else 0.0
    return root - _dot(here, v0, v1, b0, b1), slope - turn


@numba.njit(cache=True, error_model="numpy")
def _between(drift: Any, metric: Any, i: int, j: int, k: int, w: int) -> Any:
    """Drift and metric at (i, j), and how much they change towards (k, w), on the half grid."""
    b, c, m, n = drift[i, j], drift[k, w], metric[i, j], metric[k, w]
    change = (n[0] - m[0], n[1] - m[1], n[2] - m[2])
    return (b[0], b[1]), (c[0] - b[0], c[1] - b[1]), (m[0], m[1], m[2]), change


@numba.njit(cache=True, error_model="numpy")
def _on_edge(s: float, rise: float, v: Any, dv: Any, foot: Any, middle: Any, end: Any) -> Any:
    """Value gained and its derivative at the position s of an edge, by Simpson's rule."""
    a0, d0 = _at(s, v, dv, foot[0], foot[1], foot[2], foot[3])
    a1, d1 = _at(s, v, dv, middle[0], middle[1], middle[2], middle[3])
    a2, d2 = _at(s, v, dv, end[0], end[1], end[2], end[3])
    return s * rise + (a0 + 4 * a1 + a2) / 6, rise + (d0 + 4 * d1 + d2) / 6


@numba.njit(cache=True, error_model="numpy")
def _triangle(rise: float, v: Any, dv: Any, foot: Any, middle: Any, end: Any) -> Any:
    """Least value from inside an edge and where, or inf: the Illinois rule on the derivative."""
    low, high = 0.0, 1.0
    at_low = _on_edge(low, rise, v, dv, foot, middle, end)[1]
    if at_low >= 0:  # the end points are one-point updates
        return np.inf, 0.0
    at_high = _on_edge(high, rise, v, dv, foot, middle, end)[1]
    if not at_high > 0:
        return np.inf, 0.0
    s, side, wide = 0.5, 0, at_high - at_low
    for _ in range(EDGE_ITERATIONS):
        s = (low * at_high - high * at_low) / (at_high - at_low)
        slope = _on_edge(s, rise, v, dv, foot, middle, end)[1]
        if abs(slope) <= EDGE_TOLERANCE * wide:
            break
        if slope < 0:
            low, at_low = s, slope
            at_high *= 0.5 if side < 0 else 1.0
            side = -1
        else:
            high, at_high = s, slope
            at_low *= 0.5 if side > 0 else 1.0
            side = 1
    return _on_edge(s, rise, v, dv, foot, middle, end)[0], s


@numba.njit(cache=True, error_model="numpy")
def _from(
    i: int,
    j: int,
    k: int,
    w: int,
    value: Any,
    foot: Any,
    state: Any,
    drift: Any,
    metric: Any,
    h: Any,
) -> bool:
    """Reach node (i, j) from node (k, w) of the front and its edges there; whether it got lower."""
    start, better = value[k, w], False
    v = ((i - k) * h[0], (j - w) * h[1])
    here = _between(drift, metric, 2 * i, 2 * j, 2 * i, 2 * j)
    low = _between(drift, metric, 2 * k, 2 * w, 2 * k, 2 * w)
    middle = _between(drift, metric, i + k, j + w, i + k, j + w)
    tried = start + _on_edge(0.0, 0.0, v, (0.0, 0.0), low, middle, here)[0]
    if tried < value[i, j]:
        value[i, j], foot[i, j, 0], foot[i, j, 1], better = tried, v[0], v[1], True
    for e in range(max(k - 1, 0), min(k + 2, value.shape[0])):
        for f in range(max(w - 1, 0), min(w + 2, value.shape[1])):
            if state[e, f] != FRONT or (e == k and f == w):
                continue
            if min(start, value[e, f]) >= value[i, j]:
                continue
            dv = ((k - e) * h[0], (w - f) * h[1])
            low = _between(drift, metric, 2 * k, 2 * w, 2 * e, 2 * f)
            middle = _between(drift, metric, i + k, j + w, i + e, j + f)
            gain, s = _triangle(value[e, f] - start, v, dv, low, middle, here)
            if start + gain < value[i, j]:
                value[i, j], better = start + gain, True
                foot[i, j, 0], foot[i, j, 1] = v[0] + s * dv[0], v[1] + s * dv[1]
    return better


@numba.njit(cache=True, error_model="numpy")
def _retire(i: int, j: int, state: Any) -> None:
    """Nodes of the front around (i, j) whose neighbours are all accepted leave it."""
    nx, ny = state.shape
    for k in range(max(i - 1, 0), min(i + 2, nx)):
        for w in range(max(j - 1, 0), min(j + 2, ny)):
            if state[k, w] != FRONT:
                continue
            open_ = False
            for e in range(max(k - 1, 0), min(k + 2, nx)):
                for f in range(max(w - 1, 0), min(w + 2, ny)):
                    open_ = open_ or state[e, f] < FRONT
            if not open_:
                state[k, w] = DONE


@numba.njit(cache=True, error_model="numpy")
def march(value: Any, foot: Any, drift: Any, metric: Any, h: Any, radius: int) -> None:
    """Fill `value` (nx, ny) in place from its finite nodes, in the order of their values.

    Parameters
    ----------
    value
        (nx, ny): known around the start, inf elsewhere.
    foot
        (nx, ny, 2): the segment on which each node is reached, filled too.
    drift, metric
        b (2 nx - 1, 2 ny - 1, 2) and Sigma^-1 (..., 3) as (00, 01, 11), at half the spacing.
    h
        (2,) the spacings.
    radius
        Longest segment in grid steps.
    """
    nx, ny = value.shape
    state = np.zeros((nx, ny), np.int8)
    flat = value.ravel()
    heap, place, size = np.empty(nx * ny, np.int64), np.full(nx * ny, -1, np.int64), 0
    for n in range(nx * ny):
        if flat[n] < np.inf:
            heap[size], place[n], size = n, size, size + 1
            state[n // ny, n % ny] = CONSIDERED
            _raise(heap, place, flat, size - 1)
    while size:
        n = _pop(heap, place, flat, size)
        size -= 1
        i, j = n // ny, n % ny
        state[i, j] = FRONT
        _retire(i, j, state)
        for k in range(max(i - radius, 0), min(i + radius + 1, nx)):
            for w in range(max(j - radius, 0), min(j + radius + 1, ny)):
                near = (k - i) ** 2 + (w - j) ** 2 <= radius * radius
                if not near or state[k, w] != CONSIDERED:
                    continue
                if _from(k, w, i, j, value, foot, state, drift, metric, h):
                    _raise(heap, place, flat, place[k * ny + w])
        for k in range(max(i - 1, 0), min(i + 2, nx)):
            for w in range(max(j - 1, 0), min(j + 2, ny)):
                if state[k, w] != UNKNOWN:
                    continue
                state[k, w] = CONSIDERED
                for e in range(max(k - radius, 0), min(k + radius + 1, nx)):
                    for f in range(max(w - radius, 0), min(w + radius + 1, ny)):
                        near = (k - e) ** 2 + (w - f) ** 2 <= radius * radius
                        if near and state[e, f] == FRONT:
                            _from(k, w, e, f, value, foot, state, drift, metric, h)
                n = k * ny + w
                heap[size], place[n], size = n, size, size + 1
                _raise(heap, place, flat, size - 1)
