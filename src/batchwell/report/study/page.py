"""A study's result as a page: its sections in the order of the roster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ...results import StudyResult
from .. import document
from ..document import Document
from ..wording import counted, duration, listing
from . import citations, figures, reading, sections, tables
from .answer import answer

LEADS = {
    "escape": "A run starts at a minimum and is watched until gradient flow from where it is leads "
    "to another one. The mean number of steps until then is the mean exit time. Runs that were "
    "never seen to leave count with the time they were watched.",
    "agreement": "The diffusions replace SGD's minibatch noise by Gaussian noise of the same "
    "covariance. Whether they keep its exit times is an empirical question, asked here cell by "
    "cell.",
    "sharpness": "Sharpness depends on the parametrisation, and the way out of a basin need not be "
    "its sharpest direction.",
    "finals": "All runs of one figure see the same number of examples, so that a larger batch "
    "takes fewer steps.",
    "lines": "Whether two minima are apart, seen from the straight line between them.",
    "minima": "Found from many starts; minima that the problem's symmetries map onto each other "
    "are listed once.",
    "warnings": "",
    "settings": "",
}


FINE = (
    "[a, b] is a 95% interval. “More than” marks a lower limit at 95%: no run was seen to leave. "
    "B is the batch size, η the learning rate, λmax the largest eigenvalue of the loss's Hessian."
)
SHORT_TABLES = {"minima", "warnings", "settings"}  # whose tables stay where they are


def section_of(row: sections.Section, result: StudyResult) -> document.Section:
    """One row of the roster as a section of the page."""
    numbers = row.numbers(result)
    made = tuple(tables.tables_of(row.key, result, numbers))
    here = row.key in SHORT_TABLES
    shown = _absent(row, numbers, made)
    return document.Section(
        row.key,
        row.title,
        LEADS.get(row.key, ""),
        (*row.references, *citations.cited_by(row.key, result)),
        figures.figure_of(row.key, result, numbers),
        getattr(numbers, "verdicts", ()) if row.key == "agreement" else (),
        getattr(numbers, "notes", ()) if row.key == "warnings" else (),
        getattr(numbers, "command", "") if row.key == "settings" else "",
        made if here else (),
        () if here else made,
        absent=shown,
    )


def _absent(row: sections.Section, numbers: Any, made: tuple[document.Table, ...]) -> str:
    if row.key == "settings" and not (made or numbers.command):
        return "No settings were recorded."
    return row.absent if numbers is None else ""


def facts(result: StudyResult) -> str:
    """One line about the size of the study."""
    runs = sum(row.steps.n for row in result.escapes if row.steps is not None)
    found = [
        counted(len(result.minima), "minimum", "minima"),
        counted(len(result.escapes), "escape cell"),
        counted(runs, "run") + " watched",
    ]
    version = result.versions.get("batchwell")
    made = f" Made by Batchwell {version}" if version else " Made by Batchwell"
    return f"{listing(found)}.{made} in {duration(result.seconds)}."


def page(result: StudyResult, network: Document | None = None) -> Document:
    """The page of a result of any kind; unfinished ones carry a banner that says what is missing.

    `network` is the page of the same minima as a network (`report.landscape.page`): its answer and
    its sections, but for its settings, become part of this one.
    """
    result = reading.usable(result)
    missing = "; ".join(reading.missing(result)) or "the last pieces"
    own = [section_of(row, result) for row in sections.SECTIONS]
    texts = [answer(result)]
    if network is not None:
        texts.append(network.answer)
        place = [section.key for section in own].index("minima")
        own[place:place] = [s for s in network.sections if s.key != "settings"]
    return Document(
        result.name,
        result.title,
        "\n\n".join(texts),
        tuple(own),
        result.description,
        facts(result),
        tables.glance(result),
        FINE if result.escapes or result.finals else "",
        None if result.finished else (missing, sections.settings(result).resume),
        network.scripts if network is not None else (),
    )


def render(result: StudyResult, network: Document | None = None) -> str:
    """The whole report of a study as one HTML text (see `page`)."""
    return document.render(page(result, network))


def write(
    result: StudyResult, path: str | os.PathLike[str], network: Document | None = None
) -> Path:
    """Write the report of a study to `path`, all or nothing.

    Raises
    ------
    InputError
        The folder cannot be written to.
    RunError
        The disk is full.
    """
    return document.write(page(result, network), path)
