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
from ..errors import require
from ..landscape import Landscape
from ..loss import StochasticLoss
from ..report import answer, render
from ..results import StudyResult
from ..settings import StudySettings, make_settings, read_settings
from ..sources import Subject, subject_of
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
from .plan import Plan
from .work import minima, read_rows, run_tasks, tasks

__all__ = ["Study", "study"]


@dataclass(frozen=True)
class Study:
    """A study that ran: its results and where they lie."""

    result: StudyResult
    path: Path

    @property
    def answer(self) -> str:
        """The answer in plain words, a paragraph for each point."""
        return answer(self.result)

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
    subject, settings = _resolve(what, code, changes)
    plan = Plan(subject, settings)
    plan.check()
    folder = Path(out) if out is not None else runs.default_folder(subject.name, resume)
    record = plan.record(_command(what, code, folder))
    run = runs.create(folder, record, resume)
    return Study(_carry_out(plan, run, record, quiet), folder)


def _resolve(
    what: str | Path | StochasticLoss, code: str | Path | None, changes: Mapping[str, Any]
) -> tuple[Subject, StudySettings]:
    if isinstance(what, StochasticLoss):
        require(code is None, "code", code, "goes with a settings file, not with a loss")
        return Subject(what.name, what.name, what), make_settings(changes)
    if Path(what).suffix == ".toml":
        settings = read_settings(what)
    else:
        settings = make_settings({"problem": str(what)})
    merged = make_settings({**settings.model_dump(exclude_unset=True), **changes})
    return subject_of(merged, Path(code) if code is not None else None)


def _command(what: Any, code: Any, folder: Path) -> str:
    if isinstance(what, StochasticLoss):
        return f'batchwell.study(loss, "{folder}")'
    extra = f" --code {code}" if code is not None else ""
    return f"batchwell study {what}{extra} --out {folder}"


def _carry_out(
    plan: Plan, run: runs.RunDirectory, record: dict[str, Any], quiet: bool
) -> StudyResult:
    """Run what is not finished yet; whatever happens, leave a report of what is."""
    began = time.monotonic()
    landscape: Landscape | None = None
    errors: Mapping[str, str] = {}
    finished = False
    try:
        landscape = minima(plan, run, quiet)
        errors = run_tasks(run, tasks(plan, landscape), plan.settings.workers, quiet)
        finished = True
    finally:
        result = _gather(plan, run, landscape, record, errors)
        seconds = round(time.monotonic() - began, 1)
        result = replace(result, finished=finished, seconds=seconds)
        run.write_text("estimates.json", json.dumps(result.to_dict(), indent=1))
        run.write_text("report.html", render(result))
    return result


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
