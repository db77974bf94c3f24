"""Schedules of the batch size: the best one by optimal control, and its rivals."""

from __future__ import annotations

from dataclasses import dataclass

from ..estimate import Estimate
from .final import Stage


@dataclass(frozen=True)
class Schedule:
    """A batch size over examples, and where the network says it ends.

    Attributes
    ----------
    name
        "optimal", "constant B = 4", "geometric", ...
    stages
        Batch size and whole steps of each stage.
    score
        Predicted value of the objective at the end (for a set of states: the chance to be there).
    shares
        Predicted share of each state at the end.
    """

    name: str
    stages: tuple[Stage, ...]
    score: Estimate
    shares: dict[str, Estimate]


@dataclass(frozen=True)
class SchedulePlan:
    """The best schedule for a budget of examples, beside its rivals.

    Attributes
    ----------
    best
        By optimal control.
    rivals
        Constant, step, geometric, linear, logarithmic, and each growing one reversed; best first.
    objective
        In plain words.
    gain
        Predicted score of `best` minus that of the best constant batch size, paired over draws.
    growth_gain
        The same for the best schedule that never shrinks the batch.
    verdict
        Whether growth beats a constant batch, in plain words; also when it does not.
    start
        Name of the start.
    budget
        Examples.
    weights
        Weight of each state in the objective.
    """

    best: Schedule
    rivals: tuple[Schedule, ...]
    objective: str
    gain: Estimate
    growth_gain: Estimate
    verdict: str
    start: str
    budget: int
    weights: tuple[float, ...]


@dataclass(frozen=True)
class ScheduleCheck:
    """Predicted and measured final shares of one schedule.

    Attributes
    ----------
    name
        The schedule's.
    predicted, measured
        Share of each state at the end.
    predicted_score, measured_score
        Value of the objective.
    inside
        Share of states whose predicted share lies in the measured 95 % interval.
    """

    name: str
    predicted: dict[str, Estimate]
    measured: dict[str, Estimate]
    predicted_score: Estimate
    measured_score: Estimate
    inside: float
