"""Questions to an `Operator`: small functions, one answer each.

Times are in SGD steps. Scalars come back as `Estimate`s whose interval is the stated error of
the discretisation; laws and functions come back on the operator's nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order

from ..errors import InputError, RunError, one_of, require, whole
from ..estimate import Estimate
from ..points import numbers
from .operator import Operator, check_point, deterministic, exact_answer
from .trapped import trapped, trapped_surely

Floats = NDArray[np.float64]

# Above this chance per step of leaving, a law counts as losing mass.
LEAK = 1e-9
# The most mass that may leave while an expectation is carried; below it, it is part of the error.
LOST = 1e-6


def values_at(phi: Callable[[Floats], Floats], points: Floats) -> Floats:
    """Phi at points (m, d), (m,), or `InputError` where it returns another shape."""
    values = numbers("phi", phi(points))
    require(values.shape == points.shape[:1], "phi", values.shape, "must map points (m, d) to (m,)")
    return values


@dataclass(frozen=True, eq=False)
class GridLaw:
    """A law on the nodes of an operator.

    Attributes
    ----------
    nodes, mass, weights
        (n, d) points, (n,) their mass, (n,) the volume each stands for.
    lost
        Mass that has left the domain.
    rate
        For a quasi-stationary law: its chance of leaving per SGD step.
    """

    nodes: Floats = field(repr=False)
    mass: Floats = field(repr=False)
    weights: Floats = field(repr=False)
    lost: float = 0.0
    rate: float = 0.0

    @property
    def density(self) -> Floats:
        """Mass per volume at the nodes, (n,)."""
        return self.mass / self.weights

    def expect(self, phi: Callable[[Floats], Floats]) -> float:
        """Mean of ``phi(points (n, d)) -> (n,)`` over the mass inside."""
        return float(self.mass @ values_at(phi, self.nodes))

    @property
    def mean(self) -> Floats:
        """Mean, (d,), of the mass inside."""
        return self.mass @ self.nodes / self.mass.sum()

    @property
    def covariance(self) -> Floats:
        """Covariance, (d, d), of the mass inside."""
        c = self.nodes - self.mean
        return (c * (self.mass / self.mass.sum())[:, None]).T @ c


# --------------------------------------------------------------------- exits


def mean_exit_time(op: Operator) -> Floats:
    """Mean steps until the exit from every node, (n,), on the fine mesh alone.

    Infinite where the process may be caught in a part of the domain without a way out.
    """
    times = _steps(op)
    if op.stuck.any():
        start = np.flatnonzero(op.stuck)
        back = sparse.csr_array(op.rates).T.tocsr()
        for i in start:
            if math.isfinite(times[i]):
                times[breadth_first_order(back, int(i), return_predecessors=False)] = math.inf
    return times


def _steps(op: Operator) -> Floats:
    return op.solve(np.full(op.size, op.clock))


def exit_time(op: Operator, start: ArrayLike) -> Estimate:
    """Mean SGD steps until the process, started at `start` (d,), has left the domain.

    Infinite, with the reason in its notes, where noise of bounded support cannot reach the
    boundary, or may lead to where it cannot.

    Parameters
    ----------
    op
        A `transfer_operator` or a `generator`: both hold the domain.

    Examples
    --------
    T7: f = x^2/2, Gaussian noise, exit from |x| < 1, eta = .2.

    >>> from batchwell import SGD, additive
    >>> from batchwell.law import transfer_operator
    >>> op = transfer_operator(SGD(additive(lambda x: x @ x / 2), 0.2), (-1, 1))
    >>> round(exit_time(op, [0.0]).value, 5)
    559.87408
    """
    reason = trapped(op, start)
    if reason:
        return deterministic(math.inf, 0.0, "steps", op.method, (reason,))
    return exact_answer(op, lambda o: o.at(start, _steps(o), o.clock), "steps")


def exit_time_variance(op: Operator, start: ArrayLike) -> Estimate:
    """Variance of the exit time from start (d,), in SGD steps squared; infinite where the mean is."""
    reason = trapped(op, start)
    if reason:
        return deterministic(math.inf, 0.0, "steps^2", op.method, (reason,))
    return exact_answer(op, lambda o: _two_moments(o, start)[1], "steps^2")


def exit_time_variation(op: Operator, start: ArrayLike) -> Estimate:
    """Coefficient of variation of the exit time from start (d,): 1 for an exponential time.

    Raises
    ------
    InputError
        The process may never leave: there is no such number.
    """
    reason = trapped(op, start)
    require(not reason, "start", start, f"must lead out of the domain: {reason}")

    def question(o: Operator) -> float:
        mean, variance = _two_moments(o, start)
        return math.sqrt(variance) / mean

    return exact_answer(op, question, "1")


def _two_moments(op: Operator, start: ArrayLike) -> tuple[float, float]:
    mean = _steps(op)
    if op.kind == "diffusion":
        second = op.solve(2 * op.clock * mean)
        m1, m2 = op.at(start, mean), op.at(start, second)
    else:
        # E tau^2 = 1 + 2 P E tau + P E tau^2, and P E tau = E tau - 1.
        second = op.solve(2 * mean - 1)
        m1 = op.at(start, mean, 1.0)
        m2 = 2 * m1 - 1 + op.at(start, second)
    return m1, m2 - m1**2


def exit_position(op: Operator, start: ArrayLike) -> dict[str, Estimate]:
    """Chance of leaving through each part of the boundary, from `start` (d,)."""
    return {part: committor(op, start, part) for part in op.parts}


def committor_values(op: Operator, part: str) -> Floats:
    """Chance of leaving through `part` from every node, (n,), on the fine mesh."""
    one_of("part", part, op.parts)
    return op.solve(op.exits[:, op.parts.index(part)])


def committor(op: Operator, start: ArrayLike, part: str) -> Estimate:
    """Chance that the process, started at `start` (d,), leaves through `part` of the boundary.

    With a domain whose boundary consists of two sets A and B this is the committor. Chances of all
    parts sum to less than 1 where bounded noise may never lead out.
    """
    one_of("part", part, op.parts)
    reason = trapped_surely(op, start)
    if reason:
        return deterministic(0.0, 0.0, "1", op.method, (reason,))

    def question(o: Operator) -> float:
        x = check_point(o, start)
        row, exits = o.row(x[None])
        return float((row @ committor_values(o, part))[0] + exits[0, o.parts.index(part)])

    return exact_answer(op, question, "1")


# ---------------------------------------------------------------------- laws


def law_after(op: Operator, start: ArrayLike, steps: int) -> GridLaw:
    """Law after `steps` SGD steps from `start` (d,): the forward (master) equation.

    `lost` is what has left the domain by then.
    """
    steps = whole("steps", steps, 1)
    x = check_point(op, start)
    row, _ = op.row(x[None])
    mass = np.asarray(row.toarray() if hasattr(row, "toarray") else row, dtype=np.float64)[0]
    if op.kind == "chain":
        for _ in range(steps - 1):
            mass = mass @ op.rates
    else:
        from .generator import evolve

        mass = evolve(op, mass, steps / op.clock, forward=True)
    return GridLaw(op.nodes, mass, op.weights, lost=float(1 - mass.sum()))


def backward(op: Operator, phi: Callable[[Floats], Floats], steps: int) -> Floats:
    """E phi(x_k) 1{still inside} from every node, (n,): the backward equation."""
    steps = whole("steps", steps, 0)
    u = values_at(phi, op.nodes)
    if op.kind == "chain":
        for _ in range(steps):
            u = op.rates @ u
        return u
    from .generator import evolve

    return evolve(op, u, steps / op.clock)


def expectation(
    op: Operator, phi: Callable[[Floats], Floats], start: ArrayLike, steps: int
) -> Estimate:
    """E phi(x_k) after `steps` = k SGD steps from `start` (d,); `phi` maps points (m, d) to (m,).

    Paths that have left the domain count 0. The stated error includes what that may cost: the mass
    that has left times the largest abs(phi) on the nodes.

    Raises
    ------
    InputError
        More than `LOST` = 1e-6 of the mass leaves the domain.
    """
    steps = whole("steps", steps, 1)

    def question(o: Operator) -> float:
        u = backward(o, phi, steps - 1 if o.kind == "chain" else steps)
        return o.at(start, u)

    lost = abs(
        1 - op.at(start, backward(op, lambda x: np.ones(len(x)), steps - (op.kind == "chain")))
    )
    require(lost <= LOST, "domain", f"loses {lost:.3g} of the mass", "must hold the law: widen it")
    answer = exact_answer(op, question, "1")
    error = answer.stderr + lost * float(np.max(np.abs(values_at(phi, op.nodes))))
    return deterministic(answer.value, error, "1", answer.method, answer.notes)


def quasi_stationary(op: Operator, tolerance: float = 1e-13) -> GridLaw:
    """Law that SGD settles to before it leaves, and its chance of leaving per step.

    Inverse iteration with the cancellation-free factors, so that the rate is right
    however small it is.

    Raises
    ------
    RunError
        No convergence (two metastable sets of equal depth).
    InputError
        A part of the domain without a way out: what comes there stays for ever.
    """
    held = op.nodes[op.stuck]
    require(
        not len(held) or not np.any(op.exits > 0),
        "domain",
        "a part without a way out",
        f"must not hold points like x = {held[:1].ravel().round(4)}, from which no noise leads out",
    )
    mass = op.weights / op.weights.sum()
    for _ in range(2000):
        new = op.solve_transposed(mass)
        steps = float(new.sum()) * op.clock
        new /= new.sum()
        change = float(np.abs(new - mass).sum())
        mass = new
        if change < tolerance:
            return GridLaw(op.nodes, mass, op.weights, rate=1 / steps)
    raise RunError(
        f"quasi-stationary law not found: still changing by {change:.2g} after 2000 "
        "iterations (two sets of equal depth?)"
    )


def quasi_stationary_exit(op: Operator) -> Estimate:
    """Mean SGD steps until the exit, started from the quasi-stationary law."""
    return exact_answer(op, lambda o: 1 / quasi_stationary(o).rate, "steps")


def stationary(op: Operator) -> GridLaw:
    """Stationary law, on a domain that (practically) nothing leaves.

    Raises
    ------
    InputError
        The law loses more than 1e-9 of its mass per step through the boundary.
    """
    if np.any(op.exits > 0):
        law = quasi_stationary(op)
        require(
            law.rate <= LEAK,
            "domain",
            f"loses {law.rate:.3g} of the mass per step",
            "must hold the stationary law: widen it, or ask for the quasi-stationary law",
        )
        return law
    return GridLaw(op.nodes, op.return_law, op.weights)


def stationary_expectation(op: Operator, phi: Callable[[Floats], Floats]) -> Estimate:
    """Stationary mean of ``phi(points (m, d)) -> (m,)``."""
    return exact_answer(op, lambda o: stationary(o).expect(phi), "1")


def spectrum(op: Operator, count: int = 6) -> NDArray[np.complex128]:
    """Leading eigenvalues per SGD step of the transition operator inside the domain.

    For a diffusion, exp(eta times eigenvalue of the generator).
    """
    count = whole("count", count)
    if op.kind == "diffusion":
        from .generator import leading_eigenvalues

        return np.exp(leading_eigenvalues(op, count) / op.clock)
    dense = op.rates if isinstance(op.rates, np.ndarray) else op.rates.toarray()
    values = np.linalg.eigvals(dense)
    return values[np.argsort(-np.abs(values))][:count].astype(np.complex128)


def relaxation_time(op: Operator) -> Estimate:
    """SGD steps in which the law forgets its start, given that it stays inside.

    ``1 / log|lambda_1 / lambda_2|`` of the two leading eigenvalues.
    """

    def question(o: Operator) -> float:
        first, second = np.abs(spectrum(o, 2))
        return 1 / math.log(first / second) if second < first else math.inf

    return exact_answer(op, question, "steps")


# ------------------------------------------------------------------ distances


def total_variation(first: GridLaw, second: GridLaw) -> float:
    """Total variation distance, in [0, 1], of two laws on the same nodes."""
    _same_nodes(first, second)
    return float(np.abs(first.mass - second.mass).sum() / 2)


def wasserstein(first: GridLaw, second: GridLaw) -> float:
    """Wasserstein-1 distance of two 1-D laws, in units of x; nodes may differ."""
    from scipy.stats import wasserstein_distance

    if first.nodes.shape[1] != 1 or second.nodes.shape[1] != 1:
        raise InputError("laws", first.nodes.shape[1], "must be one-dimensional")
    # Spectral meshes can leave rounding-size negative masses.
    a, b = (np.maximum(law.mass, 0.0) for law in (first, second))
    return float(wasserstein_distance(first.nodes[:, 0], second.nodes[:, 0], a, b))


def _same_nodes(first: GridLaw, second: GridLaw) -> None:
    same = first.nodes.shape == second.nodes.shape and np.allclose(first.nodes, second.nodes)
    require(same, "laws", "different nodes", "must live on the same nodes: see `resample`")


def resample(law: GridLaw, points: Floats) -> GridLaw:
    """A 1-D law on other sorted nodes (m, 1), through its distribution function.

    Examples
    --------
    >>> x = np.linspace(0, 1, 5)[:, None]
    >>> law = GridLaw(x, np.full(5, 0.2), np.full(5, 0.25))
    >>> float(resample(law, np.linspace(0, 1, 3)[:, None]).mass.sum().round(12))
    1.0
    """
    y = np.asarray(points, dtype=np.float64)[:, 0]
    x, mass = law.nodes[:, 0], law.mass
    edges = np.concatenate([[-np.inf], (y[1:] + y[:-1]) / 2, [np.inf]])
    knots = np.concatenate(
        [[x[0] - law.weights[0] / 2], x[:-1] + np.diff(x) / 2, [x[-1] + law.weights[-1] / 2]]
    )
    cumulated = np.concatenate([[0.0], np.cumsum(mass)])
    new = np.diff(np.interp(np.clip(edges, knots[0], knots[-1]), knots, cumulated))
    return GridLaw(y[:, None], new, np.gradient(y), law.lost)
