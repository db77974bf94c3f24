"""Values between the nodes of a Cartesian grid, of which only those inside a domain are kept."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ..errors import require

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def interpolation(
    lower: Floats, spacing: Floats, points_per_side: tuple[int, ...], number: Ints
) -> Any:
    """Polynomial interpolation of node values, linear where the stencil meets the boundary."""
    shape = np.asarray(points_per_side)
    n = int(number.max()) + 1

    def row(points: Floats) -> tuple[sparse.csr_array, Floats]:
        s = (points - lower) / spacing
        rows, columns, values = [], [], []
        for i, place in enumerate(s):
            flat, weights = _stencil(place, shape, number, points_per_side)
            rows += [i] * len(flat)
            columns += flat.tolist()
            values += weights.tolist()
        return sparse.csr_array((values, (rows, columns)), shape=(len(points), n)), np.zeros(
            (len(points), 0)
        )

    return row


def _stencil(
    place: Floats, shape: Ints, number: Ints, points: tuple[int, ...]
) -> tuple[Ints, Floats]:
    """Nodes and weights of the widest polynomial stencil that stays inside the domain."""
    for width in (8, 6, 4, 3):
        cells, weights = _lagrange(place, shape, width)
        flat = number[np.ravel_multi_index(tuple(cells.T), points)]
        if (flat >= 0).all():
            return flat, weights
    return _nearest(place, shape, number, points)


def _lagrange(place: Floats, shape: Ints, width: int) -> tuple[Ints, Floats]:
    """Cells and weights of tensor-product Lagrange interpolation with `width` nodes a side."""
    axes, factors = [], []
    for s, m in zip(place, shape, strict=True):
        count = min(width, int(m))
        # An even stencil straddles the point, an odd one is centred on the nearest node.
        first = math.floor(s) - count // 2 + 1 if count % 2 == 0 else round(s) - count // 2
        first = int(np.clip(first, 0, m - count))
        nodes = np.arange(first, first + count)
        axes.append(nodes)
        factors.append([math.prod((s - b) / (a - b) for b in nodes if b != a) for a in nodes])
    cells = np.array(list(itertools.product(*axes)))
    return cells, np.array([math.prod(w) for w in itertools.product(*factors)])


def _nearest(
    place: Floats, shape: Ints, number: Ints, grid_shape: tuple[int, ...]
) -> tuple[Ints, Floats]:
    """Linear interpolation over the kept corners of the cell around a point."""
    base = np.clip(np.floor(place).astype(np.int64), 0, shape - 2)
    share = place - base
    corners = np.array(list(itertools.product((0, 1), repeat=len(shape))))
    weights = np.prod(np.where(corners == 1, share, 1 - share), axis=1)
    flat = number[np.ravel_multi_index(tuple((base + corners).T), grid_shape)]
    keep = flat >= 0
    require(bool(keep.any()), "x0", place.tolist(), "lies outside the domain or its grid")
    return flat[keep], weights[keep] / weights[keep].sum()
