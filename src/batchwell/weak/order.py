"""Weak error of a diffusion over learning rates: its order, its constant, and who is closer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import ArrayLike

from ..dynamics import SGD, need_sgd
from ..errors import one_of, positive, require
from ..estimate import Estimate
from ..law.operator import deterministic
from ..points import numbers, point
from .expectations import METHODS, Phi, both_expectations, choose, real_valued

ORDER_TOLERANCE = 0.15
BLURRED = 0.05  # relative error above which operators in 2-D give way to a simulation
Table = dict[int, list[tuple[Estimate, Estimate, Estimate]]]


@dataclass(frozen=True)
class WeakError:
    """Weak error of the diffusion of one order, over several learning rates.

    Attributes
    ----------
    order
        1 or 2.
    learning_rates
        (k,), from large to small.
    errors
        E phi of SGD minus E phi of the diffusion, for each learning rate.
    chain, diffusion
        The two expectations themselves.
    observed_order
        Slope of log|error| in log eta between the two smallest learning rates.
    constant
        ``error / eta**order`` extrapolated to eta = 0.
    asymptotic
        Whether the observed order has come to within 0.15 of `order`, and is settling.
    method
        "moments", "operators" or "simulation".
    notes
        Plain sentences.
    """

    order: int
    learning_rates: tuple[float, ...]
    errors: tuple[Estimate, ...]
    chain: tuple[Estimate, ...]
    diffusion: tuple[Estimate, ...]
    observed_order: Estimate
    constant: Estimate
    asymptotic: bool
    method: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows = [
            f"eta {eta:<10.6g} error {e.value:+.6e} +- {e.stderr:.1e}"
            for eta, e in zip(self.learning_rates, self.errors, strict=True)
        ]
        regime = "reached" if self.asymptotic else "not reached"
        rows.append(
            f"observed order {self.observed_order} (expected {self.order}; asymptotic "
            f"regime {regime}), constant {self.constant.value:.6g}"
        )
        return "\n".join([*rows, *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe dictionary for a report."""
        return {
            "order": self.order,
            "learning_rates": list(self.learning_rates),
            "errors": [e.to_dict() for e in self.errors],
            "chain": [e.to_dict() for e in self.chain],
            "diffusion": [e.to_dict() for e in self.diffusion],
            "observed_order": self.observed_order.to_dict(),
            "constant": self.constant.to_dict(),
            "asymptotic": self.asymptotic,
            "method": self.method,
            "notes": list(self.notes),
        }


def weak_error(
    sgd: SGD,
    order: int,
    phi: Phi,
    horizon: float,
    learning_rates: Sequence[float],
    start: ArrayLike,
    method: str = "auto",
    paths: int = 100_000,
    seed: int = 0,
) -> WeakError:
    """Weak error of the diffusion of `order` against SGD at time `horizon`.

    Parameters
    ----------
    sgd
        SGD; its own learning rate is replaced by each of `learning_rates`.
    phi
        ``phi(x)``: scalar in jax.numpy of one point x (d,).
    horizon
        Time T = eta K; every learning rate must divide it.
    learning_rates
        At least two.
    start
        Start (d,).
    method
        "auto" takes the first of "moments" (quadratic loss, phi of degree 2), "operators" (1 and 2
        dimensions) and "simulation" that applies; a simulation also where operators in 2-D leave an
        error blurred (5 %), if it is the sharper one.
    paths, seed
        Coupled pairs and root seed of a simulation.

    Raises
    ------
    InputError
        Naming the argument, or why a `method` does not apply.

    References
    ----------
    Hu, Li, Li & Liu, arXiv:1705.07562, theorem 1; Li, Tai & E, J. Mach. Learn. Res. 20 (2019), no. 40.

    Examples
    --------
    T1: f = x^2/2, unit noise, E x^2 at T = 1; the constant tends to -exp(-2) = -.1353353.

    >>> from batchwell import SGD, additive
    >>> sgd = SGD(additive(lambda x: x @ x / 2), learning_rate=0.1)
    >>> out = weak_error(
    ...     sgd, 1, lambda x: x @ x, 1.0, [1 / 64, 1 / 128, 1 / 256, 1 / 512], start=[1.0]
    ... )
    >>> out.asymptotic, round(out.constant.value, 5)
    (True, -0.13534)
    """
    return weak_errors(sgd, phi, horizon, learning_rates, start, (order,), method, paths, seed)[
        order
    ]


def weak_errors(
    sgd: SGD,
    phi: Phi,
    horizon: float,
    learning_rates: Sequence[float],
    start: ArrayLike,
    orders: Sequence[int] = (1, 2),
    method: str = "auto",
    paths: int = 100_000,
    seed: int = 0,
) -> dict[int, WeakError]:
    """`weak_error` for several orders at once; says where order 1 is the closer one."""
    etas = _check_rates(horizon, learning_rates)
    x = point("start", start, need_sgd(sgd).loss.dim)
    for order in orders:
        require(order in (1, 2), "order", order, "must be 1 or 2")
    phi = real_valued(phi, sgd.loss.dim)
    chosen = choose(sgd, phi, one_of("method", method, METHODS))

    def ask(how: str) -> Table:
        table: Table = {o: [] for o in orders}
        for eta in etas:
            here, steps = replace(sgd, learning_rate=eta), round(horizon / eta)
            rows = both_expectations(how, here, phi, x, steps, orders, paths, seed)
            for o in orders:
                table[o].append(rows[o])
        return table

    table = ask(chosen)
    # A law that is narrow in its box is not resolved by a polynomial of any degree that fits.
    if method == "auto" and chosen == "operators" and len(x) == 2 and _blurred(table) > BLURRED:
        drawn = ask("simulation")
        if _blurred(drawn) < _blurred(table):
            chosen, table = "simulation", drawn
    out = {o: _summarise(o, etas, table[o], chosen) for o in orders}
    return _compare(out) if {1, 2} <= set(orders) else out


def _blurred(table: Table) -> float:
    """Largest relative error of a weak error at the smallest learning rate."""
    return max(rows[-1][0].stderr / max(abs(rows[-1][0].value), 1e-300) for rows in table.values())


def _check_rates(horizon: float, learning_rates: Sequence[float]) -> tuple[float, ...]:
    positive("horizon", horizon)
    rates = numbers("learning_rates", learning_rates, "must be at least two numbers")
    etas = tuple(sorted({positive("learning_rates", e) for e in rates.ravel()}, reverse=True))
    require(len(etas) >= 2, "learning_rates", list(etas), "must hold at least two values")
    for eta in etas:
        ratio = horizon / eta
        require(
            abs(ratio - round(ratio)) < 1e-6 * ratio and round(ratio) >= 1,
            "learning_rates",
            eta,
            f"must divide the horizon {horizon:g} into whole steps",
        )
    return etas


def _summarise(
    order: int,
    etas: tuple[float, ...],
    rows: list[tuple[Estimate, Estimate, Estimate]],
    method: str,
) -> WeakError:
    errors, chain, flow = (tuple(r[i] for r in rows) for i in range(3))
    slopes = [_slope(a, b) for a, b in itertools.pairwise(zip(etas, errors, strict=True))]
    observed = slopes[-1]
    previous = slopes[-2].value if len(slopes) > 1 else observed.value
    settled = abs(observed.value - order) <= ORDER_TOLERANCE
    settling = abs(observed.value - order) <= abs(previous - order) + observed.stderr + 0.02
    resolved = math.isfinite(observed.stderr) and observed.stderr < ORDER_TOLERANCE
    notes = []
    if not resolved:
        notes.append(
            "errors are not resolved at the smallest learning rate: more paths, or "
            "larger learning rates"
        )
    elif observed.value > order + ORDER_TOLERANCE:
        notes.append(
            f"the error falls faster than expected (order {observed.value:.3g}): its leading "
            "constant nearly vanishes for this start, time and function"
        )
    elif not settled:
        notes.append(
            f"the observed order {observed.value:.3g} is not yet {order}: learning rates "
            "are too large for the asymptotic regime"
        )
    return WeakError(
        order,
        etas,
        errors,
        chain,
        flow,
        observed,
        _constant(order, etas, errors),
        bool(settled and settling and resolved),
        method,
        tuple(notes),
    )


def _slope(first: tuple[float, Estimate], second: tuple[float, Estimate]) -> Estimate:
    (eta_a, a), (eta_b, b) = first, second
    if a.value == 0 or b.value == 0:
        return deterministic(math.nan, math.nan, "1", "log-log slope")
    span = math.log(eta_a / eta_b)
    value = math.log(abs(a.value / b.value)) / span
    error = math.hypot(a.stderr / a.value, b.stderr / b.value) / span
    half = error if a.level == 1 else 1.96 * error
    return Estimate(
        value,
        error,
        (value - half, value + half),
        "1",
        "log-log slope between the two smallest learning rates",
        a.n,
        level=a.level,
    )


def _constant(order: int, etas: tuple[float, ...], errors: tuple[Estimate, ...]) -> Estimate:
    """error / eta^order is c + O(eta): a straight line through the two smallest eta."""
    (ea, a), (eb, b) = (
        (e, x.value / e**order) for e, x in zip(etas[-2:], errors[-2:], strict=True)
    )
    value = b + (b - a) * eb / (ea - eb)
    noise = math.hypot(*(x.stderr / e**order for e, x in zip(etas[-2:], errors[-2:], strict=True)))
    error = abs(value - b) + noise
    return deterministic(value, error, "1", "extrapolated to learning rate 0")


def _compare(out: dict[int, WeakError]) -> dict[int, WeakError]:
    """Say at which learning rates the diffusion of order 1 is the closer one."""
    pairs = zip(out[1].learning_rates, out[1].errors, out[2].errors, strict=True)
    worse = [eta for eta, a, b in pairs if abs(a.value) + a.stderr + b.stderr < abs(b.value)]
    if not worse:
        return out
    listed = ", ".join(f"{eta:g}" for eta in worse)
    note = f"order 1 is closer to SGD than order 2 at learning rate {listed}"
    return {o: replace(w, notes=(*w.notes, note)) for o, w in out.items()}
