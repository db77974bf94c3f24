"""Goals of the exit methods, on one thread: least actions, rare chances, sharp laws.

Run all or some: ``python benchmarks/exits.py [rare plane ...]``. Seconds are CPU time of a later
call, or of the only one where sampling itself is what takes long: compiling is paid once per problem. The
error is that of an action or a time where the exact one is known, else the relative standard error.
"""

# ruff: noqa: E402  (thread counts must be set before numpy is loaded)
from __future__ import annotations

import timing

timing.one_thread()

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from batchwell import SGD, Estimate, additive, ball, diffusion, diffusion_approximation, half_space
from batchwell._jax import jnp
from batchwell.action import hamiltonian, instantons, string_action
from batchwell.action import ritz as engine
from batchwell.exits import mean_exit_time
from batchwell.problems.real import breast_cancer_logistic

Row = tuple[str, float, float, float, float]  # of `timing.line`


def later(task: Callable[[], Any]) -> tuple[float, Any]:
    """(best CPU seconds of three calls after a first one, answer)."""
    _, seconds, answer = timing.best(task, 3, time.process_time)
    return seconds, answer


def maier_stein(beta: float, eps: float = 1.0) -> Any:
    """The non-gradient standard problem."""
    return diffusion(
        lambda x: jnp.array([x[0] - x[0] ** 3 - beta * x[0] * x[1] ** 2, -(1 + x[0] ** 2) * x[1]]),
        lambda x: jnp.sqrt(eps) * jnp.eye(2),
        dim=2,
    )


def ritz() -> Row:
    """Chebyshev-Ritz on Maier-Stein."""
    x0, x1 = np.array([-1.0, 0.0]), np.zeros(2)
    least = min(f.action for f in instantons(maier_stein(10.0), x0, x1, order=40, starts=4))
    p = engine.problem(hamiltonian(maier_stein(10.0)), 24, 56, None)
    u = np.zeros((24, 2))
    u[0, 1] = 0.5
    seconds, found = later(lambda: engine.minimise(p, x0, x1, u.ravel()))
    return "Chebyshev-Ritz, Maier-Stein", seconds, 0.05, abs(found.action - least), 1e-10


def string() -> Row:
    """Geometric minimum action on Maier-Stein."""
    process = maier_stein(10.0)
    ends = [-1.0, 0.0], [0.0, 0.0]
    seconds, out = later(lambda: string_action(process, *ends, points=65, tolerance=1e-5))
    return "geometric action, Maier-Stein", seconds, 0.01, abs(out.action - 0.3400414034), 1e-6


def thousand() -> Row:
    """Coupled wells; the exact V is twice the barrier."""
    d = 1000

    def drift(x: Any) -> Any:
        left, right = jnp.roll(x, 1).at[0].set(x[0]), jnp.roll(x, -1).at[-1].set(x[-1])
        return x - x**3 + 20.0 * (left + right - 2 * x)

    process = diffusion(drift, lambda x: jnp.eye(d), d)
    ends = -np.ones(d), np.zeros(d)
    seconds, out = later(lambda: instantons(process, *ends, order=6, starts=1)[0])
    return "coupled wells, d = 1000", seconds, 1.0, abs(out.action / (0.5 * d) - 1), 1e-6


def bowl() -> tuple[SGD, Any]:
    """Gaussian chain that a departure gets out of with a chance near 1e-20."""
    return SGD(additive(lambda x: x @ x / 2), 0.0205), ball([0.0], 1.0)


def scatter(out: Estimate) -> float:
    """Relative standard error."""
    return out.stderr / out.value


def rare() -> Row:
    """The chain's chance near 1e-20 by splitting."""
    sgd, where = bowl()
    score = lambda x: jnp.sum(x**2)  # noqa: E731
    options = {"particles": 4096, "replicas": 32, "score": score, "threads": 1}
    mean_exit_time(sgd, [0.0], where, "splitting", **{**options, "particles": 64, "replicas": 2})
    seconds, out = timing.spent(lambda: mean_exit_time(sgd, [0.0], where, "splitting", **options))
    return f"splitting, {_from_exact(out)}", seconds, 10.0, scatter(out), 0.05


def tilted() -> Row:
    """The same chance by importance sampling."""
    sgd, where = bowl()
    options = {"particles": 1024, "replicas": 8, "threads": 1}
    seconds, out = timing.spent(lambda: mean_exit_time(sgd, [0.0], where, "importance", **options))
    return f"importance, {_from_exact(out)}", seconds, 10.0, scatter(out), 0.05


def _from_exact(out: Estimate) -> str:
    sgd, where = bowl()
    exact = mean_exit_time(sgd, [0.0], where, "law").value
    return f"{exact:.2g} steps, {(out.value - exact) / out.stderr:+.1f} se off"


def plane() -> Row:
    """Chance near 7e-9 in 2-D with the committor as score."""

    def well(x: Any) -> Any:
        return (x[0] ** 2 - 1) ** 2 / 4 + x[1] ** 2 * (0.6 + 0.4 * x[0])

    sgd, where = SGD(additive(well, dim=2), 0.0285), half_space([1.0, 0.0], 0.8)
    options = {"particles": 1024, "replicas": 8, "threads": 1}
    mean_exit_time(sgd, [-1.0, 0.0], where, "splitting", **{**options, "particles": 64})
    task = lambda: mean_exit_time(sgd, [-1.0, 0.0], where, "splitting", **options)  # noqa: E731
    seconds, out = timing.spent(task)
    return "splitting, 2-D, chance 7e-9", seconds, 2.0, scatter(out), 0.1


def cancer() -> Row:
    """Chance near 1e-12 of the breast_cancer chain in d = 6, finite data."""
    found = breast_cancer_logistic(5)
    sgd = SGD(found.loss, 0.2, 13)
    options = {"particles": 1024, "replicas": 24, "threads": 1, "precision": "float32"}
    task = lambda: mean_exit_time(sgd, found.start, found.domain, "splitting", **options)  # noqa: E731
    seconds, out = timing.spent(task)
    return "splitting, breast_cancer d = 6, 1e-12", seconds, 60.0, scatter(out), 0.1


def sharp() -> Row:
    """Sharp law against the generator on the double well, eps = .05: the next order is 3/4 eps."""
    process = diffusion_approximation(SGD(additive(lambda x: (x @ x - 1) ** 2 / 4), 0.05))
    wells = half_space([1.0], 1.0)
    seconds, out = later(lambda: mean_exit_time(process, [-1.0], wells, "sharp"))
    error = abs(out.value * 0.05 / 102108.3655 - 1)
    return "Eyring-Kramers, double well", seconds, math.inf, error, 0.05


TASKS = (ritz, string, thousand, sharp, rare, tilted, plane, cancer)


def main() -> None:
    for task in TASKS:
        if not sys.argv[1:] or task.__name__ in sys.argv[1:]:
            timing.line(*task())


if __name__ == "__main__":
    main()
