"""Transfer operators of 2-D SGD whose noise has any density: mass pushed forward along lines.

With all noises but one held at a node of a fine quadrature, the landing point moves along a line as the
last one varies. The quadrature of the largest held noise begins and ends, line by line, where lines
begin and cease to meet the domain. The stretch of that line inside the domain is integrated between the kinks of
the density and its mass split bilinearly between the corners of the cells, which keeps mass,
mean and sign; what lies beyond the stretch leaves the domain, with the noise's own tails, so that
rare exits lose no digits. Splitting a spread-out mass adds a sixth of the squared mesh size to its
variance along each axis: the noise is made that much smaller beforehand where it is large enough.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..domain import Domain
from ..errors import require, whole
from .densities import MeanDensity, panel_edges, product_nodes, quadrature
from .fields import evaluate
from .kernel import DensityKernel
from .memory import check_bytes, check_memory
from .operator import Operator

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NODES = 40
OUTER, INNER = 6, 6  # Gauss nodes per panel, of the held noises and along a line
RAYS, RADII = 720, 256  # samples of a curved outline
TAIL = 1e-30
SAMPLES, BISECTIONS = 17, 30
ROWS = 64  # rows assembled at once


@dataclass(frozen=True, eq=False)
class _Place:
    """Where the law lives: a domain in a box, or the box itself; `outline` (c, 2) are its corners."""

    domain: Domain
    bounds: Floats
    is_box: bool
    outline: Floats = field(repr=False)


def line_operator(
    step: DensityKernel, domain: Domain, bounds: Floats, is_box: bool, nodes: int | None
) -> Operator:
    """The operator on a grid of `nodes` cells per direction and on half of them."""
    count = NODES if nodes is None else whole("nodes", nodes, 8)
    fine = 2 * (count // 2)
    check_memory("nodes", count, (fine + 1) ** 2)
    corners = np.array(list(itertools.product(*bounds.T)))
    place = _Place(domain, bounds, is_box, corners if is_box else _outline(domain, bounds))
    coarse = _on(step, place, fine // 2, None)
    return _on(step, place, fine, coarse)


def _outline(domain: Domain, bounds: Floats) -> Floats:
    """The last point inside on each of many rays from the middle of a domain, (RAYS, 2)."""
    axes = [np.linspace(a, b, 65) for a, b in bounds.T]
    grid = np.stack([g.ravel() for g in np.meshgrid(*axes, indexing="ij")], axis=1)
    middle = grid[evaluate(domain, "level", grid) < 0].mean(axis=0)
    angle = 2 * np.pi * np.arange(RAYS) / RAYS
    ray = np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.linalg.norm(bounds[1] - bounds[0])
    share = np.linspace(0, 1, RADII)
    points = (middle + share[:, None, None] * ray).reshape(-1, 2)
    inside = (evaluate(domain, "level", points) < 0).reshape(RADII, RAYS)
    last = np.maximum(RADII - 1 - np.argmax(inside[::-1], axis=0), 0)

    def level(reach: Floats) -> NDArray[np.bool_]:
        return np.asarray(evaluate(domain, "level", middle + reach[:, None] * ray) < 0)

    reach = _edge(level, share[last], share[np.minimum(last + 1, RADII - 1)])
    return middle + reach[:, None] * ray


def _on(step: DensityKernel, place: _Place, count: int, coarse: Operator | None) -> Operator:
    bounds = place.bounds
    axes = [np.linspace(a, b, count + 1) for a, b in bounds.T]
    x = np.stack([g.ravel() for g in np.meshgrid(*axes, indexing="ij")], axis=1)
    rows = _rows(step, place, count)
    keep = np.arange(len(x)) if place.is_box else _used(rows, place.domain, x)
    inner = np.ones(count + 1)
    inner[[0, -1]] = 0.5
    weights = np.outer(inner, inner).ravel() * np.prod((bounds[1] - bounds[0]) / count)

    def row(points: Floats) -> tuple[Floats, Floats]:
        rates, exits = rows(points)
        return rates[:, keep], exits

    rates, exits = row(x[keep])
    return Operator(
        "chain",
        x[keep],
        weights[keep],
        rates,
        exits,
        ("boundary",),
        row,
        order=2,
        coarse=coarse,
        method=f"transfer operator, push-forward along lines, {count} x {count} cells",
        inside=place.domain.contains,
    )


def _used(rows: Callable[[Floats], tuple[Floats, Floats]], domain: Domain, x: Floats) -> Ints:
    """Nodes inside, and corners outside of the cells that landing points reach into."""
    used = domain.contains(x)
    for _ in range(4):
        reached = used | (rows(x[used])[0] > 0).any(axis=0)
        if (reached == used).all():
            break
        used = reached
    return np.flatnonzero(used)


def _rows(
    step: DensityKernel, place: _Place, count: int
) -> Callable[[Floats], tuple[Floats, Floats]]:
    h = (place.bounds[1] - place.bounds[0]) / count
    n = (count + 1) ** 2

    def row(points: Floats) -> tuple[Floats, Floats]:
        rates, exits = np.zeros((len(points), n)), np.zeros((len(points), 1))
        factors = _shrunk(step.factor(points), h)
        centres = step.centre(points)
        for a in range(0, len(points), ROWS):
            part = slice(a, a + ROWS)
            _fill(step.law, place, count, centres[part], factors[part], rates[part], exits[part])
        return rates, exits

    return row


def _shrunk(factor: Floats, h: Floats) -> Floats:
    """The factor S (m, 2, k) less what splitting mass between nodes adds to its covariance."""
    covariance = factor @ factor.transpose(0, 2, 1)
    less = covariance - np.diag(h**2) / 6
    values, vectors = np.linalg.eigh(covariance)
    enough = np.linalg.eigvalsh(less)[:, 0] > 0.05 * values[:, 0]
    safe = np.where(enough[:, None, None], less, covariance)
    lower = np.linalg.eigh(safe)
    root = (lower[1] * np.sqrt(np.maximum(lower[0], 0))[:, None, :]) @ lower[1].transpose(0, 2, 1)
    back = (vectors / np.sqrt(np.maximum(values, 1e-300))[:, None, :]) @ vectors.transpose(0, 2, 1)
    return np.where(enough[:, None, None], root @ back @ factor, factor)


def _fill(
    law: MeanDensity,
    place: _Place,
    count: int,
    centres: Floats,
    factors: Floats,
    rates: Floats,
    exits: Floats,
) -> None:
    order = np.argsort(-np.sum(factors**2, axis=(0, 1)), kind="stable")
    base, direction, weight, owner = _lines(law, place, count, centres, factors[:, :, order], exits)
    low, high = _inside(place, base, direction)
    out = weight * np.where(low < high, law.cdf(low) + law.sf(high), 1.0)
    np.add.at(exits[:, 0], owner, out)
    met = np.flatnonzero(low < high)
    _deposit(
        law,
        place.bounds,
        count,
        base[met],
        direction[met],
        weight[met],
        owner[met],
        low[met],
        high[met],
        rates,
    )


def _lines(
    law: MeanDensity, place: _Place, count: int, centres: Floats, factors: Floats, exits: Floats
) -> tuple[Floats, Floats, Floats, Ints]:
    """Base, direction, weight and row (n,) of every line; what meets no line of the domain leaves."""
    m, _, k = factors.shape
    z, w = product_nodes(*quadrature(law, OUTER, TAIL), max(0, k - 2))
    panels = len(panel_edges(law, TAIL))
    ways = len(w) * (panels + 4) * OUTER if k > 1 else 1
    check_bytes("nodes", count, 200.0 * m * ways * INNER * panels)
    base = (centres[:, None] + np.einsum("mdj,kj->mkd", factors[:, :, 2:], z)).reshape(-1, 2)
    direction = np.repeat(factors[:, :, 0], len(w), axis=0)
    weight, owner = np.tile(w, m), np.repeat(np.arange(m), len(w))
    if k == 1:
        return base, direction, weight, owner
    held = np.repeat(factors[:, :, 1], len(w), axis=0)
    cuts = _cuts(place, base, direction, held)
    nodes, shares, beyond = _between(law, cuts, not place.is_box)
    np.add.at(exits[:, 0], owner, weight * beyond)
    i, j = np.nonzero(shares)
    points = base[i] + nodes[i, j][:, None] * held[i]
    return points, direction[i], weight[i] * shares[i, j], owner[i]


def _cuts(place: _Place, base: Floats, direction: Floats, held: Floats) -> Floats:
    """Sorted values (n, c) of the held noise at which lines pass the corners of the domain.

    The first and the last are those between which lines meet the domain at all. Where the held noise
    does not move the line, it meets always (-inf, inf) or never (inf, inf).
    """
    across = np.stack([-direction[:, 1], direction[:, 0]], axis=1)
    corners = across @ place.outline.T
    if not place.is_box:  # a curved outline has no corners: only its ends count
        corners = np.stack([corners.min(axis=1), corners.max(axis=1)], axis=1)
    start, speed = np.sum(across * base, axis=1), np.sum(across * held, axis=1)
    scale = np.linalg.norm(across, axis=1) * np.linalg.norm(held, axis=1)
    still = np.abs(speed) <= 1e-9 * scale
    cuts = (corners - start[:, None]) / np.where(still, 1.0, speed)[:, None]
    met = (corners.min(axis=1) < start) & (start < corners.max(axis=1))
    cuts[still] = np.inf
    cuts[still & met, 0] = -np.inf
    return np.sort(cuts, axis=1)


def _between(law: MeanDensity, cuts: Floats, eased: bool) -> tuple[Floats, Floats, Floats]:
    """Nodes and weights (n, q) of the law between the first and last cut, and what lies beyond (n,).

    `eased` crowds the nodes of a panel at its ends, where chords of curved domains vanish like a root.
    """
    first, last = cuts[:, :1], cuts[:, -1:]
    panels = panel_edges(law, TAIL)
    edges = np.concatenate([np.broadcast_to(panels, (len(cuts), len(panels))), cuts], axis=1)
    edges = np.sort(np.clip(np.clip(edges, first, last), panels[0], panels[-1]), axis=1)
    t, g = np.polynomial.legendre.leggauss(OUTER)
    t, g = (t + 1) / 2, g / 2
    if eased:
        t, g = t * t * (3 - 2 * t), g * 6 * t * (1 - t)
    width = np.diff(edges, axis=1)[:, :, None]
    nodes = (edges[:, :-1, None] + width * t).reshape(len(cuts), -1)
    shares = law.pdf(nodes) * (width * g).reshape(len(cuts), -1)
    beyond = law.cdf(first[:, 0]) + law.sf(last[:, 0])
    total = shares.sum(axis=1)
    scale = np.divide(1 - beyond, total, out=np.zeros_like(total), where=total > 0)
    return nodes, np.maximum(shares * scale[:, None], 0.0), beyond


def _inside(place: _Place, base: Floats, direction: Floats) -> tuple[Floats, Floats]:
    """Ends (n,) of the stretch of each line base + z direction that lies inside."""
    bounds = place.bounds
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.sort((bounds[:, None] - base) / direction, axis=0)  # (2, n, 2)
    still = direction == 0
    held = (base > bounds[0]) & (base < bounds[1])
    ends[0][still] = np.where(held[still], -np.inf, np.inf)
    ends[1][still] = np.where(held[still], np.inf, -np.inf)
    low, high = ends[0].max(axis=1), ends[1].min(axis=1)
    if place.is_box:
        return low, high
    return _inside_curved(place.domain, base, direction, low, high)


def _inside_curved(
    domain: Domain, base: Floats, direction: Floats, low: Floats, high: Floats
) -> tuple[Floats, Floats]:
    """The part of the stretch (low, high) of a box that lies in a domain, found by bisection."""
    met = np.flatnonzero((low < high) & np.isfinite(low) & np.isfinite(high))
    still = (low < high) & ~(np.isfinite(low) & np.isfinite(high))
    if still.any():  # no noise along these: the point itself decides
        dropped = np.flatnonzero(still)[evaluate(domain, "level", base[still]) >= 0]
        low[dropped], high[dropped] = np.inf, -np.inf
    share = np.linspace(0, 1, SAMPLES)

    def level(z: Floats) -> NDArray[np.bool_]:
        points = base[met] + z[:, None] * direction[met]
        return np.asarray(evaluate(domain, "level", points) < 0)

    a, b = low[met], high[met]
    inside = np.stack([level(a + s * (b - a)) for s in share], axis=1)
    runs = np.sum(np.diff(inside.astype(int), axis=1) == 1, axis=1) + inside[:, 0]
    require(
        bool(np.all(runs <= 1)),
        "domain",
        domain.name,
        "falls into pieces along the direction of a noise: use a box",
    )
    some = inside.any(axis=1)
    first = np.argmax(inside, axis=1)
    last = SAMPLES - 1 - np.argmax(inside[:, ::-1], axis=1)
    step = (b - a) / (SAMPLES - 1)
    left = _edge(level, a + first * step, a + np.maximum(first - 1, 0) * step)
    right = _edge(level, a + last * step, a + np.minimum(last + 1, SAMPLES - 1) * step)
    low[met], high[met] = np.where(some, left, np.inf), np.where(some, right, -np.inf)
    return low, high


def _edge(level: Callable[[Floats], Any], inner: Floats, outer: Floats) -> Floats:
    for _ in range(BISECTIONS):
        middle = (inner + outer) / 2
        inside = level(middle)
        inner, outer = np.where(inside, middle, inner), np.where(inside, outer, middle)
    return (inner + outer) / 2


def _deposit(
    law: MeanDensity,
    bounds: Floats,
    count: int,
    base: Floats,
    direction: Floats,
    weight: Floats,
    owner: Ints,
    low: Floats,
    high: Floats,
    rates: Floats,
) -> None:
    """Add the mass on each stretch to the corners of the cells that it crosses."""
    t, g = np.polynomial.legendre.leggauss(INNER)
    edges = panel_edges(law, TAIL)
    h = (bounds[1] - bounds[0]) / count
    side = count + 1
    flat = rates.reshape(-1)
    for left, right in itertools.pairwise(edges):
        a, b = np.maximum(left, low), np.minimum(right, high)
        hit = np.flatnonzero(a < b)
        if not len(hit):
            continue
        half = ((b - a) / 2)[hit, None]
        z = ((a + b) / 2)[hit, None] + half * t
        mass = weight[hit, None] * law.pdf(z) * half * g
        point = base[hit, None] + z[:, :, None] * direction[hit, None]
        s = np.clip((point - bounds[0]) / h, 0, count - 1e-12)
        cell = s.astype(np.int64)
        share = s - cell
        start = owner[hit, None] * side**2 + cell[:, :, 0] * side + cell[:, :, 1]
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            part = mass * np.abs(1 - i - share[:, :, 0]) * np.abs(1 - j - share[:, :, 1])
            place = (start + i * side + j).ravel()
            flat += np.bincount(place, part.ravel(), len(flat))
