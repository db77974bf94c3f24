"""Goals of the exit methods, single thread: actions, splitting, laws.

Run: ``PYTHONPATH=src XLA_FLAGS="--xla_cpu_multi_thread_eigen=false" OMP_NUM_THREADS=1 python
benchmarks/exits.py``. Times are of the second call: compiling is paid once per problem.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from batchwell import SGD, additive, ball, diffusion, diffusion_approximation, half_space
from batchwell._jax import jnp
from batchwell.action import instantons, string_action
from batchwell.exits import mean_exit_time
from timing import best, spent


def maier_stein(beta: float, eps: float = 1.0) -> Any:
    """The non-gradient standard problem."""
    return diffusion(
        lambda x: jnp.array([x[0] - x[0] ** 3 - beta * x[0] * x[1] ** 2, -(1 + x[0] ** 2) * x[1]]),
        lambda x: jnp.sqrt(eps) * jnp.eye(2),
        dim=2,
    )


def ritz() -> dict[str, Any]:
    """Chebyshev-Ritz on Maier-Stein; goal 50 ms to 1e-10."""
    from batchwell.action import hamiltonian
    from batchwell.action import ritz as engine

    x0, x1 = np.array([-1.0, 0.0]), np.zeros(2)
    least = min(f.action for f in instantons(maier_stein(10.0), x0, x1, order=40, starts=4))
    p = engine.problem(hamiltonian(maier_stein(10.0)), 24, 56, None)
    u = np.zeros((24, 2))
    u[0, 1] = 0.5
    first, later, found = best(lambda: engine.minimise(p, x0, x1, u.ravel()), 3)
    return {
        "first_s": first,
        "s": later,
        "error": abs(found.action - least),
        "goal": "0.05 s, 1e-10",
    }


def string() -> dict[str, Any]:
    """Geometric minimum action on Maier-Stein; goal 10 ms to 1e-6."""
    process = maier_stein(10.0)
    first, later, out = best(
        lambda: string_action(process, [-1.0, 0.0], [0.0, 0.0], points=65, tolerance=1e-5), 3
    )
    return {
        "first_s": first,
        "s": later,
        "error": abs(out.action - 0.3400414034),
        "goal": "0.01 s, 1e-6",
    }


def thousand() -> dict[str, Any]:
    """d = 1000, coupled wells; goal 1 s to 1e-6 (exact V: twice the barrier)."""
    d = 1000

    def drift(x: Any) -> Any:
        left, right = jnp.roll(x, 1).at[0].set(x[0]), jnp.roll(x, -1).at[-1].set(x[-1])
        return x - x**3 + 20.0 * (left + right - 2 * x)

    process = diffusion(drift, lambda x: jnp.eye(d), d)
    task = lambda: instantons(process, -np.ones(d), np.zeros(d), order=6, starts=1)[0]  # noqa: E731
    first, later, out = best(task, 3)
    return {
        "first_s": first,
        "s": later,
        "error": abs(out.action / (0.5 * d) - 1),
        "goal": "1 s, 1e-6",
    }


def rare() -> dict[str, Any]:
    """Chance near 1e-20 of the Gaussian chain by splitting; goal 5 % in 10 s."""
    sgd, where = SGD(additive(lambda x: x @ x / 2), 0.0205), ball([0.0], 1.0)
    exact = mean_exit_time(sgd, [0.0], where, "law").value
    score = lambda x: jnp.sum(x**2)  # noqa: E731
    options = {"particles": 4096, "replicas": 32, "score": score, "threads": 1}
    mean_exit_time(sgd, [0.0], where, "splitting", **{**options, "particles": 64, "replicas": 2})
    seconds, out = spent(lambda: mean_exit_time(sgd, [0.0], where, "splitting", **options))
    return {
        "cpu_s": seconds,
        "stderr": out.stderr / out.value,
        "ratio": out.value / exact,
        "steps": exact,
        "notes": out.notes[0],
        "goal": "10 s at 0.05",
    }


def plane() -> dict[str, Any]:
    """Chance near 7e-9 in 2-D with the committor as score; goal 2 s."""

    def well(x: Any) -> Any:
        return (x[0] ** 2 - 1) ** 2 / 4 + x[1] ** 2 * (0.6 + 0.4 * x[0])

    sgd, where = SGD(additive(well, dim=2), 0.0285), half_space([1.0, 0.0], 0.8)
    options = {"particles": 1024, "replicas": 8, "threads": 1}
    mean_exit_time(sgd, [-1.0, 0.0], where, "splitting", **{**options, "particles": 64})
    seconds, out = spent(lambda: mean_exit_time(sgd, [-1.0, 0.0], where, "splitting", **options))
    return {
        "cpu_s": seconds,
        "stderr": out.stderr / out.value,
        "notes": out.notes[0],
        "goal": "2 s",
    }


def cancer() -> dict[str, Any]:
    """Chance near 1e-12 of the breast_cancer chain in d = 6; goal 10 % in 60 s."""
    from batchwell.problems.real import breast_cancer_logistic

    found = breast_cancer_logistic(5)
    sgd = SGD(found.loss, 0.2, 13)
    options = {"particles": 1024, "replicas": 24, "threads": 1, "precision": "float32"}
    seconds, out = spent(
        lambda: mean_exit_time(sgd, found.start, found.domain, "splitting", **options)
    )
    return {
        "cpu_s": seconds,
        "stderr": out.stderr / out.value,
        "notes": out.notes[0],
        "goal": "60 s at 0.1",
    }


def tilted() -> dict[str, Any]:
    """The same chance by importance sampling (Gaussian noise only)."""
    sgd, where = SGD(additive(lambda x: x @ x / 2), 0.0205), ball([0.0], 1.0)
    exact = mean_exit_time(sgd, [0.0], where, "law").value
    options = {"particles": 1024, "replicas": 8, "threads": 1}
    seconds, out = spent(lambda: mean_exit_time(sgd, [0.0], where, "importance", **options))
    return {
        "cpu_s": seconds,
        "stderr": out.stderr / out.value,
        "ratio": out.value / exact,
        "goal": "10 s at 0.05",
    }


def sharp() -> dict[str, Any]:
    """Sharp law against the generator on the double well, eps = .05."""
    process = diffusion_approximation(SGD(additive(lambda x: (x @ x - 1) ** 2 / 4), 0.05))
    first, later, out = best(
        lambda: mean_exit_time(process, [-1.0], half_space([1.0], 1.0), "sharp"), 3
    )
    return {"first_s": first, "s": later, "ratio": out.value * 0.05 / 102108.3655, "goal": "-"}


TASKS = {
    "ritz": ritz,
    "string": string,
    "thousand": thousand,
    "rare": rare,
    "plane": plane,
    "cancer": cancer,
    "tilted": tilted,
    "sharp": sharp,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or TASKS:
        print(json.dumps({"task": name, **TASKS[name]()}, default=str), flush=True)
