"""Plans: a recipe with its data, and what is known of a process before any code is written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from .._jax import jax, jnp
from ..dynamics import SGD, Diffusion, Process, diffusion_approximation
from ..loss import StochasticLoss
from .kernels import NATIVE_LANES, Recipe
from .lowering import cost_of
from .step import pairs_of, platen

MAX_LOADED_ROW = 64  # rows of the table up to this long are loaded whole
WIDE_BELOW = 6  # dimensions below which two registers per value pay


@dataclass(frozen=True, eq=False)
class Plan:
    """A recipe with its data.

    Attributes
    ----------
    table, weights
        Data rows (n, columns) and, for full-batch kernels, (n, 2): weight and its root.
    reals
        The real arguments of a process, by name.
    """

    recipe: Recipe
    table: np.ndarray | None
    weights: np.ndarray | None
    columns: int = 0


def reals_of(process: Process, substeps: int) -> dict[str, float]:
    """The numbers that a compiled step takes when it runs."""
    if isinstance(process, SGD):
        eta, size = process.learning_rate, process.batch_size
        if process.loss.closed_factor is not None:
            size = 1  # additive noise: a batch is one draw of its mean
        drift = 1.0 / size if process.momentum else -eta / size
        noise = 1.0 / process.batch_size
        return {"drift": drift, "eta": eta, "momentum": process.momentum, "noise": noise}
    dt = process.learning_rate / substeps
    if not from_loss(process):
        return {"drift": dt, "noise": dt**0.5, "bridge": dt}
    assert process.sgd is not None
    gain = 1.0 / (1.0 - process.sgd.momentum)
    noise = gain * (dt * process.sgd.temperature) ** 0.5
    half_eta = process.learning_rate / 2 if process.order == 2 else 0.0
    return {"drift": -dt * gain, "noise": noise, "half_eta": half_eta, "bridge": dt}


@lru_cache(maxsize=512)
def from_loss(process: Diffusion) -> bool:
    """Whether the process is what `diffusion_approximation` makes of its SGD, unaltered."""
    if process.sgd is None or process.order not in (1, 2):
        return False
    made = diffusion_approximation(process.sgd, process.order)
    same = process.learning_rate == made.learning_rate
    return (
        same
        and _same_function(process.drift, made.drift)
        and _same_function(process.factor_vector, made.factor_vector)
    )


def _same_function(f: Any, g: Any) -> bool:
    if getattr(f, "__code__", None) is not getattr(g, "__code__", 0):
        return False
    pairs = zip(f.__closure__ or (), g.__closure__ or (), strict=True)
    return all(
        a.cell_contents is b.cell_contents or _equal(a.cell_contents, b.cell_contents)
        for a, b in pairs
    )


def _equal(a: Any, b: Any) -> bool:
    return isinstance(a, (int, float)) and isinstance(b, (int, float)) and a == b


@lru_cache(maxsize=256)
def work_of(process: Process, scheme: str) -> int:
    """About how many scalar operations straight-line code of a step, or of one example, has."""
    if isinstance(process, SGD) or _over_rows(process):
        loss = process.loss if isinstance(process, SGD) else process.sgd.loss  # type: ignore[union-attr]
        example = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), loss.nodes)
        return cost_of(jax.grad(loss.function), point(loss.dim), example)
    x, xi = point(process.dim), point(process.noise_dim)
    if scheme == "platen":
        return cost_of(partial(platen, process), x, xi, point(pairs_of(process.noise_dim)), point())
    return cost_of(process.drift, x) + cost_of(process.factor_vector, x, xi)


def _over_rows(process: Diffusion) -> bool:
    """Whether a diffusion's fields are sums over data."""
    if not from_loss(process):
        return False
    assert process.sgd is not None
    return over_rows(process.sgd.loss)


def over_rows(loss: StochasticLoss) -> bool:
    """Whether gradient and noise of a loss are best summed over its nodes, one noise for each."""
    return loss.closed_mean is None and loss.closed_factor is None and not loss.square


def point(*shape: int) -> Any:
    """Shape of a float64 argument, for tracing."""
    return jax.ShapeDtypeStruct(shape, jnp.float64)


@lru_cache(maxsize=256)
def data_table(loss: StochasticLoss) -> np.ndarray:
    """The nodes of a loss as one float64 table, (n, columns)."""
    leaves = [np.asarray(a) for a in jax.tree.leaves(loss.nodes)]
    return np.concatenate([a.reshape(len(a), -1).astype(np.float64) for a in leaves], axis=1)


def stride_of(columns: int, kind: str, loops: bool = False) -> int:
    """Length of a row of the table in memory: padded, if short, to be loaded by registers.

    Recipes that loop load rows of any length so.
    """
    lanes = 2 * NATIVE_LANES[kind]
    padded = loops or 2 < columns <= MAX_LOADED_ROW
    return -(-columns // lanes) * lanes if padded else columns


def row_weights(loss: StochasticLoss) -> np.ndarray:
    """(n, 2): weight of every node and its root."""
    weights = np.asarray(loss.weights)
    return np.stack([weights, np.sqrt(weights)], axis=1)
