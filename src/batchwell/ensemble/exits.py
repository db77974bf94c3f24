"""First exits on the fused engine: lanes refilled from a queue as paths leave."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._jax import jax, jnp
from ..domain import Domain
from ..dynamics import SGD, Diffusion, Process
from ..errors import InputError
from ..loss import StochasticLoss
from . import loop_recipes
from .exit_kernel import Exit, exit_source
from .fused import (
    CALL_SECONDS,
    DTYPE,
    Arguments,
    Compiled,
    Engine,
    blocked_table,
    common_arguments,
    kernel,
    run,
    width_for,
    workers_for,
)
from .ir import Graph
from .kernels import Context, Expressions, Recipe
from .loop_program import Program
from .lowering import inputs, lower
from .plans import data_table, row_weights
from .row_sums import example_loss, mean_over_rows
from .vector import Val

Written = Callable[[Context], Val]
CHUNK = 32  # steps between bookings
LEAST = 2  # steps that may share their normals


@dataclass
class Lanes:
    """One thread's lanes."""

    x: np.ndarray
    rng: np.ndarray
    velocity: np.ndarray | None
    order: np.ndarray | None
    ids: np.ndarray
    taken: np.ndarray
    arguments: Arguments

    @property
    def live(self) -> bool:
        """Whether any lane still holds a path."""
        return bool(np.any(self.ids >= 0))


def _epoch_of(process: Process) -> int:
    """Steps of an epoch of reshuffled data, whose phase all lanes share; else 0."""
    if isinstance(process, SGD) and process.sampling == "reshuffle":
        assert process.loss.n is not None
        return process.loss.n // process.batch_size
    return 0


_tests: dict[tuple[Domain, object, bool], Exit] = {}


def exit_test(process: Process, domain: Domain, bridge: bool, loops: bool = False) -> Exit:
    """The lowered test for having left `domain`, as array code if `loops`.

    Raises
    ------
    Unsupported
        The level has no fused form.
    """
    key = (domain, process if bridge else None, loops)
    if key not in _tests:
        spread = None
        if bridge:
            spread = scalar(_level_variance(process, domain), domain.dim, loops)
        _tests[key] = _mean_test(domain, spread, loops) or _plain_test(domain, spread, loops)
    return _tests[key]


def _plain_test(domain: Domain, spread: Written | None, loops: bool) -> Exit:
    assert domain.level is not None
    return Exit(scalar(domain.level, domain.dim, loops), spread)


def _mean_test(domain: Domain, spread: Written | None, loops: bool) -> Exit | None:
    """The test for a sublevel set of `StochasticLoss.mean`, as a loop over its data."""
    loss = getattr(domain.function, "__self__", None)
    method = getattr(domain.function, "__func__", None)
    if method is not StochasticLoss.mean or not isinstance(loss, StochasticLoss):
        return None
    if loss.closed_mean is not None:
        return None
    mean = _looped_mean(loss) if loops else _straight_mean(loss)

    def level(ctx: Context) -> Val:
        kept, c = ctx.loaded, ctx.code
        ctx.loaded = {**kept, **{name: kept[f"level_{name}"] for name in _DATA}}
        total = mean(ctx)
        ctx.loaded = kept
        return c.sub(total, c.like(domain.height, total))

    return Exit(level, spread, data_table(loss), row_weights(loss))


def _straight_mean(loss: StochasticLoss) -> Written:
    code, columns = example_loss(loss)
    return lambda ctx: mean_over_rows(ctx, code, columns, x=[v.get() for v in ctx.x])[0]


def _looped_mean(loss: StochasticLoss) -> Written:
    programs = loop_recipes.mean_losses(loss)

    def mean(ctx: Context) -> Val:
        total = loop_recipes.mean_over_rows(ctx, loss, programs, ctx.array("x"))
        return ctx.arrays().number(total)

    return mean


_DATA = ("table", "weights", "rows")


def _level_variance(process: Process, domain: Domain) -> Callable[[object], object]:
    if not isinstance(process, Diffusion):
        raise InputError("bridge", True, "is for diffusions: a chain is only seen at its steps")
    level = domain.level
    assert level is not None

    def variance(x: object) -> object:
        g = jax.grad(level)(x)
        return g @ process.tensor(x) @ g

    return variance


def scalar(function: Callable[[object], object], dim: int, loops: bool) -> Written:
    """What writes a function of the positions, of one value."""
    point = jax.ShapeDtypeStruct((dim,), jnp.float64)
    if loops:
        program = Program(function, point)
        return lambda ctx: ctx.arrays().number(program.write(ctx.arrays(), ctx.array("x"))[0])
    graph = Graph()
    code = Expressions.of(lower(graph, function, (point,), (inputs(graph, "x", (dim,)),)))
    return lambda ctx: ctx.evaluate(code, x=[v.get() for v in ctx.x])[0]


def find_exits(
    engine: Engine,
    test: Exit,
    starts: np.ndarray,
    states: np.ndarray,
    horizon: int,
    substeps: int,
    threads: int | None,
    progress: Callable[[int, int], None] | None,
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(steps (M,), observed (M,), points (M, d)) of M paths; horizon and steps in kernel steps."""
    call = kernel(engine, "exits", device, exit_source, test)
    span = LEAST if engine.recipe.loops else CHUNK
    left, points = run_to_the_end(
        call, engine, test, starts, states, horizon, substeps, threads, CHUNK, span, progress
    )
    return np.abs(left), left > 0, points


def run_to_the_end(
    call: Compiled,
    engine: Engine,
    test: Exit,
    starts: np.ndarray,
    states: np.ndarray,
    horizon: int,
    substeps: int,
    threads: int | None,
    chunk: int,
    span: int,
    progress: Callable[[int, int], None] | None = None,
    **more: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """(steps (M,), negative where censored, and points (M, d)) of a kernel that refills lanes.

    `more` are further arguments of the kernel; for `chunk` and `span` see `_drain`.
    """
    dtype = DTYPE[engine.kind]
    starts, states = np.ascontiguousarray(starts, dtype), np.ascontiguousarray(states, np.uint32)
    left, queue = np.zeros(len(starts), np.int64), np.zeros(1, np.int64)
    shared: dict[str, Any] = dict(
        starts=starts,
        states=states,
        left=left,
        points=np.empty_like(starts),
        queue=queue,
        paths=len(starts),
        horizon=horizon,
        **more,
    )
    if test.table is not None:
        table, weights = blocked_table(test, engine.kind)
        shared.update(level_table=table, level_weights=weights, level_rows=len(table))
    workers = _workers_of(call, engine, substeps, threads, shared)
    _drain(call, workers, left, queue, chunk, _epoch_of(engine.process), span, progress)
    return left, shared["points"].astype(np.float64)


def _drain(
    call: Compiled,
    workers: list[Lanes],
    left: np.ndarray,
    queue: np.ndarray,
    chunk: int,
    epoch: int,
    span: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Call the kernel until the queue and all lanes are empty.

    At first for `span` steps, then for as many as take about CALL_SECONDS; ends are booked every
    `chunk` steps, or at the end of an epoch where there are epochs.
    """
    first = 0
    while waiting := [w for w in workers if w.live or queue[0] < len(left)]:
        steps, chunks = _portion(span, first, chunk, epoch)
        for w in waiting:
            for name, value in (
                ("chunk", steps), ("budget", chunks), ("first", first),
                ("refill", int(epoch in (0, steps))),
            ):  # fmt: skip
                w.arguments.put(name, value)
        clock = time.perf_counter()
        run(call, [w.arguments for w in waiting])
        spent = time.perf_counter() - clock
        first = (first + steps * chunks) % epoch if epoch else 0
        if spent < CALL_SECONDS / 2:
            span *= 2
        elif spent > CALL_SECONDS:
            span = max(LEAST, span // 2)
        if progress is not None:
            progress(int(np.count_nonzero(left)), len(left))


def _portion(span: int, first: int, chunk: int, epoch: int) -> tuple[int, int]:
    """(steps of a chunk, chunks) of the next call; whole epochs, or not beyond the end of one."""
    if not epoch:
        steps = min(span, chunk)
    elif first or span < epoch:
        return min(span, epoch - first), 1
    else:
        steps = epoch
    return steps, span // steps


def _workers_of(
    call: Compiled,
    engine: Engine,
    substeps: int,
    threads: int | None,
    shared: dict[str, Any],
) -> list[Lanes]:
    """Lanes of every thread, filled with the first paths of the queue."""
    starts, queue = shared["starts"], shared["queue"]
    lanes = width_for(call, engine, len(starts))
    common = common_arguments(engine, substeps)
    out = []
    for _ in range(workers_for(call, threads, -(-len(starts) // lanes))):
        ids = queue[0] + np.arange(lanes)
        ids[ids >= len(starts)] = -1
        queue[0] += lanes
        out.append(_filled(engine, ids, common, shared))
    return out


def _filled(
    engine: Engine,
    ids: np.ndarray,
    common: Arguments,
    shared: dict[str, Any],
) -> Lanes:
    recipe: Recipe = engine.recipe
    rows = np.maximum(ids, 0)
    x, rng = (np.ascontiguousarray(shared[name][rows].T) for name in ("starts", "states"))
    velocity = np.zeros_like(x) if recipe.velocity else None
    order = None
    if recipe.order:
        n = int(common.get("rows"))
        order = np.repeat(np.arange(n, dtype=np.int32)[:, None], len(ids), axis=1)
    args = common.copy()
    taken = np.zeros(len(ids), np.int64)
    own = dict(
        x=x,
        rng=rng,
        velocity=velocity,
        order=order,
        ids=ids,
        taken=taken,
        width=len(ids),
    )
    for name, value in {**shared, **own}.items():
        if value is not None:
            args.put(name, value)
    return Lanes(x, rng, velocity, order, ids, taken, args)
