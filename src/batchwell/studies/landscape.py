"""The landscape of a loss, where SGD goes in it, and the batch-size schedule that gets it there.

Minima and passes first; then jumps between basins at each batch size; the network that they make, and
the schedules that it recommends; then SGD under these schedules, which the network did not see.
Every finished piece is on disk before the next is begun.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np

from .. import __version__, runs
from ..dynamics import SGD
from ..ensemble import advance, start
from ..errors import positive, require, whole
from ..landscape import Landscape, Saddle, generalisation, survey
from ..landscape.generalisation import FEWEST
from ..loss import StochasticLoss, check_at
from ..metastable import (
    JumpCounts,
    Schedule,
    SchedulePlan,
    Stage,
    TransitionRates,
    count_jumps,
    optimal_schedule,
    rates_from_counts,
)
from ..metastable.states import StateMap
from ..problems import PROBLEMS
from ..progress import tracked
from ..report import document
from ..report.landscape import LandscapeResult, MeasuredRun, answer, page
from ..runs import RunDirectory
from ..settings import StudySettings, make_settings, read_settings
from ..sources import Subject, subject_of
from ..streams import generator
from .landscape_store import read_counts, read_survey, survey_arrays, write_counts

VERSIONS = ("jax", "numba", "numpy", "scipy", "scikit-learn")
LOOKS = 8  # of a measured schedule
EXPLORE_STEPS, EXPLORE_EVERY = 1500, 20
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LandscapeStudy:
    """A study of a landscape that ran: its results and where they lie."""

    result: LandscapeResult
    path: Path

    @property
    def answer(self) -> str:
        """The answer in plain words."""
        return answer(self.result)

    @property
    def report(self) -> Path:
        """The self-contained HTML page."""
        return self.path / "report.html"


@dataclass(frozen=True)
class _Plan:
    """What is studied, with which settings."""

    subject: Subject
    learning_rate: float
    batch_sizes: tuple[int, ...]
    starts: int
    budget: int
    paths: int
    horizon: int
    seed: int
    tests: Mapping[str, StochasticLoss]

    def sgd(self, batch_size: int) -> SGD:
        return SGD(self.subject.loss, self.learning_rate, batch_size)

    def check(self) -> None:
        for size in self.batch_sizes:
            self.sgd(size)
        for point in self.points()[:2]:
            check_at(self.subject.loss, point)

    def points(self) -> np.ndarray:
        shape = (self.starts, self.subject.loss.dim)
        return self.subject.start_scale * generator(self.seed, "search-starts").standard_normal(
            shape
        )

    def command(self, what: Any, code: Any, folder: Path) -> str:
        """What runs this again, every setting spelt out."""
        name = self.subject.name if isinstance(what, StochasticLoss) else what
        sizes = ",".join(str(b) for b in self.batch_sizes)
        extra = f" --code {code}" if code is not None else ""
        return (
            f"batchwell landscape {name}{extra} --learning-rate {self.learning_rate:g} "
            f"--batch-size {sizes} --starts {self.starts} --budget {self.budget} "
            f"--paths {self.paths} --seed {self.seed} --out {folder}"
        )

    def record(self, command: str) -> dict[str, Any]:
        versions = {"batchwell": __version__, "python": python_version()}
        versions |= {name: version(name) for name in VERSIONS}
        settings = {
            "kind": "landscape",
            "problem": self.subject.name,
            "learning_rate": self.learning_rate,
            "batch_sizes": list(self.batch_sizes),
            "starts": self.starts,
            "budget": self.budget,
            "paths": self.paths,
            "horizon": self.horizon,
            "seed": self.seed,
        }
        return {"command": command, **settings, "versions": versions}


def landscape_study(
    what: str | Path | StochasticLoss,
    out: str | Path | None = None,
    *,
    code: str | Path | None = None,
    learning_rate: float | None = None,
    batch_sizes: Sequence[int] | None = None,
    starts: int | None = None,
    budget: int | None = None,
    paths: int = 8,
    horizon: int | None = None,
    seed: int = 0,
    resume: bool = False,
    quiet: bool = False,
) -> LandscapeStudy:
    """Minima, passes, rates between basins, and the schedule of batch sizes that pays.

    Parameters
    ----------
    what
        A name of the gallery, a settings file (.toml), or a loss.
    out
        Run directory, by default ``runs/NAME-landscape``.
    learning_rate, batch_sizes, starts, budget
        By default the problem's; `budget` is the number of examples that schedules may use.
    paths
        Paths from each minimum whose jumps are counted; twelve times as many (at least 96) run
        each schedule.
    horizon
        Longest path in SGD steps.

    Raises
    ------
    InputError
        Bad settings or loss: before any work starts.
    RunError
        No isolated minimum (flat directions), or a full disk; what was finished is kept.
    Divergence
        A path left the finite numbers.
    KeyboardInterrupt
        Ctrl-C: after a report of what was finished was written.
    """
    subject, settings = _subject(what, code)
    plan = _plan(
        subject, settings, learning_rate, batch_sizes, starts, budget, paths, horizon, seed
    )
    plan.check()
    folder = Path(out) if out is not None else Path("runs") / f"{subject.name}-landscape"
    record = plan.record(plan.command(what, code, folder))
    return LandscapeStudy(
        _carry_out(plan, runs.create(folder, record, resume), record, quiet), folder
    )


def _subject(
    what: str | Path | StochasticLoss, code: str | Path | None
) -> tuple[Subject, StudySettings]:
    if isinstance(what, StochasticLoss):
        return Subject(what.name, what.name, what), make_settings({})
    toml = Path(what).suffix == ".toml"
    settings = read_settings(what) if toml else make_settings({"problem": str(what)})
    return subject_of(settings, Path(code) if code is not None else None)


def _plan(
    subject: Subject,
    settings: StudySettings,
    learning_rate: float | None,
    batch_sizes: Sequence[int] | None,
    starts: int | None,
    budget: int | None,
    paths: int,
    horizon: int | None,
    seed: int,
) -> _Plan:
    rate = settings.learning_rates[-1] if learning_rate is None else learning_rate
    sizes = batch_sizes
    if sizes is None:
        # The smallest of many batches only shakes, the largest only stay: the middle tells most.
        known = settings.batch_sizes
        sizes = known[1:5] if len(known) > 4 else known
    distinct = tuple(sorted({whole("batch_sizes", b) for b in sizes}))
    require(len(distinct) > 1, "batch_sizes", sizes, "must name at least two batch sizes")
    examples = whole("budget", settings.examples if budget is None else budget, distinct[-1])
    return _Plan(
        subject,
        positive("learning_rate", rate),
        distinct,
        whole("starts", settings.starts if starts is None else starts),
        examples,
        whole("paths", paths, 2),
        whole("horizon", settings.horizon if horizon is None else horizon, 64),
        whole("seed", seed, 0),
        PROBLEMS[subject.name]().tests if settings.problem == subject.name else {},
    )


def _carry_out(
    plan: _Plan, run: RunDirectory, record: Mapping[str, Any], quiet: bool
) -> LandscapeResult:
    """Run what is not finished yet; whatever happens, leave a report of what is."""
    began = time.monotonic()
    result = LandscapeResult(plan.subject.name, plan.subject.title, record, plan.budget)
    try:
        scape, saddles, crossings = _survey(plan, run, quiet)
        result = replace(result, landscape=scape, saddles=saddles, crossings=crossings)
        if plan.tests and len(scape.minima) >= FEWEST:
            result = replace(result, generalisation=generalisation(scape, plan.tests))
        rates = _rates(plan, run, scape, quiet)
        result = replace(result, rates=rates)
        found = optimal_schedule(rates.network, plan.budget)
        result = replace(result, plan=found)
        for measured in _measured(plan, run, scape, rates, found, quiet):
            result = replace(result, runs=(*result.runs, measured))
        result = replace(result, finished=True)
    finally:
        result = replace(result, seconds=round(time.monotonic() - began, 1))
        run.write_text("report.html", document.render(page(result)))
    return result


def _survey(
    plan: _Plan, run: RunDirectory, quiet: bool
) -> tuple[Landscape, tuple[Saddle, ...], dict[tuple[int, int], int]]:
    if not run.has("survey"):
        stages = ("minima from random starts", "exploration by SGD", "saddles")
        with tracked(len(stages), "landscape", quiet) as tracker:

            def report(stage: str, done: int, total: int) -> None:
                tracker.report(stage)(done, total)

            small = plan.batch_sizes[min(1, len(plan.batch_sizes) - 1)]
            found = survey(
                plan.sgd(small),
                plan.points(),
                plan.subject.symmetry,
                steps=EXPLORE_STEPS,
                every=EXPLORE_EVERY,
                seed=plan.seed,
                progress=report,
            )
        run.write_chunk("survey", *survey_arrays(found))
    return read_survey(plan.subject.loss, plan.subject.symmetry, *run.read_chunk("survey"))


def _rates(plan: _Plan, run: RunDirectory, scape: Landscape, quiet: bool) -> TransitionRates:
    counts: list[JumpCounts] = []
    with tracked(len(plan.batch_sizes), "jumps between basins", quiet) as tracker:
        for size in plan.batch_sizes:
            name = f"jumps-B{size}"
            if not run.has(name):
                tracker.report(name)(0, 1)
                found = count_jumps(
                    plan.sgd(size),
                    scape,
                    plan.paths,
                    looks=12,
                    horizon=plan.horizon,
                    target=plan.paths,
                    seed=plan.seed,
                )
                write_counts(run, name, found)
            counts.append(read_counts(size, *run.read_chunk(name)))
            tracker.finish(name)
    return rates_from_counts(scape, plan.sgd(plan.batch_sizes[0]), counts, seed=plan.seed)


def _measured(
    plan: _Plan,
    run: RunDirectory,
    scape: Landscape,
    rates: TransitionRates,
    found: SchedulePlan,
    quiet: bool,
) -> Any:
    """SGD under each schedule worth showing, one after the other."""
    chosen = schedules_to_run(found)
    origins = spread_over(found.start, max(96, 12 * plan.paths), plan.seed)
    with tracked(len(chosen), "schedules", quiet) as tracker:
        for k, schedule in enumerate(chosen):
            name = f"run-{k}"
            pieces = cut(schedule.stages, plan.budget)
            if not run.has(name):
                states = follow(
                    plan.sgd(pieces[0].batch_size),
                    scape,
                    origins,
                    pieces,
                    plan.seed,
                    f"schedule/{schedule.name}",
                    tracker.report(schedule.name),
                )
                run.write_chunk(name, {"states": states}, {"name": schedule.name})
            arrays, _ = run.read_chunk(name)
            tracker.finish(schedule.name)
            yield MeasuredRun(schedule, pieces, arrays["states"])


def schedules_to_run(plan: SchedulePlan) -> list[Schedule]:
    """The best one, the best that grows, the best that shrinks, and every constant one."""
    constant = [s for s in plan.rivals if len(set(s.batch_sizes)) == 1]
    constant.sort(key=lambda s: s.batch_sizes[0])
    shrinking = [s for s in plan.rivals if s.name.endswith("shrinking")][:1]
    chosen = [plan.best, plan.growing, *shrinking, *constant]
    return list({s.name: s for s in chosen}.values())


def spread_over(law: Sequence[float], paths: int, seed: int) -> np.ndarray:
    """State (paths,) in which each path starts: shares as even as whole numbers allow."""
    ends = np.cumsum(np.asarray(law)) * paths
    points = np.arange(paths) + generator(seed, "schedule-starts").random()
    return np.minimum(np.searchsorted(ends, points), int(np.flatnonzero(np.asarray(law) > 0)[-1]))


def cut(stages: Sequence[Stage], budget: int, looks: int = LOOKS) -> tuple[Stage, ...]:
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
    scape: Landscape,
    origins: np.ndarray,
    pieces: Sequence[Stage],
    seed: int,
    stream: str,
    progress: Progress | None = None,
) -> np.ndarray:
    """State of each path at the start and after each piece: (pieces + 1, paths)."""
    x0 = np.array([scape.minima[k].x for k in origins])
    states, state = StateMap(scape), start(sgd, x0, len(x0), seed, stream)
    out = [np.asarray(origins)]
    for k, piece in enumerate(pieces):
        state = advance(replace(sgd, batch_size=piece.batch_size), state, piece.steps)
        out.append(states(state.x))
        if progress is not None:
            progress(k + 1, len(pieces))
    return np.stack(out)
