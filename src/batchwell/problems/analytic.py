"""Problems in closed form. Their answers come from quadrature, linear algebra or recursions."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._jax import jnp
from ..domain import ball, half_space
from ..dynamics import Diffusion, diffusion
from ..loss import additive, finite_sum
from .base import SMALL_STUDY, KnownAnswer, Problem

Array = Any

QUADRATURE = "quadrature of the backward equation, all digits shown"
RECURSION = "exact moment recursion, all digits shown"


def _well(x: Array) -> Array:
    return (x[0] ** 2 - 1.0) ** 2 / 4.0


def double_well() -> Problem:
    """F = (x^2 - 1)^2 / 4 with Gaussian gradient noise of variance 1."""
    times = {0.2: (66.26862636, 61.878569), 0.1: (729.6706919, 705.52791)}
    times[0.05] = (102108.3655, 100495.1)
    known = []
    for eta, (diffusive, gaussian) in times.items():
        # sigma = 1 and B = 1: the temperature is the learning rate.
        at = {"learning_rate": eta, "batch_size": 1, "start": (-1.0,)}
        known.append(
            KnownAnswer("mean_exit_time", "diffusion-1", diffusive, "time", at, QUADRATURE)
        )
        known.append(
            KnownAnswer(
                "mean_exit_time",
                "sgd",
                round(gaussian / eta, 4),
                "steps",
                at,
                "transfer operator of the chain, 6 digits; steps until x >= 1",
            )
        )
    return Problem(
        "double-well",
        "two equal wells in one dimension: escape over a barrier of 1/4",
        additive(_well, "gaussian", name="double-well"),
        (-1.0,),
        half_space([1.0], 1.0),
        known=tuple(known),
        settings=SMALL_STUDY,
    )


def tilted_well() -> Problem:
    """A sharp deep well beside a flat one: which does SGD leave first?"""

    def potential(x: Array) -> Array:
        return _well(x) + 0.08 * x[0] + 0.05 * jnp.exp(-8.0 * (x[0] - 1.0) ** 2)

    return Problem(
        "tilted-well",
        "two wells of unequal depth and curvature in one dimension",
        additive(potential, "gaussian", name="tilted-well"),
        (-1.0,),
        half_space([1.0], 0.0),
        settings=SMALL_STUDY,
    )


def maier_stein() -> Problem:
    """Drift without potential, (u - u^3 - beta u v^2, -(1 + u^2) v) with beta = 10."""
    beta = 10.0

    def drift(x: Array) -> Array:
        u, v = x
        return jnp.stack([u - u**3 - beta * u * v**2, -(1.0 + u**2) * v])

    def process(temperature: float) -> Diffusion:
        root = float(np.sqrt(temperature))
        return diffusion(drift, lambda x: root * jnp.eye(2), 2)

    source = "geometric minimum action and Chebyshev-Ritz, 9 digits"
    return Problem(
        "maier-stein",
        "a drift without potential: the most likely way out bends and is not unique",
        None,
        (-1.0, 0.0),
        half_space([1.0, 0.0], 0.0),
        process,
        known=(
            KnownAnswer(
                "quasipotential",
                "diffusion-1",
                0.340041403,
                "1",
                {"beta": 10.0, "start": (-1.0, 0.0), "end": (0.0, 0.0)},
                source,
            ),
        ),
    )


def linear_saddle() -> Problem:
    """F = -x^2 / 2 with Gaussian noise: leaving a saddle along its unstable direction."""
    steps = {0.1: 23.252648, 0.02: 149.225941}
    source = "transfer operator of the chain, all digits shown"
    times = {0.01: 3.2818210350, 1e-4: 5.5869001971}
    return Problem(
        "linear-saddle",
        "the unstable direction of a saddle: escape after (1/eta) log(1/eta) steps",
        additive(lambda x: -0.5 * x[0] ** 2, "gaussian", name="linear-saddle"),
        (0.0,),
        ball([0.0], 1.0),
        known=(
            *(
                KnownAnswer(
                    "mean_exit_time",
                    "sgd",
                    value,
                    "steps",
                    {"learning_rate": eta, "batch_size": 1, "start": (0.0,)},
                    source,
                )
                for eta, value in steps.items()
            ),
            *(
                KnownAnswer(
                    "mean_exit_time",
                    "diffusion-1",
                    value,
                    "time",
                    {"learning_rate": eta, "batch_size": 1, "start": (0.0,)},
                    QUADRATURE,
                )
                for eta, value in times.items()
            ),
        ),
    )


def quadratic() -> Problem:
    """F = x.Hx / 2 in two dimensions, noise not aligned with the curvature."""
    hessian = np.array([[2.0, 0.5], [0.5, 1.0]])
    noise = np.array([[1.0, -0.4], [-0.4, 0.5]])
    curvature, scale = jnp.asarray(hessian), np.linalg.cholesky(noise)
    return Problem(
        "quadratic",
        "the linear case: stationary covariance of chain and diffusion in closed form",
        additive(lambda x: 0.5 * x @ curvature @ x, "gaussian", 2, scale, name="quadratic"),
        (0.0, 0.0),
        ball([0.0, 0.0], 1.0),
        known=(
            KnownAnswer(
                "stationary_covariance",
                "sgd",
                ((0.07365722, -0.0527513), (-0.0527513, 0.08104661)),
                "1",
                {"learning_rate": 0.2, "batch_size": 1},
                "HC + CH - eta HCH = eta Sigma, 7 digits",
            ),
        ),
    )


def least_squares() -> Problem:
    """Three rows, two unknowns: multiplicative noise with exact moments."""
    rows = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    targets = np.array([1.0, -1.0, 2.0])
    at = {"learning_rate": 0.0125, "batch_size": 1, "start": (1.0, 1.0), "horizon": 1.0}
    values = {"sgd": 0.8155641356, "diffusion-1": 0.8164431871, "diffusion-2": 0.8153610121}
    return Problem(
        "least-squares",
        "finite data, noise that depends on x: weak error of order 1 and 2 in closed form",
        finite_sum(
            lambda x, z: 0.5 * (jnp.dot(z[0], x) - z[1]) ** 2, (rows, targets), 2, "least-squares"
        ),
        (1.0, 1.0),
        known=tuple(
            KnownAnswer("mean_loss", process, value, "loss", at, RECURSION)
            for process, value in values.items()
        ),
    )
