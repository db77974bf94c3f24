"""Drawings of their own: the disconnectivity tree and the graph of transitions."""

from __future__ import annotations

import math

import numpy as np
from markupsafe import Markup

from ...landscape import DisconnectivityTree, Landscape
from ...metastable import MarkovNetwork, rate_matrix
from .. import wording
from ..drawing import Axis, Picture, linear_axis, shade
from ..svg import scale, tag

WIDE, TREE_HEIGHT, GRAPH_HEIGHT = 720, 400, 430
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 22, 34
MOST_NAMES, MOST_NODES = 40, 28


def shades(values: np.ndarray) -> list[int]:
    """A colour for each of `values`, by rank, smallest first."""
    rank = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return [shade(int(k), len(values)) for k in rank]


def tree_picture(landscape: Landscape, tree: DisconnectivityTree) -> Picture:
    """Leaves hang at their minimum's loss; branches meet at the lowest pass between them."""
    count, order = len(tree.losses), tree.order()
    finite = [b.height for b in tree.branches if math.isfinite(b.height)]
    axis = linear_axis("loss", [*tree.losses, *finite])
    y = scale(axis, TREE_HEIGHT - BOTTOM, TOP)
    step = (WIDE - LEFT - RIGHT) / max(count, 1)
    x = {k: LEFT + step * (place + 0.5) for place, k in enumerate(order)}
    height = {k: float(tree.losses[k]) for k in range(count)}
    body = _level_lines(axis, TREE_HEIGHT)
    lines: list[Markup] = []
    colour = shades(np.array([m.lambda_max for m in landscape.minima]))
    for place, branch in enumerate(tree.branches):
        top = y(branch.height) if math.isfinite(branch.height) else TOP - 8.0
        at = [x[part] for part in branch.parts]
        for part, left in zip(branch.parts, at, strict=True):
            leaf = f" s-q{colour[part]}" if part < count else " s-other"
            low = y(height[part])
            lines.append(tag("line", x1=left, x2=left, y1=low, y2=top, class_=f"stroke{leaf}"))
        dashed = {} if math.isfinite(branch.height) else {"stroke_dasharray": "2 4"}
        lines.append(
            tag("line", x1=min(at), x2=max(at), y1=top, y2=top, class_="stroke s-other", **dashed)
        )
        node = count + place
        x[node], height[node] = (min(at) + max(at)) / 2, min(branch.height, axis.high)
    ends = [_leaf(landscape, k, x[k], y(tree.losses[k]), colour[k], count) for k in range(count)]
    words = (
        f"{wording.counted(count, 'minimum', 'minima')} joined by "
        f"{wording.counted(len(finite), 'pass', 'passes')}; lowest loss "
        f"{wording.number(float(tree.losses.min()))}"
    )
    return Picture(
        "Basins flow together as the loss rises", (*body, *lines, *ends), words, WIDE, TREE_HEIGHT
    )


def _leaf(landscape: Landscape, k: int, x: float, y: float, colour: int, count: int) -> Markup:
    minimum = landscape.minima[k]
    tip = (
        f"{minimum.label}: loss {wording.number(minimum.loss, 4)}, λmax "
        f"{wording.number(minimum.lambda_max)}, reached by "
        f"{wording.counted(minimum.starts, 'start')}"
    )
    parts = [tag("title", tip), tag("circle", cx=x, cy=y, r=3.2, class_="full")]
    if count <= MOST_NAMES:
        parts.append(tag("text", minimum.label, x=x, y=y + 14, class_="tick middle"))
    return tag("g", *parts, class_=f"mark s-q{colour}")


def _level_lines(axis: Axis, height: int) -> list[Markup]:
    y = scale(axis, height - BOTTOM, TOP)
    out = []
    for value, text in axis.ticks:
        at = y(value)
        out.append(tag("line", x1=LEFT, x2=WIDE - RIGHT, y1=at, y2=at, class_="grid"))
        out.append(tag("text", text, x=LEFT - 6, y=at + 3.5, class_="tick end"))
    out.append(tag("text", axis.label, x=4, y=11, class_="name"))
    return out


def graph_picture(
    landscape: Landscape, network: MarkovNetwork, shares: np.ndarray, batch_size: int
) -> Picture:
    """Basins over sharpness and loss; the faster the jumps, the stronger the line."""
    minima = landscape.minima
    weight = np.maximum(shares[: len(minima)], np.asarray(network.starts)[: len(minima)])
    chosen = sorted(np.argsort(-weight, kind="stable")[:MOST_NODES].tolist())
    across = linear_axis(
        "λmax (sharper to the right)", [minima[k].lambda_max for k in chosen], 0.07
    )
    up = linear_axis("loss", [minima[k].loss for k in chosen], 0.08)
    x = scale(across, LEFT, WIDE - RIGHT)
    y = scale(up, GRAPH_HEIGHT - BOTTOM - 8, TOP)
    place = {k: (x(minima[k].lambda_max), y(minima[k].loss)) for k in chosen}
    body = _level_lines(up, GRAPH_HEIGHT)
    for value, text in across.ticks:
        body.append(
            tag("text", text, x=x(value), y=GRAPH_HEIGHT - BOTTOM + 10, class_="tick middle")
        )
    body.append(tag("text", across.label, x=WIDE / 2, y=GRAPH_HEIGHT - 6, class_="name middle"))
    rates = rate_matrix(network, batch_size)
    edges, told = _edges(rates, chosen, place, network.labels)
    colour = shades(np.array([m.lambda_max for m in minima]))
    nodes = [_node(landscape, k, place[k], float(shares[k]), colour[k]) for k in chosen]
    words = "; ".join(told[:12]) or "no jumps between these basins were seen"
    title = f"Jumps between basins at B = {batch_size}"
    return Picture(title, (*body, *edges, *nodes), words, WIDE, GRAPH_HEIGHT)


def _edges(
    rates: np.ndarray,
    chosen: list[int],
    place: dict[int, tuple[float, float]],
    labels: tuple[str, ...],
) -> tuple[list[Markup], list[str]]:
    found = [(rates[i, j], i, j) for i in chosen for j in chosen if i != j and rates[i, j] > 0]
    if not found:
        return [], []
    found.sort()
    slow, fast = (math.log(max(v, 1e-300)) for v in (found[0][0], found[-1][0]))
    slow = max(slow, fast - math.log(1e4))
    out, told = [], []
    for rate, i, j in found:
        strength = (math.log(max(rate, 1e-300)) - slow) / max(fast - slow, 1e-9)
        if strength < 0:
            continue
        (a, b), (c, d) = place[i], place[j]
        # Both ways between two basins bend to their own right, so that neither covers the other.
        bend = 0.14
        middle = ((a + c) / 2 - bend * (d - b), (b + d) / 2 + bend * (c - a))
        tip = f"{labels[i]} to {labels[j]}: once in {wording.spoken(1 / rate)} steps"
        path = f"M{a:.1f} {b:.1f}Q{middle[0]:.1f} {middle[1]:.1f} {c:.1f} {d:.1f}"
        line = tag(
            "path",
            d=path,
            class_="stroke",
            stroke_opacity=f"{0.12 + 0.6 * strength:.2f}",
            style=f"stroke-width:{0.6 + 2.2 * strength:.1f}px",
        )
        out.append(tag("g", tag("title", tip), line, class_="mark s-other"))
        told.append(tip)
    return out, told[::-1]


def _node(
    landscape: Landscape, k: int, at: tuple[float, float], share: float, colour: int
) -> Markup:
    minimum = landscape.minima[k]
    tip = (
        f"{minimum.label}: λmax {wording.number(minimum.lambda_max)}, loss "
        f"{wording.number(minimum.loss, 4)}, predicted share {wording.percent(share)}"
    )
    radius = 3.0 + 14.0 * math.sqrt(max(share, 0.0))
    return tag(
        "g",
        tag("title", tip),
        tag("circle", cx=at[0], cy=at[1], r=radius, class_="full", fill_opacity="0.85"),
        tag("text", minimum.label, x=at[0], y=at[1] - radius - 3, class_="tick middle halo strong"),
        class_=f"mark s-q{colour}",
    )
