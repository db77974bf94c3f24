"""Are the jumps Markov? Tests of what a network of rates assumes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..estimate import Estimate, ratio_of_means, share
from .exponential import exponential
from .jumps import JumpCounts

ENOUGH = 8  # exits, or windows, for a test
LAGS = 4


@dataclass(frozen=True, eq=False)
class MemoryCheck:
    """One state at one batch size: do its exits look like those of a Markov chain?

    Attributes
    ----------
    state, batch_size
        Index of the state, and B.
    exits
        First exits seen.
    variation
        Coefficient of variation of the exit times (1 for a Markov chain); NaN if some are censored.
    hazard_ratio
        Exit rate early (before half a mean time) over late: 1 for a Markov chain, above 1 where
        paths that just came, or started, leave sooner.
    staying
        Measured chance to be in the state again four lags later.
    predicted
        The same from the generator fitted at one lag (Chapman-Kolmogorov).
    """

    state: int
    batch_size: int
    exits: int
    variation: float
    hazard_ratio: Estimate
    staying: Estimate
    predicted: float

    @property
    def passed(self) -> bool:
        """Whether both tests hold at 99.7 %: hazards within 3 errors, staying within its interval."""
        h = self.hazard_ratio
        even = not h.determined or abs(math.log(h.value)) <= 3 * h.stderr / h.value
        spread = 1.5 * (self.staying.interval[1] - self.staying.interval[0]) / 2
        middle = sum(self.staying.interval) / 2
        return bool(even and abs(self.predicted - middle) <= spread)


def memory_checks(counts: Sequence[JumpCounts]) -> list[MemoryCheck]:
    """Test every state with at least 8 first exits, at every batch size."""
    return [row for one in counts for row in _checks(one)]


def _checks(counts: JumpCounts) -> list[MemoryCheck]:
    rates = np.divide(
        counts.jumps,
        counts.exposure[:, None],
        out=np.zeros_like(counts.jumps),
        where=counts.exposure[:, None] > 0,
    )
    chance = exponential((rates - np.diag(rates.sum(axis=1))) * counts.looks[0].lag * LAGS)
    out = []
    for state in range(len(rates)):
        rows = counts.first_exits[counts.first_exits[:, 0] == state]
        mean = rows[:, 1].sum() / max(rows[:, 2].sum(), 1)
        rows = rows[rows[:, 3] <= mean / 8]  # rarer looks do not tell early from late
        exits = int(rows[:, 2].sum())
        if exits < ENOUGH:
            continue
        staying = _staying(counts.series, state)
        if staying is None:
            continue
        out.append(
            MemoryCheck(
                state,
                counts.batch_size,
                exits,
                _variation(rows),
                _hazard_ratio(rows, mean / 2),
                staying,
                float(chance[state, state]),
            )
        )
    return out


def _variation(rows: np.ndarray) -> float:
    if not rows[:, 2].all():
        return math.nan
    return float(rows[:, 1].std(ddof=1) / rows[:, 1].mean())


def _hazard_ratio(rows: np.ndarray, split: float) -> Estimate:
    """Rate of exits before `split` over the rate after."""
    times, seen = rows[:, 1], rows[:, 2] > 0
    early, late = int((seen & (times <= split)).sum()), int((seen & (times > split)).sum())
    at_risk = float(np.minimum(times, split).sum()), float(np.maximum(times - split, 0).sum())
    if min(early, late) == 0:
        return ratio_of_means(_rate(0, 1.0), _rate(0, 1.0))
    return ratio_of_means(_rate(early, at_risk[0]), _rate(late, at_risk[1]))


def _rate(events: int, time: float) -> Estimate:
    value = events / time
    stderr = math.sqrt(max(events, 1)) / time
    ends = (value - 2 * stderr, value + 2 * stderr)
    return Estimate(value, stderr, ends, "1/steps", "events over time", events)


def _staying(series: np.ndarray, state: int) -> Estimate | None:
    """Share of windows of four lags that begin and end in `state`; windows do not overlap."""
    ends = series[:, ::LAGS]
    begins = ends[:, :-1] == state
    n = int(begins.sum())
    return share(int((begins & (ends[:, 1:] == state)).sum()), n) if n >= ENOUGH else None


def memory_note(checks: Sequence[MemoryCheck]) -> str:
    """What the tests say, in one sentence."""
    if not checks:
        return "no state was left often enough to test whether its exits have memory"
    failed = [c for c in checks if not c.passed]
    if not failed:
        return f"jumps pass the tests of a Markov chain in all {len(checks)} cells tested"
    ratios = [c.hazard_ratio.value for c in failed if c.hazard_ratio.determined]
    typical = f"{np.median(ratios):.2f}" if ratios else "unknown"
    return (
        f"jumps are not quite Markov: {len(failed)} of {len(checks)} cells tested fail (exit rate "
        f"soon after the start over later: median {typical} among them)"
    )
