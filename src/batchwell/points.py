"""Numbers and points as they were given, checked and made float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, require

Floats = NDArray[np.float64]


def numbers(key: str, value: Any, allowed: str = "must be numbers") -> Floats:
    """`value` as a float64 array of any shape; text, complex and ragged values are refused.

    >>> numbers("scale", [1, 2]).tolist()
    [1.0, 2.0]
    """
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        raise InputError(key, value, allowed) from None
    require(array.dtype.kind in "biuf", key, value, allowed)
    return array.astype(np.float64)


def point(key: str, value: Any, dim: int) -> Floats:
    """`value` as a finite point (dim,); in one dimension a bare number serves as well.

    >>> point("x0", 2, dim=1).tolist()
    [2.0]
    """
    x = numbers(key, value, f"must be a point of shape ({dim},)")
    if dim == 1 and x.ndim == 0:
        x = x[None]
    require(x.shape == (dim,), key, x.shape, f"must have shape ({dim},)")
    require(bool(np.all(np.isfinite(x))), key, x, "must be finite")
    return x
