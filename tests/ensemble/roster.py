"""Processes and exits that every engine and device must agree on, and what is compared."""

import jax.numpy as jnp
import numpy as np

from batchwell import (
    NOISES,
    SGD,
    additive,
    ball,
    diffusion,
    diffusion_approximation,
    finite_sum,
    half_space,
    sampled,
    sublevel,
)
from batchwell.ensemble import start


def well(x):
    return (x[0] ** 2 - 1) ** 2 / 4


def network(n=13):
    rng = np.random.default_rng(22)
    features = rng.standard_normal((n, 4))
    labels = np.where(rng.random(n) < 0.5, -1, 1)  # whole numbers on purpose

    def loss(w, z):
        features, label = z
        hidden = jnp.tanh(w[:8].reshape(2, 4) @ features + w[8:10])
        return jnp.logaddexp(0.0, -label * (w[10:12] @ hidden)) + 5e-4 * w @ w

    return finite_sum(loss, (features, labels), 12)


NETWORK, EVEN = network(), network(12)
PLANE = additive(lambda x: jnp.sum(jnp.cos(x)) + x @ x, dim=3, scale=np.eye(3)[:, :2])
PRODUCT = sampled(
    lambda x, z: (1 + 0.8 * z[0]) * x @ x / 2 + z[1] * x[0] + z[2] * x[1], "gaussian", 2, 3
)
CURVED = sampled(lambda x, z: jnp.sum((x - z[:2]) ** 2) ** 2 / 9 + z[2] * x[0], "gaussian", 2, 3)
MAIER_STEIN = diffusion(
    lambda x: jnp.array([x[0] - x[0] ** 3 - 10 * x[0] * x[1] ** 2, -(1 + x[0] ** 2) * x[1]]),
    lambda x: 0.3 * jnp.eye(2) * (1 + x[0] ** 2), 2, 0.1,
)  # fmt: skip
PROCESSES = {
    **{f"{law} B={b}": SGD(additive(well, law, scale=0.7), 0.1, b) for law in NOISES for b in (1, 3)},
    "momentum": SGD(PLANE, 0.1, 2, momentum=0.5),
    "multiplicative": SGD(PRODUCT, 0.1, 3),
    "data": SGD(NETWORK, 0.5, 4),
    "subset": SGD(NETWORK, 0.5, 4, "without_replacement"),
    "epochs": SGD(EVEN, 0.1, 4, "reshuffle"),
    "epochs with momentum": SGD(EVEN, 0.1, 4, "reshuffle", 0.9),
    "own diffusion": MAIER_STEIN,
    **{f"plane, order {k}": diffusion_approximation(SGD(PLANE, 0.1, 2), k) for k in (1, 2)},
    **{f"product, order {k}": diffusion_approximation(SGD(PRODUCT, 0.1), k) for k in (1, 2)},
    **{f"data, order {k}": diffusion_approximation(SGD(NETWORK, 0.5, 4), k) for k in (1, 2)},
    **{f"curved, order {k}": diffusion_approximation(SGD(CURVED, 0.05, 9), k) for k in (1, 2)},
    "momentum diffusion": diffusion_approximation(SGD(NETWORK, 0.1, 4, momentum=0.5)),
}  # fmt: skip


EXITS = {
    "well": (SGD(additive(well, scale=1.0), 0.2), [-1.0], half_space([1.0], 0.0), 400),
    "censored": (SGD(additive(well, scale=1.0), 0.2), [-1.0], half_space([1.0], 0.0), 37),
    "diffusion": (PROCESSES["plane, order 1"], [0.1, 0.2, 0.3], ball([0.1, 0.2, 0.3], 0.6), 200),
    "momentum": (SGD(additive(well, "rademacher"), 0.2, 1, momentum=0.5), [-1.0],
                 half_space([1.0], 0.0), 200),
    "data": (SGD(NETWORK, 0.5, 2), np.full(12, 0.3), ball(np.full(12, 0.3), 1.2), 150),
    "subset": (SGD(NETWORK, 0.5, 2, "without_replacement"), np.full(12, 0.3),
               ball(np.full(12, 0.3), 1.2), 150),
    "epochs": (SGD(EVEN, 0.5, 2, "reshuffle"), np.full(12, 0.3), ball(np.full(12, 0.3), 1.2), 153),
}  # fmt: skip


_START = np.full(12, 0.3)
_RIM = float(NETWORK.mean(_START)) + 0.05
EXITS["sublevel of the mean"] = (
    SGD(NETWORK, 0.5, 2), _START, sublevel(NETWORK.mean, _RIM, 12), 150
)  # fmt: skip


def begin(process, paths, dim=None):
    dim = dim or (process.loss.dim if isinstance(process, SGD) else process.dim)
    return start(process, np.linspace(0.2, 0.4, dim), paths, seed=3, substeps=2)
