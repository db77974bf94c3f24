"""Backward Kolmogorov equation in 1-D by Chebyshev collocation: expectations to many digits.

Rates on a grid are kept non-negative at the price of a mesh that must resolve tensor / drift. For
an expectation of a smooth phi that is not needed: u(t, x) = E phi(X_t | x) is as smooth as phi, and a
polynomial of moderate degree carries it whatever the temperature.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import expm

from ..dynamics import Diffusion
from ..errors import require
from ..estimate import Estimate
from .interval import Place, drift_and_variance, interval
from .operator import deterministic

Floats = NDArray[np.float64]

DEGREES = (72, 96, 128, 176, 240)
TOLERANCE = 1e-12


def smooth_expectation(
    diffusion: Diffusion,
    phi: Callable[[Floats], Floats],
    x0: ArrayLike,
    steps: float,
    place: Place = (-np.inf, np.inf),
) -> Estimate:
    """E phi(X_t), t = eta steps, of a 1-D diffusion from x0 (1,); `phi` maps (m, 1) to (m,).

    The degree is raised until two agree to 1e-12; their distance is the stated error. Ends of the
    interval reflect: infinite ones are cut where the law never comes.

    Raises
    ------
    InputError
        x0 outside the interval, or an end that nothing confines.

    Examples
    --------
    >>> from batchwell import SGD, additive, diffusion_approximation
    >>> flow = diffusion_approximation(SGD(additive(lambda x: x @ x / 2), 0.1))
    >>> round(smooth_expectation(flow, lambda x: x[:, 0] ** 2, [1.0], 10).value, 10)
    0.1785685191
    """
    x = np.atleast_1d(np.asarray(x0, dtype=np.float64))
    require(diffusion.dim == 1 and x.shape == (1,), "x0", x.shape, "must have shape (1,)")
    ends = interval(diffusion, place, (float(x[0]),))
    require(ends.lower < x[0] < ends.upper, "x0", x[0], "must lie inside the interval")
    time = steps * diffusion.learning_rate
    best, error, used = np.nan, np.inf, DEGREES[0]
    for degree in DEGREES:
        value = _collocate(diffusion, ends.lower, ends.upper, phi, float(x[0]), time, degree)
        change = abs(value - best) if np.isfinite(best) else np.inf
        if np.isfinite(best) and change > error:  # rounding: no more to be gained
            break
        best, error, used = value, change, degree
        if change <= TOLERANCE * (1 + abs(value)):
            break
    return deterministic(
        best,
        float(error) + 1e-13 * (1 + abs(best)),
        "1",
        f"backward Kolmogorov equation, Chebyshev collocation, degree {used}",
    )


def _chebyshev(n: int) -> tuple[Floats, Floats]:
    """Points cos(pi j / n), j = 0 ... n, and the differentiation matrix on them."""
    theta = np.pi * np.arange(n + 1) / n
    x = np.cos(theta)
    c = np.ones(n + 1)
    c[[0, -1]] = 2
    c *= (-1.0) ** np.arange(n + 1)
    # Differences by the sine formula: plain subtraction loses digits near the ends.
    gap = 2 * np.sin(np.add.outer(theta, theta) / 2) * np.sin(np.subtract.outer(theta, theta) / 2)
    gap = -gap + np.eye(n + 1)
    d = np.outer(c, 1 / c) / gap
    d -= np.diag(d.sum(axis=1))
    return x, d


def _collocate(
    diffusion: Diffusion,
    low: float,
    high: float,
    phi: Callable[[Floats], Floats],
    x0: float,
    time: float,
    degree: int,
) -> float:
    t, d = _chebyshev(degree)
    half = (high - low) / 2
    y = low + half * (t + 1)
    first = d / half
    drift, tensor = drift_and_variance(diffusion, y)
    # Reflecting ends: end values follow from the inner ones by u' = 0.
    ends, inner = [0, degree], slice(1, degree)
    lift = np.zeros((degree + 1, degree - 1))
    lift[inner] = np.eye(degree - 1)
    lift[ends] = -np.linalg.solve(first[np.ix_(ends, ends)], first[ends, inner])
    operator = drift[:, None] * first + 0.5 * tensor[:, None] * (first @ first)
    flow = expm(time * (operator @ lift)[inner])
    u = lift @ (flow @ np.asarray(phi(y[inner, None]), dtype=np.float64))
    s = (x0 - low) / half - 1
    weights = (-1.0) ** np.arange(degree + 1)
    weights[[0, -1]] /= 2
    gap = s - t
    if np.any(np.abs(gap) < 1e-15):
        return float(u[int(np.argmin(np.abs(gap)))])
    return float((weights / gap) @ u / (weights / gap).sum())
