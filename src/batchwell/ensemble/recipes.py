"""Processes -> recipes: how one step of SGD or of a diffusion is written in vector code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from .._jax import jax, jnp
from ..dynamics import SGD, Diffusion, Process, diffusion_approximation
from ..loss import StochasticLoss
from ..noise import Noise
from .ir import Graph, Scalar, depends_on, terms_of
from .kernels import (
    NATIVE_LANES,
    Context,
    Expressions,
    Recipe,
    accumulate,
    descend,
    gathered,
    uniform_row,
)
from .lowering import cost_of, inputs, lower
from .step import pairs_of, platen
from .vector import Val, Var

MAX_LOADED_ROW = 64  # rows of the table up to this long are loaded whole
WIDE_BELOW = 6  # dimensions below which two registers per value pay


@dataclass(frozen=True, eq=False)
class Plan:
    """A recipe with its data.

    Attributes
    ----------
    table, weights
        Data rows (n, columns) and, for full-batch kernels, (n, 2): weight and its root.
    reals
        The real arguments of a process, by name.
    """

    recipe: Recipe
    table: np.ndarray | None
    weights: np.ndarray | None
    columns: int = 0


def reals_of(process: Process, substeps: int) -> dict[str, float]:
    """The numbers that a compiled step takes when it runs."""
    if isinstance(process, SGD):
        eta, size = process.learning_rate, process.batch_size
        if process.loss.closed_factor is not None:
            size = 1  # additive noise: a batch is one draw of its mean
        drift = 1.0 / size if process.momentum else -eta / size
        noise = 1.0 / process.batch_size
        return {"drift": drift, "eta": eta, "momentum": process.momentum, "noise": noise}
    dt = process.learning_rate / substeps
    if not from_loss(process):
        return {"drift": dt, "noise": dt**0.5, "bridge": dt}
    assert process.sgd is not None
    gain = 1.0 / (1.0 - process.sgd.momentum)
    noise = gain * (dt * process.sgd.temperature) ** 0.5
    half_eta = process.learning_rate / 2 if process.order == 2 else 0.0
    return {"drift": -dt * gain, "noise": noise, "half_eta": half_eta, "bridge": dt}


@lru_cache(maxsize=512)
def from_loss(process: Diffusion) -> bool:
    """Whether the process is what `diffusion_approximation` makes of its SGD, unaltered."""
    if process.sgd is None or process.order not in (1, 2):
        return False
    made = diffusion_approximation(process.sgd, process.order)
    same = process.learning_rate == made.learning_rate
    return (
        same
        and _same_function(process.drift, made.drift)
        and _same_function(process.factor_vector, made.factor_vector)
    )


def _same_function(f: Any, g: Any) -> bool:
    if getattr(f, "__code__", None) is not getattr(g, "__code__", 0):
        return False
    pairs = zip(f.__closure__ or (), g.__closure__ or (), strict=True)
    return all(
        a.cell_contents is b.cell_contents or _equal(a.cell_contents, b.cell_contents)
        for a, b in pairs
    )


def _equal(a: Any, b: Any) -> bool:
    return isinstance(a, (int, float)) and isinstance(b, (int, float)) and a == b


def plan_of(process: Process, scheme: str, kind: str) -> Plan:
    """The plan of a process; equal plans are made once.

    Raises
    ------
    Unsupported
        Something in the loss has no fused form.
    """
    if isinstance(process, SGD):
        momentum = process.momentum > 0
        if process.loss.noise is not None:
            single = process.batch_size == 1
            return _sampled_plan(process.loss, momentum, single)
        return _data_plan(process.loss, process.sampling, momentum, kind)
    if scheme == "platen":
        return _platen_plan(process)
    if from_loss(process):
        assert process.sgd is not None
        return _approximation_plan(process.sgd.loss, process.order, scheme)
    return _own_plan(process, scheme)


@lru_cache(maxsize=256)
def work_of(process: Process, scheme: str) -> int:
    """About how many scalar operations straight-line code of a step, or of one example, has."""
    if isinstance(process, SGD) or _over_rows(process):
        loss = process.loss if isinstance(process, SGD) else process.sgd.loss  # type: ignore[union-attr]
        example = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), loss.nodes)
        once = cost_of(jax.grad(loss.function), _point(loss.dim), example)
        return once if isinstance(process, SGD) else 2 * once
    x, xi = _point(process.dim), _point(process.noise_dim)
    if scheme == "platen":
        return cost_of(
            partial(platen, process), x, xi, _point(pairs_of(process.noise_dim)), _point()
        )
    return cost_of(process.drift, x) + cost_of(process.factor_vector, x, xi)


def _over_rows(process: Diffusion) -> bool:
    """Whether a diffusion's fields are sums over data."""
    if not from_loss(process):
        return False
    assert process.sgd is not None
    return over_rows(process.sgd.loss)


def over_rows(loss: StochasticLoss) -> bool:
    """Whether gradient and noise of a loss are best summed over its nodes, one noise for each."""
    return loss.closed_mean is None and loss.closed_factor is None and not loss.square


def _point(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float64)


# -- SGD --------------------------------------------------------------------------------------
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


@lru_cache(maxsize=256)
def data_table(loss: StochasticLoss) -> np.ndarray:
    """The nodes of a loss as one float64 table, (n, columns)."""
    leaves = [np.asarray(a) for a in jax.tree.leaves(loss.nodes)]
    return np.concatenate([a.reshape(len(a), -1).astype(np.float64) for a in leaves], axis=1)


def stride_of(columns: int, kind: str, loops: bool = False) -> int:
    """Length of a row of the table in memory: padded, if short, to be loaded by registers.

    Recipes that loop load rows of any length so.
    """
    lanes = 2 * NATIVE_LANES[kind]
    padded = loops or 2 < columns <= MAX_LOADED_ROW
    return -(-columns // lanes) * lanes if padded else columns


@lru_cache(maxsize=256)
def _data_plan(loss: StochasticLoss, sampling: str, momentum: bool, kind: str) -> Plan:
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
        with c.loop(ctx.loaded["batch"]) as b:
            z = gathered(ctx, choose(ctx, b), columns, stride)
            gradient.add(ctx, sums, x, z, one)
        size = c.splat(c.cast("sitofp", ctx.loaded["batch"], ctx.kind))
        for total, value in zip(sums, gradient.finish(ctx, sums, x, [size]), strict=True):
            total.set(value)
        descend(ctx, sums, momentum)

    recipe = Recipe(step, loss.dim, momentum, sampling != "with_replacement", wide=True)
    return Plan(recipe, data_table(loss), None, columns)


def _any_row(ctx: Context, b: Val) -> Val:
    return ctx.below(ctx.loaded["rows"])


def _order_at(ctx: Context, place: Val) -> Val:
    """Entry `place` (the same in all lanes) of every lane's order."""
    c = ctx.code
    assert ctx.order is not None
    return c.load(ctx.order, "i32", c.mul(place, c.i64(c.lanes)), c.lanes)


def _swap(ctx: Context, place: Val, other: Val) -> Val:
    """Swap entries `place` (scalar) and `other` (per lane); the entry that comes to `place`."""
    c = ctx.code
    assert ctx.order is not None
    spots = c.add(c.mul(other, c.like(c.lanes, other)), c.lane_numbers())
    a, b = _order_at(ctx, place), c.gather(ctx.order, "i32", spots)
    c.scatter(a, ctx.order, spots)
    c.store(b, ctx.order, c.mul(place, c.i64(c.lanes)))
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


@lru_cache(maxsize=256)
def _sampled_plan(loss: StochasticLoss, momentum: bool, single: bool) -> Plan:
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
            _each_example(ctx, draw, width, one)
        descend(ctx, sums, momentum)

    wide = loss.dim < WIDE_BELOW and single
    normals = width if single and loss.noise.name == "gaussian" else 0
    return Plan(Recipe(step, loss.dim, momentum, wide=wide, normals=normals), None, None)


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
            from .emit import emit

            out.append(ctx.code.real(emit(ctx.code, code.outputs, words, "f64")[0], ctx.kind))
        return out

    return draw


def _lowered_draw(law: Noise) -> Expressions:
    graph = Graph()
    words = [jax.ShapeDtypeStruct((), jnp.uint32)] * law.words
    nodes = list(inputs(graph, "w", (law.words,), "u"))
    out = lower(graph, lambda *w: law.draw(list(w), jnp), words, nodes)
    return Expressions.of(out)


def _pairs_straddle(width: int) -> bool:
    return width % 2 == 1


def _batch_mean(ctx: Context, draw: Draw, width: int, single: bool) -> list[Val]:
    """Mean noise of a batch: all that additive noise needs."""
    if single:
        return draw(ctx, 1)
    sums = ctx.zeros(width)
    _each_example(ctx, draw, width, lambda z: accumulate(ctx, sums, z, None))
    return [ctx.code.mul(ctx.real("noise"), s.get()) for s in sums]


def _each_example(ctx: Context, draw: Draw, width: int, use: Callable[[list[Val]], None]) -> None:
    """Draw a batch two examples at a time, so that a pair of normals may straddle them."""
    c, size = ctx.code, ctx.loaded["batch"]
    with c.loop(c.shift("lshr", size, 1)):
        z = draw(ctx, 2)
        use(z[:width])
        use(z[width:])
    odd = c.binary("and", size, c.i64(1))
    with c.when(c.compare("ne", odd, c.i64(0))):
        use(draw(ctx, 1))


# -- diffusions -------------------------------------------------------------------------------
Field = Callable[[Context, list[Val]], list[Val]]
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
def _platen_plan(process: Diffusion) -> Plan:
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
def _own_plan(process: Diffusion, scheme: str) -> Plan:
    drift = _lowered(process.dim, 0, lambda x, xi: process.drift(x))
    factor = _lowered(process.dim, process.noise_dim, process.factor_vector)
    return _straight_plan(drift, factor, process.dim, process.noise_dim, scheme)


def _lowered(dim: int, noise_dim: int, function: Callable[..., Any], more: int = 0) -> Expressions:
    graph = Graph()
    shapes, names = (dim, noise_dim, more), ("x", "xi", "more")
    nodes = [inputs(graph, n, (k,)) for n, k in zip(names, shapes, strict=True)]
    points = [jax.ShapeDtypeStruct((k,), jnp.float64) for k in shapes]
    keep = 3 if more else 2
    return Expressions.of(lower(graph, function, points[:keep], nodes[:keep]))


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
def _approximation_plan(loss: StochasticLoss, order: int, scheme: str) -> Plan:
    if over_rows(loss):
        return _rows_plan(loss, order, scheme)

    def drift(x: Any, xi: Any, more: Any) -> Any:
        g = loss.gradient(x)
        return g if order == 1 else g + more[0] * loss.hessian_vector(x, g)

    field = _lowered(loss.dim, 0, drift, more=1)
    factor = _lowered(loss.dim, loss.factor_dim, loss.factor_vector)
    return _straight_plan(field, factor, loss.dim, loss.factor_dim, scheme)


@dataclass(frozen=True, eq=False)
class GradientField:
    """grad F in vector code: ``write(ctx, x) -> gradient``, with its data if it loops over them."""

    write: Field
    table: np.ndarray | None = None
    weights: np.ndarray | None = None


def gradient_field(loss: StochasticLoss) -> GradientField:
    """grad F of a loss, as a loop over its data or nodes unless F has a closed form."""
    if loss.closed_mean is not None:
        code = _lowered(loss.dim, 0, lambda x, xi: loss.gradient(x))
        return GradientField(lambda ctx, x: ctx.evaluate(code, x=x))
    gradient = row_sum(loss, 1)
    return GradientField(
        lambda ctx, x: mean_gradient(ctx, gradient, x),
        data_table(loss),
        row_weights(loss),
    )


def row_weights(loss: StochasticLoss) -> np.ndarray:
    """(n, 2): weight of every node and its root."""
    weights = np.asarray(loss.weights)
    return np.stack([weights, np.sqrt(weights)], axis=1)


def _rows_plan(loss: StochasticLoss, order: int, scheme: str) -> Plan:
    """Full-batch fields as loops over the data: one pass for gradient and noise together."""
    gradient, both_sums = row_sum(loss, 1), row_sum(loss, 2)
    columns = gradient.columns
    product = _example_hessian_vector(loss) if order == 2 else None

    def corrected(ctx: Context, x: list[Val], g: list[Val]) -> list[Val]:
        if product is None:
            return g
        hg = mean_over_rows(ctx, product, columns, x=x, v=g)
        return [ctx.code.fma(ctx.real("half_eta"), h, v) for h, v in zip(hg, g, strict=True)]

    def field(ctx: Context, x: list[Val]) -> list[Val]:
        return corrected(ctx, x, mean_gradient(ctx, gradient, x))

    def both(ctx: Context, x: list[Val]) -> tuple[list[Val], list[Val]]:
        g, kick = _gradient_and_noise(ctx, both_sums, x)
        return corrected(ctx, x, g), kick

    return Plan(
        Recipe(_scheme(field, both, loss.dim, scheme), loss.dim),
        data_table(loss),
        row_weights(loss),
        columns,
    )


def _example_hessian_vector(loss: StochasticLoss) -> Expressions:
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


def _gradient_and_noise(
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
