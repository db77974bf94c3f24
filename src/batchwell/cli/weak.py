"""`batchwell weak`: the weak error of the diffusions, and their order."""

from __future__ import annotations

from typing import Any

import click

from ._shared import Numbers


def _observables(loss: Any) -> dict[str, Any]:
    return {"square": lambda x: x @ x, "first": lambda x: x[0], "loss": loss.mean}


@click.command()
@click.argument("name", metavar="PROBLEM")
@click.option("--observable", default="square", help="square: |x|^2; first: x_1; loss: F(x).")
@click.option("--horizon", default=1.0, help="Time T = eta k at which laws are compared.")
@click.option("--learning-rate", type=Numbers(), default=".1,.05,.025,.0125", show_default=True)
@click.option("--batch-size", default=1, show_default=True)
def weak(
    name: str, observable: str, horizon: float, learning_rate: tuple[float, ...], batch_size: int
) -> None:
    """Weak error of the diffusions of order 1 and 2 against SGD, and their observed orders."""
    from ..dynamics import SGD
    from ..errors import one_of
    from ..problems import problem
    from ..weak import weak_errors

    found = problem(name)
    observables = _observables(found.loss)
    phi = observables[one_of("--observable", observable, observables)]
    sgd = SGD(found.loss, learning_rate[0], batch_size)
    for order, errors in weak_errors(sgd, phi, horizon, learning_rate, found.start).items():
        click.echo(
            f"order {order}: E {observable} at time {horizon:g}, {errors.method}\n{errors}\n"
        )
