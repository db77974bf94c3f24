"""Progress of long work: a bar with time left on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Lock
from typing import Any

PLAIN_SECONDS = 5.0


class Interrupted(KeyboardInterrupt):
    """Work stopped on request between two steps; what was finished is kept."""


class Tracker:
    """Counts finished shares of many tasks, from any thread, and asks them to stop.

    Each task is worth one unit; `report` of a task maps (done, total) to a share of it.
    """

    def __init__(self, total: int, show: Callable[[float, int, str], None]) -> None:
        self.total, self._show = total, show
        self._shares: dict[str, float] = {}
        self._lock = Lock()
        self.stop = Event()

    def report(self, task: str) -> Callable[[int, int], None]:
        """A progress callback for one task; raises Interrupted once asked to stop."""

        def callback(done: int, total: int) -> None:
            if self.stop.is_set():
                raise Interrupted
            self._update(task, done / max(total, 1))

        return callback

    def finish(self, task: str) -> None:
        """Count a task as done."""
        self._update(task, 1.0)

    def _update(self, task: str, share: float) -> None:
        with self._lock:
            self._shares[task] = min(1.0, max(share, self._shares.get(task, 0.0)))
            self._show(sum(self._shares.values()), self.total, task)


@contextmanager
def tracked(total: int, title: str, quiet: bool = False) -> Iterator[Tracker]:
    """A `Tracker` that shows itself on standard error while the block runs."""
    if quiet:
        yield Tracker(total, lambda done, total, task: None)
    elif sys.stderr.isatty():
        with _bar(total, title) as show:
            yield Tracker(total, show)
    else:
        yield Tracker(total, _plain(title))


@contextmanager
def _bar(total: int, title: str) -> Iterator[Callable[[float, int, str], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns: list[Any] = [
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("[dim]{task.fields[on]}"),
    ]
    began = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(title, total=total, left="", on="")

        def show(done: float, total: int, task: str) -> None:
            progress.update(bar, completed=done, on=task, left=time_left(began, done, total))

        yield show


def _plain(title: str) -> Callable[[float, int, str], None]:
    began = last = time.monotonic()

    def show(done: float, total: int, task: str) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            left = time_left(began, done, total)
            print(
                f"{title}: {100 * done / total:.0f} %, {left}, at {task}",
                file=sys.stderr,
                flush=True,
            )

    return show


def time_left(began: float, done: float, total: float) -> str:
    """Plain words for the time left at the speed so far."""
    spent = time.monotonic() - began
    if done <= 0.02 * total or spent < 2:
        return "estimating time left"
    left = spent * (total - done) / done
    return f"{left:.0f} s left" if left < 100 else f"{left / 60:.0f} min left"
