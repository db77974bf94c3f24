"""Backward Kolmogorov equation in 1-D and 2-D by Chebyshev collocation: expectations to many digits.

Rates on a grid are kept non-negative at the price of a mesh that must resolve tensor / drift. For
an expectation of a smooth phi that is not needed: u(t, x) = E phi(X_t | x) is as smooth as phi, and a
polynomial of moderate degree carries it whatever the temperature.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import expm

from ..dynamics import Diffusion
from ..errors import require
from ..estimate import Estimate
from ..points import point
from .fields import evaluate
from .interval import interval
from .operator import deterministic

Floats = NDArray[np.float64]

DEGREES = {1: (72, 96, 128, 176, 240), 2: (20, 25, 30)}
TOLERANCE = 1e-12
ROUNDED = 1e-9  # changes below this may grow again by rounding


def smooth_expectation(
    diffusion: Diffusion,
    phi: Callable[[Floats], Floats],
    start: ArrayLike,
    steps: float,
    place: Any = None,
) -> Estimate:
    """E phi(X_t), t = eta steps, of a 1-D or 2-D diffusion from `start`; `phi` maps (m, d) to (m,).

    The degree is raised until two agree to 1e-12; their distance is the stated error.

    Parameters
    ----------
    place
        1-D: (lower, upper), by default the whole line, cut where the law never comes.
        2-D: two corners of a box that the law does not meet. Ends reflect.

    Raises
    ------
    InputError
        `start` outside the box, an end that nothing confines, or more than 2 dimensions.

    Examples
    --------
    >>> from batchwell import SGD, additive, diffusion_approximation
    >>> flow = diffusion_approximation(SGD(additive(lambda x: x @ x / 2), 0.1))
    >>> round(smooth_expectation(flow, lambda x: x[:, 0] ** 2, [1.0], 10).value, 10)
    0.1785685191
    """
    d = diffusion.dim
    require(d in (1, 2), "dim", d, "must be 1 or 2 here")
    x = point("start", start, d)
    if d == 1:
        whole_line = (-np.inf, np.inf)
        ends = interval(diffusion, whole_line if place is None else place, (float(x[0]),))
        bounds = np.array([[ends.lower], [ends.upper]])
    else:
        require(place is not None, "place", place, "must be given in 2 dimensions")
        bounds = np.asarray(place, dtype=np.float64)
    inside = bool(np.all(bounds[0] < x) and np.all(x < bounds[1]))
    require(inside, "start", x, "must lie inside the box")
    time = steps * diffusion.learning_rate
    best, changes, used = np.nan, [np.inf], 0
    for degree in DEGREES[d]:
        value = _collocate(diffusion, bounds, phi, x, time, degree)
        change = abs(value - best) if used else np.inf
        if change > changes[-1] and changes[-1] <= ROUNDED * (1 + abs(best)):
            break  # rounding: no more to be gained
        best, used = value, degree
        changes.append(change)
        if change <= TOLERANCE * (1 + abs(value)):
            break
    error = _left_open(changes, TOLERANCE * (1 + abs(best)))
    return deterministic(
        best,
        float(error) + 1e-13 * (1 + abs(best)),
        "1",
        f"backward Kolmogorov equation, Chebyshev collocation, degree {used}",
    )


def _left_open(changes: list[float], settled: float) -> float:
    """Error of the last value, from the changes of degree to degree.

    One small change may be chance where they do not fall steadily: the one before it counts too.
    """
    before, last = changes[-2:]
    if last <= settled or not np.isfinite(before):
        return last
    return max(last, float(np.sqrt(last * before)))


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
    bounds: Floats,
    phi: Callable[[Floats], Floats],
    start: Floats,
    time: float,
    degree: int,
) -> float:
    d, count = len(start), degree + 1
    half = (bounds[1] - bounds[0]) / 2
    t, first = _chebyshev(degree)
    # Reflecting ends: end values follow from the inner ones by u' = 0.
    ends, inner = [0, degree], slice(1, degree)
    lift = np.zeros((count, count - 2))
    lift[inner] = np.eye(count - 2)
    lift[ends] = -np.linalg.solve(first[np.ix_(ends, ends)], first[ends, inner])
    y = np.stack(
        [
            g.ravel()
            for g in np.meshgrid(
                *[lo + h * (t[inner] + 1) for lo, h in zip(bounds[0], half, strict=True)],
                indexing="ij",
            )
        ],
        axis=1,
    )
    drift, tensor = evaluate(diffusion, "drift", y), evaluate(diffusion, "tensor", y)
    one, two = (first @ lift)[inner], (first @ first @ lift)[inner]
    eye = np.eye(count - 2)

    def along(*factors: Any) -> Any:
        return np.asarray(reduce(lambda a, b: np.asarray(np.kron(a, b)), factors))

    operator = np.zeros((len(y), len(y)))
    for i in range(d):
        single, double = ([f if k == i else eye for k in range(d)] for f in (one, two))
        operator += (drift[:, i] / half[i])[:, None] * along(*single)
        operator += (0.5 * tensor[:, i, i] / half[i] ** 2)[:, None] * along(*double)
    if d == 2:
        operator += (tensor[:, 0, 1] / half.prod())[:, None] * along(one, one)
    u = expm(time * operator) @ np.asarray(phi(y), dtype=np.float64)
    weights = [_barycentric(t, (start[i] - bounds[0, i]) / half[i] - 1) @ lift for i in range(d)]
    return float(along(*weights) @ u)


def _barycentric(t: Floats, s: float) -> Floats:
    """Weights of interpolation at s from the Chebyshev points t."""
    weights = (-1.0) ** np.arange(len(t))
    weights[[0, -1]] /= 2
    gap = s - t
    if np.any(np.abs(gap) < 1e-15):
        return (np.abs(gap) < 1e-15).astype(np.float64)
    return weights / gap / np.sum(weights / gap)
