"""The fused engine: compiled kernels run over blocks of paths by several threads."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from ..dynamics import SGD, Process
from . import cuda
from .advance_kernel import advance_source
from .exit_kernel import Exit
from .forms import plan_of
from .kernels import ARGS, REALS, Recipe
from .lowering import Unsupported
from .native import Kernel, compile_kernel
from .options import require_room
from .plans import Plan, reals_of, stride_of, work_of
from .row_sums import GradientField
from .vector import room_of

DTYPE = {"f64": np.float64, "f32": np.float32}
LOOPS_ABOVE = 1000  # scalar operations: here array code overtakes straight-line code
CALL_SECONDS = 0.5  # of one call at the most, about, so that Ctrl-C is answered
FIRST_SPAN = 256  # blocks of lanes that take a first step together; one, on a GPU
KIND = {"float64": "f64", "float32": "f32"}


@dataclass(frozen=True)
class Engine:
    """Compiled kernels of a process, and how to run them."""

    process: Process
    plan: Plan
    kind: str
    scheme: str
    recipe: Recipe


def engine_of(
    process: Process,
    scheme: str = "heun",
    precision: str = "float64",
    loops: bool | None = None,
    generator: str = "xoshiro",
) -> Engine:
    """The engine of a process; raises `lowering.Unsupported`.

    `loops` asks for array code or for straight-line code; by default what is faster.
    """
    kind = KIND[precision]
    if loops is None:
        loops = work_of(process, scheme) > LOOPS_ABOVE
        with contextlib.suppress(Unsupported):
            return engine_of(process, scheme, precision, loops, generator)
        loops = not loops
    plan = plan_of(process, scheme, kind, loops)
    recipe = replace(plan.recipe, generator=generator)
    return Engine(process, plan, kind, scheme, recipe)


Compiled = Kernel | cuda.Program
_kernels: dict[tuple[Any, ...], Compiled] = {}


def kernel(
    engine: Engine, name: str, device: str, source: Callable[..., str], *about: Any
) -> Compiled:
    """The kernel ``source(recipe, kind, *about)`` for a device, compiled once in this process."""
    key = (engine.recipe, engine.kind, name, device, about)
    if key not in _kernels:
        text = source(engine.recipe, engine.kind, *about, gpu=device == "cuda")
        if device == "cuda":
            _kernels[key] = cuda.Program(text, name)
        else:
            require_room(room_of(text))
            _kernels[key] = compile_kernel(text, name)
    return _kernels[key]


@dataclass
class Arguments:
    """The argument array of a kernel; keeps alive the arrays whose addresses it holds."""

    values: np.ndarray
    kept: dict[str, np.ndarray]

    def copy(self) -> Arguments:
        """The same arguments, to be changed on their own."""
        return Arguments(self.values.copy(), dict(self.kept))

    @staticmethod
    def of(**given: Any) -> Arguments:
        """Arrays become addresses, numbers stay."""
        out = Arguments(np.zeros(len(ARGS), np.int64), {})
        for name, value in given.items():
            out.put(name, value)
        return out

    def put(self, name: str, value: Any) -> None:
        """Set one argument."""
        if isinstance(value, np.ndarray):
            self.kept[name] = value
            value = value.ctypes.data
        self.values[ARGS.index(name)] = value

    def get(self, name: str) -> int:
        """One argument."""
        return int(self.values[ARGS.index(name)])


def blocked(rows: np.ndarray, lanes: int, dtype: Any) -> np.ndarray:
    """(M, k) -> (blocks, k, lanes): the last path fills the last block up."""
    m = len(rows)
    blocks = -(-m // lanes)
    index = np.minimum(np.arange(blocks * lanes), m - 1)
    cut = np.asarray(rows, dtype)[index].reshape(blocks, lanes, -1)
    return np.ascontiguousarray(cut.transpose(0, 2, 1))


def unblocked(blocks: np.ndarray, count: int, dtype: Any) -> np.ndarray:
    """The inverse of `blocked`."""
    rows = blocks.transpose(0, 2, 1).reshape(-1, blocks.shape[1])[:count]
    return np.ascontiguousarray(rows, dtype=dtype)


@lru_cache(maxsize=64)
def _tables(plan: Plan, kind: str, gathers: bool) -> tuple[np.ndarray, np.ndarray]:
    """(data, weights) in memory: padded for whole-row loads, or to an even number of rows."""
    assert plan.table is not None
    table = plan.table
    if gathers:
        padded = np.zeros(
            (len(table), stride_of(plan.columns, kind, plan.recipe.loops)), DTYPE[kind]
        )
        padded[:, : plan.columns] = table
        return padded, np.zeros(1, DTYPE[kind])
    return blocked_table(plan, kind)


def blocked_table(data: Plan | GradientField | Exit, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(data, weights) for loops over rows in pairs: padded to an even number of rows."""
    table, weights = data.table, data.weights
    assert table is not None
    assert weights is not None
    if len(table) % 2:  # a copy of the last row, with no weight
        table = np.concatenate([table, table[-1:]])
        weights = np.concatenate([weights, np.zeros((1, 2))])
    return np.ascontiguousarray(table, DTYPE[kind]), np.ascontiguousarray(weights, DTYPE[kind])


def common_arguments(engine: Engine, substeps: int) -> Arguments:
    """Arguments that do not depend on the paths."""
    reals = reals_of(engine.process, substeps)
    array = np.array([reals.get(name, 0.0) for name in REALS])
    args = Arguments.of(reals=array)
    if isinstance(engine.process, SGD):
        args.put("batch", engine.process.batch_size)
    if engine.plan.table is not None:
        table, weights = _tables(engine.plan, engine.kind, isinstance(engine.process, SGD))
        args.put("table", table)
        args.put("weights", weights)
        args.put("rows", len(table))
    return args


def thread_count(threads: int | None, jobs: int) -> int:
    """How many threads to use for `jobs` pieces of work."""
    allowed = threads or _allowed_cores()
    return max(1, min(allowed, jobs))


def _allowed_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@lru_cache(maxsize=8)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="batchwell")


def workers_for(call: Compiled, threads: int | None, jobs: int) -> int:
    """How often to call a kernel at the same time: on a GPU, its own threads share the work."""
    return 1 if isinstance(call, cuda.Program) else thread_count(threads, jobs)


def width_for(call: Compiled, engine: Engine, paths: int) -> int:
    """How many paths lie side by side: in registers, or in a GPU's threads."""
    if isinstance(call, cuda.Program):
        return call.width(paths)
    return engine.recipe.lanes(engine.kind)


def run(call: Compiled, arguments: list[Arguments]) -> None:
    """Call a kernel once per argument array, each in its own thread."""
    if isinstance(call, cuda.Program):
        for a in arguments:
            call(a.values, a.kept)
        return
    if len(arguments) == 1:
        call(arguments[0].values)
        return
    jobs = [_pool(len(arguments)).submit(call, a.values) for a in arguments]
    try:
        for job in jobs:
            job.result()
    finally:  # after Ctrl-C too: the arrays must outlive the threads that write to them
        wait(jobs)


@dataclass
class Blocks:
    """Paths in the engine's layout."""

    x: np.ndarray
    rng: np.ndarray
    velocity: np.ndarray | None
    order: np.ndarray | None
    count: int


def to_blocks(
    engine: Engine, x: np.ndarray, rng: np.ndarray, memory: Any, lanes: int = 0
) -> Blocks:
    """Paths as callers hold them -> the engine's layout, `lanes` of them side by side."""
    lanes, dtype = lanes or engine.recipe.lanes(engine.kind), DTYPE[engine.kind]
    velocity = blocked(memory[1], lanes, dtype) if engine.recipe.velocity else None
    order = blocked(memory[0], lanes, np.int32) if engine.recipe.order else None
    return Blocks(blocked(x, lanes, dtype), blocked(rng, lanes, np.uint32), velocity, order, len(x))


def from_blocks(engine: Engine, blocks: Blocks, memory: Any) -> tuple[np.ndarray, np.ndarray, Any]:
    """The inverse of `to_blocks`: (x, rng, memory)."""
    if isinstance(engine.process, SGD):
        data = memory[0]
        if blocks.order is not None:
            data = unblocked(blocks.order, blocks.count, np.int32)
        memory = (data,)
        if blocks.velocity is not None:
            memory = (data, unblocked(blocks.velocity, blocks.count, np.float64))
    x = unblocked(blocks.x, blocks.count, np.float64)
    return x, unblocked(blocks.rng, blocks.count, np.uint32), memory


class Advancer:
    """Runs steps of a process over paths in the engine's layout."""

    def __init__(
        self, engine: Engine, substeps: int, threads: int | None = None, device: str = "cpu"
    ) -> None:
        self.engine, self.threads, self.device = engine, threads, device
        self.arguments = common_arguments(engine, substeps)
        self.call = kernel(engine, "advance", device, advance_source)

    def __call__(self, first: int, steps: int, blocks: Blocks) -> None:
        """`steps` steps, counted from `first`, in place; a single one in several calls if long."""
        count, queue = len(blocks.x), np.zeros(1, np.int64)
        args = self.arguments_for(first, steps, blocks, queue)
        first_span = 1 if self.device == "cuda" else FIRST_SPAN
        span, done = (count if steps > 1 else first_span), 0
        while done < count:
            end = min(done + span, count)
            queue[0] = done
            args.put("blocks", end)
            clock = time.perf_counter()
            run(self.call, [args] * workers_for(self.call, self.threads, end - done))
            spent, done = time.perf_counter() - clock, end
            span = 2 * span if spent < CALL_SECONDS / 2 else max(1, span // 2)

    def arguments_for(self, first: int, steps: int, blocks: Blocks, queue: np.ndarray) -> Arguments:
        """The argument array of one call."""
        args = self.arguments.copy()
        for name, value in (
            ("x", blocks.x), ("rng", blocks.rng), ("queue", queue), ("width", blocks.x.shape[2]),
            ("velocity", blocks.velocity), ("order", blocks.order),
        ):  # fmt: skip
            if value is not None:
                args.put(name, value)
        for name, number in (("blocks", len(blocks.x)), ("steps", steps), ("first", first)):
            args.put(name, number)
        return args


class Stepper:
    """Runs steps over paths, from and to the layout of callers."""

    def __init__(
        self,
        engine: Engine,
        substeps: int,
        threads: int | None,
        x: np.ndarray,
        rng: np.ndarray,
        memory: Any,
        device: str = "cpu",
    ) -> None:
        self.engine, self._memory, self.device = engine, memory, device
        self.advance = Advancer(engine, substeps, threads, device)
        self.per = 1 if isinstance(engine.process, SGD) else substeps
        lanes = width_for(self.advance.call, engine, len(x))
        self.blocks = to_blocks(engine, x, rng, memory, lanes)

    def __call__(self, first: int, steps: int) -> np.ndarray:
        """Positions (M, d) after `steps` more SGD steps, counted from `first`."""
        self.advance(first * self.per, steps * self.per, self.blocks)
        return unblocked(self.blocks.x, self.blocks.count, np.float64)

    def state(self) -> tuple[np.ndarray, Any]:
        """(generators, memory) now."""
        _, rng, memory = from_blocks(self.engine, self.blocks, self._memory)
        return rng, memory
