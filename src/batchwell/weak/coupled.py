"""Multilevel pairs of SGD and its diffusion, simulated with martingale controls.

Sources: Giles, "Multilevel Monte Carlo methods" (Acta Numerica 24, 2015); Milstein & Tretyakov, "Practical variance reduction via regression for simulating diffusions"
(SIAM J. Numer. Anal. 47, 2009).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._jax import jax, jnp
from ..dynamics import SGD, Diffusion, diffusion_approximation
from ..errors import require, whole
from ..estimate import Estimate, sample_mean
from ..streams import generator as keyed_generator

Array = Any
Floats = NDArray[np.float64]
Phi = Callable[[Array], Array]

CHUNK = 1024  # pairs drawn at once, each with both signs of its Gaussian noise
LEVELS, NEGLIGIBLE = 5, 1e-8
PATH_COST = 6.5  # steps that one of the `paths` asked for may cost on average, per SGD step
NAME = "simulated pairs with martingale controls"


def simulated(
    sgd: SGD, order: int, phi: Phi, start: Floats, steps: int, paths: int, seed: int
) -> tuple[Estimate, Estimate, Estimate]:
    """Error, E phi of SGD, E phi of its diffusion: a telescope of coupled levels.

    Level 0 pairs SGD with the diffusion at one time step per SGD step; level l pairs the diffusion
    at 2^l steps with itself at half as many, on the same Brownian path. From each phi a martingale
    is subtracted (`_Control`) whose mean is 0 exactly and which carries all of phi that is linear or
    quadratic in the noise; Gaussian noise is shared by SGD and level 0, and all of it taken with both
    signs. After a pilot, pairs go where they lower the error most (Giles, Acta Numerica 24, 2015).
    Levels are added until what the last one leaves open is below the sampling error.
    """
    budget = whole("paths", paths, 2 * CHUNK) * PATH_COST
    require(sgd.momentum == 0, "momentum", sgd.momentum, "must be 0 here")
    flow = diffusion_approximation(sgd, order)
    walk = _walks(sgd, flow, phi, start, steps)
    levels = [_Level(walk, k, seed) for k in range(3)]
    while True:
        noise, left = _sampling_error(levels), _left_open(levels)[1]
        if noise > left / 4:
            _allocate(levels, budget)
            noise, left = _sampling_error(levels), _left_open(levels)[1]
        if left <= max(noise / 2, NEGLIGIBLE) or len(levels) > LEVELS:
            return _telescope(levels)
        levels.append(_Level(walk, len(levels), seed))


def _sampling_error(levels: list[_Level]) -> float:
    return math.sqrt(sum(v.variance / v.count for v in levels))


def _left_open(levels: list[_Level]) -> tuple[float, float]:
    """What finer levels would still add to the last correction, and how uncertain that is.

    Corrections fall by 2^p from level to level for a scheme of weak order p. Where three of them are
    resolved their own ratios tell (Aitken); otherwise p lies between 1 and 2.
    """
    last = levels[-1].mean
    known = [abs(v.mean) > 20 * math.sqrt(v.variance / v.count) for v in levels[-3:]]
    if len(levels) > 3 and all(known):
        three, two = levels[-3].mean, levels[-2].mean
        ratios = two / last, three / two
        if all(1.5 < r < 8.5 for r in ratios):
            adds = [last / (r - 1) for r in ratios]
            return adds[0], abs(adds[0] - adds[1])
    return 2 / 3 * last, abs(last) / 3


class _Level:
    """Differences drawn so far on one level; more can be drawn."""

    def __init__(self, walk: Walk, level: int, seed: int) -> None:
        self.walk, self.level, self.seed = walk, level, seed
        self.cost = 2.0 if level == 0 else 1.5 * 2.0**level
        self.parts: list[tuple[Floats, Floats]] = []
        self.draw(CHUNK)

    def draw(self, count: int) -> None:
        """Go on until there are at least `count` pairs."""
        while self.count < count:
            name = f"weak-level-{self.level}"
            rng = keyed_generator(self.seed, name, len(self.parts))
            self.parts.append(self.walk(rng, self.level))

    @property
    def count(self) -> int:
        """Pairs drawn."""
        return CHUNK * len(self.parts)

    @property
    def values(self) -> Floats:
        """Differences: upper less lower process."""
        return np.concatenate([a - b for a, b in self.parts])

    @property
    def mean(self) -> float:
        """Mean difference."""
        return float(self.values.mean())

    @property
    def variance(self) -> float:
        """Variance of one difference."""
        return float(self.values.var(ddof=1))


def _allocate(levels: list[_Level], budget: float) -> None:
    """Draw pairs in the proportion sqrt(variance / cost) that makes most of the budget."""
    wanted = [math.sqrt(max(v.variance, 1e-300) / v.cost) for v in levels]
    spent = sum(w * v.cost for w, v in zip(wanted, levels, strict=True))
    for w, v in zip(wanted, levels, strict=True):
        v.draw(int(budget * w / spent))


def _telescope(levels: list[_Level]) -> tuple[Estimate, Estimate, Estimate]:
    """E SGD - E diffusion = level 0 less the corrections, the last one extrapolated."""
    rest, bias = _left_open(levels)
    value = levels[0].mean - sum(v.mean for v in levels[1:]) - rest
    noise = sum(v.variance / v.count for v in levels) + levels[-1].variance / levels[-1].count
    spread = math.sqrt(noise + bias**2)
    chain = sample_mean(np.concatenate([a for a, _ in levels[0].parts]), "1", NAME)
    count = sum(v.count for v in levels)
    method = f"{NAME}, {len(levels)} levels"
    error = _estimate(value, spread, 1.96 * math.sqrt(noise) + bias, method, count)
    below = _estimate(
        chain.value - value,
        math.hypot(chain.stderr, spread),
        1.96 * math.hypot(chain.stderr, math.sqrt(noise)) + bias,
        method,
        count,
    )
    return error, chain, below


def _estimate(value: float, stderr: float, half: float, method: str, count: int) -> Estimate:
    return Estimate(value, stderr, (value - half, value + half), "1", method, count)


Step = Callable[[Array, Array, Any], Array]


@dataclass(frozen=True)
class _Control:
    """Quadratic pictures of what one step's noise does to E phi at the end, along a path.

    Attributes
    ----------
    path
        (n, d) the process without noise.
    linear, mixed, square
        (n, d), (n, d, d), (n, d, d): derivatives of the value after the step in its noise, in noise
        and position, and twice in the noise.
    """

    path: Floats
    linear: Floats
    mixed: Floats
    square: Floats

    def rows(self, start: int, stop: int) -> tuple[Floats, ...]:
        """The tables of some steps."""
        every = (self.path, self.linear, self.mixed, self.square)
        return tuple(t[start:stop] for t in every)


def _pictures(step: Step, covariance: Callable[[Array, Any], Array]) -> tuple[Any, Any]:
    """``move(x, h)`` without noise, and one step backwards, ``back(x, target, h, p, curve)``.

    p and curve are slope and Hessian of E phi after the step, at `target`; the noise has
    ``covariance(x, h)``. For quadratic losses nothing is left out, and the control is perfect.
    """

    @jax.jit
    def back(x: Array, target: Array, h: Any, p: Array, curve: Array) -> Any:
        def after(y: Array, noise: Array) -> Array:
            z = step(y, noise, h) - target
            return p @ z + 0.5 * z @ curve @ z

        none = jnp.zeros_like(x)
        slope = jax.grad(after, argnums=1)
        square = jax.jacfwd(slope, argnums=1)(x, none)

        def before(y: Array) -> Array:
            return after(y, none) + 0.5 * jnp.sum(square * covariance(y, h))

        tables = slope(x, none), jax.jacfwd(slope, argnums=0)(x, none), square
        return tables, jax.grad(before)(x), jax.hessian(before)(x)

    return jax.jit(lambda x, h: step(x, jnp.zeros_like(x), h)), back


def _control(maps: tuple[Any, Any], end: Any, start: Floats, count: int, h: float) -> _Control:
    """Tables over `count` steps of length h; `end` gives slope and Hessian of phi."""
    move, back = maps
    path = [jnp.asarray(start)]
    for _ in range(count):
        path.append(move(path[-1], h))
    p, curve = end(path[-1])
    found = []
    for x, target in zip(reversed(path[:-1]), reversed(path[1:]), strict=True):
        tables, p, curve = back(x, target, h, p, curve)
        found.append(tables)
    linear, mixed, square = (np.stack(t[::-1]) for t in zip(*found, strict=True))
    return _Control(np.stack(path[:-1]), linear, mixed, square)


def _gain(x: Array, noise: Array, spread: Array, at: Any) -> Array:
    """The martingale's increment; its mean given the past is 0 by construction."""
    path, linear, mixed, square = at
    slope = linear + mixed @ (x - path)
    return slope @ noise + 0.5 * (noise @ square @ noise - jnp.sum(square * spread))


Walk = Callable[[np.random.Generator, int], tuple[Floats, Floats]]


def _steps(sgd: SGD, flow: Diffusion) -> tuple[Step, Step]:
    """``step(x, noise, h)`` of SGD and of its diffusion."""

    def chain(x: Array, noise: Array, h: Any) -> Array:
        return x - h * sgd.loss.gradient(x) + noise

    def heun(y: Array, noise: Array, h: Any) -> Array:
        # Heun in the drift, Ito in the noise: weak order 2 for additive noise.
        b = flow.drift(y)
        return y + 0.5 * h * (b + flow.drift(y + h * b + noise)) + noise

    return chain, heun


def _couplings(sgd: SGD, flow: Diffusion) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """One step of SGD of two processes by the same noise, each with its martingale.

    ``f(upper, lower, increments, batch, tables above, tables below)``: SGD over the diffusion, then
    the diffusion at two fine steps over one coarse.
    """
    loss, eta = sgd.loss, sgd.learning_rate
    gaussian = loss.noise is not None and loss.noise.name == "gaussian"
    chain, heun = _steps(sgd, flow)

    def chain_step(state: Any, batch: Array, dw: Array, at: Any) -> Any:
        x, m = state
        if gaussian:
            noise = math.sqrt(sgd.batch_factor * eta) * loss.factor_vector(x, dw)
        else:
            examples = jax.tree.map(lambda v: v[batch], loss.nodes) if loss.n else batch
            g = jax.vmap(loss.example_gradient, in_axes=(None, 0))(x, examples).mean(axis=0)
            noise = eta * (loss.gradient(x) - g)
        spread = eta**2 * sgd.noise_covariance(x)
        return chain(x, noise, eta), m + _gain(x, noise, spread, at)

    def substeps(state: Any, increments: Array, tables: Any) -> Any:
        h = eta / len(increments)

        def one(carry: Any, step: Any) -> Any:
            (y, m), (dw, at) = carry, step
            noise = flow.factor_vector(y, dw)
            return (heun(y, noise, h), m + _gain(y, noise, h * flow.tensor(y), at)), None

        return jax.lax.scan(one, state, (increments, tables))[0]

    def first(upper: Any, lower: Any, dw: Array, batch: Array, above: Any, below: Any) -> Any:
        at = jax.tree.map(lambda t: t[0], above)
        return chain_step(upper, batch, dw[0], at), substeps(lower, dw, below)

    def later(upper: Any, lower: Any, dw: Array, batch: Array, above: Any, below: Any) -> Any:
        halves = dw.reshape(len(dw) // 2, 2, -1).sum(axis=1)
        return substeps(upper, dw, above), substeps(lower, halves, below)

    return first, later


def _controls(
    sgd: SGD, flow: Diffusion, phi: Phi, start: Floats, steps: int
) -> Callable[[int], _Control]:
    """``control(level)``: of SGD (level -1), or of the diffusion at 2^level steps per step of SGD."""
    eta = sgd.learning_rate
    chain, heun = _steps(sgd, flow)
    end = jax.jit(lambda x: (jax.grad(phi)(x), jax.hessian(phi)(x)))
    maps = (
        _pictures(chain, lambda x, h: h**2 * sgd.noise_covariance(x)),
        _pictures(heun, lambda y, h: h * flow.tensor(y)),
    )

    @cache
    def control(level: int) -> _Control:
        if level < 0:
            return _control(maps[0], end, start, steps, eta)
        return _control(maps[1], end, start, steps * 2**level, eta / 2**level)

    return control


def _walks(sgd: SGD, flow: Diffusion, phi: Phi, start: Floats, steps: int) -> Walk:
    """``walk(rng, level)``: controlled phi of the upper and of the lower process, (CHUNK,) each."""
    over = (0, 0, 0, 0, None, None)
    advance = [jax.jit(jax.vmap(f, in_axes=over)) for f in _couplings(sgd, flow)]
    values = jax.jit(jax.vmap(phi))
    control = _controls(sgd, flow, phi, start, steps)

    def walk(rng: np.random.Generator, level: int) -> tuple[Floats, Floats]:
        first = np.broadcast_to(start, (2 * CHUNK, len(start))), np.zeros(2 * CHUNK)
        upper, lower = first, first
        fine, empty = 2**level, np.zeros((2 * CHUNK, 0))
        above, below = control(level if level else -1), control(max(level - 1, 0))
        half = max(fine // 2, 1)
        for k in range(steps):
            draws = math.sqrt(sgd.learning_rate / fine) * rng.standard_normal(
                (CHUNK, fine, flow.noise_dim)
            )
            batch = _draw_batches(sgd, rng, 2 * CHUNK) if level == 0 else empty
            upper, lower = advance[level > 0](
                upper,
                lower,
                np.concatenate([draws, -draws]),
                batch,
                above.rows(k * fine, (k + 1) * fine),
                below.rows(k * half, (k + 1) * half),
            )
        a, b = (
            (np.asarray(values(s)) - np.asarray(m)).reshape(2, CHUNK).mean(axis=0)
            for s, m in (upper, lower)
        )
        return a, b

    return walk


def _draw_batches(sgd: SGD, rng: np.random.Generator, paths: int) -> np.ndarray:
    """Rows of the data (paths, B), or noise (paths, B, noise_dim); nothing if Gaussian."""
    loss, b = sgd.loss, sgd.batch_size
    if loss.noise is None:
        n = loss.size
        if sgd.sampling == "with_replacement":
            return rng.integers(0, n, (paths, b))
        return np.argsort(rng.random((paths, n)), axis=1)[:, :b]
    if loss.noise.name == "gaussian":
        return np.zeros((paths, 0))
    shape = (loss.noise.words, paths, b, loss.noise_dim)
    words = rng.integers(0, 2**32, shape, dtype=np.uint32)
    return np.asarray(loss.noise.draw(list(words), np))
