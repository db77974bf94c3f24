"""What runs a jaxpr on arrays of nodes: the table of rules, and the loop over equations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .._jax import jax, jnp
from .ir import Graph, Scalar

Nodes = np.ndarray  # of dtype object


class Unsupported(Exception):
    """A jaxpr that cannot become scalar code: `primitive` says why."""

    def __init__(self, primitive: str, reason: str = "") -> None:
        self.primitive = primitive
        super().__init__(reason or f"'{primitive}' has no fused form")


def subjaxprs(params: dict[str, Any]) -> list[Any]:
    """The jaxprs among the parameters of an equation."""
    found: list[Any] = []
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr", "body_jaxpr", "branches"):
        value = params.get(key)
        if value is not None:
            found.extend(value if isinstance(value, (tuple, list)) else [value])
    return found


def open_jaxpr(sub: Any) -> tuple[Any, Sequence[Any]]:
    """(jaxpr, constants) of a closed jaxpr or a plain one."""
    return (sub.jaxpr, sub.consts) if hasattr(sub, "jaxpr") else (sub, ())


def run(graph: Graph, jaxpr: Any, consts: Sequence[Any], args: Sequence[Nodes]) -> list[Nodes]:
    """Outputs of a jaxpr on arrays of nodes."""
    env: dict[Any, Nodes] = {}

    def read(v: Any) -> Nodes:
        return constant(v.val) if hasattr(v, "val") else env[v]  # a literal

    for var, const in zip(jaxpr.constvars, consts, strict=True):
        env[var] = constant(const)
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


def constant(value: Any) -> Nodes:
    """An array of numbers as nodes."""
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


def each(function: Callable[..., Scalar], *arrays: Nodes) -> Nodes:
    """`function` of every entry."""
    if len(arrays) > 1:
        arrays = tuple(np.broadcast_arrays(*arrays))
    out = np.empty(arrays[0].shape, object)
    flat = out.reshape(-1)
    for k, values in enumerate(zip(*(a.ravel() for a in arrays), strict=True)):
        flat[k] = function(*values)
    return out


def is_integer(eqn: Any) -> bool:
    """Whether an equation is about whole numbers."""
    return bool(np.issubdtype(eqn.invars[0].aval.dtype, np.integer))
