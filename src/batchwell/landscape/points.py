"""Points that a user gives."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import InputError, require


def points_of(key: str, value: Any, dim: int) -> np.ndarray:
    """`value` as finite points (n, dim), n at least 1, or `InputError`.

    >>> points_of("starts", [0.5, 1], 2)
    array([[0.5, 1. ]])
    """
    try:
        points = np.atleast_2d(np.asarray(value, dtype=np.float64))
    except (TypeError, ValueError):
        raise InputError(key, value, f"must be numbers of shape (n, {dim})") from None
    good = points.ndim == 2 and points.shape[1] == dim and len(points) > 0
    require(good, key, points.shape, f"must have shape (n, {dim}), n at least 1")
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if bad.size:
        raise InputError(key, f"row {bad[0]}: {points[bad[0]]}", "must be finite numbers")
    return points
