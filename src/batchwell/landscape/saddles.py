"""Saddles of index 1 between known minima, each verified by its eigenvalues and by its two ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import require, whole
from .attractors import FLAT, UNDECIDED, gradient_at, mean_at
from .climb import climb
from .minima import SAME, Landscape, classify
from .quench import STATIONARY, quench
from .spectrum import largest_curvature, lowest_modes
from .strings import descents, lines, relax, summits

UNLISTED, NOWHERE = -1, -2
NEIGHBOURS, SOFTEST, REPAIRS = 3, 1, 1
CROSSED = "string over a crossing"
KICK = 1e-3  # distance of the descents' starts from a saddle, times 1 + |x|
Progress = Callable[[int, int], None]
Pairs = Sequence[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Saddle:
    """A saddle of index 1: the pass between two basins.

    Attributes
    ----------
    label
        "S1", "S2", ... from the lowest on.
    x
        (d,) one representative of its class under the landscape's symmetry.
    loss
        F(x).
    eigenvalues
        (2,) the negative eigenvalue of the Hessian and the lowest positive one ((1,) if d = 1).
    direction
        (d,) unit vector along the negative eigenvalue; points towards ``ends[1]``.
    ends
        Indices into the landscape's minima that gradient flow reaches on either side; UNLISTED
        (-1) for a minimum that its search did not list, NOWHERE (-2) where no isolated minimum
        was reached.
    end_points
        (2, d) the minima reached, as the images that this saddle touches; NaN where none was.
    gradient_norm
        |grad F(x)| after the last Newton step.
    method
        How its neighbourhood was found.
    """

    label: str
    x: np.ndarray = field(repr=False)
    loss: float
    eigenvalues: np.ndarray
    direction: np.ndarray = field(repr=False)
    ends: tuple[int, int]
    end_points: np.ndarray = field(repr=False)
    gradient_norm: float
    method: str

    @property
    def joins(self) -> bool:
        """Whether both ends are listed minima, and not the same one."""
        return min(self.ends) >= 0 and self.ends[0] != self.ends[1]

    def barrier(self, landscape: Landscape, minimum: int) -> float:
        """F(saddle) - F(minimum), in units of the loss."""
        return self.loss - landscape.minima[minimum].loss


def find_saddles(
    landscape: Landscape,
    pairs: Pairs = (),
    *,
    neighbours: int = NEIGHBOURS,
    softest: int = SOFTEST,
    repairs: int = REPAIRS,
    known: Sequence[Saddle] = (),
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[Saddle, ...]:
    """Saddles of index 1 around and between the minima of a landscape.

    Strings are relaxed between each minimum and its nearest neighbours (nearest images under the
    symmetry) and over the borders between given `pairs`; their summits, and the softest directions of each minimum,
    are followed uphill to a saddle and polished by Newton's method to a gradient norm below 1e-9.
    Each saddle is verified by its eigenvalues (one negative, none that vanishes) and by descending
    on both sides. Parts of the landscape that are then still apart get strings of their own.

    Parameters
    ----------
    pairs
        Further pairs of points (d,) in neighbouring basins, where SGD was seen to cross, say
        (`Exploration.crossings`): a string is laid over the border between them.
    neighbours
        Nearest minima that each minimum is joined to by a string.
    softest
        Softest eigenvectors of each minimum along which both ways are climbed.
    repairs
        Rounds of strings between parts of the landscape that no saddle joins yet.
    known
        Saddles found before: they are kept, and need not be found again.
    progress
        Called with (stages done, stages).

    Returns
    -------
    tuple of Saddle
        From the lowest to the highest. A search from finitely many seeds: what it does not find
        may still exist.

    References
    ----------
    E, Ren & Vanden-Eijnden, J. Chem. Phys. 126 (2007) 164103, for strings between minima; Cerjan &
    Miller, J. Chem. Phys. 75 (1981) 2800, for the climb along one mode.

    Examples
    --------
    >>> from batchwell import additive, find_minima
    >>> well = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4 + x[1] ** 2, dim=2)
    >>> found = find_minima(well, [[0.7, 0.1], [-1.0, 0.3]])
    >>> [(s.ends, round(s.loss, 6), s.eigenvalues.round(6).tolist()) for s in find_saddles(found)]
    [((0, 1), 0.25, [-1.0, 2.0])]
    """
    whole("neighbours", neighbours, 0)
    whole("softest", softest, 0)
    whole("repairs", repairs, 0)
    for a, b in pairs:
        for point in (a, b):
            shape = np.shape(point)
            require(shape == (landscape.loss.dim,), "pairs", shape, "must hold points (d,)")
    search = _Search(landscape, tuple(known), threads)
    stages, done = 3 + repairs, 0

    def report() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, stages)

    search.stretch(pairs, CROSSED, over=True)
    report()
    search.stretch(near_pairs(landscape, neighbours), "string")
    report()
    search.climb_from_minima(softest)
    report()
    for _ in range(repairs):
        apart = search.pairs_between_parts(neighbours)
        if apart:
            search.stretch(apart, "string between parts")
        report()
    return search.result()


def near_pairs(landscape: Landscape, neighbours: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each minimum with the nearest images of its `neighbours` nearest minima, each pair once."""
    minima, symmetry = landscape.minima, landscape.symmetry
    images = {
        (i, j): symmetry.align(minima[j].x, minima[i].x)
        for i in range(len(minima))
        for j in range(i)
    }
    far = np.full((len(minima), len(minima)), np.inf)
    for (i, j), image in images.items():
        far[i, j] = far[j, i] = np.linalg.norm(image - minima[i].x)
    nearest = np.argsort(far, axis=1)[:, : min(neighbours, len(minima) - 1)]
    chosen = {(max(i, int(j)), min(i, int(j))) for i in range(len(minima)) for j in nearest[i]}
    return [(minima[i].x, images[i, j]) for i, j in sorted(chosen)]


class _Search:
    """Saddles found so far, and the attractors met on their two sides."""

    def __init__(
        self, landscape: Landscape, known: tuple[Saddle, ...], threads: int | None
    ) -> None:
        self.landscape, self.threads = landscape, threads
        self.loss, self.symmetry = landscape.loss, landscape.symmetry
        self.found: list[Saddle] = list(known)
        self.attractors = landscape.attractors
        # Curvature at the minima bounds the strings' step; saddles are rarely sharper.
        self.rate = 0.5 / max(m.lambda_max for m in landscape.minima)
        self.tried: set[tuple[int, int]] = set()

    def climb_from_minima(self, softest: int) -> None:
        if not softest:
            return
        starts, ways = [], []
        for minimum in self.landscape.minima:
            _, vectors = lowest_modes(self.loss, minimum.x, softest)
            for way in vectors.T:
                for sign in (-1.0, 1.0):
                    starts.append(minimum.x + sign * _kick(minimum.x) * way)
                    ways.append(way)
        self._climb(np.array(starts), np.array(ways), "climb along a soft direction")

    def stretch(self, pairs: Pairs, method: str, over: bool = False) -> None:
        if not len(pairs):
            return
        first, second = (np.array([pair[k] for pair in pairs]) for k in (0, 1))
        begin = descents(self.loss, first, second, self.threads) if over else lines(first, second)
        curves, values = relax(self.loss, begin, self.rate)
        points, tangents = summits(curves, values)
        if len(points):
            self._climb(points, tangents, method)

    def pairs_between_parts(self, neighbours: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Nearest pairs of minima that no chain of saddles joins, each tried once."""
        part = parts_of(len(self.landscape.minima), self.found)
        minima, symmetry = self.landscape.minima, self.landscape.symmetry
        out = []
        for own in sorted(set(part)):
            inside = np.flatnonzero(part == own)
            outside = np.flatnonzero(part != own)
            if not len(outside) or len(inside) > len(outside):
                continue
            near = [
                (symmetry.distance(minima[j].x, minima[i].x), int(i), int(j))
                for i in inside
                for j in outside
                if (int(min(i, j)), int(max(i, j))) not in self.tried
            ]
            for _, i, j in sorted(near)[: 2 * neighbours]:
                self.tried.add((int(min(i, j)), int(max(i, j))))
                out.append((minima[i].x, symmetry.align(minima[j].x, minima[i].x)))
        return out

    def result(self) -> tuple[Saddle, ...]:
        ranked = sorted(self.found, key=lambda s: s.loss)
        return tuple(replace(s, label=f"S{k + 1}") for k, s in enumerate(ranked))

    def _climb(self, points: np.ndarray, ways: np.ndarray, method: str) -> None:
        ends, _ = climb(self.loss, points, ways, STATIONARY)
        at_rest = ends[np.isfinite(ends).all(axis=1)]
        fresh = [s for s in (self._saddle(x, method) for x in at_rest) if s is not None]
        new: list[Saddle] = []
        for saddle in fresh:
            if not any(self._same(saddle, other) for other in [*self.found, *new]):
                new.append(saddle)
        if new:
            self.found += self._with_ends(new)

    def _saddle(self, x: np.ndarray, method: str) -> Saddle | None:
        """The saddle at x, without its ends; None if x is of another index or degenerate."""
        values, vectors = lowest_modes(self.loss, x, min(2, self.loss.dim))
        largest = largest_curvature(self.loss, x)
        if not values[0] < -FLAT * largest or (len(values) > 1 and values[1] <= FLAT * largest):
            return None
        return Saddle(
            "",
            x,
            float(mean_at(self.loss)(x)),
            values,
            vectors[:, 0],
            (NOWHERE, NOWHERE),
            np.full((2, self.loss.dim), np.nan),
            float(np.linalg.norm(np.asarray(gradient_at(self.loss)(x)))),
            method,
        )

    def _same(self, a: Saddle, b: Saddle) -> bool:
        if abs(a.loss - b.loss) > 1e-7 * (1.0 + abs(b.loss)):
            return False
        scale = SAME * (1.0 + float(np.linalg.norm(b.x)))
        if abs(float(np.linalg.norm(a.x)) - float(np.linalg.norm(b.x))) > scale:
            return False
        return self.symmetry.distance(a.x, b.x) < scale

    def _with_ends(self, saddles: list[Saddle]) -> list[Saddle]:
        kicks = np.array([_kick(s.x) * s.direction for s in saddles])
        x = np.array([s.x for s in saddles])
        result = quench(
            self.loss, np.concatenate([x - kicks, x + kicks]), self.attractors, threads=self.threads
        )
        self.attractors = result.attractors
        labels = result.labels.reshape(2, -1).T
        return [self._joined(saddle, pair) for saddle, pair in zip(saddles, labels, strict=True)]

    def _joined(self, saddle: Saddle, labels: np.ndarray) -> Saddle:
        points = np.full((2, self.loss.dim), np.nan)
        ends = [NOWHERE, NOWHERE]
        for side, label in enumerate(labels):
            if label != UNDECIDED:
                points[side] = self.attractors.centers[label]
                (kind,) = classify(points[side][None], self.landscape.minima, self.symmetry)
                ends[side] = int(kind)
        if ends[0] > ends[1] >= 0 or ends[0] < 0 <= ends[1]:
            ends, points = ends[::-1], points[::-1]
            saddle = replace(saddle, direction=-saddle.direction)
        return replace(saddle, ends=(ends[0], ends[1]), end_points=points)


def parts_of(count: int, saddles: Sequence[Saddle]) -> np.ndarray:
    """Which connected part of the landscape each of `count` minima is in: (count,)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    joined = [s.ends for s in saddles if s.joins]
    rows, columns = (np.array([e[k] for e in joined], dtype=int) for k in (0, 1))
    graph = coo_array((np.ones(len(joined)), (rows, columns)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1])


def _kick(x: np.ndarray) -> float:
    return KICK * (1.0 + float(np.linalg.norm(x)))
