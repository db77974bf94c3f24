"""Everything about one loss's weak error in one object: what `batchwell weak` prints and reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

from .._jax import jax, jnp
from ..dynamics import SGD
from ..errors import InputError, one_of
from ..loss import StochasticLoss
from ..verdicts import Validity, validity
from .densities import Snapshots, snapshots
from .order import WeakError, weak_errors

Array = Any
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Observable:
    """A function phi of the parameters whose mean is compared: how it is written, and how made."""

    formula: str
    make: Callable[[StochasticLoss], Callable[[Array], Array]]


OBSERVABLES: dict[str, Observable] = {
    "square": Observable("|x|²", lambda loss: lambda x: x @ x),
    "first": Observable("x₁", lambda loss: lambda x: x[0]),
    "cosine": Observable("cos 2x₁", lambda loss: lambda x: jnp.cos(2 * x[0])),
    "fourth": Observable("|x|⁴", lambda loss: lambda x: (x @ x) ** 2),
    "loss": Observable("F(x)", lambda loss: loss.mean),
}


@dataclass(frozen=True)
class WeakStudy:
    """Weak errors, laws side by side and verdicts for one SGD.

    Attributes
    ----------
    sgd
        At the largest of the learning rates: the one whose laws are shown.
    start, horizon, observable
        Start (d,), time T = eta K, key of `OBSERVABLES`.
    errors
        Weak errors by order.
    pictures
        Laws over time at the largest learning rate; None beyond 2 dimensions.
    no_pictures
        Why there are none.
    minimum
        (d,) where descent from the start leads: what the verdicts are about.
    verdicts
        `Validity` there by learning rate, as far as there is one.
    no_verdicts
        Why there are none.
    seconds
        What it took.
    """

    sgd: SGD
    start: Floats
    horizon: float
    observable: str
    errors: dict[int, WeakError]
    pictures: Snapshots | None
    no_pictures: str
    minimum: Floats
    verdicts: dict[float, Validity]
    no_verdicts: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe dictionary."""
        return {
            "loss": self.sgd.loss.name,
            "batch_size": self.sgd.batch_size,
            "sampling": self.sgd.sampling,
            "start": self.start.tolist(),
            "horizon": self.horizon,
            "observable": self.observable,
            "errors": {str(k): v.to_dict() for k, v in self.errors.items()},
            "pictures": self.pictures.to_dict() if self.pictures else self.no_pictures,
            "minimum": self.minimum.tolist(),
            "verdicts": {f"{k:g}": v.to_dict() for k, v in self.verdicts.items()},
        }


def weak_study(
    sgd: SGD,
    start: ArrayLike,
    horizon: float,
    learning_rates: Sequence[float],
    observable: str = "square",
    orders: Sequence[int] = (1, 2),
    method: str = "auto",
    paths: int = 100_000,
    seed: int = 0,
) -> WeakStudy:
    """Weak errors over `learning_rates`, laws over time and verdicts (see `weak_errors`).

    Parameters
    ----------
    observable
        Key of `OBSERVABLES`.
    orders, method
        Orders of the diffusions compared, and how (see `weak_error`).

    Raises
    ------
    InputError
        As `weak_errors`, and for an unknown observable.

    Examples
    --------
    >>> from batchwell import SGD, additive
    >>> sgd = SGD(additive(lambda x: x @ x / 2), learning_rate=0.1)
    >>> found = weak_study(sgd, [1.0], horizon=1.0, learning_rates=[0.1, 0.05])
    >>> round(found.errors[1].errors[0].value, 10)  # E x^2 of SGD less that of its diffusion
    -0.0107590569
    """
    begin = time.perf_counter()
    phi = OBSERVABLES[one_of("observable", observable, OBSERVABLES)].make(sgd.loss)
    errors = weak_errors(sgd, phi, horizon, learning_rates, start, orders, method, paths, seed)
    rates = next(iter(errors.values())).learning_rates
    largest = replace(sgd, learning_rate=rates[0])
    x = np.atleast_1d(np.asarray(start, dtype=np.float64))
    pictures, no_pictures = _pictures(largest, x, horizon)
    minimum = minimum_near(sgd.loss, x)
    verdicts, no_verdicts = _verdicts(sgd, rates, minimum)
    seconds = time.perf_counter() - begin
    return WeakStudy(
        largest,
        x,
        float(horizon),
        observable,
        errors,
        pictures,
        no_pictures,
        minimum,
        verdicts,
        no_verdicts,
        seconds,
    )


def _pictures(sgd: SGD, start: Floats, horizon: float) -> tuple[Snapshots | None, str]:
    total = round(horizon / sgd.learning_rate)
    steps = sorted({max(1, round(total * share)) for share in (0.125, 0.25, 0.5, 1.0)})
    try:
        return snapshots(sgd, start, steps), ""
    except InputError as error:
        return None, str(error)


def minimum_near(loss: StochasticLoss, start: Floats) -> Floats:
    """Where descent of F from `start` (d,) leads."""
    value, slope = jax.jit(loss.mean), jax.jit(loss.gradient)
    found = minimize(
        lambda x: float(value(x)),
        start,
        jac=lambda x: np.asarray(slope(x)),
        method="BFGS",
        tol=1e-9,
    )
    return np.asarray(found.x, dtype=np.float64)


def _verdicts(
    sgd: SGD, rates: Sequence[float], minimum: Floats
) -> tuple[dict[float, Validity], str]:
    out: dict[float, Validity] = {}
    try:
        for rate in (rates[0], rates[-1]):
            out[rate] = validity(replace(sgd, learning_rate=rate), minimum)
    except InputError as error:
        return {}, str(error)
    return out, ""
