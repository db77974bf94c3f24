"""Functions of four numbers that use every primitive which has a fused form."""

import jax
import jax.numpy as jnp
import numpy as np

A = np.random.default_rng(0).standard_normal((4, 4))


def scanned(x):
    def body(carry, row):
        return jnp.sin(carry) + row, carry * row

    last, rows = jax.lax.scan(body, x[0], x)
    return jnp.concatenate([rows, last[None]])


@jax.custom_jvp
def clipped(x):
    return jnp.clip(x, -1.0, 1.0)


clipped.defjvp(lambda p, t: (clipped(p[0]), t[0] * 0.5))

CASES = {
    "arithmetic": lambda x: (x + 2) * x - x / 3 + 1 / (2 + x * x),
    "subtract": lambda x: x[1:] - x[:-1],
    "divide": lambda x: x[1:] / (3 + x[:-1]),
    "neg abs sign": lambda x: jnp.concatenate([-x, jnp.abs(x), jnp.sign(x)]),
    "exp": lambda x: jnp.exp(x),
    "exp extremes": lambda x: jnp.exp(x * 400),
    "expm1": lambda x: jnp.expm1(x),
    "exp2": lambda x: jnp.exp2(x),
    "log": lambda x: jnp.log(jnp.abs(x) + 1e-300),
    "log extremes": lambda x: jnp.log(x) + jnp.log(x * 1e-290),
    "log1p": lambda x: jnp.log1p(x),
    "tanh": lambda x: jnp.tanh(x),
    "logistic": lambda x: jax.nn.sigmoid(x * 9),
    "sin cos tan": lambda x: jnp.concatenate([jnp.sin(x), jnp.cos(x * 100), jnp.tan(x)]),
    "arc": lambda x: jnp.concatenate([jnp.arctan(x * 3), jnp.arctan2(x[1:], x[:-1])]),
    "arc unit": lambda x: jnp.concatenate([jnp.arcsin(jnp.tanh(x)), jnp.arccos(jnp.tanh(x))]),
    "hyperbolic": lambda x: jnp.concatenate([jnp.sinh(x), jnp.cosh(x)]),
    "erf": lambda x: jnp.concatenate([jax.lax.erf(x), jax.lax.erfc(x), jax.nn.gelu(x, approximate=False)]),
    "roots": lambda x: jnp.concatenate([jnp.sqrt(jnp.abs(x)), jnp.cbrt(x), jax.lax.rsqrt(1 + x * x)]),
    "powers": lambda x: jnp.concatenate([x**3, x**-2, jnp.abs(x) ** 0.7, jnp.square(x), x ** jnp.round(x)]),
    "rounding": lambda x: jnp.concatenate([jnp.floor(x), jnp.ceil(x), jnp.round(x), jax.lax.round(x * 2),
                                           x % 0.7, jnp.trunc(x)]),
    "extremes": lambda x: jnp.concatenate([jnp.maximum(x[1:], x[:-1]), jnp.minimum(x, 0.3), jnp.clip(x, -1, 1)]),
    "compare": lambda x: jnp.stack([x[0] < x[1], x[0] <= x[1], x[0] > x[1], x[0] >= x[1], x[0] == x[1],
                                    x[0] != x[1], ~(x[2] < 0), jnp.isfinite(1 / x[0])]) * 1.0,
    "logic": lambda x: jnp.stack([(x[0] < 0) & (x[1] < 0), (x[0] < 0) | (x[1] < 0),
                                  (x[0] < 0) ^ (x[1] < 0)]) * 1.0,
    "select": lambda x: jnp.where(x > 0.2, x * 3, jnp.where(x < -1, 7.0, -x)),
    "three ways": lambda x: jax.lax.select_n((x > 0).astype(jnp.int32) + (x > 1), x, 2 * x, 3 * x),
    "reduce": lambda x: jnp.stack([x.sum(), x.prod(), x.max(), x.min(), x.mean(), x.var()]),
    "reduce truth": lambda x: jnp.stack([jnp.all(x < 1), jnp.any(x < -1)]) * 1.0,
    "arg": lambda x: jnp.stack([jnp.argmax(x), jnp.argmin(x * x)]) * 1.0,
    "matrix": lambda x: A @ x,
    "matrix product": lambda x: (A[:2] @ jnp.outer(x, x)).ravel(),
    "batched product": lambda x: jnp.einsum("bij,bj->bi", jnp.asarray(A.reshape(2, 2, 4)), jnp.stack([x, x * x])).ravel(),
    "cumulative": lambda x: jnp.concatenate([jnp.cumsum(x), jnp.cumprod(x), jax.lax.cummax(x), jax.lax.cummin(x),
                                             jax.lax.cumlogsumexp(x), jax.lax.cumsum(x, reverse=True)]),
    "shapes": lambda x: jnp.concatenate([x.reshape(2, 2).T.ravel(), x[::-1], x[1:3], jnp.pad(x, 1)[:, None].squeeze(),
                                         jnp.broadcast_to(x[:2], (2, 2)).ravel(), x[::2]]),
    "padding": lambda x: jax.lax.pad(x, 0.5, [(2, -1, 1)]),
    "pieces": lambda x: jnp.concatenate(jnp.split(x, 2)[::-1]),
    "pick": lambda x: x[jnp.array([3, 0, 0])] * jnp.arange(3),
    "dynamic": lambda x: jax.lax.dynamic_slice(x, (1,), (2,)),
    "dynamic update": lambda x: jax.lax.dynamic_update_slice(x, x[:1] * 2, (2,)),
    "scatter": lambda x: jnp.zeros(4).at[jnp.array([1, 1, 3])].add(x[:3]).at[0].set(x[2]),
    "unknown index": lambda x: x[jnp.argmax(x[:3])] + jnp.zeros(4).at[jnp.argmin(x)].add(x[0]),
    "unknown slice": lambda x: jax.lax.dynamic_slice(x, (jnp.argmax(x[:3]),), (2,)),
    "unknown update": lambda x: jax.lax.dynamic_update_slice(x, x[:1] * 2, (jnp.argmax(x[:3]),)),
    "softmax": lambda x: jnp.concatenate([jax.nn.softmax(x), jax.nn.logsumexp(x)[None]]),
    "activations": lambda x: jnp.concatenate([jax.nn.softplus(x), jax.nn.relu(x), jax.nn.gelu(x), jax.nn.silu(x),
                                              jax.nn.log_sigmoid(x), jax.nn.elu(x)]),
    "loops": scanned,
    "counted loop": lambda x: jax.lax.fori_loop(0, 3, lambda k, y: y * x + k, x),
    "static while": lambda x: sum(jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * x), (0, x))),
    "clamp": lambda x: jax.lax.clamp(-0.5, x, 0.7),
    "branches": lambda x: jax.lax.cond(x[0] > 0, lambda y: y * 2, lambda y: y - 1, x),
    "switch": lambda x: jax.lax.switch(2, [jnp.sin, jnp.cos, jnp.exp], x),
    "jit": lambda x: jax.jit(lambda y: y * jnp.float64(2))(x),
    "own derivative": lambda x: jnp.concatenate([jax.grad(lambda y: clipped(y).sum())(x), clipped(x)]),
    "checkpoint": lambda x: jax.grad(lambda y: jax.checkpoint(lambda v: jnp.sin(v).sum())(y))(x),
    "stop": lambda x: jax.lax.stop_gradient(x) * x,
    "casts": lambda x: (x > 0).astype(float) + x.astype(int).astype(float) + (x.astype(int)).astype(bool),
    "whole": lambda x: ((jnp.floor(x).astype(int) + 7) // 2 + (jnp.floor(x).astype(int) % 3)).astype(float),
    "gamma": lambda x: jnp.concatenate([jax.scipy.special.gammaln(x), jax.scipy.special.digamma(x + 0.01),
                                        jax.scipy.special.gammaln(x * 20)]),
    "inverse error": lambda x: jnp.concatenate([jax.lax.erf_inv(jnp.tanh(x)), jax.lax.erf_inv(jnp.tanh(x / 40)),
                                                jax.lax.erf_inv(1 - jnp.exp(-jnp.abs(x * 20)))]),
    "bits": lambda x: jnp.stack([f(jnp.floor(x[0] * 9).astype(int), jnp.floor(x[1] * 9).astype(int))
                                 for f in (jnp.bitwise_and, jnp.bitwise_or, jnp.bitwise_xor)]) * 1.0,
    "shifts": lambda x: jnp.stack([~jnp.floor(x * 9).astype(int), jnp.floor(x * 9).astype(int) << 3,
                                   jnp.floor(x * 90).astype(int) >> 2]).ravel() * 1.0,
    "search": lambda x: jnp.stack([
        jnp.searchsorted(jnp.array([-1.0, 0.0, 1.0]), x[0], side="left") * x[1],
        jnp.searchsorted(jnp.array([-1.0, 0.0, 1.0]), x[0], side="right") * x[2],
        jnp.interp(x[3], jnp.array([-1.0, 0.0, 2.0]), jnp.array([1.0, -1.0, 0.5])),
    ]),
    "sort": lambda x: jnp.concatenate([jnp.sort(x), jnp.argsort(-x) * 1.0, jnp.median(x)[None]]),
    "sort a table": lambda x: jnp.sort(jnp.stack([x, -x, x[::-1]]), axis=0).ravel(),
    "derivative of a sort": lambda x: jax.grad(lambda y: jnp.sort(y) @ jnp.arange(4.0) ** 2)(x + 1e-3 * jnp.arange(4)),
    "several unknown": lambda x: jnp.outer(x, x)[:, jnp.argsort(x)].ravel(),
    "convolution": lambda x: jnp.convolve(x, jnp.array([1.0, -2.0, 0.5])),
    "plane convolution": lambda x: jax.lax.conv_general_dilated(
        jnp.outer(x, x)[None, :, :, None], jnp.asarray(A.reshape(2, 2, 1, 4)[:, :, :, :3]), (1, 2), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC")).ravel(),
    "pools": lambda x: jnp.concatenate([
        jax.lax.reduce_window(x, start, f, (2,), (1,), [(1, 0)])
        for start, f in ((0.0, jax.lax.add), (-jnp.inf, jax.lax.max), (jnp.inf, jax.lax.min))]),
    "derivative of pools": lambda x: jax.grad(lambda y: sum(
        (jax.lax.reduce_window(jnp.outer(y, y), start, f, (2, 2), (2, 1), "VALID") ** 2).sum()
        for start, f in ((0.0, jax.lax.add), (-jnp.inf, jax.lax.max))))(x + 1e-3 * jnp.arange(4)),
    "derivative of a stack": lambda x: jax.grad(
        lambda y: jnp.sum(jnp.stack([y.sum(), y.prod(), y[0]]) ** 2))(x),
    "count": lambda x: x * jax.lax.iota(float, 4) + jax.lax.broadcasted_iota(float, (2, 4), 0)[1],
}  # fmt: skip
