"""Coefficients of the stabilised Runge-Kutta-Chebyshev method of order 2.

Its real stability interval grows with the square of the number of stages, which is what gradient
flow along a flat valley between steep walls needs. Sommeijer, Shampine & Verwer, "RKC: an explicit
solver for parabolic PDEs" (J. Comput. Appl. Math. 88, 1998), eqs. (2.1)-(2.5), (2.7).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

DAMPING = 2.0 / 13.0
# Largest factor between two steps: of an ordinary pair, and of a stabilised method, whose error
# does not see the end of its stability coming.
GROWTH, STABILISED_GROWTH = 5.0, 1.5


@lru_cache(maxsize=16)
def chebyshev(stages: int) -> tuple[float, np.ndarray]:
    """(weight of the first stage, (stages - 1, 5) weights of Y_0, Y_{j-1}, Y_{j-2}, h f_{j-1}, h f_0).

    Stable for h times the spectral radius up to about ``0.65 (stages^2 - 1)``.

    Examples
    --------
    >>> first, rows = chebyshev(3)
    >>> bool(np.allclose(rows[:, :3].sum(axis=1), 1.0))  # constants stay constant
    True
    """
    s = stages
    w0 = 1.0 + DAMPING / s**2
    t, d1, d2 = (np.zeros(s + 1) for _ in range(3))
    t[:2], d1[1] = (1.0, w0), 1.0
    for j in range(2, s + 1):
        t[j] = 2 * w0 * t[j - 1] - t[j - 2]
        d1[j] = 2 * t[j - 1] + 2 * w0 * d1[j - 1] - d1[j - 2]
        d2[j] = 4 * d1[j - 1] + 2 * w0 * d2[j - 1] - d2[j - 2]
    w1 = d1[s] / d2[s]
    b = np.empty(s + 1)
    b[2:] = d2[2:] / d1[2:] ** 2
    b[:2] = b[2]
    a = 1.0 - b * t
    rows = np.empty((s - 1, 5))
    for j in range(2, s + 1):
        mu, nu, slope = 2 * b[j] * w0 / b[j - 1], -b[j] / b[j - 2], 2 * b[j] * w1 / b[j - 1]
        rows[j - 2] = 1 - mu - nu, mu, nu, slope, -a[j - 1] * slope
    return float(b[1] * w1), rows
