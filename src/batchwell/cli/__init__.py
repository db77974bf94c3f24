"""The command line: parse, call, record. One file a command; what it does is the library's work."""

from __future__ import annotations

import sys
from typing import Any

import click

from .. import __version__
from ..errors import BatchwellError
from .exit import exit_times
from .problems import problems
from .study import new, study
from .weak import weak


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


for command in (study, new, problems, weak, exit_times):
    main.add_command(command)
