"""`batchwell problems`: the gallery and its known answers."""

from __future__ import annotations

from typing import Any

import click

from ._shared import table


@click.command()
@click.argument("name", required=False)
def problems(name: str | None) -> None:
    """The gallery, or one problem NAME with its known answers."""
    from rich.console import Console

    from ..problems import PROBLEMS, problem

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
        console.print(table("Problems", rows))
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
    console.print(table("Known answers", rows) if rows else "no closed answer is known")
    for source in dict.fromkeys(k.source for k in found.known):
        console.print(f"[dim]source: {source}[/dim]")


def _answer(value: Any, unit: str) -> str:
    text = f"{value:.10g}" if isinstance(value, float) else str(value)
    return text if unit == "1" else f"{text} {unit}"
