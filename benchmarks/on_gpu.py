"""A GPU: path-steps per second, beside the device's arithmetic limit and one core of the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from batchwell import half_space
from batchwell.ensemble import cuda, exits, fused, start
from batchwell.ensemble.kernels import Recipe, context_of, load_block
from cases import DENSE, PLANE, WELL

CLOCK = 13  # CUdevice_attribute: the clock in kHz
# Results per clock and processor, of the H100 and of most devices since 2017: all, those on whole
# numbers, those in float64 (a sixty-fourth of float32 on cards for games).
ALL, WHOLE, DOUBLE = 128, 64, 64
_REALS = {"fadd", "fsub", "fmul", "fdiv", "fneg", "fcmp", "fma", "sqrt", "floor"}
_WHOLES = {"add", "sub", "mul", "xor", "and", "or", "shl", "lshr", "ashr", "icmp", "fshl",
           "fptosi", "sitofp", "uitofp", "select"}  # fmt: skip


def operations(recipe: Recipe, kind: str) -> tuple[float, float]:
    """(on reals, on whole numbers) of one step, as written: the driver may leave some out."""
    ctx = context_of("count", recipe, kind, gpu=True)
    ctx.block = ctx.code.i64(0)
    load_block(ctx, recipe)
    before, steps = len(ctx.code.lines), 2 if recipe.shares(kind) else 1
    if steps == 2:
        ctx.supply = ctx.normals(2 * recipe.normals)
    for _ in range(steps):
        recipe.step(ctx)
    names = [_name(line.split(" = ", 1)[-1]) for line in ctx.code.lines[before:]]
    reals, wholes = (sum(n in kinds for n in names) / steps for kinds in (_REALS, _WHOLES))
    return reals, wholes


def _name(instruction: str) -> str:
    """What an instruction, or the intrinsic that it calls, does."""
    _, called, intrinsic = instruction.partition("@llvm.")
    return intrinsic.split(".")[0] if called else instruction.split()[0]


def limit(found: cuda.Driver, recipe: Recipe, kind: str) -> float:
    """Path-steps per second if the device did nothing but its arithmetic."""
    reals, wholes = operations(recipe, kind)
    clocks = max((reals + wholes) / ALL, wholes / WHOLE, reals / DOUBLE if kind == "f64" else 0.0)
    return found.attribute(16) * found.attribute(CLOCK) * 1e3 / clocks


def rate(work: Callable[[], float]) -> float:
    """Path-steps per second by the clock, the best of three after a first."""
    best = 0.0
    for _ in range(4):
        clock = time.perf_counter()
        done = work()
        best = max(best, done / (time.perf_counter() - clock))
    return best


def advancing(process, x0, paths: int, steps: int, precision: str, device: str):
    """(engine, what runs it)."""
    engine = fused.engine_of(process, "euler", precision)
    state = start(process, x0, paths, 0, substeps=1)
    stepper = fused.Stepper(engine, 1, 1, state.x, state.rng, state.memory, device)

    def work() -> float:
        stepper.advance(0, steps, stepper.blocks)
        return float(paths) * steps

    return engine, work


def leaving(paths: int, precision: str, device: str):
    """First exits of the double well, in useful steps."""
    engine = fused.engine_of(WELL, "euler", precision)
    test = exits.exit_test(WELL, half_space([1.0], 0.0), False)
    state = start(WELL, [-1.0], paths, 0, substeps=1)

    def work() -> float:
        found = exits.find_exits(engine, test, state.x, state.rng, 10**9, 1, 1, None, device=device)
        return float(found[0].sum())

    return engine, work


def main(paths: int = 1 << 20, steps: int = 2000) -> None:
    """Print the table, or that there is no device."""
    found = cuda.driver()
    if found is None:
        print("no CUDA device: the GPU's speed is unmeasured here")
        return
    print(f"{paths} paths, {steps} steps; path-steps per second, with copies to and fro")
    print(f"{'case':22s} {'GPU':>9s} {'limit':>9s} {'ratio':>6s} {'one core':>9s}")
    processes = {"1-D double well": (WELL, [-1.0]), "2-D": (PLANE, [1.0, 0.0]),
                 "10-D dense": (DENSE, np.full(10, 0.5))}  # fmt: skip
    for precision in ("float32", "float64"):
        for name, (process, x0) in processes.items():
            engine, on_gpu = advancing(process, x0, paths, steps, precision, "cuda")
            _, on_cpu = advancing(process, x0, max(paths // 256, 1), steps, precision, "cpu")
            _row(f"{name}, {precision}", found, engine, on_gpu, on_cpu)
        engine, on_gpu = leaving(paths, precision, "cuda")
        _row(f"exits, {precision}", found, engine, on_gpu, leaving(paths, precision, "cpu")[1])


def _row(name: str, found: cuda.Driver, engine: fused.Engine, on_gpu, on_cpu) -> None:
    fast, most = rate(on_gpu), limit(found, engine.recipe, engine.kind)
    print(f"{name:22s} {fast:9.2e} {most:9.2e} {fast / most:6.2f} {rate(on_cpu):9.2e}", flush=True)


if __name__ == "__main__":
    main()
