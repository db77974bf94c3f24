"""Symmetries of a loss: moves of the parameters that change nothing.

A network does not change when hidden units swap places, nor (for odd activations) when all
weights of a unit change sign. Minima that differ by such moves are one minimum: a `Symmetry`.

Continuous moves make whole orbits of minima, none of which is isolated. They are divided out by
keeping one point of each orbit: `quotient` holds a loss where a `Gauge` vanishes, `fixing` freezes
coordinates. Weight decay is the third way, and changes the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._jax import jax, jnp
from .errors import positive, require
from .loss import StochasticLoss
from .points import point

Array = Any
SAMPLES = 3  # points at which an invariance is checked


@dataclass(frozen=True, eq=False)
class Symmetry:
    """A group of moves of x, known through the best alignment of two points.

    Attributes
    ----------
    name
        Plain words for reports.
    align
        ``align(x, reference)``: the image of x (d,) closest to reference (d,).
    """

    name: str
    align: Callable[[np.ndarray, np.ndarray], np.ndarray] = field(repr=False)

    def distance(self, x: np.ndarray, reference: np.ndarray) -> float:
        """Smallest Euclidean distance of `reference` (d,) to an image of x (d,)."""
        return float(np.linalg.norm(self.align(x, reference) - reference))


NONE = Symmetry("none", lambda x, reference: x)


def hidden_units(units: Sequence[Sequence[int]] | np.ndarray, odd: bool = True) -> Symmetry:
    """Swaps of hidden units and, if `odd`, their changes of sign.

    Parameters
    ----------
    units
        Shape (m, k): for each of m units the coordinates of its k weights (incoming, bias,
        outgoing), in the same order for all.
    odd
        Whether the activation is odd (tanh), so that a unit's weights may all change sign.

    Raises
    ------
    InputError
        A coordinate appears twice.

    Examples
    --------
    >>> two = hidden_units([[0, 2], [1, 3]])
    >>> two.align(np.array([1.0, -5.0, 2.0, -6.0]), np.array([5.0, 1.0, 6.0, 2.0])).tolist()
    [5.0, 1.0, 6.0, 2.0]
    """
    index = np.asarray(units, dtype=np.intp)
    require(index.ndim == 2, "units", index.shape, "must have one row of coordinates per unit")
    require(len(np.unique(index)) == index.size, "units", units, "must name each coordinate once")

    def align(x: np.ndarray, reference: np.ndarray) -> np.ndarray:
        from scipy.optimize import linear_sum_assignment

        ours, theirs = x[index], reference[index]
        same = np.sum((theirs[:, None] - ours[None]) ** 2, axis=2)
        flipped = np.sum((theirs[:, None] + ours[None]) ** 2, axis=2) if odd else same + 1.0
        slot, unit = linear_sum_assignment(np.minimum(same, flipped))
        sign = np.where(same <= flipped, 1.0, -1.0)[slot, unit]
        out = np.array(x, dtype=np.float64)
        out[index[slot]] = sign[:, None] * ours[unit]
        return out

    return Symmetry("permutation and sign of hidden units" if odd else "permutation", align)


def align(symmetry: Symmetry, x: ArrayLike, reference: ArrayLike) -> np.ndarray:
    """The image of x (d,) under `symmetry` closest to `reference` (d,)."""
    return symmetry.align(np.asarray(x, dtype=np.float64), np.asarray(reference, dtype=np.float64))


# -- continuous symmetries ---------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Gauge:
    """One point of each orbit of a continuous symmetry: where a condition vanishes.

    Attributes
    ----------
    name
        Plain words for reports.
    condition
        ``condition(x)``, (k,), in jax.numpy: on each orbit it vanishes once, and no derivative of
        its square along the orbit vanishes elsewhere.
    generators
        ``generators(x)``, (k, d): the directions in which the symmetry moves x.
    """

    name: str
    condition: Callable[[Array], Array] = field(repr=False)
    generators: Callable[[Array], Array] = field(repr=False)


def rescaling(incoming: Sequence[Sequence[int]], outgoing: Sequence[Sequence[int]]) -> Gauge:
    """Incoming weights of a unit times c > 0, outgoing ones over c: ReLU and linear units.

    The slice is where both have the same norm, |incoming|^2 = |outgoing|^2, in each unit: the point
    of the orbit that weight decay would pick. Each orbit but those of units that are off meets it
    once.

    Parameters
    ----------
    incoming, outgoing
        For each of m units the coordinates of its incoming weights (bias included), and of its
        outgoing ones.

    Raises
    ------
    InputError
        Unequal numbers of units, or a coordinate that appears twice.
    """
    ins, outs = (tuple(tuple(int(k) for k in row) for row in rows) for rows in (incoming, outgoing))
    require(len(ins) == len(outs) > 0, "outgoing", len(outs), f"must name {len(ins)} units as well")
    named = [k for row in (*ins, *outs) for k in row]
    require(len(set(named)) == len(named), "incoming", incoming, "must name each coordinate once")

    def signs(x: Array) -> np.ndarray:
        out = np.zeros((len(ins), len(x)))
        for row, a, b in zip(out, ins, outs, strict=True):
            row[list(a)], row[list(b)] = 1.0, -1.0
        return out

    return Gauge("rescaling of units", lambda x: signs(x) @ (x * x), lambda x: signs(x) * x)


def quotient(loss: StochasticLoss, gauge: Gauge, strength: float = 0.1) -> StochasticLoss:
    """`loss` up to a continuous symmetry: held where the gauge's condition c vanishes.

    The loss of every example gains ``strength |c(x)|^2 / 2``. As `loss` does not change along an
    orbit, and the term is stationary there only where c = 0, stationary points are those of `loss`
    on the slice, one for each orbit, with the same losses, barriers, and Sigma; their Hessians gain
    ``strength`` times c's gradients along the orbit, which `Minimum` and `sharpness` leave out
    again. SGD on it is SGD held near the slice: rates are those of `loss` only where the symmetry
    keeps distances.

    Parameters
    ----------
    gauge
        What picks one point of each orbit, such as `rescaling`'s.
    strength
        Weight of the term that holds it, > 0.

    Raises
    ------
    InputError
        No gauge; or the loss changes along the gauge's generators: it has no such symmetry (an activation that
        is not homogeneous, or weight decay, which already picks a point of each orbit).

    Examples
    --------
    >>> from batchwell import additive, find_minima
    >>> product = additive(lambda x: (x[0] * x[1] - 1) ** 2 / 2, dim=2)
    >>> held = quotient(product, rescaling([[0]], [[1]]))
    >>> found = find_minima(held, [[0.3, 2.0], [-2.0, -0.1], [3.0, 0.2]])
    >>> sorted(m.x.round(9).tolist() for m in found.minima), found.minima[0].lambda_max.__round__(9)
    ([[-1.0, -1.0], [1.0, 1.0]], 2.0)
    """
    positive("strength", strength)
    require(isinstance(gauge, Gauge), "gauge", gauge, "must be a Gauge, such as rescaling's")
    rng = np.random.default_rng(0)
    for _ in range(SAMPLES):
        x = jnp.asarray(rng.standard_normal(loss.dim))
        slope, ways = loss.gradient(x), gauge.generators(x)
        along = float(jnp.max(jnp.abs(ways @ slope)))
        size = float(jnp.linalg.norm(slope) * jnp.max(jnp.linalg.norm(ways, axis=1)))
        require(
            along <= 1e-9 * (size + 1e-300),
            "gauge",
            gauge.name,
            f"is no symmetry of this loss, which changes along it (slope {along:.2g})",
        )

    def extra(x: Array) -> Array:
        return 0.5 * strength * jnp.sum(gauge.condition(x) ** 2)

    mean = loss.closed_mean
    return replace(
        loss,
        function=lambda x, z: loss.function(x, z) + extra(x),
        closed_mean=None if mean is None else lambda x: mean(x) + extra(x),
        name=f"{loss.name}, up to {gauge.name}",
        free=loss,
        orbit_dim=int(jnp.shape(gauge.condition(jnp.zeros(loss.dim)))[0]),
    )


def fixing(
    loss: StochasticLoss, coordinates: Sequence[int], values: ArrayLike = 0.0
) -> StochasticLoss:
    """`loss` with some coordinates frozen: (d - k) parameters are left, in their order.

    For symmetries that can bring these coordinates to these values: a rotation turns one of two to
    0, a shift of all logits one of them to 0.

    Parameters
    ----------
    coordinates
        Indices of the k frozen coordinates.
    values
        What they are frozen at: a number, or (k,).

    Raises
    ------
    InputError
        A coordinate out of range or named twice, or none left.

    Examples
    --------
    >>> from batchwell import additive, find_minima
    >>> ring = additive(lambda x: (x @ x - 1) ** 2 / 4, dim=2)
    >>> [m.x.round(9).tolist() for m in find_minima(fixing(ring, [1]), [[0.4]]).minima]
    [[1.0]]
    """
    fixed = np.asarray(coordinates, dtype=np.intp).reshape(-1)
    inside = len(set(fixed.tolist())) == len(fixed) and bool(
        np.all((fixed >= 0) & (fixed < loss.dim))
    )
    require(inside, "coordinates", coordinates, f"must be distinct and in 0 ... {loss.dim - 1}")
    left = np.setdiff1d(np.arange(loss.dim), fixed)
    require(len(left) > 0, "coordinates", coordinates, "must leave at least one parameter")
    frozen = np.zeros(loss.dim)
    frozen[fixed] = np.broadcast_to(np.asarray(values, dtype=np.float64), fixed.shape)
    # A product with constant matrices, which lowers to fast kernels everywhere.
    place = np.eye(loss.dim)[:, left]

    def whole_point(y: Array) -> Array:
        return place @ y + frozen

    mean, factor = loss.closed_mean, loss.closed_factor
    return replace(
        loss,
        function=lambda y, z: loss.function(whole_point(y), z),
        dim=len(left),
        closed_mean=None if mean is None else lambda y: mean(whole_point(y)),
        closed_factor=None if factor is None else lambda y: place.T @ factor(whole_point(y)),
        name=f"{loss.name}, {len(fixed)} parameters fixed",
    )


def null_directions(loss: StochasticLoss, x: ArrayLike, tolerance: float = 1e-8) -> np.ndarray:
    """Orthonormal directions (k, d) in which the Hessian of F at x (d,) vanishes.

    At a minimum they are tangent to its orbit, or to a valley: which coordinates they move says
    what to fix, or which units to rescale. `tolerance` is relative to the largest eigenvalue.

    Examples
    --------
    >>> from batchwell import additive
    >>> ring = additive(lambda x: (x @ x - 1) ** 2 / 4, dim=2)
    >>> abs(null_directions(ring, [1.0, 0.0])).round(9).tolist()
    [[0.0, 1.0]]
    """
    here = jnp.asarray(point("x", x, loss.dim))
    values, vectors = np.linalg.eigh(np.asarray(jax.jit(loss.hessian)(here)))
    return np.asarray(vectors[:, np.abs(values) <= tolerance * np.abs(values).max()].T)
