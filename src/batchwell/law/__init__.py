"""The law of SGD and of its diffusions, computed and not sampled.

Build once
    `transfer_operator` (sgd, place): master equation of the chain, in 1 and 2 dimensions.
    `generator` (diffusion, place): Fokker-Planck and Kolmogorov on grids, 1, 2, 3 dimensions.
    Both return an `Operator`. `exit_time_map`: one table over learning rates and batch sizes.
    `smooth_expectation`: E phi of a diffusion in 1-D and 2-D to many digits, without a grid.
Ask many (every time in SGD steps; every scalar an `Estimate` with its discretisation error)
    `exit_time`, `exit_time_variance`, `exit_time_variation`, `exit_position`, `committor`:
    leaving the domain from `start`. `mean_exit_time`, `committor_values`: the same at all nodes.
    `law_after`, `expectation`: the law and E phi(x_k) after k steps. `enumerate_law`: the exact
    atoms of a few steps on finite data.
    `stationary`, `stationary_expectation`, `quasi_stationary`, `quasi_stationary_exit`.
    `spectrum`, `relaxation_time`. `total_variation`, `wasserstein`, `resample` compare laws.
    `exit_time_bounds`, `transport_error`: finite data in 1-D, enclosed from both sides.
Moments (any dimension, quadratic losses; exact)
    `moments`, `stationary_moments`, `mean_square_growth`, `stability_limit`, `expected_loss`,
    `exact_ornstein_uhlenbeck`, `batch_factors`.

Which one when: quadratic loss and a polynomial question, moments; one or two parameters,
`transfer_operator` for SGD itself and `generator` for its diffusion; otherwise simulate.
"""

from __future__ import annotations

from .affine import BatchFactors, affine_gradients, batch_factors, is_quadratic
from .bounds import exit_time_bounds, transport_error
from .chain import exit_time_map
from .generator import generator
from .interval import interval
from .moments import (
    Moments,
    exact_ornstein_uhlenbeck,
    expected_loss,
    mean_square_growth,
    moments,
    stability_limit,
    stationary_moments,
)
from .operator import Operator
from .questions import (
    GridLaw,
    backward,
    committor,
    committor_values,
    exit_position,
    exit_time,
    exit_time_variance,
    exit_time_variation,
    expectation,
    law_after,
    mean_exit_time,
    quasi_stationary,
    quasi_stationary_exit,
    relaxation_time,
    resample,
    spectrum,
    stationary,
    stationary_expectation,
    total_variation,
    wasserstein,
)
from .smooth import smooth_expectation
from .transfer import enumerate_law, transfer_operator

__all__ = [
    "BatchFactors",
    "GridLaw",
    "Moments",
    "Operator",
    "affine_gradients",
    "backward",
    "batch_factors",
    "committor",
    "committor_values",
    "enumerate_law",
    "exact_ornstein_uhlenbeck",
    "exit_position",
    "exit_time",
    "exit_time_bounds",
    "exit_time_map",
    "exit_time_variance",
    "exit_time_variation",
    "expectation",
    "expected_loss",
    "generator",
    "interval",
    "is_quadratic",
    "law_after",
    "mean_exit_time",
    "mean_square_growth",
    "moments",
    "quasi_stationary",
    "quasi_stationary_exit",
    "relaxation_time",
    "resample",
    "smooth_expectation",
    "spectrum",
    "stability_limit",
    "stationary",
    "stationary_expectation",
    "stationary_moments",
    "total_variation",
    "transfer_operator",
    "transport_error",
    "wasserstein",
]
