"""A jaxpr -> scalar expressions, by running it on arrays of nodes.

Arrays of numbers become NumPy arrays of `ir` nodes; structure (slices, reshapes, gathers with
known indices) is then plain NumPy and costs nothing in the code. Loops of static length are
unrolled. `Unsupported` names what cannot be lowered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .._jax import jax, jnp
from .ir import COMPARE, LOGIC, UNARY, Graph, Node, Scalar

Nodes = np.ndarray  # of dtype object
MAX_LINES = 8_000  # about 4 s of compilation
CURVED = 12  # lines of an elementary function, about


class Unsupported(Exception):
    """A jaxpr that cannot become scalar code: `primitive` says why."""

    def __init__(self, primitive: str, reason: str = "") -> None:
        self.primitive = primitive
        super().__init__(reason or f"'{primitive}' has no fused form")


def inputs(graph: Graph, name: str, shape: Sequence[int], kind: str = "f") -> Nodes:
    """An array of input nodes called name0, name1, ... in C order."""
    out = np.empty(int(np.prod(shape)), object)
    out[:] = [graph.input(f"{name}{k}", kind) for k in range(out.size)]
    return out.reshape(tuple(shape))


def lower(
    graph: Graph, function: Callable[..., Any], examples: Sequence[Any], arguments: Sequence[Any]
) -> list[Nodes]:
    """Expressions for `function`, in the order of its flattened outputs.

    Parameters
    ----------
    examples
        Arguments as arrays or `jax.ShapeDtypeStruct`s (pytrees), for tracing.
    arguments
        The same pytrees with arrays of nodes as leaves.

    Raises
    ------
    Unsupported
        A primitive without a scalar form, or a program of more than MAX_LINES scalars.
    """
    closed = jax.make_jaxpr(function)(*examples)
    size = cost(closed.jaxpr)
    if size > MAX_LINES:
        raise Unsupported("size", f"about {size:,} scalar operations, above {MAX_LINES:,}")
    leaves = [np.asarray(a, object) for a in jax.tree.leaves(list(arguments))]
    return _run(graph, closed.jaxpr, closed.consts, leaves)


def cost(jaxpr: Any) -> int:
    """About how many scalar operations a jaxpr unrolls to."""
    total = 0
    for eqn in jaxpr.eqns:
        repeat = int(eqn.params.get("length", 1)) if eqn.primitive.name == "scan" else 1
        inner = [_open(v)[0] for v in _subjaxprs(eqn.params)]
        if inner:
            total += repeat * sum(cost(j) for j in inner)
        elif eqn.primitive.name == "dot_general":
            (left, _), _ = eqn.params["dimension_numbers"]
            depth = int(np.prod([eqn.invars[0].aval.shape[k] for k in left]))
            total += depth * _size(eqn)
        elif eqn.primitive.name.startswith(("reduce", "cum", "arg")):
            total += int(np.prod(eqn.invars[0].aval.shape))
        elif eqn.primitive.name not in _FREE:
            total += _size(eqn) * (CURVED if eqn.primitive.name in _CURVED else 1)
    return total


_CURVED = set(UNARY) - {"neg", "abs", "sqrt", "floor", "ceil", "round", "sign", "trunc"}
_FREE = {"reshape", "transpose", "broadcast_in_dim", "slice", "squeeze", "concatenate", "iota",
         "gather", "pad", "rev", "copy", "convert_element_type", "stop_gradient", "split",
         "expand_dims", "dynamic_slice", "reduce_precision", "stack"}  # fmt: skip


def _size(eqn: Any) -> int:
    return int(np.prod(eqn.outvars[0].aval.shape))


def _subjaxprs(params: dict[str, Any]) -> list[Any]:
    found: list[Any] = []
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr", "body_jaxpr", "branches"):
        value = params.get(key)
        if value is not None:
            found.extend(value if isinstance(value, (tuple, list)) else [value])
    return found


def _open(sub: Any) -> tuple[Any, Sequence[Any]]:
    return (sub.jaxpr, sub.consts) if hasattr(sub, "jaxpr") else (sub, ())


def _run(graph: Graph, jaxpr: Any, consts: Sequence[Any], args: Sequence[Nodes]) -> list[Nodes]:
    env: dict[Any, Nodes] = {}

    def read(v: Any) -> Nodes:
        return _constant(v.val) if hasattr(v, "val") else env[v]  # a literal

    for var, const in zip(jaxpr.constvars, consts, strict=True):
        env[var] = _constant(const)
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        rule = RULES.get(name)
        if rule is None:
            raise Unsupported(name)
        results = _applied(rule, graph, eqn, [read(v) for v in eqn.invars])
        for var, out in zip(eqn.outvars, results, strict=True):
            env[var] = np.asarray(out, object).reshape(var.aval.shape)
    return [read(v) for v in jaxpr.outvars]


def _applied(rule: Rule, graph: Graph, eqn: Any, args: list[Nodes]) -> Sequence[Nodes]:
    try:
        return rule(graph, eqn, args)
    except Unsupported:
        raise
    except Exception as error:  # an unforeseen form of a primitive: XLA has it
        raise Unsupported(eqn.primitive.name) from error


def _constant(value: Any) -> Nodes:
    array = np.asarray(value)
    if array.dtype.kind in "V" or jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        raise Unsupported("random key", "random keys have no fused form")
    out = np.empty(array.shape, object)
    flat = [bool(v) if array.dtype.kind == "b" else float(v) for v in array.ravel()]
    out.ravel()[:] = flat
    return out


Rule = Callable[[Graph, Any, list[Nodes]], Sequence[Nodes]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the lowering of primitives."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def _each(function: Callable[..., Scalar], *arrays: Nodes) -> Nodes:
    if len(arrays) > 1:
        arrays = tuple(np.broadcast_arrays(*arrays))
    out = np.empty(arrays[0].shape, object)
    flat = out.reshape(-1)
    for k, values in enumerate(zip(*(a.ravel() for a in arrays), strict=True)):
        flat[k] = function(*values)
    return out


def _is_integer(eqn: Any) -> bool:
    return bool(np.issubdtype(eqn.invars[0].aval.dtype, np.integer))


# -- elementwise ------------------------------------------------------------------------------
def _unary(op: str) -> Rule:
    return lambda g, e, a: [_each(lambda x: g.unary(op, x), a[0])]


def _compare(op: str) -> Rule:
    return lambda g, e, a: [_each(lambda x, y: g.compare(op, x, y), *a)]


def _logic(op: str) -> Rule:
    def lowered(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
        if e.invars[0].aval.dtype != np.bool_:
            raise Unsupported(op, f"'{op}' of integers has no fused form")
        return [_each(lambda x, y: g.logic(op, x, y), *a)]

    return lowered


RULES.update({name: _unary(name) for name in UNARY if name not in ("round", "trunc")})
RULES.update({name: _compare(name) for name in COMPARE})
RULES.update({name: _logic(name) for name in LOGIC})


@rule("add", "add_any")
def _add(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    return [_each(g.add, *a)]


@rule("sub")
def _sub(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    return [_each(g.sub, *a)]


@rule("mul")
def _mul(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    return [_each(g.mul, *a)]


@rule("div")
def _div(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    if _is_integer(e):
        return [_each(lambda x, y: g.unary("trunc", g.div(x, y)), *a)]
    return [_each(g.div, *a)]


@rule("rem")
def _rem(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    def one(x: Scalar, y: Scalar) -> Scalar:
        return g.sub(x, g.mul(y, g.unary("trunc", g.div(x, y))))

    return [_each(one, *a)]


@rule("max", "min", "pow", "atan2")
def _two(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    name = e.primitive.name
    if name == "pow":
        return [_each(lambda x, y: _power(g, x, y), *a)]
    return [_each(lambda x, y: g.other(name, x, y), *a)]


def _power(g: Graph, x: Scalar, y: Scalar) -> Scalar:
    if not isinstance(y, Node) and float(y).is_integer() and abs(y) <= 64:
        return g.integer_power(x, int(y))
    if not isinstance(y, Node) and y == 0.5:
        return g.unary("sqrt", x)
    return g.other("pow", x, y)


@rule("integer_pow")
def _integer_pow(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    return [_each(lambda x: g.integer_power(x, e.params["y"]), a[0])]


@rule("square")
def _square(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    return [_each(lambda x: g.mul(x, x), a[0])]


@rule("round")
def _round(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    if int(e.params["rounding_method"]) == 1:
        return [_each(lambda x: g.unary("round", x), a[0])]

    def away(x: Scalar) -> Scalar:
        size = g.unary("floor", g.add(g.unary("abs", x), 0.5))
        return g.mul(g.unary("sign", x), size)

    return [_each(away, a[0])]


@rule("not")
def _not(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    return [_each(g.negate, a[0])]


@rule("is_finite")
def _is_finite(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    return [_each(lambda x: g.compare("lt", g.unary("abs", x), float("inf")), a[0])]


@rule("select_n")
def _select(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    which, *cases = a
    if e.invars[0].aval.dtype == np.bool_:
        return [_each(lambda t, no, yes: g.select(t, yes, no), which, *cases)]
    out = cases[0]
    for k, case in enumerate(cases[1:], 1):
        is_k = _each(lambda w, k=k: g.compare("eq", w, float(k)), which)
        out = _each(g.select, is_k, case, out)
    return [out]


@rule("clamp")
def _clamp(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    return [_each(lambda lo, x, hi: g.other("min", g.other("max", x, lo), hi), *a)]


@rule("convert_element_type")
def _convert(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    old, new = e.invars[0].aval.dtype, np.dtype(e.params["new_dtype"])
    if new == np.bool_ and old != np.bool_:
        return [_each(lambda x: g.compare("ne", x, 0.0), a[0])]
    if old == np.bool_ and new != np.bool_:
        return [_each(g.as_real, a[0])]
    if np.issubdtype(new, np.integer) and jnp.issubdtype(old, jnp.floating):
        return [_each(lambda x: g.unary("trunc", x), a[0])]
    if jnp.issubdtype(new, jnp.floating):
        if new.itemsize < 8:
            raise Unsupported(f"cast to {new}", f"a cast to {new} has no fused form")
        return [_each(g.as_real, a[0])]
    return [a[0]]


@rule("shift_right_logical")
def _shift(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    x, by = a
    words = all(isinstance(v, Node) and v.kind == "u" for v in x.ravel())
    if not words or any(isinstance(v, Node) for v in by.ravel()):
        raise Unsupported("shift_right_logical")
    return [_each(lambda v, k: g.shift_right(v, int(k)), x, by)]


@rule("copy", "copy_p", "stop_gradient", "optimization_barrier", "reduce_precision",
      "sharding_constraint", "pvary", "real")  # fmt: skip
def _same(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    if e.primitive.name == "reduce_precision" and e.params["mantissa_bits"] < 52:
        raise Unsupported("reduce_precision")
    return a


# -- reductions -------------------------------------------------------------------------------
def _fold(g: Graph, name: str) -> Callable[[Scalar, Scalar], Scalar]:
    table: dict[str, Callable[[Scalar, Scalar], Scalar]] = {
        "sum": g.add,
        "prod": g.mul,
        "max": lambda x, y: g.other("max", x, y),
        "min": lambda x, y: g.other("min", x, y),
        "and": lambda x, y: g.logic("and", x, y),
        "or": lambda x, y: g.logic("or", x, y),
        "xor": lambda x, y: g.logic("xor", x, y),
    }
    return table[name]


def _rows(a: Nodes, axes: Sequence[int]) -> Nodes:
    """The reduced axes flattened and put last."""
    kept = [k for k in range(a.ndim) if k not in axes]
    return np.transpose(a, [*kept, *axes]).reshape([*(a.shape[k] for k in kept), -1])


@rule("reduce_sum", "reduce_prod", "reduce_max", "reduce_min", "reduce_and", "reduce_or",
      "reduce_xor")  # fmt: skip
def _reduce(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    combine = _fold(g, e.primitive.name.removeprefix("reduce_"))
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
    combine = (lambda x, y: _log_add(g, x, y)) if name == "logsumexp" else _fold(g, name)
    moved = np.moveaxis(a[0], axis, 0)
    if e.params["reverse"]:
        moved = moved[::-1]
    rows = [moved[k] for k in range(len(moved))]
    for k in range(1, len(rows)):
        rows[k] = _each(combine, rows[k - 1], rows[k])
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


# -- structure --------------------------------------------------------------------------------
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
    return [_constant(np.broadcast_to(line, shape).astype(float))]


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
        out = _each(lambda y, n, k=k: g.select(g.compare("ge", index, float(k)), y, n), one(k), out)
    return out


@rule("gather")
def _gather(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    operand, index = a
    fill = float("nan") if "FILL" in str(e.params["mode"]) else 0.0
    if not _symbolic(index):
        return [_picked(e, operand, [index], fill)]
    if index.size != 1:
        raise Unsupported("gather", "'gather' at several unknown indices has no fused form")
    axis = e.params["dimension_numbers"].start_index_map[0]
    size = operand.shape[axis] - e.params["slice_sizes"][axis] + 1

    def one(k: int) -> Nodes:
        return _picked(e, operand, [np.full(index.shape, float(k), object)], fill)

    return [_over_values(g, e, index.item(), size, one)]


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
        raise Unsupported("scatter", "'scatter' at several unknown indices has no fused form")
    axis = e.params["dimension_numbers"].scatter_dims_to_operand_dims[0]

    def one(k: int) -> Nodes:
        return _scattered(g, e, operand, np.full(index.shape, float(k), object), update)

    return [_over_values(g, e, index.item(), operand.shape[axis], one)]


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


# -- programs inside programs -----------------------------------------------------------------
@rule("pjit", "jit", "closed_call", "core_call", "remat", "remat2", "checkpoint",
      "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_lin")  # fmt: skip
def _inlined(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    sub = _subjaxprs(e.params)
    if not sub:
        raise Unsupported(e.primitive.name)
    jaxpr, consts = _open(sub[0])
    return _run(g, jaxpr, consts, a)


@rule("cond")
def _cond(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    which, args = a[0].item(), a[1:]
    branches = [_open(b) for b in e.params["branches"]]
    if not isinstance(which, Node):
        k = int(np.clip(float(which), 0, len(branches) - 1))
        return _run(g, *branches[k], args)
    outs = _run(g, *branches[0], args)
    for k, branch in enumerate(branches[1:], 1):
        other = _run(g, *branch, args)
        test = g.compare("ge", g.as_real(which), float(k))
        outs = [
            _each(lambda y, n, t=test: g.select(t, y, n), y, n)
            for y, n in zip(other, outs, strict=True)
        ]
    return outs


@rule("scan")
def _scan(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    p = e.params
    fixed, carried = a[: p["num_consts"]], a[p["num_consts"] : p["num_consts"] + p["num_carry"]]
    columns = a[p["num_consts"] + p["num_carry"] :]
    jaxpr, consts = _open(p["jaxpr"])
    order = range(p["length"])
    stacks: list[list[Nodes]] = []
    for k in reversed(order) if p["reverse"] else order:
        outs = _run(
            g, jaxpr, consts, [*fixed, *carried, *(np.asarray(c[k], object) for c in columns)]
        )
        carried, rest = outs[: p["num_carry"]], outs[p["num_carry"] :]
        stacks.append(rest)
    if p["reverse"]:
        stacks.reverse()
    empty = [np.empty(v.aval.shape, object) for v in e.outvars[p["num_carry"] :]]
    stacked = [np.stack(column) for column in zip(*stacks, strict=True)] if stacks else empty
    return [*carried, *stacked]


@rule("while")
def _while(g: Graph, e: Any, a: list[Nodes]) -> list[Nodes]:
    p = e.params
    n_test, n_body = p["cond_nconsts"], p["body_nconsts"]
    test_args, body_args, state = a[:n_test], a[n_test : n_test + n_body], a[n_test + n_body :]
    test, body = _open(p["cond_jaxpr"]), _open(p["body_jaxpr"])
    for _ in range(MAX_LINES):
        go = _run(g, *test, [*test_args, *state])[0].item()
        if isinstance(go, Node):
            raise Unsupported("while", "a loop whose length depends on values has no fused form")
        if not go:
            return state
        state = _run(g, *body, [*body_args, *state])
    raise Unsupported("while", "a loop of more steps than can be unrolled")
