"""Figures of a weak study: errors on log scales, laws side by side, distances over time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from ...estimate import Estimate
from ...weak import OBSERVABLES, Snapshots, WeakError, WeakStudy
from .. import svg
from ..drawing import (
    Axis,
    Curve,
    Figure,
    Mark,
    Panel,
    Picture,
    Plot,
    linear_axis,
    linear_ticks,
    log_axis,
)
from ..wording import counted, estimate, number

Floats = NDArray[np.float64]

STYLES = {"SGD": "sgd", "order 1": "first", "order 2": "second"}
# Shares of the mass inside of nested regions of highest density, and how opaque they are.
LEVELS = ((0.99, 0.12), (0.9, 0.25), (0.75, 0.42), (0.5, 0.62), (0.25, 0.9))
MAP_SIZE, MAP_LEFT, MAP_TOP = 236.0, 58.0, 20.0


def error_figure(study: WeakStudy) -> Figure:
    """|error| against learning rate with reference slopes, and the order seen between neighbours."""
    rates = next(iter(study.errors.values())).learning_rates
    x = _rate_axis(rates)
    curves = [_errors(o, w) for o, w in study.errors.items()]
    slopes = [_slope(o, w) for o, w in study.errors.items()]
    sizes = [v for c in (*curves, *slopes) for m in c.marks for v in (m.y, m.high) if v > 0]
    lows = [m.low for c in curves for m in c.marks if m.low > 0]
    y = log_axis("|error|", [*(v for v in sizes if math.isfinite(v)), *lows])
    formula = OBSERVABLES[study.observable].formula
    plot = Plot("Size of the error", x, y, (*curves, *(s for s in slopes if s.marks)), dodge=False)
    seen = tuple(_seen(o, w) for o, w in study.errors.items())
    heights = [m.y for c in seen for m in c.marks if abs(m.y) < 6] + [0.5, 2.5]
    rules = tuple((float(o), f"order {o}", "post") for o in study.errors)
    local = Plot(
        "Order seen between neighbours", x, linear_axis("order", heights), seen, rules, dodge=False
    )
    kinds = {m.kind for c in curves for m in c.marks}
    legend = [("value", "error with its interval")] if "value" in kinds else []
    legend += [("limit", "not told from zero: upper limit")] if "limit" in kinds else []
    return Figure(
        "errors",
        "Weak error against learning rate",
        f"E {formula} of SGD minus that of its diffusion at time T = {study.horizon:g}, without its "
        "sign, on logarithmic scales. Thin lines have slope 1 and 2 and go through the point of the "
        "smallest learning rate. On the right the slope between each learning rate and the next smaller "
        "one.",
        "All numbers are in the table of errors.",
        (("", (plot, local)),),
        tuple(legend),
    )


def _rate_axis(rates: Sequence[float]) -> Axis:
    ticks = tuple((eta, f"{eta:g}") for eta in rates[:: math.ceil(len(rates) / 6)])
    return Axis("learning rate η", min(rates) / 1.3, max(rates) * 1.3, True, ticks)


def _errors(order: int, found: WeakError) -> Curve:
    marks = [
        _mark(eta, e, order) for eta, e in zip(found.learning_rates, found.errors, strict=True)
    ]
    return Curve(f"order {order}", STYLES[f"order {order}"], tuple(marks))


def _mark(eta: float, error: Estimate, order: int) -> Mark:
    tip = f"order {order}, η = {eta:g}: {estimate(error)}"
    low, high = error.interval
    if low > 0 or high < 0:
        ends = sorted((abs(low), abs(high)))
        return Mark(eta, abs(error.value), ends[0], ends[1], "value", tip)
    return Mark(eta, math.nan, math.nan, max(abs(low), abs(high)), "limit", tip)


def _slope(order: int, found: WeakError) -> Curve:
    """A line of slope `order` through the error at the smallest learning rate."""
    end, size = found.learning_rates[-1], abs(found.errors[-1].value)
    if not size > 0:
        return Curve("", "other", (), dots=False)
    pair = (found.learning_rates[0], end)
    points = [(eta, size * (eta / end) ** order) for eta in pair]
    marks = tuple(Mark(eta, v, v, v, "value", "") for eta, v in points)
    return Curve("", "other", marks, dots=False)


def _seen(order: int, found: WeakError) -> Curve:
    marks = []
    pairs = list(zip(found.learning_rates, found.errors, strict=True))
    for (a, first), (b, second) in itertools.pairwise(pairs):
        if first.value == 0 or second.value == 0:
            continue
        span = math.log(a / b)
        slope = math.log(abs(first.value / second.value)) / span
        error = math.hypot(first.stderr / first.value, second.stderr / second.value) / span
        half = error if first.level == 1 else 1.96 * error
        if half < 1:
            tip = f"order {order}, η from {a:g} to {b:g}: {number(slope)} ± {number(half, 2)}"
            marks.append(Mark(b, slope, slope - half, slope + half, "value", tip))
    return Curve(f"order {order}", STYLES[f"order {order}"], tuple(marks))


# ---------------------------------------------------------------------- laws


def density_figure(study: WeakStudy, found: Snapshots) -> Figure:
    """Laws side by side at each time: curves in 1-D, maps and marginals in 2-D."""
    plane = len(found.centres) == 2
    groups: list[tuple[str, tuple[Panel, ...]]] = [
        (_when(study, steps), _maps(found, k) if plane else (_line(found, k, 0, "x"),))
        for k, steps in enumerate(found.steps)
    ]
    if not plane:
        panels = tuple(
            Plot(_when(study, found.steps[k]), p.x, p.y, p.curves, dodge=False)
            for k, (_, ps) in enumerate(groups)
            for p in ps
            if isinstance(p, Plot)
        )
        return _density(study, (("", panels),), "Densities of SGD and of its diffusions.")
    last = len(found.steps) - 1
    marginals = tuple(_line(found, last, i, f"x{'₁₂'[i]}") for i in (0, 1))
    groups.append(("One coordinate at a time, at the last time", marginals))
    return _density(
        study,
        tuple(groups),
        "Regions that hold the likeliest 25, 50, 75, 90 and 99% of the probability, dark to light.",
    )


def _density(
    study: WeakStudy, groups: tuple[tuple[str, tuple[Panel, ...]], ...], what: str
) -> Figure:
    return Figure(
        "laws",
        "Laws of SGD and of its diffusions over time",
        f"{what} All start at {_point(study.start)}; η = {study.sgd.learning_rate:g}, batch size "
        f"{study.sgd.batch_size}. SGD's law may consist of single points; here it is the mean over "
        "cells.",
        "How far the laws are apart is in the table of distances.",
        groups,
    )


def _point(x: Floats) -> str:
    values = ", ".join(f"{v:g}" for v in x)
    return f"x = {values}" if len(x) == 1 else f"x = ({values})"


def _when(study: WeakStudy, steps: int) -> str:
    return f"{counted(steps, 'step')} (time {number(steps * study.sgd.learning_rate)})"


def _line(found: Snapshots, k: int, direction: int, name: str) -> Plot:
    x = found.centres[direction]
    rows = {n: found.marginal(n, direction)[k] for n in found.densities}
    curves = tuple(
        Curve(
            n,
            STYLES[n],
            tuple(
                Mark(float(a), float(max(v, 0)), 0.0, 0.0, "value", "")
                for a, v in zip(x, row, strict=True)
            ),
            dots=False,
        )
        for n, row in rows.items()
    )
    top = max(float(row.max()) for row in rows.values()) * 1.05
    y = Axis("density", 0.0, top, False, linear_ticks(0.0, top))
    axis = linear_axis(name, [float(x[0]), float(x[-1])], 0.0)
    return Plot(f"Density of {name}", axis, y, curves, dodge=False)


def _maps(found: Snapshots, k: int) -> tuple[Picture, ...]:
    return tuple(_map(found, k, n) for n in found.densities)


def _map(found: Snapshots, k: int, name: str) -> Picture:
    density = found.densities[name][k]
    axes = [_map_axis(c, f"x{'₁₂'[i]}") for i, c in enumerate(found.centres)]
    right, bottom = MAP_LEFT + MAP_SIZE, MAP_TOP + MAP_SIZE
    x, y = svg.scale(axes[0], MAP_LEFT, right), svg.scale(axes[1], bottom, MAP_TOP)
    body = [
        svg.tag("path", d=_region(density, share), fill="currentColor", fill_opacity=str(dark))
        for share, dark in LEVELS
    ]
    parts = [svg.tag("g", *body, class_=f"s-{STYLES[name]}")]
    parts.append(
        svg.tag(
            "rect",
            x=MAP_LEFT,
            y=MAP_TOP,
            width=MAP_SIZE,
            height=MAP_SIZE,
            fill="none",
            class_="axis",
        )
    )
    for value, text in axes[0].ticks:
        parts.append(svg.tag("text", text, x=x(value), y=bottom + 15, class_="tick middle"))
    for value, text in axes[1].ticks:
        parts.append(svg.tag("text", text, x=MAP_LEFT - 6, y=y(value) + 3.5, class_="tick end"))
    parts.append(
        svg.tag("text", "x₁", x=(MAP_LEFT + right) / 2, y=bottom + 32, class_="name middle")
    )
    parts.append(svg.tag("text", "x₂", x=MAP_LEFT - 40, y=MAP_TOP - 8, class_="name"))
    means = [found.marginal(name, i)[k] for i in (0, 1)]
    centre = [float(m @ c / m.sum()) for m, c in zip(means, found.centres, strict=True)]
    words = f"mean ({number(centre[0])}, {number(centre[1])})"
    return Picture(name, tuple(parts), words, height=MAP_TOP + MAP_SIZE + 40)


def _map_axis(centres: Floats, label: str) -> Axis:
    half = float(centres[1] - centres[0]) / 2
    low, high = float(centres[0]) - half, float(centres[-1]) + half
    return Axis(label, low, high, False, linear_ticks(low, high))


def _region(density: Floats, share: float) -> Markup:
    """Cells of highest density that hold `share` of the mass, as one path of level runs."""
    flat = np.sort(np.maximum(density, 0).ravel())[::-1]
    held = np.cumsum(flat) / flat.sum()
    inside = density >= flat[int(np.searchsorted(held, share))]
    n0, n1 = density.shape
    w, h = MAP_SIZE / n0, MAP_SIZE / n1
    out = []
    for j in range(n1):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], inside[:, j].astype(int), [0]])))
        for a, b in edges.reshape(-1, 2):
            left, top = MAP_LEFT + a * w, MAP_TOP + MAP_SIZE - (j + 1) * h
            out.append(f"M{left:.1f} {top:.1f}h{(b - a) * w:.1f}v{h + 0.1:.1f}h-{(b - a) * w:.1f}z")
    return Markup("".join(out))


# ----------------------------------------------------------------- distances


def distance_figure(study: WeakStudy, found: Snapshots) -> Figure:
    """Distances from SGD's law over time."""
    sliced = len(found.centres) == 2
    name = "Sliced Wasserstein-1 distance" if sliced else "Wasserstein-1 distance"
    floor = Curve(
        "mesh",
        "other",
        tuple(
            Mark(float(s), float(v), float(v), float(v), "value", f"meshes, {s} steps: {number(v)}")
            for s, v in zip(found.steps, found.resolution, strict=True)
        ),
        dots=False,
    )
    variation = _distance(found, "Total variation", found.total_variation, (floor,))
    transport = _distance(found, name, found.wasserstein, ())
    return Figure(
        "distances",
        "Distance of the diffusions' laws from SGD's over time",
        "Total variation is the share of probability that would have to move, however far; the "
        "Wasserstein distance counts how far, in units of x"
        + (" (mean over directions)" if sliced else "")
        + ". SGD from few examples jumps between single points at first: far away in total variation, "
        "close in the other. The grey line is what the meshes leave uncertain.",
        "All numbers are in the table of distances.",
        (("", (variation, transport)),),
    )


def _distance(
    found: Snapshots, title: str, rows: dict[str, Floats], more: tuple[Curve, ...]
) -> Plot:
    curves = tuple(
        Curve(
            n,
            STYLES[n],
            tuple(
                Mark(
                    float(s), float(v), float(v), float(v), "value", f"{n}, {s} steps: {number(v)}"
                )
                for s, v in zip(found.steps, row, strict=True)
                if v > 0
            ),
        )
        for n, row in rows.items()
    )
    sizes = [m.y for c in (*curves, *more) for m in c.marks if m.y > 0]
    steps = found.steps
    ticks = tuple((float(s), f"{s:,}") for s in steps)
    x = Axis("SGD steps", min(steps) / 1.25, max(steps) * 1.25, True, ticks)
    return Plot(title, x, log_axis("distance", sizes), (*more, *curves), dodge=False)


def join(first: Figure, second: Figure) -> Figure:
    """Two figures as one, one below the other."""
    between = second.title if len(second.groups) == 1 else ""
    groups = (*first.groups, *((between, panels) for _, panels in second.groups))
    return Figure(
        first.key,
        first.title,
        f"{first.caption} {second.caption}",
        f"{first.description} {second.description}",
        groups,
        (*first.legend, *second.legend),
    )
