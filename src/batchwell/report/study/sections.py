"""Results to numbers: one function for each section of the report.

`SECTIONS` is the roster. A function takes the `StudyResult` and returns plain data, or None where
the study has nothing to say on it (yet); the page then prints the row's `absent` sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import log2
from typing import Any

from ...estimate import Estimate
from ...results import EscapeRow, FinalRow, LineRow, MinimumRow, StudyResult
from ..ratios import Difference, Ratio, difference, lowest, per_doubling, ratio, simultaneous
from ..wording import censored, number
from . import reading


@dataclass(frozen=True)
class Cell:
    """One escape cell in all units: `kind` is `value`, `limit` or `failed`."""

    row: EscapeRow
    kind: str
    epochs: Estimate | None
    time: Estimate | None


@dataclass(frozen=True)
class Place:
    """The cells of one minimum at one learning rate, by process."""

    label: str
    name: str
    sharpness: float | None
    learning_rate: float
    cells: Mapping[str, tuple[Cell, ...]]


@dataclass(frozen=True)
class Growth:
    """How one process' mean exit time grows with the batch at one minimum.

    `steps` holds (small batch, large batch, ratio); `mean` the factor per doubling averaged
    over all determined cells (first, last batch), None with fewer than two.
    """

    label: str
    process: str
    learning_rate: float
    steps: tuple[tuple[int, int, Ratio], ...]
    mean: tuple[int, int, Ratio] | None


@dataclass(frozen=True)
class Escape:
    """Mean exit times: where, and how they grow."""

    places: tuple[Place, ...]
    growth: tuple[Growth, ...]
    data_size: int | None


def scaled(estimate: Estimate | None, factor: float, unit: str) -> Estimate | None:
    """An estimate in another unit."""
    if estimate is None:
        return None
    low, high = estimate.interval
    return Estimate(
        estimate.value * factor,
        estimate.stderr * factor,
        (low * factor, high * factor),
        unit,
        estimate.method,
        estimate.n,
        estimate.n_censored,
        estimate.notes,
        estimate.level,
    )


def cell(row: EscapeRow, size: int | None) -> Cell:
    """A row with its time in epochs (steps B / n) and in t = eta steps."""
    epochs = scaled(row.steps, row.batch_size / size, "epochs") if size else None
    return Cell(row, reading.kind(row), epochs, scaled(row.steps, row.learning_rate, "time"))


def escape(result: StudyResult) -> Escape | None:
    """Mean exit times by minimum, learning rate, process and batch size."""
    if not result.escapes:
        return None
    size = reading.data_size(result)
    places = tuple(
        place
        for eta in reading.learning_rates(result)
        for label in reading.studied(result)
        if (place := _place(result, label, eta, size)).cells
    )
    growth = tuple(
        _growth(place, process, [c.row for c in found])
        for place in places
        for process, found in place.cells.items()
    )
    return Escape(places, tuple(g for g in growth if g.steps), size)


def _place(result: StudyResult, label: str, eta: float, size: int | None) -> Place:
    minimum = reading.minimum_of(result, label)
    found = {
        process: tuple(
            cell(row, size)
            for row in reading.cells(result, minimum=label, learning_rate=eta, process=process)
        )
        for process in reading.processes(result)
    }
    sharpness = minimum.lambda_max if minimum else None
    name = reading.name_of(result, label)
    return Place(label, name, sharpness, eta, {k: v for k, v in found.items() if v})


def _growth(place: Place, process: str, rows: list[EscapeRow]) -> Growth:
    """Factors between neighbouring batch sizes, and the mean factor per doubling."""
    pairs = [(a, b, ratio(b.steps, a.steps)) for a, b in pairwise(rows)]
    steps = tuple(
        (a.batch_size, b.batch_size, r)
        for a, b, r in pairs
        if r.known and b.batch_size > a.batch_size
    )
    sure = [row for row in rows if reading.known(row) is not None]
    mean = None
    if len(sure) > 1 and sure[-1].batch_size > sure[0].batch_size:
        first, last = sure[0], sure[-1]
        doublings = log2(last.batch_size / first.batch_size)
        factor = per_doubling(ratio(last.steps, first.steps), doublings)
        mean = (first.batch_size, last.batch_size, factor)
    return Growth(place.label, process, place.learning_rate, steps, mean)


@dataclass(frozen=True)
class Comparison:
    """A diffusion's mean exit time over SGD's in the same cell.

    `ratio` has a 95% interval of its own; `joint` one that holds together with all
    others. `verdict`: `differs` (joint interval leaves out 1), `unclear` (only the single one
    does), `compatible` (neither does).
    """

    label: str
    process: str
    learning_rate: float
    batch_size: int
    ratio: Ratio
    joint: Ratio
    verdict: str


@dataclass(frozen=True)
class Agreement:
    """All comparisons with SGD, and the study's own verdicts."""

    comparisons: tuple[Comparison, ...]
    verdicts: tuple[Mapping[str, Any], ...]

    def of(self, process: str) -> list[Comparison]:
        """The comparisons of one diffusion."""
        return [c for c in self.comparisons if c.process == process]


def agreement(result: StudyResult) -> Agreement | None:
    """Every diffusion against SGD, cell by cell, with an allowance for many comparisons."""
    pairs = [
        (row, sgd[0])
        for row in result.escapes
        if row.process != "sgd" and (sgd := _same_cell(result, row)) and _comparable(row, sgd[0])
    ]
    level = simultaneous(len(pairs))
    comparisons = tuple(_comparison(row, sgd, level) for row, sgd in pairs)
    if not comparisons and not result.verdicts:
        return None
    return Agreement(comparisons, tuple(result.verdicts))


def _same_cell(result: StudyResult, row: EscapeRow) -> list[EscapeRow]:
    return reading.cells(
        result,
        minimum=row.minimum,
        process="sgd",
        learning_rate=row.learning_rate,
        batch_size=row.batch_size,
    )


def _comparable(row: EscapeRow, sgd: EscapeRow) -> bool:
    return ratio(row.steps, sgd.steps).known


def _comparison(row: EscapeRow, sgd: EscapeRow, level: float) -> Comparison:
    single, joint = ratio(row.steps, sgd.steps), ratio(row.steps, sgd.steps, level)
    if joint.above or joint.below:
        verdict = "differs"
    else:
        verdict = "unclear" if single.above or single.below else "compatible"
    return Comparison(
        row.minimum, row.process, row.learning_rate, row.batch_size, single, joint, verdict
    )


MEASURES = {
    "lambda_max": "largest Hessian eigenvalue λmax",
    "trace": "Hessian trace",
    "noise_trace": "gradient noise tr Σ",
}


@dataclass(frozen=True)
class Sharpness:
    """SGD's exit times beside the sharpness of the minima they start from."""

    minima: Mapping[str, MinimumRow]
    cells: tuple[Cell, ...]

    @property
    def learning_rates(self) -> list[float]:
        """Learning rates, from the smallest."""
        return sorted({c.row.learning_rate for c in self.cells})


def sharpness(result: StudyResult) -> Sharpness | None:
    """SGD's exit times against the curvature and the noise at the minimum."""
    minima = {m.label: m for m in result.minima}
    size = reading.data_size(result)
    rows = [r for r in reading.cells(result, process="sgd") if r.minimum in minima]
    found = tuple(cell(r, size) for r in rows if r.steps is not None)
    return Sharpness(minima, found) if found else None


@dataclass(frozen=True)
class Trial:
    """One growing schedule against the best constant batch, in one mean at the end of the run.

    `verdict`: `lower` (clearly below every constant batch), `higher` (clearly above the best one),
    `open` (the data do not tell them apart).
    """

    start: str
    learning_rate: float
    schedule: str
    quantity: str
    best_constant: str
    difference: Difference
    verdict: str


@dataclass(frozen=True)
class Finals:
    """Where SGD was after its examples, by start and learning rate."""

    groups: tuple[tuple[str, float, tuple[FinalRow, ...]], ...]
    labels: tuple[str, ...]
    sharpness: Mapping[str, float]
    trials: tuple[Trial, ...]


def finals(result: StudyResult) -> Finals | None:
    """Final basins by schedule, and whether growing the batch helped."""
    if not result.finals:
        return None
    keys = dict.fromkeys((row.start, row.learning_rate) for row in result.finals)
    groups = tuple((*key, _schedules(result, *key)) for key in keys)
    seen = {label for row in result.finals for label in row.shares}
    known = [m.label for m in result.minima if m.label in seen]
    labels = (*known, *sorted(seen - set(known)))
    trials = tuple(t for start, eta, rows in groups for t in _trials(start, eta, rows))
    return Finals(groups, labels, {m.label: m.lambda_max for m in result.minima}, trials)


def _schedules(result: StudyResult, start: str, eta: float) -> tuple[FinalRow, ...]:
    """Constant batches by size, then growing schedules by their first stages."""
    rows = [r for r in result.finals if r.start == start and r.learning_rate == eta]
    return tuple(sorted(rows, key=lambda r: (r.growing, r.stages)))


QUANTITIES = {"loss": "loss", "sharpness": "sharpness"}


def _trials(start: str, eta: float, rows: tuple[FinalRow, ...]) -> list[Trial]:
    out = []
    for row in (r for r in rows if r.growing):
        rivals = [r for r in rows if not r.growing and r.examples == row.examples]
        for quantity in QUANTITIES:
            mine = getattr(row, quantity)
            others = [(r.schedule, e) for r in rivals if (e := getattr(r, quantity)) is not None]
            if mine is not None and others:
                out.append(_trial(start, eta, row.schedule, quantity, mine, others))
    return out


def _trial(
    start: str,
    eta: float,
    schedule: str,
    quantity: str,
    mine: Estimate,
    others: list[tuple[str, Estimate]],
) -> Trial:
    level = simultaneous(len(others))
    gaps = [difference(mine, other, level) for _, other in others]
    best, rival = lowest(others)
    if all(gap.high < 0 for gap in gaps):
        verdict = "lower"
    else:
        # The best of several is chosen by its own luck: its interval is the joint one, too.
        verdict = "higher" if difference(mine, rival, level).low > 0 else "open"
    return Trial(start, eta, schedule, quantity, best, difference(mine, rival, level), verdict)


@dataclass(frozen=True)
class Line:
    """Loss between two minima: `barrier` is the top above the higher of the two ends."""

    row: LineRow
    top: float
    barrier: float


def lines(result: StudyResult) -> tuple[Line, ...] | None:
    """Loss along straight lines, with the height in between."""
    found = []
    for row in result.lines:
        top = max(row.loss)
        found.append(Line(row, top, top - max(row.loss[0], row.loss[-1])))
    return tuple(found) or None


@dataclass(frozen=True)
class Minima:
    """All minima and how they were found."""

    rows: tuple[MinimumRow, ...]
    search: Mapping[str, str]


def minima(result: StudyResult) -> Minima | None:
    """The list of minima, flattest first."""
    if not result.minima:
        return None
    return Minima(tuple(result.minima), flatten(result.search))


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted keys and readable values.

    Examples
    --------
    >>> flatten({"escape": {"batch_sizes": [1, 2], "quick": True}})
    {'escape.batch_sizes': '1, 2', 'escape.quick': 'yes'}
    """
    out: dict[str, str] = {}
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            out.update(flatten(value, f"{name}."))
        elif value is not None:
            out[name] = plain(value)
    return out


def plain(value: Any) -> str:
    """A setting as text; settings are exact, so no digit is dropped."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(plain(v) for v in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{k} = {plain(v)}" for k, v in value.items())
    return f"{value:.12g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Warnings:
    """What a reader has to know before trusting the numbers."""

    notes: tuple[str, ...]
    failed: tuple[tuple[str, str], ...] = ()
    cell_notes: tuple[tuple[str, str], ...] = field(default=())


CHECK_SHIFT = 0.05  # relative; below it the interval between looks hardly matters


def warnings(result: StudyResult) -> Warnings | None:
    """Notes of the study, failed cells, and what single estimates say of themselves."""
    failed = tuple(reading.failed(result))
    found = tuple(note for row in result.escapes for note in _cell_notes(row))
    if not (result.notes or failed or found):
        return None
    return Warnings(tuple(result.notes), failed, found)


def _cell_notes(row: EscapeRow) -> list[tuple[str, str]]:
    if row.steps is None:
        return []
    where = (
        f"{reading.spoken_process(row.process)} from minimum {row.minimum}, "
        f"B = {row.batch_size}, η = {row.learning_rate:g}"
    )
    # That a limit is a limit stands in every table already.
    said = [] if censored(row.steps) else list(row.steps.notes)
    if row.check_shift is not None and abs(row.check_shift) > CHECK_SHIFT:
        said.append(
            f"looking half as often changes the mean by {number(100 * row.check_shift, 2)}%: "
            "the interval between looks is too long for this cell"
        )
    return [(where, text) for text in said]


@dataclass(frozen=True)
class Settings:
    """How it was run and how to run it again."""

    settings: Mapping[str, str]
    versions: Mapping[str, str]
    command: str
    resume: str
    seconds: float


def settings(result: StudyResult) -> Settings:
    """Settings, versions and the command line.

    ``command`` in the settings is how the study was started; ``resume_command`` how to go on, else
    the command with ``--resume``. The size of the data (``n_examples``) gives epochs.
    """
    command = str(reading.find(result.settings, "command") or "")
    resume = str(reading.find(result.settings, "resume_command") or "")
    if command and not resume:
        resume = command if "--resume" in command else f"{command} --resume"
    shown = {
        k: v
        for k, v in flatten(result.settings).items()
        if k.split(".")[-1] not in {"command", "resume_command"}
    }
    versions = {str(k): str(v) for k, v in result.versions.items()}
    return Settings(shown, versions, command, resume, result.seconds)


@dataclass(frozen=True)
class Section:
    """A row of the roster: `references` are cited whenever the section has numbers."""

    key: str
    title: str
    numbers: Callable[[StudyResult], Any]
    references: tuple[str, ...] = ()
    absent: str = ""


SECTIONS = (
    Section(
        "escape",
        "How long SGD stays, by batch size",
        escape,
        ("freidlin-wentzell",),
        "No escape time was measured.",
    ),
    Section(
        "agreement",
        "Does the diffusion tell the same story?",
        agreement,
        (),
        "No cell has both SGD and a diffusion to compare.",
    ),
    Section(
        "sharpness",
        "Sharpness against escape time",
        sharpness,
        ("keskar", "dinh"),
        "No escape time of SGD from a listed minimum was measured.",
    ),
    Section(
        "finals",
        "Where SGD ends",
        finals,
        (),
        "Where SGD ends was not measured.",
    ),
    Section(
        "lines",
        "Loss between the minima",
        lines,
        ("goodfellow",),
        "The loss between the minima was not evaluated.",
    ),
    Section("minima", "All minima found", minima, (), "No minimum was found."),
    Section("warnings", "Notes and warnings", warnings, (), "Nothing to report."),
    Section("settings", "Settings, and how to run it again", settings),
)
