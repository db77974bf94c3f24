"""Values between the nodes of a Cartesian grid, of which only those inside a domain are kept.

Absorbing boundaries carry no nodes, but what a question answers there is known: the weights that fall
on them come back by part of the boundary, as chances of leaving do for a chain.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from ..errors import require

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WIDTHS = (8, 6)  # nodes per side of tensor-product stencils
# Near a curved boundary: degree of the polynomial and number of points that it is fitted to.
DEGREE = {1: 5, 2: 4, 3: 3}
POINTS = {1: 6, 2: 32, 3: 48}


@dataclass(frozen=True, eq=False)
class Interpolation:
    """``rows(points (m, d))``: weights of the nodes (m, n) and of the boundary's parts (m, k).

    Attributes
    ----------
    lower, spacing
        (d,) position of grid point 0 and mesh sizes.
    number
        Node at each grid point, negative where there is none.
    ends, parts
        (q, d) points on the absorbing boundary and (q,) the part that each belongs to.
    count
        Number k of parts.
    """

    lower: Floats
    spacing: Floats
    number: Ints = field(repr=False)
    ends: Floats = field(repr=False)
    parts: Ints = field(repr=False)
    count: int = 1

    def __call__(self, points: Floats) -> tuple[sparse.csr_array, Floats]:
        """Weights of nodes and of parts of the boundary, see the class."""
        n = int(self.number.max()) + 1
        rows, columns, values = [], [], []
        exits = np.zeros((len(points), self.count))
        for i, place in enumerate((points - self.lower) / self.spacing):
            known, weights = self._weights(place)
            inside = known >= 0
            rows += [i] * int(inside.sum())
            columns += known[inside].tolist()
            values += weights[inside].tolist()
            np.add.at(exits[i], -1 - known[~inside], weights[~inside])
        return sparse.csr_array((values, (rows, columns)), shape=(len(points), n)), exits

    def _weights(self, place: Floats) -> tuple[Ints, Floats]:
        """Nodes, or -1 minus the part of the boundary, and their weights at `place` in cells."""
        shape = np.asarray(self.number.shape)
        outside = (place < -1e-9) | (place > shape - 1 + 1e-9)
        require(not outside.any(), "start", self._position(place), "lies outside the domain's grid")
        for width in WIDTHS:
            cells, weights = _lagrange(place, shape, width)
            known = self._known[tuple(cells.T)]
            if np.all(known != UNKNOWN):
                return known, weights
        return self._fit(place)

    def _position(self, place: Floats) -> list[float]:
        return [float(v) for v in self.lower + place * self.spacing]

    @cached_property
    def _boundary(self) -> tuple[Floats, Ints]:
        """Boundary points in cells, less those that lie behind a reflecting end, and their parts."""
        s = (self.ends - self.lower) / self.spacing
        last = np.asarray(self.number.shape) - 1
        near = np.all((s > -1e-9) & (s < last + 1e-9), axis=1)
        return s[near], self.parts[near]

    @cached_property
    def _known(self) -> Ints:
        """Nodes, and boundary points that are grid points themselves."""
        out = np.where(self.number >= 0, self.number, UNKNOWN)
        s, parts = self._boundary
        whole = np.all(np.abs(s - np.round(s)) < 1e-9, axis=1)
        out[tuple(np.round(s[whole]).astype(np.int64).T)] = -1 - parts[whole]
        return out

    @cached_property
    def _scattered(self) -> tuple[cKDTree, Floats, Ints]:
        """All points with a known value, in cells."""
        at = np.argwhere(self.number >= 0)
        ends, parts = self._boundary
        points = np.concatenate([at.astype(np.float64), ends])
        known = np.concatenate([self.number[tuple(at.T)], -1 - parts])
        return cKDTree(points), points, known

    def _fit(self, place: Floats) -> tuple[Ints, Floats]:
        """Moving least squares: a polynomial through the nearest points, the closest ones first."""
        tree, points, known = self._scattered
        d = len(place)
        distance, near = tree.query(place, min(POINTS[d], len(points)))
        require(bool(distance[0] < 2), "start", self._position(place), "lies outside the domain")
        y = (points[near] - place) / distance[-1]
        powers = [
            p for p in itertools.product(range(DEGREE[d] + 1), repeat=d) if sum(p) <= DEGREE[d]
        ]
        terms = np.stack([np.prod(y**p, axis=1) for p in powers], axis=1)
        trust = 1 / ((distance / distance[-1]) ** 2 + 1e-6)
        # The value at the place itself is the coefficient of the constant term, powers[0].
        weights = np.linalg.pinv(trust[:, None] * terms, rcond=1e-12)[0] * trust
        return known[near], weights


UNKNOWN = np.iinfo(np.int64).min


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
