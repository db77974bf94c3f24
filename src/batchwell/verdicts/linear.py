"""SGD linearised at a minimum: variances, stability limits and Kesten's tail exponents."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._jax import jax, jnp
from ..dynamics import SGD
from ..errors import require
from ..loss import StochasticLoss

Floats = NDArray[np.float64]

CURVATURE_BYTES = 5e8


@dataclass(frozen=True)
class Linear:
    """SGD linearised at a minimum: Hessian eigenbasis, noise there, per-example curvatures."""

    eigenvalues: Floats  # (d,)
    vectors: Floats  # (d, d)
    noise: Floats  # (d, d) Sigma in the eigenbasis
    spread: Floats | None  # (m, d, d) sqrt(w) (H_z - H) in the eigenbasis, None if too large
    weights: Floats  # (m,)
    factor: float  # batch factor
    eta: float

    @property
    def silent(self) -> bool:
        """Whether there is no noise at all, as of SGD that draws every example at once."""
        steady = self.spread is not None and not np.any(self.spread)
        return self.factor == 0 or (steady and not np.any(self.noise))

    def lyapunov(self, s: Floats) -> Floats:
        """X with H X + X H = s."""
        return s / np.add.outer(self.eigenvalues, self.eigenvalues)

    def multiplicative(self, s: Floats) -> Floats:
        """Batch covariance of (H_z - H) x for E xx^T = s."""
        if self.spread is None:
            return np.zeros_like(s)
        # sum_m G_m s G_m^T as two matrix products: einsum takes ten times as long.
        d = len(s)
        right = self.spread.transpose(1, 0, 2).reshape(d, -1)
        left = (self.spread @ s).transpose(1, 0, 2).reshape(d, -1)
        return self.factor * (left @ right.T)

    def squared(self, s: Floats) -> Floats:
        """H s H."""
        return s * np.multiply.outer(self.eigenvalues, self.eigenvalues)


@lru_cache(maxsize=32)
def _at(loss: StochasticLoss, name: str) -> Callable[..., Any]:
    """A function of the loss, compiled once for all minima."""
    return jax.jit(getattr(loss, name))


@lru_cache(maxsize=32)
def _curvatures(loss: StochasticLoss) -> Callable[..., Any]:
    """(x, examples) -> their Hessians (m, d, d)."""
    return jax.jit(jax.vmap(jax.hessian(loss.function), in_axes=(None, 0)))


def linearise(sgd: SGD, centre: Floats) -> tuple[Linear, tuple[str, ...]]:
    """SGD around a minimum, and notes on what that leaves out."""
    loss, x = sgd.loss, jnp.asarray(centre)
    d, m = loss.dim, loss.size
    values, vectors = np.linalg.eigh(np.asarray(_at(loss, "hessian")(x)))
    require(
        values[-1] > 0 and values[0] > -1e-3 * values[-1],
        "minimum",
        f"Hessian eigenvalue {values[0]:.3g}",
        "must be a minimum (positive curvature)",
    )
    notes = []
    floor = 1e-8 * values[-1]
    if values[0] < floor:
        notes.append(
            f"{int(np.sum(values < floor))} flat directions (curvature below "
            f"{floor:.2g}) are held in place"
        )
    noise = vectors.T @ np.asarray(_at(loss, "covariance")(x)) @ vectors
    spread: Floats | None = None
    if 16.0 * m * d * d <= CURVATURE_BYTES:
        h = np.asarray(_curvatures(loss)(x, loss.nodes))
        w = np.asarray(loss.weights)
        h = h - np.tensordot(w, h, axes=1)
        spread = np.sqrt(w)[:, None, None] * np.einsum(
            "ai,mab,bj->mij", vectors, h, vectors, optimize=True
        )
    else:
        notes.append("too many parameters for per-example curvature: noise is taken as additive")
    # An epoch has no one-step noise; its numbers are those of fresh subsets, and say so.
    if sgd.sampling == "reshuffle":
        assert loss.n is not None
        factor = (loss.n - sgd.batch_size) / max(1, loss.n - 1) / sgd.batch_size
        notes.append("numbers are those of a fresh subset each step; epochs are far quieter")
    else:
        factor = sgd.batch_factor
    eta = sgd.learning_rate / (1 - sgd.momentum)
    if sgd.momentum:
        notes.append(f"momentum is taken at its effective learning rate {eta:.4g}")
    weights = np.asarray(loss.weights)
    return (
        Linear(np.maximum(values, floor), vectors, noise, spread, weights, factor, eta),
        tuple(notes),
    )


def _radius(apply: Callable[[Floats], Floats], size: int) -> float:
    """Spectral radius of a positive map on symmetric matrices, by power iteration."""
    s = np.eye(size) / math.sqrt(size)
    value = 0.0
    for _ in range(500):
        new = apply(s)
        norm = float(np.linalg.norm(new))
        if norm == 0.0:
            return 0.0
        s = new / norm
        if abs(norm - value) <= 1e-10 * norm:
            break
        value = norm
    return norm


def stability(linear: Linear) -> dict[str, float]:
    """HS + SH = eta (HSH + T(S)) at the limit: eta is one over a spectral radius."""
    d = len(linear.eigenvalues)
    chain = _radius(lambda s: linear.lyapunov(linear.squared(s) + linear.multiplicative(s)), d)
    flow = _radius(lambda s: linear.lyapunov(linear.multiplicative(s)), d)
    # A power radius converges from a start that may miss growth: 1e-10 is far below use.
    return {
        "eta_lambda_max": linear.eta * float(linear.eigenvalues[-1]),
        "stability_limit_sgd": 1 / chain,
        "stability_limit_diffusion": 1 / flow if flow > 1e-12 * chain else math.inf,
    }


def variances(linear: Linear) -> tuple[Floats | None, dict[str, float]]:
    """Stationary covariance of linearised SGD (or None) and ratios of its trace."""
    source = linear.factor * linear.noise

    def fixed_point(apply: Callable[[Floats], Floats]) -> Floats | None:
        c = np.zeros_like(source)
        for _ in range(5000):
            new = apply(c)
            size = float(np.trace(new))
            # All entries: what grows need not show on the diagonal first.
            if not float(np.abs(new).max()) < 1e6 * max(1.0, float(np.trace(source))):
                return None
            if abs(size - float(np.trace(c))) <= 1e-10 * size:
                return new
            c = new
        return None

    eta, rate = linear.eta, linear.eigenvalues
    chain = fixed_point(
        lambda c: linear.lyapunov(eta * (linear.squared(c) + linear.multiplicative(c) + source))
    )
    first = fixed_point(lambda c: linear.lyapunov(eta * (linear.multiplicative(c) + source)))
    faster = rate + eta * rate**2 / 2
    second = fixed_point(
        lambda c: eta * (linear.multiplicative(c) + source) / np.add.outer(faster, faster)
    )
    frozen = linear.lyapunov(eta * source)
    out = {}
    if chain is not None and np.trace(chain) <= 0:  # no noise at all: nothing to compare
        return chain, {
            f"variance_ratio_{name}": math.nan for name in ("order1", "order2", "frozen")
        }
    for name, c in (("order1", first), ("order2", second), ("frozen", frozen)):
        if chain is None:
            out[f"variance_ratio_{name}"] = 0.0 if c is not None else math.nan
        elif c is None:
            out[f"variance_ratio_{name}"] = math.inf
        else:
            out[f"variance_ratio_{name}"] = float(np.trace(c) / np.trace(chain))
    return chain, out
