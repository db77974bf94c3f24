"""Two-sided bounds for 1-D SGD on finite data: no discretisation error is left unstated.

Within one cell of a grid every example moves a point into a known interval. Letting an adversary
choose, cell by cell, where in that interval the point lands gives a Markov decision process whose
largest and smallest mean exit times enclose the true one; both are found by policy iteration
(Howard, 1960), as in interval Markov chains (Givan, Leach & Dean, Artif. Intell. 122, 2000). For
laws, the mass that splitting between two nodes moves, times the mean Lipschitz constant of the steps
that follow, bounds the Wasserstein-1 distance from the true law.

Images of cells are taken from slopes at their ends and middles, with the variation seen there
added once more: bounds hold where slopes vary within a cell no more than twice as much as that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.linalg import splu

from .._jax import jax, jnp
from ..domain import Domain
from ..dynamics import SGD
from ..errors import InputError, RunError, require, whole
from ..estimate import Estimate
from ..points import point
from .interval import interval
from .kernel import AtomKernel, kernel
from .memory import check_bytes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CELLS = 3000
ROUNDS, SWEEPS = 60, 300
DISCOUNT = 1 - 1e-10
CERTIFIED = 1e-6
LARGEST = 1e11  # mean steps beyond which plain elimination keeps too few digits


@dataclass(frozen=True, eq=False)
class _Cells:
    """Cells of an interval and where each batch moves them.

    Attributes
    ----------
    edges
        (n + 1,).
    chances
        (k,) of the batches.
    first, last
        (n, k): first and last cell that the image of a cell meets, clipped to the interval.
    leaves, stays
        (n, k): whether some, and whether some not, of the image lies outside.
    """

    edges: Floats
    chances: Floats
    first: Ints = field(repr=False)
    last: Ints = field(repr=False)
    leaves: NDArray[np.bool_] = field(repr=False)
    stays: NDArray[np.bool_] = field(repr=False)


def exit_time_bounds(
    sgd: SGD, place: Domain | Sequence[float], start: ArrayLike, cells: int = CELLS
) -> Estimate:
    """Mean SGD steps until the exit from `start`, enclosed from both sides (finite data, 1-D).

    Parameters
    ----------
    place
        (lower, upper) with finite ends, or a bounded 1-D `Domain`.
    cells
        The width of the enclosure falls like one over their number.

    Returns
    -------
    The geometric middle of the bounds; `interval` are the bounds themselves. An upper bound may
    be infinite: an adversary who rounds could keep SGD inside for ever.

    Raises
    ------
    InputError
        Noise with a density, an infinite end, or start outside.
    RunError
        The lower bound exceeds 1e11 steps, where too few digits would be left.

    References
    ----------
    Givan, Leach & Dean, Artif. Intell. 122 (2000) 71: interval Markov chains, by policy iteration.

    Examples
    --------
    >>> from batchwell import SGD, additive
    >>> coin = SGD(additive(lambda x: x @ x / 2, "rademacher"), 0.1)
    >>> low, high = exit_time_bounds(coin, (-0.5, 0.5), 0.0, cells=1000).interval
    >>> bool(low < high < 1.1 * low)
    True
    """
    step, grid = _cells(sgd, place, cells)
    x = float(point("start", start, 1)[0])
    require(grid.edges[0] < x < grid.edges[-1], "start", x, "must lie inside the interval")
    bounds = [_at(step, grid, _extreme_times(grid, side), x) for side in (-1, 1)]
    low, high = bounds
    middle = math.sqrt(low * high) if math.isfinite(high) else low
    note = f"two-sided bounds on {len(grid.edges) - 1} cells"
    half = (high - low) / 2
    return Estimate(middle, half, (low, high), "steps", note, 0, level=1.0)


def _cells(sgd: SGD, place: Any, count: int) -> tuple[AtomKernel, _Cells]:
    require(sgd.loss.dim == 1, "dim", sgd.loss.dim, "must be 1 for two-sided bounds")
    step = kernel(sgd)
    if not isinstance(step, AtomKernel):
        raise InputError("noise", sgd.loss.name, "has a density: bounds are for finite data")
    ends = interval(sgd, place)
    require(not (ends.open_lower or ends.open_upper), "interval", place, "must have finite ends")
    n = whole("cells", count, 8)
    check_bytes("cells", n, 120.0 * n * len(step.chances))
    edges = np.linspace(ends.lower, ends.upper, n + 1)
    low, high = _images(step, edges)
    h = ends.width / n
    first = np.floor((low - ends.lower) / h - 1e-9).astype(np.int64)
    last = np.floor((high - ends.lower) / h + 1e-9).astype(np.int64)
    leaves = (low <= ends.lower) | (high >= ends.upper)
    stays = (high > ends.lower) & (low < ends.upper)
    return step, _Cells(
        edges, step.chances, np.clip(first, 0, n - 1), np.clip(last, 0, n - 1), leaves, stays
    )


def _images(step: AtomKernel, edges: Floats) -> tuple[Floats, Floats]:
    """Ends (n, k) of intervals that hold the image of each cell under each batch."""
    middle = (edges[1:] + edges[:-1]) / 2
    slope = _slopes(step)
    a, m, b = (slope(x) for x in (edges[:-1], middle, edges[1:]))
    varies = np.maximum(np.maximum(abs(a - m), abs(b - m)), abs(a - b))
    half = np.diff(edges)[:, None] / 2
    reach = (np.maximum(np.maximum(abs(a), abs(m)), abs(b)) + varies) * half
    centre = step.images(middle[:, None])[:, :, 0]
    low, high = centre - reach, centre + reach
    # Where the map is monotone on the cell its ends say all.
    ends = step.images(edges[:, None])[:, :, 0]
    monotone = np.minimum(np.minimum(abs(a), abs(m)), abs(b)) > 2 * varies
    left, right = np.minimum(ends[:-1], ends[1:]), np.maximum(ends[:-1], ends[1:])
    return np.where(monotone, left, low), np.where(monotone, right, high)


def _slopes(step: AtomKernel) -> Callable[[Floats], Floats]:
    """Derivative of each batch's step at points (m,): (m, k)."""
    loss, weights = step.sgd.loss, jnp.asarray(step.batches.weights)

    def moved(x: Any) -> Any:
        return x - step.sgd.learning_rate * (weights @ loss.example_gradients(x[None])[:, 0])

    many = jax.jit(jax.vmap(jax.jacfwd(moved)))
    return lambda x: np.asarray(many(jnp.asarray(x)))


def _extreme(grid: _Cells, values: Floats, side: int) -> tuple[Floats, Ints]:
    """Largest (side 1) or smallest value that each image meets, (n, k), and in which cell.

    Leaving counts 0; as a cell it is -1.
    """
    worse = -math.inf * side
    best = np.where(grid.leaves, 0.0, worse)
    where = np.full(best.shape, -1, dtype=np.int64)
    for k in range(int((grid.last - grid.first).max()) + 1):
        cell = np.minimum(grid.first + k, grid.last)
        value = np.where(grid.stays, values[cell], worse)
        better = value > best if side > 0 else value < best
        best, where = np.where(better, value, best), np.where(better, cell, where)
    return best, where


def _extreme_times(grid: _Cells, side: int) -> Floats:
    """Largest or smallest mean exit times (n,) over all ways to round, by policy iteration."""
    n = len(grid.edges) - 1
    values = np.zeros(n)
    for _ in range(SWEEPS):  # a first picture of which way is out
        values = 1 + _extreme(grid, values, side)[0] @ grid.chances
    where = _extreme(grid, values, side)[1]
    for discount in (DISCOUNT, 1.0):  # the first rounds may pass ways that never leave
        for _ in range(ROUNDS):
            values = _times(grid, where, discount)
            if not np.all(np.isfinite(values)):
                break
            new = _extreme(grid, values, side)[1]
            settled = np.array_equal(new, where)
            where = new
            if settled:
                break
    return _certified(grid, values, side)


def _certified(grid: _Cells, values: Floats, side: int) -> Floats:
    """`values` if they bound mean exit times: no step may lead above (or below) them."""
    nothing = np.full(len(values), math.inf) if side > 0 else np.ones(len(values))
    if not np.all(np.isfinite(values)):
        return nothing
    step = 1 + _extreme(grid, values, side)[0] @ grid.chances
    # V >= 1 - s + P V, s the slack, makes V / (1 - s) an upper bound; likewise from below.
    if float(np.max(side * (step - values))) > CERTIFIED:
        return nothing
    return values * (1 + 2 * side * CERTIFIED)


def _times(grid: _Cells, where: Ints, discount: float) -> Floats:
    n, k = where.shape
    kept = where >= 0
    rows = np.repeat(np.arange(n), k)[kept.ravel()]
    chance = discount * np.broadcast_to(grid.chances, (n, k))[kept]
    matrix = sparse.eye_array(n, format="csc") - sparse.csc_array(
        (chance, (rows, where[kept])), shape=(n, n)
    )
    try:
        out = splu(matrix.tocsc()).solve(np.ones(n))
    except RuntimeError:  # exactly singular: some cells are never left
        return np.full(n, math.inf)
    fine = bool(np.all((out > 0) & (out < LARGEST)))
    return np.asarray(out) if fine else np.full(n, math.inf)


def _at(step: AtomKernel, grid: _Cells, values: Floats, start: float) -> float:
    """1 + the mean of the bounds where one step from `start` itself lands."""
    if not np.all(np.isfinite(values)):
        return math.inf
    to = step.images(np.array([[start]]))[0, :, 0]
    low, high = grid.edges[0], grid.edges[-1]
    cell = np.clip(((to - low) / (high - low) * len(values)).astype(np.int64), 0, len(values) - 1)
    inside = (to > low) & (to < high)
    return 1 + float(grid.chances @ np.where(inside, values[cell], 0.0))


# ------------------------------------------------------------------- laws


def transport_error(
    sgd: SGD, place: Sequence[float], start: float, steps: int, nodes: int
) -> float:
    """Bound on the Wasserstein-1 distance of the push-forward law from the true one (1-D).

    Of the law that ``law_after(transfer_operator(sgd, place, nodes, "hat"), start, steps)`` gives for
    finite data: each step's splitting moves mass by at most half a cell, and the steps that follow
    stretch distances by their mean Lipschitz constant ``max_x mean_b |1 - eta g_b'(x)|``.

    Examples
    --------
    >>> from batchwell import SGD, additive
    >>> coin = SGD(additive(lambda x: x @ x / 2, "rademacher"), 0.1)
    >>> bool(transport_error(coin, (-1, 1), 0.3, 20, 401) < 0.03)
    True
    """
    from .transfer import transfer_operator

    step = kernel(sgd)
    if not isinstance(step, AtomKernel):
        raise InputError("noise", sgd.loss.name, "has a density: bounds are for finite data")
    op = transfer_operator(sgd, tuple(place), nodes, "hat")
    y = op.nodes[:, 0]
    lipschitz = _lipschitz(step, y)
    mass, error = np.zeros(op.size), 0.0
    for k in range(whole("steps", steps, 1)):
        if k == 0:
            row, _ = op.row(np.array([[start]]))
            moved, mass = float(_moved(step, y, np.array([start]))[0]), np.asarray(row)[0]
        else:
            moved, mass = float(mass @ _moved(step, y, y)), mass @ op.rates
        error = lipschitz * error + moved
    if mass.sum() < 1 - 1e-12:
        raise RunError(f"{1 - mass.sum():.3g} of the mass left the interval: widen it")
    return error


def _lipschitz(step: AtomKernel, y: Floats) -> float:
    points = np.linspace(y[0], y[-1], 2 * len(y) - 1)
    slopes = np.abs(_slopes(step)(points)) @ step.chances
    return float(slopes.max() + np.max(np.abs(np.diff(slopes))))


def _moved(step: AtomKernel, y: Floats, x: Floats) -> Floats:
    """Mean distance (m,) by which splitting moves the mass that starts at x (m,)."""
    h = y[1] - y[0]
    share = np.mod((step.images(x[:, None])[:, :, 0] - y[0]) / h, 1.0)
    return (2 * h * share * (1 - share)) @ step.chances
