"""Products of array code: a block of sums in registers at a time, contracted in a loop."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from .loop_arrays import Buffer, Known, Loops, Pending, Value, View
from .loop_rules import loop_rule, shape_of
from .native import wide_registers
from .vector import Val

APART = 4  # chains of additions that hide each other's latency


@dataclass(frozen=True)
class Operand:
    """Places first + batch * b + row * i + depth * k of a buffer.

    For the result, `depth` is the stride of its columns.
    """

    buffer: Buffer
    first: int
    batch: int
    row: int
    depth: int


@loop_rule("dot_general")
def _dot(w: Loops, e: Any, a: list[Value]) -> list[Value]:
    (left, right), (batch_left, batch_right) = e.params["dimension_numbers"]
    scaled = _diagonal(w, a, (left, right), (batch_left, batch_right), shape_of(e))
    if scaled is not None:
        return [scaled]
    x, (batch, rows, depth) = _operand(w, a[0], left, batch_left)
    y, (_, columns, _) = _operand(w, a[1], right, batch_right)
    sizes = (batch, rows, columns, depth)
    if depth == 1:
        return [_outer(w, x, y, sizes, shape_of(e))]

    def write(into: View, adds: bool) -> None:
        strides = _strides(into.places.reshape(sizes[:3]))
        if strides is None:
            room = w.take(into.places.size)
            contract(w, x, y, _in_order(room, sizes[:3]), sizes, False)
            w.move(w.whole(room, into.places.shape), into, adds)
        else:
            out = Operand(into.buffer, int(into.places[0]), *strides)
            contract(w, x, y, out, sizes, adds)

    return [Pending(shape_of(e), np.arange(batch * rows * columns), write)]


def _outer(
    w: Loops, x: Operand, y: Operand, sizes: tuple[int, int, int, int], shape: tuple[int, ...]
) -> Value:
    """The product without sums: one entry times another."""
    b, i, j = np.indices(sizes[:3])
    left = w.leaf(x.buffer, x.first + b * x.batch + i * x.row, shape)
    right = w.leaf(y.buffer, y.first + b * y.batch + j * y.row, shape)
    return w.combine(w.graph.mul, [left, right], shape)


def _diagonal(
    w: Loops, a: list[Value], contracted: Any, batch: Any, shape: tuple[int, ...]
) -> Value | None:
    """The product with a known diagonal matrix: one factor per entry."""
    for k in range(2):
        matrix, other = a[k], a[1 - k]
        if not isinstance(matrix, Known) or matrix.values.ndim != 2 or any(map(len, batch)):
            continue
        if matrix.shape[0] != matrix.shape[1] or len(contracted[k]) != 1:
            continue
        factors = np.diagonal(matrix.values)
        if np.count_nonzero(matrix.values) != np.count_nonzero(factors):
            continue
        axis = contracted[1 - k][0]
        view = w.view(other)
        places = np.moveaxis(view.places.reshape(other.shape), axis, 0 if k == 0 else -1)
        along = [1] * places.ndim
        along[0 if k == 0 else -1] = factors.size
        spread = Known(np.broadcast_to(factors.reshape(along), shape))
        return w.combine(w.graph.mul, [spread, w.leaf(view.buffer, places, shape)], shape)
    return None


def _operand(
    w: Loops, value: Value, contracted: Sequence[int], batch: Sequence[int]
) -> tuple[Operand, tuple[int, int, int]]:
    """An operand as (batch, free, contracted) places of constant strides, and those sizes."""
    free = [k for k in range(len(value.shape)) if k not in contracted and k not in batch]
    parts = (batch, free, contracted)
    sizes = [int(np.prod([value.shape[k] for k in part])) for part in parts]
    order = [*batch, *free, *contracted]
    if isinstance(value, Known):
        buffer = w.constant(np.transpose(value.values, order).ravel())
        return _in_order(buffer, sizes), (sizes[0], sizes[1], sizes[2])
    view = w.view(value)
    places = np.transpose(view.places.reshape(value.shape), order).reshape(sizes)
    strides = _strides(places)
    if strides is None:
        moved = w.store(w.leaf(view.buffer, places, sizes))
        return _in_order(w.view(moved).buffer, sizes), (sizes[0], sizes[1], sizes[2])
    first = int(places[0, 0, 0])
    return Operand(view.buffer, first, *strides), (sizes[0], sizes[1], sizes[2])


def _in_order(buffer: Buffer, sizes: Sequence[int]) -> Operand:
    return Operand(buffer, 0, sizes[1] * sizes[2], sizes[2], 1)


def _strides(places: np.ndarray) -> tuple[int, int, int] | None:
    first = places[0, 0, 0]
    lines = (places[:, 0, 0], places[0, :, 0], places[0, 0, :])
    steps = [int(line[1] - line[0]) if len(line) > 1 else 0 for line in lines]
    grid = np.indices(places.shape)
    same = places == first + sum(s * g for s, g in zip(steps, grid, strict=True))
    return (steps[0], steps[1], steps[2]) if bool(same.all()) else None


def _block(rows: int, columns: int) -> tuple[int, int]:
    """Sums that are kept in registers at a time; no effect on their bits."""
    room = 16 if wide_registers() else 6
    height = _even(rows, min(rows, room // 2))
    return height, _even(columns, min(columns, room // height))


def _even(count: int, block: int) -> int:
    """As many blocks as of this size, but of sizes as equal as can be."""
    return -(-count // -(-count // block))


def contract(
    w: Loops, x: Operand, y: Operand, out: Operand, sizes: tuple[int, int, int, int], adds: bool
) -> None:
    """out[b, i, j] = sum_k x[b, i, k] y[b, j, k] for (batch, rows, columns, depth), or +=."""
    c = w.code
    batch, rows, columns, depth = sizes
    height, width = _block(rows, columns)
    apart = APART if rows * columns < APART and depth >= 2 * APART else 1
    with c.loop(c.i64(batch)) as b:
        for i0, tall, down in _spans(rows, height):
            for j0, broad, across in _spans(columns, width):
                with ExitStack() as stack:
                    i = _counter(w, stack, i0, down, tall)
                    j = _counter(w, stack, j0, across, broad)
                    sums = _sums(w, x, y, (b, i, j), (tall, broad, depth), apart)
                    base = _place(w, [(b, out.batch), (i, out.row), (j, out.depth)], out.first)
                    for p, q in np.ndindex(tall, broad):
                        place = c.add(base, c.i64(p * out.row + q * out.depth))
                        old = [w.load(out.buffer, place)] if adds else []
                        w.put(_joined(w, [sums[p][q], *old]), out.buffer, place)


def _spans(count: int, block: int) -> list[tuple[int, int, int]]:
    """(first, block, how many): whole blocks, then a smaller one."""
    whole, rest = divmod(count, block)
    spans = [(0, block, whole)] if whole else []
    return [*spans, (whole * block, rest, 1)] if rest else spans


def _counter(w: Loops, stack: ExitStack, first: int, count: int, step: int) -> Val:
    c = w.code
    if count == 1:
        return c.i64(first)
    k = stack.enter_context(c.loop(c.i64(count)))
    return c.add(c.mul(k, c.i64(step)), c.i64(first))


def _place(w: Loops, terms: Sequence[tuple[Val, int]], first: int = 0) -> Val:
    c = w.code
    total = c.i64(first)
    for value, stride in terms:
        if stride:
            total = c.add(total, c.mul(value, c.i64(stride)))
    return total


def _sums(
    w: Loops,
    x: Operand,
    y: Operand,
    at: tuple[Val, Val, Val],
    sizes: tuple[int, int, int],
    apart: int,
) -> list[list[Val]]:
    """A block of sums over k, each in `apart` partial sums."""
    c = w.code
    (b, i, j), (tall, broad, depth) = at, sizes
    zero = c.const(0.0, w.kind)
    sums = [
        [[c.var(w.kind, value=zero) for _ in range(broad)] for _ in range(tall)]
        for _ in range(apart)
    ]
    left = _place(w, [(b, x.batch), (i, x.row)], x.first)
    right = _place(w, [(b, y.batch), (j, y.row)], y.first)

    def take_in(k: Val, chain: int) -> None:
        u, v = (c.add(p, c.mul(k, c.i64(o.depth))) for p, o in ((left, x), (right, y)))
        first = [w.load(x.buffer, c.add(u, c.i64(p * x.row))) for p in range(tall)]
        second = [w.load(y.buffer, c.add(v, c.i64(q * y.row))) for q in range(broad)]
        for p in range(tall):
            for q in range(broad):
                total = sums[chain][p][q]
                total.set(c.fma(first[p], second[q], total.get()))

    with c.loop(c.i64(depth // apart)) as turn:
        for chain in range(apart):
            take_in(c.add(c.mul(turn, c.i64(apart)), c.i64(chain)), chain)
    for k in range(depth // apart * apart, depth):
        take_in(c.i64(k), k % apart)
    return [[_joined(w, [s[p][q].get() for s in sums]) for q in range(broad)] for p in range(tall)]


def _joined(w: Loops, parts: list[Val]) -> Val:
    while len(parts) > 1:
        parts = [w.code.add(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]
