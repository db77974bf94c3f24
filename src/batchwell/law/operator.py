"""`Operator`: a law's evolution on nodes, built once and asked many questions.

`transfer_operator` (the chain) and `generator` (its diffusion) both build one. What a solver needs
of either is the same: non-negative rates between nodes and of leaving from each node.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order

from ..errors import require
from ..estimate import Estimate
from ..points import point
from .markov import GTH, gth_factor
from .sparse_solver import GridSolver

Floats = NDArray[np.float64]
Matrix = Any  # dense (n, n) or scipy.sparse
# Distances between meshes that halve fall by 2**order. Below the share SETTLED of that the order is not
# trusted, below STALLED there is no limit to be seen.
SETTLED, STALLED = 0.75, 1.25
# Extrapolated values are of no observed order where a boundary cuts cells at odd places or a layer is
# narrower than a cell: their distances understated the error by up to 2.6 in 380 problems.
SAFETY = 3.0
ROUNDING = 1e-15  # relative, per cell along an axis
UNRESOLVED = "the meshes do not come closer to each other: use more nodes"
Rows = Callable[[Floats], tuple[Matrix, Floats]]


@dataclass(frozen=True, eq=False)
class Operator:
    """Evolution of a law on n nodes inside a domain.

    Attributes
    ----------
    kind
        "chain": one step of SGD; "diffusion": per unit of time.
    nodes
        (n, d) points.
    weights
        (n,) volume that each node stands for: density = mass / weights.
    rates
        (n, n), dense or sparse: chance per step (chain) or rate (diffusion) from node i to
        node j. A diffusion's diagonal is never used.
    exits
        (n, k): chance or rate of leaving through each of the k `parts` of the boundary.
    parts
        Names of the parts of the boundary.
    row
        ``row(points (m, d))``: for a chain one step from arbitrary points, as chances of reaching
        the nodes (m, n) and of leaving (m, k); for a diffusion weights of interpolation between
        the nodes and the k parts of the boundary.
    clock
        SGD steps per unit of the rates: 1 for a chain, 1/eta for a diffusion.
    order
        Order in the mesh size of the discretisation error; 0 if it is spectral.
    coarse
        The same operator on a coarser mesh, from which the error of every answer is stated.
    positive
        Whether all rates are non-negative (signed ones serve expectations only).
    image
        (n, 2): for bounded noise in 1-D, ends of the set that one step can reach; else None.
    inside
        ``inside(x (d,))``: whether a start lies in the domain (beyond a cut end it still does).
    """

    kind: Literal["chain", "diffusion"]
    nodes: Floats = field(repr=False)
    weights: Floats = field(repr=False)
    rates: Matrix = field(repr=False)
    exits: Floats = field(repr=False)
    parts: tuple[str, ...]
    row: Rows = field(repr=False)
    clock: float = 1.0
    order: int = 0
    coarse: Operator | None = field(default=None, repr=False)
    positive: bool = True
    image: Floats | None = field(default=None, repr=False)
    method: str = ""
    solver: GridSolver | None = field(default=None, repr=False)
    inside: Callable[[Floats], Any] = field(default=lambda x: True, repr=False)

    @property
    def size(self) -> int:
        """Number of nodes."""
        return len(self.nodes)

    @property
    def dim(self) -> int:
        """Dimension of the space."""
        return int(self.nodes.shape[1])

    @property
    def ladder(self) -> list[Operator]:
        """The operator on all its meshes, coarse to fine."""
        return [*(self.coarse.ladder if self.coarse else []), self]

    @cached_property
    def factor(self) -> GTH | GridSolver:
        """Solver of diag(row sums + exits) - rates that does not cancel for rare exits."""
        require(
            self.positive,
            "operator",
            self.method,
            "has signed weights: it answers expectations only; build it with another method",
        )
        if self.solver is not None:
            return self.solver
        if not self.stuck.any():
            return gth_factor(self.rates, self.exits.sum(axis=1))
        free = ~self.stuck
        lost = self.exits.sum(axis=1) + self.rates[:, self.stuck].sum(axis=1)
        return gth_factor(self.rates[np.ix_(free, free)], lost[free])

    @cached_property
    def stuck(self) -> NDArray[np.bool_]:
        """Nodes (n,) from which nothing leads out, as under bounded noise in a deep well."""
        out = np.zeros(self.size, dtype=bool)
        if not self.positive or (self.kind == "chain" and self.order == 0):
            return out  # a smooth density leads everywhere
        leaves = sparse.csr_array(self.exits.sum(axis=1)[:, None])
        ways = sparse.block_array(
            [[sparse.csr_array(self.rates), leaves], [None, sparse.csr_array((1, 1))]], format="csr"
        )
        back = breadth_first_order(ways.T.tocsr(), self.size, return_predecessors=False)
        out[np.setdiff1d(np.arange(self.size), back)] = True
        return out

    def solve(self, rhs: Floats) -> Floats:
        """U with (diag(row sums + exits) - rates) u = rhs >= 0, shape (n,) or (n, k).

        Of a chain 0 at its `stuck` nodes, so that it says what happens before these are met.
        """
        if self.kind == "diffusion" or not self.stuck.any():
            return self.factor.solve(rhs)
        out, free = np.zeros(np.shape(rhs)), ~self.stuck
        if free.any():
            out[free] = self.factor.solve(rhs[free])
        return out

    def solve_transposed(self, rhs: Floats) -> Floats:
        """M with (diag(row sums + exits) - rates)^T m = rhs >= 0, shape (n,)."""
        return self.factor.solve_transposed(rhs)

    def at(self, start: ArrayLike, values: Floats, source: Floats | float = 0.0) -> float:
        """Value at `start` (d,) of a function known at the nodes (`source` is added per step)."""
        x = check_point(self, start)
        row, _ = self.row(x[None])
        base = float(source) if self.kind == "chain" else 0.0
        return base + float((row @ values)[0])

    @cached_property
    def return_law(self) -> Floats:
        """Stationary mass (n,) of an operator that nothing leaves: visits between two returns."""
        mass = self.weights / self.weights.sum()
        for _ in range(64):
            mass = mass @ self.rates if self.kind == "chain" else mass
        ref = int(np.argmax(mass)) if self.solver is None else self.solver.reference
        keep = np.delete(np.arange(self.size), ref)
        if self.solver is None:
            to_ref = gth_factor(self.rates[np.ix_(keep, keep)], self.rates[keep, ref])
            visits = to_ref.solve_transposed(self.rates[ref, keep])
        else:
            visits = self.solver.visits_between_returns()
        out = np.ones(self.size)
        out[keep] = visits
        return out / out.sum()


def check_point(op: Operator, start: ArrayLike) -> Floats:
    """`start` as a finite vector of the operator's dimension, inside its domain."""
    kind = type(op).__name__
    require(
        isinstance(op, Operator), "operator", kind, "must be made by transfer_operator or generator"
    )
    x = point("start", start, op.dim)
    require(bool(op.inside(x)), "start", x, "must lie inside the domain")
    return x


def exact_answer(
    op: Operator, question: Callable[[Operator], float], unit: str, notes: tuple[str, ...] = ()
) -> Estimate:
    """Ask the operator on each of its meshes; the error follows from their distances.

    With a mesh error of order p (in even powers) the values are extrapolated by Romberg's scheme
    (Richardson's for two meshes); the stated error is the whole distance between two extrapolations
    of one degree, with and without the finest mesh (thrice that of extrapolated values, `SAFETY`), and
    never less than what the observed order leaves to be gained. Where the meshes do not come closer to each other it is infinite. For
    spectral meshes the fine value is kept and its whole distance from the coarse one stated. The
    answer's `stderr` and half-width are this error; `n` is 0 as nothing is sampled.
    """
    values = [question(o) for o in op.ladder]
    fine = values[-1]
    if not all(map(math.isfinite, values)) or len(values) == 1:
        known = len(values) > 1 and all(v == fine for v in values)
        return deterministic(fine, 0.0 if known else math.nan, unit, op.method, notes)
    if op.order == 0:
        error = abs(fine - values[0])
        return deterministic(fine, error + 1e-14 * abs(fine), unit, op.method, notes)
    rounding = ROUNDING * op.dim * op.size ** (1 / op.dim) * abs(fine)
    value, error = romberg(values, op.order, rounding)
    if math.isinf(error):
        notes = (*notes, UNRESOLVED)
    return deterministic(
        value,
        error,
        unit,
        f"{op.method}, extrapolated over {len(values)} meshes",
        notes,
    )


def romberg(values: Sequence[float], order: int, rounding: float = 0.0) -> tuple[float, float]:
    """Extrapolated value from meshes that halve, coarse to fine, and its stated error.

    `rounding` is the size of rounding errors: smaller distances say nothing of an order.

    Examples
    --------
    >>> h = [1 / 4, 1 / 8, 1 / 16]
    >>> value, error = romberg([1 + a**2 + a**4 for a in h], 2)
    >>> abs(value - 1) < 1e-12, abs(value - 1) < error < 0.02
    (True, True)
    """
    ratio = _ratio(values, rounding)
    if ratio >= SETTLED * 4:  # second order shows, whatever was declared
        order = max(order, 2)
    column, best, error = list(values), values[-1], math.inf
    for k in range(1, len(values)):
        distance = abs(column[-1] - column[-2]) * (SAFETY if k > 1 else 1.0)
        if distance > error:  # rounding or roughness: no more to be gained
            break
        factor = 2.0 ** (order * k) - 1
        column = [b + (b - a) / factor for a, b in itertools.pairwise(column)]
        best, error = column[-1], distance
    if ratio < SETTLED * 2**order:
        last = abs(values[-1] - values[-2])
        error = max(error, last / (ratio - 1)) if ratio > STALLED else math.inf
    return best, error + rounding


def _ratio(values: Sequence[float], rounding: float) -> float:
    """By how much the last distance between meshes is smaller than the one before it."""
    if len(values) < 3:
        return math.nan  # two meshes show no order: the declared one is taken
    last, before = values[-1] - values[-2], values[-2] - values[-3]
    return abs(before / last) if abs(last) > 4 * rounding else math.inf


def deterministic(
    value: float, error: float, unit: str, method: str, notes: tuple[str, ...] = ()
) -> Estimate:
    """A computed answer with a stated error: interval ``value +- error``, level 1, n = 0."""
    value, error = float(value), float(error)
    ends = (value, value) if math.isinf(value) else (value - error, value + error)
    return Estimate(value, error, ends, unit, method, 0, notes=notes, level=1.0)
