"""Rules of array code: elementwise, shapes, reductions, and places that depend on values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .interpreter import RULES, Nodes
from .ir import Graph, Scalar
from .loop_arrays import Buffer, Known, Lazy, Loops, Pending, Pieces, Value, View, size_of
from .rules_maths import ELEMENTWISE, fold
from .rules_special import ELEMENTWISE_SPECIAL
from .vector import Val

LoopRule = Callable[[Loops, Any, list[Value]], list[Value]]
LOOP_RULES: dict[str, LoopRule] = {}
RESHAPES = {"reshape", "squeeze", "expand_dims"}
TOGETHER = 4  # partial sums of a long reduction, so that its additions need not wait in a row


def loop_rule(*names: str) -> Callable[[LoopRule], LoopRule]:
    """Register the rule of primitives."""

    def register(function: LoopRule) -> LoopRule:
        LOOP_RULES.update(dict.fromkeys(names, function))
        return function

    return register


def shape_of(e: Any, k: int = 0) -> tuple[int, ...]:
    """Shape of a result of an equation."""
    return tuple(e.outvars[k].aval.shape)


def _entry(node: Scalar) -> Nodes:
    out = np.empty((), object)
    out[()] = node
    return out


# -- elementwise and shapes -------------------------------------------------------------------
def elementwise(w: Loops, e: Any, a: list[Value]) -> list[Value]:
    """The straight-line rule, written once for all entries."""

    def one(*nodes: Scalar) -> Scalar:
        return RULES[e.primitive.name](w.graph, e, [_entry(n) for n in nodes])[0].item()

    return [w.combine(one, a, shape_of(e))]


LOOP_RULES.update(dict.fromkeys(ELEMENTWISE | ELEMENTWISE_SPECIAL, elementwise))


@loop_rule(*RESHAPES)
def _reshape(w: Loops, e: Any, a: list[Value]) -> list[Value]:
    value = w.settle(a[0]) if isinstance(a[0], Pieces) else a[0]
    if isinstance(value, Pending):
        return [replace(value, shape=shape_of(e))]
    assert isinstance(value, Lazy)
    return [Lazy(shape_of(e), value.node, value.leaves, value.view)]


@loop_rule("broadcast_in_dim")
def _broadcast(w: Loops, e: Any, a: list[Value]) -> list[Value]:
    if not a[0].shape:
        return [w.spread(a[0], shape_of(e))]
    if size_of(a[0]) == int(np.prod(shape_of(e))):
        return _reshape(w, e, a)
    return moved(w, e, a)


@loop_rule("transpose", "slice", "rev", "split", "unstack")
def moved(w: Loops, e: Any, a: list[Value]) -> list[Value]:
    """Entries elsewhere: the straight-line rule, run on places instead of values."""
    if isinstance(a[0], Pending) and e.primitive.name == "transpose":
        order = np.transpose(a[0].order.reshape(a[0].shape), e.params["permutation"])
        return [replace(a[0], shape=shape_of(e), order=order.ravel())]
    value = w.settle(a[0])
    view = w.view(value)
    outs = RULES[e.primitive.name](Graph(), e, [view.places.reshape(value.shape)])
    return [w.leaf(view.buffer, places, np.shape(places), value.truth) for places in outs]


def _positions(shape: Sequence[int]) -> np.ndarray:
    return np.arange(int(np.prod(shape))).reshape(shape)


@loop_rule("concatenate", "stack")
def _joined(w: Loops, e: Any, a: list[Value]) -> list[Value]:
    if len(shape_of(e)) == 1 and e.primitive.name == "concatenate":
        parts = [p for v in a for p in (v.parts if isinstance(v, Pieces) else (v,))]
        return [Pieces(tuple(p for p in parts if size_of(p)))]
    starts = np.cumsum([0, *(size_of(v) for v in a)])
    spots = [_positions(v.shape) + s for v, s in zip(a, starts[:-1], strict=True)]
    source = RULES[e.primitive.name](Graph(), e, spots)[0].ravel()
    target = np.empty_like(source)
    target[source] = np.arange(source.size)
    buffer = w.take(source.size)
    truth = False
    for value, s in zip(a, starts[:-1], strict=True):
        done = w.store(value, View(buffer, target[s : s + size_of(value)]))
        truth = done.truth
    return [w.whole(buffer, shape_of(e), truth)]


@loop_rule("pad")
def _pad(w: Loops, e: Any, a: list[Value]) -> list[Value]:
    config = e.params["padding_config"]
    if len(config) == 1 and config[0][2] == 0 and config[0][0] >= 0 and config[0][1] >= 0:
        low, high = (w.spread(a[1], (int(n),)) for n in config[0][:2])
        middle = a[0].parts if isinstance(a[0], Pieces) else (a[0],)
        return [Pieces(tuple(p for p in (low, *middle, high) if size_of(p)))]
    places = _positions(a[0].shape) + 1
    source = RULES["pad"](Graph(), e, [places, np.asarray(0)])[0].ravel().astype(np.int64)
    buffer = w.take(source.size)
    w.store(w.spread(a[1], shape_of(e)), View(buffer, np.arange(source.size)))
    view, filled = w.view(a[0]), np.flatnonzero(source)
    picked = w.leaf(view.buffer, view.places[source[filled] - 1], filled.shape)
    w.store(picked, View(buffer, filled))
    return [w.whole(buffer, shape_of(e))]


# -- reductions -------------------------------------------------------------------------------
_START = {"sum": 0.0, "prod": 1.0, "max": -np.inf, "min": np.inf}


def _table(
    w: Loops, value: Value, axes: Sequence[int]
) -> tuple[Lazy, dict[str, np.ndarray], tuple[int, int]]:
    """(value, its places as (kept, reduced), those sizes)."""
    kept = [k for k in range(len(value.shape)) if k not in axes]
    sizes = (
        int(np.prod([value.shape[k] for k in kept])),
        int(np.prod([value.shape[k] for k in axes])),
    )

    def ordered(lazy: Lazy) -> dict[str, np.ndarray]:
        return {
            name: leaf.places.reshape(value.shape).transpose([*kept, *axes]).reshape(sizes)
            for name, leaf in lazy.leaves.items()
            if isinstance(leaf, View)
        }

    lazy = value if isinstance(value, Lazy) else w.settle(value)
    tables = ordered(lazy)
    if not all(np.array_equal(t, t[:, :1] + t[:1] - t[0, 0]) for t in tables.values()):
        lazy = w.store(w.leaf(w.compact(lazy), _positions(value.shape), value.shape, lazy.truth))
        tables = ordered(lazy)
    return lazy, tables, sizes


@loop_rule("reduce_sum", "reduce_prod", "reduce_max", "reduce_min", "reduce_and", "reduce_or")
def _reduce(w: Loops, e: Any, a: list[Value]) -> list[Value]:
    name = e.primitive.name.removeprefix("reduce_")
    how = {"and": "min", "or": "max"}.get(name, name)
    lazy, tables, (kept, count) = _table(w, a[0], e.params["axes"])
    node = w.graph.as_real(lazy.node)
    old = w.graph.input("total")
    joined = fold(w.graph, how)(old, node)
    buffer = w.take(kept)
    rows = [t[:, 0] for t in tables.values()]
    columns = [t[0] - t[0, 0] for t in tables.values()]
    c = w.code
    with w.over([np.arange(kept), *rows]) as (spot, *bases):

        def item(totals: list[Any], k: int, shifts: list[Val]) -> None:
            at = [c.add(b, s) for b, s in zip(bases, shifts, strict=True)]
            leaves = {**lazy.leaves, "total": totals[k].get()}
            totals[k].set(w.evaluate(joined, leaves, dict(zip(tables, at, strict=True))))

        together = TOGETHER if _steady(columns, count) else 1
        start = c.const(_START[how], w.kind)
        totals = [c.var(w.kind, value=start) for _ in range(together)]
        whole = count // together * together
        with w.over([np.arange(whole)[::together], *(p[:whole:together] for p in columns)]) as at:
            for k in range(together):
                ahead = [int(p[k] - p[0]) for p in columns]
                shifts = zip(at[1:], ahead, strict=True)
                item(totals, k, [c.add(s, c.i64(n)) for s, n in shifts])
        for k in range(whole, count):
            item(totals, k - whole, [c.i64(int(p[k])) for p in columns])
        total = totals[0].get()
        pair = fold(w.graph, how)(old, w.graph.input("other"))
        for other in totals[1:]:
            total = w.evaluate(pair, {"total": total, "other": other.get()}, {})
        w.put(total, buffer, spot)
    return [w.whole(buffer, shape_of(e), name in ("and", "or"))]


def _steady(columns: list[np.ndarray], count: int) -> bool:
    """Whether TOGETHER neighbours always lie at the same distances."""
    if count < 2 * TOGETHER:
        return False
    groups = [p[: count // TOGETHER * TOGETHER].reshape(-1, TOGETHER) for p in columns]
    return all(bool((g - g[:, :1] == g[0] - g[0, 0]).all()) for g in groups)


@loop_rule("argmax", "argmin")
def _arg(w: Loops, e: Any, a: list[Value]) -> list[Value]:
    c, axes = w.code, e.params["axes"]
    lazy, tables, (kept, count) = _table(w, a[0], axes)
    buffer = w.take(kept)
    how = "ogt" if e.primitive.name == "argmax" else "olt"
    node = w.graph.as_real(lazy.node)
    columns = [t[0] - t[0, 0] for t in tables.values()]
    with w.over([np.arange(kept), *(t[:, 0] for t in tables.values())]) as (spot, *bases):
        best = c.var(w.kind, value=c.const(0.0, w.kind))
        index = c.var(w.kind, value=c.const(0.0, w.kind))
        with w.over([np.arange(count), *columns]) as (k, *shifts):
            at = [c.add(b, s) for b, s in zip(bases, shifts, strict=True)]
            item = w.evaluate(node, lazy.leaves, dict(zip(tables, at, strict=True)))
            first = c.splat(c.compare("eq", k, c.i64(0)))
            wins = c.binary("or", first, c.compare(how, item, best.get()))
            here = c.splat(c.cast("sitofp", k, w.kind))
            index.set(c.select(wins, here, index.get()))
            best.set(c.select(wins, item, best.get()))
        w.put(index.get(), buffer, spot)
    return [w.whole(buffer, shape_of(e))]


@loop_rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def _cumulative(w: Loops, e: Any, a: list[Value]) -> list[Value]:
    c, axis = w.code, e.params["axis"]
    lazy, tables, (kept, count) = _table(w, a[0], [axis])
    if e.params["reverse"]:
        tables = {name: t[:, ::-1] for name, t in tables.items()}
    target = np.moveaxis(_positions(a[0].shape), axis, -1).reshape(kept, count)
    target = target[:, ::-1] if e.params["reverse"] else target
    buffer = w.take(kept * count)
    name = e.primitive.name.removeprefix("cum")
    joined = fold(w.graph, name)(w.graph.input("total"), lazy.node)
    both = [target, *tables.values()]
    with w.over([t[:, 0] for t in both]) as bases:
        total = c.var(w.kind)
        at = dict(zip(tables, bases[1:], strict=True))
        total.set(w.evaluate(lazy.node, lazy.leaves, at))
        w.put(total.get(), buffer, bases[0])
        if count > 1:
            with w.over([t[0, 1:] - t[0, 0] for t in both]) as shifts:
                spots = [c.add(b, s) for b, s in zip(bases, shifts, strict=True)]
                leaves = {**lazy.leaves, "total": total.get()}
                at = dict(zip(tables, spots[1:], strict=True))
                total.set(w.evaluate(joined, leaves, at))
                w.put(total.get(), buffer, spots[0])
    return [w.whole(buffer, shape_of(e))]


# -- places that depend on values -------------------------------------------------------------
class Indexed:
    """Places fixed + sum_k clip(starts[rows_k], 0, room_k) * stride_k, in every lane its own."""

    def __init__(self, w: Loops, fixed: np.ndarray) -> None:
        self.w, self.fixed = w, fixed
        self.starts: list[tuple[View, int, int]] = []

    def by(self, start: Value, rows: np.ndarray, room: int, stride: int) -> None:
        """One more term: `start` holds the index, its entry `rows` for each place."""
        if isinstance(start, Known):
            chosen = start.values.ravel()[rows].astype(np.int64)
            if bool(((chosen >= 0) & (chosen <= room)).all()):
                self.fixed = self.fixed + chosen * stride
                return
        view = self.w.view(start)
        self.starts.append((View(view.buffer, view.places[rows]), room, stride))

    def known(self) -> np.ndarray | None:
        """The places, if they do not depend on values."""
        return None if self.starts else self.fixed

    @property
    def columns(self) -> list[np.ndarray]:
        """The columns to loop over."""
        return [self.fixed, *(view.places for view, _, _ in self.starts)]

    def place(self, at: list[Val]) -> tuple[Val, Val]:
        """(place in every lane, whether no index was clipped) at the loop's `columns`."""
        w, c = self.w, self.w.code
        total = c.splat(at[0])
        inside = c.const(1, "i1")
        for (view, room, stride), place in zip(self.starts, at[1:], strict=True):
            start = c.cast("fptosi", w.load(view.buffer, place), "i64")
            low = c.call("smax", start, c.like(0, start))
            kept = c.call("smin", low, c.like(room, start))
            inside = c.binary("and", inside, c.compare("eq", kept, start))
            total = c.add(total, c.mul(kept, c.like(stride, kept)))
        return total, inside


def _address(w: Loops, buffer: Buffer, place: Val) -> Val:
    c = w.code
    if buffer.uniform:
        return place
    return c.add(c.strided(place), c.lane_numbers())


def _read(w: Loops, buffer: Buffer, index: Indexed, shape: tuple[int, ...], fills: bool) -> Value:
    c, size = w.code, index.fixed.size
    out = w.take(size)
    with w.over([np.arange(size), *index.columns]) as (spot, *at):
        place, inside = index.place(at)
        value = c.gather(buffer.pointer, w.kind, _address(w, buffer, place))
        if fills:
            value = c.select(inside, value, c.like(float("nan"), value))
        w.put(value, out, spot)
    return w.whole(out, shape)


def _written(
    w: Loops, operand: Value, update: Value, index: Indexed, adds: bool, drops: bool
) -> Value:
    """The operand with an update added to, or put into, the indexed places, in order."""
    c = w.code
    made = w.store(operand)
    assert made.view is not None
    buffer, view = made.view.buffer, w.view(update)
    places = index.known()
    if places is not None and np.unique(places).size == places.size:
        w.move(w.leaf(view.buffer, view.places, places.shape), View(buffer, places), adds)
        return made
    with w.over([view.places, *index.columns]) as (source, *at):
        place, inside = index.place(at)
        address = _address(w, buffer, place)
        value = w.load(view.buffer, source)
        old = c.gather(buffer.pointer, w.kind, address)
        new = c.add(old, value) if adds else value
        if drops:
            new = c.select(inside, new, old)
        c.scatter(new, buffer.pointer, address)
    return made


def _truth(value: Value) -> bool:
    if isinstance(value, Known):
        return value.values.dtype == np.bool_
    return isinstance(value, Lazy) and value.truth


def _strides(shape: Sequence[int]) -> list[int]:
    return [int(np.prod(shape[k + 1 :])) for k in range(len(shape))]


def _gathered(
    w: Loops,
    operand: Sequence[int],
    start: Value,
    window: Sequence[int],
    shape: Sequence[int],
    offset_dims: Sequence[int],
    absent: Sequence[int],
    start_map: Sequence[int],
    batching: tuple[Sequence[int], Sequence[int]],
) -> Indexed:
    """Places in the operand of every entry of a gather's result, or of a scatter's update."""
    strides = _strides(operand)
    grid = np.indices(shape).reshape(len(shape), int(np.prod(shape)))
    batch = [grid[k] for k in range(len(shape)) if k not in offset_dims]
    fixed = np.zeros(grid.shape[1], np.int64)
    windowed = [k for k in range(len(operand)) if k not in absent]
    for dim, out in zip(windowed, offset_dims, strict=True):
        fixed += grid[out] * strides[dim]
    for dim, k in zip(*batching, strict=True):
        fixed += batch[k] * strides[dim]
    rows = np.zeros(grid.shape[1], np.int64)
    if batch:
        rows = np.ravel_multi_index(tuple(batch), tuple(start.shape[:-1]))
    index = Indexed(w, fixed)
    for k, dim in enumerate(start_map):
        index.by(start, rows * len(start_map) + k, operand[dim] - window[dim], strides[dim])
    return index


@loop_rule("gather")
def _gather(w: Loops, e: Any, a: list[Value]) -> list[Value]:
    operand, start = a
    d = e.params["dimension_numbers"]
    absent = [*d.collapsed_slice_dims, *d.operand_batching_dims]
    batching = (d.operand_batching_dims, d.start_indices_batching_dims)
    index = _gathered(
        w, operand.shape, start, e.params["slice_sizes"], shape_of(e),
        d.offset_dims, absent, d.start_index_map, batching,
    )  # fmt: skip
    fills = "FILL" in str(e.params["mode"])
    if (places := index.known()) is not None:
        buffer = w.compact(operand)
        return [w.leaf(buffer, places, shape_of(e), _truth(operand))]
    return [_read(w, w.compact(operand), index, shape_of(e), fills)]


@loop_rule("scatter-add", "scatter_add", "scatter")
def _scatter(w: Loops, e: Any, a: list[Value]) -> list[Value]:
    operand, start, update = a
    d = e.params["dimension_numbers"]
    absent = [*d.inserted_window_dims, *d.operand_batching_dims]
    windowed = [k for k in range(len(operand.shape)) if k not in absent]
    window = [1] * len(operand.shape)
    for dim, out in zip(windowed, d.update_window_dims, strict=True):
        window[dim] = update.shape[out]
    index = _gathered(
        w, operand.shape, start, window, update.shape, d.update_window_dims, absent,
        d.scatter_dims_to_operand_dims,
        (d.operand_batching_dims, d.scatter_indices_batching_dims),
    )  # fmt: skip
    adds, drops = e.primitive.name != "scatter", "CLIP" not in str(e.params["mode"])
    return [_written(w, operand, update, index, adds, drops)]


def _sliced(w: Loops, shape: Sequence[int], cut: Sequence[int], starts: list[Value]) -> Indexed:
    strides = _strides(shape)
    grid = np.indices(cut).reshape(len(cut), int(np.prod(cut)))
    index = Indexed(w, np.asarray(strides, np.int64) @ grid)
    for k, start in enumerate(starts):
        rows = np.zeros(grid.shape[1], np.int64)
        index.by(start, rows, shape[k] - cut[k], strides[k])
    return index


@loop_rule("dynamic_slice")
def _dynamic_slice(w: Loops, e: Any, a: list[Value]) -> list[Value]:
    index = _sliced(w, a[0].shape, shape_of(e), a[1:])
    if (places := index.known()) is not None:
        return [w.leaf(w.compact(a[0]), places, shape_of(e), _truth(a[0]))]
    return [_read(w, w.compact(a[0]), index, shape_of(e), False)]


@loop_rule("dynamic_update_slice")
def _dynamic_update(w: Loops, e: Any, a: list[Value]) -> list[Value]:
    index = _sliced(w, a[0].shape, a[1].shape, a[2:])
    return [_written(w, a[0], a[1], index, False, False)]
