"""What a study found: plain rows that go to disk as JSON and from there into the report.

Every stochastic number is an `Estimate`. Rows hold labels, numbers and text only, so that a
report can be made again from ``estimates.json`` without any code or data of the problem.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .estimate import Estimate

FORMAT = 1

PROCESS_NAMES = {
    "sgd": "SGD",
    "diffusion-1": "diffusion, order 1",
    "diffusion-2": "diffusion, order 2",
}


@dataclass(frozen=True)
class MinimumRow:
    """One minimum, up to the problem's symmetries.

    `label` is "A", "B", ... from the flattest (smallest largest Hessian eigenvalue) on;
    `starts` how many of the searches ended there; `role` "flat", "middle", "sharp" if chosen for the
    escape study, else ""; `radius` the trust region's in the Hessian's metric.
    """

    label: str
    loss: float
    lambda_max: float
    trace: float
    lambda_min: float
    noise_trace: float
    alignment: float
    starts: int
    radius: float
    role: str = ""
    x: tuple[float, ...] = ()


@dataclass(frozen=True)
class EscapeRow:
    """How long a process stayed in the basin of one minimum.

    `process` is a key of `PROCESS_NAMES`; `steps` the mean exit time in SGD steps (None if
    the cell failed, then `error` says why); `check_every` SGD steps between two looks;
    `check_shift` the relative change of the mean when only every second look is used (None where
    unknown); `same_class` how many exits led to a mirror image of the same minimum.
    """

    minimum: str
    process: str
    learning_rate: float
    batch_size: int
    temperature: float
    horizon: int
    check_every: int
    steps: Estimate | None
    check_shift: float | None = None
    same_class: int = 0
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class FinalRow:
    """Where SGD was, by basin, after a fixed number of examples.

    `schedule` names the batch sizes over the run ("B = 4", "2 -> 8 -> 32"); `stages` their
    (batch size, SGD steps); `growing` whether the batch grew on the way; `shares` maps a
    minimum's label (or "other", "undecided") to its share; `stayed` is the share still in the
    start's class; `sharpness` and `loss` are means over the paths of the largest Hessian eigenvalue
    and of the loss at the minimum whose basin they were in.
    """

    start: str
    schedule: str
    learning_rate: float
    examples: int
    stages: tuple[tuple[int, int], ...]
    shares: Mapping[str, Estimate]
    stayed: Estimate | None
    sharpness: Estimate | None
    loss: Estimate | None
    growing: bool = False
    error: str = ""


@dataclass(frozen=True)
class LineRow:
    """Loss along the straight line from one minimum (s = 0) to another (s = 1)."""

    start: str
    end: str
    s: tuple[float, ...]
    loss: tuple[float, ...]


@dataclass(frozen=True)
class StudyResult:
    """All that a study found so far (`finished` tells whether that is all it set out for)."""

    name: str
    title: str
    description: str
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    minima: tuple[MinimumRow, ...] = ()
    search: Mapping[str, Any] = field(default_factory=dict)
    escapes: tuple[EscapeRow, ...] = ()
    finals: tuple[FinalRow, ...] = ()
    lines: tuple[LineRow, ...] = ()
    verdicts: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    finished: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe dictionary."""
        return {"format": FORMAT, **_plain({f.name: getattr(self, f.name) for f in fields(self)})}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StudyResult:
        """Inverse of `to_dict`; the rows of a network, which a study adds to them, are left out."""
        row = {k: v for k, v in data.items() if k not in ("format", "network")}
        row["minima"] = tuple(_minimum(m) for m in row["minima"])
        row["escapes"] = tuple(_escape(e) for e in row["escapes"])
        row["finals"] = tuple(_final(f) for f in row["finals"])
        row["lines"] = tuple(
            LineRow(**{**r, "s": tuple(r["s"]), "loss": tuple(r["loss"])}) for r in row["lines"]
        )
        row["verdicts"], row["notes"] = tuple(row["verdicts"]), tuple(row["notes"])
        return cls(**row)


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return value.to_dict()
    if hasattr(value, "__dataclass_fields__"):
        return _plain({f.name: getattr(value, f.name) for f in fields(value)})
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if hasattr(value, "item") else value


def _estimate(data: Mapping[str, Any] | None) -> Estimate | None:
    return None if data is None else Estimate.from_dict(data)


def _minimum(data: Mapping[str, Any]) -> MinimumRow:
    return MinimumRow(**{**data, "x": tuple(data["x"])})


def _escape(data: Mapping[str, Any]) -> EscapeRow:
    return EscapeRow(**{**data, "steps": _estimate(data["steps"])})


def _final(data: Mapping[str, Any]) -> FinalRow:
    return FinalRow(
        **{
            **data,
            "stages": tuple((int(b), int(k)) for b, k in data["stages"]),
            "shares": {k: Estimate.from_dict(v) for k, v in data["shares"].items()},
            **{k: _estimate(data[k]) for k in ("stayed", "sharpness", "loss")},
        }
    )
