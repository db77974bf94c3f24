"""Domains: what one exits from. Each is ``level(x) < 0``; its boundary is ``level(x) = 0``.

`ball`, `box`, `half_space` and `sublevel` have a level function that engines evaluate at
every step. `basin` has none: whether x belongs to it is where gradient flow from x ends,
which only a quench can tell (`landscape.basin_labels`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._jax import jax, jnp, traced
from .errors import finite, positive, require, whole
from .points import numbers

Array = Any
Labels = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Domain:
    """A set that a path may leave.

    Attributes
    ----------
    name
        What it is, for reports.
    dim
        Dimension of the space.
    level
        ``level(x)`` for x (d,), negative inside; None for a basin.
    labels
        For a basin: ``labels(points)``, (n, d) -> (n,) integer labels of attractors.
    label
        For a basin: the label that counts as inside.
    function, height
        For a sublevel set: ``level(x) = function(x) - height``.
    """

    name: str
    dim: int
    level: Callable[[Array], Array] | None = field(default=None, repr=False)
    labels: Labels | None = field(default=None, repr=False)
    label: int = -1
    function: Callable[[Array], Array] | None = field(default=None, repr=False)
    height: float = 0.0

    @property
    def needs_quench(self) -> bool:
        """Whether membership is decided by gradient flow and not by a level function."""
        return self.level is None

    def contains(self, points: ArrayLike) -> np.ndarray:
        """Whether each of `points`, (n, d) or (d,), lies inside: bool, (n,) or ()."""
        x = numbers("points", points)
        flat = np.atleast_2d(x)
        require(flat.shape[-1] == self.dim, "points", x.shape, f"need {self.dim} coordinates")
        if self.labels is not None:
            inside = self.labels(flat) == self.label
        else:
            assert self.level is not None
            inside = np.asarray(jax.vmap(self.level)(jnp.asarray(flat)) < 0)
        return inside if x.ndim == 2 else inside[0]


def ball(center: ArrayLike, radius: float) -> Domain:
    """``|x - center| < radius``.

    Examples
    --------
    >>> bool(ball([0.0], 1.0).contains([0.5]))
    True
    """
    c, r = _vector("center", center), positive("radius", radius)
    middle = jnp.asarray(c)
    return Domain(f"ball of radius {r:g}", c.size, lambda x: jnp.sum((x - middle) ** 2) - r * r)


def box(lower: ArrayLike, upper: ArrayLike) -> Domain:
    """``lower < x < upper`` in every coordinate; infinite ends allowed."""
    lo, hi = _vector("lower", lower, infinite=True), _vector("upper", upper, infinite=True)
    require(lo.shape == hi.shape, "upper", hi.shape, f"must have the shape of lower, {lo.shape}")
    require(bool(np.all(lo < hi)), "upper", hi, "must exceed lower in every coordinate")
    a, b = jnp.asarray(lo), jnp.asarray(hi)
    return Domain("box", lo.size, lambda x: jnp.max(jnp.maximum(a - x, x - b)))


def half_space(normal: ArrayLike, offset: float) -> Domain:
    """``normal . x < offset``."""
    n, level = _vector("normal", normal), finite("offset", offset)
    require(bool(np.any(n != 0)), "normal", normal, "must not be zero")
    direction = jnp.asarray(n)
    return Domain("half-space", n.size, lambda x: jnp.dot(direction, x) - level)


def sublevel(function: Callable[[Array], Array], level: float, dim: int) -> Domain:
    """``function(x) < level``, function scalar in jax.numpy."""
    height, dim = finite("level", level), whole("dim", dim)
    x = jax.ShapeDtypeStruct((dim,), jnp.float64)
    out = traced("function", function, x, call=f"x of shape ({dim},)")
    require(getattr(out, "shape", None) == (), "function", out, "must return one real number")
    return Domain(
        f"sublevel set {height:g}",
        dim,
        lambda x: function(x) - height,
        function=function,
        height=height,
    )


def _vector(key: str, value: ArrayLike, infinite: bool = False) -> np.ndarray:
    v = np.atleast_1d(numbers(key, value, "must be a vector of numbers"))
    good = not np.any(np.isnan(v)) if infinite else np.all(np.isfinite(v))
    require(v.ndim == 1 and v.size > 0 and bool(good), key, value, "must be a vector of numbers")
    return v
