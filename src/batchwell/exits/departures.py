"""Departures from a core around a minimum: the common first half of every rare-event estimate.

A mean exit time is ``E T / p``: T the time between two departures from the core, p the chance that
a departure gets out before it is back (Allen, Valeriani & ten Wolde, J. Phys.: Condens. Matter 21,
463102 (2009); Cerou, Guyader, Lelievre & Pommier, J. Chem. Phys. 134, 054108 (2011)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._jax import jax, jnp
from ..domain import Domain
from ..dynamics import Process
from ..ensemble import CORE, OUT, STOPPED, Ensemble, Score, Trials, run_trials, start
from ..errors import InputError, RunError, require
from .regime import drift_jacobian

# Of the scores seen around the minimum: where the core ends, and where a departure begins.
CORE_SHARE, FIRST_SHARE = 0.5, 0.9
BURN_IN, CYCLES = 2, 2
PATIENCE = 100_000  # relaxation times after which a trial is given up


@dataclass(frozen=True)
class Core:
    """A neighbourhood of a minimum, and how to run trials from it.

    Attributes
    ----------
    process, domain, score, seed, substeps
        Of all trials.
    minimum
        (d,), where a path that has left starts again.
    inner, first
        Scores: at most `inner` is in the core, above `first` is a departure.
    relaxation
        Slowest relaxation time, in SGD steps.
    threads
        For the fused engine.
    scheme
        Of diffusions.
    precision
        Of the simulated numbers, "float64" or "float32".
    """

    process: Process
    domain: Domain
    score: Score
    minimum: np.ndarray
    seed: int
    substeps: int
    relaxation: int
    inner: float = math.nan
    first: float = math.nan
    threads: int | None = None
    scheme: str = "heun"
    precision: str = "float64"

    def paths(self, stream: str, x: ArrayLike, index: ArrayLike) -> Ensemble:
        """Paths at the points `x`, (d,) or (m, d), with their keyed generators."""
        return start(self.process, x, np.asarray(index), self.seed, stream, self.substeps)

    def run(self, ensemble: Ensemble, goals: ArrayLike, core: float, horizon: int) -> Trials:
        """`ensemble.run_trials` of this process and domain."""
        return run_trials(
            self.process,
            ensemble,
            self.domain,
            self.score,
            core,
            goals,
            horizon,
            self.substeps,
            threads=self.threads,
            scheme=self.scheme,
            precision=self.precision,
        )

    def trials(self, ensemble: Ensemble, goals: ArrayLike, core: float | None = None) -> Trials:
        """`ensemble.run_trials` until back in the core, past `goals`, or out.

        Raises
        ------
        RunError
            A trial that neither comes back nor gets out: says where it stays.
        """
        inner = self.inner if core is None else core
        done = self.run(ensemble, goals, inner, PATIENCE * self.relaxation)
        if (done.fates == STOPPED).any():
            where = done.points[done.fates == STOPPED][0]
            raise RunError(
                f"a path stays near {np.array2string(where, precision=4)}, neither back at the "
                "minimum nor out: another minimum lies inside the domain"
            )
        return done


def core_of(
    process: Process,
    domain: Domain,
    minimum: np.ndarray,
    score: Score,
    seed: int,
    substeps: int,
    relaxation: int,
    threads: int | None = None,
    precision: str = "float64",
) -> Core:
    """The core that half of the time around the minimum is spent in."""
    core = Core(
        process,
        domain,
        score,
        minimum,
        seed,
        substeps,
        relaxation,
        threads=threads,
        precision=precision,
    )
    pilot = core.paths("departures/pilot", minimum, np.arange(1024))
    # A path that has left is watched no further: outside of the domain it may run away.
    seen = core.run(pilot, math.inf, -math.inf, 10 * relaxation)
    inside = seen.points[seen.fates != OUT]
    if len(inside) <= len(seen.fates) / 10:
        raise InputError(
            "process",
            f"{len(seen.fates) - len(inside)} of {len(seen.fates)} paths out within "
            f"{10 * relaxation} steps",
            "must stay some relaxation times around the minimum for exits to be rare; use method "
            "direct",
        )
    scores = np.asarray(jax.vmap(score)(jnp.asarray(inside)))
    scores = scores[np.isfinite(scores)]
    require(len(scores) > 100, "score", len(scores), "must be finite around the minimum")
    inner, first = np.quantile(scores, [CORE_SHARE, FIRST_SHARE])
    require(first > inner, "score", float(inner), "must vary around the minimum")
    return replace(core, inner=float(inner), first=float(first))


def relaxation_steps(process: Process, minimum: np.ndarray) -> int:
    """Slowest relaxation time of the drift at its stable zero, in SGD steps, rounded up."""
    jacobian = drift_jacobian(process, minimum)
    slowest = -float(np.linalg.eigvals(jacobian).real.max())
    return math.ceil(1 / (process.learning_rate * slowest))


def departures(core: Core, stream: str, count: int) -> tuple[float, np.ndarray]:
    """(mean SGD steps between departures, points (count, d) just past the first level).

    Each of `count` independent walkers gives one point; its earlier cycles forget the start at
    the minimum, and the last ones are timed.
    """
    index = np.arange(count)
    x: Any = core.minimum
    spent = np.zeros(count)
    for cycle in range(BURN_IN + CYCLES):
        away = core.trials(
            core.paths(f"{stream}/away/{cycle}", x, index), core.first, core=-math.inf
        )
        if cycle >= BURN_IN:
            spent += away.steps
        if cycle == BURN_IN + CYCLES - 1:
            break
        # What is out starts again from the minimum, which lies in the core.
        back = away.fates != OUT
        x = np.tile(core.minimum, (count, 1))
        if back.any():
            home = core.trials(
                core.paths(f"{stream}/home/{cycle}", away.points[back], index[back]), math.inf
            )
            x[back] = np.where((home.fates == CORE)[:, None], home.points, core.minimum)
            # The first timed cycle begins with the departure that ends the burn-in.
            if cycle >= BURN_IN - 1:
                spent[back] += home.steps
    return float(spent.mean()) / CYCLES, away.points
