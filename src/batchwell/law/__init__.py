"""The law of SGD and of its diffusions, computed and not sampled.

Moments (any dimension, quadratic losses; exact)
    `moments`, `stationary_moments`, `mean_square_growth`, `stability_limit`, `expected_loss`,
    `exact_ornstein_uhlenbeck`, `batch_factors`.
"""

from __future__ import annotations

from .moments import (
    BatchFactors,
    Moments,
    affine_gradients,
    batch_factors,
    exact_ornstein_uhlenbeck,
    expected_loss,
    is_quadratic,
    mean_square_growth,
    moments,
    stability_limit,
    stationary_moments,
)

__all__ = [
    "BatchFactors",
    "Moments",
    "affine_gradients",
    "batch_factors",
    "exact_ornstein_uhlenbeck",
    "expected_loss",
    "is_quadratic",
    "mean_square_growth",
    "moments",
    "stability_limit",
    "stationary_moments",
]
