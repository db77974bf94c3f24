"""Running cells side by side, storing each as it ends, and going on where a run stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from ..errors import Divergence
from ..landscape import Landscape
from ..progress import Interrupted, Tracker, tracked
from ..runs import RunDirectory
from .cells import Arrays, Facts, Pilots, Progress, run_escape, run_final, run_verdict
from .plan import Plan


@dataclass(frozen=True)
class Task:
    """One piece of work that ends in one chunk."""

    name: str
    run: Callable[[Progress], tuple[Arrays, Facts]] = field(repr=False)


def tasks(plan: Plan, landscape: Landscape) -> list[Task]:
    """All cells; SGD's escapes first, since its diffusions look as often as it does."""
    escapes = sorted(plan.escape_cells(landscape), key=lambda c: (c.process != "sgd", c.batch_size))
    judged, pilots = plan.verdict_cells(landscape), Pilots(plan, landscape)
    return [
        *(Task(c.name, _bind(run_escape, plan, landscape, c, pilots)) for c in escapes),
        *(Task(c.name, _bind(run_verdict, plan, landscape, c)) for c in judged),
        *(Task(c.name, _bind(run_final, plan, landscape, c)) for c in plan.final_cells(landscape)),
    ]


def _bind(run: Callable[..., Any], *parts: Any) -> Callable[[Progress], Any]:
    return lambda progress: run(*parts, progress)


def run_tasks(
    run: RunDirectory, todo: list[Task], workers: int | None, quiet: bool
) -> Mapping[str, str]:
    """Run and store `todo`; returns the reasons of those that diverged, by name.

    A KeyboardInterrupt asks running tasks to stop, waits for them, and goes on upwards.
    """
    errors: dict[str, str] = {}
    open_ = [task for task in todo if not run.has(task.name)]
    if not open_:
        return errors
    count = workers or min(4, len(os.sched_getaffinity(0)))
    with (
        tracked(len(open_), "escapes and final basins", quiet) as tracker,
        ThreadPoolExecutor(count) as pool,
    ):
        futures = {pool.submit(_one, run, task, tracker): task.name for task in open_}
        try:
            _collect(futures, errors)
        except BaseException:
            tracker.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return errors


def _one(run: RunDirectory, task: Task, tracker: Tracker) -> None:
    if tracker.stop.is_set():
        raise Interrupted
    began = time.perf_counter()
    arrays, facts = task.run(tracker.report(task.name))
    seconds = round(time.perf_counter() - began, 3)
    run.write_chunk(task.name, arrays, {**facts, "seconds": seconds})
    tracker.finish(task.name)


def _collect(futures: dict[Future[None], str], errors: dict[str, str]) -> None:
    waiting = set(futures)
    while waiting:
        # Short waits, so that Ctrl-C is answered at once.
        done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
        for future in done:
            try:
                future.result()
            except Divergence as error:
                errors[futures[future]] = str(error)


def read_rows(
    run: RunDirectory,
    cells: list[Any],
    errors: Mapping[str, str],
    row: Callable[[Any, Arrays, Facts], Any],
    failed: Callable[[Any, str], Any],
) -> tuple[Any, ...]:
    """Rows of the cells that are finished or failed, in the order of `cells`."""
    out = []
    for cell in cells:
        if cell.name in errors:
            out.append(failed(cell, errors[cell.name]))
        elif run.has(cell.name):
            out.append(row(cell, *run.read_chunk(cell.name)))
    return tuple(out)
