"""The kernel that runs steps, and sums observables up along the way if asked."""

from __future__ import annotations

from collections.abc import Callable

from .kernels import Context, Recipe, context_of, each_block, load_block, store_block
from .vector import Val, module
from .watching import Watch, watching_of


def advance_source(recipe: Recipe, kind: str, watch: Watch | None = None, gpu: bool = False) -> str:
    """LLVM text of ``advance``: every block of paths runs `steps` steps, watched if asked."""
    ctx = context_of("advance", recipe, kind, gpu)
    c, first = ctx.code, ctx.whole("first")
    last = c.add(first, ctx.whole("steps"))
    with each_block(ctx):
        load_block(ctx, recipe)
        watching = watching_of(ctx, watch) if watch else None
        seen = watching.see if watching else lambda: None
        if recipe.shares(kind):
            _run_in_pairs(ctx, recipe, first, last, seen)
        else:
            with c.loop(last, first) as k:
                ctx.step = k
                recipe.step(ctx)
                seen()
        store_block(ctx)
        if watching:
            watching.store()
    return module([c])


def _run_in_pairs(
    ctx: Context, recipe: Recipe, first: Val, last: Val, seen: Callable[[], None]
) -> None:
    """Steps `first` ... `last` - 1 that share normals two by two (see `Recipe.shares`)."""
    c = ctx.code
    odd_start = c.binary("and", first, c.i64(1))
    with c.when(c.compare("slt", first, last)):
        with c.when(c.compare("ne", odd_start, c.i64(0))):
            ctx.supply = ctx.normals(2 * recipe.normals)[recipe.normals :]
            recipe.step(ctx)
            seen()
        even = c.add(first, odd_start)
        left = c.sub(last, even)
        with c.loop(c.shift("lshr", left, 1)):
            ctx.supply = ctx.normals(2 * recipe.normals)
            recipe.step(ctx)
            seen()
            recipe.step(ctx)
            seen()
        with c.when(c.compare("ne", c.binary("and", left, c.i64(1)), c.i64(0))):
            before = [v.get() for v in ctx.rng]
            ctx.supply = ctx.normals(2 * recipe.normals)[: recipe.normals]
            for var, value in zip(ctx.rng, before, strict=True):
                var.set(value)
            recipe.step(ctx)
            seen()
