"""Sparse solves for generators on grids, right also for rare exits (Hill's reinjection form).

The nearly singular part of a metastable exit problem is one number: the chance of leaving before
coming back to a reference node in the well. Making that node absorbing leaves a well-conditioned
sparse system; the rare chance is then a sum of non-negative terms and not a difference.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import splu

from .markov import tridiagonal_solve

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEAF = 48


@dataclass(frozen=True, eq=False)
class GridSolver:
    """Solver of (diag(row sums + exits) - rates) u = rhs on a grid.

    Attributes
    ----------
    rates, exits
        Sparse (n, n) and (n,), non-negative.
    index
        (n, d) integer grid coordinates, for nested dissection.
    reach
        Largest offset between coupled nodes, in cells.
    hint
        A node known to lie in the deepest well; found if None.
    """

    rates: sparse.csr_array = field(repr=False)
    exits: Floats = field(repr=False)
    index: Ints = field(repr=False)
    reach: int = 1
    hint: int | None = None

    @cached_property
    def tridiagonal(self) -> bool:
        """Whether this is a birth-death chain in the order of the nodes."""
        return self.index.shape[1] == 1

    @cached_property
    def reference(self) -> int:
        """A node in the deepest well: the most visited one from a uniform start."""
        if self.hint is not None:
            return self.hint
        if self.tridiagonal:
            return int(np.argmax(self._line_weights()))
        order = self.order
        lu = self._lu(np.arange(len(self.exits)), self.exits + 1e-9 * self._total().mean(), order)
        return int(np.argmax(lu(np.ones(len(self.exits)), True)))

    @cached_property
    def order(self) -> Ints:
        """Nested-dissection order of the nodes."""
        return nested_dissection(self.index, self.reach)

    def _total(self) -> Floats:
        return np.asarray(self.rates.sum(axis=1)).ravel()

    def _lu(self, keep: Ints, exits: Floats, order: Ints) -> Any:
        """Solver (rhs, transposed) of the system restricted to `keep`, others absorbing."""
        place = np.full(len(self.exits), -1)
        place[keep] = np.arange(len(keep))
        p = place[order]
        p = p[p >= 0]
        diagonal = sparse.diags_array((self._total() + exits)[keep])
        matrix = (diagonal - self.rates[keep][:, keep])[p][:, p].tocsc()
        lu = splu(
            matrix, permc_spec="NATURAL", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
        )

        def solve(rhs: Floats, transposed: bool = False) -> Floats:
            out = np.empty_like(rhs, dtype=np.float64)
            out[p] = lu.solve(rhs[p], "T" if transposed else "N")
            return out

        return solve

    @cached_property
    def _hill(self) -> Any:
        ref, n = self.reference, len(self.exits)
        keep = np.delete(np.arange(n), ref)
        solve = self._lu(keep, self.exits, self.order)
        out_of_ref = self.rates[[ref]].toarray()[0][keep]
        into_ref = self.rates[:, [ref]].toarray()[:, 0][keep]
        both = solve(np.stack([self.exits[keep], into_ref], axis=1))
        leave, back = np.maximum(both[:, 0], 0.0), np.maximum(both[:, 1], 0.0)
        rate = float(self.exits[ref] + out_of_ref @ leave)  # of leaving before coming back
        return keep, solve, out_of_ref, back, rate

    def solve(self, rhs: Floats) -> Floats:
        """A^-1 rhs for rhs (n,) or (n, k)."""
        b = np.asarray(rhs, dtype=np.float64)
        flat = b.reshape(len(b), -1)
        if self.tridiagonal:
            down, up = self._bands()
            return tridiagonal_solve(down, up, self.exits, flat).reshape(b.shape)
        keep, solve, out_of_ref, back, rate = self._hill
        ref = self.reference
        v = solve(flat[keep])
        top = (flat[ref] + out_of_ref @ v) / rate
        out = np.empty_like(flat)
        out[ref] = top
        out[keep] = v + back[:, None] * top
        return out.reshape(b.shape)

    def solve_transposed(self, rhs: Floats) -> Floats:
        """A^-T rhs for rhs (n,): expected visits from the starting law rhs."""
        b = np.asarray(rhs, dtype=np.float64)
        if self.tridiagonal:
            return self._visits_on_a_line(b)
        keep, solve, out_of_ref, back, rate = self._hill
        ref = self.reference
        top = (b[ref] + back @ b[keep]) / rate
        out = np.empty_like(b)
        out[ref] = top
        out[keep] = solve(b[keep] + top * out_of_ref, True)
        return out

    def visits_between_returns(self) -> Floats:
        """Visits to each node but the reference between two returns to it, for no exits."""
        if self.tridiagonal:
            pi = self._line_weights()
            return np.delete(pi / pi[self.reference], self.reference)
        _, solve, out_of_ref, _, _ = self._hill
        return np.maximum(solve(out_of_ref, True), 0.0)

    def _bands(self) -> tuple[Floats, Floats]:
        n = len(self.exits)
        down, up = np.zeros(n), np.zeros(n)
        down[1:], up[:-1] = self.rates.diagonal(-1), self.rates.diagonal(1)
        return down, up

    def _visits_on_a_line(self, b: Floats) -> Floats:
        # A birth-death chain is reversible: visits follow from its own solve by the weights pi.
        pi = self._line_weights()
        return pi * self.solve(b / pi)

    def _line_weights(self) -> Floats:
        down, up = self._bands()
        log_pi = np.concatenate([[0.0], np.cumsum(np.log(up[:-1]) - np.log(down[1:]))])
        return np.exp(np.clip(log_pi - log_pi.max(), -690, 0))


def nested_dissection(index: Ints, reach: int = 1) -> Ints:
    """Elimination order of grid nodes (n, d) by recursive bisection, separators last.

    Examples
    --------
    >>> grid = np.array([[i, j] for i in range(20) for j in range(20)])
    >>> sorted(nested_dissection(grid).tolist()) == list(range(400))
    True
    """
    out: list[Ints] = []
    stack: list[tuple[Ints, bool]] = [(np.arange(len(index)), False)]
    # Built back to front: a set is its separator (last), then its two halves.
    while stack:
        nodes, leaf = stack.pop()
        if leaf or len(nodes) <= LEAF:
            out.append(nodes[::-1])
            continue
        x = index[nodes]
        span = x.max(axis=0) - x.min(axis=0)
        axis = int(np.argmax(span))
        if span[axis] < 2 * reach + 1:
            out.append(nodes[::-1])
            continue
        cut = int(np.median(x[:, axis]))
        cut = min(max(cut, int(x[:, axis].min()) + 1), int(x[:, axis].max()) - reach)
        middle = (x[:, axis] >= cut) & (x[:, axis] < cut + reach)
        out.append(nodes[middle][::-1])
        stack.append((nodes[x[:, axis] < cut], False))
        stack.append((nodes[x[:, axis] >= cut + reach], False))
    return np.concatenate(out)[::-1]
