"""Tail exponents of SGD where curvature differs between examples.

Source: Kesten, "Random difference equations and renewal theory for products of random matrices"
(Acta Math. 131, 1973): the stationary law of x' = A x + b falls like |x|^-kappa, E |A|^kappa = 1.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from ..dynamics import SGD
from ..errors import InputError
from ..law.kernel import batches
from ..streams import generator as keyed_generator
from .linear import Linear

Floats = NDArray[np.float64]

DRAWS = 20000
REACH, POINTS = 14.0, 8001  # of a normal law, in standard deviations, and how finely it is cut
FEW = 2000  # examples up to which subsets are drawn by sorting


def kesten(sgd: SGD, linear: Linear, seed: int) -> dict[str, float]:
    """Tail exponents along the direction whose curvature is noisiest relative to its mean."""
    none = {"kesten_sgd": math.inf, "kesten_diffusion": math.inf}
    if linear.spread is None:
        return {key: math.nan for key in none}
    own = np.einsum("mii->mi", linear.spread)
    variance = linear.factor * np.sum(own**2, axis=0)
    i = int(np.argmax(variance / linear.eigenvalues))
    if variance[i] <= 1e-14 * linear.eigenvalues[i] ** 2:
        return none
    rate = linear.eigenvalues[i]
    # Tail |x|^-kappa of dX = -r X dt + sqrt(eta (s^2 + v X^2)) dW.
    flow = 1 + 2 * rate / (linear.eta * variance[i])
    h, chances = batch_curvatures(sgd, linear, i, seed)
    root = _root(1 - linear.eta * (rate + h), chances)
    return {"kesten_sgd": root, "kesten_diffusion": float(flow)}


def batch_curvatures(sgd: SGD, linear: Linear, i: int, seed: int) -> tuple[Floats, Floats]:
    """Curvature of a batch along direction i less its mean, as values (k,) and chances (k,).

    All batches of finite data where these can be listed, else drawn ones; the normal law itself.
    """
    assert linear.spread is not None
    weights, noise = linear.weights, sgd.loss.noise
    h = linear.spread[:, i, i] / np.sqrt(weights)
    if noise is not None and noise.name == "gaussian" and sgd.loss.closed_factor is not None:
        size = math.sqrt(linear.factor * float(weights @ h**2))
        z = np.linspace(-REACH, REACH, POINTS)
        density = np.exp(-z * z / 2)
        return size * z, density / density.sum()
    # The numbers of an epoch are those of a fresh subset: see `linearise`.
    fresh = sgd.sampling != "with_replacement"
    drawn = replace(sgd, sampling="without_replacement") if fresh else sgd
    if noise is not None and not noise.atoms and sgd.batch_size == 1:
        return h, weights
    try:
        every = batches(drawn)
    except InputError:  # too many to list
        return _drawn(drawn, h, weights, seed), np.full(DRAWS, 1 / DRAWS)
    return every.weights @ h, every.chances


def _drawn(sgd: SGD, h: Floats, weights: Floats, seed: int) -> Floats:
    """Mean of h over each of `DRAWS` batches."""
    rng, n, size = keyed_generator(seed, "validity-kesten"), len(h), sgd.batch_size
    if sgd.sampling == "with_replacement":
        rows = rng.choice(n, size=(DRAWS, size), p=weights / weights.sum())
    elif n <= FEW:
        rows = np.argpartition(rng.random((DRAWS, n)), size - 1, axis=1)[:, :size]
    else:
        rows = np.stack([rng.choice(n, size, replace=False) for _ in range(DRAWS)])
    return np.asarray(h[rows].mean(axis=1))


def _root(factors: Floats, chances: Floats) -> float:
    """Kappa > 0 with E|factor|^kappa = 1; inf if no factor exceeds 1, 0 if they grow on average."""
    size = np.abs(factors)
    if size.max() <= 1:
        return math.inf
    log = np.log(np.maximum(size, 1e-300))

    def excess(kappa: float) -> float:
        top = kappa * log
        peak = top.max()
        return float(peak + np.log(np.sum(chances * np.exp(top - peak))))

    if float(chances @ log) >= 0:
        return 0.0
    high = 1.0
    while excess(high) < 0:
        high *= 2
        if high > 1e6:
            return math.inf
    return float(brentq(excess, high / 2 if high > 1 else 1e-9, high, xtol=1e-10))
