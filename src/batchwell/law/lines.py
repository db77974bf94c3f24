"""Transfer operators of 2-D SGD whose noise has any density: mass pushed forward along lines.

With all noises but one held at a node of a fine quadrature, the landing point moves along a line as the
last one varies. The stretch of that line inside the domain is integrated between the kinks of
the density and its mass split bilinearly between the corners of the cells, which keeps mass,
mean and sign; what lies beyond the stretch leaves the domain, with the noise's own tails, so that
rare exits lose no digits. Splitting a spread-out mass adds a sixth of the squared mesh size to its
variance along each axis: the noise is made that much smaller beforehand where it is large enough.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
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
TAIL = 1e-30
SAMPLES, BISECTIONS = 17, 30
ROWS = 64  # rows assembled at once


def line_operator(
    step: DensityKernel, domain: Domain, bounds: Floats, is_box: bool, nodes: int | None
) -> Operator:
    """The operator on a grid of `nodes` cells per direction and on half of them."""
    count = NODES if nodes is None else whole("nodes", nodes, 8)
    fine = 2 * (count // 2)
    check_memory("nodes", count, (fine + 1) ** 2)
    coarse = _on(step, domain, bounds, is_box, fine // 2, None)
    return _on(step, domain, bounds, is_box, fine, coarse)


def _on(
    step: DensityKernel,
    domain: Domain,
    bounds: Floats,
    is_box: bool,
    count: int,
    coarse: Operator | None,
) -> Operator:
    axes = [np.linspace(a, b, count + 1) for a, b in bounds.T]
    x = np.stack([g.ravel() for g in np.meshgrid(*axes, indexing="ij")], axis=1)
    rows = _rows(step, domain, bounds, is_box, count)
    keep = np.arange(len(x)) if is_box else _used(rows, domain, x)
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
    step: DensityKernel, domain: Domain, bounds: Floats, is_box: bool, count: int
) -> Callable[[Floats], tuple[Floats, Floats]]:
    h = (bounds[1] - bounds[0]) / count
    n = (count + 1) ** 2

    def row(points: Floats) -> tuple[Floats, Floats]:
        rates, exits = np.zeros((len(points), n)), np.zeros((len(points), 1))
        factors = _shrunk(step.factor(points), h)
        centres = step.centre(points)
        for a in range(0, len(points), ROWS):
            part = slice(a, a + ROWS)
            _fill(
                step.law,
                domain,
                bounds,
                is_box,
                count,
                centres[part],
                factors[part],
                rates[part],
                exits[part],
            )
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
    domain: Domain,
    bounds: Floats,
    is_box: bool,
    count: int,
    centres: Floats,
    factors: Floats,
    rates: Floats,
    exits: Floats,
) -> None:
    m, _, k = factors.shape
    along = int(np.argmax(np.sum(factors**2, axis=(0, 1))))
    held = [j for j in range(k) if j != along]
    z, w = product_nodes(*quadrature(law, OUTER, TAIL), len(held))
    check_bytes("nodes", count, 200.0 * m * len(w) * INNER * len(panel_edges(law, TAIL)))
    base = (centres[:, None] + np.einsum("mdj,kj->mkd", factors[:, :, held], z)).reshape(-1, 2)
    direction = np.repeat(factors[:, :, along], len(w), axis=0)
    weight = np.tile(w, m)
    owner = np.repeat(np.arange(m), len(w))
    low, high = _inside(domain, bounds, is_box, base, direction)
    out = weight * np.where(low < high, law.cdf(low) + law.sf(high), 1.0)
    np.add.at(exits[:, 0], owner, out)
    met = np.flatnonzero(low < high)
    _deposit(
        law,
        bounds,
        count,
        base[met],
        direction[met],
        weight[met],
        owner[met],
        low[met],
        high[met],
        rates,
    )


def _inside(
    domain: Domain, bounds: Floats, is_box: bool, base: Floats, direction: Floats
) -> tuple[Floats, Floats]:
    """Ends (n,) of the stretch of each line base + z direction that lies inside."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.sort((bounds[:, None] - base) / direction, axis=0)  # (2, n, 2)
    still = direction == 0
    held = (base > bounds[0]) & (base < bounds[1])
    ends[0][still] = np.where(held[still], -np.inf, np.inf)
    ends[1][still] = np.where(held[still], np.inf, -np.inf)
    low, high = ends[0].max(axis=1), ends[1].min(axis=1)
    if is_box:
        return low, high
    return _inside_curved(domain, base, direction, low, high)


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
