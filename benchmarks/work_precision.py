"""Work-precision: error of E phi(X_T) against CPU time, for the double well.

phi = x^2 at T = 1 from x = 0.5, dX = (X - X^3) dt + 0.5 dW. The reference is a fine Chapman-Kolmogorov
solution on a grid. Error: root mean square over repetitions, so that bias and noise both count.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from batchwell import diffusion
from batchwell.ensemble import advance, start
from timing import spent

SIGMA, T, X0 = 0.5, 1.0, 0.5
REPEATS = 5


def reference(points: int = 1601, steps: int = 4000) -> float:
    """E x^2 by the backward equation: implicit midpoint steps on a fine grid."""
    from scipy.linalg import solve_banded

    x = np.linspace(-4, 4, points)
    h, dt = x[1] - x[0], T / steps
    drift, spread = (x - x**3) / (2 * h), SIGMA**2 / (2 * h * h)
    low, high = spread - drift, spread + drift
    low[-1] = high[0] = low[0] = high[-1] = 0.0
    main = -(low + high)
    bands = np.zeros((3, points))
    bands[0, 1:], bands[1], bands[2, :-1] = (
        -dt / 2 * high[:-1],
        1 - dt / 2 * main,
        -dt / 2 * low[1:],
    )
    u = x**2
    for _ in range(steps):
        right = u + dt / 2 * main * u
        right[1:] += dt / 2 * low[1:] * u[:-1]
        right[:-1] += dt / 2 * high[:-1] * u[1:]
        u = solve_banded((1, 1), bands, right)
    return float(np.interp(X0, x, u))


def fused(paths: int, steps: int, scheme: str):
    """Ours."""
    process = diffusion(lambda x: x - x**3, lambda x: SIGMA * jnp.eye(1), 1, T / steps)

    def run(seed):
        state = start(process, [X0], paths, seed, substeps=1)
        x = advance(process, state, steps, 1, precision="float32", scheme=scheme, threads=1).x
        return float(np.mean(x**2))

    return run


def diffrax_run(paths: int, steps: int, _: str):
    """Diffrax, Euler, UnsafeBrownianPath."""
    import diffrax

    @jax.jit
    def go(keys):
        def one(key):
            motion = diffrax.UnsafeBrownianPath(shape=(), key=key)
            terms = diffrax.MultiTerm(
                diffrax.ODETerm(lambda t, x, a: x - x**3),
                diffrax.ControlTerm(lambda t, x, a: SIGMA, motion),
            )
            return diffrax.diffeqsolve(
                terms,
                diffrax.Euler(),
                0.0,
                T,
                T / steps,
                jnp.float32(X0),
                adjoint=diffrax.DirectAdjoint(),
                max_steps=steps + 2,
            ).ys[-1]

        return jnp.mean(jax.vmap(one)(keys) ** 2)

    return lambda seed: float(go(jax.random.split(jax.random.key(seed), paths)))


def torchsde_run(paths: int, steps: int, _: str):
    """torchsde, Euler, BrownianInterval at the step."""
    import torch
    import torchsde

    torch.set_num_threads(1)

    class Equation(torch.nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t, x):
            return x - x * x * x

        def g(self, t, x):
            return torch.full_like(x, SIGMA)

    def run(seed):
        torch.manual_seed(seed)
        y0 = torch.full((paths, 1), X0)
        motion = torchsde.BrownianInterval(0.0, T, size=y0.shape, dt=T / steps)
        with torch.no_grad():
            end = torchsde.sdeint(
                Equation(), y0, torch.tensor([0.0, T]), bm=motion, dt=T / steps, method="euler"
            )[-1]
        return float((end.double() ** 2).mean())

    return run


ENGINES = {"batchwell heun": (fused, "heun"), "batchwell euler": (fused, "euler"),
           "diffrax euler": (diffrax_run, ""), "torchsde euler": (torchsde_run, "")}  # fmt: skip
SIZES = ((1 << 12, 16), (1 << 14, 32), (1 << 16, 64), (1 << 18, 128))


def main() -> None:
    """Print error and CPU seconds of every engine at every size."""
    exact = reference()
    print(
        f"E x^2 = {exact:.6f}\n{'engine':18s} {'paths':>8s} {'steps':>6s} {'error':>9s} {'CPU s':>9s}"
    )
    for name, (make, scheme) in ENGINES.items():
        for paths, steps in SIZES:
            try:
                run = make(paths, steps, scheme)
                run(0)
            except ImportError as missing:
                print(f"{name:18s} not installed ({missing.name})")
                break
            seconds, errors = spent(
                lambda: [run(seed) - exact for seed in range(1, REPEATS + 1)]  # noqa: B023
            )
            error = float(np.sqrt(np.mean(np.square(errors))))
            print(
                f"{name:18s} {paths:8d} {steps:6d} {error:9.2e} {seconds / REPEATS:9.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
