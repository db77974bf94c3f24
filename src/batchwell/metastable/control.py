"""Optimal control of a Markov network by the batch size.

The law of the network under a batch size B(e) over examples e obeys ``dp/de = p Q(B) / B``. What is
to be greatest, ``p(E) . w``, has the derivative ``p(e) d(Q/B)/dB lambda(e)`` with respect to B at e,
lambda the chance-weighted outcome from each state on (the adjoint). Stages of equal numbers of
examples make this exact on a grid of times; sweeps that give each stage its best batch size, all
others fixed (Pontryagin's principle on the grid), never make it worse; L-BFGS then refines the
sizes as real numbers. Source: Bryson & Ho, "Applied Optimal Control" (1975), ch. 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .exponential import exponential_slope
from .network import (
    MarkovNetwork,
    edge_log_rates,
    propagators,
    rate_matrix,
    transition_matrix,
)

Floats = NDArray[np.float64]
SWEEPS = 50


@dataclass
class Kernels:
    """Transition matrices of one stage of `share` examples, by batch size, kept.

    Whole steps only: ``share // B`` of them.
    """

    network: MarkovNetwork
    share: int
    known: dict[int, Floats] = field(default_factory=dict)
    known_drawn: dict[int, Floats] = field(default_factory=dict)

    def __getitem__(self, batch_size: int) -> Floats:
        """(m, m) from the best rates."""
        if batch_size not in self.known:
            q = rate_matrix(self.network, batch_size)
            self.known[batch_size] = transition_matrix(q, self.share // batch_size)
        return self.known[batch_size]

    def drawn(self, batch_size: int) -> Floats:
        """(1 + r, m, m): from the best rates, then from each draw."""
        if batch_size not in self.known_drawn:
            steps = self.share // batch_size
            self.known_drawn[batch_size] = propagators(self.network, batch_size, steps)
        return self.known_drawn[batch_size]


def score(kernels: Kernels, start: Floats, weights: Floats, sizes: Sequence[int]) -> float:
    """Expected weight at the end of stages at these batch sizes."""
    p = start
    for b in sizes:
        p = p @ kernels[b]
    return float(p @ weights)


def sweep(
    kernels: Kernels,
    start: Floats,
    weights: Floats,
    sizes: Sequence[int],
    candidates: Sequence[int],
    growing: bool = False,
) -> tuple[list[int], float]:
    """Improve stage by stage until nothing changes: (batch sizes, score).

    With `growing` a stage's size stays between its neighbours'.
    """
    out = list(sizes)
    best = score(kernels, start, weights, out)
    for _ in range(SWEEPS):
        laws = [start]
        for b in out:
            laws.append(laws[-1] @ kernels[b])
        ahead = weights
        for k in range(len(out) - 1, -1, -1):
            allowed = candidates
            if growing:
                low = out[k - 1] if k > 0 else 0
                high = out[k + 1] if k + 1 < len(out) else max(candidates)
                allowed = [b for b in candidates if low <= b <= high]
            values = [float(laws[k] @ (kernels[b] @ ahead)) for b in allowed]
            top = int(np.argmax(values))
            if values[top] > float(laws[k] @ (kernels[out[k]] @ ahead)):
                out[k] = allowed[top]
            ahead = kernels[out[k]] @ ahead
        new = float(start @ ahead)
        if new <= best * (1 + 1e-12):
            break
        best = new
    return out, best


def best_step(
    kernels: Kernels,
    start: Floats,
    weights: Floats,
    count: int,
    candidates: Sequence[int],
    growing: bool = True,
) -> list[int]:
    """The best schedule of `count` stages with at most one change of the batch size."""
    laws = np.empty((len(candidates), count + 1, len(start)))
    ahead = np.empty_like(laws)
    for c, b in enumerate(candidates):
        laws[c, 0], ahead[c, count] = start, weights
        for k in range(count):
            laws[c, k + 1] = laws[c, k] @ kernels[b]
            ahead[c, count - k - 1] = kernels[b] @ ahead[c, count - k]
    values = np.einsum("akm,bkm->abk", laws, ahead)
    order = np.array(candidates)
    wrong = order[:, None] >= order[None, :] if growing else order[:, None] <= order[None, :]
    values[wrong] = -np.inf
    values[:, :, [0, count]] = -np.inf
    if not np.isfinite(values).any():
        return [candidates[0]] * count
    first, second, at = (int(v) for v in np.unravel_index(np.argmax(values), values.shape))
    return [candidates[first]] * at + [candidates[second]] * (count - at)


def score_gradient(
    network: MarkovNetwork, start: Floats, weights: Floats, sizes: Floats, share: float
) -> tuple[float, Floats]:
    """Expected weight at the end and its derivatives by each stage's batch size, by adjoints.

    Parameters
    ----------
    sizes
        (K,) real batch sizes; every stage lasts ``share / B`` steps, not rounded.
    """
    pairs = [_generator_and_slope(network, float(b)) for b in sizes]
    laws, ahead, kernels = [start], weights, []
    for (q, _), b in zip(pairs, sizes, strict=True):
        kernels.append(transition_matrix(q, share / b))
        laws.append(laws[-1] @ kernels[-1])
    slopes = np.empty(len(sizes))
    for k in range(len(sizes) - 1, -1, -1):
        (q, dq), b = pairs[k], sizes[k]
        change = share * (dq / b - q / b**2)
        slopes[k] = laws[k] @ exponential_slope(q * share / b, change)[1] @ ahead
        ahead = kernels[k] @ ahead
    return float(laws[-1] @ weights), slopes


def _generator_and_slope(network: MarkovNetwork, batch_size: float) -> tuple[Floats, Floats]:
    """Q (m, m) and its derivative by B, that of the piece of the log-rates' lines B lies on."""
    nodes, logs = network.batch_sizes, network.log_rates
    q, slope = rate_matrix(network, batch_size), np.zeros((len(network.labels),) * 2)
    if len(nodes) == 1:
        return q, slope
    k = int(np.clip(np.searchsorted(nodes, batch_size) - 1, 0, len(nodes) - 2))
    here = edge_log_rates(network, batch_size, logs)
    with np.errstate(invalid="ignore"):
        by_log = (logs[k + 1] - logs[k]) / (nodes[k + 1] - nodes[k])
    # Capped rates, and those of edges that are dead at a node, do not change.
    by_log = np.where((here < 0) & np.isfinite(by_log), by_log, 0.0)
    i, j = network.edges[:, 0], network.edges[:, 1]
    slope[i, j] = np.exp(here) * by_log
    np.fill_diagonal(slope, -slope.sum(axis=1))
    return q, slope


def refine(
    network: MarkovNetwork,
    start: Floats,
    weights: Floats,
    sizes: Sequence[int],
    share: int,
    limits: tuple[int, int],
    rounds: int = 10,
) -> list[int]:
    """Batch sizes after L-BFGS in log B from `sizes`, rounded to whole numbers."""
    from scipy.optimize import minimize

    def negative(logs: Floats) -> tuple[float, Floats]:
        b = np.exp(logs)
        value, slope = score_gradient(network, start, weights, b, share)
        return -value, -slope * b

    box = [(np.log(limits[0]), np.log(limits[1]))] * len(sizes)
    found = minimize(
        negative,
        np.log(np.asarray(sizes, dtype=float)),
        jac=True,
        bounds=box,
        method="L-BFGS-B",
        options={"maxiter": rounds},
    )
    return [int(np.clip(round(b), *limits)) for b in np.exp(found.x)]
