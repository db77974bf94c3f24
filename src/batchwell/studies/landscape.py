"""The landscape of a loss, where SGD goes in it, and the batch-size schedule that gets it there."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import runs
from ..errors import InputError, one_of, positive, require, whole
from ..loss import StochasticLoss
from ..metastable import OBJECTIVES
from ..report import document
from ..report.landscape import LandscapeResult, answer, numbers, page
from ..runs import RunDirectory
from ..sources import Subject
from .network import FULL, Question, answers, middle_sizes, search
from .plan import Plan, resolve, versions

RUNS_PER_PATH = 12  # paths under each schedule, for each path from a minimum whose jumps count


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


def landscape_study(
    what: str | Path | StochasticLoss,
    out: str | Path | None = None,
    *,
    code: str | Path | None = None,
    learning_rate: float | None = None,
    batch_sizes: Sequence[int] | None = None,
    starts: int | None = None,
    budget: int | None = None,
    objective: str = "flattest",
    tests: Mapping[str, StochasticLoss] | None = None,
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
    code
        Python file with the loss that a settings file names; no other code is ever run.
    learning_rate, batch_sizes, starts, budget
        By default the problem's; `budget` is the number of examples that schedules may use.
    objective
        Where schedules are to end: in the quarter of the minima that is "flattest", of
        "lowest_loss", or of "best_validation" by the first of the `tests`.
    tests
        Held-out scores of a minimum, by name, smaller is better; by default the problem's.
    paths
        Paths from each minimum whose jumps are counted; twelve times as many (at least 96) run
        each schedule.
    horizon
        Longest path in SGD steps.
    resume, quiet
        Go on with what an earlier run of the same settings finished; show no progress.

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
    given = {"starts": starts, "examples": budget, "horizon": horizon}
    question = _question(what, code, learning_rate, batch_sizes, paths, {**given, "seed": seed})
    if tests is not None:
        subject = replace(question.plan.subject, tests=tests)
        question = replace(question, plan=replace(question.plan, subject=subject))
    question = replace(question, objective=_objective(objective, question.plan.subject))
    plan = question.plan
    plan.check()
    folder = Path(out) if out is not None else Path("runs") / f"{plan.subject.name}-landscape"
    record = _record(question, _command(question, what, code, folder))
    run = runs.create(folder, record, resume)
    return LandscapeStudy(_carry_out(question, run, record, quiet), folder)


def _question(
    what: str | Path | StochasticLoss,
    code: str | Path | None,
    learning_rate: float | None,
    batch_sizes: Sequence[int] | None,
    paths: int,
    given: Mapping[str, Any],
) -> Question:
    subject, settings = resolve(what, code, {})
    rate = positive(
        "learning_rate", settings.learning_rates[-1] if learning_rate is None else learning_rate
    )
    sizes = middle_sizes(settings.batch_sizes) if batch_sizes is None else batch_sizes
    distinct = tuple(sorted({whole("batch_sizes", b) for b in sizes}))
    require(len(distinct) > 1, "batch_sizes", sizes, "must name at least two batch sizes")
    least = {"examples": distinct[-1], "horizon": 64, "seed": 0}
    changes: dict[str, Any] = {
        key: whole("budget" if key == "examples" else key, value, least.get(key, 1))
        for key, value in given.items()
        if value is not None
    }
    changes |= {"learning_rates": [rate], "batch_sizes": list(distinct), "growing": []}
    paths = whole("paths", paths, 2)
    effort = replace(FULL, paths=paths, runs=max(FULL.runs, RUNS_PER_PATH * paths))
    plan = Plan(subject, settings.model_copy(update=changes))
    whole("budget", plan.settings.examples, distinct[-1])
    return Question(plan, rate, distinct, effort)


def _objective(objective: str, subject: Subject) -> str:
    one_of("objective", objective, OBJECTIVES)
    if objective == "best_validation" and not subject.tests:
        raise InputError(
            "objective",
            objective,
            f"needs held-out examples, and {subject.name!r} has none: give landscape_study tests=, "
            "or choose flattest or lowest_loss",
        )
    return objective


def _command(question: Question, what: Any, code: Any, folder: Path) -> str:
    """What runs this again, every setting spelt out."""
    plan, s = question.plan, question.plan.settings
    name = plan.subject.name if isinstance(what, StochasticLoss) else what
    sizes = ",".join(str(b) for b in question.batch_sizes)
    extra = f" --code {code}" if code is not None else ""
    aim = f"--objective {question.objective} " if question.objective != "flattest" else ""
    return (
        f"batchwell landscape {name}{extra} --learning-rate {question.learning_rate:g} "
        f"--batch-size {sizes} --starts {s.starts} --budget {s.examples} "
        f"{aim}--paths {question.effort.paths} --seed {s.seed} --out {folder}"
    )


def _record(question: Question, command: str) -> dict[str, Any]:
    s = question.plan.settings
    return {
        "command": command,
        "kind": "landscape",
        "problem": question.plan.subject.name,
        "learning_rate": question.learning_rate,
        "batch_sizes": list(question.batch_sizes),
        "sampling": s.sampling,
        "momentum": s.momentum,
        "starts": s.starts,
        "budget": s.examples,
        "objective": question.objective,
        "held_out": ", ".join(question.plan.subject.tests) or "none",
        "paths": question.effort.paths,
        "horizon": s.horizon,
        "seed": s.seed,
        "versions": versions(),
    }


def _carry_out(
    question: Question, run: RunDirectory, record: Mapping[str, Any], quiet: bool
) -> LandscapeResult:
    """Run what is not finished yet; whatever happens, leave a report of what is."""
    began, subject = time.monotonic(), question.plan.subject
    result = LandscapeResult(subject.name, subject.title, record, question.budget)
    try:
        scape, saddles, crossings = search(question.plan, run, question, quiet)
        result = replace(result, landscape=scape, saddles=saddles, crossings=crossings)
        for further in answers(question, run, result, quiet):
            result = further
    finally:
        result = replace(result, seconds=round(time.monotonic() - began, 1))
        run.write_text("estimates.json", json.dumps(numbers(result), indent=1))
        run.write_text("report.html", document.render(page(result)))
    return result
