"""The kernel that runs steps, and sums observables up along the way if asked."""

from __future__ import annotations

from collections.abc import Callable

from .kernels import Context, Recipe, load_block, store_block, take_from
from .vector import Code, Val, module
from .watching import Watch, watching_of


def advance_source(
    recipe: Recipe, kind: str, watch: Watch | None = None, lanes: int = 0, linkage: str = ""
) -> str:
    """LLVM text of ``advance``: every block of paths runs `steps` steps, watched if asked.

    With one lane it is the program of one thread of a GPU.
    """
    c = Code("advance", ["args"], lanes or recipe.lanes(kind), linkage)
    ctx = Context(c, kind, recipe.dim, recipe.generator)
    ctx.read_reals()
    steps, first, blocks = ctx.whole("steps"), ctx.whole("first"), ctx.whole("blocks")
    last = c.add(first, steps)
    with c.repeat() as done:
        ctx.block = take_from(c, ctx.address("queue"))
        c.leave_if(c.compare("sge", ctx.block, blocks), done)
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
