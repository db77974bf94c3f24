"""Values of a process's functions at many points, compiled once per process and padded size."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._jax import jax

Floats = NDArray[np.float64]

STRIP = 4096


@lru_cache(maxsize=128)
def _compiled(owner: Any, name: str) -> Any:
    return jax.jit(jax.vmap(getattr(owner, name)))


def evaluate(owner: Any, name: str, points: ArrayLike) -> Floats:
    """``owner.name`` at each of `points` (m, d): shape (m, ...).

    Points go in strips, for a sum over data keeps a row per example and point; each is padded to a
    power of two, so that grids of all sizes share few compilations.
    """
    x = np.asarray(points, dtype=np.float64)
    strips = [x[a : a + STRIP] for a in range(0, max(len(x), 1), STRIP)]
    return np.concatenate([_on_strip(owner, name, strip) for strip in strips])


def _on_strip(owner: Any, name: str, x: Floats) -> Floats:
    size = 1 << max(8, int(len(x) - 1).bit_length())
    padded = np.concatenate([x, np.broadcast_to(x[-1:], (size - len(x), x.shape[1]))])
    return np.asarray(_compiled(owner, name)(padded))[: len(x)]
