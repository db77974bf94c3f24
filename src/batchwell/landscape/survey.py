"""The whole landscape in one call: minima from random starts and from SGD, and the passes between.

Random starts show which basins are wide; SGD at a small batch shows where training goes and which
borders it crosses; over these borders, and between near minima, lie the saddles that matter.

SGD crosses borders high above their lowest points, and the flow along a border may lead on to a pass
into a third basin: two minima between which it goes need not share a saddle. Then the height at
which it was seen to cross is a bound that the passes around have to keep.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..dynamics import SGD
from ..errors import require, whole
from ..symmetry import NONE, Symmetry
from .attractors import mean_at
from .borders import borders
from .explore import Exploration, explore, with_explored
from .minima import Landscape, classify, extended, find_minima
from .saddles import CROSSED, NEIGHBOURS, NOWHERE, REPAIRS, SOFTEST, Saddle, find_saddles
from .tree import disconnectivity_tree

Progress = Callable[[str, int, int], None]


Pair = tuple[int, int]
BORDERS = 4  # transitions between two minima that no saddle joins whose borders are looked at


class Passage(NamedTuple):
    """How SGD was seen to pass between two minima.

    `times` counts both ways; `border` is the lowest loss at which it was seen to cross the border of
    their basins: NaN where it was not sought, since a saddle joins the two.
    """

    times: int
    border: float = math.nan


class Explained(NamedTuple):
    """Pairs of minima that SGD passed between.

    `joined` of them by a found saddle between the two, `around` by a chain of saddles over other
    minima, none higher than where SGD was seen to cross their border, of `total`.
    """

    joined: int
    around: int
    total: int


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
    crossed
        Between which two minima (i <= j) SGD passed, and how.
    """

    landscape: Landscape
    saddles: tuple[Saddle, ...]
    exploration: Exploration | None
    crossed: Mapping[Pair, Passage]

    @property
    def explained(self) -> Explained:
        """Whether the saddles found say how SGD passed."""
        return explained(self.crossed, self.landscape, self.saddles)


def explained(
    crossed: Mapping[Pair, Passage], landscape: Landscape, saddles: Sequence[Saddle]
) -> Explained:
    """How many of the pairs that SGD crossed between the saddles explain."""
    joined = {(min(s.ends), max(s.ends)) for s in saddles}
    heights = disconnectivity_tree(landscape, saddles).heights
    apart = [(pair, seen) for pair, seen in crossed.items() if pair not in joined]
    # From one image of a minimum to another a chain between kinds tells nothing.
    around = sum(bool(a != b and heights[a, b] <= seen.border) for (a, b), seen in apart)
    return Explained(len(crossed) - len(apart), around, len(crossed))


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
    (2, [(0, 1)], Explained(joined=1, around=0, total=1))
    """
    if paths is not None:
        whole("paths", paths, 0)
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
    if seen is None:
        return Survey(landscape, saddles, None, {})
    landscape, saddles = _listed(landscape, saddles)
    rows = _apart(_pairs(seen, landscape), saddles)
    first, second = borders(landscape, seen.points[rows, 0], seen.points[rows, 1], threads)
    over = list(zip(first, second, strict=True))
    more = find_saddles(
        landscape, over, neighbours=0, softest=0, repairs=0, known=saddles, threads=threads
    )
    heights = np.full(len(seen.points), math.nan)
    heights[rows] = [float(mean_at(sgd.loss)(x)) for x in first]
    landscape, saddles = _listed(landscape, more)
    crossed: dict[Pair, Passage] = {}
    for pair, height in zip(_pairs(seen, landscape), heights, strict=True):
        times, lowest = crossed.get(pair, Passage(0))
        crossed[pair] = Passage(times + 1, float(np.fmin(lowest, height)))
    return Survey(landscape, saddles, seen, crossed)


def _pairs(seen: Exploration, landscape: Landscape) -> list[Pair]:
    """Which two minima of the landscape each transition was between, the first one first."""
    kinds = classify(seen.attractors.centers, landscape.minima, landscape.symmetry)
    ends = [(int(kinds[a]), int(kinds[b])) for a, b in seen.transitions]
    return [(min(pair), max(pair)) for pair in ends]


def _apart(pairs: Sequence[Pair], saddles: Sequence[Saddle]) -> list[int]:
    """Some transitions between each pair of minima that no saddle joins."""
    often = Counter((min(s.ends), max(s.ends)) for s in saddles for _ in range(BORDERS))
    rows = []
    for row, pair in enumerate(pairs):
        often[pair] += 1
        if often[pair] <= BORDERS:
            rows.append(row)
    return rows


def _listed(
    landscape: Landscape, saddles: tuple[Saddle, ...]
) -> tuple[Landscape, tuple[Saddle, ...]]:
    """With the minima beyond saddles that SGD crossed listed too: it passes through them."""
    crossed = [s for s in saddles if s.method == CROSSED]
    points = [p for s in crossed for p in s.end_points if np.isfinite(p).all()]
    if points:
        landscape = extended(landscape, np.array(points))
    return landscape, relisted(saddles, landscape)


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
