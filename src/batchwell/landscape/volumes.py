"""How large basins are: which share of random points flows to each minimum."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..errors import positive, require, whole
from ..estimate import Estimate, share
from ..streams import generator
from .attractors import UNDECIDED
from .minima import Landscape, classify
from .quench import quench


def basin_volumes(
    landscape: Landscape,
    points: int = 1000,
    *,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    center: ArrayLike | None = None,
    radius: float | None = None,
    seed: int = 0,
    threads: int | None = None,
) -> tuple[Estimate, ...]:
    """Share of a box or of a ball that lies in each basin, one estimate for each minimum.

    `points` uniform random points are quenched; mirror images count with their minimum. What the
    search did not list, and what reaches no isolated minimum, is said in the notes.

    Parameters
    ----------
    low, high
        Corners (d,) of the box; or
    center, radius
        of the ball.

    Raises
    ------
    InputError
        Neither or both of box and ball, wrong shapes, an empty box.

    Examples
    --------
    >>> from batchwell import additive, find_minima
    >>> well = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4)
    >>> found = find_minima(well, [[-0.5], [0.5]])
    >>> [str(v) for v in basin_volumes(found, 400, low=[-1.0], high=[3.0])]
    ['0.225 [0.1868, 0.2684] 1', '0.775 [0.7316, 0.8132] 1']
    """
    count = whole("points", points)
    x = _uniform(landscape.loss.dim, count, low, high, center, radius, seed)
    result = quench(landscape.loss, x, landscape.attractors, threads=threads)
    kinds = classify(result.attractors.centers, landscape.minima, landscape.symmetry)
    reached = result.labels != UNDECIDED
    own = np.full(count, -2)
    own[reached] = kinds[result.labels[reached]]
    note = f"{int((own == -1).sum())} of {count} points reached a minimum that is not listed"
    lost = f"{int((own == -2).sum())} reached no isolated minimum"
    return tuple(
        share(int((own == k).sum()), count).with_notes(f"{note}, {lost}")
        for k in range(len(landscape.minima))
    )


def _uniform(
    dim: int,
    count: int,
    low: ArrayLike | None,
    high: ArrayLike | None,
    center: ArrayLike | None,
    radius: float | None,
    seed: int,
) -> np.ndarray:
    rng = generator(seed, "basin-volumes")
    box, ball = low is not None and high is not None, center is not None and radius is not None
    require(box != ball, "low, high, center, radius", "given", "must be a box or a ball")
    if box:
        a, b = (np.asarray(v, dtype=np.float64) for v in (low, high))
        require(a.shape == b.shape == (dim,), "low", a.shape, f"must have shape ({dim},)")
        require(bool(np.all(a < b)), "high", b, "must lie above low in every coordinate")
        return np.asarray(a + (b - a) * rng.random((count, dim)))
    middle = np.asarray(center, dtype=np.float64)
    require(middle.shape == (dim,), "center", middle.shape, f"must have shape ({dim},)")
    u = rng.standard_normal((count, dim))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    sizes = positive("radius", radius) * rng.random((count, 1)) ** (1.0 / dim)
    return np.asarray(middle + sizes * u)
