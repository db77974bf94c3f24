"""Transfer operators of SGD in 1-D: panels of Gauss-Legendre nodes, or push-forward of atoms.

Three discretisations of mu -> law of x - eta g(x):

"nystrom"  Gaussian-like noise: the step density on panels of Gauss-Legendre nodes. Converges
           spectrally; every rate is non-negative and exits come from the noise's own tails.
"hat"      densities with kinks, and finite data: mass that lands between two grid points is split
           between them, which keeps mass, mean and sign. Second order in the mesh.
"spectral" expectations only: values interpolated by polynomials on panels; a density is replaced
           by its Gauss rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from ..dynamics import SGD, need_sgd
from ..errors import InputError, one_of, require, whole
from ..points import numbers, point
from .fields import evaluate
from .interval import Interval, Place, interval
from .kernel import AtomKernel, DensityKernel, Kernel, RuleKernel, kernel, points_of
from .markov import gth_factor
from .memory import check_bytes, check_memory
from .operator import Operator

Floats = NDArray[np.float64]

PANEL = 16  # nodes per panel of the fine mesh
COARSE_PANEL = 12
PANEL_WIDTH = 3.5  # standard deviations of one step per panel
HAT_NODES = 1600
# Gauss nodes of the noise in expectations of smooth functions.
RULE, COARSE_RULE = 24, 20
MAX_NODES = 40000
METHODS = ("auto", "nystrom", "hat", "spectral")

Row = Callable[[Floats], tuple[Any, Floats]]


def chain_operator(
    sgd: SGD,
    place: Place,
    nodes: int | None = None,
    method: str = "auto",
    include: tuple[float, ...] = (),
) -> Operator:
    """`transfer_operator` in 1-D (see there)."""
    method = one_of("method", method, METHODS)
    step = kernel(sgd)
    smooth = isinstance(step, DensityKernel) and step.law.smooth
    if method == "auto":
        method = "nystrom" if smooth else "hat"
    ends = interval(sgd, place, include)
    if method == "nystrom":
        require(smooth, "method", method, "needs noise with a smooth density; use 'hat'")
        assert isinstance(step, DensityKernel)
        return _nystrom(step, ends, nodes)
    if method == "spectral":
        return _spectral(step, ends, nodes)
    return _hat(step, ends, nodes)


# ------------------------------------------------------------------ nystrom


def _nystrom(step: DensityKernel, ends: Interval, nodes: int | None) -> Operator:
    edges = _panel_edges(step, ends, nodes)
    coarse = _nystrom_on(step, ends, edges, COARSE_PANEL, None)
    return _nystrom_on(step, ends, edges, PANEL, coarse)


def _panel_edges(
    step: DensityKernel, ends: Interval, nodes: int | None, width: float = PANEL_WIDTH
) -> Floats:
    """Panel ends such that no panel is wider than a few standard deviations of a step."""
    if nodes is not None:
        return np.linspace(ends.lower, ends.upper, max(1, whole("nodes", nodes, 16) // PANEL) + 1)
    x = np.linspace(ends.lower, ends.upper, 257)
    std = np.sqrt(step.covariance(x[:, None])[:, 0, 0])
    require(
        float(std.min()) > 0,
        "noise",
        f"variance 0 at x = {x[int(np.argmin(std))]:.6g}",
        "must not vanish inside the domain: the step has no density there",
    )
    # Number of panels as the integral of 1 / (allowed width), ends at equal shares of it.
    local = np.minimum(std[1:], std[:-1])
    share = np.concatenate([[0.0], np.cumsum(np.diff(x) / (width * step.law.width * local))])
    count = max(2, math.ceil(share[-1]))
    check_memory("learning_rate", step.sgd.learning_rate, count * PANEL)
    return np.interp(np.linspace(0, share[-1], count + 1), share, x)


def _panel_nodes(edges: Floats, q: int) -> tuple[Floats, Floats]:
    t, w = np.polynomial.legendre.leggauss(q)
    half, middle = np.diff(edges) / 2, (edges[1:] + edges[:-1]) / 2
    return (middle[:, None] + half[:, None] * t).ravel(), (half[:, None] * w).ravel()


def _nystrom_on(
    step: DensityKernel, ends: Interval, edges: Floats, q: int, coarse: Operator | None
) -> Operator:
    y, w = _panel_nodes(edges, q)
    check_memory("nodes", len(y), len(y))

    def row(x: Floats) -> tuple[Floats, Floats]:
        centre, spread = step.centre(x)[:, 0], step.spread(x)
        z = (y - centre[:, None]) / spread[:, None]
        rates = step.law.pdf(z) * (w / np.abs(spread)[:, None])
        exits = _tails(step, ends, centre, spread)
        return _close_open_ends(ends, rates, exits)

    name = f"transfer operator, Gauss-Legendre panels, {len(y)} nodes"
    return _operator(ends, y, w, row, coarse, name)


def _operator(
    ends: Interval,
    y: Floats,
    w: Floats,
    row: Row,
    coarse: Operator | None,
    method: str,
    **more: Any,
) -> Operator:
    """The operator whose rows at its own nodes y (n,), of weights w (n,), are ``row(y)``."""
    rates, exits = row(y[:, None])
    return Operator(
        "chain",
        y[:, None],
        w,
        rates,
        exits,
        ("lower", "upper"),
        row,
        coarse=coarse,
        method=method,
        inside=ends.holds,
        **more,
    )


def _tails(step: DensityKernel, ends: Interval, centre: Floats, spread: Floats) -> Floats:
    """Chances (m, 2) of landing below the lower and above the upper end."""
    low, high = (ends.lower - centre) / spread, (ends.upper - centre) / spread
    mirrored = spread < 0  # then x' small means zeta large
    below = np.where(mirrored, step.law.sf(low), step.law.cdf(low))
    above = np.where(mirrored, step.law.cdf(high), step.law.sf(high))
    return np.stack([below, above], axis=1)


def _close_open_ends(ends: Interval, rates: Any, exits: Floats) -> tuple[Any, Floats]:
    """Give what crosses a cut end back to the nearest node: nothing is lost there."""
    for side, is_open, node in ((0, ends.open_lower, 0), (1, ends.open_upper, -1)):
        if is_open:
            rates[:, node] += exits[:, side]
            exits[:, side] = 0.0
    return rates, exits


# ---------------------------------------------------------------------- hat


def _hat(step: Kernel, ends: Interval, nodes: int | None) -> Operator:
    default = HAT_NODES if isinstance(step, AtomKernel) else HAT_NODES // 2
    count = default if nodes is None else whole("nodes", nodes, 8)
    check_memory("nodes", count, count, 4.0)
    coarse = _hat_on(step, ends, (count + 1) // 2, None)
    return _hat_on(step, ends, 2 * ((count + 1) // 2) - 1, coarse)


def _hat_on(step: Kernel, ends: Interval, count: int, coarse: Operator | None) -> Operator:
    y = np.linspace(ends.lower, ends.upper, count)
    row = _atom_rows(step, ends, y) if isinstance(step, AtomKernel) else _cell_rows(step, ends, y)
    w = np.full(count, ends.width / (count - 1))
    w[[0, -1]] /= 2
    name = f"transfer operator, mass-conserving push-forward, {count} nodes"
    return _operator(ends, y, w, row, coarse, name, order=2, image=_image(step, y))


def _image(step: Kernel | RuleKernel, y: Floats) -> Floats:
    """Ends (n, 2) of where one step from each node can land."""
    if not isinstance(step, DensityKernel):
        to = step.images(y[:, None])[:, :, 0]
        return np.stack([to.min(axis=1), to.max(axis=1)], axis=1)
    centre, spread = step.centre(y[:, None])[:, 0], step.spread(y[:, None])
    with np.errstate(invalid="ignore"):
        far = np.stack([centre + spread * e for e in step.law.support], axis=1)
    return np.sort(far, axis=1)


def _atom_rows(step: AtomKernel, ends: Interval, y: Floats) -> Row:
    h, n = y[1] - y[0], len(y)
    chances = step.batches.chances

    def row(x: Floats) -> tuple[Floats, Floats]:
        check_bytes("batch_size", step.sgd.batch_size, 40.0 * len(x) * len(chances))
        to = step.images(x)[:, :, 0]
        exits = np.stack([(to <= ends.lower) @ chances, (to >= ends.upper) @ chances], axis=1)
        inside = (to > ends.lower) & (to < ends.upper)
        s = np.clip((to - y[0]) / h, 0, n - 1 - 1e-12)
        cell = s.astype(np.int64)
        share = s - cell
        mass = np.where(inside, chances, 0.0)
        flat = (np.arange(len(x))[:, None] * n + cell).ravel()
        rates = np.bincount(flat, (mass * (1 - share)).ravel(), len(x) * n)
        rates += np.bincount(flat + 1, (mass * share).ravel(), len(x) * n)
        return _close_open_ends(ends, rates.reshape(len(x), n), exits)

    return row


def _cell_rows(step: DensityKernel, ends: Interval, y: Floats) -> Row:
    """Hat functions integrated against the step density, cell by cell, split at its kinks."""
    n, h = len(y), y[1] - y[0]
    t, w = np.polynomial.legendre.leggauss(6)
    t, w = (t + 1) / 2, w / 2

    def shares(centre: Floats, spread: Floats, a: Floats, b: Floats) -> tuple[Floats, Floats]:
        """Mass landing in [a, b], all arrays (k,), split over the two ends of its cell."""
        points = a[:, None] + (b - a)[:, None] * t
        z = (points - centre[:, None]) / spread[:, None]
        mass = step.law.pdf(z) * w * ((b - a) / np.abs(spread))[:, None]
        cell = np.clip(np.floor(((a + b) / 2 - y[0]) / h), 0, n - 2)
        up = (points - (y[0] + h * cell)[:, None]) / h
        return np.sum(mass * (1 - up), axis=1), np.sum(mass * up, axis=1)

    def row(x: Floats) -> tuple[Floats, Floats]:
        m = len(x)
        centre, spread = step.centre(x)[:, 0], step.spread(x)
        rates = np.zeros((m, n))
        for c in range(n - 1):  # one cell for all rows: memory stays small
            low, up = shares(centre, spread, np.full(m, y[c]), np.full(m, y[c + 1]))
            rates[:, c] += low
            rates[:, c + 1] += up
        _resplit(rates, centre, spread)
        exits = _tails(step, ends, centre, spread)
        return _close_open_ends(ends, rates, exits)

    def _resplit(rates: Floats, centre: Floats, spread: Floats) -> None:
        """Redo the cells that hold a kink, in pieces between kinks."""
        kinks = np.sort(centre[:, None] + spread[:, None] * np.asarray(step.law.kinks), axis=1)
        cell = np.floor((kinks - y[0]) / h).astype(np.int64)
        held = np.argwhere((cell >= 0) & (cell < n - 1))
        for i, c in {(int(k), int(cell[k, j])) for k, j in held}:
            cuts = np.concatenate([[y[c]], kinks[i][cell[i] == c], [y[c + 1]]])
            a, b = np.concatenate([cuts[:1], cuts[:-1]]), np.concatenate([[y[c + 1]], cuts[1:]])
            s = np.full(len(a), spread[i])
            low, up = shares(np.full(len(a), centre[i]), s, a, b)
            rates[i, c] += low[1:].sum() - low[0]
            rates[i, c + 1] += up[1:].sum() - up[0]
        np.maximum(rates, 0.0, out=rates)

    return row


# ----------------------------------------------------------------- spectral


def _spectral(step: Kernel, ends: Interval, nodes: int | None) -> Operator:
    panels = max(2, (320 if nodes is None else whole("nodes", nodes, 32)) // PANEL)
    edges = np.linspace(ends.lower, ends.upper, panels + 1)
    coarse = _spectral_on(points_of(step, COARSE_RULE), ends, edges, COARSE_PANEL, None)
    return _spectral_on(points_of(step, RULE), ends, edges, PANEL, coarse)


def _spectral_on(
    step: AtomKernel | RuleKernel,
    ends: Interval,
    edges: Floats,
    q: int,
    coarse: Operator | None,
) -> Operator:
    y, w = _panel_nodes(edges, q)
    chances, n = step.chances, len(y)
    interpolate = panel_interpolation(edges, q)

    def row(x: Floats) -> tuple[Any, Floats]:
        to = step.images(x)[:, :, 0]
        exits = np.stack([(to < ends.lower) @ chances, (to > ends.upper) @ chances], axis=1)
        columns, values = interpolate(np.clip(to.ravel(), ends.lower, ends.upper))
        inside = (to >= ends.lower) & (to <= ends.upper)
        values = values * np.where(inside, chances, 0.0).reshape(-1, 1)
        rows = np.repeat(np.arange(len(x)), to.shape[1] * q)
        rates = sparse.csr_array((values.ravel(), (rows, columns.ravel())), shape=(len(x), n))
        return rates, exits

    name = f"backward master equation, polynomial panels, {n} nodes"
    return _operator(ends, y, w, row, coarse, name, positive=False, image=_image(step, y))


def panel_interpolation(edges: Floats, q: int) -> Callable[[Floats], tuple[Any, Floats]]:
    """``f(points (m,))`` -> columns (m, q) and weights (m, q) of panelwise interpolation."""
    t, _ = np.polynomial.legendre.leggauss(q)
    # Barycentric weights of Gauss-Legendre nodes.
    bary = np.array([1 / np.prod(t[i] - np.delete(t, i)) for i in range(q)])

    def weights(x: Floats) -> tuple[Any, Floats]:
        panel = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, len(edges) - 2)
        a, b = edges[panel], edges[panel + 1]
        gap = (2 * x - a - b)[:, None] / (b - a)[:, None] - t
        hit = np.abs(gap) < 1e-15
        terms = bary / np.where(hit, 1.0, gap)
        values = terms / terms.sum(axis=1, keepdims=True)
        exact = hit.any(axis=1)
        values[exact] = hit[exact]
        return panel[:, None] * q + np.arange(q), values

    return weights


# ---------------------------------------------------------------------- maps

MAP_PANEL_WIDTH = 7.0


def exit_time_map(
    sgd: SGD,
    place: Place,
    learning_rates: Sequence[float],
    batch_sizes: Sequence[int],
    start: ArrayLike,
) -> Floats:
    """Mean exit times in SGD steps over a table of learning rates and batch sizes (1-D).

    One evaluation of gradient and noise serves the whole table, and each entry is one small
    cancellation-free elimination; entries are right to about 1e-9 relative.

    Parameters
    ----------
    sgd
        1-D, with noise of smooth density; its own learning rate and batch size do not matter.
    place
        (lower, upper) with finite ends, or a bounded `Domain`.

    Returns
    -------
    Array (len(learning_rates), len(batch_sizes)).

    Examples
    --------
    >>> from batchwell import SGD, additive
    >>> sgd = SGD(additive(lambda x: x @ x / 2), 0.1)
    >>> exit_time_map(sgd, (-1, 1), [0.1, 0.2], [1, 2], 0.0).round(1).tolist()
    [[117280.4, 1687767288.5], [559.9, 53697.2]]
    """
    ends = interval(need_sgd(sgd), place)
    require(not (ends.open_lower or ends.open_upper), "interval", place, "must have finite ends")
    x = point("start", start, 1)
    require(ends.holds(x), "start", x, "must lie inside the interval")
    rates = np.atleast_1d(numbers("learning_rates", learning_rates))
    sizes = np.atleast_1d(np.asarray(batch_sizes))
    require(
        rates.size > 0 and sizes.size > 0, "learning_rates", learning_rates, "must not be empty"
    )
    cases = [
        _MapCase.of(replace(sgd, learning_rate=float(eta), batch_size=b), ends)
        for eta in rates
        for b in sizes
    ]
    points = np.concatenate([c.points(x) for c in cases])[:, None]
    gradient = evaluate(sgd.loss, "gradient", points)[:, 0]
    slope = cases[0].kernel.spread(points) / -cases[0].kernel.sgd.learning_rate
    stops = np.cumsum([0, *(len(c.nodes) + 1 for c in cases)])
    times = [
        c.time(x, gradient[a:b], slope[a:b])
        for c, a, b in zip(cases, stops[:-1], stops[1:], strict=True)
    ]
    return np.reshape(times, (rates.size, sizes.size))


@dataclass(frozen=True, eq=False)
class _MapCase:
    kernel: DensityKernel
    ends: Interval
    nodes: Floats
    weights: Floats

    @classmethod
    def of(cls, sgd: SGD, ends: Interval) -> _MapCase:
        step = kernel(sgd)
        if not (isinstance(step, DensityKernel) and step.law.smooth):
            raise InputError("noise", sgd.loss.name, "must have a smooth density for a map")
        edges = _panel_edges(step, ends, None, MAP_PANEL_WIDTH)
        return cls(step, ends, *_panel_nodes(edges, PANEL))

    def points(self, start: Floats) -> Floats:
        return np.append(self.nodes, start)

    def time(self, start: Floats, gradient: Floats, slope: Floats) -> float:
        eta = self.kernel.sgd.learning_rate
        centre, spread = self.points(start) - eta * gradient, -eta * slope
        z = (self.nodes - centre[:, None]) / spread[:, None]
        rates = self.kernel.law.pdf(z) * (self.weights / np.abs(spread)[:, None])
        exits = _tails(self.kernel, self.ends, centre, spread).sum(axis=1)
        inner = gth_factor(rates[:-1], exits[:-1]).solve(np.ones(len(self.nodes)))
        return 1 + float(rates[-1] @ inner)
