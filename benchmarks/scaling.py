"""Threads, exits of chains, memory and start-up of the fused engine."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time

from batchwell.ensemble import fused, start
from cases import MODES, WELL, engine, logistic_exits
from timing import interleaved, spent

FIRST = """
import time; a = time.perf_counter()
import jax.numpy as jnp
from batchwell import SGD, finite_sum
from batchwell.ensemble import advance, start
b = time.perf_counter()
import numpy as np
rng = np.random.default_rng(0)
data = rng.standard_normal((120, 4)), np.where(rng.random(120) < 0.5, -1.0, 1.0)
def loss(w, z):
    hidden = jnp.tanh(w[:16].reshape(4, 4) @ z[0] + w[16:20])
    return jnp.logaddexp(0.0, -z[1] * (w[20:24] @ hidden + w[24])) + 5e-4 * w @ w
sgd = SGD(finite_sum(loss, data, 25), 0.5, 4)
advance(sgd, start(sgd, np.full(25, 0.1), 64, seed=0), 10)
c = time.perf_counter()
print(b - a, c - b)
"""


def threads(paths: int = 1 << 16, steps: int = 2000) -> None:
    """Speed by number of threads: by the wall clock, and per CPU-second.

    On a machine that others use too, only the second tells how well threads share the work: it
    stays at 1 if they neither wait nor repeat anything.
    """
    print("threads  path-steps/s  speed-up  per CPU-second, relative")
    base = own = 0.0
    for count in (1, 2, 4):
        if count > len(os.sched_getaffinity(0)):
            continue
        made, advance = engine(WELL, count)
        state = start(WELL, [-1.0], paths, 0, substeps=1)
        blocks = fused.to_blocks(made, state.x, state.rng, state.memory)
        advance(0, 10, blocks)
        best = least = 1e9
        for _ in range(5):
            clock, (cpu, _) = time.perf_counter(), spent(lambda: advance(0, steps, blocks))  # noqa: B023
            best = min(best, time.perf_counter() - clock)
            least = min(least, cpu)
        base, own = base or best, own or least
        print(
            f"{count:7d}  {paths * steps / best:12.3g}  {base / best:8.2f}  {own / least:24.2f}",
            flush=True,
        )


def chains_that_leave() -> None:
    """First exits of minibatch SGD beside its plain steps: no mode or batch falls behind.

    At B = 1 a step is cheaper than looking whether the path has left; a path of shuffled epochs
    pays for a whole shuffle of the data before its first step.
    """
    print("samples per CPU-second in millions: until first exits, in plain steps, ratio")
    for mode in MODES:
        for batch in (1, 8, 40) if mode == "reshuffle" else (1, 8, 64):
            leave, run, ratio = interleaved(*logistic_exits(mode, batch), 3)
            print(f"{mode:20s} B={batch:<3d} {leave / 1e6:6.0f} {run / 1e6:6.0f} {ratio:5.2f}")


def memory() -> None:
    """Peak memory does not grow with the number of steps."""
    made, advance = engine(WELL)
    state = start(WELL, [-1.0], 1 << 16, 0, substeps=1)
    blocks = fused.to_blocks(made, state.x, state.rng, state.memory)
    for steps in (100, 10_000):
        advance(0, steps, blocks)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"after {steps} more steps: peak memory {peak:.0f} MiB")


def first_result() -> None:
    """A new loss in a fresh process: without and with the cache on disk."""
    with tempfile.TemporaryDirectory() as place:
        environment = {**os.environ, "BATCHWELL_CACHE": place}
        for what in ("empty cache", "filled cache", "filled cache"):
            out = subprocess.run(
                [sys.executable, "-c", FIRST],
                env=environment,
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            imports, work = (float(v) for v in out.split())
            print(f"first result, {what}: {work:.2f} s, after {imports:.2f} s of imports")


def main() -> None:
    """Print all of them."""
    threads()
    chains_that_leave()
    memory()
    first_result()


if __name__ == "__main__":
    main()
