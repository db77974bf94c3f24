"""A function of one point, lowered and run over many: the lowering by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._jax import jax, jnp
from .fused import DTYPE, KIND, Arguments, blocked, unblocked
from .ir import Graph
from .kernels import Context, Expressions, Recipe, context_of, each_block, load_block
from .loop_arrays import View, size_of
from .loop_program import Program
from .lowering import inputs, lower
from .native import compile_kernel
from .vector import Val, module


def mapped(
    function: Callable[[Any], Any], dim: int, precision: str = "float64", loops: bool = False
) -> Callable[[ArrayLike], np.ndarray]:
    """``points (M, dim) -> values (M, k)``, k the number of entries of ``function(x)``.

    With `loops`, by array code instead of straight-line code.

    Raises
    ------
    lowering.Unsupported
        Something in the function has no fused form.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> mapped(lambda x: jnp.sum(x**2), dim=2)([[3.0, 4.0], [0.0, 1.0]]).tolist()
    [[25.0], [1.0]]
    """
    graph, kind = Graph(), KIND[precision]
    point = jax.ShapeDtypeStruct((dim,), jnp.float64)
    recipe = Recipe(lambda ctx: None, dim, loops=loops)
    code: Expressions | Program
    if loops:
        code = Program(function, point)
        size = sum(int(np.prod(shape)) for shape in code.outputs)
    else:
        code = Expressions.of(lower(graph, function, (point,), (inputs(graph, "x", (dim,)),)))
        size = len(code.outputs)
    call = compile_kernel(_source(code, recipe, kind), "mapped")

    def run(points: ArrayLike) -> np.ndarray:
        x = np.atleast_2d(np.asarray(points, np.float64))
        blocks = blocked(x, recipe.lanes(kind), DTYPE[kind])
        out = np.empty((len(blocks), size, recipe.lanes(kind)), DTYPE[kind])
        rng = np.zeros((len(blocks), 4, recipe.lanes(kind)), np.uint32)
        args = Arguments.of(
            x=blocks,
            rng=rng,
            points=out,
            blocks=len(blocks),
            queue=np.zeros(1, np.int64),
            reals=np.zeros(8),
        )
        call(args.values)
        return unblocked(out, len(x), np.float64)

    return run


def _source(code: Expressions | Program, recipe: Recipe, kind: str) -> str:
    ctx = context_of("mapped", recipe, kind, gpu=False)
    out = ctx.address("points")
    with each_block(ctx):
        load_block(ctx, recipe)
        if isinstance(code, Program):
            _store_arrays(ctx, code, out)
        else:
            _store_values(ctx, code, out)
    return module([ctx.code])


def _store_values(ctx: Context, code: Expressions, out: Val) -> None:
    c = ctx.code
    assert ctx.block is not None
    values = ctx.evaluate(code, x=[v.get() for v in ctx.x])
    base = c.mul(ctx.block, c.i64(len(values) * c.lanes))
    for k, v in enumerate(values):
        if v.kind == "i1":
            v = c.cast("uitofp", v, ctx.kind)
        c.store(v, out, c.add(base, c.i64(k * c.lanes)))


def _store_arrays(ctx: Context, code: Program, out: Val) -> None:
    c, w = ctx.code, ctx.arrays()
    assert ctx.block is not None
    values = code.write(w, ctx.array("x"))
    sizes = [size_of(v) for v in values]
    base = c.mul(ctx.block, c.i64(sum(sizes) * c.lanes))
    target = w.at(c.at(out, ctx.kind, base), sum(sizes))
    for value, start in zip(values, np.cumsum([0, *sizes]), strict=False):
        w.store(value, View(target, start + np.arange(size_of(value))))
