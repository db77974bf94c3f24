"""One step of SGD on a quadratic loss as a linear map of monomials, and a diffusion's generator.

Every example's gradient is affine, g_z(x) = A_z x - b_z, so with the homogeneous coordinate
y = (1, x) one step is linear, y' = M_z y, and E y'^(x)p = E[M^(x)p] E y^(x)p closes at every order.

Source: finite populations as in David & Kendall, "Tables of symmetric functions" (Biometrika 36,
1949).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, reduce

import numpy as np
from numpy.typing import NDArray

from .._jax import jax, jnp
from ..dynamics import SGD, Diffusion
from ..errors import InputError, require, whole
from ..loss import StochasticLoss
from ..noise import product_rule

Floats = NDArray[np.float64]

MAX_SIZE = 2500  # (d+1)^p: a dense square matrix of this size is 50 MB
MAX_EPOCH_STATES = 4096


@dataclass(frozen=True)
class BatchFactors:
    """Central moments of a minibatch mean in those, m_p, of one example.

    ``E c^2 = second m2``, ``E c^3 = third m3``, and
    ``E c^4 = fourth m4 + pairs (m2 m2 over the three pairings)``.
    """

    second: float
    third: float
    fourth: float
    pairs: float


def batch_factors(batch_size: int, n: int | None = None) -> BatchFactors:
    """Factors of a batch of `batch_size`: independent draws, or a subset of `n` examples.

    Parameters
    ----------
    batch_size
        B.
    n
        Size of the data set when the batch is a subset without replacement; None for
        independent draws.

    Raises
    ------
    InputError
        B outside 1 ... n.

    Examples
    --------
    >>> batch_factors(2)
    BatchFactors(second=0.5, third=0.25, fourth=0.125, pairs=0.125)
    >>> batch_factors(2, n=4).third
    0.0
    """
    b = whole("batch_size", batch_size)
    if n is None:
        return BatchFactors(1 / b, 1 / b**2, 1 / b**3, (b - 1) / b**3)
    n = whole("n", n)
    require(b <= n, "batch_size", b, f"must not exceed the {n} examples without replacement")
    # r_k: chance that k given distinct examples are all in the subset. Sums over distinct
    # examples are rewritten as power sums; the first power sum vanishes after centring.
    r1, r2, r3, r4 = (math.perm(b, k) / math.perm(n, k) if n >= k else 0.0 for k in (1, 2, 3, 4))
    return BatchFactors(
        n * (r1 - r2) / b**2,
        n * (r1 - 3 * r2 + 2 * r3) / b**3,
        n * (r1 - 7 * r2 + 12 * r3 - 6 * r4) / b**4,
        n**2 * (r2 - 2 * r3 + r4) / b**4,
    )


def _factors(sgd: SGD) -> BatchFactors:
    return batch_factors(
        sgd.batch_size, sgd.loss.n if sgd.sampling == "without_replacement" else None
    )


# ------------------------------------------------------------- affine steps


@lru_cache(maxsize=64)
def affine_gradients(loss: StochasticLoss, order: int = 2) -> tuple[Floats, Floats]:
    """Weights (m,) and matrices G (m, d, d+1) with ``gradient_z(x) = G_z (1, x)``.

    Raises
    ------
    InputError
        The loss is not quadratic in x, or its noise has no moments of this `order`.
    """
    zero = jnp.zeros(loss.dim)
    slopes = np.asarray(jax.jacfwd(loss.example_gradients)(zero))
    shifts = np.asarray(loss.example_gradients(zero))
    g = np.concatenate([shifts[:, :, None], slopes], axis=2)
    rng = np.random.Generator(np.random.Philox(1705))
    for _ in range(2):
        x = rng.standard_normal(loss.dim)
        want = np.asarray(loss.example_gradients(jnp.asarray(x)))
        got = g @ np.concatenate([[1.0], x])
        error = float(np.max(np.abs(want - got)))
        require(
            error <= 1e-9 * (1 + float(np.max(np.abs(want)))),
            "loss",
            loss.name,
            "must be quadratic in x for exact moments (its gradients are not affine)",
        )
    if loss.noise is not None:
        degree = product_rule(loss.noise, loss.noise_dim).degree
        require(
            degree >= order,
            "order",
            order,
            f"noise {loss.noise.name} is held exactly "
            f"only up to degree {degree:g} in {loss.noise_dim} dimensions",
        )
    return np.asarray(loss.weights, dtype=np.float64), g


def is_quadratic(loss: StochasticLoss) -> bool:
    """Whether every example's loss is quadratic in x, so that exact moments exist."""
    try:
        affine_gradients(loss, 1)
    except InputError:
        return False
    return True


def _step_matrices(sgd: SGD, g: Floats) -> Floats:
    """Matrices (m, s, s) of one step with one example, on (1, x) or (1, x, v)."""
    m, d, _ = g.shape
    eta, mu = sgd.learning_rate, sgd.momentum
    size = 1 + d + (d if mu else 0)
    out = np.zeros((m, size, size))
    out[:, 0, 0] = 1.0
    out[:, 1 : d + 1, : d + 1] = -eta * g
    out[:, 1 : d + 1, 1 : d + 1] += np.eye(d)
    if mu:
        out[:, 1 : d + 1, d + 1 :] = -eta * mu * np.eye(d)
        out[:, d + 1 :, : d + 1] = g
        out[:, d + 1 :, d + 1 :] = mu * np.eye(d)
    return out


def _place(blocks: list[tuple[tuple[int, ...], Floats]], order: int) -> Floats:
    """Product of block operators on their slots, as one tensor (outputs..., inputs...).

    Each block is (slots, tensor) with the tensor's axes (outputs of slots, inputs of slots).
    """
    tensor = reduce(np.multiply.outer, (t for _, t in blocks))
    names: list[int] = []
    for slots, _ in blocks:
        names += [*slots, *(order + s for s in slots)]
    return np.transpose(tensor, np.argsort(names))


def _as_matrix(tensor: Floats, order: int) -> Floats:
    size = math.isqrt(tensor.size)
    assert tensor.ndim == 2 * order
    return tensor.reshape(size, size)


def _power(weights: Floats, c: Floats, order: int) -> Floats:
    """E[C^(x)p], axes (outputs..., inputs...), without forming the m products at once."""
    letters = "abcdefgh"
    pairs = [f"z{letters[i]}{letters[order + i]}" for i in range(order)]
    out = letters[:order] + letters[order : 2 * order]
    spec = ",".join(["z", *pairs]) + "->" + out
    return np.einsum(spec, weights, *([c] * order), optimize=order > 1)


def _partitions(items: tuple[int, ...]) -> Iterator[list[tuple[int, ...]]]:
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for size in range(len(rest) + 1):
        for mates in itertools.combinations(rest, size):
            others = tuple(i for i in rest if i not in mates)
            for tail in _partitions(others):
                yield [(first, *mates), *tail]


def step_operator(sgd: SGD, order: int) -> Floats:
    """E[M^(x)p] of one step as a matrix ((s^p), (s^p))."""
    weights, g = affine_gradients(sgd.loss, order)
    single = _step_matrices(sgd, g)
    _check_size(single.shape[1], order)
    mean = np.tensordot(weights, single, axes=1)
    c = single - mean
    factors = _factors(sgd)
    powers = {p: _power(weights, c, p) for p in range(2, order + 1)}
    scale = {2: factors.second, 3: factors.third, 4: factors.fourth}
    total: Floats = np.zeros(1)
    for blocks in _partitions(tuple(range(order))):
        sizes = [len(b) for b in blocks if len(b) > 1]
        # Two pairs at once are not independent in a finite population.
        factor = factors.pairs if sizes == [2, 2] else math.prod(scale[s] for s in sizes)
        if factor:
            parts = [(b, mean if len(b) == 1 else powers[len(b)]) for b in blocks]
            total = total + factor * _place(parts, order)
    return _as_matrix(total, order)


def epoch_operator(sgd: SGD, order: int) -> Floats:
    """E[(M_last ... M_first)^(x)p] over random orders of the data, by recursion over subsets."""
    weights, g = affine_gradients(sgd.loss, order)
    single = _step_matrices(sgd, g)
    n, b, size = len(weights), sgd.batch_size, single.shape[1]
    _check_size(size, order)
    states = sum(math.comb(n, k * b) for k in range(n // b + 1))
    require(
        states <= MAX_EPOCH_STATES,
        "sampling",
        "reshuffle",
        f"exact moments visit {states} "
        f"subsets of the {n} examples; at most {MAX_EPOCH_STATES} are allowed",
    )
    reached = {0: np.eye(size**order)}
    for k in range(n // b):
        chance = 1.0 / math.comb(n - k * b, b)
        following: dict[int, Floats] = {}
        for used, done in reached.items():
            free = [i for i in range(n) if not used >> i & 1]
            for batch in itertools.combinations(free, b):
                step = reduce(np.kron, [single[list(batch)].mean(axis=0)] * order)
                key = used | sum(1 << i for i in batch)
                following[key] = following.get(key, 0.0) + chance * (step @ done)
        reached = following
    return reached[(1 << n) - 1]


def flow_operator(process: Diffusion, order: int) -> Floats:
    """Generator of the moment ODE per unit time: d/dt E y^(x)p = L E y^(x)p."""
    drift, tensor = _polynomials(process)
    size = process.dim + 1
    _check_size(size, order)
    eye = np.eye(size)
    total = np.zeros((size,) * (2 * order))
    for i in range(order):
        rest = [((j,), eye) for j in range(order) if j != i]
        total += _place([((i,), drift), *rest], order)
    for i, j in itertools.combinations(range(order), 2):
        rest = [((k,), eye) for k in range(order) if k not in (i, j)]
        total += _place([((i, j), tensor), *rest], order)
    return _as_matrix(total, order)


def _polynomials(process: Diffusion) -> tuple[Floats, Floats]:
    """Drift as (s, s) and tensor as (s, s, s, s) acting on y and y (x) y, y = (1, x).

    Values at 0, +-e_i and e_i + e_j determine both; two further points must then agree.
    """
    d = process.dim
    rng = np.random.Generator(np.random.Philox(1706))
    eye = np.eye(d)
    sums = (eye[:, None] + eye[None]).reshape(d * d, d)
    points = np.concatenate([np.zeros((1, d)), eye, -eye, sums, rng.standard_normal((2, d))])
    b = np.asarray(jax.jit(jax.vmap(process.drift))(points))
    a = np.asarray(jax.jit(jax.vmap(process.tensor))(points))
    drift, tensor = np.zeros((d + 1, d + 1)), np.zeros((d + 1,) * 4)
    drift[1:, 0], drift[1:, 1:] = b[0], (b[1 : d + 1] - b[0]).T
    plus, minus = a[1 : d + 1], a[d + 1 : 2 * d + 1]
    mixed = a[2 * d + 1 : -2].reshape(d, d, d, d) - plus[:, None] - plus[None] + a[0]
    tensor[1:, 1:, 0, 0] = a[0]
    tensor[1:, 1:, 0, 1:] = tensor[1:, 1:, 1:, 0] = np.moveaxis(plus - minus, 0, 2) / 4
    tensor[1:, 1:, 1:, 1:] = np.moveaxis(mixed, (0, 1), (2, 3)) / 2
    for x, b_x, a_x in zip(points[-2:], b[-2:], a[-2:], strict=True):
        y = np.concatenate([[1.0], x])
        for want, got in ((b_x, (drift @ y)[1:]), (a_x, (tensor @ y @ y)[1:, 1:])):
            require(
                bool(np.all(np.abs(want - got) <= 1e-9 * (1 + np.max(np.abs(want))))),
                "diffusion",
                f"order {process.order}",
                "needs an affine drift and a quadratic tensor for exact moments",
            )
    return drift, tensor


def _check_size(side: int, order: int) -> None:
    require(
        side**order <= MAX_SIZE,
        "order",
        order,
        f"exact moments would need a dense matrix of "
        f"side {side**order}; at most {MAX_SIZE} is allowed (lower the order)",
    )
