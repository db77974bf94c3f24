"""Scalar expressions: what a jaxpr is lowered to.

A `Node` is an operation on other nodes or on Python numbers. `Graph` builds them with constant
folding and common subexpressions shared; code that nothing needs is never emitted, since
emission walks back from the outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

Scalar = Any  # a Node, or a Python float or bool


@dataclass(frozen=True, eq=False)
class Node:
    """One operation. `kind` is "f" (real), "b" (truth), or "u" (a word of 32 random bits)."""

    op: str
    args: tuple[Scalar, ...]
    kind: str
    number: int


UNARY: dict[str, Callable[[Any], Any]] = {
    "neg": np.negative, "abs": np.abs, "sqrt": np.sqrt, "exp": np.exp, "log": np.log,
    "log1p": np.log1p, "expm1": np.expm1, "tanh": np.tanh, "sin": np.sin, "cos": np.cos,
    "tan": np.tan, "atan": np.arctan, "floor": np.floor, "ceil": np.ceil, "round": np.rint,
    "sign": np.sign, "sinh": np.sinh, "cosh": np.cosh, "asin": np.arcsin, "acos": np.arccos,
    "logistic": lambda x: 1 / (1 + np.exp(-x)), "erf": math.erf, "erfc": math.erfc,
    "trunc": np.trunc, "cbrt": np.cbrt,
    "rsqrt": lambda x: 1 / np.sqrt(x), "exp2": np.exp2,
}  # fmt: skip
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
    "max": np.maximum, "min": np.minimum, "pow": np.power, "atan2": np.arctan2,
    "bit_and": lambda a, b: int(a) & int(b), "bit_or": lambda a, b: int(a) | int(b),
    "bit_xor": lambda a, b: int(a) ^ int(b),
}  # fmt: skip
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "eq": np.equal, "ne": np.not_equal,
}  # fmt: skip
LOGIC: dict[str, Callable[[Any, Any], Any]] = {
    "and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor,
}  # fmt: skip
_COMMUTES = {"add", "mul", "eq", "ne", "and", "or", "xor"}


class Graph:
    """Builds nodes; equal operations on equal arguments are one node."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Node] = {}

    def input(self, name: str, kind: str = "f") -> Node:
        """A value known only when the code runs."""
        return self._node("input", (name,), kind)

    def unary(self, op: str, a: Scalar) -> Scalar:
        """A function of one real."""
        if not isinstance(a, Node):
            return _quiet(UNARY[op], a)
        if op == "neg" and a.op == "neg":
            return a.args[0]
        if op == "exp" and (gap := self._gap_to_logaddexp(a)) is not None:
            return self.unary("logistic", gap)
        return self._node(op, (a,), "f")

    def add(self, a: Scalar, b: Scalar) -> Scalar:
        """a + b."""
        if _is(a, 0):
            return b
        if _is(b, 0):
            return a
        if isinstance(b, Node) and b.op == "neg":
            return self.sub(a, b.args[0])
        if isinstance(a, Node) and a.op == "neg":
            return self.sub(b, a.args[0])
        return self._binary("add", a, b)

    def sub(self, a: Scalar, b: Scalar) -> Scalar:
        """a - b."""
        if _is(b, 0):
            return a
        if _is(a, 0):
            return self.unary("neg", b)
        if isinstance(b, Node) and b.op == "neg":
            return self.add(a, b.args[0])
        return self._binary("sub", a, b)

    def mul(self, a: Scalar, b: Scalar) -> Scalar:
        """a * b. A product with the constant 0 is 0: masks and paddings vanish."""
        for p, q in ((a, b), (b, a)):
            if _is(p, 0):
                return 0.0
            if _is(p, 1):
                return q
            if _is(p, -1):
                return self.unary("neg", q)
        for p, q in ((a, b), (b, a)):
            if isinstance(p, Node) and p.op == "neg":
                return self.unary("neg", self.mul(p.args[0], q))
        return self._binary("mul", a, b)

    def div(self, a: Scalar, b: Scalar) -> Scalar:
        """a / b; by a constant power of two as a product, which is exact."""
        if _is(b, 1):
            return a
        if (
            isinstance(a, Node)
            and not isinstance(b, Node)
            and b
            and math.frexp(b)[0] in (0.5, -0.5)
        ):
            return self.mul(a, 1.0 / b)
        return self._binary("div", a, b)

    def other(self, op: str, a: Scalar, b: Scalar) -> Scalar:
        """max, min, pow, atan2, and bits of whole numbers."""
        return self._binary(op, a, b)

    def integer_power(self, a: Scalar, n: int) -> Scalar:
        """a**n by repeated squaring."""
        if n < 0:
            return self.div(1.0, self.integer_power(a, -n))
        out: Scalar = 1.0
        while n:
            if n & 1:
                out = self.mul(out, a)
            n >>= 1
            if n:
                a = self.mul(a, a)
        return out

    def compare(self, op: str, a: Scalar, b: Scalar) -> Scalar:
        """A truth value; of truth values too."""
        if not isinstance(a, Node) and not isinstance(b, Node):
            return bool(COMPARE[op](a, b))
        if _kind(a) == "b" or _kind(b) == "b":
            different = self.logic("xor", a, b)
            return different if op == "ne" else self.negate(different)
        return self._node(op, (a, b), "b")

    def logic(self, op: str, a: Scalar, b: Scalar) -> Scalar:
        """and, or, xor."""
        if not isinstance(a, Node) and not isinstance(b, Node):
            return bool(LOGIC[op](a, b))
        for p, q in ((a, b), (b, a)):
            if not isinstance(p, Node):
                known = {
                    ("and", False): False,
                    ("and", True): q,
                    ("or", True): True,
                    ("or", False): q,
                    ("xor", False): q,
                }
                key = (op, bool(p))
                return known[key] if key in known else self.negate(q)
        return self._node(op, (a, b), "b")

    def negate(self, a: Scalar) -> Scalar:
        """Not a."""
        if not isinstance(a, Node):
            return not a
        return a.args[0] if a.op == "not" else self._node("not", (a,), "b")

    def select(self, test: Scalar, yes: Scalar, no: Scalar) -> Scalar:
        """`yes` where `test`, else `no`."""
        if not isinstance(test, Node):
            return yes if test else no
        if yes is no or (not isinstance(yes, Node) and not isinstance(no, Node) and yes == no):
            return yes
        if _kind(yes) == "b" or _kind(no) == "b":
            one = self.logic("and", test, yes)
            return self.logic("or", one, self.logic("and", self.negate(test), no))
        return self._node("select", (test, yes, no), "f")

    def as_real(self, a: Scalar) -> Scalar:
        """A truth value as 0 or 1, a word as its number; reals unchanged."""
        if not isinstance(a, Node):
            return float(a)
        if a.kind == "b":
            return self.select(a, 1.0, 0.0)
        return self._node("from_word", (a,), "f") if a.kind == "u" else a

    def shift_right(self, a: Node, count: int) -> Scalar:
        """A random word shifted right."""
        return self._node("shift_right", (a, float(count)), "u")

    def _gap_to_logaddexp(self, a: Node) -> Scalar | None:
        """p - q when a = p - logaddexp(p, q), or q - p: what softplus and logaddexp derive to.

        Then exp(a) = logistic(p - q), at a third of the cost.
        """
        if a.op != "sub":
            return None
        left, pair = _without_infinity(a.args[0]), _logaddexp_of(_without_infinity(a.args[1]))
        if pair is None:
            return None
        for p, q in (pair, pair[::-1]):
            if p is left or (not isinstance(p, Node) and not isinstance(left, Node) and p == left):
                return self.sub(p, q)
        return None

    def _binary(self, op: str, a: Scalar, b: Scalar) -> Scalar:
        if not isinstance(a, Node) and not isinstance(b, Node):
            return _quiet(BINARY[op], a, b)
        return self._node(op, (a, b), "f")

    def _node(self, op: str, args: tuple[Scalar, ...], kind: str) -> Node:
        keys = [_key(a) for a in args]
        if op in _COMMUTES:
            keys.sort(key=str)
        found = self._known.get((op, kind, *keys))
        if found is None:
            found = Node(op, args, kind, len(self._known))
            self._known[(op, kind, *keys)] = found
        return found


def _without_infinity(a: Scalar) -> Scalar:
    """v when a is v with infinity replaced by 0."""
    if isinstance(a, Node) and a.op == "select" and _is(a.args[1], 0):
        test, v = a.args[0], a.args[2]
        if isinstance(test, Node) and test.op == "eq" and test.args == (v, math.inf):
            return v
    return a


def _logaddexp_of(a: Scalar) -> tuple[Scalar, Scalar] | None:
    """(p, q) when a is jax.numpy's logaddexp(p, q): max(p, q) + log1p(exp(-|p - q|))."""
    if isinstance(a, Node) and a.op == "select":
        a = a.args[2]  # the other branch is for p - q not a number
    if not isinstance(a, Node) or a.op != "add":
        return None
    top, rest = a.args
    for op in ("log1p", "exp", "neg", "abs"):
        if not isinstance(rest, Node) or rest.op != op:
            return None
        rest = rest.args[0]
    if not isinstance(top, Node) or top.op != "max":
        return None
    p, q = top.args
    gaps: list[tuple[str, tuple[Scalar, ...]]] = [("sub", (p, q))]
    if _is(p, 0):
        gaps.append(("neg", (q,)))
    apart = isinstance(rest, Node) and (rest.op, rest.args) in gaps
    return (p, q) if apart or (rest is p and _is(q, 0)) else None


def terms_of(output: Scalar) -> list[tuple[int, Scalar]]:
    """The signed terms of a sum, nested sums opened."""
    if isinstance(output, Node) and output.op in ("add", "sub"):
        second = 1 if output.op == "add" else -1
        left, right = terms_of(output.args[0]), terms_of(output.args[1])
        return [*left, *((second * sign, term) for sign, term in right)]
    if isinstance(output, Node) and output.op == "neg":
        return [(-sign, term) for sign, term in terms_of(output.args[0])]
    return [(1, output)]


def depends_on(output: Scalar, prefix: str) -> bool:
    """Whether an input whose name begins with `prefix` and goes on in digits is needed."""
    return any(
        n.op == "input" and n.args[0].startswith(prefix) and n.args[0][len(prefix) :].isdigit()
        for n in reachable([output])
    )


def reachable(outputs: Iterable[Scalar]) -> list[Node]:
    """The nodes that `outputs` need, in the order of their making."""
    seen: dict[int, Node] = {}
    stack = [o for o in outputs if isinstance(o, Node)]
    while stack:
        node = stack.pop()
        if node.number not in seen:
            seen[node.number] = node
            stack.extend(a for a in node.args if isinstance(a, Node))
    return [seen[k] for k in sorted(seen)]


def _kind(a: Scalar) -> str:
    if isinstance(a, Node):
        return a.kind
    return "b" if isinstance(a, (bool, np.bool_)) else "f"


def _is(a: Scalar, value: float) -> bool:
    return not isinstance(a, Node) and a == value


def _key(a: Scalar) -> Any:
    if isinstance(a, Node):
        return ("n", a.number)
    if isinstance(a, str):
        return a
    return ("c", math.copysign(1.0, a), float(a)) if a == a else ("c", "nan")


def _quiet(function: Callable[..., Any], *args: Any) -> float:
    with np.errstate(all="ignore"):
        return float(function(*(float(a) for a in args)))
