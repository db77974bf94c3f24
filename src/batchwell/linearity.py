"""Whether a function is affine in one of its arguments, read off its jaxpr.

No numbers are tried: a "yes" is a proof, a "no" may only mean that it was not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ._jax import jax

_OTHER = 2  # degree of what is neither constant nor affine
_LINEAR = {"reshape", "squeeze", "expand_dims", "transpose", "broadcast_in_dim", "slice", "rev",
           "concatenate", "stack", "split", "pad", "reduce_sum", "cumsum", "neg", "copy", "copy_p",
           "stop_gradient", "add", "sub", "add_any", "optimization_barrier"}  # fmt: skip
_PRODUCTS = {"mul", "dot_general", "conv_general_dilated"}
_PLACED = {"gather": (0,), "dynamic_slice": (0,), "dynamic_update_slice": (0, 1),
           "scatter-add": (0, 2), "scatter_add": (0, 2), "div": (0,)}  # fmt: skip
_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def affine_in(function: Callable[..., Any], examples: Sequence[Any], argument: int) -> bool:
    """Whether ``function(*examples)`` is affine in one array argument, whatever the others are.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> point, noise = jax.ShapeDtypeStruct((2,), float), jax.ShapeDtypeStruct((2,), float)
    >>> affine_in(lambda x, z: jnp.sin(x) @ z + x @ x, (point, noise), 1)
    True
    >>> affine_in(lambda x, z: x @ jnp.sin(z), (point, noise), 1)
    False
    """
    closed = jax.make_jaxpr(function)(*examples)
    sizes = [len(jax.tree.leaves(e)) for e in examples]
    degrees = [int(k == argument) for k, size in enumerate(sizes) for _ in range(size)]
    return max(_degrees(closed.jaxpr, degrees), default=0) < _OTHER


def _degrees(jaxpr: Any, arguments: Sequence[int]) -> list[int]:
    """Degrees of a jaxpr's outputs: 0 constant, 1 affine, 2 anything else."""
    known: dict[Any, int] = dict.fromkeys(jaxpr.constvars, 0)
    known.update(zip(jaxpr.invars, arguments, strict=True))

    def degree(v: Any) -> int:
        return 0 if hasattr(v, "val") else known[v]

    for eqn in jaxpr.eqns:
        outs = _of_equation(eqn, [degree(v) for v in eqn.invars])
        known.update(zip(eqn.outvars, outs, strict=True))
    return [degree(v) for v in jaxpr.outvars]


def _of_equation(eqn: Any, given: list[int]) -> list[int]:
    name, count = eqn.primitive.name, len(eqn.outvars)
    if not any(given):
        return [0] * count
    if name in _LINEAR:
        return [max(given)] * count
    if name in _PRODUCTS:
        return [min(sum(given), _OTHER)] * count
    if name in _PLACED:
        places = [d for k, d in enumerate(given) if k not in _PLACED[name]]
        return [_OTHER if any(places) else max(given)] * count
    if name == "select_n":
        return [_OTHER if given[0] else max(given)] * count
    if name == "convert_element_type":
        return [given[0] if eqn.params["new_dtype"].kind == "f" else _OTHER]
    if name == "scan":
        return _of_scan(eqn, given)
    inner = next((eqn.params[key] for key in _CALLS if eqn.params.get(key) is not None), None)
    if inner is None or name in ("cond", "while"):
        return [_OTHER] * count
    return _degrees(getattr(inner, "jaxpr", inner), given)


def _of_scan(eqn: Any, given: list[int]) -> list[int]:
    """Degrees after every number of turns: what is carried grows until it grows no more."""
    fixed, carried = eqn.params["num_consts"], eqn.params["num_carry"]
    jaxpr = eqn.params["jaxpr"].jaxpr
    while True:
        outs = _degrees(jaxpr, given)
        grown = [max(a, b) for a, b in zip(given[fixed:], outs[:carried], strict=False)]
        if grown == given[fixed : fixed + carried]:
            return outs
        given = [*given[:fixed], *grown, *given[fixed + carried :]]
