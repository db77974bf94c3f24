"""Processes -> recipes: how one step of SGD or of a diffusion is written in straight-line code."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache, partial
from typing import Any

from .._jax import jax, jnp
from ..dynamics import Diffusion
from ..loss import StochasticLoss
from .draws import CHOOSE, Draw, drawer, each_example, shuffle_if_due
from .ir import Graph
from .kernels import Context, Expressions, Recipe, accumulate, descend, gathered
from .lowering import inputs, lower
from .plans import (
    WIDE_BELOW,
    Plan,
    data_table,
    row_weights,
    stride_of,
)
from .row_sums import (
    Field,
    example_gradient,
    example_hessian_vector,
    gradient_and_noise,
    lowered,
    mean_gradient,
    mean_over_rows,
    row_sum,
)
from .step import pairs_of, platen
from .vector import Val


# -- SGD --------------------------------------------------------------------------------------
@lru_cache(maxsize=256)
def data_plan(loss: StochasticLoss, sampling: str, momentum: bool, single: bool, kind: str) -> Plan:
    """Minibatch SGD on a finite data set."""
    gradient = row_sum(loss, 1)
    columns = gradient.columns
    stride = stride_of(columns, kind)
    choose = CHOOSE[sampling]

    def step(ctx: Context) -> None:
        if sampling == "reshuffle":
            shuffle_if_due(ctx)
        c, sums = ctx.code, ctx.zeros(loss.dim)
        x = [v.get() for v in ctx.x]
        one = [c.const(1.0, ctx.kind)]
        with nullcontext(c.i64(0)) if single else c.loop(ctx.loaded["batch"]) as b:
            z = gathered(ctx, choose(ctx, b), columns, stride)
            gradient.add(ctx, sums, x, z, one)
        size = c.splat(c.cast("sitofp", ctx.loaded["batch"], ctx.kind))
        for total, value in zip(sums, gradient.finish(ctx, sums, x, [size]), strict=True):
            total.set(value)
        descend(ctx, sums, momentum)

    recipe = Recipe(step, loss.dim, momentum, sampling != "with_replacement", wide=True)
    return Plan(recipe, data_table(loss), None, columns)


@lru_cache(maxsize=256)
def sampled_plan(loss: StochasticLoss, momentum: bool, single: bool) -> Plan:
    """SGD whose examples are drawn from a law."""
    gradient, width = example_gradient(loss)
    assert loss.noise is not None
    draw = drawer(loss.noise, width)

    def step(ctx: Context) -> None:
        x = [v.get() for v in ctx.x]
        sums = ctx.zeros(loss.dim)

        def one(z: list[Val]) -> None:
            accumulate(ctx, sums, ctx.evaluate(gradient, x=x, z=z), None)

        if loss.closed_factor is not None:
            one(_batch_mean(ctx, draw, width, single))
        elif single:
            one(draw(ctx, 1))
        else:
            each_example(ctx, draw, width, one)
        descend(ctx, sums, momentum)

    wide = loss.dim < WIDE_BELOW and single
    normals = width if single and loss.noise.name == "gaussian" else 0
    return Plan(Recipe(step, loss.dim, momentum, wide=wide, normals=normals), None, None)


def _batch_mean(ctx: Context, draw: Draw, width: int, single: bool) -> list[Val]:
    """Mean noise of a batch: all that additive noise needs."""
    if single:
        return draw(ctx, 1)
    sums = ctx.zeros(width)
    each_example(ctx, draw, width, lambda z: accumulate(ctx, sums, z, None))
    return [ctx.code.mul(ctx.real("noise"), s.get()) for s in sums]


# -- diffusions -------------------------------------------------------------------------------
Both = Callable[[Context, list[Val]], tuple[list[Val], list[Val]]]


def _scheme(field: Field, both: Both, dim: int, scheme: str) -> Callable[[Context], None]:
    """Euler-Maruyama, or Heun in the drift (see `step._heun_step`), from the two fields."""

    def step(ctx: Context) -> None:
        c = ctx.code
        x = [v.get() for v in ctx.x]
        slope, kick = both(ctx, x)
        a, q = ctx.real("drift"), ctx.real("noise")
        kick = [c.mul(q, k) for k in kick]
        ahead = [c.fma(a, s, c.add(xi, k)) for xi, s, k in zip(x, slope, kick, strict=True)]
        if scheme == "heun":
            half = c.mul(a, c.const(0.5, ctx.kind))
            later = field(ctx, ahead)
            ahead = [
                c.fma(half, c.add(s, t), c.add(xi, k))
                for xi, s, t, k in zip(x, slope, later, kick, strict=True)
            ]
        for var, value in zip(ctx.x, ahead, strict=True):
            var.set(value)

    return step


@lru_cache(maxsize=256)
def platen_plan(process: Diffusion) -> Plan:
    """The whole step of `step.platen`, lowered."""
    dim, m = process.dim, process.noise_dim
    graph = Graph()
    shapes = {"x": (dim,), "xi": (m,), "sign": (pairs_of(m),), "dt": ()}
    nodes = [inputs(graph, name, shape) for name, shape in shapes.items()]
    points = [jax.ShapeDtypeStruct(shape, jnp.float64) for shape in shapes.values()]
    code = Expressions.of(lower(graph, partial(platen, process), points, nodes))

    def step(ctx: Context) -> None:
        c, xi = ctx.code, ctx.normals(m)
        one = c.const(1.0, ctx.kind)
        signs = [
            c.select(c.compare("sge", w, c.like(0, w)), one, c.neg(one))
            for w in (ctx.words(1)[0] for _ in range(pairs_of(m)))
        ]
        x = [v.get() for v in ctx.x]
        out = ctx.evaluate(code, x=x, xi=xi, sign=signs, dt=[ctx.real("bridge")])
        for var, value in zip(ctx.x, out, strict=True):
            var.set(value)

    return Plan(Recipe(step, dim, wide=dim < WIDE_BELOW, normals=m if m == 1 else 0), None, None)


@lru_cache(maxsize=256)
def own_plan(process: Diffusion, scheme: str) -> Plan:
    """A diffusion with fields of its own."""
    drift = lowered(process.dim, 0, lambda x, xi: process.drift(x))
    factor = lowered(process.dim, process.noise_dim, process.factor_vector)
    return _straight_plan(drift, factor, process.dim, process.noise_dim, scheme)


def _straight_plan(
    drift: Expressions, factor: Expressions, dim: int, noise_dim: int, scheme: str
) -> Plan:
    def field(ctx: Context, x: list[Val]) -> list[Val]:
        return ctx.evaluate(drift, x=x, more=[ctx.real("half_eta")])

    def both(ctx: Context, x: list[Val]) -> tuple[list[Val], list[Val]]:
        kick = ctx.evaluate(factor, x=x, xi=ctx.normals(noise_dim))
        return field(ctx, x), kick

    step = _scheme(field, both, dim, scheme)
    return Plan(Recipe(step, dim, wide=dim < WIDE_BELOW, normals=noise_dim), None, None)


@lru_cache(maxsize=256)
def closed_plan(loss: StochasticLoss, order: int, scheme: str) -> Plan:
    """The diffusion of a loss whose mean and noise have closed forms."""

    def drift(x: Any, xi: Any, more: Any) -> Any:
        g = loss.gradient(x)
        return g if order == 1 else g + more[0] * loss.hessian_vector(x, g)

    field = lowered(loss.dim, 0, drift, more=1)
    factor = lowered(loss.dim, loss.factor_dim, loss.factor_vector)
    return _straight_plan(field, factor, loss.dim, loss.factor_dim, scheme)


@lru_cache(maxsize=256)
def rows_plan(loss: StochasticLoss, order: int, scheme: str) -> Plan:
    """Full-batch fields as loops over the data: one pass for gradient and noise together."""
    gradient, both_sums = row_sum(loss, 1), row_sum(loss, 2)
    columns = gradient.columns
    product = example_hessian_vector(loss) if order == 2 else None

    def corrected(ctx: Context, x: list[Val], g: list[Val]) -> list[Val]:
        if product is None:
            return g
        hg = mean_over_rows(ctx, product, columns, x=x, v=g)
        return [ctx.code.fma(ctx.real("half_eta"), h, v) for h, v in zip(hg, g, strict=True)]

    def field(ctx: Context, x: list[Val]) -> list[Val]:
        return corrected(ctx, x, mean_gradient(ctx, gradient, x))

    def both(ctx: Context, x: list[Val]) -> tuple[list[Val], list[Val]]:
        g, kick = gradient_and_noise(ctx, both_sums, x)
        return corrected(ctx, x, g), kick

    return Plan(
        Recipe(_scheme(field, both, loss.dim, scheme), loss.dim),
        data_table(loss),
        row_weights(loss),
        columns,
    )
