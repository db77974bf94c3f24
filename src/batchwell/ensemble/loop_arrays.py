"""Arrays in memory, lanes innermost, and loops over them: what large programs are made of.

Straight-line code has a register for every number; a network of thousands of parameters would be
millions of lines. Here numbers lie in buffers and every operation is a loop. A value is known
numbers, an expression over elements of buffers that has not been computed yet, or a row of such
pieces; expressions are the same `ir` nodes as in straight-line code, written once for all entries.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .emit import emit
from .interpreter import Unsupported
from .ir import Graph, Node, Scalar, reachable
from .vector import Code, Val

MAX_CONSTANTS = 64 * 2**20  # bytes of one array of known numbers


@dataclass(frozen=True, eq=False)
class Buffer:
    """Room in memory: `lanes` numbers side by side per element, or one for all if `uniform`."""

    pointer: Val
    size: int
    number: int
    uniform: bool = False


@dataclass(frozen=True, eq=False)
class View:
    """Elements of a buffer, by their places (n,)."""

    buffer: Buffer
    places: np.ndarray


@dataclass(frozen=True, eq=False)
class Known:
    """Numbers known when the code is written."""

    values: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return tuple(self.values.shape)

    @property
    def uniform(self) -> bool:
        """Whether all entries are the same number."""
        return self.values.size > 0 and bool((self.values == self.values.flat[0]).all())


@dataclass(frozen=True, eq=False)
class Lazy:
    """An expression, the same for every entry, of elements of buffers and of registers.

    Attributes
    ----------
    leaves
        What the input nodes stand for, by name: for entry k (in C order) the k-th place of a view.
    view
        Set when the expression is nothing but elements of one buffer.
    """

    shape: tuple[int, ...]
    node: Node
    leaves: dict[str, View | Val]
    view: View | None = None

    @property
    def truth(self) -> bool:
        """Whether entries are truth values."""
        return self.node.kind == "b"


@dataclass(frozen=True, eq=False)
class Pending:
    """A product that is computed when it is known where to, or what to add it to.

    Attributes
    ----------
    order
        For every entry in C order, its number in the product's own order.
    write
        Writes the product to a view in its own order, or adds it to what is there.
    """

    shape: tuple[int, ...]
    order: np.ndarray
    write: Callable[[View, bool], None]


@dataclass(frozen=True, eq=False)
class Pieces:
    """A vector made of pieces that follow each other."""

    parts: tuple[Known | Lazy | Pending, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The vector's shape."""
        return (sum(size_of(p) for p in self.parts),)


Value = Known | Lazy | Pieces | Pending


def size_of(value: Value) -> int:
    """Number of entries."""
    return int(np.prod(value.shape))


def _sum_with_zero(function: Callable[..., Scalar], values: list[Any]) -> Pending | None:
    """A product plus nothing: the sum of two pieces one of which is padding."""
    pending = [v for v in values if isinstance(v, Pending)]
    zeros = [v for v in values if isinstance(v, Known) and not v.values.any()]
    if len(pending) != 1 or len(zeros) != 1 or len(values) != 2:
        return None
    return pending[0] if function(1.0, 0.0) == 1.0 and function(0.0, 1.0) == 1.0 else None


def _has_views(value: Lazy) -> bool:
    return any(isinstance(leaf, View) for leaf in value.leaves.values())


def nest_of(places: np.ndarray) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]] | None:
    """Nested loops that run through columns of places (L, n): (first (L,), [(count, strides)]).

    Outermost first; None when the places follow no such pattern.
    """
    levels: list[tuple[int, np.ndarray]] = []
    while places.shape[1] > 1:
        steps = np.diff(places, axis=1)
        breaks = np.flatnonzero((steps != steps[:, :1]).any(axis=0))
        run = int(breaks[0]) + 1 if breaks.size else places.shape[1]
        if places.shape[1] % run or len(levels) == 6:
            return None
        runs = places.reshape(len(places), -1, run)
        if (np.diff(runs, axis=2) != steps[:, :1, None]).any():
            return None
        levels.append((run, steps[:, 0]))
        places = runs[:, :, 0]
    return places[:, 0], levels[::-1]


@dataclass(eq=False)
class Loops:
    """Writes array code into a function; its buffers are used again once nothing needs them."""

    code: Code
    kind: str
    graph: Graph = field(default_factory=Graph)
    _spare: dict[int, list[Val]] = field(default_factory=dict)
    _leaves: dict[tuple[int, bytes], Node] = field(default_factory=dict)
    _constants: dict[bytes, Buffer] = field(default_factory=dict)
    _count: int = 0

    # -- buffers ------------------------------------------------------------------------------
    def take(self, size: int) -> Buffer:
        """Fresh room for `size` elements."""
        spare = self._spare.setdefault(size, [])
        pointer = spare.pop() if spare else self.code.heap(self.kind, size * self.code.lanes)
        buffer = self.at(pointer, size)
        weakref.finalize(buffer, spare.append, pointer).atexit = False
        return buffer

    def at(self, pointer: Val, size: int, uniform: bool = False) -> Buffer:
        """The buffer at an address."""
        self._count += 1
        return Buffer(pointer, size, self._count, uniform)

    def constant(self, values: np.ndarray) -> Buffer:
        """Known numbers in memory."""
        dtype = np.float64 if self.kind == "f64" else np.float32
        data = np.ascontiguousarray(values, dtype).tobytes()
        if len(data) > MAX_CONSTANTS:
            raise Unsupported("size", f"{len(data) / 2**20:,.0f} MiB of constants")
        if data not in self._constants:
            self._constants[data] = self.at(self.code.constant_bytes(data), values.size, True)
        return self._constants[data]

    def load(self, buffer: Buffer, place: Val) -> Val:
        """One element in all lanes."""
        c = self.code
        if buffer.uniform:
            return c.splat(c.load(buffer.pointer, self.kind, place))
        return c.load(buffer.pointer, self.kind, c.strided(place), c.lanes)

    def put(self, value: Val, buffer: Buffer, place: Val) -> None:
        """Write one element in all lanes."""
        self.code.store(value, buffer.pointer, self.code.strided(place))

    # -- values -------------------------------------------------------------------------------
    def leaf(
        self, buffer: Buffer, places: np.ndarray, shape: Sequence[int], truth: bool = False
    ) -> Lazy:
        """Elements of a buffer as a value."""
        view = View(buffer, np.ascontiguousarray(places, np.int64).ravel())
        key = (buffer.number, view.places.tobytes())
        if key not in self._leaves:
            self._leaves[key] = self.graph.input(f"leaf{len(self._leaves)}")
        node = self._leaves[key]
        name = str(node.args[0])
        if truth:
            node = self.graph.compare("ne", node, 0.0)
        return Lazy(tuple(int(n) for n in shape), node, {name: view}, view)

    def whole(self, buffer: Buffer, shape: Sequence[int], truth: bool = False) -> Lazy:
        """All of a buffer as a value, in C order."""
        return self.leaf(buffer, np.arange(int(np.prod(shape))), shape, truth)

    def register(self, value: Val) -> Lazy:
        """A number in a register as a value of shape ()."""
        self._count += 1
        name = f"register{self._count}"
        return Lazy((), self.graph.input(name), {name: value})

    def expression(self, value: Known | Lazy) -> tuple[Scalar, dict[str, View | Val]]:
        """(node, leaves) of a value."""
        if isinstance(value, Lazy):
            return value.node, value.leaves
        if value.uniform:
            v = value.values.flat[0]
            return (bool(v) if value.values.dtype == np.bool_ else float(v)), {}
        made = self.leaf(
            self.constant(value.values.ravel()),
            np.arange(value.values.size),
            value.shape,
            value.values.dtype == np.bool_,
        )
        return made.node, made.leaves

    def combine(
        self, function: Callable[..., Scalar], values: Sequence[Value], shape: Sequence[int]
    ) -> Value:
        """`function` of the entries; axes of one entry are spread over the others'."""
        shape = tuple(int(n) for n in shape)
        if any(isinstance(v, Pieces) for v in values):
            return self.in_pieces(function, values)
        pairs = [self.expression(self.spread(v, shape)) for v in values]
        node = function(*(n for n, _ in pairs))
        if not isinstance(node, Node):
            return Known(np.broadcast_to(np.asarray(node), shape))
        known = {name: leaf for _, leaves in pairs for name, leaf in leaves.items()}
        names = [str(n.args[0]) for n in reachable([node]) if n.op == "input"]
        only = known[names[0]] if node.op == "input" else None
        view = only if isinstance(only, View) else None
        return Lazy(shape, node, {name: known[name] for name in names}, view)

    def spread(self, value: Value, shape: tuple[int, ...]) -> Known | Lazy:
        """The value repeated along axes where it has but one entry."""
        if isinstance(value, (Pieces, Pending)):
            value = self.store(value)
        if value.shape == shape:
            return value
        if isinstance(value, Known):
            return Known(np.broadcast_to(value.values, shape))
        if not _has_views(value):
            return Lazy(shape, value.node, value.leaves)
        view = self.view(value)
        places = np.broadcast_to(view.places.reshape(value.shape), shape)
        return self.leaf(view.buffer, places, shape, value.truth)

    def in_pieces(self, function: Callable[..., Scalar], values: Sequence[Value]) -> Pieces:
        """`combine` of vectors, piece by piece."""
        ends: set[int] = set()
        for v in values:
            if isinstance(v, Pieces):
                ends.update(np.cumsum([size_of(p) for p in v.parts]).tolist())
        cuts = [0, *sorted(ends)]
        shape = (cuts[-1],)
        settled = [v if isinstance(v, Pieces) else self.spread(v, shape) for v in values]
        settled = [self.settle(v) if isinstance(v, Lazy) and _has_views(v) else v for v in settled]
        parts = []
        for a, b in itertools.pairwise(cuts):
            given = [self._cut(v, a, b) for v in settled]
            part = _sum_with_zero(function, given) or self.combine(function, given, (b - a,))
            assert not isinstance(part, Pieces)
            parts.append(part)
        return Pieces(tuple(parts))

    def _cut(self, value: Value, a: int, b: int) -> Known | Lazy | Pending:
        """Entries a ... b - 1 of a vector."""
        if isinstance(value, Pieces):
            for part in value.parts:
                size = size_of(part)
                if a < size:
                    return self._cut(part, a, b)
                a, b = a - size, b - size
        assert not isinstance(value, Pieces)
        if a == 0 and b == size_of(value):
            return value
        if isinstance(value, Pending):
            value = self.store(value)
        if isinstance(value, Known):
            return Known(value.values[a:b])
        if not _has_views(value):
            return Lazy((b - a,), value.node, value.leaves)
        view = self.view(value)
        return self.leaf(view.buffer, view.places[a:b], (b - a,), value.truth)

    # -- loops --------------------------------------------------------------------------------
    @contextmanager
    def over(self, columns: Sequence[np.ndarray]) -> Iterator[list[Val]]:
        """Loops through columns of places side by side; yields the place of each."""
        c = self.code
        places = np.stack([np.asarray(p, np.int64) for p in columns])
        nest = nest_of(places)
        if nest is None:  # no pattern: the places are read from a table
            with c.loop(c.i64(places.shape[1])) as k:
                yield [self._listed(column, k) for column in places]
            return
        first, levels = nest
        with ExitStack() as stack:
            at = [c.i64(int(v)) for v in first]
            for count, strides in levels:
                k = stack.enter_context(c.loop(c.i64(count)))
                at = [
                    c.add(p, c.mul(k, c.i64(int(s)))) if s else p
                    for p, s in zip(at, strides, strict=True)
                ]
            yield at

    def _listed(self, column: np.ndarray, k: Val) -> Val:
        c = self.code
        steps = np.diff(column)
        if (steps == steps[0]).all():
            return c.add(c.mul(k, c.i64(int(steps[0]))), c.i64(int(column[0])))
        table = c.constant_bytes(column.astype(np.int32).tobytes())
        return c.cast("sext", c.load(table, "i32", k), "i64")

    def evaluate(self, node: Scalar, leaves: dict[str, View | Val], places: dict[str, Val]) -> Val:
        """The expression's value where its views stand at `places`."""
        given = {
            name: self.load(leaf.buffer, places[name]) if isinstance(leaf, View) else leaf
            for name, leaf in leaves.items()
        }
        return emit(self.code, [node], given, self.kind)[0]

    def store(self, value: Value, into: View | None = None) -> Lazy:
        """Compute a value, into fresh room or into the given places."""
        size = size_of(value)
        into = into or View(self.take(size), np.arange(size))
        if isinstance(value, Pieces):
            a = 0
            for part in value.parts:
                b = a + size_of(part)
                self.store(part, View(into.buffer, into.places[a:b]))
                a = b
        elif isinstance(value, Pending):
            self._write(value, into, False)
        elif size:
            self._store_one(value, into)
        truth = isinstance(value, Lazy) and value.truth
        truth |= isinstance(value, Known) and value.values.dtype == np.bool_
        return self.leaf(into.buffer, into.places, value.shape, truth)

    def _write(self, value: Pending, into: View, adds: bool) -> None:
        places = np.empty_like(into.places)
        places[value.order] = into.places
        value.write(View(into.buffer, places), adds)

    def add(self, value: Value, buffer: Buffer) -> None:
        """``buffer += value``."""
        first = 0
        for part in value.parts if isinstance(value, Pieces) else (value,):
            own = np.arange(first, first + size_of(part))
            first += size_of(part)
            if isinstance(part, Pending):
                self._write(part, View(buffer, own), True)
                continue
            old = self.leaf(buffer, own, part.shape)
            self.store(self.combine(self.graph.add, [old, part], part.shape), View(buffer, own))

    def move(self, value: Lazy, into: View, adds: bool) -> None:
        """Copy a value into a view, or add it to what is there."""
        if adds:
            old = self.leaf(into.buffer, into.places, value.shape)
            self.store(self.combine(self.graph.add, [old, value], value.shape), into)
        else:
            self.store(value, into)

    def _store_one(self, value: Known | Lazy, into: View) -> None:
        view = value.view if isinstance(value, Lazy) else None
        there = view is not None and view.buffer is into.buffer
        if view is not None and there and np.array_equal(view.places, into.places):
            return
        node, leaves = self.expression(value)
        node = self.graph.as_real(node)
        views = {name: leaf.places for name, leaf in leaves.items() if isinstance(leaf, View)}
        with self.over([into.places, *views.values()]) as (target, *places):
            out = self.evaluate(node, leaves, dict(zip(views, places, strict=True)))
            self.put(out, into.buffer, target)

    def assign(self, value: Value, buffer: Buffer) -> None:
        """Compute a value into a buffer that it may itself read."""
        size = size_of(value)
        if not self._reads_elsewhere(value, buffer):
            self.store(value, View(buffer, np.arange(size)))
            return
        self.store(self.store(value), View(buffer, np.arange(size)))

    def _reads_elsewhere(self, value: Value, buffer: Buffer) -> bool:
        """Whether an entry of the value needs another element of the buffer than its own."""
        first = 0
        for part in value.parts if isinstance(value, Pieces) else (value,):
            own = np.arange(first, first + size_of(part))
            first += size_of(part)
            if isinstance(part, Pending):
                return True
            for leaf in part.leaves.values() if isinstance(part, Lazy) else ():
                if not isinstance(leaf, View) or leaf.buffer is not buffer:
                    continue
                if not np.array_equal(leaf.places, own):
                    return True
        return False

    def settle(self, value: Value) -> Lazy:
        """The value as elements of one buffer: computed now unless it is that already."""
        if isinstance(value, Lazy) and value.view is not None:
            return value
        if isinstance(value, Known):
            places = np.arange(value.values.size)
            truth = value.values.dtype == np.bool_
            return self.leaf(self.constant(value.values.ravel()), places, value.shape, truth)
        return self.store(value)

    def view(self, value: Value) -> View:
        """Where a settled value lies."""
        view = self.settle(value).view
        assert view is not None
        return view

    def compact(self, value: Value) -> Buffer:
        """The value in C order in a buffer of its own, or in one that holds it so."""
        view = self.view(value)
        if np.array_equal(view.places, np.arange(view.buffer.size)):
            return view.buffer
        made = self.store(self.leaf(view.buffer, view.places, value.shape))
        assert made.view is not None
        return made.view.buffer

    def number(self, value: Value) -> Val:
        """A value of one entry in a register."""
        assert size_of(value) == 1
        value = self.settle(value) if isinstance(value, (Pieces, Pending)) else value
        node, leaves = self.expression(value)
        places = {
            name: self.code.i64(int(leaf.places[0]))
            for name, leaf in leaves.items()
            if isinstance(leaf, View)
        }
        return self.evaluate(self.graph.as_real(node), leaves, places)
