"""`batchwell weak`: the weak error of the diffusions, their order, and a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ._shared import Numbers


@click.command()
@click.argument("name", metavar="PROBLEM")
@click.option(
    "--observable",
    default="square",
    show_default=True,
    help="square: |x|^2; first: x_1; cosine: cos 2x_1; fourth: |x|^4; loss: F(x).",
)
@click.option(
    "--horizon", default=1.0, show_default=True, help="Time T = eta k at which laws are compared."
)
@click.option("--learning-rate", type=Numbers(), default=".1,.05,.025,.0125", show_default=True)
@click.option("--batch-size", default=1, show_default=True)
@click.option(
    "--order", type=click.Choice(["1", "2", "both"]), default="both", help="Of the diffusion."
)
@click.option(
    "--start", type=Numbers(), help="Where all begin, e.g. 1,-.5 [default: the problem's]."
)
@click.option("--method", default="auto", help="auto, moments, operators or simulation.")
@click.option("--paths", default=100_000, show_default=True, help="Pairs of a simulation.")
@click.option("--seed", default=0, show_default=True, help="Root seed of a simulation.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder [default: runs/weak-PROBLEM].")
def weak(name: str, out: Path | None, **options: Any) -> None:
    """Weak error of SGD's diffusions, their observed orders, and their laws side by side.

    Prints the errors and writes a folder with report.html and weak.json.
    """
    from .. import runs
    from ..dynamics import SGD
    from ..problems import problem
    from ..weak import weak_study

    found = problem(name)
    folder = runs.default_folder(f"weak-{name}") if out is None else out
    runs.check_new(folder)
    runs.check_writable(folder, "--out")
    rates = options["learning_rate"]
    start = options["start"] if options["start"] is not None else found.start
    orders = (1, 2) if options["order"] == "both" else (int(options["order"]),)
    done = weak_study(
        SGD(found.loss, rates[0], options["batch_size"]),
        start,
        options["horizon"],
        rates,
        options["observable"],
        orders,
        options["method"],
        options["paths"],
        options["seed"],
    )
    for order, errors in done.errors.items():
        what = f"E {done.observable} at time {done.horizon:g}, {errors.method}"
        click.echo(f"order {order}: {what}\n{errors}\n")
    _write(done, found, folder)


def _write(done: Any, found: Any, folder: Path) -> None:
    import json

    from .. import runs
    from ..report import weak as report
    from ..report.document import write

    command = " ".join(["batchwell", *_words()])
    run = runs.create(folder, {"command": command})
    run.write_text("weak.json", json.dumps(done.to_dict(), allow_nan=False, indent=1))
    write(report.page(done, found.name, found.summary, command), folder / "report.html")
    click.echo(f"{report.answer(done)}\n\nreport: {folder / 'report.html'}")


def _words() -> list[str]:
    """The command line after the program's name, as it was typed."""
    import shlex
    import sys

    return [shlex.quote(word) for word in sys.argv[1:]]
