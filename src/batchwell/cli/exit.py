"""`batchwell exit`: mean exit times by every method, and their report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import one_of, positive, whole
from ._shared import Numbers, WholeNumbers, table

if TYPE_CHECKING:
    from ..estimate import Estimate
    from ..exits import ExitSurvey
    from ..exits.survey import Cell


@click.command("exit")
@click.argument("name", metavar="PROBLEM")
@click.option("--learning-rate", type=Numbers(), default=".2,.1", show_default=True)
@click.option("--batch-size", type=WholeNumbers(), default="1,2", show_default=True)
@click.option("--method", "methods", multiple=True, help="Only this one; may be repeated.")
@click.option("--seed", default=0, show_default=True, help="Root seed of all random streams.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of report.html and answers.json [default: runs/exit-PROBLEM].",
)
@click.option("--quiet", is_flag=True, help="No progress.")
def exit_times(
    name: str,
    learning_rate: tuple[float, ...],
    batch_size: tuple[int, ...],
    methods: tuple[str, ...],
    seed: int,
    out: Path | None,
    quiet: bool,
) -> None:
    """Mean exit time of SGD and of its diffusion from a problem's domain, by every method.

    Writes a report: times against B/eta with both exponents, the most likely ways out, where and
    when simulated paths left, and which methods agree.
    """
    from rich.console import Console

    from ..exits import EXIT_METHODS, exit_survey
    from ..problems import problem
    from ..report.document import write
    from ..report.exits import document
    from ..runs import check_writable

    found = problem(name)
    for rate in learning_rate:
        positive("--learning-rate", rate)
    for method in methods:
        one_of("--method", method, EXIT_METHODS)
    whole("--seed", seed, 0)
    folder = Path("runs") / f"exit-{name}" if out is None else out
    check_writable(folder, "--out")
    error = Console(stderr=True)
    done = exit_survey(
        found,
        learning_rate,
        batch_size,
        methods or None,
        _seeded(methods, seed),
        seed,
        (lambda text: None) if quiet else lambda text: error.print(f"[dim]{text} ...[/dim]"),
    )
    rows = [row for cell in done.cells for row in _rows(cell)]
    Console().print(table("Mean exit times, in SGD steps", rows))
    for line in _said(done):
        click.echo(line)
    _write_answers(done, folder)
    page = write(document(done), folder / "report.html")
    click.echo(f"report: {page}")


def _seeded(methods: tuple[str, ...], seed: int) -> dict[str, dict[str, int]]:
    from ..exits import EXIT_METHODS

    return {
        m: {"seed": seed}
        for m in methods or EXIT_METHODS
        if m in EXIT_METHODS and EXIT_METHODS[m].statistical
    }


def _write_answers(done: ExitSurvey, folder: Path) -> None:
    from ..runs import write_atomic

    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "learning_rate": c.learning_rate,
            "batch_size": c.batch_size,
            "process": c.name,
            **row,
        }
        for c in done.cells
        for row in c.comparison.table()
    ]
    text = json.dumps({"problem": done.name, "answers": rows}, indent=1)
    write_atomic(folder / "answers.json", text.encode(), "--out")


def _rows(cell: Cell) -> list[dict[str, str]]:
    head = {
        "eta": f"{cell.learning_rate:g}",
        "B": str(cell.batch_size),
        "process": cell.name,
    }
    return [
        {
            **head,
            "method": name,
            "steps": f"{e.value:.6g}",
            "interval": _interval(e),
        }
        for name, e in cell.comparison.answers.items()
    ]


def _interval(answer: Estimate) -> str:
    from ..exits.compare import reliable

    low, high = answer.interval
    text = "unknown" if low == -math.inf else f"{low:.4g} ... {high:.4g}"
    return text if reliable(answer) else f"{text} (not reliable)"


def _said(done: ExitSurvey) -> list[str]:
    """Whether the methods agree, and why some gave no answer: one line each."""
    from ..exits.compare import LIMIT

    pairs = [(c, p) for c in done.cells for p in c.comparison.pairs]
    agree = sum(p.agree for _, p in pairs)
    lines = [
        f"{agree} of {len(pairs)} pairs of methods agree within {LIMIT:g} joint errors"
        if pairs
        else "fewer than two methods answered: nothing to compare"
    ]
    for c, p in pairs:
        if not p.agree:
            at = f"{c.name} at {c.learning_rate:g}/{c.batch_size}"
            lines.append(
                f"  {at}: {p.first} and {p.second} lie {p.distance:.1f} joint errors apart"
            )
    refusals = done.refusals()
    if refusals:
        lines.append("no answer (process, method, at learning rate/batch size):")
    lines += [f"  {name}, {method}, {at}: {why}" for name, method, why, at in refusals]
    return lines
