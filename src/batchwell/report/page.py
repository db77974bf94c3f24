"""Numbers and figures to one self-contained HTML page, through a template that escapes everything.

The page loads nothing: style and script are inlined, figures are inline SVG, and a content security
policy forbids any request, so that not even a mistake here could make one.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..errors import RunError
from ..estimate import Estimate
from ..results import StudyResult
from . import figures, reading, references, sections, svg, tables
from .answer import answer
from .wording import counted, duration, estimate, listing, number, whole

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


NUMBERS = "numbers"  # key of the section that holds the long tables
LAST = "settings"  # the long tables come right before this section
SHORT_TABLES = {"minima", "warnings", "settings"}  # whose tables stay where they are


@dataclass(frozen=True)
class Part:
    """One section as the template sees it; tables carry their numbers.

    `elsewhere` are the numbers of this section's tables among the long ones.
    """

    key: str
    title: str
    lead: str = ""
    cites: tuple[int, ...] = ()
    numbers: Any = ()
    figure: figures.Figure | None = None
    panels: Sequence[tuple[str, Sequence[tuple[str, Markup]]]] = ()
    tables: Sequence[tuple[int, tables.Table]] = ()
    elsewhere: tuple[int, ...] = ()
    absent: str = ""


def parts(result: StudyResult) -> list[Part]:
    """All sections of the roster, and the long tables gathered in one of their own."""
    numbers = {row.key: row.numbers(result) for row in sections.SECTIONS}
    cited = references.numbered(result)
    here, long = _numbered(result, numbers)
    out = []
    for row in sections.SECTIONS:
        if row.key == LAST and long:
            gathered = [pair for found in long.values() for pair in found]
            out.append(Part(NUMBERS, "All numbers", tables=gathered))
        figure = figures.figure_of(row.key, result, numbers[row.key])
        keys = [*row.references, *references.cited_by(row.key, result)]
        out.append(
            Part(
                row.key,
                row.title,
                LEADS.get(row.key, ""),
                tuple(sorted({cited[key] for key in keys if key in cited})),
                numbers[row.key],
                figure,
                svg.rendered(figure) if figure else [],
                here.get(row.key, []),
                tuple(n for n, _ in long.get(row.key, [])),
                row.absent,
            )
        )
    return out


Numbered = dict[str, list[tuple[int, tables.Table]]]


def _numbered(result: StudyResult, numbers: Mapping[str, Any]) -> tuple[Numbered, Numbered]:
    """Tables that stay in their section and long ones, numbered in the order of the page."""
    made = {key: tables.tables_of(key, result, found) for key, found in numbers.items()}
    before = [key for key in made if key in SHORT_TABLES and key != LAST]
    order = [*before, *(key for key in made if key not in SHORT_TABLES), LAST]
    here: Numbered = {}
    long: Numbered = {}
    count = 0
    for key in order:
        for table in made[key]:
            count += 1
            (here if key in SHORT_TABLES else long).setdefault(key, []).append((count, table))
    return here, long


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


def numbers_text(values: Any) -> str:
    """The numbers behind a verdict as one line."""
    if not isinstance(values, Mapping):
        return _short(values)
    return "; ".join(f"{str(k).replace('_', ' ')}: {_short(v)}" for k, v in values.items())


def interval(text: str) -> tuple[str, str] | None:
    """A number and its interval, if that is what a cell's text is.

    >>> interval("312 [295, 330]"), interval("failed")
    (('312', '[295, 330]'), None)
    """
    found = re.fullmatch(r"([^\[\]]+) (\[[^\[\]]+\])", text)
    return (found[1], found[2]) if found else None


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        if {"value", "interval", "unit"} <= set(value):
            return estimate(Estimate.from_dict(value))
        return ", ".join(f"{k} {_short(v)}" for k, v in value.items())
    if isinstance(value, Estimate):
        return estimate(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_short(v) for v in value) + "]"
    if isinstance(value, int) and not isinstance(value, bool):
        return whole(value)
    return number(value)


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Hash of an inline script, for the content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def render(result: StudyResult) -> str:
    """The whole report as one HTML text.

    Works for results of any kind: unfinished ones carry a banner that says what is missing.
    """
    from jinja2 import Environment, StrictUndefined

    result = reading.usable(result)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(
        legend_symbol=svg.legend_symbol, numbers_text=numbers_text, interval=interval
    )
    script = _resource("page.js")
    return environment.from_string(_resource("template.html")).render(
        result=result,
        answer=answer(result),
        glance=tables.glance(result),
        facts=facts(result),
        missing=reading.missing(result),
        setup=sections.settings(result),
        parts=parts(result),
        references=[references.BIBLIOGRAPHY[key] for key in references.used(result)],
        style=Markup(_resource("page.css")),
        script=Markup(script),
        script_hash=_hash(script),
    )


def write(result: StudyResult, path: str | os.PathLike[str]) -> Path:
    """Write the report to `path`, all or nothing.

    The text goes to a temporary name beside `path`, is synced to disk, and only then takes the name:
    a crash leaves the old report or the new one, never half of one.

    Raises
    ------
    RunError
        The folder cannot be written to, or the disk is full.
    """
    target = Path(path)
    text = render(result)
    try:
        _replace(target, text.encode())
    except OSError as error:
        raise RunError(f"report {target}: {error.strerror or error}") from error
    return target


def _replace(target: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(target)
        _sync_folder(target.parent)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a crash, where the system can sync folders."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
