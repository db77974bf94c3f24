"""A training as a page: loss, batch size, noise scale, temperature, sharpness, predictions."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from .. import document
from ..document import Document, Section, Table, pairs
from ..drawing import Curve, Figure, Mark, Panel, Plot, linear_axis, log_axis
from ..wording import at_least, counted, estimate, listing, measured, number, whole
from .reading import Point, Trained, read_log, thinned

LINE, MARKS = 200, 24  # most points of a line, and most marks with an interval, in one panel
ROWS = 12  # most changes of the batch size in the table
X_LABEL = "examples seen"
FINE = (
    "[a, b] is a 95% interval. Clocks count examples. B is the batch size, η the learning rate "
    "(divided by 1 − momentum in the temperature η / B), λmax the largest eigenvalue of the "
    "loss's Hessian."
)
LEGEND = (
    ("value", "measured, with 95% interval"),
    ("limit", "only a lower limit is known (95%)"),
)
# What may be logged and shown as it is: name -> (title, label of the axis).
EXTRA = {
    "sharpness": ("Sharpness", "λmax"),
    "stability": ("Step times sharpness", "η λmax"),
    "gradient_norm_squared": ("Squared norm of the gradient", "|∇F|²"),
    "noise_trace": ("Trace of the noise", "tr Σ of one example"),
}


def training_page(log: Trained) -> Document:
    """The page of a training."""
    sections = (
        _loss(log),
        _schedule(log),
        _noise(log),
        _temperature(log),
        _predictions(log),
        _settings(log),
    )
    last = log.last("loss") or next(iter(log.series.values()))[-1]
    facts = [f"{whole(last.examples)} examples", counted(last.step, "update")]
    model = log.start.get("model", {}).get("parameters")
    if model:
        facts.append(f"{whole(model)} parameters")
    return Document(
        "training",
        f"Training in {log.path.name}",
        answer(log),
        sections,
        facts=" · ".join(facts),
        fine=FINE,
    )


def train_report(logdir: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Write the HTML report of the training logged in `logdir`.

    Parameters
    ----------
    logdir
        Directory that holds ``log.jsonl``.
    out
        File to write [default: ``LOGDIR/report.html``].

    Raises
    ------
    InputError
        There is no log to read, or the report cannot be written.
    """
    log = read_log(Path(logdir))
    return document.write(training_page(log), log.path / "report.html" if out is None else out)


# ---- words ----


def answer(log: Trained) -> str:
    """What came of the training, in a few sentences."""
    texts = [_loss_text(log), _batch_text(log), _noise_text(log), _prediction_text(log)]
    stopped = [e for e in log.events if e["event"] == "stopped"]
    if stopped:
        at = stopped[-1]
        texts.insert(0, f"Training stopped at step {whole(at['step'])}: the loss was not finite.")
    return "\n\n".join(text for text in texts if text)


def _loss_text(log: Trained) -> str:
    points = log.points("loss")
    if len(points) < 2:
        return ""
    first, last = points[0], points[-1]
    verb = "fell" if last.value < first.value else "rose"
    return (
        f"The loss {verb} from {measured(first.value)} to {measured(last.value)} over "
        f"{whole(last.examples)} examples and {counted(last.step, 'update')}."
    )


def _batch_text(log: Trained) -> str:
    sizes = log.points("batch_size")
    if not sizes:
        return ""
    first, last = sizes[0].value, sizes[-1].value
    if first == last:
        return f"The batch size was {whole(first)} throughout."
    saved = sizes[-1].examples / first - sizes[-1].step
    verb = "grew" if last > first else "shrank"
    words = f"The batch size {verb} from {whole(first)} to {whole(last)}"
    if saved >= 1:
        words += f", which took {whole(saved)} fewer updates than {whole(first)} throughout"
    return words + "."


def _noise_text(log: Trained) -> str:
    scale, size = log.last("noise_scale"), log.last("batch_size")
    if scale is None or size is None:
        return ""
    if not math.isfinite(scale.high):
        known = f"at least {at_least(scale.low)} examples" if scale.low > 0 else "not determined"
        return (
            f"The gradient noise scale was {known} at the end: the full gradient could not be told "
            "from zero, so that a batch of any size is mostly noise."
        )
    where = "below" if size.value < scale.low else "above" if size.value > scale.high else "within"
    return (
        f"The gradient noise scale was {_text(scale)} examples at the end; the batch size "
        f"{whole(size.value)} lies {where} this interval."
    )


def _prediction_text(log: Trained) -> str:
    rows = _compared(log)
    judged = [agree for *_, agree in rows if agree is not None]
    if not judged:
        return ""
    if len(judged) == 1:
        return f"The one prediction made {'agreed' if judged[0] else 'disagreed'} with what came."
    return f"{sum(judged)} of {len(judged)} predictions agreed with what came."


def _text(point: Point) -> str:
    if point.low == point.high:
        return measured(point.value)
    if math.isfinite(point.high):
        return estimate(point.estimate(""))
    known = f"more than {at_least(point.low)}" if point.low > 0 else "not determined"
    return known


# ---- figures ----


def _line(name: str, points: Iterable[Point], style: str = "sgd") -> Curve:
    marks = [Mark(p.examples, p.value, p.value, p.value, "value", "") for p in points]
    return Curve(name, style, tuple(marks), dots=False)


def _stairs(points: tuple[Point, ...], name: str = "", style: str = "first") -> Curve:
    """A line of steps: a value holds until the next one differs."""
    out: list[Mark] = []
    for before, now in zip((None, *points), points, strict=False):
        if before is not None and before.value != now.value:
            out.append(_bare(before.examples, before.value))
            out.append(_bare(before.examples, now.value))
        elif before is None:
            out.append(_bare(0, now.value))
    out.append(_bare(points[-1].examples, points[-1].value))
    return Curve(name, style, tuple(out), dots=False)


def _bare(x: float, y: float) -> Mark:
    return Mark(x, y, y, y, "value", "")


def _marks(name: str, unit: str, points: tuple[Point, ...], style: str = "sgd") -> Curve:
    """Points with their intervals, evenly chosen; what has no upper end becomes an arrow."""
    every = math.ceil(len(points) / MARKS)
    chosen = points[:: every or 1]
    marks = []
    for p in chosen:
        tip = f"{number(p.examples)} examples: {_text(p)} {unit}".strip()
        if math.isfinite(p.high) and math.isfinite(p.value):
            marks.append(Mark(p.examples, p.value, p.low, p.high, "value", tip))
        elif p.low > 0:
            marks.append(Mark(p.examples, math.nan, p.low, math.inf, "limit", tip))
    return Curve(name, style, tuple(marks), joined=False)


def _panel(
    title: str, label: str, curves: Iterable[Curve], log_scale: bool, x_label: str = X_LABEL
) -> Plot:
    found = tuple(curve for curve in curves if curve.marks)
    xs = [m.x for curve in found for m in curve.marks]
    ys = [v for c in found for m in c.marks for v in (m.y, m.low, m.high) if math.isfinite(v)]
    y = log_axis(label, ys) if log_scale else linear_axis(label, ys)
    # Upright posts keep the curves from being set apart side by side, as over batch sizes.
    return Plot(title, linear_axis(x_label, [0.0, *xs], 0.0), y, found, posts=((0.0, ""),))


def _figure(key: str, title: str, caption: str, panels: tuple[Panel, ...]) -> Figure:
    kinds = {
        m.kind for p in panels if isinstance(p, Plot) for c in p.curves if c.dots for m in c.marks
    }
    legend = tuple((kind, text) for kind, text in LEGEND if kind in kinds)
    return Figure(key, title, caption, caption, (("", panels),), legend)


def _positive(points: Iterable[Point]) -> bool:
    values = [p.value for p in points]
    return min(values) > 0 and max(values) > 8 * min(values)


# ---- sections ----


def _loss(log: Trained) -> Section:
    points = log.points("loss")
    if not points:
        return Section("loss", "Loss", absent="No loss was logged.")
    thin = thinned(points, LINE)
    logarithmic = _positive(thin)
    by_update = [replace(p, examples=p.step) for p in thin]
    panels = (
        _panel("Against examples", "loss", [_line("", thin)], logarithmic),
        _panel("Against updates", "loss", [_line("", by_update)], logarithmic, "updates made"),
    )
    caption = (
        "Mean training loss of one example between two entries of the log: against the examples "
        "seen, which cost computing, and against the updates made, which cost time."
    )
    figure = _figure("loss", "Loss", caption, panels)
    return Section("loss", "Loss", figure=figure)


def _schedule(log: Trained) -> Section:
    sizes, rates = log.points("batch_size"), log.points("learning_rate")
    if not sizes:
        return Section("schedule", "Batch size", absent="No batch size was logged.")
    panels = [_panel("Batch size", "B", [_stairs(sizes)], _positive(sizes))]
    if rates:
        panels.append(_panel("Learning rate", "η", [_stairs(rates)], _positive(rates)))
    steps = tuple(
        Point(p.examples, p.step, float(p.step), float(p.step), float(p.step)) for p in sizes
    )
    panels.append(_panel("Updates", "updates made", [_line("", thinned(steps, LINE))], False))
    name = log.start.get("schedule", {}).get("name", "")
    lead = f"The schedule is “{name}”. " if name else ""
    lead += "Batch sizes count the examples of one update, over all processes."
    caption = "What the schedule asked for, against examples seen."
    figure = _figure("schedule", "Batch size and learning rate", caption, tuple(panels))
    return Section("schedule", "Batch size", lead, ("smith",), figure, tables=(_changes(log),))


def _changes(log: Trained) -> Table:
    rates = {p.step: p.value for p in log.points("learning_rate")}
    sizes = log.points("batch_size")
    changes = [p for k, p in enumerate(sizes) if k == 0 or p.value != sizes[k - 1].value]
    # Of a smooth growth a few rows say as much as all.
    count = min(len(changes), ROWS)
    last = max(count - 1, 1)
    shown = [changes[round(k * (len(changes) - 1) / last)] for k in range(count)]
    rows = [
        (whole(p.value), whole(p.examples), whole(p.step), number(rates.get(p.step))) for p in shown
    ]
    title = "Changes of the batch size"
    if count < len(changes):
        title += f": {count} of {len(changes)}"
    columns = ("batch size", "first seen at examples", "at update", "learning rate")
    return Table(title, columns, tuple(rows))


def _noise(log: Trained) -> Section:
    title = "Gradient noise"
    points = log.points("noise_scale")
    if not points:
        text = "The gradient noise was not measured: give attach a Probe, or a schedule that needs one."
        return Section("noise", title, absent=text)
    curves = [_marks("scale", "examples", points)]
    if sizes := log.points("batch_size"):
        curves.append(_stairs(sizes, "B"))
    panels = [_panel("Noise scale and batch size", "examples", curves, True)]
    for name in ("gradient_norm_squared", "noise_trace"):
        if found := log.points(name):
            heading, label = EXTRA[name]
            positive = min(p.low for p in found) > 0
            panels.append(_panel(heading, label, [_marks("", "", found)], positive))
    lead = (
        "The gradient noise scale tr Σ / |∇F|² is the batch size at which noise and gradient "
        "weigh the same in one update. An arrow marks a lower limit: there the full gradient could "
        "not be told from zero."
    )
    caption = "Each mark is a window of measured updates; the line is the batch size in use."
    figure = _figure("noise", "Gradient noise against examples", caption, tuple(panels))
    return Section("noise", title, lead, ("mccandlish", "fieller"), figure)


def _temperature(log: Trained) -> Section:
    found = log.points("temperature")
    panels: list[Panel] = []
    if found:
        panels.append(_panel("Temperature", "η / B", [_stairs(found)], _positive(found)))
    for name in ("sharpness", "stability"):
        if points := log.points(name):
            heading, label = EXTRA[name]
            positive = min(p.low for p in points) > 0
            panels.append(_panel(heading, label, [_marks("", "", points)], positive))
    if not panels:
        return Section("temperature", "Temperature", absent="No temperature was logged.")
    lead = "The temperature η / B sets how far noise throws the parameters about."
    if not log.points("sharpness"):
        lead += " Sharpness was not measured: log it with training.record(“sharpness”, ...)."
    caption = "Temperature, and sharpness where it was measured, against examples."
    figure = _figure("temperature", "Temperature and sharpness", caption, tuple(panels))
    return Section("temperature", "Temperature and sharpness", lead, ("keskar",), figure)


def _compared(log: Trained) -> list[tuple[str, Point, Point | None, bool | None]]:
    """Predictions and what came: whether their intervals meet; None where that is not decided."""
    came = log.below("came/")
    rows = []
    for name, predicted in log.below("predicted/").items():
        found = came.get(name)
        rows.append((name, predicted, found, None if found is None else _meet(predicted, found)))
    return rows


def _meet(predicted: Point, came: Point) -> bool | None:
    if math.isinf(came.high) and came.low < predicted.low:
        return None  # a lower limit that has not reached what was predicted
    return came.low <= predicted.high and predicted.low <= came.high


def _predictions(log: Trained) -> Section:
    title = "Predictions and what came"
    rows = _compared(log)
    if not rows:
        text = "Nothing was predicted: call training.forecast(losses, data) where training hovers."
        return Section("predictions", title, absent=text)
    lines = tuple(
        (
            name.replace("_", " "),
            whole(predicted.examples),
            _text(predicted),
            "not yet" if came is None else _text(came),
            "–" if came is None else _verdict(predicted, came, meet),
        )
        for name, predicted, came, meet in rows
    )
    columns = ("quantity", "predicted at examples", "predicted", "came", "verdict")
    lead = "Each prediction was logged before the training that it is compared with. Two numbers agree when their 95% intervals meet."
    return Section(
        "predictions", title, lead, tables=(Table("Predictions and outcomes", columns, lines),)
    )


def _verdict(predicted: Point, came: Point, meet: bool | None) -> str:
    if meet is None:
        return "not decided: watch for longer"
    if meet:
        return "agree"
    if predicted.value and math.isfinite(came.value / predicted.value):
        return f"apart: {measured(came.value / predicted.value)} times the prediction"
    return "apart"


def _settings(log: Trained) -> Section:
    schedule = log.start.get("schedule", {})
    names = {"name": "schedule"}
    shown = {
        names.get(k, str(k)).replace("_", " "): str(v) for k, v in schedule.items() if v is not None
    }
    for key in ("knob", "micro_batch", "data_size", "processes"):
        if log.start.get(key) is not None:
            shown[key.replace("_", " ")] = str(log.start[key])
    notes = []
    resumed = [whole(e["step"]) for e in log.events if e["event"] == "resumed"]
    if resumed:
        notes.append(f"Gone on from a saved state at {listing([f'update {s}' for s in resumed])}.")
    if log.before:
        notes.append(
            f"The log holds {counted(log.before, 'training')} from before this one, not shown here: "
            "give each a directory of its own."
        )
    if log.torn:
        notes.append(f"Left out of the log, as unreadable: {counted(log.torn, 'line')}.")
    tables = (pairs("Schedule and loop", shown),) if shown else ()
    command = f"batchwell train-report {log.path}"
    return Section("settings", "Settings", notes=tuple(notes), tables=tables, command=command)
