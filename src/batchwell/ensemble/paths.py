"""Ensembles of paths: where they start, and where they are after so many steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack, cast

import numpy as np
from numpy.typing import ArrayLike

from .._jax import jax
from ..dynamics import SGD, Process, dimension
from ..errors import Divergence, require, whole
from ..points import numbers
from ..streams import path_states
from . import fused, xla
from .choice import engine_for
from .fused import CALL_SECONDS
from .lowering import Unsupported
from .options import Options, Settings, checked, fall_back, require_memory

DEFAULT_SUBSTEPS = 4
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Ensemble:
    """M paths at one moment.

    Attributes
    ----------
    x
        Positions (M, d).
    rng
        Generators (M, 4), uint32.
    memory
        What paths carry beside x (velocity, order of the data).
    step
        SGD steps taken so far.
    paths
        Path indices (M,), the keys of the random streams.
    """

    x: np.ndarray
    rng: np.ndarray
    memory: Any
    step: int
    paths: np.ndarray

    def take(self, rows: ArrayLike) -> Ensemble:
        """The ensemble of these rows only."""
        keep = np.asarray(rows)
        memory = jax.tree.map(lambda a: np.asarray(a)[keep], self.memory)
        return replace(
            self, x=self.x[keep], rng=self.rng[keep], memory=memory, paths=self.paths[keep]
        )


def start(
    process: Process,
    x0: ArrayLike,
    paths: int | Sequence[int] | np.ndarray,
    seed: int,
    stream: str = "paths",
    substeps: int = DEFAULT_SUBSTEPS,
) -> Ensemble:
    """Paths at step 0.

    Parameters
    ----------
    x0
        One start (d,) for all, or one per path (M, d).
    paths
        How many paths (then their indices are 0 ... M-1), or the indices themselves.
    seed, stream
        Root seed and stream name.

    Raises
    ------
    InputError
        Wrong shapes, or a start that is not finite.
    """
    count = whole("paths", paths) if np.ndim(paths) == 0 else np.size(paths)
    require_memory(_bytes(process, count))
    index = np.arange(count) if np.ndim(paths) == 0 else np.asarray(paths)
    x = _starts(x0, index.size, dimension(process))
    return Ensemble(x, path_states(seed, stream, index), _memory(process, x), 0, index)


def _bytes(process: Process, count: int) -> int:
    """About what an ensemble and its copies take at the peak."""
    order = process.loss.size if isinstance(process, SGD) and _has_order(process) else 0
    return count * (6 * 8 * dimension(process) + 3 * 16 + 3 * 4 * order)


def _has_order(sgd: SGD) -> bool:
    return sgd.loss.noise is None and sgd.sampling != "with_replacement"


def _memory(process: Process, x: np.ndarray) -> Any:
    """What paths carry beside x at step 0, as `step.Step.memory` has it."""
    if not isinstance(process, SGD):
        return ()
    data: Any = ()
    if _has_order(process):
        data = np.tile(np.arange(process.loss.size, dtype=np.int32), (len(x), 1))
    return (data, np.zeros_like(x)) if process.momentum else (data,)


def _starts(x0: ArrayLike, count: int, dim: int) -> np.ndarray:
    x = numbers("x0", x0, f"must be points of shape ({dim},) or ({count}, {dim})")
    if x.shape == (dim,) or (dim == 1 and x.ndim == 0):
        x = np.broadcast_to(x, (count, dim))
    require(x.shape == (count, dim), "x0", x.shape, f"must have shape ({dim},) or ({count}, {dim})")
    require(bool(np.all(np.isfinite(x))), "x0", x0, "must be finite")
    return np.array(x)


def advance(
    process: Process,
    ensemble: Ensemble,
    steps: int,
    substeps: int = DEFAULT_SUBSTEPS,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> Ensemble:
    """`ensemble` after `steps` more SGD steps of `process`.

    The process may differ from the one that `ensemble` was started with (a larger batch, say)
    as long as both carry the same memory.

    Raises
    ------
    Divergence
        A path left the finite numbers: says which path and by which step.
    """
    steps = whole("steps", steps, 0)
    run = stepper_of(process, ensemble, substeps, checked(process, substeps, cast(Any, options)))
    x = ensemble.x
    for done, count in time_blocks(steps):
        x = run(ensemble.step + done, count)
        check_finite(x, ensemble.paths, ensemble.step + done + count)
        if progress is not None:
            progress(done + count, steps)
    rng, memory = run.state()
    return replace(ensemble, x=x, rng=rng, memory=memory, step=ensemble.step + steps)


def advance_or_drop(
    process: Process,
    ensemble: Ensemble,
    steps: int,
    farthest: float,
    substeps: int = DEFAULT_SUBSTEPS,
    **options: Unpack[Options],
) -> tuple[Ensemble, dict[int, int]]:
    """`advance`, but a path that ends beyond `farthest` or not finite is dropped, not an error.

    Returns
    -------
    tuple
        The paths that stayed, bit for bit as `advance` gives them; and, by path index, the first
        step at which each of the others had a coordinate beyond `farthest` in size, or not finite.
    """
    steps = whole("steps", steps, 0)
    settings = checked(process, substeps, cast(Any, options))
    run, x = stepper_of(process, ensemble, substeps, settings), ensemble.x
    for done, count in time_blocks(steps):
        x = run(ensemble.step + done, count)
    rng, memory = run.state()
    moved = replace(ensemble, x=x, rng=rng, memory=memory, step=ensemble.step + steps)
    stays = within(x, farthest)
    if stays.all():
        return moved, {}
    gone = ensemble.take(np.flatnonzero(~stays))
    # Once more, step by step: blocks are as long as the clock allows and tell no exact step.
    run, when = stepper_of(process, gone, substeps, settings), np.zeros(len(gone.x), dtype=int)
    for k in range(steps):
        beyond = ~within(run(gone.step + k, 1), farthest)
        when[beyond & (when == 0)] = gone.step + k + 1
        if when.all():
            break
    return moved.take(np.flatnonzero(stays)), dict(
        zip(gone.paths.tolist(), when.tolist(), strict=True)
    )


def within(x: np.ndarray, farthest: float) -> np.ndarray:
    """Which of the points (n, d) have all coordinates at most `farthest` in size; NaN is not."""
    return np.asarray((np.abs(x) <= farthest).all(axis=1))


def stepper_of(
    process: Process,
    ensemble: Ensemble,
    substeps: int,
    settings: Settings,
    loops: bool | None = None,
) -> fused.Stepper | xla.Stepper:
    """What runs steps: ``run(first, count) -> x``, then ``run.state() -> (rng, memory)``."""
    state = (ensemble.x, ensemble.rng, ensemble.memory)
    if settings.engine != "xla":
        try:
            engine = engine_for(process, settings, loops)
            return fused.Stepper(engine, substeps, settings.threads, *state, device=settings.device)
        except Unsupported as why:
            fall_back(settings, str(why))
    return xla.Stepper(process, substeps, settings.scheme, *state)


def positions(
    process: Process,
    x0: ArrayLike,
    at: Sequence[int],
    paths: int,
    seed: int,
    stream: str = "paths",
    substeps: int = DEFAULT_SUBSTEPS,
    **options: Unpack[Options],
) -> np.ndarray:
    """Positions of `paths` paths at the SGD steps `at`: shape (len(at), paths, d).

    Examples
    --------
    >>> from batchwell import SGD, additive
    >>> sgd = SGD(additive(lambda x: x @ x / 2), learning_rate=0.1)
    >>> positions(sgd, [1.0], at=[0, 10], paths=3, seed=1).shape
    (2, 3, 1)
    """
    require(np.ndim(at) == 1 and len(at) > 0, "at", at, "must be a list of steps")
    times = [whole("at", t, 0) for t in at]
    require(times == sorted(times), "at", at, "must not decrease")
    state = start(process, x0, paths, seed, stream, substeps)
    out = []
    for t in times:
        state = advance(process, state, t - state.step, substeps, **options)
        out.append(state.x)
    return np.stack(out)


def time_blocks(total: int) -> Iterator[tuple[int, int]]:
    """(done, count) blocks that grow or shrink so that each lasts about CALL_SECONDS."""
    done, count = 0, 1
    while done < total:
        count = min(count, total - done)
        clock = time.perf_counter()
        yield done, count
        spent = time.perf_counter() - clock
        done += count
        if spent < CALL_SECONDS / 2:
            count = count * 4 if spent < CALL_SECONDS / 8 else count * 2
        elif spent > CALL_SECONDS and count > 1:
            count = count // 2


def check_finite(x: np.ndarray, paths: np.ndarray, step: int) -> None:
    """Raise `Divergence`, naming a path, where positions are not finite by `step`."""
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if bad.size:
        raise Divergence(
            f"diverged: path {int(paths[bad[0]])} ({bad.size} of {len(x)}) is not finite by step "
            f"{step}; lower the learning rate or raise the batch size"
        )
