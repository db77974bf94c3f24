"""`batchwell train-report`: the page of a training that was logged."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("train-report")
@click.argument("logdir", type=click.Path(path_type=Path), metavar="LOGDIR")
@click.option("--out", type=click.Path(path_type=Path), help="File [default: LOGDIR/report.html].")
def train_report(logdir: Path, out: Path | None) -> None:
    """HTML report of a training logged in LOGDIR: noise, batch size, loss, predictions."""
    from ..report.training.page import train_report as write_report

    click.echo(f"report: {write_report(logdir, out)}")
