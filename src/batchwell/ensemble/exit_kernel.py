"""The kernel of first exits: lanes are refilled as paths leave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import elementary
from .kernels import Context, Recipe, context_of, load_block, store_block, take_from, working
from .vector import Val, Var, module


@dataclass(frozen=True, eq=False)
class Exit:
    """What is tested after every step, as lowered code over x.

    Attributes
    ----------
    level
        Writes ``level(x)`` of the positions now, negative inside the domain.
    spread
        For the bridge correction: writes the variance of the level per unit of time.
    table, weights
        Data of a level that is a mean over them.
    """

    level: Callable[[Context], Val]
    spread: Callable[[Context], Val] | None = None
    table: np.ndarray | None = None
    weights: np.ndarray | None = None


def exit_source(recipe: Recipe, kind: str, test: Exit, gpu: bool = False) -> str:
    """LLVM text of ``exits``: lanes run until their paths leave, then take the next path."""
    ctx = context_of("exits", recipe, kind, gpu)

    def run_chunk(points: Val, events: Val) -> Val:
        return _run_chunk(ctx, recipe, test, points, events)

    write_refilling(ctx, recipe, run_chunk)
    return module([ctx.code])


def write_refilling(ctx: Context, recipe: Recipe, run_chunk: Callable[[Val, Val], Val]) -> None:
    """Lanes that run chunks of steps until their paths end, and then take the next path.

    A call runs at most `budget` chunks of `chunk` steps. ``run_chunk(points, events)`` notes
    ends, and says whether there were any; they are booked when it is over, and what a lane does
    between its path's end and the chunk's is thrown away. Then its lane takes a path if `refill`
    is set; if not, a chunk ends in the middle of an epoch, and lanes that are free wait for a call
    that begins with one: `first` is the step in an epoch, and all lanes are at the same one.
    """
    c = ctx.code
    ctx.block = c.i64(0)
    points = c.heap(ctx.kind, recipe.dim * c.lanes)
    events = c.array("i32", c.lanes)
    going = c.var("i1", 1)
    with working(c):
        with c.when(c.compare("eq", ctx.whole("first"), c.i64(0))):
            _fill_lanes(ctx, recipe)
        going.set(c.any(awake(ctx)))
        with c.loop(ctx.whole("budget")), c.when(going.get()):
            load_block(ctx, recipe)
            found = run_chunk(points, events)
            store_block(ctx)
            with c.when(found):
                _book_exits(ctx, recipe, points, events)
                going.set(c.any(awake(ctx)))


def awake(ctx: Context) -> Val:
    """Which lanes hold a path."""
    c = ctx.code
    ids = c.load(ctx.address("ids"), "i64", ctx.here(1), c.lanes)
    return c.compare("sge", ids, c.like(0, ids))


def taken_and_rest(ctx: Context) -> tuple[Val, Val]:
    """Steps that every lane's path has taken, and how many it has left (32 bits)."""
    c = ctx.code
    taken = c.load(ctx.address("taken"), "i64", ctx.here(1), c.lanes)
    rest = c.sub(c.splat(ctx.whole("horizon")), taken)
    return taken, c.cast("trunc", c.call("smin", rest, c.like(2**30, rest)), "i32")


def note(ctx: Context, where: list[Var], event: Val, taken: Val, points: Val, events: Val) -> Val:
    """At the end of a chunk, what happened in it; whether anything did."""
    c = ctx.code
    for k, spot in enumerate(where):
        c.store(spot.get(), points, c.strided(c.i64(k)))
    happened = c.binary("and", awake(ctx), c.compare("ne", event, c.like(0, event)))
    c.store(c.select(happened, event, c.like(0, event)), events)
    c.store(c.add(taken, c.splat(ctx.whole("chunk"))), ctx.address("taken"), ctx.here(1))
    return c.any(happened)


def _run_chunk(ctx: Context, recipe: Recipe, test: Exit, points: Val, events: Val) -> Val:
    """`chunk` steps; notes the first event of every lane; whether a live lane had one."""
    c = ctx.code
    taken, rest = taken_and_rest(ctx)
    event = c.var("i32", value=c.const(0, "i32"))
    where = [c.var(ctx.kind, value=v.get()) for v in ctx.x]  # of recipes that loop: `points`
    inside = _Bridge(ctx, test)
    shares = recipe.shares(ctx.kind) and test.spread is None
    together = 2 if shares else 1

    def watched(t: Val) -> None:
        ctx.step = c.add(ctx.whole("first"), t)
        inside.before()
        recipe.step(ctx)
        out = inside.left()
        number = c.splat(c.cast("trunc", c.add(t, c.i64(1)), "i32"))
        old = event.get()
        over = c.binary("or", out, c.compare("eq", number, rest))
        new = c.binary("and", over, c.compare("eq", old, c.like(0, old)))
        minus = c.sub(c.like(0, number), number)
        event.set(c.select(new, c.select(out, number, minus), old))
        for spot, x in zip(where, ctx.x, strict=True):
            spot.set(c.select(new, x.get(), spot.get()))
        if recipe.loops:
            _note_places(ctx, new, points)

    with c.loop(c.binary("sdiv", ctx.whole("chunk"), c.i64(together))) as turn:
        if shares:
            ctx.supply = ctx.normals(2 * recipe.normals)
        for k in range(together):
            watched(c.add(c.mul(turn, c.i64(together)), c.i64(k)))
    return note(ctx, where, event.get(), taken, points, events)


def _note_places(ctx: Context, new: Val, points: Val) -> None:
    """Positions of the lanes that are out just now, into `points`; most steps have none."""
    c, w, x = ctx.code, ctx.arrays(), ctx.places["x"]
    held = w.at(points, ctx.dim)
    with c.when(c.any(new)), c.loop(c.i64(ctx.dim)) as k:
        w.put(c.select(new, w.load(x, k), w.load(held, k)), held, k)


class _Bridge:
    """The test for having left: the level, or a Brownian bridge between two levels."""

    def __init__(self, ctx: Context, test: Exit) -> None:
        self.ctx, self.test = ctx, test
        self.level: Val | None = None
        self.variance: Val | None = None

    def before(self) -> None:
        """Read off the start of the step."""
        if self.test.spread is None:
            return
        c, ctx = self.ctx.code, self.ctx
        self.level = self.test.level(ctx)
        self.variance = c.mul(ctx.real("bridge"), self.test.spread(ctx))

    def left(self) -> Val:
        """Whether the path left during the step; NaN counts as outside."""
        c, ctx = self.ctx.code, self.ctx
        level = self.test.level(ctx)
        out = c.compare("uge", level, c.like(0.0, level))
        if self.level is None or self.variance is None:
            return out
        # P(a bridge from l0 < 0 to l1 < 0 touches 0) = exp(-2 l0 l1 / variance).
        exponent = c.div(c.mul(c.mul(c.like(-2.0, level), self.level), level), self.variance)
        u = c.real(elementary.uniform(c, *ctx.words(2)), ctx.kind)
        touched = c.compare("olt", u, elementary.exp(c, exponent))
        return c.binary("or", out, touched)


def _book_exits(ctx: Context, recipe: Recipe, points: Val, events: Val) -> None:
    """Write down the lanes that have an event; they are free then, or take the next path."""
    c = ctx.code
    with c.loop(c.i64(c.lanes)) as lane:
        event = c.load(events, "i32", lane)
        with c.when(c.compare("ne", event, c.i32(0))):
            _book_one(ctx, recipe, points, event, lane)
            with c.when(c.compare("ne", ctx.whole("refill"), c.i64(0))):
                _refill(ctx, recipe, lane)


def _book_one(ctx: Context, recipe: Recipe, points: Val, event: Val, lane: Val) -> None:
    """left[id] = steps taken, negative when censored; points[id] = position."""
    c = ctx.code
    own = c.add(ctx.here(1), lane)
    path = c.load(ctx.address("ids"), "i64", own)
    before = c.sub(c.load(ctx.address("taken"), "i64", own), ctx.whole("chunk"))
    number = c.cast("sext", event, "i64")
    censored = c.compare("slt", number, c.i64(0))
    c.store(c.i64(-1), ctx.address("ids"), own)
    steps = c.add(before, c.select(censored, c.sub(c.i64(0), number), number))
    c.store(c.select(censored, c.sub(c.i64(0), steps), steps), ctx.address("left"), path)
    base = c.mul(path, c.i64(recipe.dim))
    with c.loop(c.i64(recipe.dim)) as k:
        value = c.load(points, ctx.kind, c.add(lane, c.strided(k)))
        c.store(value, ctx.address("points"), c.add(base, k))


def _fill_lanes(ctx: Context, recipe: Recipe) -> None:
    """The next paths take the lanes that are free, as long as there are any."""
    c = ctx.code
    taken = c.emit("i64", 1, f"load atomic i64, ptr {ctx.address('queue').text} monotonic, align 8")
    with (
        c.when(c.compare("slt", taken, ctx.whole("paths"))),
        c.loop(c.i64(c.lanes)) as lane,
    ):
        path = c.load(ctx.address("ids"), "i64", c.add(ctx.here(1), lane))
        with c.when(c.compare("slt", path, c.i64(0))):
            _refill(ctx, recipe, lane)


def _refill(ctx: Context, recipe: Recipe, lane: Val) -> None:
    """The next path, if there is one, takes the lane."""
    c = ctx.code
    own = c.add(ctx.here(1), lane)
    path = take_from(c, ctx.address("queue"))
    more = c.compare("slt", path, ctx.whole("paths"))
    c.store(c.select(more, path, c.i64(-1)), ctx.address("ids"), own)
    c.store(c.i64(0), ctx.address("taken"), own)
    with c.when(more):
        for name, source, kind, count in (
            ("x", "starts", ctx.kind, recipe.dim), ("rng", "states", "i32", 4)
        ):  # fmt: skip
            base = c.mul(path, c.i64(count))
            with c.loop(c.i64(count)) as k:
                value = c.load(ctx.address(source), kind, c.add(base, k))
                c.store(value, ctx.address(name), c.add(own, c.strided(k)))
        with c.loop(c.i64(recipe.dim if recipe.velocity else 0)) as k:
            zero = c.const(0.0, ctx.kind, 1)
            c.store(zero, ctx.address("velocity"), c.add(own, c.strided(k)))
        if recipe.order:
            with c.loop(ctx.loaded["rows"]) as row:
                entry = c.cast("trunc", row, "i32")
                c.store(entry, ctx.address("order"), c.add(own, c.strided(row)))
