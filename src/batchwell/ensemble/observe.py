"""Running moments and histograms along paths: nothing is stored but sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._jax import jax, jnp, traced
from ..errors import require
from .advance_kernel import advance_source
from .fused import (
    Arguments,
    Blocks,
    Engine,
    Stepper,
    blocked,
    kernel,
    run,
    unblocked,
    workers_for,
)
from .ir import Graph
from .kernels import Expressions
from .loop_program import Program
from .lowering import Unsupported, inputs, lower
from .watching import Watch

Observable = Callable[[Any], Any]


@dataclass(frozen=True)
class Bins:
    """Bins of equal width over [lower, upper], for each of k observables: (k,), (k,), number."""

    lower: np.ndarray
    upper: np.ndarray
    number: int

    @property
    def edges(self) -> np.ndarray:
        """(k, number + 1)."""
        return np.linspace(self.lower, self.upper, self.number + 1, axis=1)

    @property
    def scaled(self) -> np.ndarray:
        """(k, 2): lower end, and bins per unit."""
        return np.stack([self.lower, self.number / (self.upper - self.lower)], axis=1)


@dataclass
class Sums:
    """What has been seen so far.

    Attributes
    ----------
    totals, squares
        (M, k) sums over the times seen.
    counts
        (k, bins + 2): entries below, in each bin, above; None without bins.
    steps
        SGD steps run so far.
    """

    totals: np.ndarray
    squares: np.ndarray
    counts: np.ndarray | None
    steps: int = 0


def shape_of(observable: Observable, dim: int) -> int:
    """Number of entries of an observable."""
    point = jax.ShapeDtypeStruct((dim,), jnp.float64)
    out = traced("observable", observable, point, call=f"x of shape ({dim},)")
    require(hasattr(out, "shape"), "observable", out, "must return one array")
    return int(np.prod(out.shape))


def _lowered(observable: Observable, dim: int, loops: bool) -> Expressions | Program:
    point = jax.ShapeDtypeStruct((dim,), jnp.float64)
    if loops:
        return Program(observable, point)
    graph = Graph()
    return Expressions.of(lower(graph, observable, (point,), (inputs(graph, "x", (dim,)),)))


def lowers(observable: Observable, dim: int, loops: bool) -> bool:
    """Whether an observable has a fused form, as array code if `loops`."""
    try:
        _lowered(observable, dim, loops)
    except Unsupported:
        return False
    return True


def watch_of(engine: Engine, observable: Observable, bins: int) -> Watch:
    """What an engine's kernel sums up; raises `lowering.Unsupported`."""
    dim = engine.recipe.dim
    code = _lowered(observable, dim, engine.recipe.loops)
    return Watch(code, shape_of(observable, dim), bins)


class Watcher:
    """A fused `Stepper` that sums observables up after every `every` steps."""

    def __init__(
        self,
        stepper: Stepper,
        engine: Engine,
        observable: Observable,
        every: int,
        bins: Bins | None,
        threads: int | None,
    ) -> None:
        self.watch = watch_of(engine, observable, bins.number if bins else 0)
        self.size = self.watch.size
        self.stepper, self.engine, self.bins = stepper, engine, bins
        self.every, self.threads = every, threads
        self.call = kernel(engine, "advance", stepper.device, advance_source, self.watch)

    def __call__(self, first: int, steps: int, sums: Sums) -> np.ndarray:
        """`steps` more SGD steps; adds what is due to `sums`; positions (M, d)."""
        blocks: Blocks = self.stepper.blocks
        lanes, per = blocks.x.shape[2], self.stepper.per
        rows = blocked(np.concatenate([sums.totals, sums.squares], axis=1), lanes, np.float64)
        queue = np.zeros(1, np.int64)
        args = self.stepper.advance.arguments_for(first * per, steps * per, blocks, queue)
        for name, value in (
            ("sums", rows), ("every", self.every * per), ("clock", sums.steps * per),
            ("paths", blocks.count),
        ):  # fmt: skip
            args.put(name, value)
        if self.bins is not None:
            args.put("edges", np.ascontiguousarray(self.bins.scaled))
        self._run(args, sums, len(blocks.x))
        table = unblocked(rows, len(sums.totals), np.float64)
        sums.totals, sums.squares = table[:, : self.size], table[:, self.size :]
        sums.steps += steps
        return unblocked(blocks.x, blocks.count, np.float64)

    def _run(self, args: Arguments, sums: Sums, blocks: int) -> None:
        """Every thread counts for itself; whole numbers add up the same in any order."""
        own, counts = [], []
        for _ in range(workers_for(self.call, self.threads, blocks)):
            mine = args.copy()
            if sums.counts is not None:
                counts.append(np.zeros_like(sums.counts))
                mine.put("counts", counts[-1])
            own.append(mine)
        run(self.call, own)
        for c in counts:
            assert sums.counts is not None
            sums.counts += c
