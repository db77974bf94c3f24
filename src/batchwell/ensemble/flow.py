"""Gradient flow of many points into known regions: the inner loop of a quench.

``dx/dt = -grad F``, each lane with its own adaptive step: by the pair of Bogacki & Shampine (Appl.
Math. Lett. 2, 1989), or, along flat valleys, by a Runge-Kutta-Chebyshev method (`chebyshev`). A
lane stops as soon as it is inside one of the given ellipsoids, and takes the next point.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from ..errors import one_of, require, whole
from ..loss import StochasticLoss
from . import elementary, flow_xla
from .chebyshev import GROWTH, STABILISED_GROWTH, chebyshev
from .fused import DTYPE, KIND, Arguments, blocked_table, run, thread_count
from .kernels import ARGS, NATIVE_LANES, Context, take_from
from .lowering import Unsupported
from .native import Kernel, compile_kernel
from .options import PRECISIONS, Settings, fall_back
from .row_sums import GradientField, gradient_field
from .vector import Code, Val, Var, module

CALL_SECONDS = 0.5


@dataclass(frozen=True, eq=False)
class Regions:
    """Ellipsoids ``|roots[k] (x - centers[k])| < radii[k]``: (K, d), (K, d, d), (K,)."""

    centers: np.ndarray
    roots: np.ndarray
    radii: np.ndarray


@dataclass(frozen=True, eq=False)
class Flow:
    """Where points have flowed to.

    Attributes
    ----------
    points
        (n, d) last points.
    labels
        (n,) index of the region that was entered, or -1.
    steps
        (n,) last step sizes, from which to go on.
    """

    points: np.ndarray
    labels: np.ndarray
    steps: np.ndarray


def gradient_flow(
    loss: StochasticLoss,
    points: ArrayLike,
    regions: Regions | None = None,
    max_steps: int = 1000,
    tolerance: float = 1e-3,
    first_step: ArrayLike = 0.1,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    stages: int = 3,
    precision: str = "float64",
) -> Flow:
    """Follow gradient flow from each of `points` (n, d) until it enters one of `regions`.

    Parameters
    ----------
    max_steps
        Attempted Runge-Kutta steps (`stages` gradients each) after which a point is given up.
    tolerance
        Error allowed in one step, in units of x.
    first_step
        Step size to begin with, one for all or (n,).
    stages
        3 for Bogacki & Shampine's pair; an odd number from 5 on for Runge-Kutta-Chebyshev, which
        takes steps about ``stages^2 / 4`` times as long where stability limits them.
    precision
        Of positions and arithmetic: "float64", or "float32" where `tolerance` is far above what
        rounding to 24 bits moves a point by (about ``1e-5 (1 + |x|)`` a step); XLA takes float64.

    Raises
    ------
    InputError
        Wrong shapes, another number of stages or precision.

    Notes
    -----
    Losses without a fused form are followed on XLA, which is said in one `SlowerEngine` warning.

    Examples
    --------
    >>> import numpy as np
    >>> from batchwell import additive
    >>> well = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4)
    >>> wells = Regions(np.array([[-1.0], [1.0]]), np.ones((2, 1, 1)), np.full(2, 0.3))
    >>> gradient_flow(well, [[0.1], [-2.0]], wells).labels.tolist()
    [1, 0]
    """
    x = np.ascontiguousarray(np.atleast_2d(np.asarray(points, np.float64)))
    require(x.shape[1] == loss.dim, "points", x.shape, f"must have shape (n, {loss.dim})")
    whole("max_steps", max_steps)
    require(stages in range(3, 64, 2), "stages", stages, "must be odd, from 3 to 63")
    one_of("precision", precision, PRECISIONS)
    sizes = np.broadcast_to(first_step, len(x)).astype(np.float64)
    flow = Flow(x.copy(), _labels(x, regions), sizes)
    rows = np.flatnonzero(flow.labels < 0)
    if rows.size:
        part = Flow(x[rows], np.full(rows.size, -1), flow.steps[rows])
        try:
            _fused_flow(
                loss,
                part,
                regions,
                max_steps,
                tolerance,
                threads,
                progress,
                stages,
                KIND[precision],
            )
        except Unsupported as why:
            fall_back(Settings(), str(why))
            given = _given(regions, loss.dim)
            part = Flow(
                *flow_xla.flow(loss, x[rows], part.steps, given, max_steps, tolerance, stages)
            )
        flow.points[rows], flow.labels[rows] = part.points, part.labels
        flow.steps[rows] = part.steps
    return flow


def _given(regions: Regions | None, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if regions is None:
        return np.empty((0, dim)), np.empty((0, dim, dim)), np.empty(0)
    return regions.centers, regions.roots, regions.radii


def _labels(x: np.ndarray, regions: Regions | None) -> np.ndarray:
    """The first region that holds each point, or -1."""
    out = np.full(len(x), -1)
    for k, (center, root, radius) in enumerate(zip(*_given(regions, x.shape[1]), strict=True)):
        free = np.flatnonzero(out < 0)
        moved = (x[free] - center) @ root.T
        out[free[np.einsum("ni,ni->n", moved, moved) < radius**2]] = k
    return out


def _fused_flow(
    loss: StochasticLoss,
    flow: Flow,
    regions: Regions | None,
    max_steps: int,
    tolerance: float,
    threads: int | None,
    progress: Callable[[int, int], None] | None,
    stages: int,
    kind: str,
) -> None:
    """`flow` from its own points, in place; raises Unsupported."""
    call, field = _compiled(loss, stages, kind)
    x, sizes = flow.points.astype(DTYPE[kind]), flow.steps.astype(DTYPE[kind])
    points, queue, lanes = x.copy(), np.zeros(1, np.int64), NATIVE_LANES[kind]
    packed = _packed(regions, loss.dim).astype(DTYPE[kind])
    shared = Arguments.of(
        reals=_reals(tolerance, stages), starts=x, points=points,
        left=flow.labels, steps_of=sizes, queue=queue, paths=len(x), horizon=max_steps,
        regions=packed, region_count=len(packed),
    )  # fmt: skip
    if field.table is not None:
        table, weights = blocked_table(field, kind)
        for name, value in (("table", table), ("weights", weights), ("rows", len(table))):
            shared.put(name, value)
    workers = [
        _lanes(shared, x, sizes, queue, lanes)
        for _ in range(thread_count(threads, -(-len(x) // lanes)))
    ]
    _run_to_the_end(call, workers, queue, len(x), progress)
    flow.points[:], flow.steps[:] = points, sizes


def _reals(tolerance: float, stages: int) -> np.ndarray:
    """Tolerance at place 5; from `_COEFFICIENTS` on the weights of the Chebyshev stages."""
    head = np.zeros(_COEFFICIENTS)
    head[5] = tolerance
    if stages == 3:
        return head
    first, rows = chebyshev(stages)
    return np.concatenate([head, [first], rows.ravel()])


def _packed(regions: Regions | None, dim: int) -> np.ndarray:
    """(K, dim + dim^2 + 1): centre, root by rows (the longest first), squared radius."""
    centers, roots, radii = _given(regions, dim)
    longest_first = np.argsort(-np.linalg.norm(roots, axis=2), axis=1)
    roots = np.take_along_axis(roots, longest_first[:, :, None], axis=1)
    parts = [centers, roots.reshape(len(radii), dim * dim), radii[:, None] ** 2]
    return np.ascontiguousarray(np.concatenate(parts, axis=1), np.float64)


def _lanes(
    shared: Arguments, x: np.ndarray, steps: np.ndarray, queue: np.ndarray, lanes: int
) -> Arguments:
    ids = queue[0] + np.arange(lanes)
    ids[ids >= len(x)] = -1
    queue[0] += lanes
    rows = np.maximum(ids, 0)
    out = shared.copy()
    for name, value in (
        ("x", np.ascontiguousarray(x[rows].T)),
        ("ids", ids),
        ("step", steps[rows].copy()),
        ("taken", np.zeros(lanes, np.int64)),
        ("live", int(np.count_nonzero(ids >= 0))),
    ):
        out.put(name, value)
    return out


def _run_to_the_end(
    call: Kernel,
    workers: list[Arguments],
    queue: np.ndarray,
    count: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    budget = 4
    while live := [w for w in workers if w.get("live")]:
        clock = time.perf_counter()
        for w in live:
            w.put("budget", budget)
        run(call, live)
        spent = time.perf_counter() - clock
        if spent < CALL_SECONDS / 2:
            budget *= 2
        elif spent > CALL_SECONDS:
            budget = max(1, budget // 2)
        if progress is not None:
            waiting = max(0, count - int(queue[0])) + sum(w.get("live") for w in workers)
            progress(count - waiting, count)


_HEAD_ROWS = 4
_COEFFICIENTS = 8


@lru_cache(maxsize=128)
def _compiled(loss: StochasticLoss, stages: int, kind: str) -> tuple[Kernel, GradientField]:
    field = gradient_field(loss)
    return compile_kernel(flow_source(field, loss.dim, stages, kind), "flow"), field


# -- the kernel -------------------------------------------------------------------------------
def flow_source(field: GradientField, dim: int, stages: int = 3, kind: str = "f64") -> str:
    """LLVM text of ``flow``: at most `budget` attempted steps of all lanes."""
    gradient = _gradient_function(field, dim, kind)
    c = Code("flow", ["args"], NATIVE_LANES[kind])
    ctx = Context(c, kind, dim, block=c.i64(0))
    work = [c.array(kind, dim * c.lanes) for _ in range(6)]
    here, k1 = work[:2]
    state, attempt = ctx.address("x"), _bogacki_shampine if stages == 3 else _chebyshev
    _copy(ctx, state, here)
    c.invoke("gradient", c.args[0], here, k1)
    label = c.var("i64")
    with c.loop(ctx.whole("budget")), c.when(c.compare("sgt", ctx.whole("live"), c.i64(0))):
        there, k4, good = attempt(ctx, stages, work)
        _select_rows(ctx, good, there, here)
        _select_rows(ctx, good, k4, k1)
        _find_region(ctx, here, label)
        _book(ctx, here, label, k1)
    _copy(ctx, here, state)
    return module([gradient, c])


def _bogacki_shampine(ctx: Context, stages: int, work: list[Val]) -> tuple[Val, Val, Val]:
    """One attempted step of the 3(2) pair: (new points, their slopes, which lanes take it)."""
    c, (here, k1, there, k2, k3, k4) = ctx.code, work
    h = c.load(ctx.address("step"), ctx.kind, lanes=c.lanes)
    _stage(ctx, here, there, [(k1, c.mul(c.like(-0.5, h), h))])
    c.invoke("gradient", c.args[0], there, k2)
    _stage(ctx, here, there, [(k2, c.mul(c.like(-0.75, h), h))])
    c.invoke("gradient", c.args[0], there, k3)
    thirds = [(k, c.mul(c.like(-w / 9, h), h)) for k, w in ((k1, 2), (k2, 3), (k3, 4))]
    _stage(ctx, here, there, thirds)
    c.invoke("gradient", c.args[0], there, k4)

    def defect(k: int) -> Val:
        e = c.like(0.0, h)
        for slope, w in zip((k1, k2, k3, k4), (-5 / 72, 1 / 12, 1 / 9, -1 / 8), strict=True):
            e = c.fma(c.like(w, h), _row(ctx, slope, k), e)
        return c.mul(h, e)

    return there, k4, _accept(ctx, h, defect, GROWTH)


def _chebyshev(ctx: Context, stages: int, work: list[Val]) -> tuple[Val, Val, Val]:
    """One attempted step of many stages; two at a time, each over the older of two points."""
    c, (here, k1, older, newer, slope, k4) = ctx.code, work
    h = c.load(ctx.address("step"), ctx.kind, lanes=c.lanes)
    first = _real(ctx, c.i64(_COEFFICIENTS))
    _copy(ctx, here, older)
    _stage(ctx, here, newer, [(k1, c.neg(c.mul(first, h)))])

    def stage(row: Val, last: Val, over: Val) -> None:
        c.invoke("gradient", c.args[0], last, slope)
        base = c.add(c.mul(row, c.i64(5)), c.i64(_COEFFICIENTS + 1))
        weights = [_real(ctx, c.add(base, c.i64(j))) for j in range(5)]
        by_slope, by_first = (c.neg(c.mul(w, h)) for w in weights[3:])
        for k in range(ctx.dim):
            value = c.mul(weights[0], _row(ctx, here, k))
            value = c.fma(weights[1], _row(ctx, last, k), value)
            value = c.fma(weights[2], _row(ctx, over, k), value)
            value = c.fma(by_slope, _row(ctx, slope, k), value)
            value = c.fma(by_first, _row(ctx, k1, k), value)
            c.store(value, over, c.i64(k * c.lanes))

    with c.loop(c.i64((stages - 1) // 2)) as pair:
        row = c.mul(pair, c.i64(2))
        stage(row, newer, older)
        stage(c.add(row, c.i64(1)), older, newer)
    c.invoke("gradient", c.args[0], newer, k4)

    def defect(k: int) -> Val:
        moved = c.sub(_row(ctx, here, k), _row(ctx, newer, k))
        slopes = c.add(_row(ctx, k1, k), _row(ctx, k4, k))
        return c.fma(c.mul(c.like(-0.4, h), h), slopes, c.mul(c.like(0.8, h), moved))

    return newer, k4, _accept(ctx, h, defect, STABILISED_GROWTH)


def _real(ctx: Context, place: Val) -> Val:
    """A real argument of this place, in every lane."""
    c = ctx.code
    return c.splat(c.real(c.load(ctx.address("reals"), "f64", place), ctx.kind))


def _gradient_function(field: GradientField, dim: int, kind: str) -> Code:
    g = Code("gradient", ["args", "x", "out"], NATIVE_LANES[kind], linkage="internal")
    ctx = Context(g, kind, dim)
    ctx.read_reals()
    _, x, out = g.args
    values = field.write(ctx, [_row(ctx, x, k) for k in range(ctx.dim)])
    for k, v in enumerate(values):
        g.store(v, out, g.i64(k * g.lanes))
    return g


def _row(ctx: Context, array: Val, k: int) -> Val:
    c = ctx.code
    return c.load(array, ctx.kind, c.i64(k * c.lanes), c.lanes)


def _copy(ctx: Context, source: Val, target: Val) -> None:
    c = ctx.code
    for k in range(ctx.dim):
        c.store(_row(ctx, source, k), target, c.i64(k * c.lanes))


def _stage(ctx: Context, x: Val, out: Val, terms: list[tuple[Val, Val]]) -> None:
    """``out = x + sum of weight * slope``."""
    c = ctx.code
    for k in range(ctx.dim):
        value = _row(ctx, x, k)
        for slope, weight in terms:
            value = c.fma(weight, _row(ctx, slope, k), value)
        c.store(value, out, c.i64(k * c.lanes))


def _accept(ctx: Context, h: Val, defect: Callable[[int], Val], growth: float) -> Val:
    """Which lanes take the step, by the error's coordinates; sets their next step sizes."""
    c, tolerance = ctx.code, _real(ctx, ctx.code.i64(5))
    total = c.like(0.0, h)
    for k in range(ctx.dim):
        e = defect(k)
        total = c.fma(e, e, total)
    error = c.div(elementary.sqrt(c, total), tolerance)
    root = elementary.power(c, c.add(error, c.like(1e-12, h)), c.like(-1 / 3, h))
    factor = c.mul(c.like(0.9, h), root)
    low, high = c.like(0.2, h), c.like(growth, h)
    factor = c.select(c.compare("olt", factor, high), factor, high)
    factor = c.select(c.compare("ogt", factor, low), factor, low)
    # An error that is not a number means a step into overflow: shorten it.
    factor = c.select(c.compare("ord", error, error), factor, low)
    c.store(c.mul(h, factor), ctx.address("step"))
    return c.compare("ole", error, c.like(1.0, h))


def _select_rows(ctx: Context, mask: Val, new: Val, old: Val) -> None:
    c = ctx.code
    for k in range(ctx.dim):
        c.store(c.select(mask, _row(ctx, new, k), _row(ctx, old, k)), old, c.i64(k * c.lanes))


def _find_region(ctx: Context, x: Val, label: Var) -> None:
    """label = the first region that holds x, or -1.

    The few longest rows of a root settle nearly all regions that do not hold x.
    """
    c, dim = ctx.code, ctx.dim
    label.set(c.const(-1, "i64"))
    regions, size = ctx.address("regions"), dim + dim * dim + 1
    head = min(dim, _HEAD_ROWS)
    with c.loop(ctx.whole("region_count")) as k:
        base = c.at(regions, ctx.kind, c.mul(k, c.i64(size)))
        moved = c.array(ctx.kind, dim * c.lanes)
        for j in range(dim):
            center = c.splat(c.load(base, ctx.kind, c.i64(j)))
            c.store(c.sub(_row(ctx, x, j), center), moved, c.i64(j * c.lanes))
        total = c.var(ctx.kind, value=c.const(0.0, ctx.kind))
        radius = c.splat(c.load(base, ctx.kind, c.i64(size - 1)))

        def add_row(i: Val) -> None:
            root = c.at(base, ctx.kind, c.add(c.mul(i, c.i64(dim)), c.i64(dim)))
            dot = c.const(0.0, ctx.kind)
            for j in range(dim):
                dot = c.fma(c.splat(c.load(root, ctx.kind, c.i64(j))), _row(ctx, moved, j), dot)
            total.set(c.fma(dot, dot, total.get()))

        for i in range(head):
            add_row(c.i64(i))
        old = label.get()
        free = c.compare("slt", old, c.like(0, old))
        near = c.binary("and", free, c.compare("olt", total.get(), radius))
        with c.when(c.any(near)):
            with c.loop(c.i64(dim - head)) as rest:
                add_row(c.add(rest, c.i64(head)))
            new = c.binary("and", free, c.compare("olt", total.get(), radius))
            label.set(c.select(new, c.splat(k), label.get()))


def _book(ctx: Context, here: Val, label: Var, k1: Val) -> None:
    """Write down lanes that are done and refill them."""
    c = ctx.code
    ids = c.load(ctx.address("ids"), "i64", lanes=c.lanes)
    taken = c.load(ctx.address("taken"), "i64", lanes=c.lanes)
    taken = c.add(taken, c.like(1, taken))
    c.store(taken, ctx.address("taken"))
    found = c.compare("sge", label.get(), c.like(0, taken))
    over = c.compare("sge", taken, c.splat(ctx.whole("horizon")))
    done = c.binary("and", c.binary("or", found, over), c.compare("sge", ids, c.like(0, ids)))
    labels, flags = c.array("i64", c.lanes), c.array("i64", c.lanes)
    c.store(label.get(), labels)
    c.store(c.cast("zext", done, "i64"), flags)
    with c.when(c.any(done)):
        with c.loop(c.i64(c.lanes)) as lane:
            flag = c.load(flags, "i64", lane)
            with c.when(c.compare("ne", flag, c.i64(0))):
                _book_lane(ctx, here, c.load(labels, "i64", lane), lane)
        # New points need their slope; the others' comes out the same again.
        c.invoke("gradient", c.args[0], here, k1)


def _book_lane(ctx: Context, here: Val, label: Val, lane: Val) -> None:
    c = ctx.code
    path = c.load(ctx.address("ids"), "i64", lane)
    c.store(label, ctx.address("left"), path)
    size = c.load(ctx.address("step"), ctx.kind, lane)
    c.store(size, ctx.address("steps_of"), path)
    base = c.mul(path, c.i64(ctx.dim))
    for k in range(ctx.dim):
        value = c.load(here, ctx.kind, c.add(lane, c.i64(k * c.lanes)))
        c.store(value, ctx.address("points"), c.add(base, c.i64(k)))
    new = take_from(c, ctx.address("queue"))
    more = c.compare("slt", new, ctx.whole("paths"))
    c.store(c.select(more, new, c.i64(-1)), ctx.address("ids"), lane)
    c.store(c.i64(0), ctx.address("taken"), lane)
    live = c.i64(ARGS.index("live"))
    awake = c.load(c.args[0], "i64", live)
    c.store(c.select(more, awake, c.sub(awake, c.i64(1))), c.args[0], live)
    with c.when(more):
        c.store(c.load(ctx.address("steps_of"), ctx.kind, new), ctx.address("step"), lane)
        start = c.mul(new, c.i64(ctx.dim))
        for k in range(ctx.dim):
            value = c.load(ctx.address("starts"), ctx.kind, c.add(start, c.i64(k)))
            c.store(value, here, c.add(lane, c.i64(k * c.lanes)))
