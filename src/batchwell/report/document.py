"""A report as data, and the data as one self-contained HTML page.

A `Document` is an answer in plain words, then sections of figures and tables. What a page is about
decides its module here (`study`, and others); how it looks is decided in this one, its template and
style. The page loads nothing: style and scripts are inlined, figures are inline SVG, and a content
security policy forbids any request, so that not even a mistake here could make one.

>>> table = Table("Steps until |x| = 1", ("B", "steps"), (("1", "560"), ("2", "31,000")))
>>> page = Document(
...     "ou", "Leaving a well", "SGD leaves.", (Section("exit", "Exit", tables=(table,)),)
... )
>>> "<strong>Table 1.</strong> Steps until |x| = 1" in render(page)
True
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any

from markupsafe import Markup

from .. import runs
from ..estimate import Estimate
from . import svg
from .drawing import Figure
from .references import BIBLIOGRAPHY
from .wording import estimate, number, whole

_NUMERIC = (*"0123456789<>−+∞", "more than", "less than")


@dataclass(frozen=True)
class Table:
    """A table of texts; the first `heads` columns name the row."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    heads: int = 1

    def is_text(self, column: int) -> bool:
        """Whether a column holds words and not numbers, and so reads best from the left."""
        if column < self.heads or len(self.columns) < 3:
            return True
        return not any(row[column].startswith(_NUMERIC) for row in self.rows)


def pairs(caption: str, values: Mapping[str, str]) -> Table:
    """A two-column table of names and values."""
    return Table(caption, ("name", "value"), tuple(values.items()))


@dataclass(frozen=True)
class Section:
    """One section of a page, in the order of what is shown.

    Attributes
    ----------
    key, title
        Anchor and heading.
    lead
        What the reader has to know first, in a sentence or two.
    cites
        Keys of `BIBLIOGRAPHY`; the page numbers them in the order in which they are cited.
    figure
        Panels with a caption.
    verdicts
        Mappings with ``question``, ``reason``, either ``verdict`` (a text) or ``uses`` (a verdict
        for each use, shown as a table) and, if there are any, ``numbers``.
    notes
        Sentences, as a list.
    command
        How to run it again.
    tables, long_tables
        Tables of this section; long ones are gathered in a section of their own near the end.
    widget
        An interactive part: elements made by `svg.tag`, brought to life by a script of the page.
    absent
        Printed instead of all the rest: why there is nothing to show.
    """

    key: str
    title: str
    lead: str = ""
    cites: tuple[str, ...] = ()
    figure: Figure | None = None
    verdicts: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    command: str = ""
    tables: tuple[Table, ...] = ()
    long_tables: tuple[Table, ...] = ()
    widget: Markup | None = None
    absent: str = ""


@dataclass(frozen=True)
class Document:
    """A page: the answer first, then its sections.

    Attributes
    ----------
    name, title, description
        Of what is reported; `name` is short, the others are shown large.
    answer
        The answer in one paragraph (several: separated by empty lines) of plain words.
    sections
        In order; the long tables go before the last of them.
    facts
        One line about the size of the work and who made it.
    glance
        A small table right under the answer.
    fine
        Small print under it: what the signs mean.
    unfinished
        What is still missing, and the command that goes on; shown as a banner.
    scripts
        JavaScript of the page's widgets. The page must be complete without it.
    """

    name: str
    title: str
    answer: str
    sections: tuple[Section, ...]
    description: str = ""
    facts: str = ""
    glance: Table | None = None
    fine: str = ""
    unfinished: tuple[str, str] | None = None
    scripts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """A section with the numbers of its citations, of its tables and of its tables elsewhere."""

    section: Section
    cites: tuple[int, ...] = ()
    panels: Sequence[tuple[str, Sequence[tuple[str, Markup]]]] = ()
    tables: Sequence[tuple[int, Table]] = ()
    elsewhere: tuple[int, ...] = ()


def cited(document: Document) -> list[str]:
    """Keys of the bibliography in the order in which the page cites them."""
    keys = [key for section in document.sections if not section.absent for key in section.cites]
    return list(dict.fromkeys(keys))


def parts(document: Document) -> list[Part]:
    """All sections with their numbers; the long tables gathered before the last section."""
    numbers = {key: k for k, key in enumerate(cited(document), 1)}
    *before, last = document.sections
    counter = count(1)
    here = {s.key: [(next(counter), t) for t in s.tables] for s in before}
    long = {s.key: [(next(counter), t) for t in s.long_tables] for s in document.sections}
    here[last.key] = [(next(counter), t) for t in last.tables]
    gathered = [pair for found in long.values() for pair in found]
    out = [
        Part(
            section,
            tuple(sorted({numbers[key] for key in section.cites if key in numbers})),
            svg.rendered(section.figure) if section.figure else [],
            here[section.key],
            tuple(n for n, _ in long[section.key]),
        )
        for section in document.sections
    ]
    if gathered:
        out.insert(-1, Part(Section("numbers", "All numbers"), tables=gathered))
    return out


def verdict_table(verdicts: Sequence[Mapping[str, Any]]) -> Table | None:
    """Verdicts by use, a row a case; None where there is no case with several uses."""
    uses = list(dict.fromkeys(use for v in verdicts for use in v.get("uses", ())))
    if not uses:
        return None
    rows = [
        (v.get("question", ""), *(v.get("uses", {}).get(use, "not judged") for use in uses))
        for v in verdicts
    ]
    return Table("The diffusion may be trusted for", ("case", *uses), tuple(rows))


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


def render(document: Document) -> str:
    """The page as one HTML text; all texts are escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(
        legend_symbol=svg.legend_symbol,
        numbers_text=numbers_text,
        interval=interval,
        verdict_table=verdict_table,
    )
    scripts = (_resource("page.js"), *document.scripts)
    return environment.from_string(_resource("document.html")).render(
        page=document,
        paragraphs=[text for text in document.answer.split("\n\n") if text.strip()],
        parts=parts(document),
        references=[BIBLIOGRAPHY[key] for key in cited(document)],
        style=Markup(_resource("page.css")),
        scripts=[Markup(script) for script in scripts],
        policy=" ".join(f"'{_hash(script)}'" for script in scripts),
    )


def write(document: Document, path: str | os.PathLike[str]) -> Path:
    """Write the page to `path`: after a crash the old page is there or the new one, never half.

    Raises
    ------
    InputError
        The place cannot be written to.
    RunError
        The disk is full.
    """
    target = Path(path)
    runs.write_atomic(target, render(document).encode(), "report")
    return target
