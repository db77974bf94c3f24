"""Peers on the cases of `cases`: path-steps per CPU-second of each, at its better settings.

Every function takes (paths, steps) and returns a callable that runs once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from cases import DT, LABELS, MATRIX, ROWS, SIGMA, logistic_loss


def _vector(case: str):
    """(drift, diagonal noise, start) in any array namespace xp, over arrays (paths, d)."""
    if case == "1-D":
        return (lambda x, xp: x - x * x * x), (lambda x, xp: SIGMA + 0 * x), np.array([-1.0])
    if case == "2-D":

        def drift(x, xp):
            u, v = x[..., 0], x[..., 1]
            return xp.stack([u - u * u * u - 0.5 * u * v * v, -4 * v - 0.5 * u * u * v], -1)

        def noise(x, xp):
            u, v = x[..., 0], x[..., 1]
            return SIGMA * xp.stack([xp.sqrt(1 + 0.5 * u * u), 0.5 * xp.sqrt(1 + v * v)], -1)

        return drift, noise, np.array([-1.0, 0.0])

    def quadratic(x, xp):
        matrix = MATRIX.astype(np.float32)
        if xp.__name__ == "torch":
            matrix = xp.from_numpy(matrix)
        return -(x @ matrix + 0.1 * x * x * x)

    return quadratic, (lambda x, xp: SIGMA + 0 * x), np.full(10, 0.5)


def numpy_euler(case, paths, steps):
    """Plain NumPy, all paths at once."""
    drift, noise, x0 = _vector(case)
    rng = np.random.default_rng(0)

    def run():
        x = np.tile(x0.astype(np.float32), (paths, 1))
        for _ in range(steps):
            z = rng.standard_normal(x.shape, dtype=np.float32)
            x = x + np.float32(DT) * drift(x, np) + np.float32(DT**0.5) * noise(x, np) * z
        return x

    return run


def jax_scan(case, paths, steps):
    """Natural JAX: a scan over steps with threefry noise."""
    drift, noise, x0 = _vector(case)

    @jax.jit
    def go(key):
        def body(x, k):
            z = jax.random.normal(k, x.shape, jnp.float32)
            return x + DT * drift(x, jnp) + DT**0.5 * noise(x, jnp) * z, None

        start = jnp.tile(jnp.asarray(x0, jnp.float32), (paths, 1))
        return jax.lax.scan(body, start, jax.random.split(key, steps))[0]

    return lambda: go(jax.random.key(0)).block_until_ready()


def torchsde_euler(case, paths, steps):
    """torchsde, with the Brownian motion that its documentation calls fast for fixed steps."""
    import torch
    import torchsde

    torch.set_num_threads(1)
    drift, noise, x0 = _vector(case)

    class Equation(torch.nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t, x):
            return drift(x, torch)

        def g(self, t, x):
            return noise(x, torch)

    y0, end = torch.tensor(np.tile(x0, (paths, 1)), dtype=torch.float32), steps * DT

    def run():
        motion = torchsde.BrownianInterval(0.0, end, size=y0.shape, dt=DT)
        with torch.no_grad():
            return torchsde.sdeint(
                Equation(), y0, torch.tensor([0.0, end]), bm=motion, dt=DT, method="euler"
            )

    return run


def diffrax_euler(case, paths, steps):
    """Diffrax with UnsafeBrownianPath, its fastest."""
    import diffrax

    drift, noise, x0 = _vector(case)

    @jax.jit
    def go(keys):
        def one(key):
            motion = diffrax.UnsafeBrownianPath(shape=x0.shape, key=key)
            terms = diffrax.MultiTerm(
                diffrax.ODETerm(lambda t, x, a: drift(x, jnp)),
                diffrax.ControlTerm(lambda t, x, a: jnp.diag(noise(x, jnp)), motion),
            )
            return diffrax.diffeqsolve(
                terms,
                diffrax.Euler(),
                0.0,
                steps * DT,
                DT,
                jnp.asarray(x0, jnp.float32),
                adjoint=diffrax.DirectAdjoint(),
                max_steps=steps + 1,
            ).ys

        return jax.vmap(one)(keys)

    keys = jax.random.split(jax.random.key(0), paths)
    return lambda: go(keys).block_until_ready()


def jax_exits(paths, horizon):
    """First exits of the double well by vmap of a while loop; returns useful steps."""

    @jax.jit
    def go(keys):
        def one(key):
            def body(state):
                x, k, key = state
                key, sub = jax.random.split(key)
                z = jax.random.normal(sub, (), jnp.float32)
                return x + DT * (x - x**3) + SIGMA * DT**0.5 * z, k + 1, key

            start = (jnp.float32(-1.0), 0, key)
            return jax.lax.while_loop(lambda s: (s[0] < 0) & (s[1] < horizon), body, start)[1]

        return jax.vmap(one)(keys).sum()

    keys = jax.random.split(jax.random.key(0), paths)
    return lambda: int(go(keys))


def diffrax_exits(paths, horizon):
    """First exits by diffrax's event; returns useful steps."""
    import diffrax

    drift, noise, _ = _vector("1-D")

    @jax.jit
    def go(keys):
        def one(key):
            motion = diffrax.UnsafeBrownianPath(shape=(1,), key=key)
            terms = diffrax.MultiTerm(
                diffrax.ODETerm(lambda t, x, a: drift(x, jnp)),
                diffrax.ControlTerm(lambda t, x, a: jnp.diag(noise(x, jnp)), motion),
            )
            out = diffrax.diffeqsolve(
                terms,
                diffrax.Euler(),
                0.0,
                horizon * DT,
                DT,
                jnp.array([-1.0], jnp.float32),
                event=diffrax.Event(lambda t, y, args, **_: y[0] > 0),
                max_steps=horizon + 1,
                adjoint=diffrax.DirectAdjoint(),
                throw=False,
            )
            return out.stats["num_steps"]

        return jax.vmap(one)(keys).sum()

    keys = jax.random.split(jax.random.key(0), paths)
    return lambda: int(go(keys))


# -- minibatch logistic regression: (mode, batch, paths, steps) -------------------------------
def _numpy_rows(rng, mode, batch, paths, n):
    """What chooses rows (paths, batch), step by step."""
    if mode == "with_replacement":
        return lambda k: rng.integers(0, n, (paths, batch))
    order = np.tile(np.arange(n), (paths, 1))
    if mode == "without_replacement":  # partial Fisher-Yates

        def subset(k):
            every = np.arange(paths)
            for i in range(batch):
                j = rng.integers(i, n, paths)
                order[every, i], order[every, j] = order[every, j], order[every, i].copy()
            return order[:, :batch]

        return subset

    def epoch(k):
        place = k % (n // batch)
        if place == 0:
            rng.permuted(order, axis=1, out=order)
        return order[:, place * batch : (place + 1) * batch]

    return epoch


def numpy_logistic(mode, batch, paths, steps):
    """Plain NumPy, all paths at once, the gradient by hand."""
    rng = np.random.default_rng(0)
    choose = _numpy_rows(rng, mode, batch, paths, len(ROWS))

    def run():
        w = np.zeros((paths, ROWS.shape[1]), np.float32)
        for k in range(steps):
            rows = choose(k)
            z = ROWS[rows]
            score = np.einsum("pbd,pd->pb", z, w)
            slope = 1 / (1 + np.exp(-score)) - LABELS[rows]
            w -= np.float32(0.05 / batch) * np.einsum("pb,pbd->pd", slope, z)
        return w

    return run


def _jax_rows(key, order, mode, batch, k):
    n = order.shape[0]
    if mode == "with_replacement":
        return jax.random.randint(key, (batch,), 0, n), order
    if mode == "without_replacement":
        return jax.random.choice(key, n, (batch,), replace=False), order
    place = k % (n // batch)
    order = jax.lax.cond(place == 0, lambda: jax.random.permutation(key, order), lambda: order)
    return jax.lax.dynamic_slice(order, (place * batch,), (batch,)), order


def jax_logistic(mode, batch, paths, steps):
    """Natural JAX: a scan over steps of vmapped gradients."""
    rows, labels = jnp.asarray(ROWS), jnp.asarray(LABELS)
    gradient = jax.grad(
        lambda w, x, y: jax.vmap(lambda a, b: logistic_loss(w, (a, b)))(x, y).mean()
    )

    @jax.jit
    def go(keys):
        def one(carry, k):
            w, order, keys = carry

            def path(w, order, key):
                key, sub = jax.random.split(key)
                picked, order = _jax_rows(sub, order, mode, batch, k)
                return w - 0.05 * gradient(w, rows[picked], labels[picked]), order, key

            return jax.vmap(path)(w, order, keys), None

        start = jnp.zeros((paths, rows.shape[1]), jnp.float32)
        orders = jnp.tile(jnp.arange(len(ROWS)), (paths, 1))
        return jax.lax.scan(one, (start, orders, keys), jnp.arange(steps))[0][0]

    keys = jax.random.split(jax.random.key(0), paths)
    return lambda: go(keys).block_until_ready()


def torch_logistic(mode, batch, paths, steps):
    """torch.func: per-path gradients by vmap of grad, rows chosen by NumPy."""
    import torch
    from torch.func import grad, vmap

    torch.set_num_threads(1)
    rows, labels = torch.from_numpy(ROWS), torch.from_numpy(LABELS)
    choose = _numpy_rows(np.random.default_rng(0), mode, batch, paths, len(ROWS))

    def loss(w, x, y):
        score = x @ w
        return (torch.nn.functional.softplus(score) - y * score).mean()

    gradient = vmap(grad(loss))

    def run():
        w = torch.zeros(paths, rows.shape[1])
        for k in range(steps):
            picked = torch.from_numpy(choose(k).astype(np.int64))
            w = w - 0.05 * gradient(w, rows[picked], labels[picked])
        return w

    return run


LOGISTIC = {"numpy": numpy_logistic, "JAX": jax_logistic, "torch.func": torch_logistic}
ENSEMBLES = {"numpy": numpy_euler, "JAX scan": jax_scan, "torchsde": torchsde_euler,
             "diffrax": diffrax_euler}  # fmt: skip
EXITS = {"JAX while": jax_exits, "diffrax": diffrax_exits}
