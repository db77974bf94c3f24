"""Exit methods side by side: one table, and whether the answers agree pairwise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import ArrayLike

from ..domain import Domain
from ..dynamics import Process
from ..errors import BatchwellError, known_options, one_of, require
from ..estimate import Estimate
from .regime import check_start
from .roster import EXIT_METHODS
from .splitting import UNRELIABLE, second_opinion

# Two answers disagree beyond this many joint errors: chance 6e-5 each way for Gaussian errors.
LIMIT = 4.0


@dataclass(frozen=True)
class Pair:
    """Agreement of two methods: their distance in joint errors of the logarithm."""

    first: str
    second: str
    distance: float

    @property
    def agree(self) -> bool:
        """Whether they lie within 4 joint errors."""
        return self.distance <= LIMIT


@dataclass(frozen=True)
class ExitComparison:
    """Answers of several exit methods to one question.

    Attributes
    ----------
    answers
        Method -> its estimate, in SGD steps.
    refused
        Method -> why it gave no answer.
    pairs
        Every two answers and their distance.
    """

    answers: dict[str, Estimate]
    refused: dict[str, str]
    pairs: tuple[Pair, ...]

    @property
    def agree(self) -> bool:
        """Whether all answers agree pairwise."""
        return all(pair.agree for pair in self.pairs)

    @property
    def verdict(self) -> str:
        """One sentence."""
        if len(self.answers) < 2:
            return "fewer than two methods answered: nothing to compare"
        bad = [f"{p.first} and {p.second} ({p.distance:.1f})" for p in self.pairs if not p.agree]
        if not bad:
            return f"all {len(self.answers)} methods agree pairwise within {LIMIT:g} joint errors"
        return "disagree, in joint errors: " + ", ".join(bad)

    def table(self) -> list[dict[str, Any]]:
        """JSON-safe rows: one per method, with its largest distance from the others."""
        rows = []
        for name, answer in self.answers.items():
            mine = [p.distance for p in self.pairs if name in (p.first, p.second)]
            worst = max(mine) if mine else None
            rows.append({**answer.to_dict(), "method": name, "how": answer.method, "worst": worst})
        return rows + [{"method": k, "refused": why} for k, why in self.refused.items()]


def compare_exit_times(
    process: Process,
    start: ArrayLike,
    domain: Domain,
    methods: Sequence[str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> ExitComparison:
    """Run every method that applies (or `methods`) and compare the answers pairwise.

    A method that refuses the problem is kept with its reason. `options` maps a method's name to its
    options.

    Raises
    ------
    InputError
        Unknown method, or a start and domain that no method accepts.

    Examples
    --------
    >>> from batchwell import SGD, additive, half_space
    >>> sgd = SGD(additive(lambda x: (x @ x - 1) ** 2 / 4), learning_rate=0.1)
    >>> out = compare_exit_times(sgd, [-1.0], half_space([1.0], 1.0), ["law", "sharp"])
    >>> [row["method"] for row in out.table()], out.agree
    (['law', 'sharp'], True)
    """
    names = list(EXIT_METHODS) if methods is None else list(methods)
    asked = options or {}
    require(not isinstance(methods, str), "methods", methods, "must be a list of names")
    for name in (*names, *asked):
        one_of("methods", name, EXIT_METHODS)
    for name, theirs in asked.items():
        known_options(theirs, EXIT_METHODS[name].run)
    check_start(process, start, domain)
    answers: dict[str, Estimate] = {}
    refused: dict[str, str] = {}
    for name in names:
        try:
            answers[name] = EXIT_METHODS[name].run(process, start, domain, **asked.get(name, {}))
        except BatchwellError as error:
            refused[name] = str(error)
    if "splitting" in answers:
        answers["splitting"] = _seconded(answers)
    given = list(answers)
    pairs = [
        Pair(a, b, distance(answers[a], answers[b]))
        for i, a in enumerate(given)
        for b in given[i + 1 :]
    ]
    return ExitComparison(answers, refused, tuple(pairs))


def reliable(answer: Estimate) -> bool:
    """Whether an answer may stand for the question: it has an error, and no note takes it back.

    Examples
    --------
    >>> reliable(Estimate(3.0, math.inf, (-math.inf, math.inf), "steps", "law", 0))
    False
    """
    taken_back = any(note == UNRELIABLE or note.endswith("not reliable") for note in answer.notes)
    bounded = math.isinf(answer.value) or all(map(math.isfinite, answer.interval))
    return bounded and not taken_back


# Whose agreement makes a tiny chance reliable: the action alone knows only its logarithm.
SECONDS = ("law", "importance", "sharp", "direct")


def _seconded(answers: Mapping[str, Estimate]) -> Estimate:
    """Splitting's answer, with another method's opinion where its chance is tiny."""
    out = answers["splitting"]
    others = [answers[name] for name in SECONDS if name in answers]
    if UNRELIABLE not in out.notes or not others:
        return out
    kept = tuple(note for note in out.notes if note != UNRELIABLE)
    return second_opinion(replace(out, notes=kept), others[0])


def distance(first: Estimate, second: Estimate) -> float:
    """|log ratio| over the joint error; 0 for two answers of infinity."""
    if not (math.isfinite(first.value) and math.isfinite(second.value)):
        return 0.0 if first.value == second.value else math.inf
    gap = abs(math.log(first.value) - math.log(second.value))
    joint = math.hypot(log_error(first), log_error(second))
    return gap / joint if joint > 0 else (0.0 if gap == 0 else math.inf)


def log_error(answer: Estimate) -> float:
    """One standard error of the logarithm; a stated range without one counts as two of them."""
    if math.isfinite(answer.stderr):
        return answer.stderr / answer.value
    low, high = answer.interval
    return 0.25 * (math.log(high) - math.log(low)) if low > 0 else math.inf
