"""Sparse solves for generators on grids, right also for rare exits (Hill's reinjection form).

The nearly singular part of a metastable exit problem is one number: the chance of leaving before
coming back to a reference node in the well. Making that node absorbing leaves a well-conditioned
sparse system; the rare chance is then a sum of non-negative terms and not a difference.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from .krylov import IncompleteLU
from .markov import GTH, gth_factor, tridiagonal_solve
from .memory import check_bytes
from .multifrontal import Dissection, FrontalLU, nested_dissection

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DIRECT_3D = 45000
# Bytes of sparse factors in 3-D per node to the power 4/3, as seen from 24^3 to 40^3.
FACTOR_BYTES_3D = 400.0


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
    parent, parent_node
        Solver on a coarser mesh and the nearest of its nodes (n,) to each node: guesses for
        iterative solves.
    """

    rates: sparse.csr_array = field(repr=False)
    exits: Floats = field(repr=False)
    index: Ints = field(repr=False)
    reach: int = 1
    hint: int | None = None
    parent: GridSolver | None = field(default=None, repr=False)
    parent_node: Ints | None = field(default=None, repr=False)

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
        lu = self._lu(self.exits + 1e-9 * self._total().mean())
        return int(np.argmax(lu.solve(np.ones(len(self.exits)), True)))

    @cached_property
    def order(self) -> Dissection:
        """Elimination order of the nodes."""
        return nested_dissection(self.index, self.reach)

    def _total(self) -> Floats:
        return np.asarray(self.rates.sum(axis=1)).ravel()

    def _lu(self, exits: Floats, absorbing: int | None = None) -> FrontalLU:
        """Factors of the system; the node `absorbing` is cut off and stands for itself."""
        rates, diagonal = self.rates, self._total() + exits
        if absorbing is not None:
            mask = np.ones(len(exits))
            mask[absorbing] = 0.0
            rates = sparse.diags_array(mask) @ rates @ sparse.diags_array(mask)
            diagonal[absorbing] = 1.0
        return FrontalLU(sparse.diags_array(diagonal) - rates, self.order)

    @property
    def iterative(self) -> bool:
        """Whether the grid is too large for direct factors (3-D only)."""
        return self.index.shape[1] == 3 and len(self.exits) > DIRECT_3D and self.parent is not None

    @cached_property
    def _kept(self) -> Ints:
        return np.delete(np.arange(len(self.exits)), self.reference)

    @cached_property
    def _inner(self) -> FrontalLU:
        """Factors with the reference node absorbing: well conditioned."""
        if self.index.shape[1] == 3:
            size = len(self.exits)
            check_bytes("nodes", size, FACTOR_BYTES_3D * size ** (4 / 3))
        return self._lu(self.exits, self.reference)

    def _by_factors(self, rhs: Floats, transposed: bool = False) -> Floats:
        """A00^-1 rhs or its transpose, for rhs (n - 1,) or (n - 1, k)."""
        whole = np.zeros((len(self.exits), *rhs.shape[1:]))
        whole[self._kept] = rhs
        return self._inner.solve(whole, transposed)[self._kept]

    @cached_property
    def _incomplete(self) -> IncompleteLU:
        keep = self._kept
        diagonal = sparse.diags_array((self._total() + self.exits)[keep])
        return IncompleteLU(sparse.csr_array(diagonal - self.rates[keep][:, keep]))

    @cached_property
    def _incomplete_transposed(self) -> IncompleteLU:
        return IncompleteLU(sparse.csr_array(self._incomplete.matrix.T))

    def _solve_inner_transposed(self, rhs: Floats) -> Floats:
        """A00^-T rhs with the reference absorbing, for rhs (n - 1,)."""
        if not self.iterative:
            return self._by_factors(rhs, True)
        return self._incomplete_transposed.solve(rhs, np.ones(len(rhs)))

    def _solve_inner(self, rhs: Floats, guess: Floats | None) -> Floats:
        """A00^-1 rhs with the reference absorbing, for rhs (n - 1,)."""
        if not self.iterative:
            return self._by_factors(rhs)
        assert self.parent_node is not None
        start = np.ones(len(rhs)) if guess is None else guess[self.parent_node][self._kept]
        # The guess vanishes at the coarse reference node; its neighbours' size serves there.
        start = np.maximum(start, np.min(start[start > 0], initial=1.0))
        return self._incomplete.solve(rhs, start)

    @cached_property
    def _ends(self) -> tuple[Floats, Floats]:
        """Chances (n,) of leaving before coming to the reference node, and of coming there first."""
        into = self.rates[:, [self.reference]].toarray()[:, 0][self._kept]
        sources = self.exits[self._kept], into
        if self.iterative:
            assert self.parent is not None
            pairs = zip(sources, (self.parent._leave, self.parent._back), strict=True)
            found = [self._solve_inner(source, guess) for source, guess in pairs]
        else:
            found = list(self._by_factors(np.stack(sources, axis=1)).T)
        leave, back = np.zeros(len(self.exits)), np.ones(len(self.exits))
        leave[self._kept], back[self._kept] = (np.maximum(v, 0.0) for v in found)
        return leave, back

    @property
    def _leave(self) -> Floats:
        return self._ends[0]

    @property
    def _back(self) -> Floats:
        return self._ends[1]

    @cached_property
    def _out_of_reference(self) -> Floats:
        return self.rates[[self.reference]].toarray()[0]

    @cached_property
    def _escape_rate(self) -> float:
        """Rate of leaving for good from the reference node: a sum without cancellation."""
        return float(self.exits[self.reference] + self._out_of_reference @ self._leave)

    def solve(self, rhs: Floats) -> Floats:
        """A^-1 rhs for rhs (n,) or (n, k)."""
        b = np.asarray(rhs, dtype=np.float64)
        flat = b.reshape(len(b), -1)
        if self.tridiagonal:
            down, up = self._bands()
            return tridiagonal_solve(down, up, self.exits, flat).reshape(b.shape)
        return np.stack([self._solve_one(c) for c in flat.T], axis=1).reshape(b.shape)

    def _solve_one(self, rhs: Floats) -> Floats:
        keep, ref = self._kept, self.reference
        out = np.zeros(len(rhs))
        out[keep] = self._solve_inner(rhs[keep], None)
        top = (rhs[ref] + self._out_of_reference @ out) / self._escape_rate
        return out + self._back * top

    def solve_transposed(self, rhs: Floats) -> Floats:
        """A^-T rhs for rhs (n,): expected visits from the starting law rhs."""
        b = np.asarray(rhs, dtype=np.float64)
        if self.tridiagonal:
            return self._visits_on_a_line(b)
        keep, ref = self._kept, self.reference
        top = float(self._back @ b) / self._escape_rate
        out = np.empty_like(b)
        out[ref] = top
        out[keep] = self._solve_inner_transposed(b[keep] + top * self._out_of_reference[keep])
        return out

    def visits_between_returns(self) -> Floats:
        """Visits to each node but the reference between two returns to it, for no exits."""
        if self.tridiagonal:
            pi = self._line_weights()
            return np.delete(pi / pi[self.reference], self.reference)
        return np.maximum(self._solve_inner_transposed(self._out_of_reference[self._kept]), 0.0)

    def _bands(self) -> tuple[Floats, Floats]:
        n = len(self.exits)
        down, up = np.zeros(n), np.zeros(n)
        down[1:], up[:-1] = self.rates.diagonal(-1), self.rates.diagonal(1)
        return down, up

    def _visits_on_a_line(self, b: Floats) -> Floats:
        down, up = self._bands()
        if np.any(down[1:] == 0) or np.any(up[:-1] == 0):  # one-way: noise vanishes somewhere
            return self._dense.solve_transposed(b)
        # A birth-death chain is reversible: visits follow from its own solve by the weights pi.
        pi = self._line_weights()
        return pi * self.solve(b / pi)

    @cached_property
    def _dense(self) -> GTH:
        return gth_factor(self.rates.toarray(), self.exits)

    def _line_weights(self) -> Floats:
        down, up = self._bands()
        log_pi = np.concatenate([[0.0], np.cumsum(np.log(up[:-1]) - np.log(down[1:]))])
        return np.exp(np.clip(log_pi - log_pi.max(), -690, 0))
