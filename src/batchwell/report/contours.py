"""Level lines of a function on a grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Sides of a cell as pairs of its corners (0, 0), (1, 0), (1, 1), (0, 1).
_CORNERS = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
_SIDES = ((0, 1), (1, 2), (2, 3), (3, 0))


def segments(x: Floats, y: Floats, values: Floats, level: float) -> Floats:
    """Pieces (m, 2, 2) of the line ``values == level``, [piece, end, (x, y)].

    Marching squares: in each cell the sides that the line crosses are joined, two by two; `values`
    are (len(x), len(y)).

    Examples
    --------
    >>> import numpy as np
    >>> grid = np.linspace(-1, 1, 101)
    >>> line = segments(grid, grid, np.hypot(*np.meshgrid(grid, grid)), 0.5)
    >>> round(float(np.linalg.norm(line[:, 1] - line[:, 0], axis=1).sum()), 3)  # pi
    3.141
    """
    n, m = len(x) - 1, len(y) - 1
    corner = [values[i : i + n, j : j + m] - level for i, j in _CORNERS]
    ends: list[list[list[Floats]]] = [[[] for _ in range(m)] for _ in range(n)]
    for a, b in _SIDES:
        with np.errstate(divide="ignore", invalid="ignore"):
            share = corner[a] / (corner[a] - corner[b])
        for i, j in np.argwhere((corner[a] < 0) != (corner[b] < 0)):
            place = _CORNERS[a] + share[i, j] * (_CORNERS[b] - _CORNERS[a])
            ends[i][j].append(
                np.array(
                    [
                        x[i] + place[0] * (x[i + 1] - x[i]),
                        y[j] + place[1] * (y[j + 1] - y[j]),
                    ]
                )
            )
    pairs = [cell[k : k + 2] for row in ends for cell in row for k in range(0, len(cell), 2)]
    return np.array(pairs).reshape(-1, 2, 2)
