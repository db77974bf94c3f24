"""A weak study as a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import __version__
from ...weak import OBSERVABLES, WeakStudy
from ..document import Document, Section, Table, pairs
from ..wording import NOTHING, duration, estimate, measured, number
from . import figures
from .answer import answer, closer

METHODS = {
    "moments": "Both means are exact, from recursions of moments: the loss is quadratic.",
    "operators": "Both means are computed, not sampled: the master equation of SGD and the backward "
    "equation of the diffusion are solved on nodes; intervals are what the discretisation leaves open.",
    "simulation": "Both means come from pairs of simulated paths with martingale controls; intervals "
    "are at 95%.",
}
USES = {
    "short_time_averages": "Averages over short times",
    "stationary_variance": "Stationary variance",
    "tails": "Tails of the law",
    "escapes": "Escapes from the minimum",
}


def page(study: WeakStudy, name: str, summary: str = "", command: str = "") -> Document:
    """The page of `study`; `name` and `summary` are the problem's."""
    found = study.pictures
    sections = [_errors(study), _laws(study), _verdicts(study), _settings(study, command)]
    rates = next(iter(study.errors.values())).learning_rates
    facts = f"{len(rates)} learning rates, {'laws over time, ' if found else ''}verdicts."
    return Document(
        name,
        f"How close are SGD's diffusions? {name}",
        answer(study),
        tuple(sections),
        summary,
        f"{facts} Made by Batchwell {__version__} in {duration(study.seconds)}.",
        _glance(study),
        "E is the mean over the noise, η the learning rate, T = η times the number of steps. The "
        "diffusion of order 1 has drift −grad F, that of order 2 −grad(F + (η/4)|grad F|²).",
    )


def _glance(study: WeakStudy) -> Table:
    winners = closer(study)
    orders = list(study.errors)
    formula = OBSERVABLES[study.observable].formula
    heads = [f"E {formula} of SGD", *(f"error, order {o}" for o in orders)]
    columns = ("η", *heads, *(("closer",) if winners else ()))
    first = study.errors[orders[0]]
    rows = []
    for k, eta in enumerate(first.learning_rates):
        cells = [
            estimate_plain(first.chain[k]),
            *(estimate_plain(study.errors[o].errors[k]) for o in orders),
        ]
        rows.append((f"{eta:g}", *cells, *((_winner(winners[eta]),) if winners else ())))
    return Table(f"SGD minus its diffusion at T = {study.horizon:g}", columns, tuple(rows))


def _winner(key: str) -> str:
    return "undecided" if key == "undecided" else f"order {key}"


def estimate_plain(value: Any) -> str:
    """A number with three digits, and its uncertainty only where that is not far smaller."""
    if value.stderr < 1e-3 * abs(value.value):
        return measured(value.value, 4)
    return f"{number(value.value)} ± {number(value.stderr, 2)}"


def _errors(study: WeakStudy) -> Section:
    notes = [f"Order {o}: {text}." for o, w in study.errors.items() for text in w.notes]
    method = next(iter(study.errors.values())).method
    shared = dict.fromkeys(text.split(": ", 1)[1] for text in notes)
    rows = []
    for o, w in study.errors.items():
        for k, eta in enumerate(w.learning_rates):
            numbers = (w.chain[k], w.diffusion[k], w.errors[k])
            rows.append((f"{eta:g}", str(o), *(_digits(v) for v in numbers), _spread(w.errors[k])))
    cites = ["hu-li-li-liu", "li-tai-e"]
    cites += ["milstein-regression"] if method == "simulation" else []
    return Section(
        "errors",
        "Error and order",
        METHODS[method],
        tuple(cites),
        figures.error_figure(study),
        notes=tuple(text[0].upper() + text[1:] for text in shared),
        tables=(_order_table(study),),
        long_tables=(
            Table(
                "Means and errors at every learning rate",
                ("η", "order", "SGD", "diffusion", "error", "uncertainty"),
                tuple(rows),
                2,
            ),
        ),
    )


def _digits(value: Any) -> str:
    return f"{value.value:.10g}".replace("-", "−")


def _spread(value: Any) -> str:
    return number(value.stderr, 2)


def _order_table(study: WeakStudy) -> Table:
    rows = tuple(
        (
            f"order {o}",
            estimate(w.observed_order),
            estimate(w.constant),
            "reached" if w.asymptotic else "not reached",
        )
        for o, w in study.errors.items()
    )
    columns = ("diffusion", "observed order", "error / ηᵒʳᵈᵉʳ as η → 0", "small-η regime")
    return Table("Observed order between the two smallest learning rates", columns, rows)


def _laws(study: WeakStudy) -> Section:
    found = study.pictures
    title = "Laws side by side"
    if found is None:
        return Section("laws", title, absent=f"No laws are shown: {study.no_pictures}.")
    rows = tuple(
        (
            f"{steps:,}",
            *(number(float(found.total_variation[n][k])) for n in ("order 1", "order 2")),
            number(float(found.resolution[k]), 2),
            *(number(float(found.wasserstein[n][k])) for n in ("order 1", "order 2")),
        )
        for k, steps in enumerate(found.steps)
    )
    columns = (
        "steps",
        "total variation, order 1",
        "order 2",
        "meshes",
        "Wasserstein-1, order 1",
        "order 2",
    )
    table = Table("Distance from SGD's law", columns, rows)
    figure = figures.density_figure(study, found)
    distances = figures.distance_figure(study, found)
    joined = figures.join(figure, distances)
    cites = ("hu-li-li-liu", *(("bonneel",) if len(found.centres) == 2 else ()))
    lead = "The law of SGD evolves by its master equation, that of a diffusion by Fokker-Planck's."
    return Section("laws", title, lead, cites, joined, tables=(table,))


def _verdicts(study: WeakStudy) -> Section:
    title = "May the diffusion be trusted?"
    if not study.verdicts:
        return Section("trust", title, absent=f"No verdicts: {study.no_verdicts}.")
    verdicts: list[Mapping[str, Any]] = [
        {
            "question": f"{USES[v.use]}, η = {eta:g}",
            "verdict": v.trust,
            "reason": f"{v.reason[0].upper()}{v.reason[1:]}.",
        }
        for eta, found in study.verdicts.items()
        for v in found.verdicts
    ]
    numbers = [
        (key.replace("_", " "), *(number(v.numbers[key]) for v in study.verdicts.values()))
        for key in next(iter(study.verdicts.values())).numbers
    ]
    columns = ("number", *(f"η = {eta:g}" for eta in study.verdicts))
    place = ", ".join(number(v) for v in study.minimum[:4])
    more = ", …" if len(study.minimum) > 4 else ""
    return Section(
        "trust",
        title,
        f"Judged around the minimum ({place}{more}) to which descent from the start leads.",
        ("li-malladi-arora",),
        verdicts=tuple(verdicts),
        notes=tuple(dict.fromkeys(t for v in study.verdicts.values() for t in v.notes)),
        long_tables=(Table("What the verdicts rest on", columns, tuple(numbers)),),
    )


def _settings(study: WeakStudy, command: str) -> Section:
    values = {
        "loss": study.sgd.loss.name,
        "batch size": str(study.sgd.batch_size),
        "sampling": study.sgd.sampling.replace("_", " "),
        "start": ", ".join(f"{v:g}" for v in study.start) or NOTHING,
        "horizon T": f"{study.horizon:g}",
        "observable": OBSERVABLES[study.observable].formula,
    }
    return Section(
        "settings", "Settings", command=command, tables=(pairs("What was asked", values),)
    )
