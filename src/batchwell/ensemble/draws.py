"""What is drawn in a step: rows of the data in the three sampling modes, and noise."""

from __future__ import annotations

from collections.abc import Callable

from .._jax import jax, jnp
from ..noise import Noise
from .emit import emit
from .ir import Graph
from .kernels import Context, Expressions
from .lowering import inputs, lower
from .vector import Val


def _any_row(ctx: Context, b: Val) -> Val:
    return ctx.below(ctx.loaded["rows"])


def _order_at(ctx: Context, place: Val) -> Val:
    """Entry `place` (the same in all lanes) of every lane's order."""
    c = ctx.code
    assert ctx.order is not None
    return c.load(ctx.order, "i32", c.strided(place), c.lanes)


def _swap(ctx: Context, place: Val, other: Val) -> Val:
    """Swap entries `place` (scalar) and `other` (per lane); the entry that comes to `place`."""
    c = ctx.code
    assert ctx.order is not None
    spots = c.add(c.strided(other), c.lane_numbers())
    a, b = _order_at(ctx, place), c.gather(ctx.order, "i32", spots)
    c.scatter(a, ctx.order, spots)
    c.store(b, ctx.order, c.strided(place))
    return b


def _subset_row(ctx: Context, b: Val) -> Val:
    """Partial Fisher-Yates, as in `rng.subset_first`."""
    c = ctx.code
    offset = ctx.below(c.sub(ctx.loaded["rows"], b))
    return c.cast("zext", _swap(ctx, b, c.add(c.splat(b), offset)), "i64")


def _epoch_position(ctx: Context) -> Val:
    c = ctx.code
    assert ctx.step is not None
    per_epoch = c.binary("sdiv", ctx.loaded["rows"], ctx.loaded["batch"])
    return c.binary("srem", ctx.step, per_epoch)


def shuffle_if_due(ctx: Context) -> None:
    """At the start of an epoch, a fresh order."""
    c, n = ctx.code, ctx.loaded["rows"]
    with (
        c.when(c.compare("eq", _epoch_position(ctx), c.i64(0))),
        c.loop(c.sub(n, c.i64(1))) as k,
    ):
        last = c.sub(c.sub(n, c.i64(1)), k)
        _swap(ctx, last, ctx.below(c.add(last, c.i64(1))))


def _epoch_row(ctx: Context, b: Val) -> Val:
    c = ctx.code
    place = c.add(c.mul(_epoch_position(ctx), ctx.loaded["batch"]), b)
    return c.cast("zext", _order_at(ctx, place), "i64")


CHOOSE: dict[str, Callable[[Context, Val], Val]] = {
    "with_replacement": _any_row,
    "without_replacement": _subset_row,
    "reshuffle": _epoch_row,
}


Draw = Callable[[Context, int], list[Val]]


def drawer(law: Noise, width: int) -> Draw:
    """``draw(ctx, examples)``: the noise of that many examples, flat."""
    if law.name == "gaussian":
        return lambda ctx, examples: ctx.normals(width * examples)
    code = _lowered_draw(law)

    def draw(ctx: Context, examples: int) -> list[Val]:
        out = []
        for _ in range(width * examples):
            words = {f"w{k}": w for k, w in enumerate(ctx.words(law.words))}
            out.append(ctx.code.real(emit(ctx.code, code.outputs, words, "f64")[0], ctx.kind))
        return out

    return draw


def _lowered_draw(law: Noise) -> Expressions:
    graph = Graph()
    words = [jax.ShapeDtypeStruct((), jnp.uint32)] * law.words
    nodes = list(inputs(graph, "w", (law.words,), "u"))
    out = lower(graph, lambda *w: law.draw(list(w), jnp), words, nodes)
    return Expressions.of(out)


def each_example(ctx: Context, draw: Draw, width: int, use: Callable[[list[Val]], None]) -> None:
    """Draw a batch two examples at a time, so that a pair of normals may straddle them."""
    c, size = ctx.code, ctx.loaded["batch"]
    with c.loop(c.shift("lshr", size, 1)):
        z = draw(ctx, 2)
        use(z[:width])
        use(z[width:])
    odd = c.binary("and", size, c.i64(1))
    with c.when(c.compare("ne", odd, c.i64(0))):
        use(draw(ctx, 1))
