"""Networks of growing size: straight-line code, array code and XLA, in samples per CPU-second."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np

from batchwell import SGD, StochasticLoss, finite_sum
from batchwell.ensemble import fused, start, xla
from batchwell.ensemble.lowering import Unsupported
from timing import best

SHAPES = ((4, 4, 2), (8, 8, 2), (8, 16, 4), (16, 16, 4), (64, 32, 10))
DATA = 1797  # examples, as in scikit-learn's digits


def network(
    inputs: int, hidden: int, classes: int, examples: int = DATA, decay: float = 0.0
) -> StochasticLoss:
    """Cross-entropy of a layer of tanh units; labels are whole numbers that index the scores."""
    rng = np.random.default_rng(8)
    data = rng.standard_normal((examples, inputs)), rng.integers(0, classes, examples)
    sizes = [inputs * hidden, hidden, hidden * classes, classes]
    cuts = np.cumsum(sizes)[:-1].tolist()

    def loss(w, z):
        first, shift, second, bias = jnp.split(w, cuts)
        h = jnp.tanh(z[0] @ first.reshape(inputs, hidden) + shift)
        scores = h @ second.reshape(hidden, classes) + bias
        return jax.nn.logsumexp(scores) - scores[z[1]] + decay * w @ w

    return finite_sum(loss, data, sum(sizes))


def least(work) -> float:
    """CPU seconds, the best of three."""
    return best(work, 3, time.process_time)[1]


def fused_rate(process: SGD, paths: int, steps: int, loops: bool) -> tuple[float, float]:
    """(samples per CPU-second, seconds until the first step is done)."""
    clock = time.perf_counter()
    engine = fused.engine_of(process, precision="float32", loops=loops)
    advance = fused.Advancer(engine, 1, 1)
    state = start(process, np.full(process.loss.dim, 0.1), paths, 0)
    blocks = fused.to_blocks(engine, state.x, state.rng, state.memory)
    advance(0, 1, blocks)
    first = time.perf_counter() - clock
    return paths * steps * process.batch_size / least(lambda: advance(0, steps, blocks)), first


def xla_rate(process: SGD, paths: int, steps: int) -> float:
    """The XLA engine (float64: it has no other), per CPU-second of all its threads."""
    state = start(process, np.full(process.loss.dim, 0.1), paths, 0)
    stepper = xla.Stepper(process, 1, "heun", state.x, state.rng, state.memory)
    return paths * steps * process.batch_size / least(lambda: stepper(0, steps))


def main() -> None:
    """Print the table."""
    print("samples per CPU-second in millions; seconds to the first result in brackets")
    print(f"{'network':>12s} {'d':>5s} {'B':>3s} {'straight':>16s} {'arrays':>16s} {'XLA':>7s}")
    for shape in SHAPES:
        loss = network(*shape)
        paths = 512 if loss.dim < 500 else 128
        for batch in (1, 32):
            process = SGD(loss, 0.1, batch)
            steps = max(2, int(4e8 / (loss.dim * batch * paths)))
            cells = []
            for loops in (False, True):
                try:
                    speed, first = fused_rate(process, paths, steps, loops)
                    cells.append(f"{speed / 1e6:8.2f} ({first:4.2f})")
                except Unsupported:
                    cells.append("too long")
            slow = xla_rate(process, paths, max(1, steps // 20)) / 1e6
            name = "-".join(map(str, shape))
            print(
                f"{name:>12s} {loss.dim:5d} {batch:3d} {cells[0]:>16s} {cells[1]:>16s} {slow:7.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
