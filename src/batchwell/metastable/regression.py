"""Rates at every batch size from counted jumps: a regression that borrows strength.

Jumps from state i to state j at inverse temperature y (y = B with replacement) are Poisson with
mean (steps in i) k_ij, and

    log k_ij(y) = alpha_i - V_i y + delta_ij - w_ij y + r_i(y):

the law ``a exp(-V y / eta)`` of rare jumps, with the edges' deviations shrunk to their state's, the
states' to the network's, and a smooth residual r_i (a Gaussian process in log y) for what the law
misses, whose size is the model error. Spreads are found from the data (empirical Bayes by EM with
Laplace's approximation); uncertainty is sampled from the posterior by elliptical slices.
Sources: McCullagh & Nelder, "Generalized Linear Models" (1989), ch. 6; Murray, Adams & MacKay,
"Elliptical slice sampling" (AISTATS 2010); Nishihara, Murray & Adams (JMLR 15, 2014) for slices
around an approximate posterior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from ..streams import generator

Floats = NDArray[np.float64]
OCTAVES = 1.5  # correlation length of the residual in log2 of the inverse temperature
OWN = 0.1  # share of the residual's variance that each node has for itself
EM_ROUNDS, NEWTON_ROUNDS, SLICE_ROUNDS = 12, 50, 12
FLOORS = {"level": 0.5, "slope": 1e-3, "branch": 0.3, "branch_slope": 1e-3, "residual": 0.1}


@dataclass(frozen=True)
class Spreads:
    """Means and standard deviations of the regression's terms over states and edges.

    `residual` is the model error: how far log rates stray from the law ``a exp(-V y / eta)``.
    """

    level_mean: float
    level: float
    slope_mean: float
    slope: float
    branch: float = 1.0
    branch_slope: float = 0.05
    residual: float = 0.3


@dataclass(frozen=True, eq=False)
class RateFit:
    """Rates of all edges at all nodes, and draws of them.

    Attributes
    ----------
    edges
        (e, 2) source and target.
    log_rates
        (n, e) at the posterior's mode.
    draws
        (r, n, e).
    spreads
        What was learned about the terms' sizes.
    """

    edges: NDArray[np.intp]
    log_rates: Floats
    draws: Floats = field(repr=False)
    spreads: Spreads


@dataclass(frozen=True, eq=False)
class _Source:
    """One state's edges: targets (k,), jumps and steps (n, k), design of log rates (n k, p)."""

    targets: NDArray[np.intp]
    jumps: Floats
    steps: Floats
    design: Floats


def fit_rates(
    jumps: Floats, exposure: Floats, inverse: Floats, edges: NDArray[np.intp], draws: int, seed: int
) -> RateFit:
    """Fit `jumps` (n, m, m) in `exposure` (n, m, m) steps at inverse temperatures (n,).

    `edges` (e, 2) lists the edges that exist; nodes without evidence have exposure 0.
    """
    centre = float(np.exp(np.mean(np.log(inverse[exposure.sum(axis=(1, 2)) > 0]))))
    sources = [_source(i, jumps, exposure, inverse - centre, edges) for i in _origins(edges)]
    kernel = _kernel(inverse)
    spreads = _first_spreads(sources, inverse - centre)
    modes: list[Floats] = [np.zeros(s.design.shape[1]) for s in sources]
    for mode in modes:
        mode[:2] = spreads.level_mean, spreads.slope_mean
    for _ in range(EM_ROUNDS):
        fits = [_mode(s, spreads, kernel, z) for s, z in zip(sources, modes, strict=True)]
        modes = [z for z, _ in fits]
        spreads = _spreads(sources, fits, kernel, spreads)
    fits = [_mode(s, spreads, kernel, z) for s, z in zip(sources, modes, strict=True)]
    n = len(inverse)
    out, drawn = np.empty((n, len(edges))), np.empty((draws, n, len(edges)))
    for s, (mode, root), i in zip(sources, fits, _origins(edges), strict=True):
        columns = np.flatnonzero(edges[:, 0] == i)
        out[:, columns] = (s.design @ mode).reshape(n, -1)
        some = _sample(s, spreads, kernel, mode, root, draws, generator(seed, "rates", int(i)))
        drawn[:, :, columns] = (some @ s.design.T).reshape(draws, n, len(columns))
    return RateFit(edges, np.minimum(out, 0.0), np.minimum(drawn, 0.0), spreads)


def _origins(edges: NDArray[np.intp]) -> Sequence[int]:
    return [int(i) for i in np.unique(edges[:, 0])]


def _kernel(inverse: Floats) -> Floats:
    """Correlations of the residual between nodes."""
    gap = np.subtract.outer(np.log2(inverse), np.log2(inverse)) / OCTAVES
    return (1 - OWN) * np.exp(-0.5 * gap**2) + OWN * np.eye(len(inverse))


def _source(i: int, jumps: Floats, exposure: Floats, y: Floats, edges: NDArray[np.intp]) -> _Source:
    """Parameters: level, slope, k branches, k branch slopes, n residuals."""
    targets = edges[edges[:, 0] == i, 1]
    n, k = len(y), len(targets)
    design = np.zeros((n, k, 2 + 2 * k + n))
    design[:, :, 0], design[:, :, 1] = 1.0, -y[:, None]
    for j in range(k):
        design[:, j, 2 + j], design[:, j, 2 + k + j] = 1.0, -y
    for b in range(n):
        design[b, :, 2 + 2 * k + b] = 1.0
    return _Source(
        targets, jumps[:, i, targets], exposure[:, i, targets], design.reshape(n * k, -1)
    )


def _first_spreads(sources: Sequence[_Source], y: Floats) -> Spreads:
    """A line through the logs of the pooled rates, to begin with."""
    events = sum((s.jumps.sum(axis=1) for s in sources), np.zeros(len(y)))
    steps = sum((s.steps.sum(axis=1) for s in sources), np.zeros(len(y)))
    seen = steps > 0
    logs = np.log((events[seen] + 0.5) / steps[seen])
    if seen.sum() < 2:
        return Spreads(float(logs[0]), 3.0, 0.0, 0.5)
    weight = np.sqrt(events[seen] + 0.5)
    slope, level = np.polyfit(y[seen], logs, 1, w=weight)
    return Spreads(float(level), 3.0, float(-slope), max(0.5 * abs(float(slope)), 0.1))


def _precision(s: _Source, spreads: Spreads, kernel: Floats) -> tuple[Floats, Floats]:
    """(prior mean (p,), prior precision (p, p)) of one source's parameters."""
    k, n = len(s.targets), len(s.steps)
    mean = np.zeros(2 + 2 * k + n)
    mean[:2] = spreads.level_mean, spreads.slope_mean
    sd = [spreads.level, spreads.slope, *[spreads.branch] * k, *[spreads.branch_slope] * k]
    out = np.zeros((len(mean), len(mean)))
    np.fill_diagonal(out[: 2 + 2 * k, : 2 + 2 * k], 1.0 / np.square(sd))
    out[2 + 2 * k :, 2 + 2 * k :] = np.linalg.inv(kernel) / spreads.residual**2
    return mean, out


def _mode(s: _Source, spreads: Spreads, kernel: Floats, begin: Floats) -> tuple[Floats, Floats]:
    """(posterior mode (p,), lower Cholesky root of its precision (p, p)), by damped Newton."""
    mean, prior = _precision(s, spreads, kernel)
    counts, exposure = s.jumps.ravel(), s.steps.ravel()
    z = begin.copy()
    value = _log_posterior(s, z[None], mean, prior)[0]
    for _ in range(NEWTON_ROUNDS):
        rate = exposure * np.exp(np.minimum(s.design @ z, 50.0))
        slope = s.design.T @ (counts - rate) - prior @ (z - mean)
        root = cho_factor(prior + (s.design.T * rate) @ s.design, lower=True)
        move, share = cho_solve(root, slope), 1.0
        while share > 1e-6:
            new = _log_posterior(s, (z + share * move)[None], mean, prior)[0]
            if new >= value:
                break
            share *= 0.5
        else:
            break
        z, gain, value = z + share * move, new - value, new
        if gain < 1e-9 * (1.0 + abs(value)):
            break
    rate = exposure * np.exp(np.minimum(s.design @ z, 50.0))
    return z, np.asarray(np.linalg.cholesky(prior + (s.design.T * rate) @ s.design))


def _log_posterior(s: _Source, z: Floats, mean: Floats, prior: Floats) -> Floats:
    """Log posterior of parameters z (r, p), up to a constant: (r,)."""
    logs = np.minimum(z @ s.design.T, 50.0)
    exposure = s.steps.ravel()
    off = z - mean
    return np.asarray(
        logs @ s.jumps.ravel()
        - np.exp(logs) @ exposure
        - 0.5 * np.einsum("ri,ij,rj->r", off, prior, off)
    )


def _spreads(
    sources: Sequence[_Source],
    fits: Sequence[tuple[Floats, Floats]],
    kernel: Floats,
    old: Spreads,
) -> Spreads:
    """EM update: second moments of each kind of term over all posteriors."""
    n = len(kernel)
    informed = np.linalg.inv(kernel)
    levels, slopes, residuals = [], [], []
    branches: list[float] = []
    branch_slopes: list[float] = []
    for s, (z, root) in zip(sources, fits, strict=True):
        inverse = np.linalg.inv(root)
        covariance = inverse.T @ inverse
        variance, k = np.diag(covariance), len(s.targets)
        levels.append((z[0], variance[0]))
        slopes.append((z[1], variance[1]))
        square = z**2 + variance
        branches.extend(square[2 : 2 + k])
        branch_slopes.extend(square[2 + k : 2 + 2 * k])
        r = z[2 + 2 * k :]
        residuals.append(
            (r @ informed @ r + np.sum(informed * covariance[2 + 2 * k :, 2 + 2 * k :])) / n
        )
    level_mean, level = _moments(np.array(levels))
    slope_mean, slope = _moments(np.array(slopes))
    found = {
        "level": level,
        "slope": slope,
        "branch": float(np.sqrt(np.mean(branches))),
        "branch_slope": float(np.sqrt(np.mean(branch_slopes))),
        "residual": float(np.sqrt(np.mean(residuals))),
    }
    if len(sources) < 3:  # too few to learn how much states differ
        found["level"], found["slope"] = old.level, old.slope
    floored = {name: max(value, FLOORS[name]) for name, value in found.items()}
    return replace(old, level_mean=level_mean, slope_mean=slope_mean, **floored)


def _moments(rows: Floats) -> tuple[float, float]:
    mean = float(rows[:, 0].mean())
    return mean, float(np.sqrt(np.mean((rows[:, 0] - mean) ** 2 + rows[:, 1])))


def _sample(
    s: _Source,
    spreads: Spreads,
    kernel: Floats,
    mode: Floats,
    root: Floats,
    count: int,
    rng: np.random.Generator,
) -> Floats:
    """`count` draws (r, p) from the posterior: slices through draws of its normal approximation.

    The normal's tails are too wide where no jump was seen: what slices take off.
    """
    mean, prior = _precision(s, spreads, kernel)
    spread = np.linalg.inv(root)

    def normal() -> Floats:
        return np.asarray(rng.standard_normal((count, len(mode))) @ spread)

    def excess(off: Floats) -> Floats:
        exact = _log_posterior(s, mode + off, mean, prior)
        return exact + 0.5 * np.sum((off @ root) ** 2, axis=1)

    here = np.zeros((count, len(mode)))
    for _ in range(SLICE_ROUNDS):
        here = _slice(here, normal(), excess, rng)
    return mode + here


def _slice(here: Floats, other: Floats, log_weight, rng: np.random.Generator) -> Floats:  # type: ignore[no-untyped-def]
    """One elliptical slice move of every row."""
    count = len(here)
    threshold = log_weight(here) + np.log(rng.random(count))
    angle = rng.uniform(0, 2 * np.pi, count)
    low, high = angle - 2 * np.pi, angle.copy()
    out, open_ = here.copy(), np.arange(count)
    while open_.size:
        a = angle[open_, None]
        trial = here[open_] * np.cos(a) + other[open_] * np.sin(a)
        good = log_weight(trial) >= threshold[open_]
        out[open_[good]] = trial[good]
        open_ = open_[~good]
        below = angle[open_] < 0
        low[open_[below]], high[open_[~below]] = angle[open_[below]], angle[open_[~below]]
        angle[open_] = rng.uniform(low[open_], high[open_])
    return out
