"""Which state of the network a point is in: its minimum, up to symmetry."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..landscape import UNDECIDED, Attractors, Landscape, classify, quench
from ..streams import generator

UNLISTED, NOWHERE = -1, -2


@dataclass
class StateMap:
    """Quenches points and remembers the minima met on the way.

    Points are first moved to their images in one copy of the space, those closest to a fixed
    reference: mirror images of a minimum then need not be found one by one.

    Attributes
    ----------
    attractors
        Minima known now, in that copy.
    classes
        Index of each into the landscape's minima, or UNLISTED.
    met
        Attractors that points were found at since this was last cleared.
    """

    landscape: Landscape
    threads: int | None = None
    attractors: Attractors = field(init=False)
    classes: np.ndarray = field(init=False)
    reference: np.ndarray = field(init=False, repr=False)
    met: set[int] = field(init=False, default_factory=set, repr=False)

    def __post_init__(self) -> None:
        self.attractors = self.landscape.attractors.take([])
        self.classes = np.empty(0, dtype=int)
        self.reference = generator(0, "copy-of-the-space").standard_normal(self.landscape.loss.dim)
        self.minima_of(np.array([m.x for m in self.landscape.minima]))

    def images(self, points: np.ndarray) -> np.ndarray:
        """The image of each of `points` (n, d) closest to the reference."""
        align = self.landscape.symmetry.align
        return np.array([align(x, self.reference) for x in points]).reshape(points.shape)

    def minima_of(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(classes (n,), centers (n, d)): index, UNLISTED or NOWHERE; NaN where NOWHERE."""
        scape = self.landscape
        found = quench(scape.loss, self.images(points), self.attractors, threads=self.threads)
        fresh = found.attractors.centers[len(self.attractors) :]
        new = classify(fresh, scape.minima, scape.symmetry)
        self.attractors, self.classes = found.attractors, np.concatenate([self.classes, new])
        reached = found.labels != UNDECIDED
        self.met.update(found.labels[reached].tolist())
        classes = np.full(len(points), NOWHERE)
        centers = np.full(points.shape, np.nan)
        if reached.any():
            classes[reached] = self.classes[found.labels[reached]]
            centers[reached] = self.attractors.centers[found.labels[reached]]
        return classes, centers

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """State of each of `points` (n, d): index of its minimum, or len(minima) for elsewhere."""
        classes, _ = self.minima_of(points)
        return np.where(classes < 0, len(self.landscape.minima), classes)

    @property
    def unlisted(self) -> int:
        """How many minima were met that the landscape does not list."""
        return int(np.sum(self.classes[sorted(self.met)] == UNLISTED))
