"""Predictions of a network held against SGD that it did not see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from ..dynamics import SGD
from ..ensemble import advance, start
from ..errors import InputError, require, whole
from ..estimate import Estimate, sample_mean, share
from ..landscape import Landscape
from ..streams import generator
from .final import Stage, final_basins
from .network import ELSEWHERE, MarkovNetwork, law_of_start, occupation
from .schedules import Schedule, SchedulePlan
from .states import StateMap

Progress = Callable[[int, int], None]
WORTH = 0.02  # a cell counts where the predicted or the measured share is at least this


@dataclass(frozen=True)
class ScheduleCheck:
    """Predicted and measured shares of each state at the end of a schedule.

    Attributes
    ----------
    name
        The schedule's.
    stages
        What was run.
    predicted, measured
        Share of each state at the end; measured ones with Wilson's interval.
    predicted_score, measured_score
        Value of the objective; None where there is none.
    cells, inside
        States whose predicted or measured share is at least 2 %, and how many of them have the
        predicted share inside the measured 95 % interval.
    within
        How many have predicted and measured share within 1.96 joint standard errors.
    """

    name: str
    stages: tuple[Stage, ...]
    predicted: dict[str, Estimate]
    measured: dict[str, Estimate]
    predicted_score: Estimate | None
    measured_score: Estimate | None
    cells: int
    inside: int
    within: int


@dataclass(frozen=True)
class Verification:
    """Schedules of a plan as SGD really ran them.

    Attributes
    ----------
    checks
        The optimal schedule first, then rivals.
    gain
        Measured score of the best growing schedule minus that of the best constant one.
    verdict
        Whether growth beat a constant batch in these runs, in plain words.
    """

    checks: tuple[ScheduleCheck, ...]
    gain: Estimate
    verdict: str

    @property
    def inside(self) -> Estimate:
        """Share of cells whose prediction lies inside the measured 95 % interval."""
        cells = sum(c.cells for c in self.checks)
        return share(sum(c.inside for c in self.checks), max(cells, 1))


def verify_schedules(
    plan: SchedulePlan,
    sgd: SGD,
    landscape: Landscape,
    *,
    rivals: int | None = None,
    paths: int = 200,
    seed: int = 0,
    stream: str = "verify",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Run SGD under the schedules of a plan and compare where it ends with the prediction.

    Parameters
    ----------
    plan
        What `optimal_schedule` answered.
    sgd
        Learning rate, sampling mode and momentum; its batch size is replaced by the schedules'.
    rivals
        How many rivals to run, best predicted first (the best constant and the best growing one
        are always among them); all by default.
    paths
        Paths of each schedule, started at minima drawn from the plan's start.
    stream
        Name of the random stream: another name, independent paths.

    Raises
    ------
    InputError
        A start outside of the listed minima, or fewer than 2 paths.
    Divergence
        A path left the finite numbers.
    """
    paths = whole("paths", paths, 2)
    origins = _origins(plan.start, landscape, paths, seed, stream)
    weights = np.array(plan.weights)
    checks = []
    chosen = _chosen(plan, rivals)
    for k, schedule in enumerate(chosen):
        states = _run(sgd, schedule.stages, landscape, origins, seed, f"{stream}/{k}", threads)
        checks.append(_check(schedule.name, schedule.stages, schedule.shares, states, weights))
        checks[-1] = replace(checks[-1], predicted_score=schedule.score)
        if progress is not None:
            progress(k + 1, len(chosen))
    by_name = {c.name: c for c in checks}
    grown, constant = by_name[plan.growing.name], by_name[plan.constant.name]
    gain = _difference(grown, constant)
    return Verification(tuple(checks), gain, _verdict(grown, constant, gain))


def _chosen(plan: SchedulePlan, rivals: int | None) -> list[Schedule]:
    count = len(plan.rivals) if rivals is None else whole("rivals", rivals, 0)
    picked = [plan.best, *plan.rivals[:count], plan.constant, plan.growing]
    return list({s.name: s for s in picked}.values())


def _origins(
    law: Sequence[float], landscape: Landscape, paths: int, seed: int, stream: str
) -> np.ndarray:
    """Minimum (paths,) at which each path starts: shares as even as whole numbers allow."""
    p = np.asarray(law)
    m = len(landscape.minima)
    if len(p) != m + 1 or p[m] > 0:
        raise InputError("start", "elsewhere", "must be a listed minimum: SGD is started there")
    ends = np.cumsum(p[:m]) * paths
    # Systematic sampling: one random offset, then evenly spaced.
    points = np.arange(paths) + generator(seed, stream + "/starts").random()
    return np.minimum(np.searchsorted(ends, points), int(np.flatnonzero(p[:m] > 0)[-1]))


def _run(
    sgd: SGD,
    schedule: Sequence[Stage],
    landscape: Landscape,
    origins: np.ndarray,
    seed: int,
    stream: str,
    threads: int | None,
) -> np.ndarray:
    x0 = np.array([landscape.minima[k].x for k in origins])
    ends = final_basins(sgd, x0, schedule, landscape, len(x0), seed, stream, threads)
    return np.where(ends.classes < 0, len(landscape.minima), ends.classes)


def _check(
    name: str,
    schedule: Sequence[Stage],
    predicted: dict[str, Estimate],
    states: np.ndarray,
    weights: np.ndarray | None,
) -> ScheduleCheck:
    n = len(states)
    counts = np.bincount(states, minlength=len(predicted))
    measured = {label: share(int(c), n) for label, c in zip(predicted, counts, strict=True)}
    cells = [k for k in predicted if max(predicted[k].value, measured[k].value) >= WORTH]
    inside = [k for k in cells if _inside(predicted[k].value, measured[k])]
    within = [k for k in cells if _within(predicted[k], measured[k])]
    value = None if weights is None else _mean(weights[states])
    return ScheduleCheck(
        name, tuple(schedule), predicted, measured, None, value,
        len(cells), len(inside), len(within),
    )  # fmt: skip


def _inside(value: float, measured: Estimate) -> bool:
    return measured.interval[0] <= value <= measured.interval[1]


def _within(predicted: Estimate, measured: Estimate) -> bool:
    """Within 1.96 joint standard errors, each taken from its interval's half towards the other."""
    side = 1 if predicted.value < measured.value else 0
    ours = abs(predicted.interval[side] - predicted.value)
    theirs = abs(measured.interval[1 - side] - measured.value)
    return bool(abs(predicted.value - measured.value) <= np.hypot(ours, theirs))


def _mean(values: np.ndarray) -> Estimate:
    if set(np.unique(values)) <= {0.0, 1.0}:
        return share(int(values.sum()), len(values))
    return sample_mean(values, "1")


def _difference(a: ScheduleCheck, b: ScheduleCheck) -> Estimate:
    """Measured score of a minus that of b: independent runs, Newcombe's interval.

    It joins the two intervals (Stat. Med. 17, 873 (1998)), so that shares of 0 or 1 keep theirs.
    """
    first, second = a.measured_score, b.measured_score
    assert first is not None
    assert second is not None
    value = first.value - second.value
    down = np.hypot(first.value - first.interval[0], second.interval[1] - second.value)
    up = np.hypot(first.interval[1] - first.value, second.value - second.interval[0])
    ends = (float(value - down), float(value + up))
    stderr = float(down + up) / (2 * 1.96)
    return Estimate(value, stderr, ends, "1", "difference of measured means", first.n + second.n)


def _verdict(grown: ScheduleCheck, constant: ScheduleCheck, gain: Estimate) -> str:
    assert grown.measured_score is not None
    assert constant.measured_score is not None
    if grown.name == constant.name:
        return f"no growing schedule was predicted to do better than {constant.name}"
    pair = (
        f"{grown.name} {grown.measured_score.value:.3g}, {constant.name} "
        f"{constant.measured_score.value:.3g}"
    )
    if gain.interval[0] <= 0 <= gain.interval[1]:
        return f"growing the batch did not measurably beat a constant one: {pair}"
    if gain.value > 0:
        return f"growing the batch beat every constant one predicted best: {pair}"
    return f"growing the batch did worse than a constant one: {pair}"


def check_against_runs(
    network: MarkovNetwork,
    sgd: SGD,
    landscape: Landscape,
    batch_sizes: Sequence[int],
    steps: Sequence[int],
    *,
    start_from: str | ArrayLike | None = None,
    paths: int = 200,
    seed: int = 0,
    stream: str = "long-runs",
    threads: int | None = None,
) -> list[ScheduleCheck]:
    """Occupation over time in long SGD runs that the rates did not see, beside the prediction.

    Parameters
    ----------
    batch_sizes
        Constant batch sizes to run at.
    steps
        Increasing times, in SGD steps, at which paths are quenched.
    start_from
        A state's name or weights (m,); by default how often random starts reach each minimum.

    Returns
    -------
    list of ScheduleCheck
        One per batch size and time.
    """
    times = [whole("steps", t) for t in steps]
    ordered = bool(times) and all(a < b for a, b in pairwise(times))
    require(ordered, "steps", steps, "must increase")
    names = (*(m.label for m in landscape.minima), ELSEWHERE)
    require(
        network.labels == names, "network", network.labels, f"must be of the landscape's {names}"
    )
    law = law_of_start(network, network.starts if start_from is None else start_from)
    origins = _origins(law.tolist(), landscape, whole("paths", paths, 2), seed, stream)
    x0, out = np.array([landscape.minima[k].x for k in origins]), []
    began = np.bincount(origins, minlength=len(law)) / len(origins)
    for b in batch_sizes:
        chain = replace(sgd, batch_size=b)
        state = start(chain, x0, len(x0), seed, f"{stream}-B{b}")
        runs = [Stage(b, t - s) for s, t in zip([0, *times], times, strict=False)]
        laws, states = occupation(network, began, runs)[1:], StateMap(landscape, threads)
        for time, law_then in zip(times, laws, strict=True):
            state = advance(chain, state, time - state.step, threads=threads)
            done = (Stage(b, time),)
            name = f"B = {b} after {time} steps"
            out.append(_check(name, done, law_then, states(state.x), None))
    return out
