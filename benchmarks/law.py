"""Times of the law's operators against their goals, on one thread.

Run with ``python benchmarks/law.py`` (``--heavy`` takes 64^3 cells in 3-D). Each line is the best of
several warm runs, in CPU time of the one thread, so that other work on the machine counts little:
compilation of the loss is not counted, building the operator is.
"""

# ruff: noqa: E402  (thread counts must be set before numpy is loaded)
from __future__ import annotations

import timing

timing.one_thread()

import argparse
import resource
import time
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from batchwell import SGD, additive, ball, diffusion
from batchwell.law import exit_time, exit_time_map, generator, transfer_operator

line = timing.line
REFLECT = ("reflecting", "reflecting")


def best(task: Callable[[], float], runs: int = 5) -> tuple[float, float]:
    """Answer and shortest time of `task` after one warm-up."""
    _, seconds, answer = timing.best(task, runs, time.process_time)
    return answer, seconds


def chain_1d() -> None:
    """Mean exit time of the 1-D chain, from 5e2 to 1e22 steps."""
    bowl = additive(lambda x: x @ x / 2)
    for eta, truth in ((0.2, 559.874075106855), (0.1, 117280.420652625), (0.05, None)):
        sgd = SGD(bowl, eta)
        if truth is None:
            truth = exit_time(transfer_operator(sgd, (-1, 1), nodes=640), [0.0]).value
        value, seconds = best(lambda s=sgd: exit_time(transfer_operator(s, (-1, 1)), [0.0]).value)
        line(f"chain 1-D, {value:.3g} steps", seconds, 0.01, abs(value / truth - 1), 1e-12)


def map_1d() -> None:
    """A 30 x 30 table over learning rate and batch size."""
    sgd = SGD(additive(lambda x: x @ x / 2), 0.1)
    etas, sizes = np.linspace(0.2, 0.6, 30), np.arange(1, 31)
    table, seconds = best(lambda: exit_time_map(sgd, (-1, 1), etas, sizes, 0.0), 3)
    check = exit_time(transfer_operator(SGD(sgd.loss, 0.2, 30), (-1, 1)), [0.0]).value
    line(
        f"map 30 x 30, up to {table.max():.2g} steps",
        seconds,
        0.5,
        abs(table[0, -1] / check - 1),
        1e-6,
    )


def chain_2d() -> None:
    """Exit of the 2-D chain from a disc."""
    sgd = SGD(additive(lambda x: x @ x / 2, dim=2), 0.1)
    disc = ball([0.0, 0.0], 1.0)
    truth = exit_time(transfer_operator(sgd, disc, nodes=64), [0.0, 0.0]).value
    value, seconds = best(lambda: exit_time(transfer_operator(sgd, disc), [0.0, 0.0]).value, 3)
    line("chain 2-D, disc, eta .1", seconds, 2.0, abs(value / truth - 1), 1e-5)


def generator_2d() -> None:
    """Maier-Stein on a half plane, 512 x 256."""
    flow = diffusion(
        lambda x: jnp.array([x[0] - x[0] ** 3 - 10 * x[0] * x[1] ** 2, -(1 + x[0] ** 2) * x[1]]),
        lambda x: 0.3 * jnp.eye(2),
        dim=2,
    )

    def task(nodes: tuple[int, int]) -> float:
        op = generator(
            flow, ((-2, -1), (0, 1)), nodes=nodes, boundary=(("reflecting", "absorbing"), REFLECT)
        )
        return exit_time(op, [-1.0, 0.0]).value

    truth = task((1024, 512))
    for nodes in ((256, 128), (512, 256)):
        value, seconds = best(lambda m=nodes: task(m), 3)
        line(f"generator 2-D, {nodes[0]} x {nodes[1]}", seconds, 0.5, abs(value / truth - 1), 1e-4)


def generator_3d(cells: int) -> None:
    """Double well with two stable directions."""
    flow = diffusion(
        lambda x: jnp.stack([x[0] - x[0] ** 3, -x[1], -2 * x[2]]),
        lambda x: jnp.sqrt(0.3) * jnp.eye(3),
        3,
    )
    clock = time.process_time()
    op = generator(
        flow,
        ((-2, -1, -1), (0, 1, 1)),
        nodes=cells,
        boundary=(("reflecting", "absorbing"), REFLECT, REFLECT),
    )
    value = exit_time(op, [-1.0, 0.0, 0.0]).value
    seconds = time.process_time() - clock
    line(f"generator 3-D, {cells}^3", seconds, 60.0, abs(value / 12.867893371833786 - 1), 1e-3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{'':42s} peak memory {peak:.2f} GiB (goal 8)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heavy", action="store_true", help="64^3 instead of 32^3 in 3-D")
    heavy = parser.parse_args().heavy
    chain_1d()
    map_1d()
    chain_2d()
    generator_2d()
    generator_3d(64 if heavy else 32)


if __name__ == "__main__":
    main()
