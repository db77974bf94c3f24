"""Rules for structure: shapes, slices, gathers and scatters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .._jax import jnp
from .interpreter import Nodes, Unsupported, constant, each, rule
from .ir import Graph, Node, Scalar


@rule("reshape")
def _reshape(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    return [a[0].reshape(e.params["new_sizes"])]


@rule("squeeze", "expand_dims")
def _squeeze(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    return [a[0].reshape(e.outvars[0].aval.shape)]


@rule("transpose")
def _transpose(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    return [np.transpose(a[0], e.params["permutation"])]


@rule("broadcast_in_dim")
def _broadcast(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    shape, where = e.params["shape"], e.params["broadcast_dimensions"]
    expanded = [1] * len(shape)
    for axis, k in enumerate(where):
        expanded[k] = a[0].shape[axis]
    return [np.broadcast_to(a[0].reshape(expanded), shape)]


@rule("slice")
def _slice(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    p = e.params
    strides = p["strides"] or (1,) * a[0].ndim
    where = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
    return [a[0][tuple(slice(*s) for s in where)]]


@rule("concatenate")
def _concatenate(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    return [np.concatenate(a, axis=e.params["dimension"])]


@rule("stack")
def _stack(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    return [np.stack(a, axis=e.params["axis"])]


@rule("unstack")
def _unstack(g: Graph, e: Any, a: list[Nodes]) -> Sequence[Nodes]:
    return list(np.moveaxis(a[0], e.params["axis"], 0))


@rule("empty", "empty2")
def _empty(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    return [np.full(e.outvars[0].aval.shape, 0.0, object)]


@rule("split")
def _split(g: Graph, e: Any, a: list[Nodes]) -> Sequence[Nodes]:
    cuts = np.cumsum(e.params["sizes"])[:-1]
    return np.split(a[0], cuts, axis=e.params["axis"])


@rule("rev")
def _rev(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    return [np.flip(a[0], e.params["dimensions"])]


@rule("pad")
def _pad(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    out = np.empty(e.outvars[0].aval.shape, object)
    out[...] = a[1].item()
    source: list[slice] = []
    target: list[slice] = []
    for (low, _, inner), n, m in zip(
        e.params["padding_config"], a[0].shape, out.shape, strict=True
    ):
        spots = low + np.arange(n) * (inner + 1)
        good = np.flatnonzero((spots >= 0) & (spots < m))
        if good.size == 0:
            return [out]
        source.append(slice(good[0], good[-1] + 1))
        target.append(slice(spots[good[0]], spots[good[-1]] + 1, inner + 1))
    out[tuple(target)] = a[0][tuple(source)]
    return [out]


@rule("iota")
def _iota(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    shape, axis = e.params["shape"], e.params["dimension"]
    line = np.arange(shape[axis]).reshape([-1 if k == axis else 1 for k in range(len(shape))])
    return [constant(np.broadcast_to(line, shape).astype(float))]


MAX_CHOICES = 1024  # selections that a gather may become


def _bind(e: Any, *args: Any) -> np.ndarray:
    return np.asarray(e.primitive.bind(*args, **e.params))


def _numbers(a: Nodes, dtype: Any = np.int32) -> Any:
    return jnp.asarray(np.array([float(v) for v in a.ravel()]).reshape(a.shape).astype(dtype))


def _picked(e: Any, a: Nodes, known: Sequence[Nodes], fill: Scalar) -> Nodes:
    """A structural primitive with known indices: run it on the positions of its operand."""
    places = jnp.asarray(np.arange(1, a.size + 1, dtype=np.int32).reshape(a.shape))
    chosen = _bind(e, places, *[_numbers(k) for k in known])
    flat, out = a.ravel(), np.empty(chosen.shape, object)
    out.reshape(-1)[:] = [flat[k - 1] if k > 0 else fill for k in chosen.ravel()]
    return out


def _symbolic(a: Nodes) -> bool:
    return any(isinstance(v, Node) for v in a.ravel())


def _over_values(g: Graph, e: Any, index: Scalar, size: int, one: Callable[[int], Nodes]) -> Nodes:
    """`one(k)` for the value k that `index` takes: a chain of selections."""
    if size > 64:
        raise Unsupported(
            e.primitive.name,
            f"'{e.primitive.name}' at an index that depends on "
            "the data, over more than 64 places, has no fused form",
        )
    out = one(0)
    for k in range(1, size):
        out = each(lambda y, n, k=k: g.select(g.compare("ge", index, float(k)), y, n), one(k), out)
    return out


@rule("gather")
def _gather(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    operand, index = a
    fill = float("nan") if "FILL" in str(e.params["mode"]) else 0.0
    if not _symbolic(index):
        return [_picked(e, operand, [index], fill)]
    if index.size != 1:
        return [_taken(g, e, operand, index)]
    axis = e.params["dimension_numbers"].start_index_map[0]
    size = operand.shape[axis] - e.params["slice_sizes"][axis] + 1

    def one(k: int) -> Nodes:
        return _picked(e, operand, [np.full(index.shape, float(k), object)], fill)

    return [_over_values(g, e, index.item(), size, one)]


def _taken(g: Graph, e: Any, operand: Nodes, index: Nodes) -> Nodes:
    """Whole slices at several unknown places along one axis, as `jax.numpy.take` makes them."""
    d, axis = e.params["dimension_numbers"], e.params["dimension_numbers"].start_index_map[0]
    plain = len(d.start_index_map) == 1 and d.collapsed_slice_dims == (axis,)
    if not plain or d.operand_batching_dims or index.size * operand.size > MAX_CHOICES:
        raise Unsupported("gather", "'gather' at several unknown indices has no fused form")
    rows = np.moveaxis(operand, axis, 0)
    taken = [
        _over_values(g, e, i, len(rows), lambda k: np.asarray(rows[k], object))
        for i in index.ravel()
    ]
    out = np.stack(taken).reshape(*index.shape[:-1], *rows.shape[1:])
    batch = [k for k in range(out.ndim) if k not in d.offset_dims]
    return np.transpose(out, np.argsort([*batch, *d.offset_dims]))


@rule("dynamic_slice")
def _dynamic_slice(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    operand, *starts = a
    sizes = e.params["slice_sizes"]
    room = [n - m for n, m in zip(operand.shape, sizes, strict=True)]

    def cut(axis: int, chosen: list[int]) -> Nodes:
        if axis == operand.ndim:
            return operand[tuple(slice(k, k + m) for k, m in zip(chosen, sizes, strict=True))]
        start = starts[axis].item()
        if not isinstance(start, Node):
            return cut(axis + 1, [*chosen, int(np.clip(start, 0, room[axis]))])
        return _over_values(g, e, start, room[axis] + 1, lambda k: cut(axis + 1, [*chosen, k]))

    return [cut(0, [])]


@rule("dynamic_update_slice")
def _dynamic_update(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    operand, update, *starts = a
    room = [n - m for n, m in zip(operand.shape, update.shape, strict=True)]

    def put(axis: int, chosen: list[int]) -> Nodes:
        if axis == operand.ndim:
            out = operand.copy()
            out[tuple(slice(k, k + m) for k, m in zip(chosen, update.shape, strict=True))] = update
            return out
        start = starts[axis].item()
        if not isinstance(start, Node):
            return put(axis + 1, [*chosen, int(np.clip(start, 0, room[axis]))])
        return _over_values(g, e, start, room[axis] + 1, lambda k: put(axis + 1, [*chosen, k]))

    return [put(0, [])]


@rule("scatter-add", "scatter_add", "scatter")
def _scatter(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    operand, index, update = a
    if not _symbolic(index):
        return [_scattered(g, e, operand, index, update)]
    if index.size != 1:
        return [_put(g, e, operand, index, update)]
    axis = e.params["dimension_numbers"].scatter_dims_to_operand_dims[0]

    def one(k: int) -> Nodes:
        return _scattered(g, e, operand, np.full(index.shape, float(k), object), update)

    return [_over_values(g, e, index.item(), operand.shape[axis], one)]


def _put(g: Graph, e: Any, operand: Nodes, index: Nodes, update: Nodes) -> Nodes:
    """The transpose of `_taken`: slices added, or written in order, at places along one axis."""
    d, axis = (
        e.params["dimension_numbers"],
        e.params["dimension_numbers"].scatter_dims_to_operand_dims[0],
    )
    plain = len(d.scatter_dims_to_operand_dims) == 1 and d.inserted_window_dims == (axis,)
    if not plain or d.operand_batching_dims or index.size * operand.size > MAX_CHOICES:
        raise Unsupported("scatter", "'scatter' at several unknown indices has no fused form")
    batch = [k for k in range(update.ndim) if k not in d.update_window_dims]
    moved = np.moveaxis(operand, axis, 0)
    out = moved.reshape(len(moved), -1).copy()
    slices = np.transpose(update, [*batch, *d.update_window_dims]).reshape(index.size, -1)
    for place, new in zip(index.ravel(), slices, strict=True):
        for k in range(len(out)):
            here = g.compare("eq", place, float(k))
            changed = new if e.primitive.name == "scatter" else each(g.add, out[k], new)
            out[k] = each(lambda y, n, t=here: g.select(t, y, n), changed, out[k])
    return np.moveaxis(out.reshape(moved.shape), 0, axis)


def _scattered(g: Graph, e: Any, operand: Nodes, index: Nodes, update: Nodes) -> Nodes:
    adds = e.primitive.name != "scatter"
    out = operand.copy().reshape(-1)
    kind = e.invars[0].aval.dtype
    zeros, where = jnp.zeros(operand.shape, kind), _numbers(index)
    for k, value in enumerate(update.ravel()):
        mark = np.zeros(update.size)
        mark[k] = 1.0
        for place in np.flatnonzero(
            _bind(e, zeros, where, jnp.asarray(mark.reshape(update.shape), kind))
        ):
            out[place] = g.add(out[place], value) if adds else value
    return out.reshape(operand.shape)
