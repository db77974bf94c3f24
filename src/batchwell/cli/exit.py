"""`batchwell exit`: mean exit times by every method."""

from __future__ import annotations

from typing import Any

import click

from ..errors import require
from ._shared import Numbers, table


@click.command("exit")
@click.argument("name", metavar="PROBLEM")
@click.option("--learning-rate", type=Numbers(), default=".2,.1", show_default=True)
@click.option("--batch-size", type=Numbers(), default="1,2", show_default=True)
@click.option("--method", "methods", multiple=True, help="Only this one; may be repeated.")
def exit_times(
    name: str,
    learning_rate: tuple[float, ...],
    batch_size: tuple[float, ...],
    methods: tuple[str, ...],
) -> None:
    """Mean exit time of SGD and of its diffusion from a problem's domain, by every method."""
    from rich.console import Console

    from ..dynamics import SGD, diffusion_approximation
    from ..errors import whole
    from ..problems import problem

    found = problem(name)
    require(found.domain is not None, "PROBLEM", name, "has no domain to leave: use `study`")
    rows = []
    for rate in learning_rate:
        for size in (whole("--batch-size", int(b)) for b in batch_size if b == int(b)):
            sgd = SGD(found.loss, rate, size)
            for title, process in (("SGD", sgd), ("diffusion", diffusion_approximation(sgd))):
                head = {"eta": f"{rate:g}", "B": str(size), "process": title}
                rows += [{**head, **row} for row in _exit_rows(process, found, methods)]
    Console().print(table("Mean exit times, in SGD steps", rows))


def _exit_rows(process: Any, found: Any, methods: tuple[str, ...]) -> list[dict[str, str]]:
    from ..exits import compare_exit_times

    out = compare_exit_times(process, found.start, found.domain, methods or None)
    answers = {name: f"{e.value:.6g}" for name, e in out.answers.items()}
    ranges = {
        name: f"[{e.interval[0]:.6g}, {e.interval[1]:.6g}]" for name, e in out.answers.items()
    }
    rows = [{"method": m, "steps": answers[m], "interval": ranges[m]} for m in answers]
    rows += [{"method": m, "steps": "—", "interval": why} for m, why in out.refused.items()]
    return [{**row, "agreement": out.verdict if k == 0 else ""} for k, row in enumerate(rows)]
