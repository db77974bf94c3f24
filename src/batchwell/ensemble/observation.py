"""Moments and histograms along paths, without storing paths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Unpack, cast

import numpy as np
from numpy.typing import ArrayLike

from ..dynamics import Process, dimension
from ..errors import require, whole
from . import fused, xla
from .choice import loops_for
from .lowering import Unsupported
from .observe import Bins, Observable, Sums, Watcher, shape_of
from .options import Options, Settings, checked, fall_back
from .paths import (
    DEFAULT_SUBSTEPS,
    Ensemble,
    Progress,
    check_finite,
    stepper_of,
    time_blocks,
)


@dataclass(frozen=True)
class Observation:
    """Sums of observables along paths; their size does not depend on how long was watched.

    Attributes
    ----------
    ensemble
        The paths at the end.
    times
        How many times each path was seen.
    totals, squares
        (M, k) sums of the k observables, and of their squares, over those times.
    counts, edges
        (k, bins + 2) whole numbers (below, in each bin, above) and (k, bins + 1) edges, if asked.
    """

    ensemble: Ensemble
    times: int
    totals: np.ndarray
    squares: np.ndarray
    counts: np.ndarray | None = None
    edges: np.ndarray | None = None

    @property
    def mean(self) -> np.ndarray:
        """(k,) mean over paths and times."""
        return self.totals.mean(axis=0) / self.times

    @property
    def variance(self) -> np.ndarray:
        """(k,) variance over paths and times together."""
        return self.squares.mean(axis=0) / self.times - self.mean**2

    @property
    def stderr(self) -> np.ndarray:
        """(k,) standard error of `mean`, from the spread between independent paths."""
        spread = (self.totals / self.times).std(axis=0, ddof=1)
        return spread / np.sqrt(len(self.totals))


def observe(
    process: Process,
    ensemble: Ensemble,
    steps: int,
    observable: Observable = lambda x: x,
    every: int = 1,
    bins: tuple[ArrayLike, ArrayLike, int] | None = None,
    substeps: int = DEFAULT_SUBSTEPS,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> Observation:
    """Moments, and histograms if asked, of observables along paths, without storing paths.

    Parameters
    ----------
    steps
        SGD steps to run, a multiple of `every`.
    observable
        ``observable(x)`` in jax.numpy, its entries k observables; the coordinates by default.
    every
        Observe after every so many SGD steps.
    bins
        (lower, upper, number): ends, one for all observables or (k,), and how many bins.

    Examples
    --------
    >>> from batchwell import SGD, additive
    >>> from batchwell.ensemble import start
    >>> sgd = SGD(additive(lambda x: x @ x / 2), learning_rate=0.1)
    >>> seen = observe(sgd, start(sgd, [0.0], 100, seed=1), 500, lambda x: x**2, every=10)
    >>> seen.times, bool(abs(seen.mean[0] - 0.1 / 1.9) < 4 * seen.stderr[0])
    (50, True)
    """
    steps, every = whole("steps", steps), whole("every", every)
    require(steps % every == 0, "steps", steps, f"must be a multiple of every = {every}")
    k = shape_of(observable, dimension(process))
    ranges = _bins(bins, k)
    zeros = np.zeros((len(ensemble.paths), k))
    counts = None if ranges is None else np.zeros((k, ranges.number + 2), np.int64)
    sums = Sums(zeros, zeros, counts)
    settings = checked(process, substeps, cast(Any, options))
    loops = loops_for(process, observable, settings)
    stepper = stepper_of(process, ensemble, substeps, settings, loops)
    look = _watcher(stepper, observable, every, ranges, settings)
    x = ensemble.x
    for done, count in time_blocks(steps):
        x = look(ensemble.step + done, count, sums)
        check_finite(x, ensemble.paths, ensemble.step + done + count)
        if progress is not None:
            progress(done + count, steps)
    rng, memory = stepper.state()
    end = replace(ensemble, x=x, rng=rng, memory=memory, step=ensemble.step + steps)
    edges = None if ranges is None else ranges.edges
    return Observation(end, steps // every, sums.totals, sums.squares, sums.counts, edges)


def _bins(bins: tuple[ArrayLike, ArrayLike, int] | None, k: int) -> Bins | None:
    if bins is None:
        return None
    lower, upper = (np.broadcast_to(np.asarray(v, np.float64), (k,)) for v in bins[:2])
    require(bool(np.all(lower < upper)), "bins", bins, "need a lower end below the upper one")
    return Bins(lower, upper, whole("bins", bins[2]))


def _watcher(
    stepper: fused.Stepper | xla.Stepper,
    observable: Observable,
    every: int,
    bins: Bins | None,
    settings: Settings,
) -> Callable[[int, int, Sums], np.ndarray]:
    if isinstance(stepper, fused.Stepper):
        try:
            return Watcher(stepper, stepper.engine, observable, every, bins, settings.threads)
        except Unsupported as why:
            fall_back(settings, f"in the observable, {why}")
    return xla.watcher(stepper, observable, every, bins)
