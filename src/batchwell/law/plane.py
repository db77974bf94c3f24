"""Transfer operators of SGD in 2-D.

"nystrom"   Gaussian noise: Gauss-Legendre nodes on horizontal chords of the domain, the chords
            themselves at Gauss nodes of an angle, so that a curved boundary costs no order.
            Chances of leaving are integrals of the noise's own tails, with no subtraction.
"hat"       finite data: mass is split bilinearly between the corners of the cell it lands in.
            Other noise with a density, and Gaussian noise in some directions only: see `lines`.
"spectral"  expectations only: polynomials on a box; a density is replaced by its Gauss rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from ..domain import Domain, box
from ..dynamics import SGD
from ..errors import InputError, one_of, require, whole
from ..points import numbers
from .fields import evaluate
from .kernel import AtomKernel, DensityKernel, Kernel, RuleKernel, kernel, points_of
from .lines import line_operator
from .memory import check_bytes, check_memory
from .operator import Operator, Rows
from .reach import find_bounds

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Largest node distance in standard deviations of a step, and how much coarser the check is.
SPACING = 0.9
COARSER = 0.8
STRIP = 256  # rows assembled at once
# Matrices at the peak: the operator, its factors, both of the coarser mesh (.41 each), strips of rows.
COPIES = 3.4
HAT_NODES = 48
DEGREE = 27
COARSE_DEGREE = 21
# Gauss nodes per noise in expectations of smooth functions.
RULE, COARSE_RULE = 10, 8
# What leaves beyond a corner has left through a side of x1.
SIDES = ("x0 lower", "x0 upper", "x1 lower", "x1 upper")


def plane_operator(
    sgd: SGD, place: Any, nodes: int | None = None, method: str = "auto"
) -> Operator:
    """`transfer_operator` in 2-D (see there)."""
    method = one_of("method", method, ("auto", "nystrom", "hat", "spectral"))
    domain, bounds, is_box = _place(place)
    step = kernel(sgd)
    if isinstance(step, DensityKernel):
        return _with_density(step, domain, bounds, is_box, nodes, method)
    if method == "nystrom":
        raise InputError("method", method, "needs noise with a density; use 'hat'")
    if method == "spectral":
        require(is_box, "place", domain.name, "must be a box for method 'spectral'")
        return _spectral(step, bounds, nodes)
    return _hat(step, domain, bounds, is_box, nodes)


def _with_density(
    step: DensityKernel,
    domain: Domain,
    bounds: Floats,
    is_box: bool,
    nodes: int | None,
    method: str,
) -> Operator:
    if method == "spectral":
        require(is_box, "place", domain.name, "must be a box for method 'spectral'")
        return _spectral(step, bounds, nodes)
    if method == "nystrom" or (method == "auto" and step.gaussian and _full_rank(step, bounds)):
        require(step.gaussian, "method", method, "is for Gaussian noise in 2-D; use 'hat'")
        return _nystrom(step, domain, bounds, is_box, nodes)
    return line_operator(step, domain, bounds, is_box, nodes)


def _full_rank(step: DensityKernel, bounds: Floats) -> bool:
    """Whether one step spreads in every direction, everywhere on a sample of the box."""
    grid = np.meshgrid(*[np.linspace(a, b, 17) for a, b in bounds.T], indexing="ij")
    x = np.stack([g.ravel() for g in grid], axis=1)
    values = np.linalg.eigvalsh(step.covariance(x))
    return bool(np.all(values[:, 0] > 1e-6 * values[:, 1]))


def _place(place: Any) -> tuple[Domain, Floats, bool]:
    if isinstance(place, Domain):
        require(
            place.dim == 2 and not place.needs_quench,
            "domain",
            place.name,
            "must have a level function in 2 dimensions",
        )
        return place, find_bounds(place), False
    corners = numbers("place", place, "must be two finite corners of a box, or a Domain")
    good = corners.shape == (2, 2) and np.all(np.isfinite(corners))
    require(bool(good), "place", place, "must be two finite corners of a box, or a Domain")
    return box(corners[0], corners[1]), corners, True


# ------------------------------------------------------------------ nystrom


@dataclass(frozen=True, eq=False)
class _Chords:
    """Horizontal chords of a domain at the nodes of a quadrature in the second coordinate."""

    y: Floats = field(repr=False)  # (k,) heights
    weights: Floats = field(repr=False)  # (k,) of the quadrature in y
    left: Floats = field(repr=False)  # (k,) ends of the chord
    right: Floats = field(repr=False)
    low: float  # lowest and highest point of the domain
    high: float


def _nystrom(
    step: DensityKernel, domain: Domain, bounds: Floats, is_box: bool, nodes: int | None
) -> Operator:
    counts = _counts(step, domain, bounds, is_box, nodes)
    size = counts[0] * counts[1]
    check_memory(
        "learning_rate" if nodes is None else "nodes",
        step.sgd.learning_rate if nodes is None else nodes,
        size,
        COPIES,
    )
    rough = tuple(max(6, int(COARSER * c)) for c in counts)
    coarse = _nystrom_on(step, domain, bounds, is_box, rough, None)
    return _nystrom_on(step, domain, bounds, is_box, counts, coarse)


def _counts(
    step: DensityKernel, domain: Domain, bounds: Floats, is_box: bool, nodes: int | None
) -> tuple[int, int]:
    if nodes is not None:
        n = whole("nodes", nodes, 8)
        return n, n
    grid = [np.linspace(a, b, 17) for a, b in bounds.T]
    x = np.stack([g.ravel() for g in np.meshgrid(*grid, indexing="ij")], axis=1)
    x = x[domain.contains(x)] if domain.contains(x).any() else x
    covariance = step.covariance(x)
    worst = float(np.linalg.eigvalsh(covariance)[:, 0].min())
    require(
        worst > 0,
        "noise",
        "singular",
        "must have full rank inside the domain: a degenerate "
        "step has no density (use moments or simulate)",
    )
    # Along each axis the kernel is as narrow as its conditional standard deviation.
    narrow = 1 / np.sqrt(np.max(np.einsum("nii->ni", np.linalg.inv(covariance)), axis=0))
    stretch = np.array([1.0, 1.0 if is_box else math.pi / 2])  # heights are nodes of an angle
    counts = np.ceil((math.pi / 2) * stretch * (bounds[1] - bounds[0]) / (SPACING * narrow)) + 4
    return max(10, int(counts[0])), max(10, int(counts[1]))


def _chords(domain: Domain, bounds: Floats, is_box: bool, count: int) -> _Chords:
    t, w = np.polynomial.legendre.leggauss(count)
    if is_box:
        (left, low), (right, high) = bounds
        y = (low + high) / 2 + (high - low) / 2 * t
        return _Chords(
            y,
            w * (high - low) / 2,
            np.full(count, left),
            np.full(count, right),
            float(low),
            float(high),
        )
    low, high = (_extreme(domain, bounds, side) for side in (0, 1))
    # y = c + R sin(theta): chord lengths vanish like a square root at both ends.
    theta = math.pi / 2 * t
    radius = (high - low) / 2
    y = (low + high) / 2 + radius * np.sin(theta)
    left, right = _chord_ends(domain, bounds, y)
    return _Chords(y, w * math.pi / 2 * radius * np.cos(theta), left, right, low, high)


def _extreme(domain: Domain, bounds: Floats, side: int) -> float:
    """Lowest (side 0) or highest second coordinate in the domain."""
    x = np.linspace(bounds[0, 0], bounds[1, 0], 2001)

    def inside(height: float) -> bool:
        points = np.stack([x, np.full_like(x, height)], axis=1)
        return bool((evaluate(domain, "level", points) < 0).any())

    grid = np.linspace(bounds[0, 1], bounds[1, 1], 101)
    hits = np.flatnonzero([inside(v) for v in grid])
    inner = float(grid[hits[0]] if side == 0 else grid[hits[-1]])
    outer = inner + (grid[0] - grid[1]) * (1 if side == 0 else -1)
    for _ in range(40):
        middle = (inner + outer) / 2
        inner, outer = (middle, outer) if inside(middle) else (inner, middle)
    return inner


def _chord_ends(domain: Domain, bounds: Floats, y: Floats) -> tuple[Floats, Floats]:
    x = np.linspace(bounds[0, 0], bounds[1, 0], 1001)
    points = np.stack(np.broadcast_arrays(x, y[:, None]), axis=2)
    inside = (evaluate(domain, "level", points.reshape(-1, 2)) < 0).reshape(len(y), len(x))
    pieces = np.sum(np.diff(inside.astype(int), axis=1) == 1, axis=1) + inside[:, 0]
    require(
        bool(np.all(pieces <= 1)),
        "domain",
        domain.name,
        "has a height at which it falls into pieces: rotate it, or use a box",
    )
    # A chord shorter than the sample is centred where the level is lowest.
    lowest = np.argmin(
        evaluate(domain, "level", points.reshape(-1, 2)).reshape(inside.shape), axis=1
    )
    some = inside.any(axis=1)
    first = np.where(some, np.argmax(inside, axis=1), lowest)
    last = np.where(some, len(x) - 1 - np.argmax(inside[:, ::-1], axis=1), lowest)
    h = x[1] - x[0]
    return tuple(_edge(domain, y, x[k], x[k] + s * h) for k, s in ((first, -1), (last, 1)))  # type: ignore[return-value]


def _edge(domain: Domain, y: Floats, inner: Floats, outer: Floats) -> Floats:
    for _ in range(45):
        middle = (inner + outer) / 2
        inside = evaluate(domain, "level", np.stack([middle, y], axis=1)) < 0
        inner, outer = np.where(inside, middle, inner), np.where(inside, outer, middle)
    return (inner + outer) / 2


def _nystrom_on(
    step: DensityKernel,
    domain: Domain,
    bounds: Floats,
    is_box: bool,
    counts: tuple[int, ...],
    coarse: Operator | None,
) -> Operator:
    chords = _chords(domain, bounds, is_box, counts[1])
    t, w = np.polynomial.legendre.leggauss(counts[0])
    half = (chords.right - chords.left) / 2
    x0 = ((chords.right + chords.left) / 2)[:, None] + half[:, None] * t
    x = np.stack([x0.ravel(), np.repeat(chords.y, counts[0])], axis=1)
    weights = (chords.weights[:, None] * half[:, None] * w).ravel()

    def row(points: Floats) -> tuple[Floats, Floats]:
        centre, covariance = step.centre(points), step.covariance(points)
        root = np.linalg.cholesky(covariance[:, ::-1, ::-1])  # second coordinate first
        sy, slope, sx = root[:, 0, 0], root[:, 1, 0], root[:, 1, 1]
        u = (chords.y - centre[:, 1:]) / sy[:, None]  # (m, k)
        # Given the height, the first coordinate is normal about this mean with deviation sx.
        mean = centre[:, :1] + slope[:, None] * u
        height = np.exp(-0.5 * u * u) / (math.sqrt(2 * math.pi) * sy[:, None])
        v = (x0 - mean[:, :, None]) / sx[:, None, None]
        density = np.exp(-0.5 * v * v) / (math.sqrt(2 * math.pi) * sx[:, None, None])
        rates = (density * height[:, :, None]).reshape(len(points), -1) * weights
        below = ndtr((chords.left - mean) / sx[:, None])
        above = ndtr((mean - chords.right) / sx[:, None])
        share = height * chords.weights
        ends = [
            np.sum(share * below, axis=1),
            np.sum(share * above, axis=1),
            ndtr((chords.low - centre[:, 1]) / sy),
            ndtr((centre[:, 1] - chords.high) / sy),
        ]
        exits = np.stack(ends, axis=1)
        return rates, exits if is_box else exits.sum(axis=1, keepdims=True)

    rates, exits = _in_strips(row, x)
    return Operator(
        "chain",
        x,
        weights,
        rates,
        exits,
        SIDES if is_box else ("boundary",),
        row,
        order=0,
        coarse=coarse,
        method=f"transfer operator, Gauss-Legendre chords, {len(x)} nodes",
        inside=domain.contains,
    )


def _in_strips(row: Rows, x: Floats) -> tuple[Floats, Floats]:
    """``row(x)`` without its intermediate results at all nodes at once."""
    rates, exits = np.empty((len(x), len(x))), []
    for a in range(0, len(x), STRIP):
        rates[a : a + STRIP], part = row(x[a : a + STRIP])
        exits.append(part)
    return rates, np.concatenate(exits)


# ---------------------------------------------------------------------- hat


def _beyond(to: Floats, bounds: Floats) -> NDArray[np.bool_]:
    """Through which of the `SIDES` each of the points to (m, k, 2) has left: (m, 4, k)."""
    below, above = to <= bounds[0], to >= bounds[1]
    level = ~(below | above)[:, :, 1]
    sides = below[:, :, 0] & level, above[:, :, 0] & level, below[:, :, 1], above[:, :, 1]
    return np.stack(sides, axis=1)


def _hat(
    step: AtomKernel, domain: Domain, bounds: Floats, is_box: bool, nodes: int | None
) -> Operator:
    count = HAT_NODES if nodes is None else whole("nodes", nodes, 8)
    fine = 2 * (count // 2)
    check_memory("nodes", count, (fine + 1) ** 2)
    coarse = _hat_on(step, domain, bounds, is_box, fine // 2, None)
    return _hat_on(step, domain, bounds, is_box, fine, coarse)


def _hat_on(
    step: AtomKernel,
    domain: Domain,
    bounds: Floats,
    is_box: bool,
    count: int,
    coarse: Operator | None,
) -> Operator:
    axes = [np.linspace(a, b, count + 1) for a, b in bounds.T]
    x = np.stack([g.ravel() for g in np.meshgrid(*axes, indexing="ij")], axis=1)
    n, h = len(x), (bounds[1] - bounds[0]) / count
    chances = step.batches.chances

    def row(points: Floats) -> tuple[Floats, Floats]:
        check_bytes("batch_size", step.sgd.batch_size, 120.0 * len(points) * len(chances))
        to = step.images(points)
        inside = domain.contains(to.reshape(-1, 2)).reshape(to.shape[:2])
        mass = np.where(inside, chances, 0.0)
        s = np.clip((to - bounds[0]) / h, 0, count - 1e-12)
        cell = s.astype(np.int64)
        share = s - cell
        start = np.arange(len(points))[:, None] * n
        rates = np.zeros(len(points) * n)
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            part = mass * np.abs(1 - i - share[:, :, 0]) * np.abs(1 - j - share[:, :, 1])
            flat = start + (cell[:, :, 0] + i) * (count + 1) + cell[:, :, 1] + j
            rates += np.bincount(flat.ravel(), part.ravel(), len(rates))
        exits = (_beyond(to, bounds) if is_box else ~inside[:, None, :]) @ chances
        return rates.reshape(len(points), n), exits

    rates, exits = row(x)
    keep = _used(rates, domain, x)

    def kept_row(points: Floats) -> tuple[Floats, Floats]:
        rates, exits = row(points)
        return rates[:, keep], exits

    return Operator(
        "chain",
        x[keep],
        np.full(len(keep), float(np.prod(h))),
        rates[np.ix_(keep, keep)],
        exits[keep],
        SIDES if is_box else ("boundary",),
        kept_row,
        order=2,
        coarse=coarse,
        method=f"transfer operator, mass-conserving push-forward, {count} x {count} cells",
        inside=domain.contains,
    )


def _used(rates: Floats, domain: Domain, x: Floats) -> Ints:
    """Nodes inside, and those outside that cells of landing points reach into."""
    used = domain.contains(x)
    for _ in range(4):
        reached = used | (rates[used] > 0).any(axis=0)
        if (reached == used).all():
            break
        used = reached
    return np.flatnonzero(used)


# ----------------------------------------------------------------- spectral


def _spectral(step: Kernel, bounds: Floats, nodes: int | None) -> Operator:
    fine = DEGREE if nodes is None else whole("nodes", nodes, 8)
    rough = max(6, fine * COARSE_DEGREE // DEGREE)
    coarse = _spectral_on(points_of(step, COARSE_RULE), bounds, rough, None)
    return _spectral_on(points_of(step, RULE), bounds, fine, coarse)


def _spectral_on(
    step: AtomKernel | RuleKernel, bounds: Floats, count: int, coarse: Operator | None
) -> Operator:
    t = np.cos(np.pi * (np.arange(count) + 0.5) / count)
    bary = (-1.0) ** np.arange(count) * np.sin(np.pi * (np.arange(count) + 0.5) / count)
    middle, half = (bounds[0] + bounds[1]) / 2, (bounds[1] - bounds[0]) / 2
    axes = [m + h * t for m, h in zip(middle, half, strict=True)]
    x = np.stack([g.ravel() for g in np.meshgrid(*axes, indexing="ij")], axis=1)
    chances = step.chances

    def lagrange(s: Floats) -> Floats:
        gap = s[..., None] - t
        hit = np.abs(gap) < 1e-14
        terms = bary / np.where(hit, 1.0, gap)
        terms = np.where(hit.any(axis=-1, keepdims=True), hit, terms)
        return terms / terms.sum(axis=-1, keepdims=True)

    def row(points: Floats) -> tuple[Floats, Floats]:
        rates = np.empty((len(points), count * count))
        block = max(1, int(2e7 / (len(chances) * count)))
        for i in range(0, len(points), block):
            # What leaves the box is held at its edge: choose a box that the law does not meet.
            s = np.clip((step.images(points[i : i + block]) - middle) / half, -1, 1)
            first, second = lagrange(s[:, :, 0]) * chances[:, None], lagrange(s[:, :, 1])
            rates[i : i + block] = np.einsum("mki,mkj->mij", first, second, optimize=True).reshape(
                len(s), -1
            )
        return rates, np.zeros((len(points), 1))

    rates, exits = row(x)
    return Operator(
        "chain",
        x,
        np.full(len(x), np.prod(2 * half) / len(x)),
        rates,
        exits,
        ("boundary",),
        row,
        order=0,
        coarse=coarse,
        positive=False,
        method=f"backward master equation, polynomials of degree {count - 1}",
        inside=box(*bounds).contains,
    )
