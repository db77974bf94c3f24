"""Generators of diffusions on grids: Fokker-Planck forward, Kolmogorov backward.

Along every offset of a non-negative stencil (`stencils`) drift and diffusion are combined by
exponential fitting (Scharfetter & Gummel), so that all rates are non-negative however strong the
drift: the grid carries a Markov chain in continuous time. At an absorbing boundary, also a curved
one, a jump that would cross it is cut at the crossing (Shortley & Weller), which keeps second
order. Answers are extrapolated over two or more meshes (Richardson, Romberg).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from ..domain import Domain
from ..dynamics import Diffusion
from ..errors import InputError, one_of, require, whole
from ..points import numbers
from .fields import evaluate
from .interpolation import Interpolation
from .interval import Place, interval
from .memory import check_bytes
from .operator import Operator
from .reach import find_bounds
from .sparse_solver import GridSolver
from .stencils import bernoulli, decompose

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Meshes of the ladder over which answers are extrapolated, by dimension.
LEVELS = {1: 5, 2: 3, 3: 2}
DEFAULT_NODES = {1: 1024, 2: 256, 3: 48}
BOUNDARIES = ("absorbing", "reflecting")
# Bytes per node at the peak of a factorisation, as seen on square and cubic grids.
PEAK = {1: 400.0, 2: 6000.0, 3: 16000.0}
DEGENERATE = 1e-10
STIFF, DENSE = 2e4, 2500


@dataclass(frozen=True, eq=False)
class Grid:
    """Nodes of a box at all multiples of the mesh size, of which those inside are kept.

    Absorbing ends of the box carry no nodes (the value there is known), reflecting ones do.

    Attributes
    ----------
    lower, upper
        (d,) ends of the box.
    shape
        Number of cells per direction.
    reflecting
        (d, 2) which ends of the box reflect.
    domain
        Nodes with ``level(x) < 0`` are kept; None keeps all.
    """

    lower: Floats
    upper: Floats
    shape: tuple[int, ...]
    reflecting: NDArray[np.bool_]
    domain: Domain | None = field(default=None, repr=False)

    @property
    def spacing(self) -> Floats:
        """Mesh sizes (d,)."""
        return (self.upper - self.lower) / np.asarray(self.shape)

    @property
    def points(self) -> tuple[int, ...]:
        """Number of grid points per direction, ends included."""
        return tuple(m + 1 for m in self.shape)

    def kept(self) -> tuple[Ints, Floats]:
        """Integer coordinates (n, d) and positions (n, d) of the nodes inside."""
        index = np.stack([a.ravel() for a in np.indices(self.points)], axis=1)
        last = np.asarray(self.shape)
        on_end = ((index == 0) & ~self.reflecting[:, 0]) | (
            (index == last) & ~self.reflecting[:, 1]
        )
        index = index[~on_end.any(axis=1)]
        x = self.lower + index * self.spacing
        if self.domain is not None:
            inside = evaluate(self.domain, "level", x) < 0
            index, x = index[inside], x[inside]
        require(len(x) > 0, "nodes", self.shape, "leave no node inside the domain: use more")
        return index, x

    def volumes(self, index: Ints) -> Floats:
        """Volume (n,) that each node stands for: halved at every reflecting end."""
        ends = ((index == 0) & self.reflecting[:, 0]).astype(int)
        ends += (index == np.asarray(self.shape)) & self.reflecting[:, 1]
        return np.prod(self.spacing) / 2.0 ** ends.sum(axis=1)


def generator(
    diffusion: Diffusion,
    place: Place | Sequence[Sequence[float]],
    nodes: int | Sequence[int] | None = None,
    boundary: str | Sequence[Sequence[str]] = "absorbing",
    bounds: Sequence[Sequence[float]] | None = None,
    parts: tuple[Sequence[str], Callable[[Floats], NDArray[Any]]] | None = None,
    include: Sequence[float] = (),
) -> Operator:
    """Generator of a diffusion in 1, 2 or 3 dimensions inside a domain.

    Parameters
    ----------
    diffusion
        Drift and tensor; the tensor may be full and depend on x.
    place
        1-D: (lower, upper), either may be infinite. Any d: a box ((x0, ...), (x1, ...)) or a
        `Domain` with a level function (its boundary absorbs).
    nodes
        Cells per direction on the finest mesh: one number, or one per direction.
    boundary
        "absorbing" or "reflecting" for all ends of a box, or (lower, upper) for each direction.
    bounds
        Box around a `Domain`; found by search if left out.
    parts
        (names, labels): ``labels(points (k, d))`` gives for points on an absorbing boundary the
        index of the name of their part. By default the ends of a box are told apart.
    include
        1-D with infinite ends: points that a cut must lie beyond.

    Returns
    -------
    An `Operator` whose answers are in SGD steps (t = eta k).

    Raises
    ------
    InputError
        More than 3 dimensions, a tensor that is singular across the axes (says where; along an
        axis without noise drift is followed upwind, to first order), a grid that would not fit
        into memory, or an end that nothing confines.

    Examples
    --------
    T7: dX = -X dt + sqrt(1/2) dW, exit from |x| < 1.

    >>> import jax.numpy as jnp
    >>> from batchwell import diffusion
    >>> from batchwell.law import exit_time, generator
    >>> ou = diffusion(lambda x: -x, lambda x: jnp.sqrt(0.5) * jnp.eye(1), dim=1)
    >>> round(exit_time(generator(ou, (-1, 1)), [0.0]).value, 10)
    4.5016024162
    """
    kind = type(diffusion).__name__
    require(isinstance(diffusion, Diffusion), "diffusion", kind, "must be a Diffusion of SGD's")
    require(
        diffusion.dim <= 3,
        "dim",
        diffusion.dim,
        "grids are built in 1, 2 and 3 dimensions: use moments or simulate",
    )
    fine = _grid(diffusion, place, nodes, boundary, bounds, include)
    needed = PEAK[diffusion.dim] * math.prod(fine.shape)
    check_bytes("nodes", "x".join(map(str, fine.shape)), needed)
    levels = _level_shapes(fine.shape)
    op: Operator | None = None
    for shape in levels:
        op = _assemble(diffusion, replace(fine, shape=shape), parts, op)
    assert op is not None
    return op


def _level_shapes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Meshes from coarse to fine, each halving the last one's mesh size."""
    halvings = LEVELS[len(shape)] - 1
    coarsest = [max(4, -(-m // 2**halvings)) for m in shape]
    return [tuple(m << k for m in coarsest) for k in range(halvings + 1)]


def _grid(
    diffusion: Diffusion,
    place: Any,
    nodes: Any,
    boundary: Any,
    bounds: Any,
    include: Sequence[float],
) -> Grid:
    d = diffusion.dim
    sides = _sides(boundary, d)
    if d == 1 and (not isinstance(place, Domain)) and np.ndim(place) == 2:
        place = (place[0][0], place[1][0])
    if d == 1:
        ends = interval(diffusion, place, include)
        sides |= np.array([[ends.open_lower, ends.open_upper]])
        count = DEFAULT_NODES[1] if nodes is None else whole("nodes", np.ravel(nodes)[0].item(), 8)
        return Grid(np.array([ends.lower]), np.array([ends.upper]), (count,), sides)
    shape = _shape(nodes, d)
    if not isinstance(place, Domain):
        box = numbers("place", place, f"must be two finite corners of a box in {d} dimensions")
        require(
            box.shape == (2, d) and bool(np.all(np.isfinite(box)) and np.all(box[0] < box[1])),
            "place",
            place,
            f"must be two finite corners of a box in {d} dimensions",
        )
        return Grid(box[0], box[1], shape, sides)
    require(
        place.dim == d and not place.needs_quench,
        "domain",
        place.name,
        f"must have a level function in {d} dimensions",
    )
    box = np.asarray(bounds, dtype=np.float64) if bounds is not None else find_bounds(place)
    return Grid(box[0], box[1], shape, np.zeros((d, 2), dtype=bool), place)


def _sides(boundary: Any, d: int) -> NDArray[np.bool_]:
    if isinstance(boundary, str):
        one_of("boundary", boundary, BOUNDARIES)
        return np.full((d, 2), boundary == "reflecting")
    table = [[one_of("boundary", s, BOUNDARIES) for s in pair] for pair in boundary]
    require(
        len(table) == d and all(len(p) == 2 for p in table),
        "boundary",
        boundary,
        f"must be one word, or (lower, upper) for each of {d} directions",
    )
    return np.array(table) == "reflecting"


def _shape(nodes: Any, d: int) -> tuple[int, ...]:
    counts = [DEFAULT_NODES[d] if nodes is None else nodes] * d if np.ndim(nodes) == 0 else nodes
    require(len(counts) == d, "nodes", nodes, f"must be one number or {d}")
    return tuple(whole("nodes", c, 4) for c in counts)


# ---------------------------------------------------------------- assembly


def _assemble(diffusion: Diffusion, grid: Grid, parts: Any, coarse: Operator | None) -> Operator:
    index, x = grid.kept()
    number = np.full(math.prod(grid.points), -1, dtype=np.int64)
    number[np.ravel_multi_index(tuple(index.T), grid.points)] = np.arange(len(x))
    weights, offsets, pull, wind = _directions(diffusion, x, grid.spacing)
    names, label = _parts(grid, parts)
    n = len(x)
    jumps: list[tuple[Ints, Ints, Floats]] = []
    exits = np.zeros((n, len(names)))
    ends: list[tuple[Floats, Ints]] = []
    for k in range(weights.shape[1]):
        moves = [_follow(grid, number, index, x, sign * offsets[:, k]) for sign in (1, -1)]
        span = moves[0].part + moves[1].part
        for sign, move in zip((1, -1), moves, strict=True):
            rate = weights[:, k] / (span * move.part)
            rate = rate * bernoulli(-sign * 2 * pull[:, k] * move.part)
            rate += np.maximum(sign * wind[:, k], 0.0) / move.part
            inner = move.target >= 0
            jumps.append((np.flatnonzero(inner), move.target[inner], rate[inner]))
            out = np.flatnonzero(~inner & (rate > 0))
            ends.append((move.point[out], label(move.point[out])))
            np.add.at(exits, (out, ends[-1][1]), rate[out])
    rates = _to_csr(jumps, n)
    row = Interpolation(
        grid.lower,
        grid.spacing,
        number.reshape(grid.points),
        np.concatenate([e[0] for e in ends]),
        np.concatenate([e[1] for e in ends]),
        len(names),
    )
    place = "x".join(map(str, grid.shape))
    return Operator(
        "diffusion",
        x,
        grid.volumes(index),
        rates,
        exits,
        names,
        row,
        clock=1.0 / diffusion.learning_rate,
        order=1 if np.any(wind) else 2,
        coarse=coarse,
        method=f"generator, exponential fitting, {place} cells",
        solver=_solver(
            coarse, grid, x, rates, exits.sum(axis=1), index, int(np.abs(offsets).max())
        ),
    )


def _solver(
    coarse: Operator | None,
    grid: Grid,
    x: Floats,
    rates: Any,
    exits: Floats,
    index: Ints,
    reach: int,
) -> GridSolver:
    """Solver that takes reference node and guesses from the coarser mesh."""
    if coarse is None or coarse.solver is None or len(grid.shape) == 1:
        return GridSolver(rates, exits, index, reach)
    parent = coarse.solver
    place = coarse.nodes[parent.reference]
    hint = int(np.argmin(np.sum((x - place) ** 2, axis=1)))
    nearest = None
    if len(grid.shape) == 3:
        nearest = cKDTree(coarse.nodes).query(x)[1].astype(np.int64)
    return GridSolver(rates, exits, index, reach, hint, parent, nearest)


def _to_csr(jumps: list[tuple[Ints, Ints, Floats]], n: int) -> sparse.csr_array:
    rows, columns, values = (np.concatenate([j[i] for j in jumps]) for i in range(3))
    used = values > 0
    out = sparse.csr_array((values[used], (rows[used], columns[used])), shape=(n, n))
    out.setdiag(0.0)  # a jump reflected onto its own cell changes nothing
    out.eliminate_zeros()
    return out


def _directions(diffusion: Diffusion, x: Floats, h: Floats) -> tuple[Floats, Ints, Floats, Floats]:
    """Weights and offsets of the tensor in cells, and the drift's pull along each offset.

    Along an axis without noise the drift acts alone: it is returned as the last array, for
    upwind differences of first order.
    """
    drift = evaluate(diffusion, "drift", x) / h
    tensor = evaluate(diffusion, "tensor", x) / np.multiply.outer(h, h)
    bad = ~(np.isfinite(drift).all(axis=1) & np.isfinite(tensor).all(axis=(1, 2)))
    require(
        not bad.any(),
        "diffusion",
        f"not finite at x = {x[int(np.argmax(bad))]}",
        "must be finite inside the domain",
    )
    diagonal = np.einsum("nii->ni", tensor)
    plain = bool(np.all(np.einsum("nii->n", np.abs(tensor)) == np.abs(tensor).sum(axis=(1, 2))))
    if plain:  # the axes themselves are the stencil
        axes = np.broadcast_to(np.eye(len(h), dtype=np.int64), tensor.shape)
        still = diagonal <= DEGENERATE * max(float(diagonal.max()), 1e-300)
        safe = np.where(still, 1.0, diagonal)
        moves = np.where(still, 0.0, diagonal), np.where(still, 0.0, drift / safe)
        return moves[0], axes, moves[1], np.where(still, drift, 0.0)
    values = np.linalg.eigvalsh(tensor)
    ratio = values.min(axis=1) / np.maximum(values.max(axis=1), 1e-300)
    worst = int(np.argmin(ratio))
    refused = (
        "must be positive definite inside the domain, or without noise along whole axes: a "
        "direction without noise across the axes has no stencil (turn the coordinates so that "
        "the noise acts along some of them, or use the chain's own operator)"
    )
    where = f"singular at x = {x[worst]}"
    require(bool(ratio[worst] > DEGENERATE), "tensor", where, refused)
    try:
        weights, offsets = decompose(tensor)
    except ArithmeticError:
        raise InputError("tensor", f"nearly {where}", refused) from None
    # b = a c with c = a^-1 b, so along each offset the drift is weight * (e . c).
    c = np.linalg.solve(tensor, drift[:, :, None])[:, :, 0]
    pull = np.einsum("nki,ni->nk", offsets, c)
    return weights, offsets, pull, np.zeros_like(weights)


@dataclass(frozen=True, eq=False)
class _Move:
    target: Ints  # node reached, -1 when the boundary is met first
    part: Floats  # share of the offset up to there
    point: Floats  # where the boundary is met (meaningless for inner moves)


def _follow(grid: Grid, number: Ints, index: Ints, x: Floats, offset: Ints) -> _Move:
    last = np.asarray(grid.shape)
    to = index + offset
    part = np.ones(len(x))
    edge = np.flatnonzero(((to <= 0) | (to >= last)).any(axis=1))
    gone = _at_the_box(grid, index[edge], offset[edge], to, edge, part)
    flat = np.ravel_multi_index(tuple(np.clip(to, 0, last).T), grid.points)
    target = number[flat]
    target[gone] = -1
    jump = offset * grid.spacing
    if grid.domain is not None:
        cut = np.flatnonzero(target < 0)
        part[cut] *= _crossing(grid.domain, x[cut], part[cut, None] * jump[cut])
    return _Move(target, part, x + part[:, None] * jump)


def _at_the_box(grid: Grid, index: Ints, offset: Ints, to: Ints, edge: Ints, part: Floats) -> Ints:
    """Reflect jumps, or cut them, at the ends of the box; which of the nodes `edge` are cut."""
    here, share = to[edge], part[edge]
    gone = np.zeros(len(edge), dtype=bool)
    for axis, side in itertools.product(range(len(grid.shape)), (0, 1)):
        end, at = side * grid.shape[axis], here[:, axis]
        if grid.reflecting[axis, side]:
            beyond = (at < end) if side == 0 else (at > end)
            here[:, axis] = np.where(beyond, 2 * end - at, at)
        else:
            beyond = (at <= end) if side == 0 else (at >= end)
            step = np.where(offset[:, axis] == 0, 1, offset[:, axis])
            share = np.where(beyond, np.minimum(share, (end - index[:, axis]) / step), share)
            gone |= beyond
    outside = ((here < 0) | (here > np.asarray(grid.shape))).any(axis=1)
    to[edge], part[edge] = here, share
    return edge[gone | outside]


def _crossing(domain: Domain, x: Floats, jump: Floats) -> Floats:
    """Share of each jump after which the level function turns non-negative; 1 if it never does."""
    if not len(x):
        return np.zeros(0)
    low, high = np.zeros(len(x)), np.ones(len(x))
    stays = evaluate(domain, "level", x + jump) < 0  # the box around the domain ends it there
    for _ in range(45):
        middle = (low + high) / 2
        inside = evaluate(domain, "level", x + middle[:, None] * jump) < 0
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return np.where(stays, 1.0, np.maximum((low + high) / 2, 1e-6))


def _parts(grid: Grid, parts: Any) -> tuple[tuple[str, ...], Callable[[Floats], Ints]]:
    if parts is not None:
        names, labels = parts
        return tuple(names), lambda p: np.asarray(labels(p), dtype=np.int64)
    if grid.domain is not None:
        return ("boundary",), lambda p: np.zeros(len(p), dtype=np.int64)
    d = len(grid.shape)
    ends = [(f"x{i} ", i) for i in range(d)] if d > 1 else [("", 0)]
    names = tuple(f"{name}{side}" for name, _ in ends for side in ("lower", "upper"))

    def label(points: Floats) -> Ints:
        # The end that a boundary point lies on is the nearest one in units of the box.
        gap = np.stack([points - grid.lower, grid.upper - points], axis=2)
        gap = np.abs(gap) / (grid.upper - grid.lower)[:, None]
        gap[:, grid.reflecting] = np.inf
        return np.argmin(gap.reshape(len(points), 2 * d), axis=1)

    return names, label


# --------------------------------------------------------------- evolution


def evolve(op: Operator, values: Floats, time: float, forward: bool = False) -> Floats:
    """exp(time L) values (backward) or exp(time L^T) values (forward: mass at the nodes)."""
    from scipy.linalg import expm
    from scipy.sparse.linalg import expm_multiply

    total = np.asarray(op.rates.sum(axis=1)).ravel() + op.exits.sum(axis=1)
    matrix = (op.rates - sparse.diags_array(total)) * time
    matrix = matrix.T if forward else matrix
    # Repeated products cost as many sparse steps as the fastest rate times the time.
    if float(total.max()) * time > STIFF and op.size <= DENSE:
        return expm(matrix.toarray()) @ values
    return expm_multiply(matrix.tocsr(), values, traceA=-float(total.sum()) * time)


def leading_eigenvalues(op: Operator, count: int) -> NDArray[np.complex128]:
    """Eigenvalues of the generator nearest 0, per unit of time, largest real part first."""
    from scipy.sparse.linalg import LinearOperator, eigs

    # A closed chain is singular: a uniform killing rate, subtracted again, makes it regular.
    kill = 0.0 if np.any(op.exits > 0) else 1e-3 * float(np.median(op.rates.sum(axis=1)))
    assert op.solver is not None
    exits = np.concatenate([op.exits, np.full((op.size, 1), kill)], axis=1)
    solver = replace(op.solver, exits=exits.sum(axis=1))
    inverse = LinearOperator((op.size, op.size), matvec=solver.solve, dtype=np.float64)
    start = np.ones(op.size)
    values = eigs(inverse, k=min(count, op.size - 2), v0=start, return_eigenvectors=False)
    rates = kill - 1 / values
    return rates[np.argsort(-rates.real)]
