"""How benchmarks are timed: CPU time of this process where rates are compared, runs alternating."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

Work = Callable[[], Any]


def spent(work: Work, clock: Callable[[], float] = time.process_time) -> tuple[float, Any]:
    """(seconds, what it returned): CPU seconds unless another clock is given."""
    began = clock()
    done = work()
    return clock() - began, done


def rate(work: Work) -> float:
    """Units of work, which `work` returns, per CPU-second."""
    seconds, done = spent(work)
    return float(done) / seconds


def interleaved(first: Work, second: Work, rounds: int) -> tuple[float, float, float]:
    """Medians over alternating runs: rates of both, and the ratio of the first to the second."""
    first(), second()
    pairs = [(rate(first), rate(second)) for _ in range(rounds)]
    a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
    return a, b, statistics.median(x / y for x, y in pairs)


def best(
    work: Work, runs: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float, Any]:
    """(first call, best of later calls, answer), in seconds."""
    first, answer = spent(work, clock)
    return first, min(spent(work, clock)[0] for _ in range(runs)), answer


def one_thread() -> None:
    """Hold every library to one thread. To be called before numpy is imported."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def line(name: str, seconds: float, goal: float, error: float, allowed: float) -> None:
    """One row of a table: seconds and error beside their goals; what has no goal has infinity."""
    verdict = "ok" if seconds <= goal and error <= allowed else "MISSED"
    print(
        f"{name:42s} {seconds * 1e3:9.1f} ms (goal {goal * 1e3:7.0f})   "
        f"error {error:8.1e} (goal {allowed:.0e})   {verdict}",
        flush=True,
    )
