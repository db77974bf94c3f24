"""Basins as a network, piece by piece: what the study and the landscape's study share.

Minima and passes first; then jumps between basins at each batch size; the network that they make,
and the schedules that it recommends; then SGD under these schedules, which the network did not see.
Every finished piece is on disk before the next is begun.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from ..dynamics import SGD
from ..ensemble import advance, start
from ..landscape import (
    Landscape,
    Passage,
    Saddle,
    Survey,
    find_minima,
    generalisation,
    held_out_scores,
    survey,
)
from ..landscape.generalisation import FEWEST
from ..metastable import (
    JumpCounts,
    Schedule,
    SchedulePlan,
    Stage,
    TransitionRates,
    count_jumps,
    optimal_schedule,
    rates_from_counts,
    with_scores,
)
from ..metastable.states import StateMap
from ..progress import tracked
from ..report.landscape import LandscapeResult, MeasuredRun
from ..runs import RunDirectory
from ..streams import generator
from .landscape_store import read_counts, read_survey, survey_arrays, write_counts
from .plan import Plan

MINIMA = "minima"
EXPLORE_STEPS = 1500
Progress = Callable[[int, int], None]
Passes = dict[tuple[int, int], Passage]


@dataclass(frozen=True)
class Effort:
    """How much work goes into a network.

    Attributes
    ----------
    every
        SGD steps between two looks of the exploration.
    neighbours, softest, repairs
        Of the search for saddles (`landscape.find_saddles`).
    paths, looks
        Paths from each minimum whose jumps are counted, and looks at each.
    memory
        Whether jumps are tested for memory, which takes paths of its own.
    draws
        Of the rates, for intervals.
    runs, run_looks
        Paths under each schedule, and looks at them.
    rivals
        Whether every constant batch and the best shrinking schedule are run too, or only the best
        schedule, the best that grows and the best constant one.
    """

    every: int
    neighbours: int
    softest: int
    repairs: int
    paths: int
    looks: int
    memory: bool
    draws: int
    runs: int
    run_looks: int
    rivals: bool


FULL = Effort(20, 3, 1, 1, 8, 12, True, 200, 96, 8, True)
# A quarter of a minute: the borders that SGD crossed, wider intervals, fewer schedules run.
BRIEF = Effort(100, 1, 0, 0, 3, 8, False, 100, 48, 4, False)


@dataclass(frozen=True)
class Question:
    """Of which SGD the network is asked for, and where its schedules are to end."""

    plan: Plan = field(repr=False)
    learning_rate: float
    batch_sizes: tuple[int, ...]
    effort: Effort
    objective: str = "flattest"

    def sgd(self, batch_size: int) -> SGD:
        """SGD at one batch size."""
        return self.plan.sgd(self.learning_rate, batch_size)

    @property
    def budget(self) -> int:
        """Examples that a schedule may use."""
        return self.plan.settings.examples

    @property
    def seed(self) -> int:
        """Root seed."""
        return self.plan.settings.seed


def middle_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    """The batch sizes that tell most: the smallest of many only shake, the largest only stay.

    >>> middle_sizes([32, 1, 2, 4, 8, 16]), middle_sizes([4, 1])
    ((2, 4, 8, 16), (1, 4))
    """
    known = tuple(sorted(sizes))
    return known[1:5] if len(known) > 4 else known


def search(
    plan: Plan, run: RunDirectory, question: Question | None, quiet: bool
) -> tuple[Landscape, tuple[Saddle, ...], Passes]:
    """Minima, saddles, and how often SGD passed between which minima; read if they are there.

    Without a question only minima are sought, from random starts.
    """
    loss, symmetry = plan.subject.loss, plan.subject.symmetry
    if not run.has(MINIMA):
        stages = 1 if question is None else 3
        with tracked(stages, "searching minima", quiet) as tracker:
            if question is None:
                report = tracker.report("random starts")
                found = Survey(find_minima(loss, plan.starts(), symmetry, report), (), None, {})
            else:
                found = _survey(question, lambda stage, *done: tracker.report(stage)(*done))
        run.write_chunk(MINIMA, *survey_arrays(found))
    return read_survey(loss, symmetry, *run.read_chunk(MINIMA))


def _survey(question: Question, progress: Callable[[str, int, int], None]) -> Survey:
    sizes, effort = question.batch_sizes, question.effort
    return survey(
        question.sgd(sizes[min(1, len(sizes) - 1)]),
        question.plan.starts(),
        question.plan.subject.symmetry,
        steps=EXPLORE_STEPS,
        every=effort.every,
        neighbours=effort.neighbours,
        softest=effort.softest,
        repairs=effort.repairs,
        seed=question.seed,
        progress=progress,
    )


def answers(
    question: Question, run: RunDirectory, result: LandscapeResult, quiet: bool
) -> Iterator[LandscapeResult]:
    """`result`, whose landscape is known, with one more piece each time."""
    scape, tests = result.landscape, question.plan.subject.tests
    assert scape is not None
    if tests and len(scape.minima) >= FEWEST:
        result = replace(result, generalisation=generalisation(scape, tests))
    states = StateMap(scape)
    rates = _rates(question, run, states, quiet)
    yield (result := replace(result, rates=rates))
    network = rates.network
    if question.objective == "best_validation":
        name = next(iter(tests))
        network = with_scores(network, held_out_scores(scape, {name: tests[name]})[name])
    plan = optimal_schedule(network, question.budget, question.objective)
    yield (result := replace(result, plan=plan))
    for measured in _measured(question, run, states, plan, quiet):
        yield (result := replace(result, runs=(*result.runs, measured)))
    yield replace(result, finished=True)


def _rates(question: Question, run: RunDirectory, states: StateMap, quiet: bool) -> TransitionRates:
    counts: list[JumpCounts] = []
    effort = question.effort
    with tracked(len(question.batch_sizes), "jumps between basins", quiet) as tracker:
        for size in question.batch_sizes:
            name = f"jumps-B{size}"
            if not run.has(name):
                tracker.report(name)(0, 1)
                found = count_jumps(
                    question.sgd(size),
                    states.landscape,
                    effort.paths,
                    looks=effort.looks,
                    horizon=question.plan.settings.horizon,
                    target=effort.paths,
                    seed=question.seed,
                    memory=effort.memory,
                    states=states,
                )
                write_counts(run, name, found)
            counts.append(read_counts(size, *run.read_chunk(name)))
            tracker.finish(name)
    sgd = question.sgd(question.batch_sizes[0])
    return rates_from_counts(states.landscape, sgd, counts, draws=effort.draws, seed=question.seed)


def _measured(
    question: Question, run: RunDirectory, states: StateMap, plan: SchedulePlan, quiet: bool
) -> Iterator[MeasuredRun]:
    """SGD under each schedule worth showing, one after the other."""
    chosen = schedules_to_run(plan, question.effort.rivals)
    origins = spread_over(plan.start, question.effort.runs, question.seed)
    with tracked(len(chosen), "schedules", quiet) as tracker:
        for k, schedule in enumerate(chosen):
            name = f"run-{k}"
            pieces = cut(schedule.stages, question.budget, question.effort.run_looks)
            if not run.has(name):
                found = follow(
                    question.sgd(pieces[0].batch_size),
                    states,
                    origins,
                    pieces,
                    question.seed,
                    f"schedule/{schedule.name}",
                    tracker.report(schedule.name),
                )
                run.write_chunk(name, {"states": found}, {"name": schedule.name})
            arrays, _ = run.read_chunk(name)
            tracker.finish(schedule.name)
            yield MeasuredRun(schedule, pieces, arrays["states"])


def schedules_to_run(plan: SchedulePlan, rivals: bool = True) -> list[Schedule]:
    """The best one, the best that grows and the best constant one.

    With `rivals` the best that shrinks, and every constant one, too.
    """
    chosen = [plan.best, plan.growing]
    if rivals:
        constant = [s for s in plan.rivals if len(set(s.batch_sizes)) == 1]
        chosen += [s for s in plan.rivals if s.name.endswith("shrinking")][:1]
        chosen += sorted(constant, key=lambda s: s.batch_sizes[0])
    else:
        chosen.append(plan.constant)
    distinct: dict[tuple[Stage, ...], Schedule] = {}
    for schedule in chosen:
        distinct.setdefault(schedule.stages, schedule)  # one schedule may have several names
    return list(distinct.values())


def spread_over(law: Sequence[float], paths: int, seed: int) -> np.ndarray:
    """State (paths,) in which each path starts: shares as even as whole numbers allow."""
    ends = np.cumsum(np.asarray(law)) * paths
    points = np.arange(paths) + generator(seed, "schedule-starts").random()
    return np.minimum(np.searchsorted(ends, points), int(np.flatnonzero(np.asarray(law) > 0)[-1]))


def cut(stages: Sequence[Stage], budget: int, looks: int) -> tuple[Stage, ...]:
    """`stages` cut so that none takes more than about a share 1 / looks of the budget.

    >>> [(p.batch_size, p.steps) for p in cut([Stage(2, 8), Stage(4, 1)], 20, looks=4)]
    [(2, 3), (2, 2), (2, 3), (4, 1)]
    """
    out = []
    for stage in stages:
        pieces = max(1, round(stage.steps * stage.batch_size / budget * looks))
        ends = [round(stage.steps * k / pieces) for k in range(pieces + 1)]
        out += [Stage(stage.batch_size, b - a) for a, b in pairwise(ends) if b > a]
    return tuple(out)


def follow(
    sgd: SGD,
    states: StateMap,
    origins: np.ndarray,
    pieces: Sequence[Stage],
    seed: int,
    stream: str,
    progress: Progress | None = None,
) -> np.ndarray:
    """State of each path at the start and after each piece: (pieces + 1, paths)."""
    x0 = np.array([states.landscape.minima[k].x for k in origins])
    state = start(sgd, x0, len(x0), seed, stream)
    out = [np.asarray(origins)]
    for k, piece in enumerate(pieces):
        state = advance(replace(sgd, batch_size=piece.batch_size), state, piece.steps)
        out.append(states(state.x))
        if progress is not None:
            progress(k + 1, len(pieces))
    return np.stack(out)
