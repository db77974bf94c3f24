"""Exact moments of SGD on quadratic losses, and of the diffusions near it.

Every example's gradient is affine, g_z(x) = A_z x - b_z, so with the homogeneous coordinate
y = (1, x) one step is linear, y' = M_z y, and E y'^(x)p = E[M^(x)p] E y^(x)p closes at every order
p. For a diffusion with affine drift and quadratic tensor the moments obey a linear ODE of the same
shape. Nothing is simulated and nothing is truncated.

Source: the moment form of the master equation of Hu, Li, Li & Liu, arXiv:1705.07562; finite
populations: David & Kendall, "Tables of symmetric functions" (Biometrika 36, 1949).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._jax import jnp
from ..dynamics import SGD, Diffusion, Process, diffusion_approximation, dimension
from ..errors import require, whole
from ..loss import StochasticLoss
from ..points import point
from .affine import affine_gradients, epoch_operator, flow_operator, step_operator

Floats = NDArray[np.float64]

MAX_ORDER = 4


@dataclass(frozen=True)
class Moments:
    """Raw moments of a law on R^d.

    Attributes
    ----------
    raw
        ``raw[p-1]`` is E x^(x)p, shape (d,)*p, for p = 1 ... order.
    """

    raw: tuple[Floats, ...]

    @property
    def order(self) -> int:
        """Highest order held."""
        return len(self.raw)

    @property
    def mean(self) -> Floats:
        """E x, shape (d,)."""
        return self.raw[0]

    @property
    def covariance(self) -> Floats:
        """Covariance, shape (d, d); needs order 2."""
        require(self.order >= 2, "order", self.order, "must be at least 2 for a covariance")
        return self.raw[1] - np.outer(self.mean, self.mean)

    def centred(self, order: int) -> Floats:
        """Central moment tensor E (x - E x)^(x)p of `order` p, shape (d,)*p."""
        require(1 <= order <= self.order, "order", order, f"must lie in 1 ... {self.order}")
        total = np.zeros_like(self.raw[order - 1])
        for kept in _subsets(order):
            rest = [i for i in range(order) if i not in kept]
            part = self.raw[len(kept) - 1] if kept else np.array(1.0)
            for _ in rest:
                part = np.multiply.outer(part, -self.mean)
            total += np.transpose(part, np.argsort([*kept, *rest]))
        return total


def _subsets(order: int) -> Iterator[tuple[int, ...]]:
    for size in range(order + 1):
        yield from itertools.combinations(range(order), size)


def moments(process: Process, start: ArrayLike, steps: float, order: int = 2) -> Moments:
    """Exact moments after `steps` SGD steps from `start` (d,).

    Parameters
    ----------
    process
        SGD on a quadratic loss (any sampling mode; momentum allowed), or a diffusion with
        affine drift and quadratic tensor.
    steps
        SGD steps; t = eta steps for a diffusion (then it need not be whole). With
        reshuffled epochs a whole number of epochs.
    order
        1 ... 4.

    Raises
    ------
    InputError
        The loss is not quadratic, or the tensors would be too large.

    References
    ----------
    Hu, Li, Li & Liu, arXiv:1705.07562: the master equation, in moments.

    Examples
    --------
    T1: f = x^2/2 with unit noise, E x^2 at t = 1 from x = 1.

    >>> from batchwell import SGD, additive, diffusion_approximation
    >>> sgd = SGD(additive(lambda x: x @ x / 2), learning_rate=0.1)
    >>> float(moments(sgd, [1.0], 10).raw[1][0, 0].round(10))
    0.1678094622
    >>> float(moments(diffusion_approximation(sgd), [1.0], 10).raw[1][0, 0].round(10))
    0.1785685191
    """
    order = _order(order)
    d = dimension(process)
    x = point("start", start, d)
    side = 1 + d + (d if isinstance(process, SGD) and process.momentum else 0)
    y = np.zeros(side)
    y[0], y[1 : d + 1] = 1.0, x
    v = reduce(np.multiply.outer, [y] * order).ravel()
    return _unpack(_propagator(process, order, steps) @ v, side, d, order)


def _propagator(process: Process, order: int, steps: float) -> Floats:
    if isinstance(process, Diffusion):
        from scipy.linalg import expm

        require(steps >= 0, "steps", steps, "must not be negative")
        return expm(flow_operator(process, order) * (process.learning_rate * steps))
    count = whole("steps", steps, 0)
    if process.sampling != "reshuffle":
        return np.linalg.matrix_power(step_operator(process, order), count)
    assert process.loss.n is not None
    length = process.loss.n // process.batch_size
    require(
        count % length == 0,
        "steps",
        count,
        f"must be a whole number of epochs of {length} steps with reshuffled data",
    )
    return np.linalg.matrix_power(epoch_operator(process, order), count // length)


def _order(order: int) -> int:
    require(order in range(1, MAX_ORDER + 1), "order", order, f"must lie in 1 ... {MAX_ORDER}")
    return int(order)


def _unpack(v: Floats, side: int, d: int, order: int) -> Moments:
    tensor = v.reshape((side,) * order)
    part = slice(1, d + 1)
    return Moments(tuple(tensor[(part,) * p + (0,) * (order - p)] for p in range(1, order + 1)))


def stationary_moments(process: Process, order: int = 2) -> Moments:
    """Moments of the stationary law (with reshuffled epochs: between two epochs).

    For additive noise the covariance C solves ``HC + CH - eta HCH = eps Sigma`` for SGD and
    ``HC + CH = eps Sigma`` for the diffusion of order 1.

    Parameters
    ----------
    order
        Highest moment, 1 ... 4.

    Raises
    ------
    InputError
        No stationary law has moments of this order; says the growth factor per step.

    Examples
    --------
    T5: f = x^2/2 with g = (1 + .8 xi) x + xi'.

    >>> from batchwell import SGD, sampled, diffusion_approximation
    >>> loss = sampled(
    ...     lambda x, z: (1 + 0.8 * z[0]) * x @ x / 2 + z[1] * x[0], "gaussian", dim=1, noise_dim=2
    ... )
    >>> sgd = SGD(loss, learning_rate=0.2)
    >>> float(stationary_moments(sgd).covariance[0, 0].round(7))
    0.1196172
    >>> float(stationary_moments(diffusion_approximation(sgd)).covariance[0, 0].round(7))
    0.1068376
    """
    order = _order(order)
    d = dimension(process)
    if isinstance(process, Diffusion):
        matrix, side = flow_operator(process, order), d + 1
    else:
        by_epoch = process.sampling == "reshuffle"
        make = epoch_operator if by_epoch else step_operator
        matrix = make(process, order)
        matrix = matrix - np.eye(len(matrix))
        side = 1 + d + (d if process.momentum else 0)
    growth = _growth(matrix, process)
    require(
        growth < 1,
        "learning_rate",
        process.learning_rate,
        f"moments of order {order} have "
        f"no stationary value: they grow by a factor {growth:.6g} per step",
    )
    v = np.ones(side**order)
    v[1:] = np.linalg.solve(matrix[1:, 1:], -matrix[1:, 0])
    return _unpack(v, side, d, order)


def _growth(matrix: Floats, process: Process) -> float:
    """Largest growth factor per step (per epoch when reshuffled) of the moments beside 1."""
    values = np.linalg.eigvals(matrix[1:, 1:])
    if isinstance(process, Diffusion):
        return float(np.exp(process.learning_rate * np.max(values.real)))
    return float(np.max(np.abs(1 + values)))


def mean_square_growth(process: Process) -> float:
    """Factor per SGD step by which E|x|^2 grows or decays in the end: below 1 is stable.

    Per epoch with reshuffled data. For a matrix too large for the full second-moment operator see
    `affine_gradients`.

    Raises
    ------
    InputError
        The process has no exact moments.
    """
    if isinstance(process, Diffusion):
        flow = _top_block(flow_operator(process, 2))
        return float(np.exp(process.learning_rate * np.max(np.linalg.eigvals(flow).real)))
    make = epoch_operator if process.sampling == "reshuffle" else step_operator
    return float(np.max(np.abs(np.linalg.eigvals(_top_block(make(process, 2))))))


def _top_block(matrix: Floats) -> Floats:
    """The part of a second-moment operator that maps E xx to E xx."""
    side = math.isqrt(len(matrix))
    return matrix.reshape((side,) * 4)[1:, 1:, 1:, 1:].reshape((side - 1) ** 2, -1)


def stability_limit(sgd: SGD, order: int | None = None) -> float:
    """Largest learning rate with bounded E|x|^2, for SGD or its diffusion of `order` 1 or 2.

    Other settings of `sgd` are kept; its own learning rate does not matter.

    Returns
    -------
    The limit, ``inf`` if none is found below 1e6, 0 if already unstable at 1e-6.

    Examples
    --------
    f = (a + b xi) x^2 / 2: SGD 2a/(a^2 + b^2), order 1 2a/b^2.

    >>> from batchwell import SGD, sampled
    >>> loss = sampled(lambda x, z: (1 + 0.5 * z[0]) * x @ x / 2, "gaussian", dim=1)
    >>> round(stability_limit(SGD(loss, 0.1)), 9), round(stability_limit(SGD(loss, 0.1), 1), 9)
    (1.6, 8.0)
    """
    if order is None:

        def stable(eta: float) -> bool:
            return mean_square_growth(replace(sgd, learning_rate=eta)) < 1
    else:
        # Drift and tensor, hence the moment ODE, are affine in eta: two evaluations are enough.
        one, two = (
            flow_operator(diffusion_approximation(replace(sgd, learning_rate=e), order), 2)
            for e in (1.0, 2.0)
        )

        def stable(eta: float) -> bool:
            flow = one + (eta - 1) * (two - one)
            return float(np.max(np.linalg.eigvals(_top_block(flow)).real)) < 0

    low = 1e-6
    if not stable(low):
        return 0.0
    high = low
    while stable(high):
        low, high = high, 4 * high
        if high > 1e6:
            return math.inf
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if stable(middle) else (low, middle)
    return low


def expected_loss(loss: StochasticLoss, law: Moments) -> float:
    """E F(x) of a quadratic loss under a law with its first two moments.

    Examples
    --------
    >>> from batchwell import SGD, additive
    >>> sgd = SGD(additive(lambda x: x @ x / 2), learning_rate=0.1)
    >>> round(expected_loss(sgd.loss, moments(sgd, [1.0], 10)), 10)
    0.0839047311
    """
    zero = jnp.zeros(loss.dim)
    slope, curve = np.asarray(loss.gradient(zero)), np.asarray(loss.hessian(zero))
    return float(loss.mean(zero) + slope @ law.mean + np.sum(curve * law.raw[1]) / 2)


def exact_ornstein_uhlenbeck(sgd: SGD) -> Diffusion:
    """The Ornstein-Uhlenbeck process equal in law to quadratic SGD at whole steps.

    For additive Gaussian noise: ``dX = -R (X - x*) dt + q dW`` with ``exp(-eta R) = I - eta H`` and
    ``R C + C R^T = q q^T``, C the stationary covariance of SGD. For other additive noise the first
    two moments agree.

    Raises
    ------
    InputError
        Multiplicative noise, momentum, or eta lambda_max >= 1 (the chain changes sign, which no
        such process does).

    Examples
    --------
    >>> from batchwell import SGD, additive
    >>> sgd = SGD(additive(lambda x: x @ x / 2), learning_rate=0.1)
    >>> float(moments(exact_ornstein_uhlenbeck(sgd), [1.0], 10).raw[1][0, 0].round(10))
    0.1678094622
    """
    from scipy.linalg import logm

    require(sgd.momentum == 0, "momentum", sgd.momentum, "must be 0 here")
    weights, g = affine_gradients(sgd.loss)
    mean = np.tensordot(weights, g, axes=1)
    spread = float(np.max(np.abs(g[:, :, 1:] - mean[:, 1:])))
    require(
        spread <= 1e-12 * (1 + float(np.max(np.abs(mean)))),
        "loss",
        sgd.loss.name,
        "must have additive noise: an Ornstein-Uhlenbeck process has no other",
    )
    hessian, eta = mean[:, 1:], sgd.learning_rate
    sharpest = float(np.max(np.linalg.eigvalsh(hessian)))
    require(
        eta * sharpest < 1,
        "learning_rate",
        eta,
        f"must be below 1/lambda_max = {1 / sharpest:.6g}" if sharpest > 0 else "must be positive",
    )
    rate = -np.real(logm(np.eye(sgd.loss.dim) - eta * hessian)) / eta
    law = stationary_moments(sgd)
    tensor = rate @ law.covariance + law.covariance @ rate.T
    values, vectors = np.linalg.eigh((tensor + tensor.T) / 2)
    factor = vectors * np.sqrt(np.maximum(values, 0.0))
    r, q, centre, a = (jnp.asarray(v) for v in (rate, factor, law.mean, tensor))
    return Diffusion(
        sgd.loss.dim,
        lambda x: -r @ (x - centre),
        lambda x: a,
        lambda x, xi: q @ xi,
        sgd.loss.dim,
        eta,
    )
