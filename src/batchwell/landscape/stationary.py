"""All stationary points of a loss of few parameters, of whatever index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._jax import jax, jnp, serial
from ..errors import require
from ..loss import StochasticLoss
from .attractors import FLAT
from .minima import SAME
from .points import points_of
from .quench import STATIONARY
from .spectrum import DENSE

Array = Any
ITERATIONS = 60
BATCH = 256


@dataclass(frozen=True, eq=False)
class StationaryPoint:
    """A point at which the gradient vanishes.

    Attributes
    ----------
    x
        (d,).
    loss
        F(x).
    eigenvalues
        (d,) of the Hessian, rising.
    index
        How many of them are negative: 0 for a minimum, 1 for a pass, d for a maximum.
    degenerate
        Whether one of them vanishes, to rounding: then the index is not determined.
    gradient_norm
        |grad F(x)|.
    """

    x: np.ndarray = field(repr=False)
    loss: float
    eigenvalues: np.ndarray
    index: int
    degenerate: bool
    gradient_norm: float


def stationary_points(loss: StochasticLoss, starts: ArrayLike) -> tuple[StationaryPoint, ...]:
    """The distinct stationary points that Newton's method on grad F = 0 reaches from `starts` (n, d).

    Steps are halved until |grad F| falls. From finitely many starts: a point not found may exist.

    Returns
    -------
    tuple of StationaryPoint
        By index, then by loss.

    Raises
    ------
    InputError
        More than 200 dimensions, or starts of the wrong shape.

    Examples
    --------
    >>> import numpy as np
    >>> from batchwell import additive
    >>> well = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4)
    >>> points = stationary_points(well, np.linspace(-2, 2, 9)[:, None])
    >>> [(p.index, round(float(p.x[0]), 9) + 0.0) for p in points]
    [(0, -1.0), (0, 1.0), (1, 0.0)]
    """
    require(loss.dim <= DENSE, "dim", loss.dim, f"must not exceed {DENSE} here")
    x = points_of("starts", starts, loss.dim)
    out: list[StationaryPoint] = []
    for k in range(0, len(x), BATCH):
        part = x[k : k + BATCH]
        padded = part[np.arange(BATCH) % len(part)]
        ends, *rest = (np.asarray(a)[: len(part)] for a in _newton(loss)(padded))
        for point, norm, value, spectrum in zip(ends, *rest, strict=True):
            if not (np.isfinite(point).all() and norm < STATIONARY * (1 + abs(spectrum).max())):
                continue
            scale = SAME * (1.0 + float(np.linalg.norm(point)))
            if all(float(np.linalg.norm(point - other.x)) > scale for other in out):
                out.append(_described(point, norm, value, spectrum))
    return tuple(sorted(out, key=lambda p: (p.index, p.loss, tuple(p.x))))


def _described(x: np.ndarray, norm: float, value: float, spectrum: np.ndarray) -> StationaryPoint:
    flat = bool(np.abs(spectrum).min() <= FLAT * np.abs(spectrum).max())
    index = int((spectrum < 0).sum())
    return StationaryPoint(x, float(value), spectrum, index, flat, float(norm))


@lru_cache(maxsize=32)
def _newton(loss: StochasticLoss) -> Callable[[Array], Any]:
    halvings = 2.0 ** -jnp.arange(12.0)

    def step(_: int, x: Array) -> Array:
        values, vectors = jnp.linalg.eigh(loss.hessian(x))
        slopes = vectors.T @ loss.gradient(x)
        # A vanishing curvature must not throw the point to infinity.
        least = 1e-12 * jnp.max(jnp.abs(values)) + 1e-300
        values = jnp.where(jnp.abs(values) < least, least, values)
        move = -vectors @ (slopes / values)
        longest = 0.5 * (1.0 + jnp.linalg.norm(x))
        move = move * jnp.minimum(1.0, longest / (jnp.linalg.norm(move) + 1e-300))
        norms = jax.vmap(lambda t: jnp.linalg.norm(loss.gradient(x + t * move)))(halvings)
        best = jnp.nanargmin(norms)
        better = norms[best] < jnp.linalg.norm(slopes)
        return jnp.where(better, x + halvings[best] * move, x)

    def one(x: Array) -> tuple[Array, ...]:
        x = jax.lax.fori_loop(0, ITERATIONS, step, x)
        spectrum = jnp.linalg.eigvalsh(loss.hessian(x))
        return x, jnp.linalg.norm(loss.gradient(x)), loss.mean(x), spectrum

    return serial(jax.jit(jax.vmap(one)))
