"""Kernels: a process's step in vector code, inside the loops that run it.

A `Recipe` says how one step changes x; `advance_source` and `exit_source` put it into loops
over time and over blocks of lanes. Blocks are handed to threads by an atomic counter, and lanes
that are done are refilled from another, so that no thread waits and no lane idles; what a path
does depends on its own numbers alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from . import elementary
from .emit import emit
from .ir import Scalar
from .lowering import Nodes
from .vector import Code, Val, Var, module

# Places in the argument array of a kernel: addresses, whole numbers, and the address of reals.
ARGS = (
    "x", "rng", "velocity", "order", "queue", "blocks", "steps", "first", "reals", "batch",
    "table", "rows", "weights", "paths", "starts", "states", "left", "points", "horizon",
    "chunk", "budget", "ids", "taken", "live", "sums", "counts", "every", "edges",
    "steps_of", "step", "regions", "region_count",
    "level_table", "level_weights", "level_rows",
    "goals", "core", "best", "fates", "score_table",
)  # fmt: skip
NATIVE_LANES = {"f64": 8, "f32": 16}  # of a 512-bit register; shorter ones are used in groups
REALS = ("drift", "noise", "eta", "momentum", "half_eta", "bridge")


@dataclass(frozen=True)
class Expressions:
    """Lowered code: outputs (arrays of nodes flattened), over inputs named by their arrays."""

    outputs: list[Scalar]

    @staticmethod
    def of(arrays: list[Nodes]) -> Expressions:
        """The flattened outputs of `lowering.lower`."""
        return Expressions([v for a in arrays for v in a.ravel()])


@dataclass
class Context:
    """A kernel's moving parts while a step is being written."""

    code: Code
    kind: str
    dim: int
    block: Val | None = None
    x: list[Var] = field(default_factory=list)
    rng: list[Var] = field(default_factory=list)
    velocity: list[Var] = field(default_factory=list)
    step: Val | None = None
    order: Val | None = None
    loaded: dict[str, Val] = field(default_factory=dict)
    supply: list[Val] = field(default_factory=list)  # normals drawn ahead

    def whole(self, name: str) -> Val:
        """A whole-number argument."""
        return self.code.load(self.code.args[0], "i64", self.code.i64(ARGS.index(name)))

    def address(self, name: str) -> Val:
        """An address argument; the address of the arguments themselves for ""."""
        if not name:
            return self.code.args[0]
        return self.code.load(self.code.args[0], "ptr", self.code.i64(ARGS.index(name)))

    def real(self, name: str) -> Val:
        """A real argument in every lane; read once, ahead of the loops."""
        return self.loaded[name]

    def read_reals(self) -> None:
        """Put all real arguments into registers."""
        c, reals = self.code, self.address("reals")
        for k, name in enumerate(REALS):
            value = c.real(c.load(reals, "f64", c.i64(k)), self.kind)
            self.loaded[name] = c.splat(value)
        for name in ("table", "weights", "level_table", "level_weights"):
            self.loaded[name] = self.address(name)
        for name in ("batch", "rows", "level_rows"):
            self.loaded[name] = self.whole(name)

    def zeros(self, count: int) -> list[Var]:
        """Fresh accumulators."""
        c = self.code
        return [c.var(self.kind, value=c.const(0.0, self.kind)) for _ in range(count)]

    def word(self) -> Val:
        """The next word of every lane's xoshiro128++."""
        c = self.code
        s0, s1, s2, s3 = (v.get() for v in self.rng)
        out = c.add(_rotated(c, c.add(s0, s3), 7), s0)
        t = c.shift("shl", s1, 9)
        s2, s3 = c.binary("xor", s2, s0), c.binary("xor", s3, s1)
        s1, s0 = c.binary("xor", s1, s2), c.binary("xor", s0, s3)
        s2, s3 = c.binary("xor", s2, t), _rotated(c, s3, 11)
        for var, value in zip(self.rng, (s0, s1, s2, s3), strict=True):
            var.set(value)
        return out

    def normals(self, count: int) -> list[Val]:
        """Standard normals, drawn in pairs; a spare one is thrown away."""
        if self.supply:
            taken, self.supply = self.supply[:count], self.supply[count:]
            return taken
        out: list[Val] = []
        per = 2 if self.kind == "f32" else 4
        for _ in range((count + 1) // 2):
            words = [self.word() for _ in range(per)]
            out.extend(elementary.normal_pair(self.code, self.kind, words))
        return out[:count]

    def below(self, bound: Val) -> Val:
        """A whole number in 0 ... bound - 1 in every lane (`streams.index_below`)."""
        c = self.code
        wide = c.cast("zext", self.word(), "i64")
        return c.shift("lshr", c.mul(wide, c.splat(bound)), 32)

    def evaluate(self, code: Expressions, **inputs: list[Val]) -> list[Val]:
        """Outputs of lowered code at these values of its input arrays."""
        table = {f"{name}{k}": v for name, vs in inputs.items() for k, v in enumerate(vs)}
        return emit(self.code, code.outputs, table, self.kind)


def _rotated(c: Code, x: Val, k: int) -> Val:
    return c.call("fshl", x, x, c.like(k, x))


Step = Callable[[Context], None]


@dataclass(frozen=True)
class Recipe:
    """A step in vector code, and what it needs besides positions and generators.

    Attributes
    ----------
    step
        Writes one step into a context.
    dim
        Dimension of x.
    velocity, order
        Whether paths carry a velocity, an order of the data.
    wide
        Whether two registers per value pay: two chains of operations run side by side, where
        the values of a step, or what is live of them, fit.
    normals
        Number of normals of a step that draws nothing else, and the same number always.
    """

    step: Step
    dim: int
    velocity: bool = False
    order: bool = False
    wide: bool = False
    normals: int = 0

    def shares(self, kind: str) -> bool:
        """Whether steps 2j and 2j + 1 share their normals, so that no spare is thrown away.

        So float32 draws an odd number of them: `normals` pairs for two steps. The generator
        moves on after the odd step only; a run that begins there draws the pairs again.
        """
        return kind == "f32" and self.normals % 2 == 1

    def lanes(self, kind: str) -> int:
        """Paths side by side."""
        return (2 if self.wide else 1) * NATIVE_LANES[kind]


# -- draws and gradients ----------------------------------------------------------------------
def gathered(ctx: Context, index: Val, columns: int, stride: int) -> list[Val]:
    """Row `index` (per lane) of the data table: one value per column."""
    c, table = ctx.code, ctx.loaded["table"]
    base = c.mul(index, c.like(stride, index))
    if stride > columns or stride % c.lanes == 0:
        chunks = range(0, columns, c.lanes)
        return [v for k in chunks for v in _transposed(ctx, base, k)][:columns]
    return [
        c.gather(table, ctx.kind, c.add(base, c.like(k, base)) if k else base)
        for k in range(columns)
    ]


def _transposed(ctx: Context, base: Val, first: int) -> list[Val]:
    """As many columns as lanes, from `first` on: pieces of rows, transposed in registers.

    Gathering them one by one costs several times as much.
    """
    c, n = ctx.code, ctx.code.lanes
    rows = []
    for lane in range(n):
        start = c.add(c.extract(base, lane), c.i64(first))
        rows.append(c.load(ctx.loaded["table"], ctx.kind, start, lanes=n))
    half = n // 2
    while half:
        low = [k if k & half == 0 else n + (k - half) for k in range(n)]
        high = [k + half if k & half == 0 else n + k for k in range(n)]
        done = list(rows)
        for i in range(n):
            if i & half == 0:
                a, b = rows[i], rows[i + half]
                done[i], done[i + half] = c.shuffle(a, b, low), c.shuffle(a, b, high)
        rows, half = done, half // 2
    return rows


def uniform_row(ctx: Context, row: Val, columns: int, stride: int) -> list[Val]:
    """Row `row` of the data table, the same in all lanes."""
    c, table = ctx.code, ctx.loaded["table"]
    base = c.mul(row, c.i64(stride))
    return [c.splat(c.load(table, ctx.kind, c.add(base, c.i64(k)))) for k in range(columns)]


def accumulate(ctx: Context, sums: list[Var], values: list[Val], weight: Val | None) -> None:
    """``sums += weight * values``."""
    for total, v in zip(sums, values, strict=True):
        old = total.get()
        total.set(ctx.code.add(old, v) if weight is None else ctx.code.fma(weight, v, old))


def descend(ctx: Context, sums: list[Var], momentum: bool) -> None:
    """``x -= eta/B * sums``, through the velocity when there is momentum.

    The real argument "drift" holds -eta/B, or 1/B when a velocity stands between.
    """
    c = ctx.code
    for k, total in enumerate(sums):
        x = ctx.x[k].get()
        if not momentum:
            ctx.x[k].set(c.fma(ctx.real("drift"), total.get(), x))
            continue
        g = c.mul(ctx.real("drift"), total.get())
        v = c.fma(ctx.real("momentum"), ctx.velocity[k].get(), g)
        ctx.velocity[k].set(v)
        ctx.x[k].set(c.fma(c.neg(ctx.real("eta")), v, x))


# -- loops ------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Watch:
    """What is summed up along paths: lowered observables over x, and bins of a histogram."""

    code: Expressions
    bins: int = 0


def advance_source(
    recipe: Recipe, kind: str, watch: Watch | None = None, lanes: int = 0, linkage: str = ""
) -> str:
    """LLVM text of ``advance``: every block of paths runs `steps` steps, watched if asked.

    With one lane it is the program of one thread of a GPU.
    """
    c = Code("advance", ["args"], lanes or recipe.lanes(kind), linkage)
    ctx = Context(c, kind, recipe.dim)
    ctx.read_reals()
    steps, first, blocks = ctx.whole("steps"), ctx.whole("first"), ctx.whole("blocks")
    last = c.add(first, steps)
    with c.repeat() as done:
        ctx.block = take_from(c, ctx.address("queue"))
        c.leave_if(c.compare("sge", ctx.block, blocks), done)
        load_block(ctx, recipe)
        watching = _Watching(ctx, watch) if watch else None
        seen = watching.see if watching else lambda: None
        if recipe.shares(kind):
            _run_in_pairs(ctx, recipe, first, last, seen)
        else:
            with c.loop(last, first) as k:
                ctx.step = k
                recipe.step(ctx)
                seen()
        store_block(ctx)
        if watching:
            watching.store()
    return module([c])


class _Watching:
    """Sums of observables and of their squares per path, and counts per bin, in float64."""

    def __init__(self, ctx: Context, watch: Watch) -> None:
        self.ctx, self.watch = ctx, watch
        c, self.size = ctx.code, len(watch.code.outputs)
        self.clock = c.var("i64", 1, c.i64(0))
        self.every = ctx.whole("every")
        self.sums = [
            c.var("f64", value=c.load(p, "f64", at, c.lanes))
            for p, at in _rows_of(ctx, "sums", "f64", 2 * self.size)
        ]

    def see(self) -> None:
        """After a step: when it is time, take the observables in."""
        c = self.ctx.code
        clock = c.add(self.clock.get(), c.i64(1))
        self.clock.set(clock)
        due = c.compare("eq", c.binary("srem", clock, self.every), c.i64(0))
        with c.when(due):
            values = self.ctx.evaluate(self.watch.code, x=[v.get() for v in self.ctx.x])
            for k, value in enumerate(c.real(v, "f64") for v in values):
                total, square = self.sums[k], self.sums[self.size + k]
                total.set(c.add(total.get(), value))
                square.set(c.fma(value, value, square.get()))
                if self.watch.bins:
                    self._count(k, value)

    def _count(self, k: int, value: Val) -> None:
        """One more in the bin of every lane's value; the outer bins take what lies outside."""
        c, ctx, bins = self.ctx.code, self.ctx, self.watch.bins
        edges = ctx.address("edges")
        low = c.splat(c.load(edges, "f64", c.i64(2 * k)))
        scale = c.splat(c.load(edges, "f64", c.i64(2 * k + 1)))
        place = c.call("floor", c.mul(c.sub(value, low), scale))
        place = c.add(place, c.like(1.0, place))
        place = c.select(c.compare("oge", place, c.like(0.0, place)), place, c.like(0.0, place))
        top = c.like(bins + 1.0, place)
        index = c.cast("fptosi", c.select(c.compare("olt", place, top), place, top), "i64")
        counts, one = ctx.address("counts"), self._one_per_path()
        for lane in range(c.lanes):
            at = c.add(c.extract(index, lane), c.i64(k * (bins + 2)))
            c.store(c.add(c.load(counts, "i64", at), c.extract(one, lane)), counts, at)

    def _one_per_path(self) -> Val:
        """1 in lanes that hold a path, 0 in those that fill the last block up."""
        c = self.ctx.code
        assert self.ctx.block is not None
        path = c.add(c.splat(c.mul(self.ctx.block, c.i64(c.lanes))), c.lane_numbers())
        return c.cast("zext", c.compare("slt", path, c.splat(self.ctx.whole("paths"))), "i64")

    def store(self) -> None:
        """Write the sums back."""
        rows = _rows_of(self.ctx, "sums", "f64", 2 * self.size)
        for (p, at), total in zip(rows, self.sums, strict=True):
            self.ctx.code.store(total.get(), p, at)


def _run_in_pairs(
    ctx: Context, recipe: Recipe, first: Val, last: Val, seen: Callable[[], None]
) -> None:
    """Steps `first` ... `last` - 1 that share normals two by two (see `Recipe.shares`)."""
    c = ctx.code
    odd_start = c.binary("and", first, c.i64(1))
    with c.when(c.compare("slt", first, last)):
        with c.when(c.compare("ne", odd_start, c.i64(0))):
            ctx.supply = ctx.normals(2 * recipe.normals)[recipe.normals :]
            recipe.step(ctx)
            seen()
        even = c.add(first, odd_start)
        left = c.sub(last, even)
        with c.loop(c.shift("lshr", left, 1)):
            ctx.supply = ctx.normals(2 * recipe.normals)
            recipe.step(ctx)
            seen()
            recipe.step(ctx)
            seen()
        with c.when(c.compare("ne", c.binary("and", left, c.i64(1)), c.i64(0))):
            before = [v.get() for v in ctx.rng]
            ctx.supply = ctx.normals(2 * recipe.normals)[: recipe.normals]
            for var, value in zip(ctx.rng, before, strict=True):
                var.set(value)
            recipe.step(ctx)
            seen()


def take_from(c: Code, queue: Val) -> Val:
    """The next number of a counter shared by all threads."""
    return c.emit("i64", 1, f"atomicrmw add ptr {queue.text}, i64 1 monotonic")


def _rows_of(ctx: Context, name: str, kind: str, count: int) -> list[tuple[Val, Val]]:
    """(array, first element) of each of `count` rows of this block."""
    c = ctx.code
    assert ctx.block is not None
    base = c.mul(ctx.block, c.i64(count * c.lanes))
    array = ctx.address(name)
    return [(array, c.add(base, c.i64(k * c.lanes))) for k in range(count)]


def load_block(ctx: Context, recipe: Recipe) -> None:
    """Positions, generators and memory of this block into registers."""
    c = ctx.code

    def fetch(name: str, kind: str, count: int) -> list[Var]:
        return [
            c.var(kind, value=c.load(p, kind, at, c.lanes))
            for p, at in _rows_of(ctx, name, kind, count)
        ]

    ctx.x = fetch("x", ctx.kind, recipe.dim)
    ctx.rng = fetch("rng", "i32", 4)
    if recipe.velocity:
        ctx.velocity = fetch("velocity", ctx.kind, recipe.dim)
    if recipe.order:
        assert ctx.block is not None
        size = c.mul(ctx.loaded["rows"], c.i64(c.lanes))
        ctx.order = c.at(ctx.address("order"), "i32", c.mul(ctx.block, size))


def store_block(ctx: Context) -> None:
    """The inverse of `load_block`."""
    for name, kind, values in (
        ("x", ctx.kind, ctx.x), ("rng", "i32", ctx.rng), ("velocity", ctx.kind, ctx.velocity)
    ):  # fmt: skip
        if values:
            for (p, at), v in zip(_rows_of(ctx, name, kind, len(values)), values, strict=True):
                ctx.code.store(v.get(), p, at)


# -- first exits ------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Exit:
    """What is tested after every step, as lowered code over x.

    Attributes
    ----------
    level
        Writes ``level(x)``, negative inside the domain.
    spread
        For the bridge correction: variance of the level per unit of time, at x.
    table, weights
        Data of a level that is a mean over them.
    """

    level: Callable[[Context, list[Val]], Val]
    spread: Expressions | None = None
    table: np.ndarray | None = None
    weights: np.ndarray | None = None


def exit_source(recipe: Recipe, kind: str, test: Exit) -> str:
    """LLVM text of ``exits``: lanes run until their paths leave, then take the next path.

    A call runs at most `budget` chunks of `chunk` steps. Exits are noted inside a chunk and
    booked at its end; what a lane does between its exit and the chunk's end is thrown away.
    """
    c = Code("exits", ["args"], recipe.lanes(kind))
    ctx = Context(c, kind, recipe.dim)
    ctx.read_reals()
    ctx.block = c.i64(0)
    points = c.array(kind, recipe.dim * c.lanes)
    events = c.array("i32", c.lanes)
    with c.loop(ctx.whole("budget")):
        live = ctx.whole("live")
        with c.when(c.compare("sgt", live, c.i64(0))):
            load_block(ctx, recipe)
            found = _run_chunk(ctx, recipe, test, points, events)
            store_block(ctx)
            with c.when(found):
                book_exits(ctx, recipe, points, events)
    return module([c])


def _run_chunk(ctx: Context, recipe: Recipe, test: Exit, points: Val, events: Val) -> Val:
    """`chunk` steps; notes the first event of every lane; whether a live lane had one."""
    c = ctx.code
    taken = c.load(ctx.address("taken"), "i64", lanes=c.lanes)
    rest = c.sub(c.splat(ctx.whole("horizon")), taken)
    rest = c.call("smin", rest, c.like(2**30, rest))
    rest = c.cast("trunc", rest, "i32")
    event = c.var("i32", value=c.const(0, "i32"))
    where = [c.var(ctx.kind, value=v.get()) for v in ctx.x]
    inside = _Bridge(ctx, test)
    shares = recipe.shares(ctx.kind) and test.spread is None
    together = 2 if shares else 1

    def watched(t: Val) -> None:
        ctx.step = t  # lanes start epochs together: see `exits.chunk_of`
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

    with c.loop(c.binary("sdiv", ctx.whole("chunk"), c.i64(together))) as turn:
        if shares:
            ctx.supply = ctx.normals(2 * recipe.normals)
        for k in range(together):
            watched(c.add(c.mul(turn, c.i64(together)), c.i64(k)))
    for k, spot in enumerate(where):
        c.store(spot.get(), points, c.i64(k * c.lanes))
    ids = c.load(ctx.address("ids"), "i64", lanes=c.lanes)
    noted = event.get()
    awake = c.compare("sge", ids, c.like(0, ids))
    happened = c.binary("and", awake, c.compare("ne", noted, c.like(0, noted)))
    c.store(c.select(happened, noted, c.like(0, noted)), events)
    c.store(c.add(taken, c.splat(ctx.whole("chunk"))), ctx.address("taken"))
    return c.any(happened)


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
        x = [v.get() for v in ctx.x]
        self.level = self.test.level(ctx, x)
        self.variance = c.mul(ctx.real("bridge"), ctx.evaluate(self.test.spread, x=x)[0])

    def left(self) -> Val:
        """Whether the path left during the step; NaN counts as outside."""
        c, ctx = self.ctx.code, self.ctx
        level = self.test.level(ctx, [v.get() for v in ctx.x])
        out = c.compare("uge", level, c.like(0.0, level))
        if self.level is None or self.variance is None:
            return out
        # P(a bridge from l0 < 0 to l1 < 0 touches 0) = exp(-2 l0 l1 / variance).
        exponent = c.div(c.mul(c.mul(c.like(-2.0, level), self.level), level), self.variance)
        u = c.real(elementary.uniform(c, ctx.word(), ctx.word()), ctx.kind)
        touched = c.compare("olt", u, elementary.exp(c, exponent))
        return c.binary("or", out, touched)


def book_exits(ctx: Context, recipe: Recipe, points: Val, events: Val) -> None:
    """Write down what happened in every lane (`events`) and give the lane its next path."""
    c = ctx.code
    with c.loop(c.i64(c.lanes)) as lane:
        event = c.load(events, "i32", lane)
        with c.when(c.compare("ne", event, c.i32(0))):
            _book_one(ctx, recipe, points, event, lane)
            _refill(ctx, recipe, lane)


def _book_one(ctx: Context, recipe: Recipe, points: Val, event: Val, lane: Val) -> None:
    """left[id] = steps taken, negative when censored; points[id] = position."""
    c = ctx.code
    ids, taken = ctx.address("ids"), ctx.address("taken")
    path = c.load(ids, "i64", lane)
    before = c.sub(c.load(taken, "i64", lane), ctx.whole("chunk"))
    number = c.cast("sext", event, "i64")
    censored = c.compare("slt", number, c.i64(0))
    steps = c.add(before, c.select(censored, c.sub(c.i64(0), number), number))
    c.store(c.select(censored, c.sub(c.i64(0), steps), steps), ctx.address("left"), path)
    base = c.mul(path, c.i64(recipe.dim))
    for k in range(recipe.dim):
        value = c.load(points, ctx.kind, c.add(lane, c.i64(k * c.lanes)))
        c.store(value, ctx.address("points"), c.add(base, c.i64(k)))


def _refill(ctx: Context, recipe: Recipe, lane: Val) -> None:
    """The next path takes the lane, or the lane falls asleep."""
    c = ctx.code
    ids, taken, live = ctx.address("ids"), ctx.address("taken"), ctx.address("")
    path = take_from(c, ctx.address("queue"))
    more = c.compare("slt", path, ctx.whole("paths"))
    c.store(c.select(more, path, c.i64(-1)), ids, lane)
    c.store(c.i64(0), taken, lane)
    awake = c.load(live, "i64", c.i64(ARGS.index("live")))
    fewer = c.select(more, awake, c.sub(awake, c.i64(1)))
    c.store(fewer, live, c.i64(ARGS.index("live")))
    with c.when(more):
        for name, source, kind, count in (
            ("x", "starts", ctx.kind, recipe.dim), ("rng", "states", "i32", 4)
        ):  # fmt: skip
            base = c.mul(path, c.i64(count))
            for k in range(count):
                value = c.load(ctx.address(source), kind, c.add(base, c.i64(k)))
                c.store(value, ctx.address(name), c.add(lane, c.i64(k * c.lanes)))
        for k in range(recipe.dim if recipe.velocity else 0):
            zero = c.const(0.0, ctx.kind, 1)
            c.store(zero, ctx.address("velocity"), c.add(lane, c.i64(k * c.lanes)))
        if recipe.order:
            with c.loop(ctx.loaded["rows"]) as row:
                entry = c.cast("trunc", row, "i32")
                c.store(entry, ctx.address("order"), c.add(lane, c.mul(row, c.i64(c.lanes))))
