"""A jaxpr -> array code: a flat list of operations, each written as a loop over its entries.

What several operations need, or what a product or a change of shape needs, is computed once and
kept in memory; chains of elementwise operations run through in one loop.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._jax import jax, jnp
from . import loop_dot  # noqa: F401 (its rules)
from .interpreter import Unsupported, open_jaxpr, subjaxprs
from .ir import Node, reachable
from .loop_arrays import Buffer, Known, Lazy, Loops, Pending, Pieces, Value, View, size_of
from .loop_rules import LOOP_RULES, RESHAPES, shape_of
from .rules_control import CALLS
from .rules_maths import ELEMENTWISE
from .rules_special import ELEMENTWISE_SPECIAL, rewritten
from .vector import Code, Val

CHEAP = 3  # operations that are repeated rather than stored
FUSES = ELEMENTWISE | ELEMENTWISE_SPECIAL | RESHAPES | {"pad", "concatenate"}
REDUCES = {"reduce_sum", "reduce_prod", "reduce_max", "reduce_min", "reduce_and", "reduce_or",
           "argmax", "argmin"}  # fmt: skip
PASSES = RESHAPES | {"transpose", "pad", "concatenate", "add", "add_any", "output"}
JOINS = {"concatenate", "pad"}  # to which an array of no entries adds nothing
MAX_TURNS = 64  # of a loop that is unrolled


class Slot:
    """A value that an operation makes."""


@dataclass(frozen=True)
class Operation:
    """An equation between slots and known numbers."""

    eqn: Any
    args: tuple[Slot | Known, ...]
    outs: tuple[Slot, ...]


@dataclass(frozen=True)
class Flat:
    """A jaxpr with its calls opened, without what nothing needs."""

    inputs: tuple[Slot, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[Slot | Known, ...]


def flatten(jaxpr: Any, consts: Sequence[Any]) -> Flat:
    """`Flat` of a jaxpr."""
    inputs = tuple(Slot() for _ in jaxpr.invars)
    operations: list[Operation] = []
    outputs = _opened(jaxpr, consts, inputs, operations)
    needed = {id(o) for o in outputs}
    kept: list[Operation] = []
    for op in reversed(operations):
        if any(id(o) in needed for o in op.outs):
            kept.append(op)
            needed.update(id(a) for a in op.args)
    return Flat(inputs, tuple(reversed(kept)), tuple(outputs))


def _opened(
    jaxpr: Any, consts: Sequence[Any], args: Sequence[Slot | Known], out: list[Operation]
) -> list[Slot | Known]:
    env: dict[Any, Slot | Known] = dict(zip(jaxpr.invars, args, strict=True))
    env.update((v, known(c)) for v, c in zip(jaxpr.constvars, consts, strict=True))

    def read(v: Any) -> Slot | Known:
        return known(v.val) if hasattr(v, "val") else env[v]

    for eqn in jaxpr.eqns:
        given = [read(v) for v in eqn.invars]
        if eqn.primitive.name in CALLS:
            inner = subjaxprs(eqn.params)
            if not inner:
                raise Unsupported(eqn.primitive.name)
            results = _opened(*open_jaxpr(inner[0]), given, out)
        else:
            slots = tuple(Slot() for _ in eqn.outvars)
            out.append(Operation(eqn, tuple(given), slots))
            results = list(slots)
        env.update(zip(eqn.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]


def known(value: Any) -> Known:
    """Numbers of a jaxpr."""
    if jnp.issubdtype(getattr(value, "dtype", np.float64), jax.dtypes.prng_key):
        raise Unsupported("random key", "random keys have no fused form")
    return Known(np.asarray(value))


def run(w: Loops, flat: Flat, args: Sequence[Value]) -> list[Value]:
    """Write a program's operations; what is left lazy may still be joined with what follows."""
    users: dict[int, list[str]] = defaultdict(list)
    for op in flat.operations:
        for a in op.args:
            users[id(a)].append(op.eqn.primitive.name)
    for o in flat.outputs:
        users[id(o)].append("output")
    left = {key: len(names) for key, names in users.items()}
    env: dict[int, Value] = {id(s): v for s, v in zip(flat.inputs, args, strict=True)}

    def read(a: Slot | Known) -> Value:
        return a if isinstance(a, Known) else env[id(a)]

    for op in flat.operations:
        results = _written(w, op.eqn, [read(a) for a in op.args])
        for slot, value in zip(op.outs, results, strict=True):
            env[id(slot)] = w.store(value) if _worth_room(value, users[id(slot)]) else value
        results.clear()
        for a in op.args:  # the room of what nobody needs any more is free again
            left[id(a)] -= 1
            if not left[id(a)]:
                env.pop(id(a), None)
    return [read(o) for o in flat.outputs]


def _worth_room(value: Value, users: list[str]) -> bool:
    """Whether a value is better computed now than in every place that needs it."""
    if isinstance(value, Known) or not users:
        return False
    if isinstance(value, Pending):
        return len(users) > 1 or users[0] not in PASSES
    if isinstance(value, Pieces):
        return any(name not in FUSES and name != "output" for name in users)
    if value.view is not None or not any(isinstance(v, View) for v in value.leaves.values()):
        return False
    if any(name not in FUSES and name not in REDUCES and name != "output" for name in users):
        return True
    return len(users) > 1 and _work(value.node) > CHEAP


def _work(node: Node) -> int:
    return sum(n.op != "input" for n in reachable([node]))


def _written(w: Loops, eqn: Any, args: list[Value]) -> list[Value]:
    name = eqn.primitive.name
    try:
        if all(isinstance(a, Known) for a in args) and name not in CONTROL:
            return _folded(eqn, args)
        if all(v.aval.size == 0 for v in eqn.outvars):
            return [Known(np.zeros(v.aval.shape, v.aval.dtype)) for v in eqn.outvars]
        if name not in JOINS and any(size_of(a) == 0 for a in args):
            raise Unsupported(name, f"'{name}' of an empty array has no fused form")
        if name in CONTROL:
            return CONTROL[name](w, eqn, args)
        if name not in LOOP_RULES and (other := rewritten(eqn)) is not None:
            return _inner(w, other, args)
        if name not in LOOP_RULES:
            raise Unsupported(name)
        return LOOP_RULES[name](w, eqn, args)
    except Unsupported:
        raise
    except Exception as error:  # an unforeseen form of a primitive: XLA has it
        raise Unsupported(name) from error


def _folded(eqn: Any, args: Sequence[Value]) -> list[Value]:
    """What depends on no input is computed now."""
    numbers = [jnp.asarray(a.values) for a in args if isinstance(a, Known)]
    typed = [n.astype(v.aval.dtype) for n, v in zip(numbers, eqn.invars, strict=True)]
    out = eqn.primitive.bind(*typed, **eqn.params)
    many = out if eqn.primitive.multiple_results else [out]
    return [Known(np.asarray(o)) for o in many]


# -- control ----------------------------------------------------------------------------------
def _inner(w: Loops, sub: Any, args: Sequence[Value]) -> list[Value]:
    return run(w, flatten(*open_jaxpr(sub)), args)


def _cond(w: Loops, e: Any, a: list[Value]) -> list[Value]:
    which, args = a[0], a[1:]
    branches = e.params["branches"]
    if isinstance(which, Known):
        return _inner(w, branches[int(np.clip(which.values, 0, len(branches) - 1))], args)
    args = [v if isinstance(v, Known) else w.settle(v) for v in args]
    outs = _inner(w, branches[0], args)
    for k, branch in enumerate(branches[1:], 1):
        taken = w.combine(lambda n, k=k: w.graph.compare("ge", w.graph.as_real(n), float(k)),
                          [which], ())  # fmt: skip
        outs = [
            w.combine(w.graph.select, [taken, new, old], shape_of(e, j))
            for j, (new, old) in enumerate(zip(_inner(w, branch, args), outs, strict=True))
        ]
    return outs


def _while(w: Loops, e: Any, a: list[Value]) -> list[Value]:
    p = e.params
    n_test, n_body = p["cond_nconsts"], p["body_nconsts"]
    test, body, state = a[:n_test], a[n_test : n_test + n_body], a[n_test + n_body :]
    for _ in range(MAX_TURNS):
        (go,) = _inner(w, p["cond_jaxpr"], [*test, *state])
        if not isinstance(go, Known):
            raise Unsupported("while", "a loop whose length depends on values has no fused form")
        if not go.values:
            return state
        state = _inner(w, p["body_jaxpr"], [*body, *state])
    raise Unsupported("while", "a loop of more steps than can be unrolled")


def _scan(w: Loops, e: Any, a: list[Value]) -> list[Value]:
    """A loop: what is carried lies in buffers, columns are read and results written by turn."""
    p, c = e.params, w.code
    turns, n_fixed, n_carried = p["length"], p["num_consts"], p["num_carry"]
    fixed = [v if isinstance(v, Known) else w.settle(v) for v in a[:n_fixed]]
    if turns == 0:
        raise Unsupported("scan", "a loop of no steps has no fused form")
    carried = [_own(w, v) for v in a[n_fixed : n_fixed + n_carried]]
    columns = [w.compact(v) for v in a[n_fixed + n_carried :]]
    rows = [w.take(int(np.prod(v.aval.shape))) for v in e.outvars[n_carried:]]
    flat = flatten(*open_jaxpr(p["jaxpr"]))
    with c.loop(c.i64(turns)) as k:
        turn = c.sub(c.i64(turns - 1), k) if p["reverse"] else k
        parts = [
            _row(w, b, turn, v.shape, _truth(v))
            for b, v in zip(columns, a[n_fixed + n_carried :], strict=True)
        ]
        outs = run(w, flat, [*fixed, *carried, *parts])
        outs = [w.store(v) for v in outs]
        for buffer, value in zip(rows, outs[n_carried:], strict=True):
            target = _row_buffer(w, buffer, turn, size_of(value))
            w.store(value, View(target, np.arange(size_of(value))))
        for old, new in zip(carried, outs[:n_carried], strict=True):
            w.assign(new, w.view(old).buffer)
    stacked = [
        w.whole(b, v.aval.shape, v.aval.dtype == np.bool_)
        for b, v in zip(rows, e.outvars[n_carried:], strict=True)
    ]
    return [*carried, *stacked]


def _truth(value: Value) -> bool:
    if isinstance(value, Known):
        return value.values.dtype == np.bool_
    return isinstance(value, Lazy) and value.truth


def _own(w: Loops, value: Value) -> Lazy:
    """The value in a fresh buffer, in C order."""
    return w.store(value)


def _row_buffer(w: Loops, buffer: Buffer, turn: Val, size: int) -> Buffer:
    first = w.code.mul(turn, w.code.i64(size))
    offset = first if buffer.uniform else w.code.strided(first)
    return w.at(w.code.at(buffer.pointer, w.kind, offset), size, buffer.uniform)


def _row(w: Loops, buffer: Buffer, turn: Val, shape: Sequence[int], truth: bool) -> Lazy:
    size = int(np.prod(shape[1:]))
    return w.whole(_row_buffer(w, buffer, turn, size), shape[1:], truth)


CONTROL: dict[str, Callable[[Loops, Any, list[Value]], list[Value]]] = {
    "cond": _cond,
    "while": _while,
    "scan": _scan,
}


# -- programs ---------------------------------------------------------------------------------
MAX_TEXT = 150_000  # lines of LLVM text, about 5 s of compilation


class Program:
    """A function as array code.

    Parameters
    ----------
    function
        In jax.numpy, of pytrees of arrays.
    examples
        Its arguments as arrays or `jax.ShapeDtypeStruct`s, for tracing.

    Raises
    ------
    Unsupported
        A primitive without a rule.
    """

    def __init__(self, function: Callable[..., Any], *examples: Any) -> None:
        closed = jax.make_jaxpr(function)(*examples)
        self.flat = flatten(closed.jaxpr, closed.consts)
        self.shapes = [tuple(v.aval.shape) for v in closed.jaxpr.invars]
        self.truths = [v.aval.dtype == np.bool_ for v in closed.jaxpr.invars]
        self.outputs = [tuple(v.aval.shape) for v in closed.jaxpr.outvars]
        self._try()

    def _try(self) -> None:
        """Write the program once for nothing, to learn whether it can be."""
        code = Code("trial", ["args"], 8)
        w = Loops(code, "f64")
        given = [
            w.whole(w.take(int(np.prod(s))), s, t)
            for s, t in zip(self.shapes, self.truths, strict=True)
        ]
        for value in self.write(w, *given):
            w.store(value)
        if len(code.lines) > MAX_TEXT:
            raise Unsupported("size", f"{len(code.lines):,} lines of code, above {MAX_TEXT:,}")
        self.room = code.heap_bytes

    def write(self, w: Loops, *arguments: Value) -> list[Value]:
        """Its flattened outputs at these arguments, flattened too."""
        return run(w, self.flat, arguments)
