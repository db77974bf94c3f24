"""The answer in plain words, and the terminal's table: sentences made from the numbers alone.

A sentence claims a difference only where an interval leaves out "no difference"; otherwise it says
that the data do not show one. Comparisons made many at a time use joint intervals.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

from ...results import EscapeRow, FinalRow, StudyResult
from ..ratios import Difference, Ratio, difference, per_doubling, ratio
from ..wording import (
    NOTHING,
    at_least,
    censored,
    counted,
    estimate,
    listing,
    number,
    sentence,
    share,
    spoken,
)
from . import reading, sections


def answer(result: StudyResult) -> str:
    """The study's answer in plain words: the main point, then a paragraph for each further one.

    Paragraphs are separated by empty lines. Unfinished studies are said to be so, and what has not been measured is left out.
    """
    result = reading.usable(result)
    paragraphs = [
        [*_opening(result), *_stays(result)],
        [*_doubling(result), *_rates(result), *_sharp_or_flat(result)],
        [*_ends(result), *_growing(result)],
        _diffusions(result),
    ]
    return "\n\n".join(" ".join(sentence(p) for p in found) for found in paragraphs if found)


def _opening(result: StudyResult) -> list[str]:
    if result.finished:
        return []
    if not (result.escapes or result.finals):
        return ["this study is not finished, and there is no answer yet."]
    return ["this study is not finished; so far it shows this."]


def _main_cells(result: StudyResult, label: str, process: str = "sgd") -> list[EscapeRow]:
    rows = reading.cells(
        result, minimum=label, process=process, learning_rate=reading.main_rate(result)
    )
    return [row for row in rows if row.steps is not None]


def _stays(result: StudyResult) -> list[str]:
    """How long SGD stays at the smallest and the largest batch, for each chosen minimum."""
    found = [(label, _main_cells(result, label)) for label in reading.by_role(result)]
    found = [(label, rows) for label, rows in found if rows]
    if not found:
        return []
    same = len({(rows[0].batch_size, rows[-1].batch_size) for _, rows in found}) == 1
    phrases = [
        f"in {reading.name_of(result, label)} {_first_last(rows, bool(k) and same)}"
        for k, (label, rows) in enumerate(found)
    ]
    rate = f"with learning rate {reading.main_rate(result):g}"
    if all(_longer(rows) for _, rows in found):
        return [
            f"the larger the batch, the longer SGD stays: {rate} on average {'; '.join(phrases)}."
        ]
    never = all(censored(row.steps) for _, rows in found for row in rows if row.steps)
    seen = "was never seen to leave and stays" if never else "stays"
    return [f"{rate}, SGD {seen} on average {'; '.join(phrases)}."]


def _longer(rows: list[EscapeRow]) -> bool:
    """Whether the time at the largest batch is clearly above that at the smallest."""
    return ratio(rows[-1].steps, rows[0].steps).above


def _first_last(rows: list[EscapeRow], understood: bool) -> str:
    """Times at the first and the last batch; the batches go unsaid where they are understood."""
    first, last = rows[0], rows[-1]
    if first is last:
        return f"{_steps(first)} steps" + (
            "" if understood else f" at batch size {first.batch_size}"
        )
    if understood:
        return f"{_steps(first)} and {_steps(last)}"
    return (
        f"{_steps(first)} steps at batch size {first.batch_size} and {_steps(last)} at "
        f"{last.batch_size}"
    )


def _steps(row: EscapeRow) -> str:
    assert row.steps is not None
    low, high = row.steps.interval
    if censored(row.steps):
        return f"more than {spoken(low, at_least)}"
    rough = "roughly " if not high < ROUGH * low else ""
    return rough + spoken(row.steps.value, number)


ROUGH = 3  # an interval that spans more than this factor makes a number rough


def _doubling(result: StudyResult) -> list[str]:
    """Factor per doubling of the batch, and whether the factor itself changes."""
    numbers = sections.escape(result)
    eta = reading.main_rate(result)
    if numbers is None:
        return []
    growth = {
        g.label: g
        for g in numbers.growth
        if g.process == "sgd" and g.learning_rate == eta and g.mean
    }
    found = [growth[label] for label in reading.by_role(result) if label in growth]
    if not found:
        return []
    bent = [g for g in found if _per_doubling(g, -1).low > _per_doubling(g, 0).high]
    return [_bending(bent[0]) if bent else _steady(found)]


def _per_doubling(growth: sections.Growth, step: int) -> Ratio:
    small, large, factor = growth.steps[step]
    return per_doubling(factor, log2(large / small))


def _steady(found: list[sections.Growth]) -> str:
    factors = [f"{g.mean[2]} in {g.label}" for g in found if g.mean]
    return f"each doubling of the batch multiplies that time on average by {listing(factors)}."


def _bending(growth: sections.Growth) -> str:
    """Growth that itself grows with the batch, as an exponential law makes it."""
    (a, b, _), (c, d, _) = growth.steps[0], growth.steps[-1]
    first, last = _per_doubling(growth, 0), _per_doubling(growth, -1)
    return (
        f"it grows faster and faster: in {growth.label} each doubling of the batch multiplies it "
        f"by {first} between batch sizes {a} and {b}, and by {last} between {c} and {d}."
    )


def _rates(result: StudyResult) -> list[str]:
    """What another learning rate does to the time in the sharpest minimum, at one batch size."""
    main, order = reading.main_rate(result), reading.by_role(result)
    others = [eta for eta in reading.learning_rates(result) if eta != main]
    if not (others and order):
        return []
    pairs = [
        (b.batch_size, r)
        for a in _main_cells(result, order[0])
        for b in reading.cells(result, minimum=order[0], process="sgd", learning_rate=others[0])
        if a.batch_size == b.batch_size and (r := ratio(b.steps, a.steps)).known
    ]
    if not pairs:
        return []
    size, factor = pairs[0]
    return [
        f"with learning rate {others[0]:g} it stays {factor} times as long in {order[0]} at batch "
        f"size {size}{_shown(factor)}."
    ]


def _shown(factor: Ratio) -> str:
    return "" if factor.above or factor.below else ", which is no difference shown"


def _sharp_or_flat(result: StudyResult) -> list[str]:
    """Whether SGD leaves the sharp minimum sooner, at the smallest batch both were seen to leave."""
    order = reading.by_role(result)
    if len(order) < 2:
        return []
    sharp, flat = order[0], order[-1]
    pairs = [
        (a, b, r)
        for a in _main_cells(result, sharp)
        for b in _main_cells(result, flat)
        if a.batch_size == b.batch_size and (r := ratio(b.steps, a.steps)).known
    ]
    if not pairs:
        return []
    row, _, factor = pairs[0]
    return [_sooner(factor, sharp, flat, row.batch_size)]


def _sooner(factor: Ratio, sharp: str, flat: str, size: int) -> str:
    if factor.above:
        return f"at batch size {size} it stays {factor} times as long in {flat} as in {sharp}."
    if factor.below:
        return (
            f"sharp is not what it leaves first here: at batch size {size} it stays only "
            f"{factor} times as long in the flatter minimum {flat} as in {sharp}."
        )
    return (
        f"the data do not show that it stays longer in {flat} than in {sharp} at batch size "
        f"{size}: the ratio is {factor}."
    )


def _diffusions(result: StudyResult) -> list[str]:
    numbers = sections.agreement(result)
    if numbers is None or not numbers.comparisons:
        return []
    names = [p for p in reading.processes(result) if numbers.of(p)]
    return [_against(reading.spoken_process(p), numbers.of(p)) for p in names]


def _against(name: str, found: list[sections.Comparison]) -> str:
    clear = [c for c in found if c.verdict == "differs"]
    cells = counted(len(found), "comparable cell")
    if not clear:
        widest = max(c.ratio.high / c.ratio.low if c.ratio.two_sided else 1 for c in found)
        return (
            f"in {cells} the data do not tell the {name} from SGD "
            f"(the widest ratio's interval spans a factor of {number(widest, 2)})."
        )
    worst = max(clear, key=_certain_gap)
    than = "longer" if worst.joint.above else "shorter"
    return (
        f"the {name} clearly disagrees with SGD in {len(clear)} of {cells}, most in {worst.label} "
        f"at batch size {worst.batch_size} and learning rate {worst.learning_rate:g}, where it "
        f"stays {than}: {worst.ratio} times SGD's steps."
    )


def _certain_gap(comparison: sections.Comparison) -> float:
    """The factor that the joint interval guarantees."""
    joint = comparison.joint
    return joint.low if joint.above else 1 / max(joint.high, 1e-300)


def _ends(result: StudyResult) -> list[str]:
    """Shares still in the start's basin at the smallest and the largest constant batch."""
    numbers = sections.finals(result)
    if numbers is None:
        return []
    order = reading.by_role(result)
    groups = [g for g in numbers.groups if g[1] == _finals_rate(result)]
    groups.sort(key=lambda g: order.index(g[0]) if g[0] in order else len(order))
    sharp_and_flat = groups[:1] + groups[-1:] if len(groups) > 1 else groups
    texts = [_left(start, rows, k == 0) for k, (start, _, rows) in enumerate(sharp_and_flat)]
    return [text for text in texts if text]


def _finals_rate(result: StudyResult) -> float:
    rates = [row.learning_rate for row in result.finals]
    main = reading.main_rate(result)
    return main if main is not None and main in rates else min(rates)


def _left(start: str, rows: tuple[FinalRow, ...], full: bool) -> str:
    """How many stayed; for the first start also how sharp it is where the runs ended."""
    constant = [r for r in rows if not r.growing and r.stayed is not None]
    if not constant:
        return ""
    first, last = constant[0], constant[-1]
    text = f"after {first.examples:,} examples, " if full else ""
    text += f"{share(first.stayed)} of the runs from {start} are still there"
    text += f" at {reading.first_batch(first)}"
    if first is not last:
        text += f" and {share(last.stayed)} at {reading.first_batch(last)}"
    if not full or first is last or first.sharpness is None or last.sharpness is None:
        return text + "."
    return text + _flatter(difference(first.sharpness, last.sharpness)) + "."


def _flatter(gap: Difference) -> str:
    if gap.low <= 0 <= gap.high:
        return f"; the mean sharpness they end with is not shown to differ ({gap})"
    if gap.value < 0:
        return f"; the small batch ends flatter, its mean λmax lower by {gap.reversed()}"
    return f"; the small batch ends sharper, its mean λmax higher by {gap}"


def _growing(result: StudyResult) -> list[str]:
    """Whether growing the batch helped, over all starts and growing schedules."""
    numbers = sections.finals(result)
    if numbers is None or not numbers.trials:
        return []
    by_quantity = [
        (words, [t for t in numbers.trials if t.quantity == quantity])
        for quantity, words in (("loss", "lower loss"), ("sharpness", "flatter minimum"))
    ]
    parts = [_growing_in(words, trials) for words, trials in by_quantity if trials]
    return ["growing the batch " + ", and ".join(parts) + "."]


def _growing_in(words: str, trials: list[sections.Trial]) -> str:
    won = [t for t in trials if t.verdict == "lower"]
    lost = [t for t in trials if t.verdict == "higher"]
    if won:
        best = min(won, key=lambda t: t.difference.high)
        where = "" if len(won) == len(trials) else f" in {len(won)} of {len(trials)} cases"
        return (
            f"ends at a {words} than every constant batch{where} (from {best.start}: "
            f"{best.difference} against {best.best_constant}, the best of them)"
        )
    if len(lost) == len(trials):
        least = min(lost, key=lambda t: t.difference.low)
        return (
            f"ends at a {_OPPOSITE[words]} than the best constant batch (from {least.start}: "
            f"{least.difference} against {least.best_constant})"
        )
    return f"is not shown to end at a {words} than the best constant batch"


_OPPOSITE = {"lower loss": "higher loss", "flatter minimum": "sharper minimum"}


@dataclass(frozen=True)
class SummaryTable:
    """Column heads and rows of text for a terminal."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def summary_table(result: StudyResult) -> SummaryTable:
    """One row for each minimum, learning rate and batch size; one column for each process.

    Times are mean exit times in SGD steps with 95% intervals.
    """
    result = reading.usable(result)
    processes = reading.processes(result)
    several = len(reading.learning_rates(result)) > 1
    head = ["minimum", "role", "sharpness", *(["η"] if several else []), "B"]
    names = [f"{reading.process_name(p)} (steps)" for p in processes]
    keys = dict.fromkeys(
        (label, row.learning_rate, row.batch_size)
        for label in reading.studied(result)
        for row in sorted(
            reading.cells(result, minimum=label), key=lambda r: (r.learning_rate, r.batch_size)
        )
    )
    rows = [_summary_row(result, *key, processes, several) for key in keys]
    return SummaryTable((*head, *names), tuple(rows))


def _summary_row(
    result: StudyResult, label: str, eta: float, size: int, processes: list[str], several: bool
) -> tuple[str, ...]:
    minimum = reading.minimum_of(result, label)
    found = {
        row.process: row
        for row in reading.cells(result, minimum=label, learning_rate=eta, batch_size=size)
    }
    return (
        label,
        (minimum.role if minimum else "") or NOTHING,
        number(minimum.lambda_max) if minimum else NOTHING,
        *([f"{eta:g}"] if several else []),
        str(size),
        *(cell_text(found.get(process)) for process in processes),
    )


def cell_text(row: EscapeRow | None) -> str:
    """One escape cell as text: a time, a limit, `failed`, or a dash if not run."""
    if row is None:
        return NOTHING
    return "failed" if row.steps is None else estimate(row.steps)
