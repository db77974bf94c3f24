"""Recipes of large problems: one step of SGD or of a diffusion as array code.

The same random bits in the same order as straight-line code, and the same sums but for their
order: examples are taken several at a time, so that a parameter once loaded serves them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from .._jax import jax, jnp
from ..dynamics import Diffusion
from ..loss import StochasticLoss
from .draws import CHOOSE, drawer, shuffle_if_due
from .kernels import Context, Recipe, transposed
from .loop_arrays import Buffer, Known, Lazy, Loops, Value, View
from .loop_program import Program
from .plans import Plan, data_table, point, row_weights, stride_of
from .step import pairs_of, platen
from .vector import Val

MAX_SHARED = 15
TOGETHER = (32, 8, 1)  # examples taken at a time: as many as are left


def _shapes(loss: StochasticLoss, rows: int) -> Any:
    """Shapes of `rows` examples."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((rows, *a.shape[1:]), a.dtype), loss.nodes)


# -- examples ---------------------------------------------------------------------------------
def _examples(
    w: Loops, loss: StochasticLoss, buffer: Buffer, rows: int, stride: int
) -> list[Value]:
    """Rows of the data table in a buffer, as the leaves of that many examples."""
    out: list[Value] = []
    column = 0
    for leaf in jax.tree.leaves(loss.nodes):
        width = int(np.prod(leaf.shape[1:]))
        places = np.arange(rows)[:, None] * stride + column + np.arange(width)
        out.append(w.leaf(buffer, places, (rows, *leaf.shape[1:]), leaf.dtype == np.bool_))
        column += width
    return out


def _in_groups(
    ctx: Context, total: Val, sizes: Sequence[int], use: Callable[[Val, int], None]
) -> None:
    """``use(first, size)`` for 0 ... total - 1 in groups of the given sizes, largest first."""
    c = ctx.code
    done = c.i64(0)
    for size in sizes:
        groups = c.binary("sdiv", c.sub(total, done), c.i64(size))
        with c.loop(groups) as k:
            use(c.add(done, c.mul(k, c.i64(size))), size)
        done = c.add(done, c.mul(groups, c.i64(size)))


def _gather_rows(
    ctx: Context, choose: Callable[[Context, Val], Val], first: Val, rows: int, buffer: Buffer,
    stride: int,
) -> None:  # fmt: skip
    """Chosen rows of the data table, of every lane its own, into a buffer (rows, stride)."""
    c, w = ctx.code, ctx.arrays()
    with c.loop(c.i64(rows)) as b:
        index = choose(ctx, c.add(first, b))
        base = c.mul(index, c.like(stride, index))
        with c.loop(c.i64(stride // c.lanes)) as part:
            column = c.mul(part, c.i64(c.lanes))
            place = c.add(c.mul(b, c.i64(stride)), column)
            for k, value in enumerate(transposed(ctx, base, column)):
                w.put(value, buffer, c.add(place, c.i64(k)))


def fill_draws(ctx: Context, draw: Callable[[Context, int], list[Val]], buffer: Buffer) -> None:
    """Draws into a buffer, two by two: normals come in pairs."""
    c, w = ctx.code, ctx.arrays()
    if ctx.supply:  # drawn ahead, for two steps together
        for k, value in enumerate(draw(ctx, buffer.size)):
            w.put(value, buffer, c.i64(k))
        return
    with c.loop(c.i64(buffer.size // 2)) as pair:
        for k, value in enumerate(draw(ctx, 2)):
            w.put(value, buffer, c.add(c.mul(pair, c.i64(2)), c.i64(k)))
    if buffer.size % 2:
        w.put(draw(ctx, 1)[0], buffer, c.i64(buffer.size - 1))


def _shared(count: int) -> int:
    """`Recipe.normals` of a step with so many; few enough to be kept in registers."""
    return count if count <= MAX_SHARED else 0


def _normals(ctx: Context, count: int) -> Lazy:
    buffer = ctx.arrays().take(count)
    fill_draws(ctx, lambda context, k: context.normals(k), buffer)
    return ctx.arrays().whole(buffer, (count,))


def _zeros(w: Loops, count: int) -> Buffer:
    buffer = w.take(count)
    w.store(Known(np.zeros(count)), View(buffer, np.arange(count)))
    return buffer


def _descend(ctx: Context, gradient: Value, momentum: bool) -> None:
    """As `kernels.descend`."""
    w = ctx.arrays()
    g = w.graph
    a, eta, mu = (w.register(ctx.real(name)) for name in ("drift", "eta", "momentum"))
    x, shape = ctx.array("x"), (ctx.dim,)
    if not momentum:
        new = w.combine(lambda x, a, v: g.add(x, g.mul(a, v)), [x, a, gradient], shape)
        w.assign(new, ctx.places["x"])
        return
    velocity = w.combine(
        lambda m, v, a, s: g.add(g.mul(m, v), g.mul(a, s)),
        [mu, ctx.array("velocity"), a, gradient],
        shape,
    )
    w.assign(velocity, ctx.places["velocity"])
    new = w.combine(lambda x, e, v: g.sub(x, g.mul(e, v)), [x, eta, ctx.array("velocity")], shape)
    w.assign(new, ctx.places["x"])


@lru_cache(maxsize=256)
def _gradients(loss: StochasticLoss, rows: int) -> Program:
    """(x, v, z...) -> gradient of the sum over `rows` examples of v_i loss_i."""

    def gradient(x: Any, v: Any, z: Any) -> Any:
        each = jax.vmap(loss.function, in_axes=(None, 0))
        return jax.grad(lambda y: jnp.dot(v, each(y, z)))(x)

    return Program(gradient, point(loss.dim), point(rows), _shapes(loss, rows))


# -- SGD --------------------------------------------------------------------------------------
@lru_cache(maxsize=256)
def data_plan(loss: StochasticLoss, sampling: str, momentum: bool, single: bool, kind: str) -> Plan:
    """Minibatch SGD on a finite data set."""
    table = data_table(loss)
    columns, choose = table.shape[1], CHOOSE[sampling]
    stride = stride_of(columns, kind, True)
    programs = {rows: _gradients(loss, rows) for rows in ((1,) if single else TOGETHER)}

    def gradient_of(ctx: Context, first: Val, rows: int) -> Value:
        w = ctx.arrays()
        held = w.take(rows * stride)
        _gather_rows(ctx, choose, first, rows, held, stride)
        z = _examples(w, loss, held, rows, stride)
        return programs[rows].write(w, ctx.array("x"), Known(np.ones(rows)), *z)[0]

    def step(ctx: Context) -> None:
        w = ctx.arrays()
        if sampling == "reshuffle":
            shuffle_if_due(ctx)
        if single:
            _descend(ctx, gradient_of(ctx, ctx.code.i64(0), 1), momentum)
            return
        total = _zeros(w, loss.dim)
        _in_groups(
            ctx,
            ctx.loaded["batch"],
            TOGETHER,
            lambda first, rows: w.add(gradient_of(ctx, first, rows), total),
        )
        _descend(ctx, w.whole(total, (loss.dim,)), momentum)

    ordered = sampling != "with_replacement"
    return Plan(Recipe(step, loss.dim, momentum, ordered, loops=True), table, None, columns)


@lru_cache(maxsize=256)
def sampled_plan(loss: StochasticLoss, momentum: bool, single: bool) -> Plan:
    """SGD whose examples are drawn from a law."""
    assert loss.noise is not None
    draw, width = drawer(loss.noise, 1), loss.noise_dim
    closed = loss.closed_factor is not None
    sizes = (1,) if single else (2, 1) if closed else (TOGETHER[0], 2, 1)
    programs = {} if closed else {rows: _gradients(loss, rows) for rows in sizes}
    at_mean = Program(jax.grad(loss.function), point(loss.dim), point(width)) if closed else None

    def step(ctx: Context) -> None:
        w = ctx.arrays()
        x, total = ctx.array("x"), _zeros(w, width if closed else loss.dim)

        def take_in(first: Val, rows: int) -> None:
            drawn = w.take(rows * width)
            fill_draws(ctx, draw, drawn)
            if closed:
                for k in range(rows):
                    w.add(w.leaf(drawn, k * width + np.arange(width), (width,)), total)
                return
            z = w.whole(drawn, (rows, width))
            (part,) = programs[rows].write(w, x, Known(np.ones(rows)), z)
            w.add(part, total)

        _in_groups(ctx, ctx.loaded["batch"], sizes, take_in)
        gradient: Value = w.whole(total, (width if closed else loss.dim,))
        if at_mean is not None:
            share = w.register(ctx.real("noise"))
            mean = w.combine(w.graph.mul, [share, gradient], (width,))
            (gradient,) = at_mean.write(w, x, w.store(mean))
        _descend(ctx, gradient, momentum)

    normals = _shared(width) if single and loss.noise.name == "gaussian" else 0
    return Plan(Recipe(step, loss.dim, momentum, normals=normals, loops=True), None, None)


# -- diffusions -------------------------------------------------------------------------------
Fields = Callable[[Any, Any, Any], tuple[Any, Any]]


def _scheme(field: Callable[[Any, Any], Any], factor: Callable[[Any, Any], Any], heun: bool) -> Any:
    """One step in jax.numpy from the real arguments of `plans.reals_of`."""

    def step(x: Any, xi: Any, a: Any, q: Any, half_eta: Any) -> Any:
        slope, kick = field(x, half_eta), q * factor(x, xi)
        ahead = x + a * slope + kick
        if not heun:
            return ahead
        return x + 0.5 * a * (slope + field(ahead, half_eta)) + kick

    return step


def _program_plan(
    field: Callable[[Any, Any], Any], factor: Callable[[Any, Any], Any], dim: int, noise: int,
    scheme: str,
) -> Plan:  # fmt: skip
    shapes = (point(dim), point(noise), point(), point(), point())
    program = Program(_scheme(field, factor, scheme == "heun"), *shapes)

    def step(ctx: Context) -> None:
        w, xi = ctx.arrays(), _normals(ctx, noise)
        reals = [w.register(ctx.real(name)) for name in ("drift", "noise", "half_eta")]
        (new,) = program.write(w, ctx.array("x"), xi, *reals)
        w.assign(new, ctx.places["x"])

    return Plan(Recipe(step, dim, normals=_shared(noise), loops=True), None, None)


@lru_cache(maxsize=256)
def own_plan(process: Diffusion, scheme: str) -> Plan:
    """A diffusion with fields of its own."""
    return _program_plan(
        lambda x, h: process.drift(x), process.factor_vector, process.dim, process.noise_dim, scheme
    )


@lru_cache(maxsize=256)
def closed_plan(loss: StochasticLoss, order: int, scheme: str) -> Plan:
    """The diffusion of a loss whose mean and noise have closed forms."""

    def field(x: Any, half_eta: Any) -> Any:
        g = loss.gradient(x)
        return g if order == 1 else g + half_eta * loss.hessian_vector(x, g)

    return _program_plan(field, loss.factor_vector, loss.dim, loss.factor_dim, scheme)


@lru_cache(maxsize=256)
def platen_plan(process: Diffusion) -> Plan:
    """The whole step of `step.platen`."""
    dim, m = process.dim, process.noise_dim
    shapes = (point(dim), point(m), point(pairs_of(m)), point())
    program = Program(partial(platen, process), *shapes)

    def step(ctx: Context) -> None:
        c, w = ctx.code, ctx.arrays()
        xi, signs = _normals(ctx, m), w.take(max(pairs_of(m), 1))
        one = c.const(1.0, ctx.kind)
        with c.loop(c.i64(pairs_of(m))) as k:
            (word,) = ctx.words(1)
            plus = c.compare("sge", word, c.like(0, word))
            w.put(c.select(plus, one, c.neg(one)), signs, k)
        drawn = w.leaf(signs, np.arange(pairs_of(m)), (pairs_of(m),))
        (new,) = program.write(w, ctx.array("x"), xi, drawn, w.register(ctx.real("bridge")))
        w.assign(new, ctx.places["x"])

    return Plan(Recipe(step, dim, normals=m if m == 1 else 0, loops=True), None, None)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows of the data table that are the same in all lanes, and their weights."""

    loss: StochasticLoss
    columns: int

    def read(self, ctx: Context, first: Val, rows: int) -> tuple[list[Value], list[Lazy]]:
        """(examples, [weights, their roots]) of `rows` rows."""
        c, w = ctx.code, ctx.arrays()
        table = c.at(ctx.loaded["table"], ctx.kind, c.mul(first, c.i64(self.columns)))
        weights = c.at(ctx.loaded["weights"], ctx.kind, c.mul(first, c.i64(2)))
        held = w.at(weights, 2 * rows, True)
        pair = [w.leaf(held, np.arange(rows) * 2 + k, (rows,)) for k in range(2)]
        data = w.at(table, rows * self.columns, True)
        return _examples(w, self.loss, data, rows, self.columns), pair


GROUPS = (TOGETHER[0], 2)  # the table is padded to an even number of rows


def mean_over_rows(
    ctx: Context, loss: StochasticLoss, programs: dict[int, Program], x: Value, *more: Value
) -> Lazy:
    """Sum over the data of programs of (x, weights, *more, examples)."""
    w = ctx.arrays()
    columns = data_table(loss).shape[1]
    size = int(np.prod(programs[2].outputs[0]))
    total, rows_of = _zeros(w, size), _Rows(loss, columns)

    def take_in(first: Val, rows: int) -> None:
        z, (weights, _) = rows_of.read(ctx, first, rows)
        (part,) = programs[rows].write(w, x, weights, *more, *z)
        w.add(w.store(part) if not part.shape else part, total)

    _in_groups(ctx, ctx.loaded["rows"], GROUPS, take_in)
    return w.whole(total, programs[2].outputs[0])


@lru_cache(maxsize=64)
def mean_losses(loss: StochasticLoss) -> dict[int, Program]:
    """Weighted sums of losses, by number of examples, for `mean_over_rows`."""

    def total(x: Any, v: Any, z: Any) -> Any:
        return jnp.dot(v, jax.vmap(loss.function, in_axes=(None, 0))(x, z))

    return {k: Program(total, point(loss.dim), point(k), _shapes(loss, k)) for k in GROUPS}


def _both(loss: StochasticLoss, rows: int) -> Program:
    """(x, v, r, z...) -> gradients under weights v and under weights r, and the sum of r."""

    def gradients(x: Any, v: Any, r: Any, z: Any) -> Any:
        _, pull = jax.vjp(lambda y: jax.vmap(loss.function, in_axes=(None, 0))(y, z), x)
        return pull(v)[0], pull(r)[0], jnp.sum(r)[None]

    return Program(gradients, point(loss.dim), point(rows), point(rows), _shapes(loss, rows))


def _products(loss: StochasticLoss, rows: int) -> Program:
    """(x, v, p, z...) -> Hessian of the sum of v_i loss_i, times p."""

    def product(x: Any, v: Any, p: Any, z: Any) -> Any:
        each = jax.vmap(loss.function, in_axes=(None, 0))
        return jax.jvp(jax.grad(lambda y: jnp.dot(v, each(y, z))), (x,), (p,))[1]

    return Program(product, point(loss.dim), point(rows), point(loss.dim), _shapes(loss, rows))


@lru_cache(maxsize=64)
def rows_plan(loss: StochasticLoss, order: int, scheme: str) -> Plan:
    """Full-batch fields as loops over the data, and noise with one column per example."""
    table = data_table(loss)
    gradients = {k: _gradients(loss, k) for k in GROUPS}
    both = {k: _both(loss, k) for k in GROUPS}
    products = {k: _products(loss, k) for k in GROUPS} if order == 2 else None

    def corrected(ctx: Context, x: Value, g: Lazy) -> Value:
        if products is None:
            return g
        w, graph = ctx.arrays(), ctx.arrays().graph
        hg = mean_over_rows(ctx, loss, products, x, g)
        half = w.register(ctx.real("half_eta"))
        return w.combine(lambda g, h, e: graph.add(g, graph.mul(e, h)), [g, hg, half], g.shape)

    def step(ctx: Context) -> None:
        w, graph, x = ctx.arrays(), ctx.arrays().graph, ctx.array("x")
        g, kick = _gradient_and_noise(ctx, loss, both, x)
        slope = corrected(ctx, x, g)
        a, q = (w.register(ctx.real(name)) for name in ("drift", "noise"))

        def moved(x: Any, a: Any, s: Any, q: Any, k: Any) -> Any:
            return graph.add(graph.add(x, graph.mul(a, s)), graph.mul(q, k))

        ahead = w.combine(moved, [x, a, slope, q, kick], x.shape)
        if scheme == "heun":
            there = w.store(ahead)
            later = corrected(ctx, there, mean_over_rows(ctx, loss, gradients, there))
            middle = w.combine(
                lambda s, t: graph.mul(0.5, graph.add(s, t)), [slope, later], x.shape
            )
            ahead = w.combine(moved, [x, a, middle, q, kick], x.shape)
        w.assign(ahead, ctx.places["x"])

    return Plan(Recipe(step, loss.dim, loops=True), table, row_weights(loss), table.shape[1])


def _gradient_and_noise(
    ctx: Context, loss: StochasticLoss, programs: dict[int, Program], x: Value
) -> tuple[Lazy, Value]:
    """(grad F, sigma xi): with r_i = sqrt(w_i) xi_i, sum r_i g_i - (sum r_i) grad F."""
    w, graph = ctx.arrays(), ctx.arrays().graph
    rows_of = _Rows(loss, data_table(loss).shape[1])
    mean, noise, whole = (_zeros(w, n) for n in (loss.dim, loss.dim, 1))

    def take_in(first: Val, rows: int) -> None:
        z, (weights, roots) = rows_of.read(ctx, first, rows)
        r = w.store(w.combine(graph.mul, [roots, _normals(ctx, rows)], (rows,)))
        parts = programs[rows].write(w, x, weights, r, *z)
        for total, part in zip((mean, noise, whole), parts, strict=True):
            w.add(part, total)

    _in_groups(ctx, ctx.loaded["rows"], GROUPS, take_in)
    g = w.whole(mean, (loss.dim,))
    kick = w.combine(
        lambda n, t, m: graph.sub(n, graph.mul(t, m)),
        [w.whole(noise, (loss.dim,)), w.whole(whole, ()), g],
        (loss.dim,),
    )
    return g, w.store(kick)
