"""Sums of observables along paths, inside the kernel that runs them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .kernels import Context, Expressions, rows_of
from .loop_arrays import View, size_of
from .loop_program import Program
from .vector import Val


@dataclass(frozen=True, eq=False)
class Watch:
    """What is summed up along paths: lowered observables over x, and bins of a histogram.

    `size` is the number of observables.
    """

    code: Expressions | Program
    size: int
    bins: int = 0


class Watching:
    """Sums of observables and of their squares per path, and counts per bin, in float64."""

    def __init__(self, ctx: Context, watch: Watch) -> None:
        self.ctx, self.watch = ctx, watch
        self.clock = ctx.code.var("i64", 1, ctx.whole("clock"))
        self.every = ctx.whole("every")
        self._begin()

    def _begin(self) -> None:
        c = self.ctx.code
        self.sums = [
            c.var("f64", value=c.load(p, "f64", at, c.lanes))
            for p, at in rows_of(self.ctx, "sums", 2 * self.watch.size)
        ]

    def see(self) -> None:
        """After a step: when it is time, take the observables in."""
        c = self.ctx.code
        clock = c.add(self.clock.get(), c.i64(1))
        self.clock.set(clock)
        due = c.compare("eq", c.binary("srem", clock, self.every), c.i64(0))
        with c.when(due):
            self._take_in()

    def _take_in(self) -> None:
        c = self.ctx.code
        assert isinstance(self.watch.code, Expressions)
        values = self.ctx.evaluate(self.watch.code, x=[v.get() for v in self.ctx.x])
        for k, value in enumerate(c.real(v, "f64") for v in values):
            total, square = self.sums[k], self.sums[self.watch.size + k]
            total.set(c.add(total.get(), value))
            square.set(c.fma(value, value, square.get()))
            if self.watch.bins:
                self._count(c.i64(k), value)

    def _count(self, k: Val, value: Val) -> None:
        """One more in the bin of every lane's value; the outer bins take what lies outside."""
        c, ctx, bins = self.ctx.code, self.ctx, self.watch.bins
        edges = ctx.address("edges")
        twice = c.shift("shl", k, 1)
        low = c.splat(c.load(edges, "f64", twice))
        scale = c.splat(c.load(edges, "f64", c.add(twice, c.i64(1))))
        place = c.call("floor", c.mul(c.sub(value, low), scale))
        place = c.add(place, c.like(1.0, place))
        place = c.select(c.compare("oge", place, c.like(0.0, place)), place, c.like(0.0, place))
        top = c.like(bins + 1.0, place)
        index = c.cast("fptosi", c.select(c.compare("olt", place, top), place, top), "i64")
        counts, one = ctx.address("counts"), self._one_per_path()
        for lane in range(c.lanes):
            at = c.add(c.extract(index, lane), c.mul(k, c.i64(bins + 2)))
            c.increase(counts, at, c.extract(one, lane))

    def _one_per_path(self) -> Val:
        """1 in lanes that hold a path, 0 in those that fill the last block up."""
        c = self.ctx.code
        path = c.add(c.splat(self.ctx.here(1)), c.lane_numbers())
        return c.cast("zext", c.compare("slt", path, c.splat(self.ctx.whole("paths"))), "i64")

    def store(self) -> None:
        """Write the sums back."""
        rows = rows_of(self.ctx, "sums", 2 * self.watch.size)
        for (p, at), total in zip(rows, self.sums, strict=True):
            self.ctx.code.store(total.get(), p, at)


class LoopWatching(Watching):
    """The same for recipes that loop: the sums stay in memory."""

    def _begin(self) -> None:
        c, ctx = self.ctx.code, self.ctx
        self.here = c.at(ctx.address("sums"), "f64", ctx.here(2 * self.watch.size))

    def _take_in(self) -> None:
        c, w = self.ctx.code, self.ctx.arrays()
        assert isinstance(self.watch.code, Program)
        values = self.watch.code.write(w, self.ctx.array("x"))
        whole = np.cumsum([0, *(size_of(v) for v in values)])
        seen = w.take(self.watch.size)
        for value, first in zip(values, whole, strict=False):
            w.store(value, View(seen, first + np.arange(size_of(value))))
        with c.loop(c.i64(self.watch.size)) as k:
            entry = c.real(w.load(seen, k), "f64")
            self._add(k, entry)
            self._add(c.add(k, c.i64(self.watch.size)), c.mul(entry, entry))
            if self.watch.bins:
                self._count(k, entry)

    def _add(self, row: Val, value: Val) -> None:
        c = self.ctx.code
        place = c.strided(row)
        c.store(c.add(c.load(self.here, "f64", place, c.lanes), value), self.here, place)

    def store(self) -> None:
        """Nothing: they are there."""


def watching_of(ctx: Context, watch: Watch) -> Watching:
    """What sums up in this kernel."""
    return (LoopWatching if isinstance(watch.code, Program) else Watching)(ctx, watch)
