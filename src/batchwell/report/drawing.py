"""Figures as plain data: axes, curves and marks that `svg` only has to draw.

Small panels in a row instead of one crowded plot: they stay readable on a phone and on paper.
Colour never carries a message alone: shapes, direct labels and order repeat it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ..estimate import Estimate
from . import wording
from .ratios import Ratio

SHADES = 8  # of the sequential palettes in page.css
STYLES = {"sgd": "sgd", "diffusion-1": "first", "diffusion-2": "second"}
SHORT = {"sgd": "SGD", "diffusion-1": "order 1", "diffusion-2": "order 2"}


@dataclass(frozen=True)
class Mark:
    """One number: a `value` with its interval, a one-sided `limit`, or `failed` (no y at all).

    A limit points up from `low` where only that is known, else down from `high`.
    """

    x: float
    y: float
    low: float
    high: float
    kind: str
    tip: str


@dataclass(frozen=True)
class Curve:
    """Marks of one series; `style` names its colour and shape, `joined` draws a line."""

    name: str
    style: str
    marks: tuple[Mark, ...]
    joined: bool = True
    dots: bool = True


@dataclass(frozen=True)
class Axis:
    """A scale with its ticks."""

    label: str
    low: float
    high: float
    log: bool
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Plot:
    """Curves over two axes; `rules` are level lines (y, text, style), `posts` upright (x, text).

    A rule's style is "rule", "post" or "bound", the last with its text below it.

    With `dodge` curves over the same few x are moved apart, so that their intervals do not overlap.
    """

    title: str
    x: Axis
    y: Axis
    curves: tuple[Curve, ...]
    rules: tuple[tuple[float, str, str], ...] = ()
    posts: tuple[tuple[float, str], ...] = ()
    dodge: bool = True


@dataclass(frozen=True)
class Part:
    """A piece of a bar: a share, its short text and its style."""

    share: float
    text: str
    style: str
    tip: str


@dataclass(frozen=True)
class Bars:
    """Stacked level bars, one for each row."""

    title: str
    rows: tuple[tuple[str, tuple[Part, ...]], ...]


@dataclass(frozen=True)
class Dots:
    """One number with its interval for each row, along a level axis."""

    title: str
    x: Axis
    rows: tuple[tuple[str, Mark | None], ...]


@dataclass(frozen=True)
class Picture:
    """A drawing of another kind (a tree, a map): ready SVG of a size, and what it shows in words.

    `body` are elements made by `svg.tag`; coordinates run from (0, 0) to (`width`, `height`).
    """

    title: str
    body: tuple[Markup, ...]
    words: str
    width: float = 340
    height: float = 262


Panel = Plot | Bars | Dots | Picture


def spelt(panel: Panel) -> str:
    """A panel in words, for those who do not see it: its title and every mark."""
    if isinstance(panel, Picture):
        tips = [panel.words]
    elif isinstance(panel, Bars):
        tips = [part.tip for _, parts in panel.rows for part in parts]
    elif isinstance(panel, Dots):
        tips = [mark.tip for _, mark in panel.rows if mark]
    else:
        tips = [mark.tip for curve in panel.curves if curve.dots for mark in curve.marks]
    return ". ".join([panel.title, "; ".join(tips)]) if tips else panel.title


@dataclass(frozen=True)
class Figure:
    """Panels under headings, with what they show (`caption`) and say (`description`)."""

    key: str
    title: str
    caption: str
    description: str
    groups: tuple[tuple[str, tuple[Panel, ...]], ...]
    legend: tuple[tuple[str, str], ...] = ()


def log_ticks(low: float, high: float) -> tuple[tuple[float, str], ...]:
    """Powers of ten within a range, with 2 and 5 in between where there are few.

    Examples
    --------
    >>> [text for _, text in log_ticks(90, 12_000)]
    ['100', '1,000', '10,000']
    """
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    powers = [10.0**k for k in range(first, last + 1)]
    if len(powers) < 3:
        spread = [m * 10.0**k for k in range(first - 1, last + 1) for m in (1, 2, 5)]
        powers = [v for v in spread if low <= v <= high]
    every = math.ceil(len(powers) / 7)
    return tuple((v, _tick(v)) for v in powers[::every])


def _tick(value: float) -> str:
    """Short enough for the margin: powers of ten from a million on."""
    return wording.power(value, 1) if value >= 1e6 else wording.number(value)


def linear_ticks(low: float, high: float, wanted: int = 4) -> tuple[tuple[float, str], ...]:
    """Round values within a range.

    >>> [text for _, text in linear_ticks(0.0, 1.0)]
    ['0', '0.2', '0.4', '0.6', '0.8', '1']
    """
    raw = (high - low) / wanted
    grain = 10.0 ** math.floor(math.log10(raw))
    step = next(m * grain for m in (1, 2, 2.5, 5, 10) if m * grain >= raw * 0.75)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple((k * step, wording.number(k * step)) for k in range(first, last + 1))


def log_axis(label: str, values: Iterable[float], room: float = 0.06) -> Axis:
    """A log axis around the positive finite `values`, with `room` at both ends."""
    found = [v for v in values if 1e-250 < v < 1e250] or [1.0, 10.0]
    low, high = math.log10(min(found)), math.log10(max(found))
    if high - low < 0.5:
        low, high = (low + high) / 2 - 0.25, (low + high) / 2 + 0.25
    pad = room * (high - low)
    ends = 10 ** (low - pad), 10 ** (high + pad)
    return Axis(label, *ends, True, log_ticks(*ends))


def linear_axis(label: str, values: Iterable[float], room: float = 0.05) -> Axis:
    """A linear axis around the finite `values`."""
    found = [v for v in values if abs(v) < 1e250] or [0.0, 1.0]
    low, high = min(found), max(found)
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - 0.5 * max(abs(low), 1e-3), high + 0.5 * max(abs(high), 1e-3)
    pad = room * (high - low)
    return Axis(label, low - pad, high + pad, False, linear_ticks(low - pad, high + pad))


def batch_axis(sizes: Sequence[int]) -> Axis:
    """Batch sizes on a log scale, a tick at each one measured."""
    every = math.ceil(len(sizes) / 8)
    ticks = tuple((float(b), f"{b:,}") for b in sizes[::every])
    return Axis("batch size B", min(sizes) / 1.25, max(sizes) * 1.25, True, ticks)


def estimate_mark(x: float, value: Estimate | None, where: str, error: str = "") -> Mark:
    """The mark of an estimate at `x`; `where` says in words which one it is."""
    if value is None:
        return Mark(x, math.nan, math.nan, math.nan, "failed", f"{where}: failed, {error}")
    low, high = value.interval
    tip = f"{where}: {wording.estimate(value)} {value.unit}"
    if wording.censored(value):
        return Mark(x, math.nan, low, math.inf, "limit", f"{tip} (no exit seen)")
    return Mark(x, value.value, low, high, "value", tip)


def mark_ends(curves: Iterable[Curve]) -> list[float]:
    """All finite numbers that a y axis has to hold."""
    marks = [m for curve in curves for m in curve.marks]
    return [v for m in marks for v in (m.y, m.low, m.high) if math.isfinite(v) and v > 0]


def ratio_mark(x: float, ratio: Ratio, where: str) -> Mark:
    """A ratio as a mark: two-sided, or a limit from one side."""
    tip = f"{where}: {ratio} times SGD"
    kind = "value" if ratio.two_sided else "limit"
    return Mark(x, ratio.value, ratio.low if ratio.low > 0 else math.nan, ratio.high, kind, tip)


def shade(rank: int, count: int) -> int:
    """Which of the `SHADES` colours the `rank`-th of `count` things gets, ends first.

    >>> [shade(k, 3) for k in range(3)]
    [0, 4, 7]
    """
    return 0 if count < 2 else math.floor(rank * (SHADES - 1) / (count - 1) + 0.5)
