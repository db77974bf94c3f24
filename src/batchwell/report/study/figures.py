"""Numbers to figures: each figure is plain data for `svg` to draw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ...estimate import Estimate
from ...results import FinalRow, StudyResult
from .. import wording
from ..drawing import (
    SHORT,
    STYLES,
    Axis,
    Bars,
    Curve,
    Dots,
    Figure,
    Mark,
    Panel,
    Part,
    Plot,
    batch_axis,
    estimate_mark,
    linear_axis,
    linear_ticks,
    log_axis,
    mark_ends,
    ratio_mark,
    shade,
)
from . import reading, sections


def _escape_curves(place: sections.Place) -> tuple[Curve, ...]:
    return tuple(
        Curve(
            SHORT.get(process, process),
            STYLES.get(process, "other"),
            tuple(
                estimate_mark(
                    c.row.batch_size,
                    c.row.steps,
                    f"{reading.process_name(process)}, {place.label}, B = {c.row.batch_size}",
                    c.row.error,
                )
                for c in found
            ),
        )
        for process, found in place.cells.items()
    )


def _by_rate(pairs: Iterable[tuple[float, Panel]]) -> tuple[tuple[str, tuple[Panel, ...]], ...]:
    """Panels in groups by learning rate."""
    groups: dict[float, list[Panel]] = {}
    for eta, panel in pairs:
        groups.setdefault(eta, []).append(panel)
    return tuple((f"Learning rate η = {eta:g}", tuple(found)) for eta, found in groups.items())


def _place_title(place: sections.Place) -> str:
    name = wording.sentence(place.name.removeprefix("the "))
    if place.sharpness is None:
        return name
    return f"{name}, λmax = {wording.measured(place.sharpness)}"


LEGEND_TIMES = (
    ("value", "mean with 95% interval"),
    ("limit", "no exit seen: the true mean lies above (95% lower limit)"),
    ("failed", "cell failed, see the warnings"),
)


def escape_figure(result: StudyResult, numbers: sections.Escape) -> Figure:
    """Log mean exit time against batch size: one panel for each minimum and learning rate."""
    curves = [(place, _escape_curves(place)) for place in numbers.places]
    horizons = [float(c.row.horizon) for p in numbers.places for cs in p.cells.values() for c in cs]
    ends = mark_ends(c for _, cs in curves for c in cs)
    y = log_axis("mean exit time (SGD steps)", [*ends, *horizons], 0.09)
    x = batch_axis(reading.batch_sizes(result))
    panels = [(p.learning_rate, Plot(_place_title(p), x, y, cs, _watched(p))) for p, cs in curves]
    kinds = {m.kind for _, cs in curves for c in cs for m in c.marks}
    return Figure(
        "escape",
        "Mean exit time against batch size",
        "How many SGD steps pass on average until the basin of a minimum is left, on logarithmic "
        "scales, with 95% intervals. All panels share their axes. Runs that never left are kept: "
        "means and limits beyond the dotted lines, where watching ended, rest on the exponential law "
        "of exit times.",
        f"{wording.counted(len(panels), 'panel')}, one for each minimum and learning rate; every "
        "number is in the table of escape times.",
        _by_rate(panels),
        tuple((k, text) for k, text in LEGEND_TIMES if k in kinds),
    )


def _watched(place: sections.Place) -> tuple[tuple[float, str, str], ...]:
    """A level line where the watch of each kind of process ends; one for all that share the time."""
    kinds: dict[int, list[str]] = {}
    for process, found in place.cells.items():
        kind = "SGD" if process == "sgd" else "diffusions"
        for horizon in {c.row.horizon for c in found if c.row.horizon > 0}:
            kinds.setdefault(horizon, []).append(kind)
    return tuple(
        (float(horizon), f"{names[0]}: watch ends" if len(kinds) > 1 else "watch ends", "bound")
        for horizon, names in sorted(kinds.items())
    )


def _ratio_curves(found: Sequence[sections.Comparison], processes: list[str]) -> tuple[Curve, ...]:
    return tuple(
        Curve(
            SHORT.get(process, process),
            STYLES.get(process, "other"),
            tuple(
                ratio_mark(c.batch_size, c.ratio, f"{reading.process_name(process)}, {c.label}")
                for c in sorted(mine, key=lambda c: c.batch_size)
            ),
        )
        for process in processes
        if (mine := [c for c in found if c.process == process])
    )


def agreement_figure(result: StudyResult, numbers: sections.Agreement) -> Figure | None:
    """A diffusion's mean exit time over SGD's, against batch size."""
    if not numbers.comparisons:
        return None
    keys = dict.fromkeys((c.learning_rate, c.label) for c in numbers.comparisons)
    order = reading.studied(result)
    names = [p for p in reading.processes(result) if numbers.of(p)]
    curves = {
        key: _ratio_curves(
            [c for c in numbers.comparisons if (c.learning_rate, c.label) == key], names
        )
        for key in keys
    }
    values = mark_ends(c for cs in curves.values() for c in cs)
    y = log_axis("diffusion's time / SGD's time", [*values, 0.8, 1.25], 0.09)
    x = batch_axis(sorted({c.batch_size for c in numbers.comparisons}))
    panels = [
        (eta, Plot(_label_title(result, label), x, y, cs, ((1.0, "", "rule"),)))
        for (eta, label), cs in sorted(
            curves.items(), key=lambda c: (c[0][0], order.index(c[0][1]))
        )
    ]
    return Figure(
        "agreement",
        "Mean exit time of the diffusions, relative to SGD",
        "Above the dashed line a diffusion stays longer than the SGD it stands for, below it shorter. "
        "Intervals are 95% each; an arrow is a limit, where one of the two was never seen to leave.",
        "Ratios of mean exit times; every number is in the table of comparisons.",
        _by_rate(panels),
    )


def _label_title(result: StudyResult, label: str) -> str:
    minimum = reading.minimum_of(result, label)
    sharpness = minimum.lambda_max if minimum else None
    return _place_title(sections.Place(label, reading.name_of(result, label), sharpness, 0.0, {}))


def sharpness_figure(result: StudyResult, numbers: sections.Sharpness) -> Figure:
    """SGD's mean exit time against curvature and noise: one panel for each measure."""
    values = [v for c in numbers.cells if c.row.steps for v in (*c.row.steps.interval,)]
    y = log_axis("mean exit time (SGD steps)", values, 0.09)
    panels = [
        (eta, _sharpness_plot(numbers, measure, eta, y))
        for eta in numbers.learning_rates
        for measure in sections.MEASURES
        if _measured(numbers, measure)
    ]
    count = len({c.row.minimum for c in numbers.cells})
    few = f" With {count} minima this is a picture, not a law." if count < 6 else ""
    return Figure(
        "sharpness",
        "Sharpness and noise at the minimum against SGD's mean exit time",
        "One line for each batch size B, one upright for each minimum. Sharp need not "
        f"mean left first: the noise along the way out decides.{few}",
        "Mean exit times of SGD over the largest Hessian eigenvalue, the Hessian trace and the "
        "noise trace of the minimum they start from.",
        _by_rate(panels),
    )


def _measured(numbers: sections.Sharpness, measure: str) -> bool:
    values = [getattr(numbers.minima[c.row.minimum], measure) for c in numbers.cells]
    return all(v is not None and abs(v) < 1e250 for v in values)


def _sharpness_plot(numbers: sections.Sharpness, measure: str, eta: float, y: Axis) -> Plot:
    here = [c for c in numbers.cells if c.row.learning_rate == eta]
    at = {c.row.minimum: float(getattr(numbers.minima[c.row.minimum], measure)) for c in here}
    sizes = sorted({c.row.batch_size for c in here})
    curves = tuple(
        Curve(f"B = {b}", f"q{shade(k, len(sizes))}", _over_measure(here, b, at))
        for k, b in enumerate(sizes)
    )
    wide = min(at.values()) > 0 and max(at.values()) > 8 * min(at.values())
    axis = log_axis if wide else linear_axis
    label = sections.MEASURES[measure]
    posts = tuple((v, k) for k, v in sorted(at.items(), key=lambda item: item[1]))
    return Plot(wording.sentence(label), axis(label, at.values(), 0.1), y, curves, posts=posts)


def _over_measure(
    found: Sequence[sections.Cell], size: int, at: Mapping[str, float]
) -> tuple[Mark, ...]:
    mine = sorted((c for c in found if c.row.batch_size == size), key=lambda c: at[c.row.minimum])
    return tuple(
        estimate_mark(at[c.row.minimum], c.row.steps, f"minimum {c.row.minimum}, B = {size}")
        for c in mine
    )


def finals_figure(result: StudyResult, numbers: sections.Finals) -> Figure:
    """Final basins as stacked bars, beside the share that stayed and the mean sharpness."""
    several = len({eta for _, eta, _ in numbers.groups}) > 1
    groups = []
    for start, eta, rows in numbers.groups:
        heading = f"Started in {reading.name_of(result, start)}"
        heading += f", η = {eta:g}" if several else ""
        groups.append((heading, _finals_panels(numbers, start, rows)))
    return Figure(
        "finals",
        "Where SGD ends, by batch size",
        f"Basins after {_examples(result)} examples; the batch size is constant or, below the "
        "constant ones, grows on the way. Bars are coloured from the flattest minimum (blue) to "
        "the sharpest (red) and labelled where there is room; intervals are 95%.",
        "Shares of runs by final basin, with the share that stayed and the mean sharpness; every "
        "number is in the table of final shares.",
        tuple(groups),
    )


def _examples(result: StudyResult) -> str:
    return wording.listing(f"{n:,}" for n in sorted({row.examples for row in result.finals}))


def _finals_panels(
    numbers: sections.Finals, start: str, rows: tuple[FinalRow, ...]
) -> tuple[Panel, ...]:
    everything = [r for _, _, group in numbers.groups for r in group]
    sharp = [v for r in everything if r.sharpness for v in r.sharpness.interval]
    names = [(reading.arrows(r.schedule), r) for r in rows]
    bars = tuple((name, _parts(numbers, r)) for name, r in names)
    stayed = tuple((name, _row_mark(r.stayed, name, True)) for name, r in names)
    sharpness = tuple((name, _row_mark(r.sharpness, name, False)) for name, r in names)
    shares = Axis("share of runs", 0.0, 1.0, False, _PERCENT)
    panels: list[Panel] = [Bars("Final basin", bars)]
    if any(mark for _, mark in stayed):
        panels.append(Dots(f"Still in the basin of {start}", shares, stayed))
    if sharp:
        axis = linear_axis("mean λmax at the end", sharp)
        panels.append(Dots("Sharpness where it ended", axis, sharpness))
    return tuple(panels)


_PERCENT = ((0.0, "0%"), (0.25, "25%"), (0.5, "50%"), (0.75, "75%"), (1.0, "100%"))


def _row_mark(value: Estimate | None, where: str, share: bool) -> Mark | None:
    if value is None:
        return None
    text = wording.share(value) if share else wording.estimate(value)
    return Mark(value.value, 0.0, *value.interval, "value", f"{where}: {text}")


def _parts(numbers: sections.Finals, row: FinalRow) -> tuple[Part, ...]:
    order = [label for label in numbers.labels if label in row.shares]
    return tuple(
        Part(
            row.shares[label].value,
            label,
            _part_style(numbers, label),
            f"{reading.arrows(row.schedule)}, {label}: {wording.share(row.shares[label])}",
        )
        for label in order
        if row.shares[label].value > 0
    )


def _part_style(numbers: sections.Finals, label: str) -> str:
    ranked = [name for name in numbers.labels if name in numbers.sharpness]
    if label not in ranked:
        return "b-undecided" if label == "undecided" else "b-other"
    return f"b{shade(ranked.index(label), len(ranked))}"


def lines_figure(result: StudyResult, numbers: Sequence[sections.Line]) -> Figure:
    """Loss along the straight line between two minima."""
    y = linear_axis("loss", [v for line in numbers for v in line.row.loss])
    x = Axis("position on the line", 0.0, 1.0, False, linear_ticks(0.0, 1.0, 2))
    return Figure(
        "lines",
        "Loss along straight lines between minima",
        "From one minimum (0) to another (1), all panels on the same scale. The straight line is "
        "not the way SGD takes: the height on it is an upper bound of the true barrier.",
        "Loss over the position on the line; the heights are in the panels' titles.",
        (("", tuple(_line_plot(line, x, y) for line in numbers)),),
    )


def _line_plot(line: sections.Line, x: Axis, y: Axis) -> Plot:
    marks = tuple(
        Mark(s, v, v, v, "value", f"{s:.2f}: {wording.number(v)}")
        for s, v in zip(line.row.s, line.row.loss, strict=True)
    )
    title = (
        f"{line.row.start} to {line.row.end}: {wording.number(line.barrier)} above the higher end"
    )
    ends = ((0.0, line.row.start), (1.0, line.row.end))
    return Plot(title, x, y, (Curve("", "sgd", marks, dots=False),), posts=ends)


# Section -> its figure. A figure takes the result and the section's numbers.
FIGURES: Mapping[str, Callable[[StudyResult, Any], Figure | None]] = {
    "escape": escape_figure,
    "agreement": agreement_figure,
    "sharpness": sharpness_figure,
    "finals": finals_figure,
    "lines": lines_figure,
}


def figure_of(key: str, result: StudyResult, numbers: Any) -> Figure | None:
    """The figure of a section, if it has one and there are numbers for it."""
    return FIGURES[key](result, numbers) if key in FIGURES and numbers is not None else None
