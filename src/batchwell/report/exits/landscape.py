"""Ways out drawn over the loss: a profile in one dimension, level lines in two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from markupsafe import Markup

from ..._jax import jax, jnp
from ...errors import InputError
from ...exits import ExitSurvey
from ...exits.survey import DIFFUSION, SGD_
from ...law.reach import find_bounds
from ..contours import segments
from ..drawing import Curve, Mark, Panel, Picture, Plot, linear_axis
from ..svg import tag

CELLS, LEVELS = 90, 9
WIDTH, HEIGHT = 340.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 14.0, 12.0, 34.0
STYLES = {SGD_: "sgd", DIFFUSION: "first"}


def landscape(found: ExitSurvey) -> tuple[Panel, ...]:
    """Panels for the survey's dimension; empty where nothing can be drawn."""
    if found.domain.dim == 1:
        return _profile(found)
    if found.domain.dim == 2:
        return (_map(found),)
    return _along(found)


def _values(function: Callable[[Any], Any], points: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(function))(jnp.asarray(points)))


def _curve(name: str, style: str, x: np.ndarray, y: np.ndarray, dots: bool = False) -> Curve:
    marks = [
        Mark(float(a), float(b), float(b), float(b), "value", name)
        for a, b in zip(x, y, strict=True)
    ]
    return Curve("" if dots else name, style, tuple(marks), not dots, dots)


def _profile(found: ExitSurvey) -> tuple[Panel, ...]:
    if found.loss is None or found.minimum is None:
        return ()
    ends = np.array([w.path.end[0] for ways in found.ways.values() for w in ways])
    spots = np.concatenate([ends, found.minimum, found.start])
    room = 0.35 * (np.ptp(spots) + 1e-9)
    x = np.linspace(spots.min() - room, spots.max() + room, 161)
    panels = []
    for name, ways in found.ways.items():
        height = _values(found.loss.mean, x[:, None])
        curves = [_curve("", "other", x, height)]
        for way in ways:
            points = np.concatenate([found.minimum[None], way.path.path, way.path.end[None]])
            heights = _values(found.loss.mean, points)
            curves.append(_curve("", STYLES.get(name, "other"), points[:, 0], heights))
            tip = f"{name}: ends at x = {way.path.end[0]:.4g}, V = {way.path.action:.4g}"
            mark = Mark(float(way.path.end[0]), heights[-1], heights[-1], heights[-1], "value", tip)
            curves.append(Curve("", STYLES.get(name, "other"), (mark,), False))
        panels.append(
            Plot(
                name,
                linear_axis("x", x, 0.0),
                linear_axis("loss F", height, 0.05),
                tuple(curves),
                posts=((float(found.minimum[0]), "min."),),
            )
        )
    return tuple(panels)


def _along(found: ExitSurvey) -> tuple[Panel, ...]:
    """Loss along each way, against the length of the way: for more than two dimensions."""
    if found.loss is None or found.minimum is None:
        return ()
    curves = []
    for name, ways in found.ways.items():
        for k, way in enumerate(ways[:3]):
            points = np.concatenate([found.minimum[None], way.path.path, way.path.end[None]])
            steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
            length = np.concatenate([[0.0], np.cumsum(steps)])
            heights = _values(found.loss.mean, points)
            label = name if k == 0 else ""
            curves.append(_curve(label, STYLES.get(name, "other"), length, heights))
    x = [m.x for c in curves for m in c.marks]
    y = [m.y for c in curves for m in c.marks]
    title = "Loss along the ways out"
    return (
        Plot(title, linear_axis("length of the way", x), linear_axis("loss F", y), tuple(curves)),
    )


def _map(found: ExitSurvey) -> Picture:
    box = _bounds(found)
    grids = [np.linspace(a, b, CELLS) for a, b in box.T]
    points = np.stack(np.meshgrid(*grids, indexing="ij"), axis=-1).reshape(-1, 2)
    to_x = _scale(box[:, 0], LEFT, WIDTH - RIGHT)
    to_y = _scale(box[:, 1], HEIGHT - BOTTOM, TOP)

    def drawn(values: np.ndarray, level: float, **style: str) -> Markup:
        pieces = segments(grids[0], grids[1], values.reshape(CELLS, CELLS), level)
        path = "".join(
            f"M{to_x(a[0]):.1f} {to_y(a[1]):.1f}L{to_x(b[0]):.1f} {to_y(b[1]):.1f}"
            for a, b in pieces
        )
        return tag("path", d=path, **style)

    body: list[Markup] = []
    level = found.domain.level
    assert level is not None
    inside = _values(level, points)
    if found.loss is not None:
        heights = _values(found.loss.mean, points)
        shown = np.quantile(heights[inside < 0], np.linspace(0.03, 0.97, LEVELS))
        body += [
            drawn(
                heights, h, class_="contour", style="fill:none;stroke:var(--faint);stroke-width:1"
            )
            for h in shown
        ]
    body.append(drawn(inside, 0.0, class_="rule", style="fill:none"))
    body += _ways(found, to_x, to_y)
    body += _axes(box, to_x, to_y)
    said = "; ".join(
        f"{name}: {len(ways)} way(s) out, the cheapest to "
        f"({ways[0].path.end[0]:.3g}, {ways[0].path.end[1]:.3g})"
        for name, ways in found.ways.items()
        if ways
    )
    title = "Level lines of the loss and the ways out" if found.loss else "The ways out"
    return Picture(title, tuple(body), said, WIDTH, HEIGHT)


def _ways(found: ExitSurvey, to_x: Any, to_y: Any) -> list[Markup]:
    assert found.minimum is not None
    out = []
    for name, ways in list(found.ways.items())[::-1]:
        for way in ways:
            path = np.concatenate([found.minimum[None], way.path.path, way.path.end[None]])
            points = " ".join(f"{to_x(a):.1f},{to_y(b):.1f}" for a, b in path)
            end = way.path.end
            out.append(
                tag(
                    "g",
                    tag("title", f"{name}: V = {way.path.action:.4g}"),
                    tag("polyline", points=points, class_="stroke"),
                    tag("circle", cx=to_x(end[0]), cy=to_y(end[1]), r=3.4, class_="full"),
                    class_=f"mark s-{STYLES.get(name, 'other')}",
                )
            )
    x, y = to_x(found.minimum[0]), to_y(found.minimum[1])
    out.append(tag("circle", cx=x, cy=y, r=3.4, class_="hollow s-sgd"))
    for k, name in enumerate(found.ways):
        text = tag("text", name, x=LEFT + 6, y=TOP + 14 + 14 * k, class_="direct halo")
        out.append(tag("g", text, class_=f"s-{STYLES.get(name, 'other')}"))
    return out


def _axes(box: np.ndarray, to_x: Any, to_y: Any) -> list[Markup]:
    out = [
        tag(
            "rect",
            x=LEFT,
            y=TOP,
            width=WIDTH - LEFT - RIGHT,
            height=HEIGHT - TOP - BOTTOM,
            class_="axis",
            style="fill:none",
        )
    ]
    for value, text in linear_axis("", box[:, 0], 0.0).ticks:
        out.append(tag("text", text, x=to_x(value), y=HEIGHT - BOTTOM + 14, class_="tick middle"))
    for value, text in linear_axis("", box[:, 1], 0.0).ticks:
        out.append(tag("text", text, x=LEFT - 5, y=to_y(value) + 3.5, class_="tick end"))
    out.append(tag("text", "x₁", x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6, class_="name middle"))
    out.append(tag("text", "x₂", x=2, y=TOP + 10, class_="name"))
    return out


def _scale(ends: np.ndarray, start: float, stop: float) -> Any:
    low, high = float(ends[0]), float(ends[1])
    return lambda value: float(
        np.clip(
            start + (stop - start) * (value - low) / (high - low),
            min(start, stop),
            max(start, stop),
        )
    )


def _bounds(found: ExitSurvey) -> np.ndarray:
    """Corners (2, 2) of what is shown: the domain, or the ways out where it is unbounded."""
    assert found.minimum is not None
    paths = [w.path.path for ways in found.ways.values() for w in ways]
    points = np.concatenate([*paths, found.minimum[None], found.start[None]])
    try:
        box = np.asarray(find_bounds(found.domain))
        room = 0.06 * (box[1] - box[0])
    except InputError:
        box = np.stack([points.min(axis=0), points.max(axis=0)])
        room = np.full(2, 0.4 * np.max(box[1] - box[0]))
    return np.stack([box[0] - room, box[1] + room])
