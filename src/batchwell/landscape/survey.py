"""The whole landscape in one call: minima from random starts and from SGD, and the passes between.

Random starts show which basins are wide; SGD at a small batch shows where training goes and which
borders it crosses; over these borders, and between near minima, lie the saddles that matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from ..dynamics import SGD
from ..errors import require
from ..symmetry import NONE, Symmetry
from .explore import Exploration, explore, with_explored
from .minima import Landscape, classify, extended, find_minima
from .saddles import CROSSED, NEIGHBOURS, NOWHERE, REPAIRS, SOFTEST, Saddle, find_saddles

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Survey:
    """Minima, saddles, and what SGD crossed.

    Attributes
    ----------
    landscape
        Minima from starts, from SGD, and at the ends of saddles that SGD crossed.
    saddles
        From the lowest on; their ends are indices into the landscape's minima.
    exploration
        The paths of SGD; None if none were run.
    """

    landscape: Landscape
    saddles: tuple[Saddle, ...]
    exploration: Exploration | None

    @property
    def crossed(self) -> dict[tuple[int, int], int]:
        """How often SGD passed between which two minima (i <= j), whichever way."""
        if self.exploration is None:
            return {}
        kinds = self.kinds
        out: dict[tuple[int, int], int] = {}
        for a, b in self.exploration.transitions:
            pair = (min(kinds[a], kinds[b]), max(kinds[a], kinds[b]))
            out[pair] = out.get(pair, 0) + 1
        return out

    @property
    def explained(self) -> tuple[int, int]:
        """(pairs of minima that SGD passed between and that a found saddle joins, all such pairs)."""
        joined = {(min(s.ends), max(s.ends)) for s in self.saddles}
        pairs = self.crossed
        return sum(pair in joined for pair in pairs), len(pairs)

    @property
    def kinds(self) -> list[int]:
        """Which minimum of the landscape each attractor of the exploration is."""
        assert self.exploration is not None
        centers = self.exploration.attractors.centers
        found = classify(centers, self.landscape.minima, self.landscape.symmetry)
        return [int(k) for k in found]


def survey(
    sgd: SGD,
    starts: ArrayLike,
    symmetry: Symmetry = NONE,
    *,
    steps: int = 1500,
    every: int = 20,
    paths: int | None = None,
    neighbours: int = NEIGHBOURS,
    softest: int = SOFTEST,
    repairs: int = REPAIRS,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Survey:
    """Minima from `starts` (n, d) and from exploration by `sgd`, and the saddles between them.

    Parameters
    ----------
    sgd
        Explores: its batch should be small enough that it leaves basins.
    steps, every, paths
        SGD steps of each exploring path, steps between two looks, and how many paths begin at each
        minimum in turn (one per minimum by default; 0 for no exploration).
    neighbours, softest, repairs
        How far saddles are sought beyond the borders that SGD crossed (`find_saddles`).
    progress
        Called with (stage, done, total).

    Raises
    ------
    InputError
        Starts of the wrong shape.
    RunError
        No isolated minimum.
    Divergence
        All starts, or all exploring paths, ran away; single ones are named in the landscape's
        `notes`.

    Examples
    --------
    >>> from batchwell import SGD, additive
    >>> well = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4)
    >>> seen = survey(SGD(well, 0.3), [[-0.5], [0.5]], steps=400, every=10, seed=1)
    >>> len(seen.landscape.minima), [s.ends for s in seen.saddles], seen.explained
    (2, [(0, 1)], (1, 1))
    """
    landscape = find_minima(
        sgd.loss, starts, symmetry, progress=_stage(progress, "minima from random starts")
    )
    seen = None
    if paths != 0:
        minima = landscape.minima
        begin = np.array([minima[k % len(minima)].x for k in range(paths or len(minima))])
        report = _stage(progress, "exploration by SGD")
        seen = explore(
            sgd, landscape, begin, steps, every, seed=seed, threads=threads, progress=report
        )
        landscape = with_explored(landscape, seen)
    saddles = find_saddles(
        landscape,
        seen.crossings() if seen is not None else (),
        neighbours=neighbours,
        softest=softest,
        repairs=repairs,
        threads=threads,
        progress=_stage(progress, "saddles"),
    )
    return _listed(landscape, saddles, seen)


def _listed(landscape: Landscape, saddles: tuple[Saddle, ...], seen: Exploration | None) -> Survey:
    """With the minima beyond saddles that SGD crossed listed too: it passes through them."""
    crossed = [s for s in saddles if s.method == CROSSED]
    points = [p for s in crossed for p in s.end_points if np.isfinite(p).all()]
    if points:
        landscape = extended(landscape, np.array(points))
    return Survey(landscape, relisted(saddles, landscape), seen)


def relisted(saddles: Sequence[Saddle], landscape: Landscape) -> tuple[Saddle, ...]:
    """`saddles` with their ends as indices into the minima of another listing of a landscape."""
    require(
        all(s.x.shape == (landscape.loss.dim,) for s in saddles),
        "saddles",
        len(saddles),
        "must be of the same loss",
    )
    out = []
    for saddle in saddles:
        ends, points, way = [NOWHERE, NOWHERE], saddle.end_points, saddle.direction
        for side in (0, 1):
            if np.isfinite(points[side]).all():
                kind = classify(points[side][None], landscape.minima, landscape.symmetry)
                ends[side] = int(kind[0])
        if ends[0] > ends[1] >= 0 or ends[0] < 0 <= ends[1]:
            ends, points, way = ends[::-1], points[::-1], -way
        out.append(replace(saddle, ends=(ends[0], ends[1]), end_points=points, direction=way))
    return tuple(out)


def _stage(progress: Progress | None, name: str) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, total: progress(name, done, total)
