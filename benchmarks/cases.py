"""What is timed: each case runs the fused engine, and the C reference, on the same work.

A case is a pair of functions that return how much useful work they did; setting up is not timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

import reference
from batchwell import SGD, Diffusion, ball, diffusion, finite_sum, half_space
from batchwell.ensemble import exits, fused, start

DT, SIGMA = 0.01, 0.5
Work = Callable[[], float]


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes
    ----------
    fused, c
        Run once; return steps (or samples) done.
    goal
        Least ratio of the fused engine's speed to C's.
    """

    name: str
    fused: Work
    c: Work
    goal: float
    unit: str = "path-steps"


def euler(drift: Callable, factor: Callable, dim: int) -> Diffusion:
    """A diffusion with one Euler step per unit."""
    return diffusion(drift, factor, dim, learning_rate=DT)


WELL = euler(lambda x: x - x**3, lambda x: SIGMA * jnp.eye(1), 1)
PLANE = euler(
    lambda x: jnp.array([x[0] - x[0] ** 3 - 0.5 * x[0] * x[1] ** 2, -4 * x[1] - 0.5 * x[0] ** 2 * x[1]]),
    lambda x: SIGMA * jnp.diag(jnp.array([jnp.sqrt(1 + 0.5 * x[0] ** 2), 0.5 * jnp.sqrt(1 + x[1] ** 2)])),
    2,
)  # fmt: skip


def dense(d: int) -> tuple[np.ndarray, Diffusion]:
    """(matrix, diffusion) of a dense quadratic with a quartic."""
    m = np.random.default_rng(3).standard_normal((d, d))
    matrix = (m @ m.T / d + np.eye(d)).astype(np.float32).astype(np.float64)
    drift = lambda x: -(matrix @ x + 0.1 * x**3)  # noqa: E731
    return matrix, euler(drift, lambda x: SIGMA * jnp.eye(d), d)


MATRIX, DENSE = dense(10)
LARGE, DENSE_LARGE = dense(40)


def engine(process, threads=1, precision="float32"):
    """(engine, advance) of the fused kernels."""
    made = fused.engine_of(process, "euler", precision)
    return made, fused.Advancer(made, 1, threads)


def ensemble_case(name, process, x0, paths, steps, goal, c_name, *c_args, threads=1):
    """Steps of a diffusion from one start."""
    made, advance = engine(process, threads)
    state = start(process, x0, paths, 0, substeps=1)
    blocks = fused.to_blocks(made, state.x, state.rng, state.memory)
    states = reference.states(paths)
    x = np.repeat(np.asarray(x0, np.float32)[:, None], paths, axis=1)
    q = float(SIGMA * np.sqrt(DT))

    def run():
        advance(0, steps, blocks)
        return paths * steps

    def run_c():
        reference.call(c_name, paths, steps, DT, q, states, x, *c_args)
        return paths * steps

    return Case(name, run, run_c, goal)


def large_case(paths=2048, steps=100):
    """Forty dimensions: array code."""
    matrix, start_at = LARGE.astype(np.float32), np.full(40, 0.5)
    name = "40-D dense quadratic, array code"
    return ensemble_case(name, DENSE_LARGE, start_at, paths, steps, 0.7, "dense_large", matrix, 40)


def exit_case(paths=4096):
    """First exits of the double well, in useful steps."""
    made = fused.engine_of(WELL, "euler", "float32")
    test = exits.exit_test(WELL, half_space([1.0], 0.0), False)
    state = start(WELL, [-1.0], paths, 0, "paths", substeps=1)
    states, tau = reference.states(paths), np.zeros(paths, np.int32)

    def run():
        steps, _, _ = exits.find_exits(made, test, state.x, state.rng, 10**9, 1, 1, None)
        return float(steps.sum())

    def run_c():
        q = float(SIGMA * np.sqrt(DT))
        return float(reference.call("exits", paths, DT, q, -1.0, states, tau))

    return Case("first exits", run, run_c, 0.85)


def logistic_data(n=1000, d=20):
    """Rows and labels of a logistic regression."""
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((n, d)).astype(np.float32)
    chance = 1 / (1 + np.exp(-rows @ rng.standard_normal(d)))
    return rows, (rng.random(n) < chance).astype(np.float32)


def logistic_loss(w, z):
    """Logistic loss of one example (row, label in 0, 1)."""
    score = w @ z[0]
    return jax.nn.softplus(score) - z[1] * score


ROWS, LABELS = logistic_data()
LOGISTIC = finite_sum(logistic_loss, (ROWS.astype(float), LABELS.astype(float)), 20)
MODES = ("with_replacement", "without_replacement", "reshuffle")


def logistic_case(mode, batch, paths=512):
    """Minibatch SGD, in samples."""
    process = SGD(LOGISTIC, 0.05, batch, mode)
    made, advance = engine(process)
    state = start(process, np.zeros(20), paths, 0)
    blocks = fused.to_blocks(made, state.x, state.rng, state.memory)
    epoch = 1000 // batch
    steps = epoch if mode == "reshuffle" else max(30, 400 // batch)
    padded = np.zeros((1000, 32), np.float32)
    padded[:, :20] = ROWS
    states, w = reference.states(paths), np.zeros((paths, 32), np.float32)

    def run():
        advance(0, steps, blocks)
        return paths * steps * batch

    def run_c():
        reference.call(
            "logistic",
            paths,
            steps,
            1000,
            batch,
            MODES.index(mode),
            0.05,
            padded,
            LABELS,
            states,
            w,
        )
        return paths * steps * batch

    return Case(f"logistic, {mode}, B={batch}", run, run_c, 0.6, "samples")


def logistic_exits(mode, batch, paths=1024, radius=2.2):
    """(exits, steps): first exits of minibatch SGD from a ball, and its plain steps, in samples."""
    process = SGD(LOGISTIC, 0.05, batch, mode)
    made, advance = engine(process)
    state = start(process, np.zeros(20), paths, 0)
    blocks = fused.to_blocks(made, state.x, state.rng, state.memory)
    test = exits.exit_test(process, ball(np.zeros(20), radius), False)
    count = 1000 // batch if mode == "reshuffle" else max(30, 400 // batch)

    def leave():
        steps, _, _ = exits.find_exits(made, test, state.x, state.rng, 20_000, 1, 1, None)
        return float(steps.sum()) * batch

    def run():
        advance(0, count, blocks)
        return paths * count * batch

    return leave, run


def cases():
    """All cases, made when asked for."""
    yield ensemble_case("1-D double well", WELL, [-1.0], 8192, 2000, 0.85, "well")
    yield ensemble_case("2-D, state-dependent noise", PLANE, [-1.0, 0.0], 8192, 800, 0.85, "plane")
    yield ensemble_case(
        "10-D dense quadratic",
        DENSE,
        np.full(10, 0.5),
        4096,
        300,
        0.7,
        "dense",
        MATRIX.astype(np.float32),
    )
    yield large_case()
    yield exit_case()
    for mode in MODES:
        for batch in (1, 8, 40, 125) if mode == "reshuffle" else (1, 8, 64):
            yield logistic_case(mode, batch)
