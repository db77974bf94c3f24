"""Numbers behind the figures on escape: times over batch size and learning rate, survival."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..domain import Domain
from ..dynamics import SGD
from ..ensemble import FirstExits
from ..errors import require
from ..estimate import Estimate, exponential_mean
from .compare import ExitComparison, compare_exit_times
from .exponents import ExponentRow, exponent_map

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ScanRow:
    """Exit times at one learning rate and batch size.

    Attributes
    ----------
    process
        SGD there.
    inverse_temperature
        1 / eps, B/eta with replacement.
    comparison
        Answers of all methods, in SGD steps.
    exponents
        V of SGD and of its diffusion.
    """

    process: SGD
    inverse_temperature: float
    comparison: ExitComparison
    exponents: ExponentRow


def exit_scan(
    process: SGD,
    start: ArrayLike,
    domain: Domain,
    learning_rates: Sequence[float],
    batch_sizes: Sequence[int],
    methods: Sequence[str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[ScanRow]:
    """`compare_exit_times` for every learning rate and batch size, with both exponents.

    The numbers of the figure of log time against B/eta; `fitted_exponent` gives its slope. The
    exponents do not depend on the learning rate: they are computed once per batch size.

    Examples
    --------
    >>> from batchwell import SGD, additive, half_space
    >>> sgd = SGD(additive(lambda x: (x @ x - 1) ** 2 / 4), learning_rate=0.1)
    >>> rows = exit_scan(sgd, [-1.0], half_space([1.0], 0.0), [0.1], [1, 2], ["law"])
    >>> round(fitted_exponent(rows, "law").value, 2), round(rows[0].exponents.sgd, 2)
    (0.49, 0.5)
    """
    require(
        bool(learning_rates) and bool(batch_sizes), "batch_sizes", batch_sizes, "must not be empty"
    )
    lines = exponent_map(process, start, domain, batch_sizes, (process.sampling,))
    rows = []
    for eta in learning_rates:
        for size, line in zip(batch_sizes, lines, strict=True):
            here = replace(process, learning_rate=eta, batch_size=size)
            answer = compare_exit_times(here, start, domain, methods, options)
            rows.append(ScanRow(here, 1.0 / here.temperature, answer, line))
    return rows


def fitted_exponent(rows: Sequence[ScanRow], method: str = "direct") -> Estimate:
    """Slope of log exit steps against 1 / eps, by weighted least squares over `rows`.

    To be compared with both exponents of the rows. It still contains the slope of the prefactor.

    Raises
    ------
    InputError
        Fewer than two rows where `method` answered.
    """
    used = [r for r in rows if method in r.comparison.answers]
    require(len(used) >= 2, "method", method, "must have answered for at least two rows")
    x = np.array([r.inverse_temperature for r in used])
    answers = [r.comparison.answers[method] for r in used]
    y = np.array([math.log(a.value) for a in answers])
    error = np.array(
        [max(a.stderr / a.value, 1e-6) if a.stderr == a.stderr else 0.1 for a in answers]
    )
    weights = error**-2.0
    centred = x - np.average(x, weights=weights)
    spread = float(np.sum(weights * centred**2))
    require(spread > 0, "batch_sizes", len(used), "must give at least two temperatures")
    slope, stderr = float(np.sum(weights * centred * y)) / spread, spread**-0.5
    return Estimate(
        slope,
        stderr,
        (slope - 1.96 * stderr, slope + 1.96 * stderr),
        "loss",
        f"weighted slope of log exit steps ({method})",
        len(used),
    )


def expected_slope(rows: Sequence[ScanRow], over_boundary: bool) -> dict[str, float]:
    """Slopes of log exit steps in 1 / eps that both exponents predict, prefactor included.

    Over a saddle the prefactor does not depend on eps: the slope is V. Over a boundary against the
    drift it goes like sqrt(eps) (Naeh, Klosek, Matkowsky & Schuss, SIAM J. Appl. Math. 50 (1990)),
    which takes ``log(x_2 / x_1) / (2 (x_2 - x_1))`` off, x = 1 / eps at the ends of the rows.

    Returns
    -------
    dict
        "sgd" and "diffusion".

    Examples
    --------
    >>> from batchwell import SGD, additive, ball
    >>> from batchwell.exits import exit_scan, fitted_exponent
    >>> bowl = SGD(additive(lambda x: x @ x / 2), learning_rate=0.05)
    >>> rows = exit_scan(bowl, [0.0], ball([0.0], 1.0), [0.05], [1, 2], ["law"])
    >>> slope = fitted_exponent(rows, "law").value
    >>> abs(slope / expected_slope(rows, over_boundary=True)["sgd"] - 1) < 0.02
    True
    """
    ends = sorted(r.inverse_temperature for r in rows)
    require(ends[-1] > ends[0], "rows", len(rows), "must have at least two temperatures")
    off = math.log(ends[-1] / ends[0]) / (2 * (ends[-1] - ends[0])) if over_boundary else 0.0
    line = rows[0].exponents
    return {"sgd": line.sgd - off, "diffusion": line.diffusion - off}


def survival_curve(exits: FirstExits) -> dict[str, Floats]:
    """Share still inside against time, beside the exponential law of the same mean.

    Censoring happens at one horizon for all paths, so the share needs no correction before it.

    Returns
    -------
    dict
        "steps", "share" and "exponential", each (events + 1,).
    """
    n = len(exits.steps)
    steps = np.concatenate([[0.0], np.sort(exits.steps[exits.observed])])
    share = 1.0 - np.arange(len(steps)) / n
    mean = exponential_mean(float(exits.steps.sum()), int(exits.observed.sum()), n).value
    return {"steps": steps, "share": share, "exponential": np.exp(-steps / mean)}
