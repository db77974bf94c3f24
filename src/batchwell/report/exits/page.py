"""A survey of exits as a page: the answer first, then figures and tables."""

from __future__ import annotations

import math

import numpy as np

from ...domain import ball
from ...dynamics import SGD
from ...errors import BatchwellError
from ...estimate import Estimate
from ...exits import EXIT_METHODS, ExitSurvey
from ...exits.compare import reliable
from ...exits.survey import SGD_, Cell
from ...saddles import EscapeLaws, escape_laws
from .. import wording
from ..document import Document, Section, Table
from . import figures

FINE = (
    "[a, b] is a 95% interval where a method samples, and the stated error where it computes. "
    "B is the batch size, η the learning rate; V is the least action, in units where the mean exit "
    "time grows like exp(V B/η). Two answers agree when the logarithms of the times lie within 4 joint "
    "standard errors."
)


def document(found: ExitSurvey) -> Document:
    """The page of a survey."""
    laws = _laws(found)
    words = (_times(found), _from_saddle(found, laws), _exponents(found), _agreement(found))
    return Document(
        found.name,
        f"Leaving {found.name}",
        "\n\n".join(p for p in words if p),
        (
            Section(
                "times",
                "Exit times against B/η",
                "Every method that applies was asked for the mean number of steps until the "
                f"{found.domain.name} is left.",
                ("freidlin-wentzell", "bouchet-reygner", "brehier", "dupuis-wang"),
                figures.times_figure(found),
                tables=(_answers(found),),
                long_tables=tuple(t for t in (_pairs(found), _refused(found)) if t),
            ),
            _section(
                "ways",
                "Ways out",
                "The path that rare noise most likely takes, for SGD itself and for its diffusion.",
                ("freidlin-wentzell", "heymann"),
                figures.ways_figure(found),
                "No way out was found: " + "; ".join(found.why),
            ),
            _section(
                "seen",
                "Simulated exits",
                "Paths that were watched where exits are quickest.",
                ("day",),
                figures.seen_figure(found),
                "Exits are too rare here to be watched.",
            ),
            _section(
                "saddle",
                "From the saddle",
                "How long a start on the saddle takes, beside a start at the minimum.",
                ("kifer", "hu"),
                figures.saddle_figure(laws) if laws else None,
                "No saddle lies on the way out, or it is left in another manner.",
            ),
            Section("methods", "Methods", "", tables=(_methods(),), notes=found.why),
        ),
        found.summary,
        _facts(found),
        _glance(found),
        FINE,
    )


def _section(
    key: str, title: str, lead: str, cites: tuple[str, ...], figure: object, absent: str
) -> Section:
    if figure is None:
        return Section(key, title, absent=absent)
    return Section(key, title, lead, cites, figure)  # type: ignore[arg-type]


# -- words ----------------------------------------------------------------------------------------
def _times(found: ExitSurvey) -> str:
    cells = [c for c in found.cells if c.name == SGD_ and c.answer] or [
        c for c in found.cells if c.answer
    ]
    if not cells:
        return "No method has an answer here; the last section says why."
    hot, cold = (f(cells, key=lambda c: c.inverse_temperature) for f in (min, max))
    text = f"{_stays(hot)}"
    if cold is not hot:
        text += f"; {_stays(cold, short=True)}"
    return text + "."


def _stays(cell: Cell, short: bool = False) -> str:
    assert cell.answer is not None
    at = f"learning rate {cell.learning_rate:g} and batch size {cell.batch_size}"
    if math.isinf(cell.answer.value):
        steps = "never"
    else:
        steps = f"after {wording.spoken(cell.answer.value)} steps on average"
    if short:
        return f"at {at} {steps}"
    who = "SGD" if cell.name == SGD_ else "The diffusion"
    return f"{who} leaves at {at} {steps}"


def _exponents(found: ExitSurvey) -> str:
    row = found.exponents
    if row is None:
        return ""
    if math.isinf(row.sgd):
        return (
            "SGD never leaves: its noise is bounded below the slope on the way out. The diffusion "
            f"would leave, with the exponent V = {wording.number(row.diffusion, 4)}."
        )
    per = math.exp(min(row.sgd, 50.0))
    text = (
        f"Each further unit of B/η multiplies the time by about {wording.number(per)} "
        f"(exponent V = {wording.number(row.sgd, 4)})"
    )
    if abs(row.ratio - 1) < 0.005:
        return f"{text}. The diffusion has the same exponent."
    longer = "shorter" if row.ratio > 1 else "longer"
    return (
        f"{text}. The diffusion's exponent is {wording.number(row.diffusion, 4)}: for rare exits its "
        f"times are {longer} than SGD's by a factor that itself grows exponentially in B/η, "
        "and no batch size mends that."
    )


def _agreement(found: ExitSurvey) -> str:
    pairs = [p for c in found.cells for p in c.comparison.pairs]
    if not pairs:
        return ""
    bad = [p for p in pairs if not p.agree]
    if not bad:
        return f"All {len(pairs)} pairs of methods agree."
    worst = max(bad, key=lambda p: p.distance)
    return (
        f"{len(pairs) - len(bad)} of {len(pairs)} pairs of methods agree; the widest gap is between "
        f"{worst.first} and {worst.second}, {wording.number(worst.distance)} joint errors."
    )


def _facts(found: ExitSurvey) -> str:
    from ... import __version__

    count = wording.counted(len(found.cells), "cell")
    return (
        f"{count}, {wording.counted(len(EXIT_METHODS), 'method')}, "
        f"{wording.counted(found.domain.dim, 'dimension')}. Made by Batchwell {__version__}."
    )


# -- tables ---------------------------------------------------------------------------------------
def _glance(found: ExitSurvey) -> Table:
    rows = []
    for c in found.cells:
        best = c.ranked[0] if c.ranked and c.answer else None
        steps = _shown(best[1]) if best else wording.NOTHING
        verdict = _verdict(c)
        rows.append(
            (
                f"{c.learning_rate:g}",
                str(c.batch_size),
                c.name,
                steps,
                best[0] if best else wording.NOTHING,
                verdict,
            )
        )
    return Table(
        "Mean SGD steps until the exit, by the most trusted method",
        ("η", "B", "process", "steps", "by method", "agreement"),
        tuple(rows),
        3,
    )


def _shown(answer: Estimate | None) -> str:
    if answer is None or reliable(answer):
        return wording.estimate(answer)
    if math.isinf(answer.interval[0]):
        return f"{wording.number(answer.value)} (error unknown)"
    return f"{wording.estimate(answer)} (not reliable)"


def _verdict(cell: Cell) -> str:
    pairs = cell.comparison.pairs
    if not pairs:
        return wording.NOTHING
    return f"{sum(p.agree for p in pairs)} of {wording.counted(len(pairs), 'pair')}"


def _head(cell: Cell) -> tuple[str, str, str]:
    return f"{cell.learning_rate:g}", str(cell.batch_size), cell.name


def _answers(found: ExitSurvey) -> Table:
    methods = [m for m in EXIT_METHODS if any(m in c.comparison.answers for c in found.cells)]
    rows = []
    for c in found.cells:
        answers = [_shown(c.comparison.answers.get(m)) for m in methods]
        worst = max(c.comparison.pairs, key=lambda p: p.distance, default=None)
        gap = wording.number(worst.distance) if worst else wording.NOTHING
        rows.append((*_head(c), *answers, gap))
    return Table(
        "All answers, in SGD steps, and the widest gap between two of them in joint errors",
        ("η", "B", "process", *methods, "widest gap"),
        tuple(rows),
        3,
    )


def _pairs(found: ExitSurvey) -> Table | None:
    rows = [
        (
            *_head(c),
            f"{p.first}, {p.second}",
            wording.number(p.distance),
            "agree" if p.agree else "DISAGREE",
        )
        for c in found.cells
        for p in c.comparison.pairs
    ]
    if not rows:
        return None
    return Table(
        "Pairwise agreement of methods",
        ("η", "B", "process", "methods", "joint errors apart", "verdict"),
        tuple(rows),
        4,
    )


def _refused(found: ExitSurvey) -> Table | None:
    rows = found.refusals()
    if not rows:
        return None
    return Table(
        "Methods that gave no answer, and why",
        ("process", "method", "why", "at η/B"),
        tuple(rows),
        2,
    )


def _methods() -> Table:
    return Table(
        "The methods, and where each may be trusted",
        ("method", "what it does", "regime"),
        tuple((name, row.summary, row.regime) for name, row in EXIT_METHODS.items()),
    )


# -- saddle ---------------------------------------------------------------------------------------
def _laws(found: ExitSurvey) -> EscapeLaws | None:
    """The start if it is a saddle, else the saddle on SGD's cheapest way.

    That is left through a ball of half its distance to the minimum.
    """
    cells = [c for c in found.cells if c.name == SGD_ and c.answer]
    if found.loss is None or not cells:
        return None
    chain = SGD(found.loss, min(c.learning_rate for c in cells))
    try:
        if found.minimum is None:
            return escape_laws(chain, found.start, found.domain, math.nan, math.nan)
        ways = [w for w in found.ways.get(SGD_, ()) if w.saddle is not None]
        if not ways or found.exponents is None:
            return None
        saddle, cold = ways[0].saddle, max(cells, key=lambda c: c.inverse_temperature)
        assert saddle is not None
        assert cold.answer is not None
        exponent = found.exponents.sgd
        prefactor = math.log(cold.answer.value * cold.learning_rate)
        prefactor -= exponent * cold.inverse_temperature
        around = ball(saddle.x, 0.5 * float(np.linalg.norm(saddle.x - found.minimum)))
        return escape_laws(chain, saddle.x, around, exponent, prefactor)
    except BatchwellError:
        return None


def _from_saddle(found: ExitSurvey, laws: EscapeLaws | None) -> str:
    if laws is None or found.minimum is not None:
        return ""
    eta = min(c.learning_rate for c in found.cells)
    more = math.log(2) / (2 * laws.rate * eta)
    return (
        "The start is a saddle, which is left almost at once: the number of steps grows like "
        "(1/η) log(B/η), where from a minimum it grows exponentially. At learning rate "
        f"{eta:g} doubling the batch adds about {wording.number(more)} steps."
    )
