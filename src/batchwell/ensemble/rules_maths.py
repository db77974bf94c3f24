"""Rules for maths: elementwise functions, reductions, products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .._jax import jnp
from .interpreter import RULES, Nodes, Rule, Unsupported, each, is_integer, rule
from .ir import COMPARE, LOGIC, UNARY, Graph, Node, Scalar


# -- elementwise ------------------------------------------------------------------------------
def _unary(op: str) -> Rule:
    return lambda g, e, a: [each(lambda x: g.unary(op, x), a[0])]


def _compare(op: str) -> Rule:
    return lambda g, e, a: [each(lambda x, y: g.compare(op, x, y), *a)]


def _logic(op: str) -> Rule:
    def lowered(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
        if e.invars[0].aval.dtype != np.bool_:
            return [each(lambda x, y: g.other(f"bit_{op}", x, y), *a)]
        return [each(lambda x, y: g.logic(op, x, y), *a)]

    return lowered


RULES.update({name: _unary(name) for name in UNARY if name not in ("round", "trunc")})
RULES.update({name: _compare(name) for name in COMPARE})
RULES.update({name: _logic(name) for name in LOGIC})


@rule("lt_to", "le_to")
def _in_total_order(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    """As < and <=, but -0 comes before 0: searches in sorted tables compare so."""
    op = e.primitive.name[:2]

    def one(x: Scalar, y: Scalar) -> Scalar:
        zeros = g.logic("and", g.compare("eq", x, 0.0), g.compare("eq", y, 0.0))
        signed = g.compare(op, g.div(1.0, x), g.div(1.0, y))
        return g.select(zeros, signed, g.compare(op, x, y))

    return [each(one if not is_integer(e) else lambda x, y: g.compare(op, x, y), *a)]


@rule("add", "add_any")
def _add(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    return [each(g.add, *a)]


@rule("sub")
def _sub(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    return [each(g.sub, *a)]


@rule("mul")
def _mul(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    return [each(g.mul, *a)]


@rule("div")
def _div(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    if is_integer(e):
        return [each(lambda x, y: g.unary("trunc", g.div(x, y)), *a)]
    return [each(g.div, *a)]


@rule("rem")
def _rem(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    def one(x: Scalar, y: Scalar) -> Scalar:
        return g.sub(x, g.mul(y, g.unary("trunc", g.div(x, y))))

    return [each(one, *a)]


@rule("max", "min", "pow", "atan2")
def _two(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    name = e.primitive.name
    if name == "pow":
        return [each(lambda x, y: _power(g, x, y), *a)]
    return [each(lambda x, y: g.other(name, x, y), *a)]


def _power(g: Graph, x: Scalar, y: Scalar) -> Scalar:
    if not isinstance(y, Node) and float(y).is_integer() and abs(y) <= 64:
        return g.integer_power(x, int(y))
    if not isinstance(y, Node) and y == 0.5:
        return g.unary("sqrt", x)
    return g.other("pow", x, y)


@rule("integer_pow")
def _integer_pow(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    return [each(lambda x: g.integer_power(x, e.params["y"]), a[0])]


@rule("square")
def _square(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    return [each(lambda x: g.mul(x, x), a[0])]


@rule("round")
def _round(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    if int(e.params["rounding_method"]) == 1:
        return [each(lambda x: g.unary("round", x), a[0])]

    def away(x: Scalar) -> Scalar:
        size = g.unary("floor", g.add(g.unary("abs", x), 0.5))
        return g.mul(g.unary("sign", x), size)

    return [each(away, a[0])]


@rule("not")
def _not(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    if e.invars[0].aval.dtype != np.bool_:
        return [each(lambda x: g.sub(-1.0, x), a[0])]
    return [each(g.negate, a[0])]


@rule("is_finite")
def _is_finite(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    return [each(lambda x: g.compare("lt", g.unary("abs", x), float("inf")), a[0])]


@rule("select_n")
def _select(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    which, *cases = a
    if e.invars[0].aval.dtype == np.bool_:
        return [each(lambda t, no, yes: g.select(t, yes, no), which, *cases)]
    out = cases[0]
    for k, case in enumerate(cases[1:], 1):
        is_k = each(lambda w, k=k: g.compare("eq", w, float(k)), which)
        out = each(g.select, is_k, case, out)
    return [out]


@rule("clamp")
def _clamp(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    return [each(lambda lo, x, hi: g.other("min", g.other("max", x, lo), hi), *a)]


@rule("convert_element_type")
def _convert(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    old, new = e.invars[0].aval.dtype, np.dtype(e.params["new_dtype"])
    if new == np.bool_ and old != np.bool_:
        return [each(lambda x: g.compare("ne", x, 0.0), a[0])]
    if old == np.bool_ and new != np.bool_:
        return [each(g.as_real, a[0])]
    if np.issubdtype(new, np.integer) and jnp.issubdtype(old, jnp.floating):
        return [each(lambda x: g.unary("trunc", x), a[0])]
    if jnp.issubdtype(new, jnp.floating):
        if new.itemsize < 8:
            raise Unsupported(f"cast to {new}", f"a cast to {new} has no fused form")
        return [each(g.as_real, a[0])]
    return [a[0]]


@rule("shift_right_logical")
def _shift(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    x, by = a
    words = all(isinstance(v, Node) and v.kind == "u" for v in x.ravel())
    if not words or any(isinstance(v, Node) for v in by.ravel()):
        raise Unsupported("shift_right_logical")
    return [each(lambda v, k: g.shift_right(v, int(k)), x, by)]


@rule("copy", "copy_p", "stop_gradient", "optimization_barrier", "reduce_precision",
      "sharding_constraint", "pvary", "real")  # fmt: skip
def _same(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    if e.primitive.name == "reduce_precision" and e.params["mantissa_bits"] < 52:
        raise Unsupported("reduce_precision")
    return a


# The rules so far do the same to every entry.
ELEMENTWISE = frozenset(name for name, r in RULES.items() if r.__module__ == __name__)


# -- reductions -------------------------------------------------------------------------------
def fold(g: Graph, name: str) -> Callable[[Scalar, Scalar], Scalar]:
    """What a reduction of this name does to two entries."""
    table: dict[str, Callable[[Scalar, Scalar], Scalar]] = {
        "sum": g.add,
        "prod": g.mul,
        "max": lambda x, y: g.other("max", x, y),
        "min": lambda x, y: g.other("min", x, y),
        "and": lambda x, y: g.logic("and", x, y),
        "or": lambda x, y: g.logic("or", x, y),
        "xor": lambda x, y: g.logic("xor", x, y),
        "logsumexp": lambda x, y: _log_add(g, x, y),
    }
    return table[name]


def _rows(a: Nodes, axes: Sequence[int]) -> Nodes:
    """The reduced axes flattened and put last."""
    kept = [k for k in range(a.ndim) if k not in axes]
    return np.transpose(a, [*kept, *axes]).reshape([*(a.shape[k] for k in kept), -1])


@rule("reduce_sum", "reduce_prod", "reduce_max", "reduce_min", "reduce_and", "reduce_or",
      "reduce_xor")  # fmt: skip
def _reduce(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    combine = fold(g, e.primitive.name.removeprefix("reduce_"))
    table = _rows(a[0], e.params["axes"])
    if table.shape[-1] == 0:
        raise Unsupported(e.primitive.name, "a reduction over nothing has no fused form")
    out = np.empty(table.shape[:-1], object)
    for where in np.ndindex(out.shape):
        row = list(table[where])
        out[where] = row[0]
        for item in row[1:]:
            out[where] = combine(out[where], item)
    return [out]


@rule("argmax", "argmin")
def _arg(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    better = "gt" if e.primitive.name == "argmax" else "lt"
    table = _rows(a[0], e.params["axes"])
    out = np.empty(table.shape[:-1], object)
    for where in np.ndindex(out.shape):
        row = table[where]
        best, index = row[0], 0.0
        for k in range(1, len(row)):
            wins = g.compare(better, row[k], best)
            best, index = g.select(wins, row[k], best), g.select(wins, float(k), index)
        out[where] = index
    return [out]


@rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def _cumulative(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    name, axis = e.primitive.name.removeprefix("cum"), e.params["axis"]
    combine = fold(g, name)
    moved = np.moveaxis(a[0], axis, 0)
    if e.params["reverse"]:
        moved = moved[::-1]
    rows = [moved[k] for k in range(len(moved))]
    for k in range(1, len(rows)):
        rows[k] = each(combine, rows[k - 1], rows[k])
    if e.params["reverse"]:
        rows = rows[::-1]
    return [np.moveaxis(np.stack(rows), 0, axis)]


def _log_add(g: Graph, x: Scalar, y: Scalar) -> Scalar:
    top = g.other("max", x, y)
    gap = g.unary("neg", g.unary("abs", g.sub(x, y)))
    return g.add(top, g.unary("log1p", g.unary("exp", gap)))


@rule("dot_general")
def _dot(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    (left, right), (batch_left, batch_right) = e.params["dimension_numbers"]
    x, y = (_matrix(a[0], left, batch_left), _matrix(a[1], right, batch_right))
    out = np.empty((*x.shape[:1], x.shape[1], y.shape[1]), object)
    for where in np.ndindex(out.shape):
        b, i, j = where
        total: Scalar = 0.0
        for p, q in zip(x[b, i], y[b, j], strict=True):
            total = g.add(total, g.mul(p, q))
        out[where] = total
    return [out]


def _matrix(a: Nodes, contracted: Sequence[int], batch: Sequence[int]) -> Nodes:
    """(batch, free, contracted), each flattened."""
    free = [k for k in range(a.ndim) if k not in contracted and k not in batch]
    shape = [int(np.prod([a.shape[k] for k in part])) for part in (batch, free, contracted)]
    return np.transpose(a, [*batch, *free, *contracted]).reshape(shape)
