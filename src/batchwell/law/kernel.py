"""One step of SGD as a kernel: a density where the noise has one, atoms where it has none."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._jax import jax, jnp
from ..dynamics import SGD
from ..errors import InputError, require
from ..loss import StochasticLoss
from .densities import MeanDensity, gauss_rule, mean_density, product_nodes, quadrature
from .fields import evaluate

Floats = NDArray[np.float64]

MAX_ATOMS = 20000


@dataclass(frozen=True)
class Batches:
    """Every minibatch gradient that can occur.

    Attributes
    ----------
    weights
        (k, m): share of each of the m examples in each of the k batches.
    chances
        (k,), summing to 1.
    """

    weights: Floats = field(repr=False)
    chances: Floats = field(repr=False)


def batches(sgd: SGD) -> Batches:
    """All minibatches of a finite data set (or of noise with atoms), with their chances.

    Raises
    ------
    InputError
        Reshuffled epochs, or more than `MAX_ATOMS` batches.
    """
    require(
        sgd.sampling != "reshuffle",
        "sampling",
        "reshuffle",
        "steps of an epoch are dependent: there is no one-step kernel",
    )
    p = np.asarray(sgd.loss.weights, dtype=np.float64)
    m, b = len(p), sgd.batch_size
    fresh = sgd.sampling == "without_replacement"
    count = math.comb(m, b) if fresh else math.comb(m + b - 1, b)
    require(
        count <= MAX_ATOMS,
        "batch_size",
        b,
        f"there are {count} different batches of {m} "
        f"examples, at most {MAX_ATOMS} are enumerated: simulate instead",
    )
    pick: Iterator[tuple[int, ...]] = (
        itertools.combinations(range(m), b)
        if fresh
        else itertools.combinations_with_replacement(range(m), b)
    )
    counts = np.zeros((count, m))
    rows = np.repeat(np.arange(count), b)
    np.add.at(counts, (rows, np.fromiter(itertools.chain.from_iterable(pick), dtype=np.int64)), 1)
    if fresh:
        chances = np.full(count, 1 / count)
    else:
        from scipy.special import gammaln, xlogy

        log = gammaln(b + 1) - gammaln(counts + 1).sum(axis=1) + xlogy(counts, p).sum(axis=1)
        chances = np.exp(log)
    return Batches(counts / b, chances / chances.sum())


@lru_cache(maxsize=64)
def _affine_in_noise(loss: StochasticLoss) -> bool:
    """Whether example gradients are affine in the noise z (checked at three points)."""
    assert loss.noise is not None
    rng = np.random.Generator(np.random.Philox(1707))
    z = np.asarray(loss.nodes)
    design = np.concatenate([np.ones((len(z), 1)), z], axis=1)
    for _ in range(3):
        g = np.asarray(loss.example_gradients(jnp.asarray(rng.standard_normal(loss.dim))))
        fit = design @ np.linalg.lstsq(design, g, rcond=None)[0]
        if np.max(np.abs(fit - g)) > 1e-9 * (1 + np.max(np.abs(g))):
            return False
    return True


@dataclass(frozen=True, eq=False)
class DensityKernel:
    """x' = centre(x) + spread(x) zeta, zeta with a known density (or normal in R^d).

    In 1-D `spread` may be negative: it then mirrors a skewed noise.
    """

    sgd: SGD
    law: MeanDensity

    def centre(self, x: Floats) -> Floats:
        """X - eta grad F(x) for x (m, d): (m, d)."""
        return x - self.sgd.learning_rate * evaluate(self.sgd.loss, "gradient", x)

    def covariance(self, x: Floats) -> Floats:
        """Covariance of x' given x, for x (m, d): (m, d, d)."""
        scale = self.sgd.learning_rate**2 * self.sgd.batch_factor
        return scale * evaluate(self.sgd.loss, "covariance", x)

    @property
    def gaussian(self) -> bool:
        """Whether the noise is normal, so that its covariance is all there is to it."""
        return self.sgd.loss.noise is not None and self.sgd.loss.noise.name == "gaussian"

    def spread(self, x: Floats) -> Floats:
        """1-D: signed scale (m,) of one draw's mean, x (m, 1)."""
        if not self.gaussian:
            return self.factor(x)[:, 0, 0]
        size = np.sqrt(evaluate(self.sgd.loss, "covariance", x)[:, 0, 0])
        return -self.sgd.learning_rate * size

    def factor(self, x: Floats) -> Floats:
        """Matrices (m, d, k) with x' = centre + factor zeta, x (m, d): one column per noise."""
        if not self.gaussian:
            return -self.sgd.learning_rate * evaluate(_Slopes(self.sgd.loss), "slopes", x)
        values, vectors = np.linalg.eigh(evaluate(self.sgd.loss, "covariance", x))
        return -self.sgd.learning_rate * vectors * np.sqrt(np.maximum(values, 0))[:, None, :]


@dataclass(frozen=True)
class _Slopes:
    """Derivative of the example gradient in its noises."""

    loss: StochasticLoss

    def slopes(self, x: Any) -> Any:
        """Matrix (d, k) at x (d,)."""

        def gradient(z: Any) -> Any:
            return self.loss.example_gradient(x, z)

        return jax.jacobian(gradient)(jnp.zeros(self.loss.noise_dim))


@dataclass(frozen=True, eq=False)
class AtomKernel:
    """x' is one of finitely many points, one per minibatch."""

    sgd: SGD
    batches: Batches

    @property
    def chances(self) -> Floats:
        """Chances (k,) of the points."""
        return self.batches.chances

    def images(self, x: Floats) -> Floats:
        """All possible next points for x (m, d): (m, k, d)."""
        g = evaluate(self.sgd.loss, "example_gradients", x)
        steps = np.einsum("kn,mnd->mkd", self.batches.weights, g)
        return x[:, None, :] - self.sgd.learning_rate * steps


@dataclass(frozen=True, eq=False)
class RuleKernel:
    """A step with a density whose noise is held at the nodes of a rule: for smooth expectations."""

    step: DensityKernel
    noise: Floats = field(repr=False)  # (k, copies)
    chances: Floats = field(repr=False)  # (k,)

    def images(self, x: Floats) -> Floats:
        """Points for x (m, d): (m, k, d)."""
        moves = np.einsum("mdj,kj->mkd", self.step.factor(x), self.noise)
        return self.step.centre(x)[:, None] + moves


def with_rule(step: DensityKernel, count: int | None) -> RuleKernel:
    """Gauss's rule of `count` nodes for each noise, or with None a fine quadrature."""
    d = step.sgd.loss.dim
    copies = d if step.gaussian else step.sgd.loss.noise_dim
    z, w = quadrature(step.law) if count is None else gauss_rule(step.law, count)
    return RuleKernel(step, *product_nodes(z, w, copies))


Kernel = DensityKernel | AtomKernel


def points_of(step: Kernel, count: int) -> AtomKernel | RuleKernel:
    """The step as finitely many points: its own, or those of a Gauss rule."""
    return step if isinstance(step, AtomKernel) else with_rule(step, count)


def kernel(sgd: SGD) -> Kernel:
    """The step of `sgd` as a kernel.

    Raises
    ------
    InputError
        Momentum or reshuffled epochs (x alone is then no Markov chain), a gradient that is not
        affine in its noise, several non-Gaussian noises in one step, or too many minibatches.
    """
    require(
        sgd.momentum == 0,
        "momentum",
        sgd.momentum,
        "must be 0: the law of x alone is Markov only without momentum",
    )
    loss = sgd.loss
    if loss.noise is None or loss.noise.atoms:
        return AtomKernel(sgd, batches(sgd))
    if not _affine_in_noise(loss):
        raise InputError(
            "loss",
            loss.name,
            "its gradient is not affine in the noise, so its step "
            "has no known density: simulate instead",
        )
    most = 1 if loss.dim == 1 else 3
    require(
        loss.noise.name == "gaussian" or loss.noise_dim <= most,
        "noise",
        f"{loss.noise_dim} of {loss.noise.name}",
        f"more than {most} non-Gaussian noises in one step of {loss.dim} parameters have no known "
        "density here: simulate instead",
    )
    return DensityKernel(sgd, mean_density(loss.noise, sgd.batch_size))
