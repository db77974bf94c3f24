"""Which methods a study used, section by section: what its page cites."""

from __future__ import annotations

from collections.abc import Iterator

from ...estimate import Estimate
from ...results import FinalRow, StudyResult
from . import reading, sections


def _of_final(row: FinalRow) -> Iterator[Estimate]:
    yield from row.shares.values()
    yield from (e for e in (row.stayed, row.sharpness, row.loss) if e is not None)


# What an estimate's `method` says, and whom to cite for it.
_METHODS = {
    "gamma interval": ("garwood", "epstein-sobel"),
    "t interval": ("student",),
    "Wilson": ("wilson",),
}


def cited_by(section: str, result: StudyResult) -> list[str]:
    """What one section of the page cites beyond its own row, given what the result holds."""
    rules = {"escape": _escape, "agreement": _agreement, "finals": _finals, "minima": _minima}
    return rules[section](result) if section in rules else []


def _by_method(methods: set[str]) -> list[str]:
    return [
        key
        for mark, found in _METHODS.items()
        if any(mark in method for method in methods)
        for key in found
    ]


def _escape(result: StudyResult) -> list[str]:
    diffusions = [p for p in reading.processes(result) if p.startswith("diffusion")]
    keys = ["li-tai-e", "milstein-tretyakov"] if diffusions else []
    methods = {row.steps.method for row in result.escapes if row.steps is not None}
    return [*keys, *_by_method(methods), "bogacki-shampine", "verwer", "salmon", "blackman-vigna"]


def _agreement(result: StudyResult) -> list[str]:
    numbers = sections.agreement(result)
    return ["dunn"] if numbers is not None and len(numbers.comparisons) > 1 else []


def _finals(result: StudyResult) -> list[str]:
    methods = {e.method for row in result.finals for e in _of_final(row)}
    growing = ["smith"] if any(row.growing for row in result.finals) else []
    joint = ["dunn"] if growing else []
    streams = ["bogacki-shampine", "verwer", "salmon", "blackman-vigna"]
    return [*_by_method(methods), *growing, *joint, *streams]


def _minima(result: StudyResult) -> list[str]:
    return ["bogacki-shampine", "verwer"] if result.minima else []
