"""What commands share: kinds of arguments and tables for the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ..errors import InputError

if TYPE_CHECKING:
    from rich.table import Table


INTERRUPTED = 130
# Batch sizes from here on do not fit the engine's counters.
LARGEST = 2**31


def interrupted(how: str) -> NoReturn:
    """Say after Ctrl-C what was kept, and how to go on; exit as shells expect."""
    click.echo(f"\ninterrupted: what was finished is kept, with a report; {how}", err=True)
    sys.exit(INTERRUPTED)


class Numbers(click.ParamType):
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


class WholeNumbers(Numbers):
    """Comma-separated whole numbers from 1 on: ``1,2,1e3``."""

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        """The numbers in `value`, integers all."""
        numbers = super().convert(value, param, ctx)
        for number in numbers:
            if not 1 <= number < LARGEST or number != int(number):
                allowed = "must be whole numbers from 1 on, below 2^31"
                raise InputError(param.opts[0], f"{number:g}", allowed)
        return tuple(int(number) for number in numbers)


def table(title: str, rows: list[dict[str, str]]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in rows[0] if rows else ["nothing finished yet"]:
        table.add_column(name)
    for row in rows:
        table.add_row(*(escape(value) for value in row.values()))
    return table
