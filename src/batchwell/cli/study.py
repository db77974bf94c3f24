"""`batchwell study` and `batchwell new`: the main job, and settings for one's own loss."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError, require
from ._shared import interrupted, table

if TYPE_CHECKING:
    from ..studies import Study


@click.command()
@click.argument("what", metavar="NAME|FILE.toml")
@click.option(
    "--code",
    type=click.Path(path_type=Path),
    help="Your Python file with the loss; it is executed.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Run directory [default: runs/NAME].")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--seed", type=int, help="Root seed of all random streams.")
@click.option("--workers", type=int, help="Cells run side by side [default: cores, at most 4].")
@click.option(
    "--set",
    "pairs",
    multiple=True,
    metavar="KEY=VALUE",
    help="Replace a setting, e.g. --set paths=100 (TOML value).",
)
def study(
    what: str,
    code: Path | None,
    out: Path | None,
    resume: bool,
    quiet: bool,
    seed: int | None,
    workers: int | None,
    pairs: tuple[str, ...],
) -> None:
    """How long SGD stays in which minima, by batch size, and where it ends.

    NAME is a problem of the gallery (see `batchwell problems`), FILE.toml your own
    settings (see `batchwell new`). Writes a run directory with report.html.
    """
    changes = _changes(pairs)
    changes |= {k: v for k, v in {"seed": seed, "workers": workers}.items() if v is not None}
    from ..studies import study as run_study

    try:
        done = run_study(what, out, code=code, resume=resume, quiet=quiet, **changes)
    except KeyboardInterrupt:
        folder = f" --out {out}" if out else ""
        extra = f" --code {code}" if code else ""
        interrupted(f"go on with\n  batchwell study {what}{extra}{folder} --resume")
    _show(done)


def _changes(pairs: tuple[str, ...]) -> dict[str, Any]:
    import tomllib

    out: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        require(bool(equals) and bool(key.strip()), "--set", pair, "must look like KEY=VALUE")
        try:
            out[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            raise InputError(
                f"--set {key}", value, "must be a TOML value, e.g. 0.5, [1, 2] or '\"text\"'"
            ) from None
    return out


def _show(done: Study) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.padding import Padding

    from ..report import summary_table

    console = Console()
    summary = summary_table(done.result)
    console.print(
        table(
            "Mean SGD steps until the basin is left",
            [dict(zip(summary.columns, row, strict=True)) for row in summary.rows],
        )
    )
    console.print(Padding(escape(done.answer), (1, 0)))
    rows = done.result
    failed = [row.error for row in rows.escapes if row.error]
    failed += [row.error for row in rows.finals if row.error]
    for error in failed:
        console.print(f"[red]failed:[/red] {escape(error)}", soft_wrap=True)
    console.print(f"report: {escape(str(done.report))}", soft_wrap=True)
    if failed:
        sys.exit(1)


@click.command()
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.toml")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def new(file: Path, force: bool) -> None:
    """Write a commented settings file for a study of your own loss."""
    from ..runs import write_atomic
    from ..settings import TEMPLATE

    require(file.suffix == ".toml", "FILE.toml", str(file), "must end in .toml")
    require(force or not file.exists(), "FILE.toml", str(file), "exists already: give --force")
    write_atomic(file, TEMPLATE.format(name=file.name).encode(), "FILE.toml")
    click.echo(f"wrote {file}: edit it, then run  batchwell study {file} --code my_loss.py")
