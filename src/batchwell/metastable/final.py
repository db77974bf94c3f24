"""Where SGD is, by basin, after a fixed number of examples, under a schedule of batch sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from ..dynamics import SGD
from ..ensemble import advance, start
from ..errors import InputError, require, whole
from ..landscape import Landscape
from .states import NOWHERE, UNLISTED, StateMap

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Stage:
    """A stretch of training at one batch size: SGD steps, 0 or more."""

    batch_size: int
    steps: int

    def __post_init__(self) -> None:
        whole("steps", self.steps, 0)


@dataclass(frozen=True)
class FinalBasins:
    """Basins of M paths at the end of a schedule.

    Attributes
    ----------
    classes
        (M,) index into the landscape's minima; -1 for a minimum that its search did not list;
        -2 where no isolated minimum was reached.
    centers
        (M, d) an image of the minimum reached; NaN where none was.
    """

    classes: np.ndarray
    centers: np.ndarray


__all__ = ["NOWHERE", "UNLISTED", "FinalBasins", "Stage", "final_basins", "stages"]


def stages(batch_sizes: Sequence[int], examples: int) -> tuple[Stage, ...]:
    """Equal shares of `examples` at each of `batch_sizes`, in whole steps.

    Raises
    ------
    InputError
        A share too small for one step.

    Examples
    --------
    >>> stages([2, 8], 1600)
    (Stage(batch_size=2, steps=400), Stage(batch_size=8, steps=100))
    """
    examples = whole("examples", examples)
    require(len(batch_sizes) > 0, "batch_sizes", batch_sizes, "must name at least one batch size")
    share = examples // len(batch_sizes)
    out = tuple(Stage(whole("batch_size", b), share // b) for b in batch_sizes)
    for stage in out:
        if stage.steps < 1:
            raise InputError("examples", examples, f"too few for a step at B = {stage.batch_size}")
    return out


def final_basins(
    sgd: SGD,
    x0: ArrayLike,
    schedule: Sequence[Stage],
    landscape: Landscape,
    paths: int = 64,
    seed: int = 0,
    stream: str = "final-basins",
    threads: int | None = None,
    progress: Progress | None = None,
) -> FinalBasins:
    """Run `paths` copies of `sgd` from `x0` through `schedule`, then quench each to its basin.

    Learning rate, sampling mode and momentum are those of `sgd`; its batch size is replaced by each
    stage's.

    Raises
    ------
    InputError
        A batch size that the sampling mode does not allow (before anything runs).
    Divergence
        A path left the finite numbers.

    Examples
    --------
    >>> from batchwell import SGD, additive
    >>> from batchwell.landscape import find_minima
    >>> well = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4)
    >>> found = find_minima(well, [[-0.5], [0.5]])
    >>> ends = final_basins(SGD(well, 0.1), [-1.0], [Stage(100, 50)], found, paths=8, seed=1)
    >>> set(ends.classes.tolist()) <= {0, 1}
    True
    """
    chain = [(replace(sgd, batch_size=s.batch_size), s.steps) for s in schedule]
    require(bool(chain), "schedule", schedule, "must have at least one stage")
    state = start(chain[0][0], x0, paths, seed, stream)
    total, done = sum(steps for _, steps in chain), 0
    for process, steps in chain:
        # A stage's chain carries its own memory (order of the data) and counts its own epochs:
        # a count that went on would begin amid an epoch whose order was never shuffled.
        fresh = start(process, state.x, state.paths, seed, stream)
        state = replace(state, memory=fresh.memory, step=0)
        state = advance(process, state, steps, threads=threads)
        done += steps
        if progress is not None:
            progress(done, total)
    return FinalBasins(*StateMap(landscape, threads).minima_of(state.x))
