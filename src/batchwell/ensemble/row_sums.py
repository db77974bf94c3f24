"""Sums over examples in straight-line code: gradients, noise, Hessian-vector products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .._jax import jax, jnp
from ..loss import StochasticLoss
from .ir import Graph, Scalar, depends_on, terms_of
from .kernels import Context, Expressions, accumulate, uniform_row
from .lowering import inputs, lower
from .plans import data_table, row_weights
from .vector import Val, Var

Field = Callable[[Context, list[Val]], list[Val]]


@lru_cache(maxsize=256)
def example_gradient(loss: StochasticLoss) -> tuple[Expressions, int]:
    """(gradient of one example over inputs x and z, columns of z)."""
    return _of_example(loss, jax.grad(loss.function))


@lru_cache(maxsize=64)
def example_loss(loss: StochasticLoss) -> tuple[Expressions, int]:
    """(loss of one example over inputs x and z, columns of z)."""
    return _of_example(loss, loss.function)


def _of_example(loss: StochasticLoss, function: Callable[..., Any]) -> tuple[Expressions, int]:
    graph = Graph()
    example = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), loss.nodes)
    x = inputs(graph, "x", (loss.dim,))
    z, columns = _example_nodes(graph, example)
    point = jax.ShapeDtypeStruct((loss.dim,), jnp.float64)
    return Expressions.of(lower(graph, function, (point, example), (x, z))), columns


@dataclass(frozen=True, eq=False)
class RowSum:
    """Sums over examples of weighted gradients, ready to be accumulated.

    Attributes
    ----------
    step
        ``acc + weight * gradient`` over x, z, v (the weights) and acc, without `rest`.
    rest
        Terms that do not depend on the example, over x and v (at the sums of the weights).
    columns
        Columns of z.
    """

    step: Expressions
    rest: Expressions
    columns: int

    def add(self, ctx: Context, sums: list[Var], x: list[Val], z: list[Val], v: list[Val]) -> None:
        """Take one example in."""
        acc = [s.get() for s in sums]
        values = ctx.evaluate(self.step, x=x, z=z, v=v, acc=acc)
        for total, value in zip(sums, values, strict=True):
            total.set(value)

    def finish(self, ctx: Context, sums: list[Var], x: list[Val], v: list[Val]) -> list[Val]:
        """The sums, after the last example; `v` holds the sums of the weights."""
        rest = ctx.evaluate(self.rest, x=x, v=v)
        return [ctx.code.add(s.get(), r) for s, r in zip(sums, rest, strict=True)]


@lru_cache(maxsize=256)
def row_sum(loss: StochasticLoss, weights: int) -> RowSum:
    """Sums of example gradients under so many sets of weights: (weights * d,) outputs.

    A weight enters before the derivative is taken, so that it costs one product and not d. What
    does not depend on the example, as weight decay, is linear in the weight: one term in all.
    """
    graph = Graph()
    example = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), loss.nodes)
    x, v = inputs(graph, "x", (loss.dim,)), inputs(graph, "v", (weights,))
    z, columns = _example_nodes(graph, example)
    shapes = [jax.ShapeDtypeStruct((k,), jnp.float64) for k in (loss.dim, weights)]

    def gradients(x: Any, v: Any, z: Any) -> Any:
        return [jax.grad(lambda y, w=w: w * loss.function(y, z))(x) for w in v]

    out = Expressions.of(lower(graph, gradients, (*shapes, example), (x, v, z))).outputs
    acc = inputs(graph, "acc", (len(out),))
    parts = [_parted(graph, a, o) for a, o in zip(acc, out, strict=True)]
    step, rest = (Expressions([p[k] for p in parts]) for k in range(2))
    return RowSum(step, rest, columns)


def _parted(graph: Graph, acc: Scalar, output: Scalar) -> tuple[Scalar, Scalar]:
    """(acc + the terms that depend on the example, the other terms)."""
    rest: Scalar = 0.0
    for sign, term in terms_of(output):
        if depends_on(term, "z"):
            acc = graph.add(acc, term) if sign > 0 else graph.sub(acc, term)
        else:
            rest = graph.add(rest, term) if sign > 0 else graph.sub(rest, term)
    return acc, rest


def _example_nodes(graph: Graph, example: Any) -> tuple[Any, int]:
    """Input nodes z0, z1, ... in the shapes of one example; truth values from reals."""
    leaves, tree = jax.tree.flatten(example)
    sizes = [int(np.prod(leaf.shape)) for leaf in leaves]
    flat = inputs(graph, "z", (sum(sizes),))
    arrays = []
    for leaf, part in zip(leaves, np.split(flat, np.cumsum(sizes)[:-1]), strict=True):
        if leaf.dtype == np.bool_:
            part = np.array([graph.compare("ne", v, 0.0) for v in part], object)
        arrays.append(part.reshape(leaf.shape))
    return jax.tree.unflatten(tree, arrays), sum(sizes)


@dataclass(frozen=True, eq=False)
class GradientField:
    """grad F in vector code: ``write(ctx, x) -> gradient``, with its data if it loops over them."""

    write: Field
    table: np.ndarray | None = None
    weights: np.ndarray | None = None


def gradient_field(loss: StochasticLoss) -> GradientField:
    """grad F of a loss, as a loop over its data or nodes unless F has a closed form."""
    if loss.closed_mean is not None:
        code = lowered(loss.dim, 0, lambda x, xi: loss.gradient(x))
        return GradientField(lambda ctx, x: ctx.evaluate(code, x=x))
    gradient = row_sum(loss, 1)
    return GradientField(
        lambda ctx, x: mean_gradient(ctx, gradient, x),
        data_table(loss),
        row_weights(loss),
    )


def example_hessian_vector(loss: StochasticLoss) -> Expressions:
    """Hessian of one example times a vector, over inputs x, v and z."""
    graph = Graph()
    example = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), loss.nodes)
    x, v = inputs(graph, "x", (loss.dim,)), inputs(graph, "v", (loss.dim,))
    z, _ = _example_nodes(graph, example)
    point = jax.ShapeDtypeStruct((loss.dim,), jnp.float64)

    def product(x: Any, v: Any, z: Any) -> Any:
        return jax.jvp(lambda y: jax.grad(loss.function)(y, z), (x,), (v,))[1]

    return Expressions.of(lower(graph, product, (point, point, example), (x, v, z)))


def _weight(ctx: Context, row: Val, which: int) -> Val:
    c = ctx.code
    place = c.add(c.mul(row, c.i64(2)), c.i64(which))
    return c.splat(c.load(ctx.loaded["weights"], ctx.kind, place))


def mean_over_rows(ctx: Context, code: Expressions, columns: int, **points: list[Val]) -> list[Val]:
    """Weighted sum over the data of lowered code: rows in pairs (the table is padded)."""
    c = ctx.code
    sums = ctx.zeros(len(code.outputs))
    with c.loop(c.shift("lshr", ctx.loaded["rows"], 1)) as pair:
        for k in range(2):
            row = c.add(c.mul(pair, c.i64(2)), c.i64(k))
            z = uniform_row(ctx, row, columns, columns)
            accumulate(ctx, sums, ctx.evaluate(code, z=z, **points), _weight(ctx, row, 0))
    return [s.get() for s in sums]


def mean_gradient(ctx: Context, gradient: RowSum, x: list[Val]) -> list[Val]:
    """grad F over the data: rows in pairs (the table is padded by a row of no weight)."""
    c, sums = ctx.code, ctx.zeros(len(x))
    with c.loop(c.shift("lshr", ctx.loaded["rows"], 1)) as pair:
        for k in range(2):
            row = c.add(c.mul(pair, c.i64(2)), c.i64(k))
            z = uniform_row(ctx, row, gradient.columns, gradient.columns)
            gradient.add(ctx, sums, x, z, [_weight(ctx, row, 0)])
    return gradient.finish(ctx, sums, x, [c.const(1.0, ctx.kind)])


def gradient_and_noise(
    ctx: Context, gradients: RowSum, x: list[Val]
) -> tuple[list[Val], list[Val]]:
    """(grad F, sigma xi): with r_i = sqrt(w_i) xi_i, sum r_i g_i - (sum r_i) grad F."""
    c, d = ctx.code, len(x)
    sums, total = ctx.zeros(2 * d), ctx.zeros(1)[0]
    with c.loop(c.shift("lshr", ctx.loaded["rows"], 1)) as pair:
        for k, xi in enumerate(ctx.normals(2)):
            row = c.add(c.mul(pair, c.i64(2)), c.i64(k))
            z = uniform_row(ctx, row, gradients.columns, gradients.columns)
            root = c.mul(_weight(ctx, row, 1), xi)
            gradients.add(ctx, sums, x, z, [_weight(ctx, row, 0), root])
            total.set(c.add(total.get(), root))
    whole = total.get()
    both = gradients.finish(ctx, sums, x, [c.const(1.0, ctx.kind), whole])
    minus = c.neg(whole)
    return both[:d], [c.fma(minus, m, n) for m, n in zip(both[:d], both[d:], strict=True)]


def lowered(dim: int, noise_dim: int, function: Callable[..., Any], more: int = 0) -> Expressions:
    """A function of x, a noise, and perhaps further reals, over inputs x, xi, more."""
    graph = Graph()
    shapes, names = (dim, noise_dim, more), ("x", "xi", "more")
    nodes = [inputs(graph, n, (k,)) for n, k in zip(names, shapes, strict=True)]
    points = [jax.ShapeDtypeStruct((k,), jnp.float64) for k in shapes]
    keep = 3 if more else 2
    return Expressions.of(lower(graph, function, points[:keep], nodes[:keep]))
