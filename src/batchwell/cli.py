"""The command line: parse, call, record. What it does is `study`'s and the gallery's work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import __version__
from .errors import BatchwellError, InputError, require

if TYPE_CHECKING:
    from rich.table import Table

    from .studies import Study

INTERRUPTED = 130


class _Friendly(click.Group):
    """Errors made for users become one line and an exit code; others keep their traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; with ``--debug`` every error keeps its traceback."""
        if ctx.params.get("debug"):
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except BatchwellError as error:
            _fail(str(error), error.exit_code)
        except MemoryError:
            _fail("out of memory: fewer paths, starts or workers need less", 1)
        except OSError as error:
            _fail(f"{error.filename or 'file'}: {error.strerror or error}", 1)


def _fail(text: str, code: int) -> None:
    click.echo(f"error: {text}", err=True)
    sys.exit(code)


@click.group(cls=_Friendly, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="batchwell")
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
def main(debug: bool) -> None:
    """What batch size and learning rate do to SGD on a nonconvex loss."""


@main.command()
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
    from .studies import study as run_study

    try:
        done = run_study(what, out, code=code, resume=resume, quiet=quiet, **changes)
    except KeyboardInterrupt:
        folder = f" --out {out}" if out else ""
        extra = f" --code {code}" if code else ""
        click.echo(
            f"\ninterrupted: what was finished is kept, with a report; go on with\n"
            f"  batchwell study {what}{extra}{folder} --resume",
            err=True,
        )
        sys.exit(INTERRUPTED)
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

    from .report import summary_table

    console = Console()
    summary = summary_table(done.result)
    console.print(
        _table(
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


def _table(title: str, rows: list[dict[str, str]]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in rows[0] if rows else ["nothing finished yet"]:
        table.add_column(name)
    for row in rows:
        table.add_row(*(escape(value) for value in row.values()))
    return table


@main.command()
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.toml")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def new(file: Path, force: bool) -> None:
    """Write a commented settings file for a study of your own loss."""
    from .runs import write_atomic
    from .settings import TEMPLATE

    require(file.suffix == ".toml", "FILE.toml", str(file), "must end in .toml")
    require(force or not file.exists(), "FILE.toml", str(file), "exists already: give --force")
    write_atomic(file, TEMPLATE.format(name=file.name).encode(), "FILE.toml")
    click.echo(f"wrote {file}: edit it, then run  batchwell study {file} --code my_loss.py")


@main.command()
@click.argument("name", required=False)
def problems(name: str | None) -> None:
    """The gallery, or one problem NAME with its known answers."""
    from rich.console import Console

    from .problems import PROBLEMS, problem

    console = Console()
    if name is None:
        rows = [
            {
                "problem": key,
                "dim": str(len(found.start)),
                "about": found.summary,
                "known answers": str(len(found.known)),
            }
            for key, found in ((key, make()) for key, make in PROBLEMS.items())
        ]
        console.print(_table("Problems", rows))
        return
    found = problem(name)
    rows = [
        {
            "question": k.question,
            "of": k.process,
            "answer": _answer(k.value, k.unit),
            "at": ", ".join(f"{key} {value}" for key, value in k.settings.items()),
        }
        for k in found.known
    ]
    console.print(f"{found.name}: {found.summary}")
    console.print(_table("Known answers", rows) if rows else "no closed answer is known")
    for source in dict.fromkeys(k.source for k in found.known):
        console.print(f"[dim]source: {source}[/dim]")


def _answer(value: Any, unit: str) -> str:
    text = f"{value:.10g}" if isinstance(value, float) else str(value)
    return text if unit == "1" else f"{text} {unit}"


class _Numbers(click.ParamType):
    """Comma-separated numbers: ``.1,.05``."""

    name = "NUMBERS"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        """The numbers in `value`."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            raise InputError(param.opts[0], value, "must be numbers, e.g. .1,.05") from None


def _observables(loss: Any) -> dict[str, Any]:
    return {"square": lambda x: x @ x, "first": lambda x: x[0], "loss": loss.mean}


@main.command()
@click.argument("name", metavar="PROBLEM")
@click.option("--observable", default="square", help="square: |x|^2; first: x_1; loss: F(x).")
@click.option("--horizon", default=1.0, help="Time T = eta k at which laws are compared.")
@click.option("--learning-rate", type=_Numbers(), default=".1,.05,.025,.0125", show_default=True)
@click.option("--batch-size", default=1, show_default=True)
def weak(
    name: str, observable: str, horizon: float, learning_rate: tuple[float, ...], batch_size: int
) -> None:
    """Weak error of the diffusions of order 1 and 2 against SGD, and their observed orders."""
    from .dynamics import SGD
    from .errors import one_of
    from .problems import problem
    from .weak import weak_errors

    found = problem(name)
    observables = _observables(found.loss)
    phi = observables[one_of("--observable", observable, observables)]
    sgd = SGD(found.loss, learning_rate[0], batch_size)
    for order, errors in weak_errors(sgd, phi, horizon, learning_rate, found.start).items():
        click.echo(
            f"order {order}: E {observable} at time {horizon:g}, {errors.method}\n{errors}\n"
        )


@main.command("exit")
@click.argument("name", metavar="PROBLEM")
@click.option("--learning-rate", type=_Numbers(), default=".2,.1", show_default=True)
@click.option("--batch-size", type=_Numbers(), default="1,2", show_default=True)
@click.option("--method", "methods", multiple=True, help="Only this one; may be repeated.")
def exit_times(
    name: str,
    learning_rate: tuple[float, ...],
    batch_size: tuple[float, ...],
    methods: tuple[str, ...],
) -> None:
    """Mean exit time of SGD and of its diffusion from a problem's domain, by every method."""
    from rich.console import Console

    from .dynamics import SGD, diffusion_approximation
    from .errors import whole
    from .problems import problem

    found = problem(name)
    require(found.domain is not None, "PROBLEM", name, "has no domain to leave: use `study`")
    rows = []
    for rate in learning_rate:
        for size in (whole("--batch-size", int(b)) for b in batch_size if b == int(b)):
            sgd = SGD(found.loss, rate, size)
            for title, process in (("SGD", sgd), ("diffusion", diffusion_approximation(sgd))):
                head = {"eta": f"{rate:g}", "B": str(size), "process": title}
                rows += [{**head, **row} for row in _exit_rows(process, found, methods)]
    Console().print(_table("Mean exit times, in SGD steps", rows))


def _exit_rows(process: Any, found: Any, methods: tuple[str, ...]) -> list[dict[str, str]]:
    from .exits import compare_exit_times

    out = compare_exit_times(process, found.start, found.domain, methods or None)
    answers = {name: f"{e.value:.6g}" for name, e in out.answers.items()}
    ranges = {
        name: f"[{e.interval[0]:.6g}, {e.interval[1]:.6g}]" for name, e in out.answers.items()
    }
    rows = [{"method": m, "steps": answers[m], "interval": ranges[m]} for m in answers]
    rows += [{"method": m, "steps": "—", "interval": why} for m, why in out.refused.items()]
    return [{**row, "agreement": out.verdict if k == 0 else ""} for k, row in enumerate(rows)]
