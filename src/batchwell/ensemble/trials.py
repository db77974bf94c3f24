"""Trials: paths that run until they are back in a core, past a goal of their own, or outside.

The one move of rare-event methods. On the fused engine lanes are refilled as trials end; a trial
depends on its start, its generator and its goal alone, so it can be run again to find the point
where it first passed another goal: nothing of its way has to be stored.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from .._jax import jax, jnp, serial
from ..domain import Domain
from ..dynamics import Process
from .exit_kernel import Exit, awake, note, taken_and_rest, write_refilling
from .exits import exit_test, run_to_the_end, scalar
from .fused import DTYPE, Engine, kernel
from .kernels import Context, Recipe, context_of
from .vector import Val, Var, module
from .xla import compiled_step

Score = Callable[[Any], Any]
Found = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

STOPPED, CORE, GOAL, OUT = range(4)  # how a trial ended
CHUNK = 16  # steps between bookings
FIRST_SPAN = 512  # steps of a first call, where a step is not a loop over data


@dataclass(frozen=True, eq=False)
class Table:
    """A function of the first d coordinates on a regular grid, linear in each direction between.

    Attributes
    ----------
    lower, step
        (d,) first point, and distance of neighbours.
    values
        (n_1, ..., n_d), each n at least 2; constant beyond the ends.
    """

    lower: np.ndarray
    step: np.ndarray
    values: np.ndarray = field(repr=False)

    def __call__(self, x: Any) -> Any:
        """Value at x (d,) or longer."""
        shape = self.values.shape
        place = (x[: len(shape)] - self.lower) / self.step
        place = jnp.clip(jnp.nan_to_num(place), 0.0, jnp.asarray(shape) - 1.0)
        cell = jnp.minimum(jnp.floor(place).astype(int), jnp.asarray(shape) - 2)
        part, flat = place - cell, jnp.asarray(self.values).ravel()
        total = jnp.zeros(())
        for corner in itertools.product((0, 1), repeat=len(shape)):
            at, weight = jnp.zeros((), int), jnp.ones(())
            for k, one in enumerate(corner):
                at = at * shape[k] + cell[k] + one
                weight = weight * (part[k] if one else 1.0 - part[k])
            total = total + weight * flat[at]
        return total

    def written(self, ctx: Context, x: list[Val]) -> Val:
        """The same as vector code, from the argument "score_table"."""
        c, shape, values = ctx.code, self.values.shape, ctx.address("score_table")
        cells, parts = [], []
        for k, v in enumerate(x[: len(shape)]):
            place = c.div(c.sub(v, c.like(self.lower[k], v)), c.like(self.step[k], v))
            place = c.select(c.compare("oge", place, c.like(0.0, v)), place, c.like(0.0, v))
            end = c.like(shape[k] - 1.0, v)
            place = c.select(c.compare("ole", place, end), place, end)
            cell, last = c.call("floor", place), c.like(shape[k] - 2.0, v)
            cell = c.select(c.compare("ole", cell, last), cell, last)
            cells.append(c.cast("fptosi", cell, "i64"))
            parts.append(c.sub(place, cell))
        total: Val | None = None
        for corner in itertools.product((0, 1), repeat=len(shape)):
            at = c.const(0, "i64")
            weight: Val | None = None
            for k, one in enumerate(corner):
                at = c.add(c.mul(at, c.like(shape[k], at)), c.add(cells[k], c.like(one, at)))
                factor = parts[k] if one else c.sub(c.like(1.0, parts[k]), parts[k])
                weight = factor if weight is None else c.mul(weight, factor)
            assert weight is not None
            value = c.gather(values, ctx.kind, at)
            total = c.mul(weight, value) if total is None else c.fma(weight, value, total)
        assert total is not None
        return total


Written = Callable[[Context, list[Val]], Val]


@lru_cache(maxsize=64)
def written_score(score: Score, dim: int) -> Written:
    """A score as vector code; raises `lowering.Unsupported`."""
    if isinstance(score, Table):
        return score.written
    code = scalar(score, dim, loops=False)
    return lambda ctx, x: code(ctx)


def run_trials(
    engine: Engine,
    domain: Domain,
    score: Score,
    starts: np.ndarray,
    states: np.ndarray,
    core: float,
    goals: np.ndarray,
    horizon: int,
    substeps: int,
    threads: int | None,
    device: str = "cpu",
) -> Found:
    """(points (M, d), kernel steps, fates, best scores) of M trials on the fused engine."""
    test = exit_test(engine.process, domain, False)
    code = written_score(score, domain.dim)
    call = kernel(engine, "trials", device, trial_source, test, code)
    dtype, m = DTYPE[engine.kind], len(starts)
    # One place more than paths: lanes without a path write there.
    best, fates = np.full(m + 1, -np.inf, dtype), np.zeros(m + 1, np.int32)
    more: dict[str, Any] = dict(
        goals=np.concatenate([goals, [0.0]]).astype(dtype),
        core=np.array([core], dtype),
        best=best,
        fates=fates,
    )
    if isinstance(score, Table):
        more["score_table"] = np.ascontiguousarray(score.values, dtype)
    span = FIRST_SPAN if engine.plan.table is None and test.table is None else CHUNK
    left, points = run_to_the_end(
        call, engine, test, starts, states, horizon, substeps, threads, CHUNK, span, **more
    )
    return points, np.abs(left), fates[:m], best[:m].astype(np.float64)


def trial_source(recipe: Recipe, kind: str, test: Exit, score: Written, gpu: bool = False) -> str:
    """LLVM text of ``trials``: as ``exits`` (see `exit_kernel.exit_source`), with three ends."""
    ctx = context_of("trials", recipe, kind, gpu)

    def run_chunk(points: Val, events: Val) -> Val:
        return _run_chunk(ctx, recipe, test, score, points, events)

    write_refilling(ctx, recipe, run_chunk)
    return module([ctx.code])


class _Lane:
    """What a trial notes while it runs: how and when it ended, where, and its best score."""

    def __init__(self, ctx: Context, score: Written, test: Exit) -> None:
        self.ctx, self.score, self.test = ctx, score, test
        c = ctx.code
        ids = c.load(ctx.address("ids"), "i64", ctx.here(1), c.lanes)
        self.place = c.select(awake(ctx), ids, c.splat(ctx.whole("paths")))
        self.goal = c.gather(ctx.address("goals"), ctx.kind, self.place)
        self.core = c.splat(c.load(ctx.address("core"), ctx.kind))
        self.taken, self.rest = taken_and_rest(ctx)
        self.best = c.var(ctx.kind, value=c.gather(ctx.address("best"), ctx.kind, self.place))
        self.event = c.var("i32", value=c.const(0, "i32"))
        self.fate = c.var("i32", value=c.const(STOPPED, "i32"))
        self.where: list[Var] = [c.var(ctx.kind, value=v.get()) for v in ctx.x]

    def look(self, t: Val) -> None:
        """After step `t` of the chunk."""
        c, ctx = self.ctx.code, self.ctx
        x = [v.get() for v in ctx.x]
        level, score = self.test.level(ctx), self.score(ctx, x)
        out = c.compare("uge", level, c.like(0.0, level))
        past = c.compare("ogt", score, self.goal)
        back = c.compare("ole", score, self.core)
        number = c.splat(c.cast("trunc", c.add(t, c.i64(1)), "i32"))
        kind = self._ranked(number, (back, CORE), (past, GOAL), (out, OUT))
        running = c.compare("eq", self.event.get(), c.like(0, number))
        ended = c.binary("or", out, c.binary("or", past, back))
        over = c.binary("or", ended, c.compare("eq", number, self.rest))
        new = c.binary("and", over, running)
        minus = c.sub(c.like(0, number), number)
        self.event.set(c.select(new, c.select(ended, number, minus), self.event.get()))
        self.fate.set(c.select(new, kind, self.fate.get()))
        better = c.binary("and", running, c.compare("ogt", score, self.best.get()))
        self.best.set(c.select(better, score, self.best.get()))
        for spot, v in zip(self.where, x, strict=True):
            spot.set(c.select(new, v, spot.get()))

    def _ranked(self, like: Val, *rows: tuple[Val, int]) -> Val:
        """The last of the codes whose mask is set."""
        c, out = self.ctx.code, self.ctx.code.like(STOPPED, like)
        for mask, code in rows:
            out = c.select(mask, c.like(code, like), out)
        return out

    def store(self, points: Val, events: Val) -> Val:
        """At the end of a chunk; whether any trial ended."""
        c, ctx = self.ctx.code, self.ctx
        c.scatter(self.best.get(), ctx.address("best"), self.place)
        c.scatter(self.fate.get(), ctx.address("fates"), self.place)
        return note(ctx, self.where, self.event.get(), self.taken, points, events)


def _run_chunk(
    ctx: Context, recipe: Recipe, test: Exit, score: Written, points: Val, events: Val
) -> Val:
    c = ctx.code
    lane = _Lane(ctx, score, test)
    together = 2 if recipe.shares(ctx.kind) else 1
    with c.loop(c.binary("sdiv", ctx.whole("chunk"), c.i64(together))) as turn:
        if together == 2:
            ctx.supply = ctx.normals(2 * recipe.normals)
        for k in range(together):
            t = c.add(c.mul(turn, c.i64(together)), c.i64(k))
            ctx.step = c.add(ctx.whole("first"), t)
            recipe.step(ctx)
            lane.look(t)
    return lane.store(points, events)


@lru_cache(maxsize=64)
def _on_xla(
    process: Process, substeps: int, domain: Domain, score: Score, scheme: str
) -> Callable[..., Any]:
    """Compiled ``(x, memory, rng, core, goals, horizon) -> (x, steps, fates, best)``."""
    step, level = compiled_step(process, substeps, scheme), domain.level
    assert level is not None
    advance = jax.vmap(step.advance, in_axes=(None, 0, 0, 0))
    scores, levels = jax.vmap(score), jax.vmap(level)

    @jax.jit
    def run(x: Any, memory: Any, rng: Any, core: Any, goals: Any, horizon: Any) -> Any:
        def body(state: Any) -> Any:
            k, x, memory, rng, taken, fates, best = state
            y, memory, rng = advance(k, x, memory, rng)
            alive = fates == STOPPED
            y = jnp.where(alive[:, None], y, x)
            s = scores(y)
            ends = jnp.where(s > goals, GOAL, jnp.where(s <= core, CORE, STOPPED))
            ends = jnp.where(~(levels(y) < 0), OUT, ends)
            best = jnp.where(alive, jnp.fmax(best, s), best)
            fates, taken = jnp.where(alive, ends, fates), taken + alive
            return k + 1, y, memory, rng, taken, fates, best

        none = jnp.zeros(x.shape[0], dtype=int)
        state = (0, x, memory, rng, none, none, jnp.full(x.shape[0], -jnp.inf))
        state = jax.lax.while_loop(
            lambda v: jnp.any(v[5] == STOPPED) & (v[0] < horizon), body, state
        )
        return state[1], state[4], state[5], state[6]

    return serial(run)


def run_on_xla(
    process: Process,
    domain: Domain,
    score: Score,
    starts: np.ndarray,
    states: np.ndarray,
    memory: Any,
    core: float,
    goals: np.ndarray,
    horizon: int,
    substeps: int,
    scheme: str,
) -> Found:
    """The same as `run_trials` on XLA."""
    run = _on_xla(process, substeps, domain, score, scheme)
    # Every new number of paths is compiled anew: fill up to a power of two.
    m = len(starts)
    rows = np.arange(1 << max(m - 1, 0).bit_length()) % m
    full = jax.tree.map(lambda a: np.asarray(a)[rows], (starts, memory, states))
    found = run(*full, core, np.asarray(goals, float)[rows], horizon)
    points, steps, fates, best = (np.asarray(a)[:m] for a in found)
    return points, steps, fates, best
