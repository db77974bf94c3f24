"""Figures drawn as inline SVG: no script, sharp on paper, colours taken from the page's style."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup, escape

from .drawing import Axis, Bars, Curve, Dots, Figure, Mark, Panel, Part, Picture, Plot, spelt

WIDTH, HEIGHT = 340, 262
LEFT, RIGHT, TOP, BOTTOM = 58, 56, 20, 42
ROW, ROWS_LEFT, ROWS_RIGHT = 25, 84, 14  # of bars and dots
ARROW, DODGE, LABEL_GAP = 15, 6.0, 13

Scale = Callable[[float], float]


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """An element with escaped attributes and children.

    >>> tag("text", "a < b", x=1, font_size=11)
    Markup('<text x="1" font-size="11">a &lt; b</text>')
    """
    pairs = "".join(
        f' {k.rstrip("_").replace("_", "-")}="{escape(_round(v))}"' for k, v in attributes.items()
    )
    inner = "".join(escape(child) for child in children)
    return Markup(f"<{name}{pairs}>{inner}</{name}>" if inner else f"<{name}{pairs}/>")


def _round(value: object) -> object:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


def scale(axis: Axis, start: float, end: float) -> Scale:
    """Map from data to pixels, from `start` (axis.low) to `end` (axis.high)."""
    forward = math.log if axis.log else float
    low, high = forward(axis.low), forward(axis.high)
    return lambda value: start + (end - start) * (forward(value) - low) / (high - low)


def draw(panel: Panel) -> Markup:
    """One panel as an SVG element."""
    if isinstance(panel, Plot):
        return _frame(spelt(panel), HEIGHT, _plot(panel))
    if isinstance(panel, Picture):
        return _frame(spelt(panel), panel.height, panel.body, panel.width)
    rows = len(panel.rows)
    body = _bars(panel) if isinstance(panel, Bars) else _dots(panel)
    return _frame(spelt(panel), rows * ROW + TOP + BOTTOM, body)


def _frame(words: str, height: float, body: Sequence[Markup], width: float = WIDTH) -> Markup:
    box = f"0 0 {width} {height}"
    return tag("svg", *body, viewBox=box, role="img", aria_label=words, class_="panel")


def _plot(plot: Plot) -> list[Markup]:
    x = scale(plot.x, LEFT, WIDTH - RIGHT)
    y = scale(plot.y, HEIGHT - BOTTOM, TOP)
    parts = [*_grid(plot, x, y), *_posts(plot, x), *_rules(plot, y)]
    places = []
    dotted = [curve for curve in plot.curves if curve.dots]
    for curve in plot.curves:
        # Curves over batch sizes share their x exactly; side by side their intervals stay apart.
        # Lines without dots have no intervals, and stay where they are.
        apart = plot.dodge and curve.dots and not plot.posts
        shift = DODGE * (dotted.index(curve) - (len(dotted) - 1) / 2) if apart else 0.0
        parts.append(_curve(curve, _shifted(x, shift), y))
        places.append((_last_height(curve, y), curve))
    return [*parts, *_labels(places)]


def _shifted(x: Scale, shift: float) -> Scale:
    return lambda value: x(value) + shift


def _grid(plot: Plot, x: Scale, y: Scale) -> list[Markup]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    out = []
    for value, text in plot.y.ticks:
        at = y(value)
        out.append(tag("line", x1=LEFT, x2=right, y1=at, y2=at, class_="grid"))
        out.append(tag("text", text, x=LEFT - 6, y=at + 3.5, class_="tick end"))
    for value, text in plot.x.ticks:
        out.append(tag("line", x1=x(value), x2=x(value), y1=bottom, y2=bottom + 4, class_="axis"))
        out.append(tag("text", text, x=x(value), y=bottom + 16, class_="tick middle"))
    out.append(tag("line", x1=LEFT, x2=right, y1=bottom, y2=bottom, class_="axis"))
    out.append(tag("text", plot.x.label, x=(LEFT + right) / 2, y=HEIGHT - 8, class_="name middle"))
    out.append(tag("text", plot.y.label, x=4, y=11, class_="name"))
    return out


def _posts(plot: Plot, x: Scale) -> list[Markup]:
    bottom = HEIGHT - BOTTOM
    out = []
    last = -math.inf
    for value, text in plot.posts:
        at = x(value)
        out.append(tag("line", x1=at, x2=at, y1=TOP + 8, y2=bottom, class_="post"))
        # Close neighbours share one height; a label that would cover the last one is left out.
        if at - last >= 9:
            out.append(tag("text", text, x=at, y=TOP + 4, class_="tick middle strong"))
            last = at
    return out


def _rules(plot: Plot, y: Scale) -> list[Markup]:
    out = []
    for value, text, style in plot.rules:
        at = y(value)
        out.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_=style))
        if text and style == "bound":  # nothing is known beyond: its name stands on the near side
            out.append(tag("text", text, x=WIDTH - RIGHT, y=at + 10, class_="tick halo end"))
        elif text:
            out.append(tag("text", text, x=LEFT + 3, y=at - 4, class_="tick halo"))
    return out


def _curve(curve: Curve, x: Scale, y: Scale) -> Markup:
    parts = []
    if curve.joined:
        parts += [
            tag("polyline", points=_points(run, x, y), class_="line") for run in _runs(curve.marks)
        ]
    if curve.dots:
        parts += [_mark(mark, curve.style, x(mark.x), y) for mark in curve.marks]
    return tag("g", *parts, class_=f"s-{curve.style}")


def _runs(marks: Sequence[Mark]) -> list[list[Mark]]:
    """Stretches of neighbouring values: a line must not bridge a cell that is not one."""
    runs: list[list[Mark]] = [[]]
    for mark in marks:
        if mark.kind == "value":
            runs[-1].append(mark)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if len(run) > 1]


def _points(run: Sequence[Mark], x: Scale, y: Scale) -> str:
    return " ".join(f"{x(m.x):.1f},{y(m.y):.1f}" for m in run)


def _mark(mark: Mark, style: str, at: float, y: Scale) -> Markup:
    tip = tag("title", mark.tip)
    if mark.kind == "failed":
        cross = f"M{at - 4:.1f} {HEIGHT - BOTTOM - 12}l8 8m0 -8l-8 8"
        return tag("g", tip, tag("path", d=cross, class_="stroke"), class_="mark")
    if mark.kind == "limit":
        return tag("g", tip, *_arrow(mark, at, y), class_="mark")
    # An end that a log axis cannot hold runs to the edge of the plot.
    high = y(mark.high) if math.isfinite(mark.high) else float(TOP)
    low = y(mark.low) if mark.low > 0 else float(HEIGHT - BOTTOM)
    bar = tag("line", x1=at, x2=at, y1=high, y2=low, class_="stroke")
    return tag("g", tip, bar, _symbol(style, at, y(mark.y)), class_="mark")


def _arrow(mark: Mark, at: float, y: Scale) -> list[Markup]:
    up = math.isfinite(mark.low)
    start = y(mark.low if up else mark.high)
    tip = start - ARROW if up else start + ARROW
    head = 4.0 if up else -4.0
    return [
        tag("line", x1=at - 4, x2=at + 4, y1=start, y2=start, class_="stroke"),
        tag("line", x1=at, x2=at, y1=start, y2=tip, class_="stroke"),
        tag(
            "path",
            d=f"M{at - 3.5:.1f} {tip + head:.1f}L{at:.1f} {tip:.1f}L{at + 3.5:.1f} "
            f"{tip + head:.1f}",
            class_="stroke",
        ),
    ]


def _symbol(style: str, x: float, y: float) -> Markup:
    if style == "first":
        return tag("rect", x=x - 3.2, y=y - 3.2, width=6.4, height=6.4, class_="hollow")
    if style == "second":
        return tag("path", d=f"M{x:.1f} {y - 4.6:.1f}l4.6 4.6l-4.6 4.6l-4.6 -4.6z", class_="hollow")
    return tag("circle", cx=x, cy=y, r=3.4, class_="full")


def _last_height(curve: Curve, y: Scale) -> float:
    """Height of the last mark that has one."""
    for mark in reversed(curve.marks):
        for value in (mark.y, mark.low, mark.high):
            if math.isfinite(value) and value > 0:
                return y(value) - (ARROW / 2 if mark.kind == "limit" else 0)
    return float(HEIGHT - BOTTOM)


def _labels(places: Sequence[tuple[float, Curve]]) -> list[Markup]:
    """Names of the curves at the right edge, pushed apart so that none covers another."""
    named = sorted(((at, c) for at, c in places if c.name), key=lambda p: p[0])
    heights = spread([at for at, _ in named], LABEL_GAP, TOP, HEIGHT - BOTTOM)
    return [
        tag("text", c.name, x=WIDTH - RIGHT + 8, y=at + 3.5, class_=f"direct s-{c.style}")
        for at, (_, c) in zip(heights, named, strict=True)
    ]


def spread(heights: Sequence[float], gap: float, top: float, bottom: float) -> list[float]:
    """Sorted heights moved as little as needed to lie `gap` apart within the frame.

    >>> spread([10.0, 11.0, 50.0], 10, 0, 100)
    [10.0, 20.0, 50.0]
    """
    out: list[float] = []
    for at in heights:
        out.append(max(at, top, out[-1] + gap if out else top))
    limit = bottom
    for k in reversed(range(len(out))):
        out[k] = min(out[k], limit)
        limit = out[k] - gap
    return out


def _row_name(name: str, middle: float) -> Markup:
    return tag("text", name, x=ROWS_LEFT - 8, y=middle + 4, class_="tick end")


def _bars(bars: Bars) -> list[Markup]:
    out: list[Markup] = []
    width = WIDTH - ROWS_LEFT - ROWS_RIGHT
    for k, (name, parts) in enumerate(bars.rows):
        top = TOP + k * ROW
        out.append(_row_name(name, top + ROW / 2))
        at = float(ROWS_LEFT)
        for part in parts:
            out.append(_part(part, at, top + 3.5, width * part.share))
            at += width * part.share
    bottom = TOP + len(bars.rows) * ROW
    out.append(
        tag("text", "share of runs", x=ROWS_LEFT + width / 2, y=bottom + 34, class_="name middle")
    )
    for share in (0.0, 0.5, 1.0):
        at = ROWS_LEFT + width * share
        out.append(tag("text", f"{100 * share:.0f}%", x=at, y=bottom + 16, class_="tick middle"))
    return out


def _part(part: Part, x: float, y: float, width: float) -> Markup:
    box = tag("rect", x=x, y=y, width=width, height=ROW - 7, class_=f"bar {part.style}")
    room = 7 * len(part.text) + 4
    text = [tag("text", part.text, x=x + width / 2, y=y + 13, class_=f"on on-{part.style} middle")]
    return tag("g", tag("title", part.tip), box, *(text if width >= room else []), class_="mark")


def _dots(dots: Dots) -> list[Markup]:
    x = scale(dots.x, ROWS_LEFT, WIDTH - ROWS_RIGHT - 4)
    bottom = TOP + len(dots.rows) * ROW
    out: list[Markup] = []
    for value, text in dots.x.ticks:
        out.append(tag("line", x1=x(value), x2=x(value), y1=TOP, y2=bottom, class_="grid"))
        out.append(tag("text", text, x=x(value), y=bottom + 16, class_="tick middle"))
    middle = (ROWS_LEFT + WIDTH - ROWS_RIGHT) / 2
    out.append(tag("text", dots.x.label, x=middle, y=bottom + 34, class_="name middle"))
    for k, (name, mark) in enumerate(dots.rows):
        at = TOP + (k + 0.5) * ROW
        out.append(_row_name(name, at))
        out.append(_dot(mark, x, at) if mark else tag("text", "–", x=ROWS_LEFT + 4, y=at + 4))
    return out


def _dot(mark: Mark, x: Scale, at: float) -> Markup:
    bar = tag("line", x1=x(mark.low), x2=x(mark.high), y1=at, y2=at, class_="stroke")
    return tag("g", tag("title", mark.tip), bar, _symbol("sgd", x(mark.x), at), class_="mark s-sgd")


def legend_symbol(kind: str) -> Markup:
    """A small picture of a kind of mark, for the legend."""
    flat: Scale = float
    marks = {
        "value": Mark(0, 13.0, 22.0, 4.0, "value", ""),
        "limit": Mark(0, math.nan, 21.0, math.inf, "limit", ""),
    }
    if kind == "failed":
        body = tag("path", d="M5 9l8 8m0 -8l-8 8", class_="stroke")
    else:
        body = _mark(marks[kind], "sgd", 9.0, flat)
    return tag("svg", body, viewBox="0 0 18 26", class_="key s-sgd", aria_hidden="true")


def rendered(figure: Figure) -> list[tuple[str, list[tuple[str, Markup]]]]:
    """All panels of a figure as (heading, [(title, SVG)])."""
    return [(head, [(p.title, draw(p)) for p in panels]) for head, panels in figure.groups]
