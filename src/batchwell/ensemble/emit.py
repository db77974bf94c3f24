"""Scalar expressions -> vector code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from . import elementary
from .ir import COMPARE, Node, Scalar, reachable
from .vector import Code, Val

_PREDICATE = {"lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge", "eq": "oeq", "ne": "une"}


def emit(c: Code, outputs: Sequence[Scalar], inputs: dict[str, Val], kind: str) -> list[Val]:
    """Code for `outputs` in reals of `kind`, given the values of the input nodes by name."""
    nodes = reachable(outputs)
    uses = Counter(a.number for n in nodes for a in n.args if isinstance(a, Node))
    uses.update(o.number for o in outputs if isinstance(o, Node))
    done: dict[int, Val] = {}

    def value(a: Scalar, like: str = "f") -> Val:
        if isinstance(a, Node):
            if a.number not in done:
                done[a.number] = _operation(c, a, kind, value)
            return done[a.number]
        if isinstance(a, bool) or like == "b":
            return c.const(float(a), "i1")
        return c.const(float(a), kind)

    for node in nodes:
        if node.op == "input":
            done[node.number] = inputs[str(node.args[0])]
        elif not _fused_later(node, uses):
            value(node)
    return [value(o) for o in outputs]


def _fused_later(node: Node, uses: Counter[int]) -> bool:
    """A product used once: left to its sum, which may take it as a multiply-add."""
    return node.op == "mul" and uses[node.number] == 1


def _operation(c: Code, n: Node, kind: str, value) -> Val:  # type: ignore[no-untyped-def]
    if n.op in ("add", "sub"):
        return _sum(c, n, value)
    if n.op in elementary.FUNCTIONS:
        return elementary.apply(c, n.op, value(n.args[0]))
    if n.op in COMPARE:
        return _comparison(c, n, value)
    if n.op == "select":
        return c.select(value(n.args[0]), value(n.args[1]), value(n.args[2]))
    if n.op in ("and", "or", "xor"):
        return c.binary(n.op, value(n.args[0], "b"), value(n.args[1], "b"))
    if n.op == "not":
        a = value(n.args[0])
        return c.binary("xor", a, c.const(1, "i1"))
    if n.op == "shift_right":
        return c.shift("lshr", value(n.args[0]), int(n.args[1]))
    if n.op == "from_word":
        return c.cast("uitofp", value(n.args[0]), kind)
    return _two_reals(c, n, value)


def _comparison(c: Code, n: Node, value) -> Val:  # type: ignore[no-untyped-def]
    first = value(n.args[0])
    if first.kind == "i32":  # random words are compared with whole numbers
        words = {"eq": "eq", "ne": "ne", "lt": "ult", "le": "ule", "gt": "ugt", "ge": "uge"}
        return c.compare(words[n.op], first, c.like(float(n.args[1]), first))
    return c.compare(_PREDICATE[n.op], first, value(n.args[1]))


def _two_reals(c: Code, n: Node, value) -> Val:  # type: ignore[no-untyped-def]
    a, b = value(n.args[0]), value(n.args[1])
    if n.op == "mul":
        return c.mul(a, b)
    if n.op == "div":
        return c.div(a, b)
    if n.op in ("max", "min"):
        return c.call("maximum" if n.op == "max" else "minimum", a, b)
    if n.op.startswith("bit_"):
        whole = [c.cast("fptosi", v, "i64") for v in (a, b)]
        return c.cast("sitofp", c.binary(n.op.removeprefix("bit_"), *whole), a.kind)
    function = {"pow": elementary.power, "atan2": elementary.atan2}[n.op]
    wide = function(c, c.real(a, "f64"), c.real(b, "f64"))
    return c.real(wide, a.kind)


def _sum(c: Code, n: Node, value) -> Val:  # type: ignore[no-untyped-def]
    a, b = n.args
    if isinstance(a, Node) and a.op == "mul":
        p, q, r = value(a.args[0]), value(a.args[1]), value(b)
        return c.fma(p, q, r if n.op == "add" else c.neg(r))
    if isinstance(b, Node) and b.op == "mul":
        p, q, r = value(b.args[0]), value(b.args[1]), value(a)
        return c.fma(p if n.op == "add" else c.neg(p), q, r)
    left, right = value(a), value(b)
    return c.add(left, right) if n.op == "add" else c.sub(left, right)
