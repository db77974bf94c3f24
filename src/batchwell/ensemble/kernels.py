"""Kernels: what a process's step in vector code is made of.

A `Recipe` says how one step changes x; `advance_kernel` and `exit_kernel` put it into loops
over time and over blocks of lanes. Blocks are handed to threads by an atomic counter, and lanes
that are done are refilled from another, so that no thread waits and no lane idles; what a path
does depends on its own numbers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from . import elementary
from .emit import emit
from .generators import words
from .ir import Scalar
from .loop_arrays import Buffer, Lazy, Loops
from .lowering import Nodes
from .thread_code import ThreadCode
from .vector import Code, Val, Var

# Places in the argument array of a kernel: addresses, whole numbers, and the address of reals.
ARGS = (
    "x", "rng", "velocity", "order", "queue", "blocks", "steps", "first", "reals", "batch",
    "table", "rows", "weights", "paths", "starts", "states", "left", "points", "horizon",
    "chunk", "budget", "ids", "taken", "live", "sums", "counts", "every", "clock", "edges",
    "steps_of", "step", "regions", "region_count",
    "level_table", "level_weights", "level_rows",
    "goals", "core", "best", "fates", "score_table", "width", "room", "refill",
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
    generator: str = "xoshiro"
    block: Val | None = None
    x: list[Var] = field(default_factory=list)
    rng: list[Var] = field(default_factory=list)
    velocity: list[Var] = field(default_factory=list)
    step: Val | None = None
    order: Val | None = None
    loaded: dict[str, Val] = field(default_factory=dict)
    supply: list[Val] = field(default_factory=list)  # normals drawn ahead
    loops: Loops | None = None  # what writes array code, for recipes that loop
    places: dict[str, Buffer] = field(default_factory=dict)  # where x and velocity then are

    def whole(self, name: str) -> Val:
        """A whole-number argument."""
        return self.code.load(self.code.args[0], "i64", self.code.i64(ARGS.index(name)))

    def address(self, name: str) -> Val:
        """An address argument; the address of the arguments themselves for ""."""
        if not name:
            return self.code.args[0]
        return self.code.load(self.code.args[0], "ptr", self.code.i64(ARGS.index(name)))

    def here(self, rows: int | Val) -> Val:
        """Where this block's part of an array of `rows` rows per path begins."""
        assert self.block is not None
        count = rows if isinstance(rows, Val) else self.code.i64(rows)
        return self.code.block_start(self.block, count)

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

    def words(self, count: int) -> list[Val]:
        """The next words of every lane's generator."""
        return words(self.code, self.generator, self.rng, count)

    def normals(self, count: int) -> list[Val]:
        """Standard normals, drawn in pairs; a spare one is thrown away."""
        if self.supply:
            taken, self.supply = self.supply[:count], self.supply[count:]
            return taken
        per = 2 if self.kind == "f32" else 4
        pairs = [
            elementary.normal_pair(self.code, self.kind, self.words(per))
            for _ in range((count + 1) // 2)
        ]
        return [value for pair in pairs for value in pair][:count]

    def arrays(self) -> Loops:
        """What writes array code into this kernel."""
        assert self.loops is not None
        return self.loops

    def array(self, name: str) -> Lazy:
        """Positions ("x") or "velocity" of a recipe that loops, (dim,)."""
        return self.arrays().whole(self.places[name], (self.dim,))

    def below(self, bound: Val) -> Val:
        """A whole number in 0 ... bound - 1 in every lane (`streams.index_below`)."""
        c = self.code
        wide = c.cast("zext", self.words(1)[0], "i64")
        return c.shift("lshr", c.mul(wide, c.splat(bound)), 32)

    def evaluate(self, code: Expressions, **inputs: list[Val]) -> list[Val]:
        """Outputs of lowered code at these values of its input arrays."""
        table = {f"{name}{k}": v for name, vs in inputs.items() for k, v in enumerate(vs)}
        return emit(self.code, code.outputs, table, self.kind)


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
    loops
        Whether positions stay in memory and steps are loops over them (see `loop_arrays`).
    generator
        Where random words come from, see `generators`.
    """

    step: Step
    dim: int
    velocity: bool = False
    order: bool = False
    wide: bool = False
    normals: int = 0
    loops: bool = False
    generator: str = "xoshiro"

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
        return [v for k in chunks for v in transposed(ctx, base, c.i64(k))][:columns]
    return [
        c.gather(table, ctx.kind, c.add(base, c.like(k, base)) if k else base)
        for k in range(columns)
    ]


def transposed(ctx: Context, base: Val, first: Val) -> list[Val]:
    """As many columns as lanes, from `first` on: pieces of rows, transposed in registers.

    Gathering them one by one costs several times as much.
    """
    c, n = ctx.code, ctx.code.lanes
    rows = []
    for lane in range(n):
        start = c.add(c.extract(base, lane), first)
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


# -- blocks of paths --------------------------------------------------------------------------
def take_from(c: Code, queue: Val) -> Val:
    """The next number of a counter shared by all threads."""
    return c.emit("i64", 1, f"atomicrmw add ptr {queue.text}, i64 1 monotonic")


def context_of(name: str, recipe: Recipe, kind: str, gpu: bool) -> Context:
    """Where the kernel `name` is written: for a block of lanes, or for a thread of a GPU."""
    code = (
        ThreadCode(name, ARGS.index("width"), ARGS.index("room"))
        if gpu
        else Code(name, ["args"], recipe.lanes(kind))
    )
    ctx = Context(code, kind, recipe.dim, recipe.generator)
    ctx.read_reals()
    return ctx


@contextmanager
def working(c: Code) -> Iterator[None]:
    """What only those threads of a GPU do that have paths; a grid is a little larger."""
    if isinstance(c, ThreadCode):
        with c.when(c.compare("slt", c.thread, c.width)):
            yield
    else:
        yield


@contextmanager
def each_block(ctx: Context) -> Iterator[None]:
    """Blocks of paths, one after the other: from the queue, or on a GPU, all threads together.

    To a GPU "queue" holds the first block, and stays as it is.
    """
    c, queue, blocks = ctx.code, ctx.address("queue"), ctx.whole("blocks")
    if isinstance(c, ThreadCode):
        with working(c), c.loop(blocks, c.load(queue, "i64")) as block:
            ctx.block = block
            yield
        return
    with c.repeat() as done:
        ctx.block = take_from(c, queue)
        c.leave_if(c.compare("sge", ctx.block, blocks), done)
        yield


def rows_of(ctx: Context, name: str, count: int) -> list[tuple[Val, Val]]:
    """(array, first element) of each of `count` rows of this block."""
    c, base, array = ctx.code, ctx.here(count), ctx.address(name)
    return [(array, c.add(base, c.strided(c.i64(k)))) for k in range(count)]


def load_block(ctx: Context, recipe: Recipe) -> None:
    """Positions, generators and memory of this block into registers."""
    c = ctx.code

    def fetch(name: str, kind: str, count: int) -> list[Var]:
        return [
            c.var(kind, value=c.load(p, kind, at, c.lanes)) for p, at in rows_of(ctx, name, count)
        ]

    ctx.rng = fetch("rng", "i32", 4)
    if recipe.loops:
        ctx.loops = ctx.loops or Loops(c, ctx.kind)
        for name in ("x", "velocity")[: 2 if recipe.velocity else 1]:
            start = c.at(ctx.address(name), ctx.kind, ctx.here(recipe.dim))
            ctx.places[name] = ctx.loops.at(start, recipe.dim)
    else:
        ctx.x = fetch("x", ctx.kind, recipe.dim)
        if recipe.velocity:
            ctx.velocity = fetch("velocity", ctx.kind, recipe.dim)
    if recipe.order:
        ctx.order = c.at(ctx.address("order"), "i32", ctx.here(ctx.loaded["rows"]))


def store_block(ctx: Context) -> None:
    """Positions, generators and velocities back into memory."""
    for name, values in (("x", ctx.x), ("rng", ctx.rng), ("velocity", ctx.velocity)):
        if values:
            for (p, at), v in zip(rows_of(ctx, name, len(values)), values, strict=True):
                ctx.code.store(v.get(), p, at)
