"""The gallery: named problems with their known answers.

`PROBLEMS` maps a name to a function that builds a `Problem`; it is the command line's menu
and the tests' parameters. Names are those that ``batchwell study NAME`` takes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from ..errors import one_of
from .analytic import (
    double_well,
    least_squares,
    linear_saddle,
    maier_stein,
    quadratic,
    tilted_well,
)
from .base import KnownAnswer, Problem
from .real import breast_cancer_logistic, breast_cancer_network, digits_network
from .surfaces import himmelblau, mueller_brown, product_wells, two_basins

__all__ = ["PROBLEMS", "KnownAnswer", "Problem", "problem"]

PROBLEMS: dict[str, Callable[[], Problem]] = {
    "double-well": double_well,
    "tilted-well": tilted_well,
    "maier-stein": maier_stein,
    "linear-saddle": linear_saddle,
    "quadratic": quadratic,
    "least-squares": least_squares,
    "two-basins": two_basins,
    "mueller-brown": mueller_brown,
    "himmelblau": himmelblau,
    "product-wells": product_wells,
    "breast-cancer-logistic": breast_cancer_logistic,
    "breast-cancer-network": breast_cancer_network,
    "digits-network": digits_network,
}


def problem(name: str) -> Problem:
    """The gallery problem called `name`.

    Raises
    ------
    InputError
        Unknown name: lists the gallery.

    Examples
    --------
    >>> problem("double-well").loss.dim
    1
    """
    return _built(one_of("problem", name, PROBLEMS))


@cache
def _built(name: str) -> Problem:
    """Once a process: what XLA compiled for a loss is found again with the loss."""
    return PROBLEMS[name]()
