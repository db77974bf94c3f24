"""Problems on real data that ships with scikit-learn (no download)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from .._jax import jax, jnp
from ..domain import sublevel
from ..errors import InputError
from ..loss import StochasticLoss, finite_sum
from ..streams import generator
from ..symmetry import hidden_units
from .base import KnownAnswer, Problem

Array = Any
INPUTS = HIDDEN = 4
ROWS, FLIPPED, DECAY = 120, 0.15, 1e-3


@lru_cache(maxsize=4)
def _breast_cancer(components: int) -> tuple[np.ndarray, np.ndarray]:
    """Whitened principal components (569, components) and labels -1, +1 (569,)."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    features, labels = load_breast_cancer(return_X_y=True)
    standard = StandardScaler().fit_transform(features)
    reduced = PCA(components, whiten=True, svd_solver="full").fit_transform(standard)
    return reduced, 2.0 * labels - 1.0


def network_loss(w: Array, z: tuple[Array, Array]) -> Array:
    """Logistic loss of a network of 4 tanh units on 4 inputs, with weight decay.

    w (25,): hidden weights (4, 4), hidden biases (4), output weights (4), output bias.
    z: inputs (4,) and a label -1 or +1.
    """
    inputs, label = z
    weights = w[: INPUTS * HIDDEN].reshape(HIDDEN, INPUTS)
    bias, out = w[16:20], w[20:24]
    score = jnp.dot(out, jnp.tanh(weights @ inputs + bias)) + w[24]
    return jax.nn.softplus(-label * score) + 0.5 * DECAY * jnp.dot(w, w)


def network_data() -> tuple[np.ndarray, np.ndarray]:
    """120 rows of breast_cancer, four whitened components, 15 % of labels flipped."""
    features, labels = _breast_cancer(INPUTS)
    rng = generator(0, "breast-cancer-network")
    rows = rng.choice(len(labels), ROWS, replace=False)
    flip = np.where(rng.random(ROWS) < FLIPPED, -1.0, 1.0)
    return features[rows], labels[rows] * flip


def breast_cancer_network() -> Problem:
    """A small network with many isolated minima, on real data."""
    units = [[*range(4 * j, 4 * j + 4), 16 + j, 20 + j] for j in range(HIDDEN)]
    loss = finite_sum(network_loss, network_data(), 25, "breast-cancer-network")
    return Problem(
        "breast-cancer-network",
        "a small tanh network (25 weights) on 120 rows of breast_cancer: many isolated minima",
        loss,
        (0.0,) * 25,
        symmetry=hidden_units(units),
        start_scale=0.3,
        settings={
            "starts": 64,
            "learning_rates": [0.25, 0.5],
            "batch_sizes": [1, 2, 4, 8, 16, 32],
            "paths": 32,
            "horizon": 10_000,
            # With 12 paths no diffusion could be told from SGD; with 32 some can.
            "diffusion_paths": 32,
            "diffusion_horizon": 3_000,
            "substeps": 2,
            "looks": 16,
            "examples": 20_000,
            "final_paths": 48,
            "network": True,
        },
    )


DIGITS_INPUTS, DIGITS_ROWS = 6, 150


def _digits_score(w: Array, inputs: Array) -> Array:
    """Score of the digits network: hidden weights (4, 6), biases (4), output weights (4), bias."""
    count = DIGITS_INPUTS * HIDDEN
    weights = w[:count].reshape(HIDDEN, DIGITS_INPUTS)
    bias, out = w[count : count + HIDDEN], w[count + HIDDEN : count + 2 * HIDDEN]
    return jnp.dot(out, jnp.tanh(weights @ inputs + bias)) + w[count + 2 * HIDDEN]


def digits_loss(w: Array, z: tuple[Array, Array]) -> Array:
    """Logistic loss of a network of 4 tanh units on 6 inputs, with weight decay; w (33,)."""
    return jax.nn.softplus(-z[1] * _digits_score(w, z[0])) + 0.5 * DECAY * jnp.dot(w, w)


@lru_cache(maxsize=1)
def digits_data() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(training, test): six components of the digits, scaled by the training rows; odd is +1.

    150 training rows with 15 % of labels flipped; the other 1647 rows, as they are, for tests.
    """
    from sklearn.datasets import load_digits
    from sklearn.decomposition import PCA

    pixels, digit = load_digits(return_X_y=True)
    labels = np.where(digit % 2 == 1, 1.0, -1.0)
    rng = generator(0, "digits-network")
    order = rng.permutation(len(labels))
    train, test = order[:DIGITS_ROWS], order[DIGITS_ROWS:]
    reduce = PCA(DIGITS_INPUTS, whiten=True, svd_solver="full").fit(pixels[train])
    flip = np.where(rng.random(DIGITS_ROWS) < FLIPPED, -1.0, 1.0)
    return (
        (reduce.transform(pixels[train]), labels[train] * flip),
        (reduce.transform(pixels[test]), labels[test]),
    )


def digits_network() -> Problem:
    """A small network with held-out examples: does flat generalise better?"""
    train, test = digits_data()
    count, dim = DIGITS_INPUTS, DIGITS_INPUTS * HIDDEN + 2 * HIDDEN + 1
    units = [
        [*range(count * j, count * (j + 1)), count * HIDDEN + j, (count + 1) * HIDDEN + j]
        for j in range(HIDDEN)
    ]
    return Problem(
        "digits-network",
        "a small tanh network (33 weights), even or odd digits, with 1647 held-out examples",
        finite_sum(digits_loss, train, dim, "digits-network"),
        (0.0,) * dim,
        symmetry=hidden_units(units),
        start_scale=0.3,
        settings={
            "starts": 64,
            "learning_rates": [0.5],
            "batch_sizes": [1, 2, 4, 8, 16, 32],
            "paths": 24,
            "horizon": 10_000,
            "examples": 20_000,
            "final_paths": 48,
            "network": True,
        },
        tests={
            "test loss": finite_sum(
                lambda w, z: jax.nn.softplus(-z[1] * _digits_score(w, z[0])), test, dim, "test loss"
            ),
            "test error": finite_sum(
                lambda w, z: jnp.where(z[1] * _digits_score(w, z[0]) > 0, 0.0, 1.0),
                test,
                dim,
                "test error",
            ),
        },
    )


def logistic_data(components: int) -> tuple[np.ndarray, np.ndarray]:
    """All 569 rows: `components` principal components and a constant 1; labels -1, +1.

    Components have variance 1 over these very rows; whitening alone divides by n - 1, not by n.
    """
    features, labels = _breast_cancer(components)
    features = features / features.std(axis=0)
    return np.column_stack([features, np.ones(len(features))]), labels


def logistic_loss(x: Array, z: tuple[Array, Array]) -> Array:
    """Logistic loss with penalty (.05/2) |x|^2 of one row z = (features, label -1 or +1)."""
    return jax.nn.softplus(-z[1] * jnp.dot(x, z[0])) + 0.025 * jnp.dot(x, x)


def logistic_minimum(loss: StochasticLoss, iterations: int = 50) -> np.ndarray:
    """The only minimum of a strongly convex loss, by Newton's method: (d,)."""
    x = jnp.zeros(loss.dim)
    hessian, gradient = jax.jit(loss.hessian), jax.jit(loss.gradient)
    for _ in range(iterations):
        move = jnp.linalg.solve(hessian(x), gradient(x))
        x = x - move
        if float(jnp.linalg.norm(move)) < 1e-14:
            return np.asarray(x)
    raise InputError("loss", loss.name, "Newton's method found no minimum: not strongly convex")


def breast_cancer_logistic(components: int = 2) -> Problem:
    """Logistic regression on breast_cancer; exit from {F - F* < .02}."""
    loss = finite_sum(
        logistic_loss, logistic_data(components), components + 1, "breast-cancer-logistic"
    )
    best = logistic_minimum(loss)
    height = float(loss.mean(jnp.asarray(best))) + 0.02
    return Problem(
        "breast-cancer-logistic",
        "convex and real: SGD's own escape exponent .5054 against its diffusion's .3051",
        loss,
        tuple(float(v) for v in best),
        sublevel(loss.mean, height, loss.dim),
        known=(
            KnownAnswer(
                "quasipotential",
                "sgd",
                0.5054,
                "1",
                {"components": 2},
                "minimum action of the chain's Hamiltonian, 4 digits",
            ),
            KnownAnswer(
                "quasipotential",
                "diffusion-1",
                0.3051,
                "1",
                {"components": 2},
                "minimum action of the diffusion, 4 digits",
            ),
        ),
    )
