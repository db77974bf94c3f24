"""A landscape's study as a page: the answer, then what it rests on."""

from __future__ import annotations

from collections.abc import Sequence

from ...landscape import Minimum, Saddle
from ...metastable import Stage
from .. import wording
from ..document import Document, Section, Table, pairs
from . import figures
from .reading import LandscapeResult, cells, quarters, set_share
from .widget import explorer, script
from .wording import answer

FINE = (
    "Flat and sharp are the quarters of the listed minima with the smallest and the largest λmax, "
    "the largest eigenvalue of the loss's Hessian. [a, b] is a 95% interval. A minimum's basin is "
    "where gradient flow leads to it; “elsewhere” is all basins that the search did not list. "
    "Sharpness depends on the parametrisation."
)
ABSENT = "Not finished yet."
MOST_ROWS = 60


def page(result: LandscapeResult) -> Document:
    """The page of a study, finished or not."""
    scripts = (script(),) if result.plan is not None else ()
    missing = None
    if result.missing:
        command = f"{result.record.get('command', '')} --resume".strip()
        missing = (wording.listing(result.missing), command)
    glance = summary(result) if result.rates is not None else None
    return Document(
        result.name,
        f"The landscape of {result.title[:1].lower()}{result.title[1:]}",
        answer(result),
        tuple(_sections(result)),
        _description(result),
        f"Made by Batchwell in {wording.duration(result.seconds)}.",
        glance,
        FINE,
        missing,
        scripts,
    )


def _description(result: LandscapeResult) -> str:
    scape = result.landscape
    if scape is None:
        return ""
    loss = scape.loss
    source = f"{loss.n} examples" if loss.noise is None else f"{loss.noise.name} noise"
    return f"{loss.dim} parameters, {source}, learning rate {_rate(result):g}"


def _rate(result: LandscapeResult) -> float:
    return float(result.record.get("learning_rate") or 0.0)


def summary(result: LandscapeResult) -> Table:
    """By batch size: stays in the flattest and the sharpest minimum, and the flat share."""
    columns = ("B", "stay in the flattest", "stay in the sharpest", "flat, predicted", "measured")
    title = f"Steps of stay, and runs in flat minima after {wording.whole(result.budget)} examples"
    if result.rates is None or result.landscape is None:
        return Table(title, columns, ())
    network = result.rates.network
    often = [m for m in result.landscape.minima if m.starts > 0] or list(result.landscape.minima)
    flat, _ = quarters(network)
    constant = {
        r.schedule.batch_sizes[0]: r for r in result.runs if len(set(r.schedule.batch_sizes)) == 1
    }
    rows = []
    for size in result.rates.batch_sizes:
        run = constant.get(size)
        predicted = set_share(
            network,
            result.plan.start if result.plan is not None else tuple(network.starts),
            [Stage(size, max(1, result.budget // size))],
            flat,
        )
        rows.append(
            (
                str(size),
                wording.estimate(result.rates.stay(often[0].label, size)),
                wording.estimate(result.rates.stay(often[-1].label, size)),
                wording.share(predicted),
                wording.share(run.measured(flat)[-1] if run is not None else None),
            )
        )
    return Table(title, columns, tuple(rows))


def _sections(result: LandscapeResult) -> list[Section]:
    return [
        _schedule_section(result),
        _occupation_section(result),
        _share_section(result),
        _explorer_section(result),
        _stay_section(result),
        _graph_section(result),
        _tree_section(result),
        *_generalisation_section(result),
        _settings_section(result),
    ]


def _schedule_section(result: LandscapeResult) -> Section:
    key, title = "schedule", "How large may the batch be, when?"
    if result.plan is None:
        return Section(key, title, absent=ABSENT)
    plan = result.plan
    rows = [
        (s.name, _sizes(s.batch_sizes), wording.share(s.score)) for s in (plan.best, *plan.rivals)
    ]
    table = Table(
        f"Predicted {plan.objective.split(':')[0]}, for {wording.whole(plan.budget)} examples",
        ("schedule", "batch sizes", "predicted"),
        tuple(rows),
    )
    return Section(
        key,
        title,
        f"At η = {_rate(result):g}, {plan.verdict}.",
        ("pontryagin", "hajek", "smith"),
        figures.schedule_figure(result),
        long_tables=(table,),
    )


def _sizes(sizes: tuple[int, ...]) -> str:
    distinct = [str(b) for b in sizes]
    return ", ".join(distinct if len(distinct) <= 8 else [*distinct[:4], "…", *distinct[-3:]])


def _occupation_section(result: LandscapeResult) -> Section:
    key, title = "occupation", "Where runs are, and were predicted to be"
    figure = figures.occupation_figure(result)
    if figure is None:
        return Section(key, title, absent=ABSENT)
    found = cells(result)
    rows = tuple(
        (
            c.schedule,
            c.state,
            wording.share(c.predicted),
            wording.share(c.measured),
            "yes" if c.inside else "no",
            wording.number(c.apart, 2),
        )
        for c in found
    )
    inside, close = sum(c.inside for c in found), sum(c.apart <= 1.96 for c in found)
    table = Table(
        "Final shares of single basins (2% or more)",
        ("schedule", "basin", "predicted", "measured", "inside", "standard errors apart"),
        rows,
        2,
    )
    lead = (
        f"Every schedule sees {wording.whole(result.budget)} examples and starts from minima as "
        f"random starts reach them. Of {wording.counted(len(found), 'final share')} of single "
        f"basins, {inside} were predicted inside the measured interval; {close} within the "
        "uncertainty of prediction and measurement together."
    )
    return Section(key, title, lead, ("wilson",), figure, long_tables=(table,))


def _share_section(result: LandscapeResult) -> Section:
    key, title = "shares", "Flat against sharp, by batch size"
    if result.plan is None:
        return Section(key, title, absent=ABSENT)
    lead = (
        "A small batch leaves sharp basins sooner; whether it then stays in flat ones is another "
        "question, and depends on how noise lies to the ways out."
    )
    return Section(key, title, lead, ("keskar", "dinh"), figures.share_figure(result))


def _explorer_section(result: LandscapeResult) -> Section:
    key, title = "explore", "Try another learning rate or batch size"
    if result.plan is None or result.rates is None:
        return Section(key, title, absent=ABSENT)
    network = result.rates.network
    lead = (
        "Rates at another learning rate are those at the same temperature η/B, per unit of time "
        "η × steps: exact for the diffusion, an approximation for SGD. Without JavaScript this "
        "part stays hidden; stays at the learning rate studied are in the table of this section."
    )
    often = [m for m in (result.landscape.minima if result.landscape else ()) if m.starts > 0]
    sizes = result.rates.batch_sizes
    stay = result.rates.stay
    rows = tuple(
        (m.label, *(wording.middle(stay(m.label, b)) for b in sizes)) for m in often[:MOST_ROWS]
    )
    table = Table(
        "Predicted mean stay in steps, of minima that starts reached",
        ("minimum", *(f"B = {b}" for b in sizes)),
        rows,
    )
    widget = explorer(network, result.plan.start, result.budget)
    return Section(key, title, lead, widget=widget, long_tables=(table,))


def _stay_section(result: LandscapeResult) -> Section:
    key, title = "stays", "How long SGD stays"
    if result.rates is None:
        return Section(key, title, absent=ABSENT)
    return Section(
        key,
        title,
        "A basin's mean stay grows like exp(V B / η); the network joins what all batch sizes say.",
        ("freidlin-wentzell", "garwood"),
        figures.stay_figure(result),
        notes=result.rates.notes,
    )


def _graph_section(result: LandscapeResult) -> Section:
    key, title = "graph", "Jumps between basins"
    if result.rates is None:
        return Section(key, title, absent=ABSENT)
    return Section(key, title, "", (), figures.graph_figure(result))


def _tree_section(result: LandscapeResult) -> Section:
    key, title = "tree", "Minima and the passes between them"
    if result.landscape is None:
        return Section(key, title, absent=ABSENT)
    minima = result.landscape.minima
    found = sum(m.starts > 0 for m in minima)
    lead = (
        f"{wording.counted(found, 'minimum', 'minima')} reached by random starts, "
        f"{len(minima) - found} more by exploring with SGD. Passes are saddles with one direction "
        "down, found by strings over borders that SGD crossed and between near minima, polished "
        "by Newton's method and verified by descending on both sides."
    )
    return Section(
        key,
        title,
        lead,
        ("string-method", "eigenvector-following", "becker-karplus"),
        figures.tree_figure(result),
        long_tables=(_minima_table(result, minima), _passes_table(minima, result.saddles)),
    )


def _minima_table(result: LandscapeResult, minima: Sequence[Minimum]) -> Table:
    tree = result.tree
    rows = tuple(
        (
            m.label,
            wording.number(m.loss, 4),
            wording.number(m.lambda_max),
            wording.number(m.trace),
            wording.number(m.alignment, 2),
            wording.whole(m.starts),
            wording.number(tree.barrier(k), 3),
        )
        for k, m in enumerate(minima)
    )
    climb = "least climb to a lower one"
    heads = ("minimum", "loss", "λmax", "trace", "alignment", "starts", climb)
    return Table("Minima, from the flattest to the sharpest", heads, rows)


def _passes_table(minima: Sequence[Minimum], saddles: Sequence[Saddle]) -> Table:
    names = {-1: "not listed", -2: "nowhere"}
    joins = [s for s in saddles if s.joins]
    rows = tuple(
        (
            s.label,
            *(names.get(e) or minima[e].label for e in s.ends),
            wording.number(s.loss, 5),
            wording.number(float(s.eigenvalues[0]), 3),
        )
        for s in joins[: 2 * MOST_ROWS]
    )
    heads = ("pass", "from", "to", "loss", "negative eigenvalue")
    return Table("Passes between two listed minima, from the lowest on", heads, rows, 3)


def _generalisation_section(result: LandscapeResult) -> list[Section]:
    found = result.generalisation
    if found is None:
        return []
    senses = {"lambda_max": "λmax", "trace": "trace", "loss": "training loss"}
    rows = tuple(
        (
            senses[value],
            score,
            f"{wording.number(e.value, 2)} {wording.span(*e.interval, 2)}",
        )
        for (value, score), e in found.correlations.items()
    )
    table = Table(
        f"Spearman's rank correlation over {len(found.labels)} minima, bootstrap interval",
        ("of", "with", "correlation"),
        rows,
        2,
    )
    lead = wording.sentence("; ".join(found.verdict(name) for name in found.scores)) + "."
    return [
        Section(
            "generalisation",
            "Does flat generalise better?",
            lead,
            ("keskar", "dinh"),
            figures.generalisation_figure(result),
            tables=(table,),
        )
    ]


def _settings_section(result: LandscapeResult) -> Section:
    shown = {k: str(v) for k, v in result.record.items() if k not in ("versions", "command")}
    versions = {k: str(v) for k, v in dict(result.record.get("versions", {})).items()}
    return Section(
        "settings",
        "Settings and versions",
        command=str(result.record.get("command", "")),
        tables=(pairs("Settings", shown), pairs("Versions", versions)),
    )
