"""What a study of a landscape found, and what follows from it: numbers, no words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...estimate import Estimate, share
from ...landscape import (
    DisconnectivityTree,
    Explained,
    Generalisation,
    Landscape,
    Passage,
    Saddle,
    disconnectivity_tree,
    explained,
)
from ...metastable import MarkovNetwork, Schedule, SchedulePlan, Stage, TransitionRates
from ...metastable.network import from_draws, laws_over
from ...metastable.verify import WORTH

QUARTER = 0.25


@dataclass(frozen=True, eq=False)
class MeasuredRun:
    """SGD under a schedule, looked at on the way.

    Attributes
    ----------
    schedule
        With its prediction.
    pieces
        The schedule cut at the looks.
    states
        (len(pieces) + 1, paths) state of each path at the start and after each piece.
    """

    schedule: Schedule
    pieces: tuple[Stage, ...]
    states: np.ndarray = field(repr=False)

    @property
    def examples(self) -> np.ndarray:
        """Examples seen at each look."""
        return np.concatenate([[0], np.cumsum([p.batch_size * p.steps for p in self.pieces])])

    def measured(self, members: np.ndarray) -> list[Estimate]:
        """Share of paths in the states `members` (m,) at each look."""
        paths = self.states.shape[1]
        return [share(int(members[row].sum()), paths) for row in self.states]

    def predicted(self, network: MarkovNetwork, members: np.ndarray) -> np.ndarray:
        """The network's (1 + draws, looks) shares from where these paths began."""
        began = np.bincount(self.states[0], minlength=len(network.labels))
        laws = laws_over(network, began / began.sum(), self.pieces)
        return np.stack([law[:, members].sum(axis=1) for law in laws], axis=1)


@dataclass(frozen=True, eq=False)
class LandscapeResult:
    """What is finished of a study of a landscape.

    Attributes
    ----------
    name, title, record
        What was studied, and its settings.
    budget
        Examples that a schedule may use.
    landscape, saddles, crossings
        Minima, passes, and between which two minima SGD was seen to pass.
    generalisation
        Scores of the minima on held-out examples; None if the problem has none.
    rates, plan, runs
        Rates between basins, the schedules that they recommend, and SGD under them.
    """

    name: str
    title: str
    record: Mapping[str, Any]
    budget: int
    landscape: Landscape | None = None
    saddles: tuple[Saddle, ...] = ()
    crossings: Mapping[tuple[int, int], Passage] = field(default_factory=dict)
    generalisation: Generalisation | None = None
    rates: TransitionRates | None = None
    plan: SchedulePlan | None = None
    runs: tuple[MeasuredRun, ...] = ()
    finished: bool = False
    seconds: float | None = None

    @property
    def missing(self) -> list[str]:
        """What is not there yet, in words."""
        parts = [
            ("the minima and passes", self.landscape),
            ("the rates between basins", self.rates),
            ("the schedules", self.plan),
            ("SGD under the schedules", self.finished),
        ]
        return [words for words, value in parts if not value]

    @property
    def tree(self) -> DisconnectivityTree:
        """The disconnectivity tree of what was found."""
        assert self.landscape is not None
        return disconnectivity_tree(self.landscape, self.saddles)

    @property
    def explained(self) -> Explained:
        """How many of the pairs of minima that SGD passed between the saddles explain."""
        assert self.landscape is not None
        return explained(self.crossings, self.landscape, self.saddles)


def quarters(network: MarkovNetwork) -> tuple[np.ndarray, np.ndarray]:
    """Which states (m,) are the flattest and the sharpest quarter of the listed ones."""
    sharpness = network.sharpness
    listed = np.flatnonzero(np.isfinite(sharpness))
    ranked = listed[np.argsort(sharpness[listed], kind="stable")]
    count = max(1, round(QUARTER * len(ranked)))
    flat, sharp = np.zeros(len(sharpness), bool), np.zeros(len(sharpness), bool)
    flat[ranked[:count]], sharp[ranked[-count:]] = True, True
    return flat, sharp & ~flat


def aimed(plan: SchedulePlan) -> np.ndarray:
    """Which states (m,) the schedules of `plan` are to end in."""
    return np.asarray(plan.weights) > 0


@dataclass(frozen=True)
class Cell:
    """Predicted and measured share of one state at the end of one schedule."""

    schedule: str
    state: str
    predicted: Estimate
    measured: Estimate

    @property
    def inside(self) -> bool:
        """Whether the prediction lies inside the measured interval."""
        low, high = self.measured.interval
        return bool(low <= self.predicted.value <= high)

    @property
    def apart(self) -> float:
        """Distance in joint standard errors, from the halves of both intervals that face."""
        side = 1 if self.predicted.value < self.measured.value else 0
        ours = abs(self.predicted.interval[side] - self.predicted.value)
        theirs = abs(self.measured.interval[1 - side] - self.measured.value)
        gap = abs(self.predicted.value - self.measured.value)
        return float(1.96 * gap / max(np.hypot(ours, theirs), 1e-300))


def cells(result: LandscapeResult) -> list[Cell]:
    """All states whose share is at least 2 % by prediction or measurement, of all schedules."""
    if result.rates is None:
        return []
    network, out = result.rates.network, []
    for run in result.runs:
        for k, label in enumerate(network.labels):
            members = np.arange(len(network.labels)) == k
            drawn = run.predicted(network, members)[:, -1]
            found = run.measured(members)[-1]
            if max(drawn[0], found.value) >= WORTH:
                predicted = from_draws(float(drawn[0]), drawn[1:])
                out.append(Cell(run.schedule.name, label, predicted, found))
    return out


def set_share(
    network: MarkovNetwork, start: Sequence[float], stages: Sequence[Stage], members: np.ndarray
) -> Estimate:
    """Predicted share in `members` (m,) at the end of `stages`."""
    drawn = laws_over(network, start, stages)[-1][:, members].sum(axis=1)
    return from_draws(float(drawn[0]), drawn[1:])


def numbers(result: LandscapeResult) -> dict[str, Any]:
    """Everything measured and predicted as JSON-safe rows: what ``estimates.json`` keeps."""
    scape, rates, plan = result.landscape, result.rates, result.plan
    minima = scape.minima if scape is not None else ()
    names = {-1: None, -2: None} | {k: m.label for k, m in enumerate(minima)}
    return {
        "name": result.name,
        "finished": result.finished,
        "budget": result.budget,
        "settings": {k: v for k, v in result.record.items() if k != "versions"},
        "versions": dict(result.record.get("versions", {})),
        "minima": [_fields(m, ("label", "loss", "lambda_max", "lambda_min", "trace",
                               "noise_trace", "alignment", "starts")) for m in minima],
        "notes": [*(scape.notes if scape is not None else ()),
                  *(rates.notes if rates is not None else ())],
        "passes": [
            {"label": s.label, "between": [names[e] for e in s.ends], "loss": s.loss,
             "negative_eigenvalue": float(s.eigenvalues[0])}
            for s in result.saddles
        ],
        "stays": [
            {**_fields(r, ("state", "batch_size", "exits")), "steps": r.time.to_dict(),
             "by": [e.to_dict() for e in r.evidence]}
            for r in (rates.escapes if rates is not None else ())
        ],
        "rates": [
            {**_fields(r, ("source", "target", "batch_size", "jumps")), "rate": r.rate.to_dict()}
            for r in (rates.edges if rates is not None else ())
        ],
        "schedules": [
            {"name": s.name, "stages": [[p.batch_size, p.steps] for p in s.stages],
             "predicted": s.score.to_dict()}
            for s in ((plan.best, *plan.rivals) if plan is not None else ())
        ],
        "final_shares": [
            {**_fields(c, ("schedule", "state")), "predicted": c.predicted.to_dict(),
             "measured": c.measured.to_dict()}
            for c in cells(result)
        ],
    }  # fmt: skip


def _fields(row: Any, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in names}
