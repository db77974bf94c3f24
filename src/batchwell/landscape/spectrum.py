"""Ends of a Hessian's spectrum: dense for few parameters, from Hessian-vector products for many."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from .._jax import jax, jnp, serial
from ..errors import RunError
from ..loss import StochasticLoss
from ..streams import generator

Array = Any
DENSE = 200  # parameters up to which Hessians are formed


def lowest_modes(loss: StochasticLoss, x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` smallest eigenvalues of the Hessian at x (d,), (k,), and eigenvectors (d, k)."""
    if loss.dim <= DENSE:
        values, vectors = (np.asarray(a) for a in _dense(loss)(x))
        return values[:count], vectors[:, :count]
    return extreme_modes(loss, x, count, "SA")


def largest_curvature(loss: StochasticLoss, x: np.ndarray) -> float:
    """Largest eigenvalue of the Hessian at x (d,), by absolute value."""
    if loss.dim <= DENSE:
        return float(np.abs(np.asarray(_dense(loss)(x)[0])).max())
    return float(np.abs(extreme_modes(loss, x, 1, "LM")[0]).max())


def extreme_modes(
    loss: StochasticLoss, x: np.ndarray, count: int, which: str, tolerance: float = 1e-8
) -> tuple[np.ndarray, np.ndarray]:
    """Implicitly restarted Lanczos: eigenvalues (k,), rising, and eigenvectors (d, k).

    Raises
    ------
    RunError
        No convergence (says how many pairs were found).
    """
    start = generator(1705_07562, "lanczos").standard_normal(loss.dim)
    size = min(loss.dim, max(40, 4 * count))
    try:
        values, vectors = eigsh(
            hessian_operator(loss, x), count, which=which, v0=start, ncv=size, tol=tolerance
        )
    except ArpackNoConvergence as error:
        raise RunError(
            f"Lanczos found {len(error.eigenvalues)} of {count} eigenvalues of the Hessian: its "
            "spectrum is too crowded there (add weight decay)"
        ) from None
    order = np.argsort(values)
    return values[order], vectors[:, order]


def hessian_operator(loss: StochasticLoss, x: np.ndarray) -> LinearOperator:
    """The Hessian of F at x (d,) as a scipy operator; no matrix is formed."""
    product, point = _product(loss), jnp.asarray(x)
    return LinearOperator(
        (loss.dim, loss.dim),
        matvec=lambda v: np.asarray(product(point, np.ravel(v))),
        dtype=np.float64,
    )


@lru_cache(maxsize=32)
def _dense(loss: StochasticLoss) -> Callable[[Array], Any]:
    return serial(jax.jit(lambda x: jnp.linalg.eigh(loss.hessian(x))))


@lru_cache(maxsize=32)
def _product(loss: StochasticLoss) -> Callable[[Array, Array], Array]:
    return serial(jax.jit(loss.hessian_vector))


def hessian_spectrum(loss: StochasticLoss, x: np.ndarray) -> np.ndarray:
    """All eigenvalues of the Hessian at x (d,), rising; for at most `DENSE` parameters."""
    return np.asarray(_dense(loss)(x)[0])


def curvature_and_noise(loss: StochasticLoss, x: np.ndarray, orbit: int = 0) -> dict[str, float]:
    """Curvature and noise at x (d,), named as in `Minimum`, without a (d, d) matrix.

    d + m Hessian-vector products for m examples, in blocks; eigenvalues by Lanczos. The `orbit`
    lowest eigenvalues are those of a continuous symmetry and are passed over.
    """
    point = jnp.asarray(x)
    low = float(np.sort(extreme_modes(loss, x, 1 + orbit, "SA")[0])[-1])
    high = float(extreme_modes(loss, x, 1, "LA")[0][0])
    block, products = _blocks(loss)
    trace = square = 0.0
    for first in range(0, loss.dim, block):
        rows = np.arange(first, min(first + block, loss.dim))
        units = np.zeros((block, loss.dim))
        units[np.arange(len(rows)), rows] = 1.0
        image = np.asarray(products(point, units))[: len(rows)]
        trace += float(image[np.arange(len(rows)), rows].sum())
        square += float(np.sum(image**2))
    factor = np.asarray(loss.factor(point)).T
    joint = 0.0
    for first in range(0, len(factor), block):
        part = factor[first : first + block]
        padded = np.concatenate([part, np.zeros((block - len(part), loss.dim))])
        joint += float(np.sum(part * np.asarray(products(point, padded))[: len(part)]))
    # |Sigma|_F is that of the smaller of s s^T and s^T s.
    gram = factor @ factor.T if len(factor) <= loss.dim else factor.T @ factor
    size = float(np.sqrt(square) * np.linalg.norm(gram))
    return {
        "loss": float(loss.mean(point)),
        "lambda_max": high,
        "lambda_min": low,
        "trace": trace,
        "noise_trace": float(np.sum(factor**2)),
        "alignment": joint / size if size > 0 else 0.0,
    }


@lru_cache(maxsize=32)
def _blocks(loss: StochasticLoss) -> tuple[int, Callable[[Array, Array], Array]]:
    many = jax.vmap(loss.hessian_vector, in_axes=(None, 0))
    return 64, serial(jax.jit(many))
