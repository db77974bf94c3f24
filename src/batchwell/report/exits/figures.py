"""Figures on exits: plain data for `svg` to draw."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from ...exits import ExitSurvey
from ...exits.survey import DIFFUSION, SGD_, Cell, Seen
from ...saddles import EscapeLaws
from .. import wording
from ..drawing import (
    Curve,
    Figure,
    Mark,
    Panel,
    Plot,
    estimate_mark,
    linear_axis,
    log_axis,
)
from .landscape import landscape

STYLES = {SGD_: "sgd", DIFFUSION: "first"}
POINTS = 33
BINS = 24
LONGEST = 1e250


def line(name: str, style: str, x: Iterable[float], y: Iterable[float]) -> Curve:
    """A curve without marks."""
    marks = [
        Mark(float(a), float(b), float(b), float(b), "value", "") for a, b in zip(x, y, strict=True)
    ]
    return Curve(name, style, tuple(marks), joined=True, dots=False)


def slopes(found: ExitSurvey) -> dict[str, float]:
    """Exponent of each process: V of SGD and of its diffusion."""
    if found.exponents is not None:
        return {SGD_: found.exponents.sgd, DIFFUSION: found.exponents.diffusion}
    # A process of its own carries its temperature inside: its action is V/eps of the first cell.
    first = found.cells[0].inverse_temperature
    return {name: ways[0].path.exponent / first for name, ways in found.ways.items() if ways}


def times_figure(found: ExitSurvey) -> Figure | None:
    """Log mean exit time against B/eta, one panel for each learning rate, exponents as lines."""
    rates = list(dict.fromkeys(c.learning_rate for c in found.cells))
    names = list(dict.fromkeys(c.name for c in found.cells))
    panels: list[Panel] = []
    for eta in rates:
        curves: list[Curve] = []
        for name in names:
            cells = [c for c in found.of(name, eta) if c.answer is not None]
            marks = tuple(_cell_mark(c) for c in cells)
            curves.append(Curve(name, STYLES.get(name, "other"), marks, joined=False))
            curves += _slope_line(found, name, cells)
        if not any(curve.marks for curve in curves):
            continue
        ends = [
            v
            for curve in curves
            for m in curve.marks
            for v in (m.y, m.low, m.high)
            if 0 < v < LONGEST
        ]
        x = [m.x for curve in curves for m in curve.marks]
        panels.append(
            Plot(
                f"Learning rate η = {eta:g}",
                linear_axis("B / η", x, 0.08),
                log_axis("mean exit time (SGD steps)", ends, 0.09),
                tuple(curves),
                posts=_batches(found, eta),
            )
        )
    if not panels:
        return None
    known = [f"{wording.number(v, 4)} for {name}" for name, v in slopes(found).items()]
    lines = (
        f" The lines have the slopes of the exponents V: {wording.listing(known)}. A line through the "
        "coldest point leaves the others below or above it by what the prefactor changes."
        if known
        else ""
    )
    return Figure(
        "times",
        "Mean exit time against B/η",
        "On a logarithmic scale, with 95% intervals where a method samples; each point is the "
        f"answer of the most trusted method of its cell.{lines}",
        "Every number is in the table of all answers.",
        (("", tuple(panels)),),
        (("value", "mean with 95% interval"),),
    )


def _batches(found: ExitSurvey, eta: float) -> tuple[tuple[float, str], ...]:
    at = {c.inverse_temperature: c.batch_size for c in found.cells if c.learning_rate == eta}
    # Only the first says what is counted: small batches stand close to each other.
    return tuple(
        (x, f"B = {b}" if k == 0 else str(b)) for k, (x, b) in enumerate(sorted(at.items()))
    )


def _cell_mark(cell: Cell) -> Mark:
    return estimate_mark(
        cell.inverse_temperature,
        cell.answer,
        f"{cell.name}, B = {cell.batch_size}, {cell.ranked[0][0]}",
    )


def _slope_line(found: ExitSurvey, name: str, cells: Sequence[Cell]) -> list[Curve]:
    v = slopes(found).get(name, math.inf)
    seen = [c for c in cells if c.answer is not None and math.isfinite(c.answer.value)]
    if not (math.isfinite(v) and len(seen) >= 1):
        return []
    last = seen[-1]
    assert last.answer is not None
    x = np.linspace(seen[0].inverse_temperature, last.inverse_temperature, 2)
    if len(seen) < 2:
        x = x + np.array([-0.3, 0.3]) / max(v, 1e-9)
    y = last.answer.value * np.exp(v * (x - last.inverse_temperature))
    return [line("", STYLES.get(name, "other"), x, y)]


def ways_figure(found: ExitSurvey) -> Figure | None:
    """Instantons over the landscape."""
    if found.minimum is None or not found.ways:
        return None
    panels = landscape(found)
    if not panels:
        return None
    # A diffusion that is no SGD's has its action in units of its own noise: V as in the lines above.
    known = slopes(found)
    best = [
        f"{name}: V = {wording.number(known.get(name, ways[0].path.action), 4)} at "
        + _point(ways[0].path.end)
        for name, ways in found.ways.items()
        if ways
    ]
    drawn = "Level lines of the loss, the" if found.loss is not None else "The"
    shown = {
        1: "The loss along the line, with the ways out as thick pieces.",
        2: f"{drawn} boundary as a dark line, the ways out as lines from the minimum.",
    }.get(found.domain.dim, "The loss along each way out, against the length of the way.")
    return Figure(
        "ways",
        "Most likely ways out",
        f"{shown} Each ends at the most likely exit point or at the saddle before it. "
        f"Cheapest way of {'; of '.join(best)}.",
        "Paths of least action.",
        (("", panels),),
    )


def _point(x: np.ndarray) -> str:
    x = np.where(np.abs(x) < 1e-7, 0.0, x)  # rounding is no place
    if len(x) > 3:
        return f"a point {wording.number(float(np.linalg.norm(x)))} from the origin"
    if len(x) == 1:
        return f"x = {wording.number(float(x[0]))}"
    return "(" + ", ".join(wording.number(float(v)) for v in x) + ")"


def seen_figure(found: ExitSurvey) -> Figure | None:
    """Where and when simulated paths left: histogram of exit points, and survival."""
    if not found.seen:
        return None
    places = [p for name, seen in found.seen.items() if (p := _places(found, name, seen))]
    survivals = [_survival(name, seen) for name, seen in found.seen.items()]
    where = {
        1: "The exit point itself.",
        2: "The direction of the exit point as seen from the minimum, in degrees.",
    }.get(found.domain.dim, "The exit point along the direction in which exit points spread most.")
    return Figure(
        "seen",
        "Exits that were simulated",
        f"Above: where paths left. {where} Uprights mark the exit points that the least action "
        "predicts. Below: share of the paths still inside, against the exponential law of the "
        "same mean (thin): the closer, the more memoryless the exit.",
        "Histograms of exit points and survival curves.",
        (("Where paths left", tuple(places)), ("When paths left", tuple(survivals))),
    )


def _coordinate(found: ExitSurvey, points: np.ndarray) -> tuple[str, np.ndarray, np.ndarray]:
    """(label, coordinate of the points, coordinate of predicted exit points)."""
    ends = [w.path.end for ways in found.ways.values() for w in ways[:4]]
    predicted = np.array(ends).reshape(-1, found.domain.dim)
    d, middle = found.domain.dim, found.start if found.minimum is None else found.minimum
    if d == 1:
        return "exit point x", points[:, 0], predicted[:, 0]
    if d == 2:
        angle = [np.degrees(np.arctan2(*(p - middle).T[::-1])) for p in (points, predicted)]
        return "direction of the exit (degrees)", angle[0], angle[1]
    centre = points.mean(axis=0)
    axis = np.linalg.svd(points - centre, full_matrices=False)[2][0]
    return "exit point, main direction", (points - centre) @ axis, (predicted - centre) @ axis


def _places(found: ExitSurvey, name: str, seen: Seen) -> Plot | None:
    points = seen.exits.points[seen.exits.observed]
    if len(points) < 20:
        return None
    label, values, predicted = _coordinate(found, points)
    counts, edges = np.histogram(values, BINS)
    share = counts / counts.sum()
    x = np.repeat(edges, 2)[1:-1]
    curve = line("", STYLES.get(name, "other"), x, np.repeat(share, 2))
    inside = [float(p) for p in predicted if edges[0] <= p <= edges[-1]]
    posts = tuple((p, "") for p in sorted(set(np.round(inside, 6))))
    title = f"{name}, η = {seen.learning_rate:g}, B = {seen.batch_size}"
    return Plot(
        title,
        linear_axis(label, edges, 0.03),
        linear_axis("share of exits", [0.0, float(share.max())], 0.03),
        (curve,),
        posts=posts,
    )


def _survival(name: str, seen: Seen) -> Plot:
    from ...exits import survival_curve

    curve = survival_curve(seen.exits)
    keep = np.unique(np.linspace(0, len(curve["steps"]) - 2, 80).astype(int))
    steps = curve["steps"][keep]
    marks = (
        line("", STYLES.get(name, "other"), steps, curve["share"][keep]),
        line("exp.", "other", steps, np.maximum(curve["exponential"][keep], 1e-6)),
    )
    low = float(curve["share"][keep].min())
    return Plot(
        f"{name}, η = {seen.learning_rate:g}, B = {seen.batch_size}",
        linear_axis("SGD steps", [0.0, float(steps.max())], 0.02),
        log_axis("share still inside", [max(low, 1e-4), 1.0], 0.02),
        marks,
    )


def saddle_figure(laws: EscapeLaws) -> Figure:
    """Almost linear against exponential: steps from a saddle and from a minimum."""
    panels = [
        _law_plot("Against batch size", "batch size B", laws.batch_sizes, laws.by_batch),
        _law_plot("Against 1/η at B = 1", "1 / η", laws.inverse_rates, laws.by_rate),
    ]
    other = (
        " From the minimum the number of steps is multiplied by the same factor for every further "
        "unit of B/η."
        if np.isfinite(laws.by_batch["minimum"]).any()
        else ""
    )
    return Figure(
        "saddle",
        "The almost linear law of a saddle" + (" against the exponential one" if other else ""),
        f"From the saddle, along its unstable direction of rate λ = {wording.number(laws.rate)}, "
        "SGD takes about log(B/η)/(2λη) steps (“log law”: that and a constant): doubling the batch "
        f"adds a constant number of steps.{other}",
        "Two panels on logarithmic scales.",
        (("", tuple(panels)),),
    )


def _law_plot(title: str, label: str, x: np.ndarray, curves: dict[str, np.ndarray]) -> Plot:
    styles = {"saddle": "sgd", "log law": "other", "minimum": "second"}
    drawn = []
    for name, values in curves.items():
        keep = np.isfinite(values) & (values > 0) & (values < laws_end(curves))
        if keep.any():
            drawn.append(line(name, styles[name], x[keep], values[keep]))
    ends = [m.y for c in drawn for m in c.marks]
    return Plot(title, log_axis(label, x, 0.02), log_axis("SGD steps", ends, 0.05), tuple(drawn))


def laws_end(curves: dict[str, np.ndarray]) -> float:
    """Where the exponential curve is cut off: a million times the longest saddle time."""
    return 1e6 * float(np.nanmax(curves["saddle"]))
