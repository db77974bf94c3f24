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

from ..errors import require, whole
from ..loss import StochasticLoss
from . import elementary, flow_xla
from .chebyshev import GROWTH, STABILISED_GROWTH, chebyshev
from .fused import Arguments, blocked_table, run, thread_count
from .kernels import ARGS, Context, take_from
from .lowering import Unsupported
from .native import Kernel, compile_kernel
from .options import Settings, fall_back
from .row_sums import GradientField, gradient_field
from .vector import Code, Val, Var, module

CALL_SECONDS = 0.5
KIND = "f64"


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

    Raises
    ------
    InputError
        Wrong shapes, or another number of stages.

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
    sizes = np.broadcast_to(first_step, len(x)).astype(np.float64)
    flow = Flow(x.copy(), _labels(x, regions), sizes)
    rows = np.flatnonzero(flow.labels < 0)
    if rows.size:
        part = Flow(x[rows], np.full(rows.size, -1), flow.steps[rows])
        try:
            _fused_flow(loss, part, regions, max_steps, tolerance, threads, progress, stages)
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
) -> None:
    """`flow` from its own points, in place; raises Unsupported."""
    call, field = _compiled(loss, stages)
    x, queue = flow.points.copy(), np.zeros(1, np.int64)
    packed = _packed(regions, loss.dim)
    shared = Arguments.of(
        reals=_reals(tolerance, stages), starts=x, points=flow.points,
        left=flow.labels, steps_of=flow.steps, queue=queue, paths=len(x), horizon=max_steps,
        regions=packed, region_count=len(packed),
    )  # fmt: skip
    if field.table is not None:
        table, weights = blocked_table(field, KIND)
        for name, value in (("table", table), ("weights", weights), ("rows", len(table))):
            shared.put(name, value)
    workers = [
        _lanes(shared, loss.dim, x, flow.steps, queue, _LANES)
        for _ in range(thread_count(threads, -(-len(x) // _LANES)))
    ]
    _run_to_the_end(call, workers, queue, len(x), progress)


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
    shared: Arguments, dim: int, x: np.ndarray, steps: np.ndarray, queue: np.ndarray, lanes: int
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


_LANES = 8
_HEAD_ROWS = 4
_COEFFICIENTS = 8


@lru_cache(maxsize=128)
def _compiled(loss: StochasticLoss, stages: int) -> tuple[Kernel, GradientField]:
    field = gradient_field(loss)
    return compile_kernel(flow_source(field, loss.dim, stages), "flow"), field


# -- the kernel -------------------------------------------------------------------------------
def flow_source(field: GradientField, dim: int, stages: int = 3) -> str:
    """LLVM text of ``flow``: at most `budget` attempted steps of all lanes."""
    gradient = _gradient_function(field, dim)
    c = Code("flow", ["args"], _LANES)
    ctx = Context(c, KIND, dim, block=c.i64(0))
    work = [c.array(KIND, dim * _LANES) for _ in range(6)]
    here, k1 = work[:2]
    state, attempt = ctx.address("x"), _bogacki_shampine if stages == 3 else _chebyshev
    _copy(c, state, here, dim)
    c.invoke("gradient", c.args[0], here, k1)
    label = c.var("i64")
    with c.loop(ctx.whole("budget")), c.when(c.compare("sgt", ctx.whole("live"), c.i64(0))):
        there, k4, good = attempt(c, ctx, dim, stages, work)
        _select_rows(c, dim, good, there, here)
        _select_rows(c, dim, good, k4, k1)
        _find_region(c, ctx, dim, here, label)
        _book(c, ctx, dim, here, label, k1)
    _copy(c, here, state, dim)
    return module([gradient, c])


def _bogacki_shampine(
    c: Code, ctx: Context, dim: int, stages: int, work: list[Val]
) -> tuple[Val, Val, Val]:
    """One attempted step of the 3(2) pair: (new points, their slopes, which lanes take it)."""
    here, k1, there, k2, k3, k4 = work
    h = c.load(ctx.address("step"), KIND, lanes=_LANES)
    _stage(c, dim, here, there, [(k1, c.mul(c.like(-0.5, h), h))])
    c.invoke("gradient", c.args[0], there, k2)
    _stage(c, dim, here, there, [(k2, c.mul(c.like(-0.75, h), h))])
    c.invoke("gradient", c.args[0], there, k3)
    thirds = [(k, c.mul(c.like(-w / 9, h), h)) for k, w in ((k1, 2), (k2, 3), (k3, 4))]
    _stage(c, dim, here, there, thirds)
    c.invoke("gradient", c.args[0], there, k4)

    def defect(k: int) -> Val:
        e = c.like(0.0, h)
        for slope, w in zip((k1, k2, k3, k4), (-5 / 72, 1 / 12, 1 / 9, -1 / 8), strict=True):
            e = c.fma(c.like(w, h), _row(c, slope, k), e)
        return c.mul(h, e)

    return there, k4, _accept(c, ctx, dim, h, defect, GROWTH)


def _chebyshev(
    c: Code, ctx: Context, dim: int, stages: int, work: list[Val]
) -> tuple[Val, Val, Val]:
    """One attempted step of many stages; two at a time, each over the older of two points."""
    here, k1, older, newer, slope, k4 = work
    reals = ctx.address("reals")
    h = c.load(ctx.address("step"), KIND, lanes=_LANES)
    first = c.splat(c.load(reals, KIND, c.i64(_COEFFICIENTS)))
    _copy(c, here, older, dim)
    _stage(c, dim, here, newer, [(k1, c.neg(c.mul(first, h)))])

    def stage(row: Val, last: Val, over: Val) -> None:
        c.invoke("gradient", c.args[0], last, slope)
        base = c.add(c.mul(row, c.i64(5)), c.i64(_COEFFICIENTS + 1))
        weights = [c.splat(c.load(reals, KIND, c.add(base, c.i64(j)))) for j in range(5)]
        by_slope, by_first = (c.neg(c.mul(w, h)) for w in weights[3:])
        for k in range(dim):
            value = c.mul(weights[0], _row(c, here, k))
            value = c.fma(weights[1], _row(c, last, k), value)
            value = c.fma(weights[2], _row(c, over, k), value)
            value = c.fma(by_slope, _row(c, slope, k), value)
            value = c.fma(by_first, _row(c, k1, k), value)
            c.store(value, over, c.i64(k * _LANES))

    with c.loop(c.i64((stages - 1) // 2)) as pair:
        row = c.mul(pair, c.i64(2))
        stage(row, newer, older)
        stage(c.add(row, c.i64(1)), older, newer)
    c.invoke("gradient", c.args[0], newer, k4)

    def defect(k: int) -> Val:
        moved = c.sub(_row(c, here, k), _row(c, newer, k))
        slopes = c.add(_row(c, k1, k), _row(c, k4, k))
        return c.fma(c.mul(c.like(-0.4, h), h), slopes, c.mul(c.like(0.8, h), moved))

    return newer, k4, _accept(c, ctx, dim, h, defect, STABILISED_GROWTH)


def _gradient_function(field: GradientField, dim: int) -> Code:
    g = Code("gradient", ["args", "x", "out"], _LANES, linkage="internal")
    ctx = Context(g, KIND, dim)
    ctx.read_reals()
    _, x, out = g.args
    values = field.write(ctx, [_row(g, x, k) for k in range(dim)])
    for k, v in enumerate(values):
        g.store(v, out, g.i64(k * _LANES))
    return g


def _row(c: Code, array: Val, k: int) -> Val:
    return c.load(array, KIND, c.i64(k * _LANES), _LANES)


def _copy(c: Code, source: Val, target: Val, dim: int) -> None:
    for k in range(dim):
        c.store(_row(c, source, k), target, c.i64(k * _LANES))


def _stage(c: Code, dim: int, x: Val, out: Val, terms: list[tuple[Val, Val]]) -> None:
    """``out = x + sum of weight * slope``."""
    for k in range(dim):
        value = _row(c, x, k)
        for slope, weight in terms:
            value = c.fma(weight, _row(c, slope, k), value)
        c.store(value, out, c.i64(k * _LANES))


def _accept(
    c: Code, ctx: Context, dim: int, h: Val, defect: Callable[[int], Val], growth: float
) -> Val:
    """Which lanes take the step, by the error's coordinates; sets their next step sizes."""
    tolerance = c.splat(c.load(ctx.address("reals"), KIND, c.i64(5)))
    total = c.like(0.0, h)
    for k in range(dim):
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


def _select_rows(c: Code, dim: int, mask: Val, new: Val, old: Val) -> None:
    for k in range(dim):
        c.store(c.select(mask, _row(c, new, k), _row(c, old, k)), old, c.i64(k * _LANES))


def _find_region(c: Code, ctx: Context, dim: int, x: Val, label: Var) -> None:
    """label = the first region that holds x, or -1.

    The few longest rows of a root settle nearly all regions that do not hold x.
    """
    label.set(c.const(-1, "i64"))
    regions, size = ctx.address("regions"), dim + dim * dim + 1
    head = min(dim, _HEAD_ROWS)
    with c.loop(ctx.whole("region_count")) as k:
        base = c.at(regions, KIND, c.mul(k, c.i64(size)))
        moved = c.array(KIND, dim * _LANES)
        for j in range(dim):
            center = c.splat(c.load(base, KIND, c.i64(j)))
            c.store(c.sub(_row(c, x, j), center), moved, c.i64(j * _LANES))
        total = c.var(KIND, value=c.const(0.0, KIND))
        radius = c.splat(c.load(base, KIND, c.i64(size - 1)))

        def add_row(i: Val) -> None:
            root = c.at(base, KIND, c.add(c.mul(i, c.i64(dim)), c.i64(dim)))
            dot = c.const(0.0, KIND)
            for j in range(dim):
                dot = c.fma(c.splat(c.load(root, KIND, c.i64(j))), _row(c, moved, j), dot)
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


def _book(c: Code, ctx: Context, dim: int, here: Val, label: Var, k1: Val) -> None:
    """Write down lanes that are done and refill them."""
    ids = c.load(ctx.address("ids"), "i64", lanes=_LANES)
    taken = c.load(ctx.address("taken"), "i64", lanes=_LANES)
    taken = c.add(taken, c.like(1, taken))
    c.store(taken, ctx.address("taken"))
    found = c.compare("sge", label.get(), c.like(0, taken))
    over = c.compare("sge", taken, c.splat(ctx.whole("horizon")))
    done = c.binary("and", c.binary("or", found, over), c.compare("sge", ids, c.like(0, ids)))
    labels, flags = c.array("i64", _LANES), c.array("i64", _LANES)
    c.store(label.get(), labels)
    c.store(c.cast("zext", done, "i64"), flags)
    with c.when(c.any(done)):
        with c.loop(c.i64(_LANES)) as lane:
            flag = c.load(flags, "i64", lane)
            with c.when(c.compare("ne", flag, c.i64(0))):
                _book_lane(c, ctx, dim, here, c.load(labels, "i64", lane), lane)
        # New points need their slope; the others' comes out the same again.
        c.invoke("gradient", c.args[0], here, k1)


def _book_lane(c: Code, ctx: Context, dim: int, here: Val, label: Val, lane: Val) -> None:
    path = c.load(ctx.address("ids"), "i64", lane)
    c.store(label, ctx.address("left"), path)
    size = c.load(ctx.address("step"), KIND, lane)
    c.store(size, ctx.address("steps_of"), path)
    base = c.mul(path, c.i64(dim))
    for k in range(dim):
        value = c.load(here, KIND, c.add(lane, c.i64(k * _LANES)))
        c.store(value, ctx.address("points"), c.add(base, c.i64(k)))
    new = take_from(c, ctx.address("queue"))
    more = c.compare("slt", new, ctx.whole("paths"))
    c.store(c.select(more, new, c.i64(-1)), ctx.address("ids"), lane)
    c.store(c.i64(0), ctx.address("taken"), lane)
    live = c.i64(ARGS.index("live"))
    awake = c.load(c.args[0], "i64", live)
    c.store(c.select(more, awake, c.sub(awake, c.i64(1))), c.args[0], live)
    with c.when(more):
        c.store(c.load(ctx.address("steps_of"), KIND, new), ctx.address("step"), lane)
        start = c.mul(new, c.i64(dim))
        for k in range(dim):
            value = c.load(ctx.address("starts"), KIND, c.add(start, c.i64(k)))
            c.store(value, here, c.add(lane, c.i64(k * _LANES)))
