"""Numbers to tables: heads, rows of text, captions; all that the figures show and more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ...results import FinalRow, MinimumRow, StudyResult
from ..document import Table, pairs
from ..wording import NOTHING, estimate, measured, number, share, span, whole
from . import reading, sections


def glance(result: StudyResult) -> Table | None:
    """SGD's mean exit time of the chosen minima by batch size, at the main learning rate."""
    eta = reading.main_rate(result)
    sizes = reading.batch_sizes(result)
    rows = [
        (_named(result, label), *(_glance_cell(result, label, eta, b) for b in sizes))
        for label in reading.by_role(result)
    ]
    if eta is None or not any(set(row[1:]) - {NOTHING} for row in rows):
        return None
    caption = f"Mean exit time of SGD in steps, with 95% intervals, at learning rate η = {eta:g}"
    return Table(caption, ("from", *(f"B = {b}" for b in sizes)), tuple(rows))


def _named(result: StudyResult, label: str) -> str:
    minimum = reading.minimum_of(result, label)
    return f"{label} ({minimum.role})" if minimum and minimum.role else label


def _glance_cell(result: StudyResult, label: str, eta: float | None, size: int) -> str:
    found = reading.cells(result, minimum=label, process="sgd", learning_rate=eta, batch_size=size)
    if not found:
        return NOTHING
    return estimate(found[0].steps) if found[0].steps is not None else "failed"


def escape_tables(result: StudyResult, numbers: sections.Escape) -> list[Table]:
    """Every escape cell, and the factors between batch sizes."""
    epochs = ("epochs",) if numbers.data_size else ()
    columns = (
        "minimum", "process", "η", "B", "ε", "mean exit time (steps)", *epochs, "time t = η k",
        "runs", "never left", "to a mirror image", "looked every", "horizon (steps)",
    )  # fmt: skip
    rows = [
        _cell_row(cell, bool(epochs))
        for place in numbers.places
        for found in place.cells.values()
        for cell in found
    ]
    unit = f"; one epoch is {numbers.data_size:,} examples" if numbers.data_size else ""
    caption = (
        f"All escape cells, with 95% intervals{unit}. ε is the temperature, η / B with replacement."
    )
    tables = [Table(caption, columns, tuple(rows), 4)]
    return tables + ([_growth_table(numbers.growth)] if numbers.growth else [])


def _cell_row(cell: sections.Cell, epochs: bool) -> tuple[str, ...]:
    row = cell.row
    steps = row.steps
    shown = [cell.epochs] if epochs else []
    return (
        row.minimum,
        reading.process_name(row.process),
        f"{row.learning_rate:g}",
        whole(row.batch_size),
        number(row.temperature),
        "failed" if steps is None else estimate(steps),
        *(estimate(e) for e in (*shown, cell.time)),
        whole(steps.n) if steps else NOTHING,
        whole(steps.n_censored) if steps else NOTHING,
        whole(row.same_class) if steps else NOTHING,
        whole(row.check_every),
        whole(row.horizon),
    )


def _growth_table(growth: Sequence[sections.Growth]) -> Table:
    pairs = sorted({(a, b) for g in growth for a, b, _ in g.steps})
    rows = tuple(_growth_row(g, pairs) for g in growth)
    columns = ("minimum", "process", "η", *(f"B = {a} to {b}" for a, b in pairs), "per doubling")
    caption = (
        "By what the mean exit time is multiplied when the batch grows, with 95% intervals; last, "
        "the mean factor per doubling over the batches at which an exit was seen"
    )
    return Table(caption, columns, rows, 3)


def _growth_row(g: sections.Growth, pairs: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    factors = {(a, b): str(factor) for a, b, factor in g.steps}
    return (
        g.label,
        reading.process_name(g.process),
        f"{g.learning_rate:g}",
        *(factors.get(pair, NOTHING) for pair in pairs),
        str(g.mean[2]) if g.mean else NOTHING,
    )


VERDICTS = {
    "differs": "differs",
    "unclear": "unclear: differs alone, not jointly",
    "compatible": "no difference shown",
}


def agreement_tables(result: StudyResult, numbers: sections.Agreement) -> list[Table]:
    """Every comparison of a diffusion with SGD."""
    if not numbers.comparisons:
        return []
    rows = tuple(
        (
            c.label,
            reading.process_name(c.process),
            f"{c.learning_rate:g}",
            whole(c.batch_size),
            str(c.ratio),
            span(c.joint.low, c.joint.high) if c.joint.two_sided else str(c.joint),
            VERDICTS[c.verdict],
        )
        for c in numbers.comparisons
    )
    columns = (
        "minimum", "diffusion", "η", "B", "time / SGD's time (95%)", "joint interval", "reading",
    )  # fmt: skip
    count = len(rows)
    caption = (
        "Mean exit time of the diffusions, relative to SGD in the same cell. The joint intervals "
        f"hold for all {count} comparisons together; only they decide the reading."
    )
    return [Table(caption, columns, rows, 4)]


def finals_tables(result: StudyResult, numbers: sections.Finals) -> list[Table]:
    """Every final distribution, and growing schedules against constant ones."""
    rows = tuple(_final_row(row) for _, _, group in numbers.groups for row in group)
    columns = (
        "start", "η", "schedule", "B × steps", "still there", "mean loss", "mean λmax",
        "final basins",
    )  # fmt: skip
    caption = "Where SGD was after its examples, with 95% intervals"
    tables = [Table(caption, columns, rows, 3)]
    return tables + ([_trials_table(numbers.trials)] if numbers.trials else [])


def _final_row(row: FinalRow) -> tuple[str, ...]:
    found = [f"{label} {share(e)}" for label, e in row.shares.items() if e.value > 0]
    return (
        row.start,
        f"{row.learning_rate:g}",
        reading.arrows(row.schedule),
        ", ".join(f"{b:,} × {k:,}" for b, k in row.stages),
        share(row.stayed),
        estimate(row.loss),
        estimate(row.sharpness),
        f"failed: {row.error}" if row.error else "; ".join(found) or NOTHING,
    )


TRIALS = {
    "lower": "lower than every constant batch",
    "higher": "higher than the best constant batch",
    "open": "no difference shown",
}


def _trials_table(trials: Iterable[sections.Trial]) -> Table:
    rows = tuple(
        (
            t.start,
            f"{t.learning_rate:g}",
            reading.arrows(t.schedule),
            t.quantity,
            t.best_constant,
            str(t.difference),
            TRIALS[t.verdict],
        )
        for t in trials
    )
    columns = (
        "start", "η", "growing batch", "mean", "best constant", "difference", "reading",
    )  # fmt: skip
    caption = (
        "Growing the batch against the best constant one. Intervals hold jointly for all "
        "constant batches of a row."
    )
    return Table(caption, columns, rows, 4)


def lines_tables(result: StudyResult, numbers: Iterable[sections.Line]) -> list[Table]:
    """Ends and heights of the lines."""
    rows = tuple(
        (
            f"{line.row.start} to {line.row.end}",
            *(measured(v, 4) for v in (line.row.loss[0], line.top, line.row.loss[-1])),
            measured(line.barrier),
        )
        for line in numbers
    )
    columns = ("line", "loss at the start", "highest loss", "loss at the end", "above higher end")
    return [Table("Loss along straight lines between minima", columns, rows)]


def minima_tables(result: StudyResult, numbers: sections.Minima) -> list[Table]:
    """All minima, and the search that found them."""
    rows = tuple(_minimum_row(m) for m in numbers.rows)
    columns = (
        "minimum", "role", "loss", "λmax", "trace H", "λmin", "noise tr Σ", "alignment",
        "trust radius", "searches",
    )  # fmt: skip
    caption = (
        "All minima up to the problem's symmetries, flattest first. Alignment is between gradient "
        "noise and curvature; searches is how many ended there."
    )
    tables = [Table(caption, columns, rows)]
    return tables + ([pairs("The search", numbers.search)] if numbers.search else [])


def _minimum_row(m: MinimumRow) -> tuple[str, ...]:
    values = (m.lambda_max, m.trace, m.lambda_min, m.noise_trace, m.alignment, m.radius)
    return (
        m.label,
        m.role or NOTHING,
        measured(m.loss, 4),
        *(measured(v) for v in values),
        whole(m.starts),
    )


def warning_tables(result: StudyResult, numbers: sections.Warnings) -> list[Table]:
    """Failed cells and remarks on single cells."""
    tables = []
    if numbers.failed:
        tables.append(Table("Cells that failed", ("cell", "error"), numbers.failed))
    if numbers.cell_notes:
        caption = "What single numbers say of themselves"
        tables.append(Table(caption, ("cell", "note"), numbers.cell_notes))
    return tables


def settings_tables(result: StudyResult, numbers: sections.Settings) -> list[Table]:
    """Settings and versions."""
    found = [("Settings", numbers.settings), ("Versions", numbers.versions)]
    return [pairs(caption, values) for caption, values in found if values]


# Section -> its tables. They take the result and the section's numbers.
TABLES: Mapping[str, Callable[[StudyResult, Any], list[Table]]] = {
    "escape": escape_tables,
    "agreement": agreement_tables,
    "finals": finals_tables,
    "lines": lines_tables,
    "minima": minima_tables,
    "warnings": warning_tables,
    "settings": settings_tables,
}


def tables_of(key: str, result: StudyResult, numbers: Any) -> list[Table]:
    """The tables of a section; none without numbers."""
    return TABLES[key](result, numbers) if key in TABLES and numbers is not None else []
