"""SGD, its diffusions, and the passage between them.

The ONLY home of learning rate (eta), batch size (B), time (t = eta k) and temperature
(eps). Source: Hu, Li, Li & Liu, arXiv:1705.07562; modified equations of order 2: Li, Tai & E,
"Stochastic modified equations and adaptive stochastic gradient algorithms" (ICML 2017).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, cast

from ._jax import jax, jnp, traced
from .errors import InputError, finite, one_of, positive, require, whole
from .loss import StochasticLoss

Array = Any
Sampling = Literal["with_replacement", "without_replacement", "reshuffle"]
SAMPLING_MODES = ("with_replacement", "without_replacement", "reshuffle")


@dataclass(frozen=True)
class SGD:
    """The chain ``x_{k+1} = x_k - eta g_k``, g_k the mean gradient of a minibatch.

    With momentum mu: ``v_{k+1} = mu v_k + g_k`` and ``x_{k+1} = x_k - eta v_{k+1}``, v_0 = 0.

    Parameters
    ----------
    loss
        What is descended.
    learning_rate
        eta > 0.
    batch_size
        B >= 1.
    sampling
        "with_replacement": B independent examples each step; "without_replacement": a
        fresh subset each step; "reshuffle": epochs over random orders of the data
        (n must be a multiple of B).
    momentum
        mu in [0, 1).

    Raises
    ------
    InputError
        Naming the argument, its value and what is allowed.

    Examples
    --------
    >>> from batchwell import SGD, additive
    >>> sgd = SGD(additive(lambda x: x @ x / 2), learning_rate=0.1, batch_size=4)
    >>> sgd.temperature
    0.025
    """

    loss: StochasticLoss
    learning_rate: float
    batch_size: int = 1
    sampling: Sampling = "with_replacement"
    momentum: float = 0.0

    def __post_init__(self) -> None:
        kind = type(self.loss).__name__
        allowed = "must be a loss made by finite_sum, sampled or additive"
        require(isinstance(self.loss, StochasticLoss), "loss", kind, allowed)
        # Plain numbers, whatever array type they came as: chains are keys of caches.
        object.__setattr__(self, "learning_rate", positive("learning_rate", self.learning_rate))
        object.__setattr__(self, "batch_size", whole("batch_size", self.batch_size))
        one_of("sampling", self.sampling, SAMPLING_MODES)
        object.__setattr__(self, "momentum", finite("momentum", self.momentum))
        require(0 <= self.momentum < 1, "momentum", self.momentum, "must lie in [0, 1)")
        if self.sampling == "with_replacement":
            return
        n = self.loss.n
        require(
            n is not None,
            "sampling",
            self.sampling,
            "a sampled loss has no data set: only with_replacement",
        )
        assert n is not None
        require(
            self.batch_size <= n,
            "batch_size",
            self.batch_size,
            f"must not exceed the {n} examples without replacement",
        )
        if self.sampling == "reshuffle":
            require(
                n % self.batch_size == 0,
                "batch_size",
                self.batch_size,
                f"must divide the {n} examples when epochs are reshuffled",
            )

    @property
    def batch_factor(self) -> float:
        """Covariance of the minibatch gradient is ``batch_factor * Sigma(x)``.

        1/B with replacement, (n-B)/((n-1)B) for a subset. Raises InputError for reshuffled epochs,
        whose steps are not independent (their noise is O(eta^3), not eta Sigma/B).
        """
        if self.sampling == "with_replacement":
            return 1.0 / self.batch_size
        if self.sampling == "reshuffle":
            raise InputError(
                "sampling",
                "reshuffle",
                "has no one-step noise covariance: steps of "
                "an epoch are dependent; use with_replacement or without_replacement",
            )
        n, b = self.loss.n, self.batch_size
        assert n is not None
        return 0.0 if n == 1 else (n - b) / ((n - 1) * b)

    @property
    def temperature(self) -> float:
        """eps = eta times the batch factor."""
        return self.learning_rate * self.batch_factor

    def noise_covariance(self, x: Array) -> Array:
        """Covariance of the minibatch gradient at x (d,): shape (d, d)."""
        return self.batch_factor * self.loss.covariance(x)


@dataclass(frozen=True, eq=False)
class Diffusion:
    """The Ito equation ``dX = drift(X) dt + noise``, whose noise has tensor a(X) per time.

    Build it with `diffusion_approximation`, or by hand for problems that have no loss.

    Attributes
    ----------
    dim
        Dimension d.
    drift
        ``drift(x)``: (d,) -> (d,), per unit of time.
    tensor
        ``tensor(x)``: (d,) -> (d, d), the diffusion tensor a = eps Sigma of the
        generator ``b . grad + a : hess / 2``.
    factor_vector
        ``factor_vector(x, xi)``: sigma(x) xi for xi (noise_dim,), with
        sigma sigma^T = tensor.
    noise_dim
        Length of xi.
    learning_rate
        Time per SGD step (t = eta k): exit times are answered in SGD steps.
    order
        1 or 2 as an approximation of SGD; 0 for a process of its own.
    """

    dim: int
    drift: Callable[[Array], Array] = field(repr=False)
    tensor: Callable[[Array], Array] = field(repr=False)
    factor_vector: Callable[[Array, Array], Array] = field(repr=False)
    noise_dim: int
    learning_rate: float = 1.0
    order: int = 0
    sgd: SGD | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        whole("dim", self.dim)
        whole("noise_dim", self.noise_dim, 0)
        positive("learning_rate", self.learning_rate)


Process = SGD | Diffusion


def dimension(process: Process) -> int:
    """Dimension of the space that `process` moves in.

    Raises
    ------
    InputError
        It is no process, but a loss, say.
    """
    kind = type(process).__name__
    require(isinstance(process, SGD | Diffusion), "process", kind, "must be an SGD or a Diffusion")
    return process.loss.dim if isinstance(process, SGD) else process.dim


def need_sgd(process: Any) -> SGD:
    """`process`, which has to be an SGD, or `InputError`."""
    require(isinstance(process, SGD), "sgd", type(process).__name__, "must be an SGD")
    return cast(SGD, process)


def diffusion(
    drift: Callable[[Array], Array],
    factor: Callable[[Array], Array],
    dim: int,
    learning_rate: float = 1.0,
) -> Diffusion:
    """A diffusion of one's own: ``dX = drift(X) dt + factor(X) dW``.

    Parameters
    ----------
    drift
        (d,) -> (d,).
    factor
        (d,) -> (d, k).
    learning_rate
        Time per step, 1 by default (then steps are units of time).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> maier_stein = diffusion(
    ...     lambda x: jnp.array(
    ...         [x[0] - x[0] ** 3 - 10 * x[0] * x[1] ** 2, -(1 + x[0] ** 2) * x[1]]
    ...     ),
    ...     lambda x: 0.3 * jnp.eye(2),
    ...     dim=2,
    ... )
    >>> maier_stein.noise_dim
    2
    """
    dim = whole("dim", dim)
    x = jax.ShapeDtypeStruct((dim,), jnp.float64)
    call = f"x of shape ({dim},)"
    b, s = traced("drift", drift, x, call=call), traced("factor", factor, x, call=call)
    require(b.shape == (dim,), "drift", b.shape, f"must return shape ({dim},)")
    require(
        len(s.shape) == 2 and s.shape[0] == dim,
        "factor",
        s.shape,
        f"must return a matrix with {dim} rows",
    )
    return Diffusion(
        dim,
        drift,
        lambda x: factor(x) @ factor(x).T,
        lambda x, xi: factor(x) @ xi,
        s.shape[1],
        learning_rate,
    )


def diffusion_approximation(sgd: SGD, order: int = 1) -> Diffusion:
    """The diffusion close to `sgd` in the weak sense, to `order` 1 or 2 in eta.

    Order 1: ``dX = -grad F dt + sqrt(eps) sigma dW`` (arXiv:1705.07562, eq. 1.4 ff.).
    Order 2: drift ``-grad(F + (eta/4) |grad F|^2) = -(I + (eta/2) H) grad F``, same noise.
    With momentum mu (order 1 only) gradient and noise are both divided by 1 - mu.

    Raises
    ------
    InputError
        Order not 1 or 2; reshuffled epochs (not a diffusion at temperature eta/B);
        momentum at order 2.

    Examples
    --------
    >>> import numpy as np
    >>> from batchwell import SGD, additive, diffusion_approximation
    >>> sgd = SGD(additive(lambda x: x @ x / 2), learning_rate=0.1)
    >>> float(diffusion_approximation(sgd, order=2).drift(np.ones(1))[0].round(9))
    -1.05
    """
    require(order in (1, 2), "order", order, "must be 1 or 2")
    return _approximation(need_sgd(sgd), int(order))


@lru_cache(maxsize=128)
def _approximation(sgd: SGD, order: int) -> Diffusion:
    """One object per (sgd, order), so that code compiled for it is found again."""
    if sgd.sampling == "reshuffle":
        raise InputError(
            "sampling",
            "reshuffle",
            "has no diffusion at temperature eta/B: "
            "the noise of an epoch almost cancels (variance O(eta^3))",
        )
    require(
        order == 1 or sgd.momentum == 0,
        "momentum",
        sgd.momentum,
        "must be 0 for the diffusion of order 2",
    )
    loss, eta, eps = sgd.loss, sgd.learning_rate, sgd.temperature
    gain = 1.0 / (1.0 - sgd.momentum)

    def drift(x: Array) -> Array:
        g = loss.gradient(x)
        if order == 1:
            return -gain * g
        return -g - 0.5 * eta * loss.hessian_vector(x, g)

    return Diffusion(
        loss.dim,
        drift,
        lambda x: gain**2 * eps * loss.covariance(x),
        lambda x, xi: gain * jnp.sqrt(eps) * loss.factor_vector(x, xi),
        loss.factor_dim,
        eta,
        order,
        sgd,
    )
