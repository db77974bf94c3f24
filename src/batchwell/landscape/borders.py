"""Where SGD crosses from one basin into another: points on the border between the two."""

from __future__ import annotations

import numpy as np

from .minima import Landscape
from .quench import quench

ROUNDS = 12  # of bisection: points are then 2^-12 of their first distance apart


def borders(
    landscape: Landscape, first: np.ndarray, second: np.ndarray, threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Points on the lines from `first` to `second`, both (m, d), close to where a basin ends.

    Returns
    -------
    tuple
        Points (m, d) in the basins of `first`, and close by (m, d) points that are not: which of
        several basins on the line comes next is found, not chosen.

    Examples
    --------
    >>> from batchwell import additive, find_minima
    >>> found = find_minima(additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4), [[-0.5], [0.5]])
    >>> inside, beyond = borders(found, np.array([[-0.9]]), np.array([[0.7]]))
    >>> bool(-1e-3 < inside[0, 0] <= 0 <= beyond[0, 0] < 1e-3)
    True
    """
    first, second = np.array(first, dtype=np.float64), np.array(second, dtype=np.float64)
    if not len(first):
        return first, second
    start = quench(landscape.loss, first, landscape.attractors, threads=threads)
    known = start.attractors
    for _ in range(ROUNDS):
        middle = (first + second) / 2
        found = quench(landscape.loss, middle, known, threads=threads)
        known, inside = found.attractors, (found.labels == start.labels)[:, None]
        first, second = np.where(inside, middle, first), np.where(inside, second, middle)
    return first, second
