"""The log of a training, as written by ``batchwell.training``: lines of JSON to series.

Read without torch. Lines that a crash tore are left out and counted; what a crashed run had logged
beyond the state that was gone on from is left out too, as it was trained again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError, require
from ...estimate import Estimate

FILE = "log.jsonl"
_CLOCK = ("step", "examples")
_ENDS = ("/low", "/high")


@dataclass(frozen=True)
class Point:
    """One logged number, with its interval if it has one (else both ends are the value)."""

    examples: int
    step: int
    value: float
    low: float
    high: float

    def estimate(self, unit: str) -> Estimate:
        """The point as an estimate."""
        stderr = (self.high - self.low) / (2 * 1.96)
        return Estimate(self.value, stderr, (self.low, self.high), unit, "logged", 0)


@dataclass(frozen=True)
class Trained:
    """What the log of one training says.

    Attributes
    ----------
    path
        The log directory.
    start
        Facts of the first event: schedule, model, data.
    series
        Name -> points in order.
    events
        All events in order.
    torn
        Lines that could not be read.
    before
        Trainings that were logged here before this one, which are not shown.
    """

    path: Path
    start: Mapping[str, Any]
    series: Mapping[str, tuple[Point, ...]]
    events: tuple[Mapping[str, Any], ...]
    torn: int
    before: int = 0

    def points(self, name: str) -> tuple[Point, ...]:
        """Points of a series; none if it was not logged."""
        return self.series.get(name, ())

    def last(self, name: str) -> Point | None:
        """The last point of a series."""
        found = self.points(name)
        return found[-1] if found else None

    def below(self, prefix: str) -> dict[str, Point]:
        """Last points of all series whose name begins with `prefix`, by the rest of the name."""
        return {
            name.removeprefix(prefix): points[-1]
            for name, points in self.series.items()
            if name.startswith(prefix)
        }


def read_log(logdir: str | Path) -> Trained:
    """Read ``LOGDIR/log.jsonl``.

    Raises
    ------
    InputError
        There is no log, or it holds nothing that was measured.
    """
    path = Path(logdir)
    try:
        lines = (path / FILE).read_bytes().splitlines()
    except OSError:
        raise InputError(
            "LOGDIR", str(path), f"holds no {FILE}: train with attach(..., logdir=LOGDIR)"
        ) from None
    records = [record for record in map(_record, lines) if record is not None]
    torn = sum(1 for line in lines if line.strip()) - len(records)
    values, events, before = _kept(records)
    require(bool(values), "LOGDIR", str(path), "nothing was measured yet: the log has no values")
    start = next((e for e in events if e["event"] == "started"), {})
    return Trained(path, start, _series(values), tuple(events), torn, before)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(found, dict) and isinstance(found.get("step"), int)
    return found if whole else None


Records = list[dict[str, Any]]


def _kept(records: Iterable[dict[str, Any]]) -> tuple[Records, Records, int]:
    """Values and events of the last training, and how many there were before it.

    What starts and goes on from a saved state is the training before; its values beyond that state
    are left out.
    """
    runs: list[tuple[Records, Records]] = [([], [])]
    for record in records:
        values, events = runs[-1]
        if "event" not in record:
            values.append(record)
            continue
        if record["event"] == "started" and values:
            runs.append(([], [record]))
            continue
        if record["event"] == "resumed":
            if not values and len(runs) > 1:
                runs.pop()
            values, events = runs[-1]
            values[:] = [row for row in values if row["step"] <= record["step"]]
        events.append(record)
    # One that has only started says nothing yet.
    told = [run for run in runs if run[0]] or runs
    return *told[-1], len(told) - 1


def _series(rows: Iterable[Mapping[str, Any]]) -> dict[str, tuple[Point, ...]]:
    out: dict[str, list[Point]] = {}
    for row in rows:
        for name, value in row.items():
            if name in _CLOCK or name.endswith(_ENDS):
                continue
            number = _number(value)
            if number is None:
                continue
            ends = (_number(row.get(name + end)) for end in _ENDS)
            low, high = (number if end is None else end for end in ends)
            out.setdefault(name, []).append(
                Point(int(row.get("examples", 0)), row["step"], number, low, high)
            )
    return {name: tuple(points) for name, points in out.items()}


def _number(value: Any) -> float | None:
    """A logged number; infinities are strings in the log."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def thinned(points: tuple[Point, ...], most: int) -> list[Point]:
    """At most `most` points: neighbours are averaged, their ends kept as wide as they came.

    Examples
    --------
    >>> points = tuple(Point(k, k, float(k), k - 1.0, k + 1.0) for k in range(4))
    >>> [(p.value, p.low, p.high) for p in thinned(points, 2)]
    [(0.5, -1.0, 2.0), (2.5, 1.0, 4.0)]
    """
    group = math.ceil(len(points) / most) if points else 1
    out = []
    for k in range(0, len(points), group):
        some = points[k : k + group]
        mean = math.fsum(p.value for p in some) / len(some)
        ends = min(p.low for p in some), max(p.high for p in some)
        out.append(Point(some[-1].examples, some[-1].step, mean, *ends))
    return out
