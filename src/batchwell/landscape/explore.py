"""Exploration by SGD itself: which minima it visits, and between which it passes.

Random starts find basins that are wide where starts are drawn; SGD at a small batch finds those
it goes to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike

from ..dynamics import SGD
from ..ensemble import start
from ..errors import whole
from .attractors import UNDECIDED, Attractors
from .diverged import Diverged, Survivors
from .minima import Landscape, extended
from .points import points_of
from .quench import farthest_from, reach

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Exploration:
    """What paths of SGD met.

    Attributes
    ----------
    labels
        (looks + 1, paths) attractor whose basin each path was in, or UNDECIDED.
    attractors
        All attractors known at the end.
    points
        (transitions, 2, d) where the path was before and after each of the `transitions`.
    every
        SGD steps between two looks.
    diverged
        Paths that ran away, in the order in which they did: UNDECIDED from then on.
    """

    labels: np.ndarray
    attractors: Attractors = field(repr=False)
    points: np.ndarray = field(repr=False)
    every: int
    diverged: tuple[Diverged, ...] = ()

    @property
    def transitions(self) -> list[tuple[int, int]]:
        """Attractors (from, to) at consecutive looks that differ, in the order of time."""
        before, after = self.labels[:-1], self.labels[1:]
        moved = _moved(before, after)
        return list(zip(before[moved].tolist(), after[moved].tolist(), strict=True))

    def crossings(self, most: int = 2) -> list[tuple[np.ndarray, np.ndarray]]:
        """Points (d,) before and after transitions, at most `most` for each pair of attractors."""
        seen: Counter[tuple[int, int]] = Counter()
        out = []
        for (a, b), points in zip(self.transitions, self.points, strict=True):
            pair = (min(a, b), max(a, b))
            seen[pair] += 1
            if seen[pair] <= most:
                out.append((points[0], points[1]))
        return out


def _moved(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (before != after) & (before != UNDECIDED) & (after != UNDECIDED)


def explore(
    sgd: SGD,
    landscape: Landscape,
    starts: ArrayLike,
    steps: int,
    every: int,
    *,
    seed: int = 0,
    stream: str = "explore",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Exploration:
    """Run one path of `sgd` from each of `starts` (paths, d), quenched every `every` steps.

    Raises
    ------
    InputError
        Fewer steps than one look, or starts of the wrong shape.
    Divergence
        Every path ran away (a smaller learning rate or a larger batch may stay). Where others
        stay, those that ran away are named in `diverged`.

    Examples
    --------
    >>> from batchwell import SGD, additive, find_minima
    >>> well = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4)
    >>> found = find_minima(well, [[-0.5], [0.5]])
    >>> seen = explore(SGD(well, 0.3), found, [[-1.0]] * 8, steps=400, every=10, seed=1)
    >>> seen.labels.shape, sorted(set(seen.transitions))
    ((41, 8), [(0, 1), (1, 0)])
    """
    x = points_of("starts", starts, sgd.loss.dim)
    every = whole("every", every)
    looks = whole("steps", steps, every) // every
    known = landscape.attractors
    state, stay = start(sgd, x, len(x), seed, stream), Survivors(farthest_from(x))
    labels: list[np.ndarray] = []
    points = [np.empty((0, 2, sgd.loss.dim))]
    now = state.x
    for look in range(looks + 1):
        last = now
        if look:
            state = stay.advance_some(sgd, state, every, threads)
            now = last.copy()
            now[state.paths] = state.x
        homes = np.unique(labels[-1]) if labels else np.zeros(0, int)
        found = reach(sgd.loss, state.x, known, homes[homes != UNDECIDED], threads)
        known = found.attractors
        labels.append(np.full(len(x), UNDECIDED))
        labels[-1][state.paths] = found.labels
        if look:
            moved = _moved(labels[-2], labels[-1])
            points.append(np.stack([last[moved], now[moved]], axis=1))
        if progress is not None:
            progress(look, looks)
    return Exploration(np.array(labels), known, np.concatenate(points), every, tuple(stay.lost))


def with_explored(landscape: Landscape, exploration: Exploration) -> Landscape:
    """`landscape` with the minima that an exploration visited listed, and paths lost named."""
    visited = np.unique(exploration.labels)
    centers = exploration.attractors.centers[visited[visited != UNDECIDED]]
    lost = (*landscape.diverged, *exploration.diverged)
    return replace(extended(landscape, centers), diverged=lost)
