"""Reshuffled epochs: the variance of a chain whose batches share out the data set.

Batches are disjoint random subsets of n examples, of sizes b_j; noises of their means have covariance
n/(n-1) [delta_jk / b_j - 1/n] Sigma, whatever the sizes: they sum to zero over an epoch that uses
all data. Epochs are independent of each other.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def epoch_sizes(n: int, batch_size: int, leftover: str) -> Vector:
    """Sizes of an epoch's batches; the examples left over are "kept" as a last one, or "dropped"."""
    sizes = [batch_size] * (n // batch_size)
    rest = n % batch_size if leftover == "kept" else 0
    return np.array([*sizes, rest] if rest else sizes, dtype=np.float64)


def mixed(weights: Vector, sizes: Vector, n: int) -> float:
    """Variance of sum_j a_j e_j over an epoch's noises e_j, per unit of Sigma.

    n/(n-1) [sum a_j^2 / b_j - (sum a_j)^2 / n], written as a sum of squares: where the weights are
    nearly the sizes' shares, nearly all of either term cancels.
    """
    if n == 1:
        return 0.0
    share = float(weights.sum()) / n
    apart = float(((weights - sizes * share) ** 2 / sizes).sum())
    return n / (n - 1) * (apart + share * share * (n - float(sizes.sum())))


def excess(eta: float, curvature: float, sizes: Vector, n: int, when: str) -> float:
    """Stationary excess loss along one direction, per unit of Sigma: curvature / 2 times the variance.

    At the ends of epochs, or on "average" over the places that steps are made from.
    """
    growth = 1 - eta * curvature
    powers = growth ** np.arange(len(sizes), dtype=np.float64)  # what a noise of j steps ago weighs
    ends = mixed(powers[::-1], sizes, n)
    ends /= -math.expm1(2 * len(sizes) * math.log(abs(growth) or 1e-300))
    if when == "average" and n > 1:
        first, second = np.cumsum(powers[:-1]), np.cumsum(powers[:-1] ** 2) / sizes[0]
        within = n / (n - 1) * (second - first**2 / n)  # after 1 ... all but one steps
        ends = float(np.mean(powers**2 * ends + np.concatenate([[0.0], within])))
    return 0.5 * curvature * eta * eta * ends


def gathered(rate: float, sizes: Vector, n: int) -> float:
    """Variance of all noises to come, each shrunk by 1 + `rate` for every step before it."""
    shrunk = (1 + rate) ** -np.arange(1.0, len(sizes) + 1)
    return mixed(shrunk, sizes, n) / -math.expm1(-2 * len(sizes) * math.log1p(rate))
