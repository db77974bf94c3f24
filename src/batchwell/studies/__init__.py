"""The main job: from a loss and data to how long SGD stays where, by batch size.

First the minima; then escapes of SGD and of its diffusions from chosen minima; where SGD ends, by
schedule; and a report. Every finished piece is on disk before the next is asked for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import runs
from ..errors import Divergence
from ..landscape import Landscape
from ..loss import StochasticLoss
from ..report import answer, render
from ..report.landscape import LandscapeResult, numbers, page
from ..report.landscape import answer as answer_of_network
from ..results import StudyResult
from ..settings import StudySettings
from .cells import (
    escape_row,
    failed_escape,
    failed_final,
    failed_verdict,
    final_row,
    line_rows,
    minimum_rows,
    verdict_row,
)
from .network import BRIEF, Question, answers, middle_sizes, search
from .plan import Plan, resolve
from .work import read_rows, run_tasks, tasks

__all__ = ["Study", "study"]


@dataclass(frozen=True)
class Study:
    """A study that ran: its results and where they lie."""

    result: StudyResult
    path: Path
    network: LandscapeResult | None = None

    @property
    def answer(self) -> str:
        """The answer in plain words, a paragraph for each point."""
        parts = [answer(self.result)]
        if self.network is not None:
            parts.append(answer_of_network(self.network))
        return "\n\n".join(parts)

    @property
    def report(self) -> Path:
        """The self-contained HTML page."""
        return self.path / "report.html"


def study(
    what: str | Path | StochasticLoss,
    out: str | Path | None = None,
    *,
    code: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    **changes: Any,
) -> Study:
    """Find the minima of a loss, how long SGD stays in them, and where it ends.

    Parameters
    ----------
    what
        A name of the gallery, a settings file (.toml), or a loss.
    out
        Run directory, by default ``runs/NAME`` (``runs/NAME-2``, ... if that is taken; with
        `resume` the last of them).
    code
        Python file with the user's loss, for a settings file that names one; it is executed.
    resume
        Go on with the run in `out`; finished chunks are read, not computed again.
    quiet
        No progress on standard error.
    changes
        Settings that replace those of `what` (keys of `settings.StudySettings`).

    Raises
    ------
    InputError
        Bad settings, data or loss: before any work starts.
    RunError
        The disk is full or failed, or no minimum was found; what was finished is kept.
    KeyboardInterrupt
        Ctrl-C: after a report of what was finished was written.

    Examples
    --------
    >>> import tempfile
    >>> from batchwell import additive, study
    >>> well = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4, "rademacher")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = study(
    ...         well,
    ...         folder,
    ...         quiet=True,
    ...         starts=8,
    ...         learning_rates=[0.3],
    ...         batch_sizes=[1, 2],
    ...         horizon=300,
    ...         paths=8,
    ...         diffusion_paths=4,
    ...         examples=200,
    ...         final_paths=8,
    ...     )
    >>> done.result.finished, len(done.result.escapes)
    (True, 12)
    """
    plan = Plan(*resolve(what, code, changes))
    plan.check()
    folder = Path(out) if out is not None else runs.default_folder(plan.subject.name, resume)
    record = plan.record(_command(what, code, folder))
    run = runs.create(folder, record, resume)
    result, network = _carry_out(plan, run, record, quiet)
    return Study(result, folder, network)


def _command(what: Any, code: Any, folder: Path) -> str:
    if isinstance(what, StochasticLoss):
        return f'batchwell.study(loss, "{folder}")'
    extra = f" --code {code}" if code is not None else ""
    return f"batchwell study {what}{extra} --out {folder}"


def _carry_out(
    plan: Plan, run: runs.RunDirectory, record: dict[str, Any], quiet: bool
) -> tuple[StudyResult, LandscapeResult | None]:
    """Run what is not finished yet; whatever happens, leave a report of what is."""
    began = time.monotonic()
    landscape: Landscape | None = None
    errors: Mapping[str, str] = {}
    finished = False
    notes: tuple[str, ...] = ()
    question = _question(plan)
    net = _network(plan, record, question)
    try:
        landscape, saddles, crossings = search(plan, run, question, quiet)
        errors = run_tasks(run, tasks(plan, landscape), plan.settings.workers, quiet)
        if question is not None:
            net = replace(net, landscape=landscape, saddles=saddles, crossings=crossings)
            try:
                for further in answers(question, run, net, quiet):
                    net = further
            except Divergence as error:
                notes = (f"The network of basins was not finished: {error}.",)
        finished = True
    finally:
        result = _gather(plan, run, landscape, record, errors)
        seconds = round(time.monotonic() - began, 1)
        notes = (*result.notes, *notes)
        result = replace(result, finished=finished, seconds=seconds, notes=notes)
        network = net if question is not None else None
        rows = result.to_dict() | ({"network": numbers(network)} if network else {})
        run.write_text("estimates.json", json.dumps(rows, indent=1))
        run.write_text("report.html", render(result, page(network) if network else None))
    return result, network


def _question(plan: Plan) -> Question | None:
    """Which network of basins is asked for; none with fewer than two batch sizes."""
    sizes = middle_sizes(plan.settings.batch_sizes)
    if not plan.settings.network or len(sizes) < 2:
        return None
    return Question(plan, plan.settings.learning_rates[-1], sizes, BRIEF)


def _network(plan: Plan, record: Mapping[str, Any], question: Question | None) -> LandscapeResult:
    rate = question.learning_rate if question is not None else None
    facts = {"command": record["command"], "learning_rate": rate}
    subject = plan.subject
    return LandscapeResult(subject.name, subject.title, facts, plan.settings.examples)


def _gather(
    plan: Plan,
    run: runs.RunDirectory,
    landscape: Landscape | None,
    record: Mapping[str, Any],
    errors: Mapping[str, str],
) -> StudyResult:
    """All results on disk, as rows."""
    loss, s = plan.subject.loss, plan.settings
    settings = {k: v for k, v in record.items() if k != "versions"}
    source = f"{loss.n} examples" if loss.noise is None else f"{loss.noise.name} noise"
    base = StudyResult(
        name=plan.subject.name,
        title=s.title or plan.subject.title[:1].upper() + plan.subject.title[1:],
        description=f"{loss.dim} parameters, {source}, sampling {s.sampling.replace('_', ' ')}",
        settings={**settings, "n": loss.n, "dim": loss.dim},
        versions=record["versions"],
        notes=_notes(s),
    )
    if landscape is None:
        return base
    escapes, finals = plan.escape_cells(landscape), plan.final_cells(landscape)
    judged = plan.verdict_cells(landscape)

    def rows(cells: list[Any], row: Any, failed: Any) -> tuple[Any, ...]:
        return read_rows(run, cells, errors, partial(row, plan, landscape), partial(failed, plan))

    return replace(
        base,
        minima=minimum_rows(plan, landscape),
        notes=(*base.notes, *landscape.notes),
        search={
            "starts": landscape.starts,
            "undecided": landscape.undecided,
            "runaways": len(landscape.runaways),
            "symmetry": landscape.symmetry.name,
            "cells": len(escapes) + len(finals),
        },
        escapes=rows(escapes, escape_row, failed_escape),
        finals=rows(finals, final_row, failed_final),
        verdicts=rows(judged, verdict_row, failed_verdict),
        lines=line_rows(plan, landscape),
    )


def _notes(settings: StudySettings) -> tuple[str, ...]:
    notes = []
    if settings.sampling == "reshuffle":
        notes.append(
            "Reshuffled epochs have no diffusion at temperature eta/B: their noise almost cancels "
            "over an epoch. Only SGD itself was simulated."
        )
    if settings.momentum and 2 in settings.diffusion_orders:
        notes.append("The diffusion of order 2 is not known with momentum: it was left out.")
    return tuple(notes)
