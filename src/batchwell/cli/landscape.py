"""`batchwell landscape`: minima, passes, and the batch-size schedule that pays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ._shared import WholeNumbers, interrupted, table

if TYPE_CHECKING:
    from ..studies.landscape import LandscapeStudy


@click.command()
@click.argument("what", metavar="PROBLEM|FILE.toml")
@click.option("--code", type=click.Path(path_type=Path), help="Your Python file with the loss.")
@click.option("--learning-rate", type=float, help="[default: the problem's]")
@click.option("--batch-size", type=WholeNumbers(), help="Two or more, e.g. 2,4,8,16.")
@click.option("--starts", type=int, help="Random starts of the search for minima.")
@click.option("--budget", type=int, help="Examples that a schedule may use.")
@click.option(
    "--objective",
    default="flattest",
    show_default=True,
    help="Where schedules are to end: flattest, lowest_loss, or best_validation (problems with "
    "held-out examples).",
)
@click.option("--paths", type=int, default=8, show_default=True, help="Paths from each minimum.")
@click.option("--out", type=click.Path(path_type=Path), help="[default: runs/NAME-landscape]")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option("--seed", type=int, default=0, show_default=True, help="Root seed.")
@click.option("--quiet", is_flag=True, help="No progress.")
def landscape(
    what: str,
    code: Path | None,
    learning_rate: float | None,
    batch_size: tuple[int, ...] | None,
    starts: int | None,
    budget: int | None,
    objective: str,
    paths: int,
    out: Path | None,
    resume: bool,
    seed: int,
    quiet: bool,
) -> None:
    """Which minima SGD leaves, where it ends, and how the batch should grow.

    Finds minima and the passes between them, counts SGD's jumps at each batch size, predicts
    occupation and schedules from them, and runs SGD to check. Writes report.html.
    """
    from ..studies.landscape import landscape_study

    try:
        done = landscape_study(
            what,
            out,
            code=code,
            learning_rate=learning_rate,
            batch_sizes=None if batch_size is None else list(batch_size),
            starts=starts,
            budget=budget,
            objective=objective,
            paths=paths,
            seed=seed,
            resume=resume,
            quiet=quiet,
        )
    except KeyboardInterrupt:
        folder = f" --out {out}" if out else ""
        interrupted(f"repeat the command with --resume{folder} to go on")
    _show(done)


def _show(done: LandscapeStudy) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.padding import Padding

    from ..report.landscape import summary

    console = Console()
    console.print(Padding(escape(done.answer), (1, 0)))
    short = summary(done.result)
    rows = [dict(zip(short.columns, row, strict=True)) for row in short.rows]
    console.print(table(short.caption, rows))
    console.print(f"report: {escape(str(done.report))}", soft_wrap=True)
