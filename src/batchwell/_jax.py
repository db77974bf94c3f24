"""The one door to JAX: float64 is switched on before any array exists.

Every module that computes with JAX imports `jax` and `jnp` from here, so that no
number in this library is ever a silent float32.

XLA of jaxlib 0.10 fuses a small matrix product into the sum that follows by a library (YNN) whose
CPU kernels go wrong: ``jit(vmap(lambda x: sum((m @ x) ** 2)))`` of 32768 points in 3 dimensions is off by
its own size. That fusion is switched off before XLA starts.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from .errors import InputError

# Without this, JAX warns about missing accelerators on the plain machines that we serve.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

_FUSION = "--xla_cpu_experimental_ynn_fusion_type"
# XLA ends the process at a flag that it does not know: only where the fault was seen.
if version("jaxlib").startswith("0.10.") and _FUSION not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FUSION}=".strip()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

jax.config.update("jax_enable_x64", True)

# XLA on the CPU runs a computation, and the pieces that it is split into, on the same few threads:
# callers from as many threads as there are cores can wait for each other for ever (seen with
# batched LAPACK calls on two cores). Fused kernels do not go through XLA and need no lock.
XLA_LOCK = threading.RLock()


def serial(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """`compiled`, one call at a time over all threads, waiting for its result."""

    def call(*arguments: Any) -> Any:
        with XLA_LOCK:
            return jax.block_until_ready(compiled(*arguments))

    return call


def traced(key: str, function: Callable[..., Any], *examples: Any, call: str = "x") -> Any:
    """Shapes of what a user's function returns (pytree), by tracing; `call` names its arguments.

    Raises
    ------
    InputError
        It cannot be traced: Python branches on values, NumPy functions, wrong shapes. An entry is read
        past the end of an array, which JAX itself replaces by the last one without a word.
    """
    try:
        written, out = jax.make_jaxpr(function, return_shape=True)(*examples)
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            key, text, f"must accept {call} in jax.numpy, without Python branches on values"
        ) from error
    past = _past_the_end(written.jaxpr)
    if past:
        raise InputError(key, past, f"must not read past the end of its arguments: {call}")
    return out


# What a fixed index outside of its axis is made of; one inside becomes a plain slice.
_INDEX = ("lt", "add", "select_n", "convert_element_type")


def _past_the_end(jaxpr: Any) -> str:
    """The first fixed index outside of its axis, in words; empty if there is none."""
    known: dict[Any, Any] = {}

    def value(v: Any) -> Any:
        return v.val if hasattr(v, "val") else known.get(v)

    for eqn in jaxpr.eqns:
        name, values = eqn.primitive.name, [value(v) for v in eqn.invars]
        if name in _INDEX and all(v is not None for v in values):
            known[eqn.outvars[0]] = eqn.primitive.bind(*values, **eqn.params)
        if name == "dynamic_slice":
            lengths, sizes = eqn.invars[0].aval.shape, eqn.params["slice_sizes"]
            for at, length, size in zip(values[1:], lengths, sizes, strict=True):
                if at is not None and not 0 <= int(at) <= length - size:
                    return f"index {int(at)} of {length} entries"
        for inner in eqn.params.values():
            closed = getattr(inner, "jaxpr", inner)
            found = _past_the_end(closed) if hasattr(closed, "eqns") else ""
            if found:
                return found
    return ""


__all__ = ["XLA_LOCK", "jax", "jnp", "serial", "traced"]
