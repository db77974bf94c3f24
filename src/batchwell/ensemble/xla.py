"""The XLA engine: `Step`s mapped over paths and looped over time by `jax.lax`."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from .._jax import jax, jnp, serial
from ..domain import Domain
from ..dynamics import Process
from .observe import Bins, Observable, Sums
from .step import Step, step_of

Array = Any


@lru_cache(maxsize=256)
def compiled_step(process: Process, substeps: int, scheme: str = "heun") -> Step:
    """`step_of`, remembered so that compiled loops are found again."""
    return step_of(process, substeps, scheme)


@lru_cache(maxsize=256)
def advancer(process: Process, substeps: int, scheme: str = "heun") -> Callable[..., Any]:
    """Compiled ``(k, steps, x, memory, rng) -> (x, memory, rng)`` over all paths."""
    many = jax.vmap(compiled_step(process, substeps, scheme).advance, in_axes=(None, 0, 0, 0))

    @jax.jit
    def run(k: Array, steps: Array, x: Array, memory: Any, rng: Array) -> Any:
        return jax.lax.fori_loop(k, k + steps, lambda i, state: many(i, *state), (x, memory, rng))

    return serial(run)


@lru_cache(maxsize=64)
def exit_finder(
    process: Process, substeps: int, domain: Domain, scheme: str = "heun"
) -> Callable[..., Any]:
    """Compiled search for first exits: paths that have left stay where they left.

    ``(k, steps, x, memory, rng, left)``, `left` (M,) the step of the exit or 0, to
    the same after `steps` more steps.
    """
    step = compiled_step(process, substeps, scheme)
    level = domain.level
    assert level is not None

    def one(k: Array, x: Array, memory: Any, rng: Array, left: Array) -> Any:
        y, new_memory, new_rng = step.advance(k, x, memory, rng)
        y = jnp.where(left > 0, x, y)
        # A NaN level counts as outside, so that divergence surfaces as an exit to nowhere.
        out = jnp.logical_not(level(y) < 0)
        return y, new_memory, new_rng, jnp.where((left == 0) & out, k + 1, left)

    many = jax.vmap(one, in_axes=(None, 0, 0, 0, 0))

    @jax.jit
    def run(k: Array, steps: Array, x: Array, memory: Any, rng: Array, left: Array) -> Any:
        return jax.lax.fori_loop(
            k, k + steps, lambda i, state: many(i, *state), (x, memory, rng, left)
        )

    return serial(run)


class Stepper:
    """Runs steps over paths held by XLA."""

    def __init__(
        self,
        process: Process,
        substeps: int,
        scheme: str,
        x: np.ndarray,
        rng: np.ndarray,
        memory: Any,
    ) -> None:
        self._run = advancer(process, substeps, scheme)
        self._per = compiled_step(process, substeps).per_sgd_step
        self._x, self._memory, self._rng = x, memory, rng

    def __call__(self, first: int, steps: int) -> np.ndarray:
        """Positions (M, d) after `steps` more SGD steps, counted from `first`."""
        per = self._per
        self._x, self._memory, self._rng = self._run(
            first * per, steps * per, self._x, self._memory, self._rng
        )
        return np.asarray(self._x)

    def state(self) -> tuple[np.ndarray, Any]:
        """(generators, memory) now."""
        return np.asarray(self._rng), self._memory


def watcher(
    stepper: Any, observable: Observable, every: int, bins: Bins | None
) -> Callable[[int, int, Sums], np.ndarray]:
    """As `observe.Watcher`, by NumPy between calls."""
    look = jax.jit(jax.vmap(lambda x: jnp.ravel(observable(x))))

    def run(first: int, steps: int, sums: Sums) -> np.ndarray:
        x, done = np.empty(0), 0
        while done < steps:
            count = min(every - sums.steps % every, steps - done)
            x = stepper(first + done, count)
            done, sums.steps = done + count, sums.steps + count
            if sums.steps % every:
                continue
            values = np.asarray(look(x), np.float64)
            sums.totals, sums.squares = sums.totals + values, sums.squares + values**2
            if bins is not None and sums.counts is not None:
                _count(values, bins, sums.counts)
        return x

    return serial(run)


def _count(values: np.ndarray, bins: Bins, counts: np.ndarray) -> None:
    place = np.floor((values - bins.scaled[:, 0]) * bins.scaled[:, 1]) + 1
    index = np.clip(place, 0, bins.number + 1).astype(int)
    for k, column in enumerate(index.T):
        counts[k] += np.bincount(column, minlength=bins.number + 2)
