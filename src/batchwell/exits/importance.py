"""Importance sampling: noise pushed along the instanton, paid back by weights.

The chance that a departure from the core gets out is the mean of ``1{out} w`` over paths whose
noise is tilted along the instanton (see `tilt`), w the likelihood ratio. Source: Dupuis & Wang, "Importance
sampling, large deviations, and differential games" (Stochastics 76, 2004): a tilt that depends
on the state, so that paths which stray are not pushed on. Whether there are enough paths for their
weights: Chatterjee & Diaconis, "The sample size required in importance sampling" (Ann. Appl. Probab.
28, 2018).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from ..domain import Domain
from ..dynamics import Process
from ..ensemble import OUT, Table
from ..errors import InputError, RunError, whole
from ..estimate import Estimate
from ..streams import generator
from .channels import Channel, channels
from .departures import Core, core_of, departures, relaxation_steps
from .direct import watched_domain
from .regime import attractor, check_level, substeps_of
from .scores import default_score
from .splitting import rate_to_time
from .tilt import check_tilt, tilted

# Below this exponent V/eps the way out is no narrow path.
RARE = 5.0
# Largest share of the sum that one weight may have.
LARGEST = 0.05
# Strengths of the push, by which half of the replicas each are pushed.
STRENGTHS = (1.0, 0.8)


def importance(
    process: Process,
    start: ArrayLike,
    domain: Domain,
    *,
    particles: int = 4096,
    replicas: int = 8,
    seed: int = 0,
    substeps: int | None = None,
    threads: int | None = None,
) -> Estimate:
    """Mean exit time in SGD steps by sampling along the instanton.

    Raises
    ------
    InputError
        SGD with momentum, drawing without replacement, or with continuous noise that is not
        Gaussian (use `splitting`); exits that are not rare (V/eps below 5: says it), a bad
        start, or a domain without a level function.
    RunError
        Weights that are not to be trusted with so few paths (says how many they need), or no path
        out.

    Examples
    --------
    >>> from batchwell import SGD, additive, ball
    >>> sgd = SGD(additive(lambda x: x @ x / 2), learning_rate=0.1)
    >>> out = importance(sgd, [0.0], ball([0.0], 1.0), particles=1024, seed=1)
    >>> abs(out.value - 117280.42) < 4 * out.stderr
    True
    """
    particles, replicas = whole("particles", particles, 64), whole("replicas", replicas, 4)
    check_level(domain)
    minimum = attractor(process, start, domain)
    substeps = substeps_of(process, minimum, 8, substeps)
    check_tilt(process)
    ways = channels(process, minimum, domain)
    exponent = ways[0].path.exponent
    if exponent < RARE:
        raise InputError(
            "process",
            f"V/eps = {exponent:.3g}",
            f"must be at least {RARE:g} for paths to follow the instanton; use method direct",
        )
    best = [w for w in ways if w.path.exponent < exponent + 3]
    score = default_score(process, minimum, domain)
    relaxation = relaxation_steps(process, minimum)
    watched, notes = watched_domain(process, domain, minimum, substeps)
    core = core_of(process, watched, minimum, score, seed, substeps, relaxation, threads)
    pushed = [_pushed(core, best, strength) for strength in STRENGTHS]
    rates, logs = [], []
    for k in range(replicas):
        time, points = departures(core, f"importance/{k}", particles)
        logs.append(_weights(pushed[k % 2], points, k))
        rates.append(np.exp(logs[-1]).mean() / time)
    said = [check_weights(np.concatenate(logs[k::2])) for k in (0, 1)]
    said.append(check_strengths(np.array(rates)))
    out = rate_to_time(np.array(rates), "importance sampling along the instanton")
    return out.with_notes(*said, *notes)


def check_weights(logs: np.ndarray) -> str:
    """Whether a mean of exp(logs) (n,), -inf for weight 0, is to be trusted; a note that it is.

    The mean needs about ``exp(D + 2 s)`` paths, D and s mean and standard deviation of the log of
    the weight over its mean, under the law that the weights lead to (Chatterjee & Diaconis, Theorem
    1.1), and no weight may be a large share of the sum (ibid., section 1.3).

    Raises
    ------
    RunError
        Says how many paths would be needed, or the largest share.

    Examples
    --------
    >>> check_weights(np.zeros(100))
    '100 effective paths of 100; weights need about 1'
    """
    if not np.isfinite(logs.max()):
        raise RunError(f"no tilted path of {len(logs)} got out: use method splitting")
    w = np.exp(logs - logs.max())
    share = w / w.sum()
    seen = share > 0
    ratio = np.log(share[seen] * len(logs))
    entropy = float(share[seen] @ ratio)
    spread = math.sqrt(float(share[seen] @ (ratio - entropy) ** 2))
    need = math.exp(min(entropy + 2 * spread, 700.0))
    effective = 1.0 / float(share @ share)
    if need > len(logs) or share.max() > LARGEST:
        raise RunError(
            f"weights not to be trusted: {len(logs)} paths, about {need:.2g} needed, largest weight "
            f"{share.max():.0%} of the sum; the instanton does not carry the exits: use splitting"
        )
    return f"{effective:.0f} effective paths of {len(logs)}; weights need about {need:.2g}"


def check_strengths(rates: np.ndarray) -> str:
    """Whether replicas pushed with the two strengths in turn, (n,) rates, agree; a note that they do.

    Weights cannot show exits that the pushed paths hardly ever make; another push makes others.

    Raises
    ------
    RunError
        The two means lie more than 4 of their standard errors apart.
    """
    full, less = rates[0::2], rates[1::2]
    spread = math.hypot(*(r.std(ddof=1) / math.sqrt(len(r)) for r in (full, less)))
    gap = abs(float(full.mean() - less.mean()))
    if gap > 4 * spread:
        raise RunError(
            f"two strengths of the push give rates {full.mean():.4g} and {less.mean():.4g}, "
            f"{gap / spread:.1f} standard errors apart: the instanton does not carry all exits; use "
            "method splitting"
        )
    return f"pushes of strength {STRENGTHS[0]:g} and {STRENGTHS[1]:g} agree"


def _pushed(core: Core, ways: list[Channel], strength: float) -> Core:
    """The core with its process pushed, and the log weight as one more coordinate."""
    d, level, score = core.domain.dim, core.domain.level, core.score
    assert level is not None
    domain = Domain(core.domain.name, d + 1, lambda y: level(y[:d]))
    process, substeps = tilted(core.process, ways, strength, core.substeps)
    return replace(
        core,
        process=process,
        domain=domain,
        score=score if isinstance(score, Table) else lambda y: score(y[:d]),
        minimum=np.append(core.minimum, 0.0),
        substeps=substeps,
        scheme="euler",
    )


def _weights(core: Core, points: np.ndarray, k: int) -> np.ndarray:
    """Log weights (m,) of pushed paths from random `points`; -inf for those not out."""
    count = len(points)
    chosen = points[generator(core.seed, f"importance/{k}/choice").integers(0, count, count)]
    there = ~core.domain.contains(np.column_stack([chosen, np.zeros(count)]))
    logs = np.where(there, 0.0, -np.inf)  # a departure may jump out at once
    starts = np.column_stack([chosen, np.zeros(count)])[~there]
    if len(starts):
        paths = core.paths(f"importance/{k}", starts, np.flatnonzero(~there))
        done = core.trials(paths, math.inf)
        logs[~there] = np.where(done.fates == OUT, done.points[:, -1], -np.inf)
    return logs
