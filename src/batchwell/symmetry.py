"""Symmetries of a loss: moves of the parameters that change nothing.

A network does not change when hidden units swap places, nor (for odd activations) when all
weights of a unit change sign. Minima that differ by such moves are one minimum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from .errors import require


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
