"""What a result holds, asked in the words of the report: minima, cells, sizes, what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ...estimate import Estimate
from ...results import PROCESS_NAMES, EscapeRow, FinalRow, LineRow, MinimumRow, StudyResult
from ..wording import censored, counted, listing

ROLES = ("sharp", "middle", "flat")
_SIZES = ("n_examples", "examples_in_data", "rows", "n")


_LEAST, _MOST = 1e-12, 1e30  # steps: what lies outside is a broken number, not a time


def usable(result: StudyResult) -> StudyResult:
    """The result with every number that cannot be one set aside, so that a report never fails.

    An unusable escape time becomes a failed cell that says so; unusable shares and means are left
    out; lines that are not finite are dropped.
    """
    return replace(
        result,
        escapes=tuple(map(_usable_escape, result.escapes)),
        finals=tuple(map(_usable_final, result.finals)),
        lines=tuple(row for row in result.lines if _usable_line(row)),
    )


def _usable_escape(row: EscapeRow) -> EscapeRow:
    if row.steps is None or _is_time(row.steps):
        return row
    return replace(row, steps=None, error=row.error or f"unusable estimate: {row.steps}")


def _is_time(e: Estimate) -> bool:
    low, high = e.interval
    if censored(e):
        return _LEAST < low < _MOST
    return _LEAST < e.value < _MOST and low <= e.value <= high and e.stderr >= 0


def _usable_final(row: FinalRow) -> FinalRow:
    shares = {k: e for k, e in row.shares.items() if _is_share(e)}
    return replace(
        row,
        shares=shares,
        stayed=row.stayed if row.stayed and _is_share(row.stayed) else None,
        sharpness=row.sharpness if row.sharpness and _is_mean(row.sharpness) else None,
        loss=row.loss if row.loss and _is_mean(row.loss) else None,
    )


def _is_share(e: Estimate) -> bool:
    return 0 <= e.interval[0] <= e.value <= e.interval[1] <= 1


def _is_mean(e: Estimate) -> bool:
    low, high = e.interval
    return -_MOST < low <= e.value <= high < _MOST and 0 <= e.stderr < _MOST


def _usable_line(row: LineRow) -> bool:
    values = (*row.s, *row.loss)
    finite = all(v is not None and -_MOST < v < _MOST for v in values)
    return finite and 1 < len(row.s) == len(row.loss)


def find(settings: Any, *names: str) -> Any:
    """The first of `names` found in nested settings, outermost level first; None if in none.

    Examples
    --------
    >>> find({"data": {"rows": 120}, "seed": 1}, "n", "rows")
    120
    """
    level = [settings] if isinstance(settings, Mapping) else []
    while level:
        for name in names:
            for mapping in level:
                if mapping.get(name) is not None:
                    return mapping[name]
        level = [v for mapping in level for v in mapping.values() if isinstance(v, Mapping)]
    return None


def data_size(result: StudyResult) -> int | None:
    """Number of examples in the data, where the settings tell it (epochs need it)."""
    size = find(result.settings, *_SIZES)
    return size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else None


def process_name(process: str) -> str:
    """A process as a reader knows it."""
    return PROCESS_NAMES.get(process, process)


def spoken_process(process: str) -> str:
    """A process in a sentence.

    >>> spoken_process("diffusion-1"), spoken_process("sgd")
    ('order-1 diffusion', 'SGD')
    """
    kind, _, order = process.partition("-")
    return f"order-{order} diffusion" if kind == "diffusion" and order else process_name(process)


def processes(result: StudyResult) -> list[str]:
    """Processes of the escape cells, in the order of `PROCESS_NAMES`, unknown ones last."""
    seen = dict.fromkeys(row.process for row in result.escapes)
    return [p for p in PROCESS_NAMES if p in seen] + [p for p in seen if p not in PROCESS_NAMES]


def learning_rates(result: StudyResult) -> list[float]:
    """Learning rates of the escape cells, from the smallest."""
    return sorted({row.learning_rate for row in result.escapes})


def batch_sizes(result: StudyResult) -> list[int]:
    """Batch sizes of the escape cells, from the smallest."""
    return sorted({row.batch_size for row in result.escapes})


def minimum_of(result: StudyResult, label: str) -> MinimumRow | None:
    """The minimum with this label, if it was listed."""
    return next((m for m in result.minima if m.label == label), None)


def studied(result: StudyResult) -> list[str]:
    """Labels of the minima with escape cells or a role: in the order listed, flattest first."""
    wanted = dict.fromkeys(row.minimum for row in result.escapes)
    listed = [m.label for m in result.minima if m.role or m.label in wanted]
    return listed + [label for label in wanted if label not in listed]


def name_of(result: StudyResult, label: str) -> str:
    """A minimum with its role: ``the sharp minimum F``; without a role ``minimum F``."""
    minimum = minimum_of(result, label)
    return f"the {minimum.role} minimum {label}" if minimum and minimum.role else f"minimum {label}"


def by_role(result: StudyResult) -> list[str]:
    """Labels of the studied minima, sharp first; without roles, the sharpest first."""
    labels = studied(result)
    roles = {m.label: m.role for m in result.minima}
    chosen = [label for role in ROLES for label in labels if roles.get(label) == role]
    return chosen or labels[::-1]


def cells(result: StudyResult, **wanted: Any) -> list[EscapeRow]:
    """Escape cells whose fields equal `wanted`, by growing batch size."""
    found = [row for row in result.escapes if all(getattr(row, k) == v for k, v in wanted.items())]
    return sorted(found, key=lambda row: row.batch_size)


def known(row: EscapeRow) -> Estimate | None:
    """The mean exit time if at least one exit was seen."""
    return row.steps if row.steps is not None and not censored(row.steps) else None


def kind(row: EscapeRow) -> str:
    """`failed`, `limit` (no exit was seen: a lower limit) or `value`."""
    if row.steps is None:
        return "failed"
    return "limit" if censored(row.steps) else "value"


def main_rate(result: StudyResult) -> float | None:
    """The learning rate with the most measured SGD cells; of several, the smallest."""
    sgd = [row for row in result.escapes if row.process == "sgd" and known(row) is not None]
    rates = [row.learning_rate for row in sgd] or learning_rates(result)
    return min(rates, key=lambda eta: (-rates.count(eta), eta), default=None)


def expected_cells(result: StudyResult) -> Iterator[tuple[str, str, float, int]]:
    """The escape cells that the study set out for, as far as settings and rows tell."""
    part = find(result.settings, "escape", "escapes")
    settings = part if isinstance(part, Mapping) else result.settings
    etas = _numbers(find(settings, "learning_rates")) or learning_rates(result)
    sizes = _numbers(find(settings, "batch_sizes")) or batch_sizes(result)
    for label in studied(result):
        for process in processes(result):
            for eta in etas:
                for size in sizes:
                    yield label, process, float(eta), int(size)


def _numbers(value: Any) -> list[float]:
    return (
        [v for v in value if isinstance(v, int | float)] if isinstance(value, list | tuple) else []
    )


def missing(result: StudyResult) -> list[str]:
    """What an unfinished study still lacks, one phrase each; empty for a finished one."""
    if result.finished:
        return []
    if not result.minima:
        return ["the minima, and all that is measured from them"]
    have = {(r.minimum, r.process, r.learning_rate, r.batch_size) for r in result.escapes}
    gaps = [cell for cell in expected_cells(result) if cell not in have]
    found = []
    if not have:
        found.append("all escape times")
    elif gaps:
        where = listing(dict.fromkeys(spoken_process(p) for _, p, _, _ in gaps))
        found.append(f"{counted(len(gaps), 'escape time')} ({where})")
    found += ["where SGD ends"] if not result.finals else []
    found += ["the loss between the minima"] if not result.lines else []
    return found or ["the last steps of the run"]


def failed(result: StudyResult) -> list[tuple[str, str]]:
    """Cells that gave no number: where, and the error."""
    escapes = [
        (
            f"{spoken_process(r.process)} from minimum {r.minimum}, B = {r.batch_size}, "
            f"η = {r.learning_rate:g}",
            r.error or "no reason was recorded",
        )
        for r in result.escapes
        if r.steps is None
    ]
    finals = [
        (f"SGD from minimum {r.start}, {arrows(r.schedule)}, η = {r.learning_rate:g}", r.error)
        for r in result.finals
        if r.error
    ]
    return escapes + finals


def first_batch(row: FinalRow) -> str:
    """How a run began: ``batch size 2``, or its schedule's name if no stage was recorded."""
    return f"batch size {row.stages[0][0]}" if row.stages else row.schedule


def arrows(schedule: str) -> str:
    """A schedule's name with real arrows.

    >>> arrows("2 -> 8")
    '2 → 8'
    """
    return schedule.replace("->", "→")
