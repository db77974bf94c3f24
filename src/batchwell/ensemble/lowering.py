"""A jaxpr -> scalar expressions, by running it on arrays of nodes.

Arrays of numbers become NumPy arrays of `ir` nodes; structure (slices, reshapes, gathers with
known indices) is then plain NumPy and costs nothing in the code. Loops of static length are
unrolled. `Unsupported` names what cannot be lowered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .._jax import jax
from . import rules_control, rules_maths, rules_shapes, rules_special  # noqa: F401 (they fill the table)
from .interpreter import RULES, Nodes, Unsupported, open_jaxpr, run, subjaxprs
from .ir import UNARY, Graph

__all__ = ["MAX_LINES", "RULES", "Nodes", "Unsupported", "cost", "cost_of", "inputs", "lower"]

MAX_LINES = 5_000  # seconds of compilation; beyond, far more than in proportion
CURVED = 12  # lines of an elementary function, about


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
    return run(graph, closed.jaxpr, closed.consts, leaves)


def cost_of(function: Callable[..., Any], *examples: Any) -> int:
    """`cost` of a function's jaxpr."""
    return cost(jax.make_jaxpr(function)(*examples).jaxpr)


def cost(jaxpr: Any) -> int:
    """About how many scalar operations a jaxpr unrolls to."""
    total = 0
    for eqn in jaxpr.eqns:
        repeat = int(eqn.params.get("length", 1)) if eqn.primitive.name == "scan" else 1
        inner = [open_jaxpr(v)[0] for v in subjaxprs(eqn.params)]
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
