"""Disconnectivity trees: which basins flow together at which height of the loss.

Two minima are in one part at height h if a chain of saddles not above h joins them; as h falls the
parts split until each holds one minimum (Becker & Karplus, J. Chem. Phys. 106, 1997; Wales, Miller &
Walsh, Nature 394, 1998).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .minima import Landscape
from .saddles import Saddle


@dataclass(frozen=True)
class Branch:
    """Where parts of the landscape merge.

    Attributes
    ----------
    height
        Loss of the saddle at which they do; infinite for parts that no saddle found joins.
    parts
        Indices of the nodes that merge: below `count` a minimum, else ``count +`` a branch.
    saddle
        Index of that saddle, None if there is none.
    """

    height: float
    parts: tuple[int, ...]
    saddle: int | None


@dataclass(frozen=True, eq=False)
class DisconnectivityTree:
    """Minimax barriers between all minima of a landscape.

    Attributes
    ----------
    losses
        (n,) loss of each minimum: where its leaf ends.
    branches
        From the lowest on; the last one is the root.
    heights
        (n, n) lowest height at which a chain of saddles joins two minima; infinite if none does,
        their own losses on the diagonal.
    """

    losses: np.ndarray
    branches: tuple[Branch, ...]
    heights: np.ndarray

    def barrier(self, minimum: int, other: int | None = None) -> float:
        """Least climb from one minimum to another, or to any other that is not above it."""
        if other is not None:
            return float(self.heights[minimum, other] - self.losses[minimum])
        lower = self.losses <= self.losses[minimum]
        lower[minimum] = False
        if not lower.any():
            return float("inf")
        return float(self.heights[minimum, lower].min() - self.losses[minimum])

    def order(self) -> list[int]:
        """Minima from left to right so that no two branches cross."""
        count = len(self.losses)

        def leaves(node: int) -> list[int]:
            if node < count:
                return [node]
            inner = [leaves(part) for part in self.branches[node - count].parts]
            inner.sort(key=lambda group: min(self.losses[k] for k in group))
            return [k for group in inner for k in group]

        return leaves(count + len(self.branches) - 1) if self.branches else list(range(count))


def disconnectivity_tree(landscape: Landscape, saddles: Sequence[Saddle]) -> DisconnectivityTree:
    """The tree of a landscape's minima, joined by `saddles` whose two ends are listed.

    Saddles with an end that is not listed are left out: the tree's heights are upper bounds, as
    those of any search that may have missed a lower pass.

    References
    ----------
    Becker & Karplus, J. Chem. Phys. 106 (1997) 1495; Wales, Miller & Walsh, Nature 394 (1998) 758.

    Examples
    --------
    >>> from batchwell import additive, find_minima
    >>> from batchwell.landscape import find_saddles
    >>> well = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4 + 0.1 * x[0])
    >>> found = find_minima(well, [[0.7], [-1.0]])
    >>> tree = disconnectivity_tree(found, find_saddles(found))
    >>> [m.label for m in found.minima], [round(tree.barrier(k, 1 - k), 4) for k in (0, 1)]
    (['A', 'C'], [0.1577, 0.3574])
    """
    losses = np.array([m.loss for m in landscape.minima])
    count = len(losses)
    heights = np.full((count, count), np.inf)
    np.fill_diagonal(heights, losses)
    node, members = list(range(count)), [[k] for k in range(count)]
    branches: list[Branch] = []

    def merge(groups: Sequence[int], height: float, saddle: int | None) -> None:
        """Merge the parts of these minima."""
        together = [k for group in groups for k in members[group]]
        for a in groups:
            for b in groups:
                if a != b:
                    heights[np.ix_(members[a], members[b])] = height
        parts = tuple(node[members[group][0]] for group in groups)
        branches.append(Branch(height, parts, saddle))
        for k in together:
            node[k], members[k] = count + len(branches) - 1, together

    for rank in sorted(range(len(saddles)), key=lambda r: saddles[r].loss):
        saddle = saddles[rank]
        a, b = saddle.ends
        if saddle.joins and node[a] != node[b]:
            merge((a, b), saddle.loss, rank)
    apart = sorted({node[k]: k for k in reversed(range(count))}.values())
    if len(apart) > 1:
        merge(apart, float("inf"), None)
    return DisconnectivityTree(losses, tuple(branches), heights)
