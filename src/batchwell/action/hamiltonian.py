"""Hamiltonians: what rare events cost, for a diffusion and for SGD itself.

A path of SGD that takes B/eta steps per unit of "effort" has cost given by the cumulant
function of its minibatch gradient, ``H(x, p) = log E exp(-p . g)``; a diffusion keeps only
its first two terms, ``b . p + p . Sigma p / 2``. Both are scaled here by the temperature
eps, so that every action V means ``E tau ~ exp(V / eps)``; sampling with replacement then
gives the same H for every batch size (V_B = B V_1).

Sources: Freidlin & Wentzell, "Random Perturbations of Dynamical Systems", ch. 5;
Heymann & Vanden-Eijnden, CPAM 61 (2008).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import bernoulli

from .._jax import jax, jnp
from ..dynamics import SGD, Diffusion, Process
from ..errors import InputError
from ..loss import StochasticLoss
from .symmetric import log_mean_symmetric, node_count

Array = Any
MANY_EXAMPLES = 64


@dataclass(frozen=True, eq=False)
class Hamiltonian:
    """H(x, p), convex in p with H(x, 0) = 0, in units where ``E tau ~ exp(V / temperature)``.

    Attributes
    ----------
    dim
        Dimension d.
    local
        ``local(x)``: what of the data is needed at x, a pytree.
    cumulant
        ``cumulant(local(x), p)``: H(x, p), scalar; also of complex p.
    quadratic
        Whether H is ``b . p + p . Sigma p / 2``; then `local` is (b, Sigma).
    noise
        Sigma (d, d) where it does not depend on x, else None.
    temperature
        eps of the process that it came from.
    name
        "SGD" or "diffusion".
    notes
        What was approximated.
    heavy
        Whether one evaluation goes through many examples: then points are solved one by one.
    family, knobs
        ``family(*knobs)`` is this H for compiled functions, which share one `family` and take the
        knobs as arguments: (B, factor of eps) for draws without replacement, else none.
    """

    dim: int
    local: Callable[[Array], Any] = field(repr=False)
    cumulant: Callable[[Any, Array], Array] = field(repr=False)
    quadratic: bool
    temperature: float
    name: str
    noise: np.ndarray | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()
    heavy: bool = False
    knobs: tuple[float, ...] = ()
    kin: Callable[..., Hamiltonian] | None = field(default=None, repr=False)

    @property
    def family(self) -> Callable[..., Hamiltonian]:
        """The same function for all Hamiltonians that differ in their knobs alone."""
        return _alone(self) if self.kin is None else self.kin

    def value(self, x: Array, p: Array) -> Array:
        """H(x, p) at x (d,), p (d,): scalar."""
        return self.cumulant(self.local(x), p)

    def drift(self, x: Array) -> Array:
        """Velocity of the noiseless flow at x (d,): H_p(x, 0), shape (d,)."""
        if self.quadratic:
            return self.local(x)[0]
        return jax.grad(self.value, argnums=1)(x, jnp.zeros(self.dim))

    def tensor(self, x: Array) -> Array:
        """Sigma(x) = H_pp(x, 0), shape (d, d)."""
        if self.noise is not None:
            return jnp.asarray(self.noise)
        if self.quadratic:
            return self.local(x)[1]
        return jax.hessian(self.value, argnums=1)(x, jnp.zeros(self.dim))


@lru_cache(maxsize=256)
def _alone(h: Hamiltonian) -> Callable[[], Hamiltonian]:
    return lambda: h


@lru_cache(maxsize=64)
def hamiltonian(process: Process) -> Hamiltonian:
    """The Hamiltonian of a diffusion (from drift and tensor) or of SGD itself (from its data).

    With momentum mu the slow motion has ``H(x, p / (1 - mu))``: many small steps see the sum of
    the velocity, and only that (learning rate to 0 at fixed mu).

    Raises
    ------
    InputError
        Reshuffled epochs; full batches (no noise); noise without exponential moments.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from batchwell import SGD, additive
    >>> h = hamiltonian(SGD(additive(lambda x: x @ x / 2, "rademacher"), learning_rate=0.1))
    >>> float(h.value(jnp.ones(1), jnp.zeros(1))), float(h.drift(jnp.ones(1))[0].round(9))
    (0.0, -1.0)
    """
    if isinstance(process, Diffusion):
        return _of_diffusion(process)
    if process.temperature == 0:
        raise InputError(
            "batch_size", process.batch_size, "has no noise: full batches never escape"
        )
    return _of_sgd(process)


def _of_diffusion(process: Diffusion) -> Hamiltonian:
    eps = process.sgd.temperature if process.sgd is not None else 1.0
    if eps == 0:
        raise InputError("process", "full batches", "have no noise: they never escape")
    noise = _constant(lambda x: process.tensor(x) / eps, process.dim)

    def local(x: Array) -> tuple[Array, Array]:
        return process.drift(x), process.tensor(x) / eps if noise is None else jnp.asarray(noise)

    heavy = process.sgd is not None and noise is None and process.sgd.loss.size > MANY_EXAMPLES
    return Hamiltonian(process.dim, local, _quadratic, True, eps, "diffusion", noise, heavy=heavy)


def _quadratic(local: tuple[Array, Array], p: Array) -> Array:
    drift, sigma = local
    return jnp.dot(drift, p) + 0.5 * jnp.dot(p, sigma @ p)


def _constant(tensor: Callable[[Array], Array], dim: int) -> np.ndarray | None:
    """The tensor where it does not depend on x (by its program), else None."""
    program = jax.make_jaxpr(tensor)(jnp.zeros(dim)).jaxpr
    moving = set(program.invars)
    for line in program.eqns:
        if moving.intersection(v for v in line.invars if not hasattr(v, "val")):
            moving.update(line.outvars)
    if moving.intersection(v for v in program.outvars if not hasattr(v, "val")):
        return None
    return np.asarray(tensor(jnp.zeros(dim)))


def _of_sgd(process: SGD) -> Hamiltonian:
    loss, eps, gain = process.loss, process.temperature, 1.0 / (1.0 - process.momentum)
    notes = ("momentum enters as in the limit of small learning rates",) if process.momentum else ()
    if loss.noise is None:
        return _of_data(process, gain, notes)
    if not math.isfinite(_cumulant(loss.noise.name)(np.float64(0.0))):
        raise InputError(
            "noise",
            loss.noise.name,
            "has no exponential moments: exit times grow "
            "like a power of B/eta, so there is no exponent; use method direct",
        )
    if not _affine(loss):
        return _of_nodes(loss, eps, gain, notes)
    law = _cumulant(loss.noise.name)
    zero = jnp.zeros(loss.noise_dim)

    def local(x: Array) -> tuple[Array, Array]:
        factor = jax.jacfwd(lambda z: loss.example_gradient(x, z))(zero)
        return loss.example_gradient(x, zero), factor

    if loss.noise.name == "gaussian":
        noise = _constant(lambda x: gain**2 * local(x)[1] @ local(x)[1].T, loss.dim)

        def gaussian(x: Array) -> tuple[Array, Array]:
            g, s = local(x)
            return -gain * g, gain**2 * s @ s.T

        return Hamiltonian(loss.dim, gaussian, _quadratic, True, eps, "SGD", noise, notes)

    def cumulant(here: tuple[Array, Array], p: Array) -> Array:
        g, s = here
        return -gain * jnp.dot(g, p) + jnp.sum(law(-gain * (s.T @ p)))

    return Hamiltonian(loss.dim, local, cumulant, False, eps, "SGD", None, notes)


def _of_data(process: SGD, gain: float, notes: tuple[str, ...]) -> Hamiltonian:
    loss, size, eps = process.loss, process.batch_size, process.temperature
    knobs: tuple[float, ...]
    # A subset of one example is a draw of one example.
    if process.sampling == "with_replacement" or size == 1:
        kin, knobs = _draws(loss, gain), ()
    else:
        kin = _subsets(loss, gain, node_count(loss.size, size))
        knobs = (float(size), process.batch_factor)
    return replace(kin(*knobs), temperature=eps, notes=notes, knobs=knobs, kin=kin)


@lru_cache(maxsize=64)
def _draws(loss: StochasticLoss, gain: float) -> Callable[..., Hamiltonian]:
    """``() -> H`` of draws with replacement, the same for all batch sizes."""
    return lambda: _finite(loss, lambda g, p: log_mean_exp(-gain * (g @ p), loss.weights))


@lru_cache(maxsize=64)
def _subsets(loss: StochasticLoss, gain: float, nodes: int) -> Callable[..., Hamiltonian]:
    """``(B, factor of eps) -> H`` of draws without replacement, for sizes that share a rule."""

    def of(size: Array, factor: Array) -> Hamiltonian:
        def cumulant(g: Array, p: Array) -> Array:
            exponents = (-gain / (factor * size)) * (g @ p)
            return factor * log_mean_symmetric(exponents, size, nodes)

        return _finite(loss, cumulant)

    return of


def _finite(loss: StochasticLoss, cumulant: Callable[[Any, Array], Array]) -> Hamiltonian:
    heavy, local = loss.size > MANY_EXAMPLES, loss.example_gradients
    return Hamiltonian(loss.dim, local, cumulant, False, math.nan, "SGD", heavy=heavy)


def _of_nodes(loss: StochasticLoss, eps: float, gain: float, notes: tuple[str, ...]) -> Hamiltonian:
    """Gradient not affine in the noise: expectation over the nodes of the law's rule."""
    exact = loss.noise is not None and loss.noise.atoms
    said = notes if exact else (*notes, f"log E exp by a rule of {loss.size} nodes")
    return Hamiltonian(
        loss.dim,
        loss.example_gradients,
        lambda g, p: log_mean_exp(-gain * (g @ p), loss.weights),
        False,
        eps,
        "SGD",
        None,
        said,
    )


def _affine(loss: StochasticLoss) -> bool:
    """Whether example gradients are affine in the noise (checked at fixed random points)."""
    rng = np.random.Generator(np.random.Philox(1971))
    for _ in range(3):
        x = jnp.asarray(rng.standard_normal(loss.dim))
        y, z = (jnp.asarray(rng.standard_normal(loss.noise_dim)) for _ in range(2))
        at = [loss.example_gradient(x, v) for v in (y + z, y, z, 0 * z)]
        if float(jnp.abs(at[0] - at[1] - at[2] + at[3]).max()) > 1e-9 * (
            1 + float(jnp.abs(at[0]).max())
        ):
            return False
    return True


def log_mean_exp(exponents: Array, weights: Array) -> Array:
    """Log sum_i w_i exp(k_i), accurate to relative rounding also where all k_i are tiny."""
    return jnp.log1p(jnp.dot(weights, jnp.expm1(exponents)))


def _cumulant(name: str) -> Callable[[Array], Array]:
    """Log E exp(k xi) of a noise law with mean 0 and variance 1; ``inf`` where it diverges."""
    known: dict[str, Callable[[Array], Array]] = {
        "gaussian": lambda k: 0.5 * k * k,
        "rademacher": lambda k: jnp.logaddexp(k, -k) - math.log(2.0),
        "uniform": _log_sinhc,
        "laplace": lambda k: _minus_log(1.0 - 0.5 * k * k),
        "exponential": lambda k: _minus_log(1.0 - k) - k,
    }
    return known.get(name, lambda k: jnp.full(jnp.shape(k), jnp.inf))


def _minus_log(y: Array) -> Array:
    good = jnp.real(y) > 0
    return jnp.where(good, -jnp.log(jnp.where(good, y, 1.0)), jnp.inf)


# log(sinh a / a) = sum_n 2^(2n-1) B_2n a^2n / (n (2n)!)
_SERIES = [
    2.0 ** (2 * n - 1) * bernoulli(2 * n)[-1] / (n * math.factorial(2 * n)) for n in range(1, 10)
]


def _log_sinhc(k: Array) -> Array:
    a = jnp.sqrt(3.0) * k
    small = jnp.abs(a) < 0.5
    outwards = jnp.where(jnp.real(a) < 0, -a, a)
    near, far = jnp.where(small, a, 0.0) ** 2, jnp.where(small, 1.0, outwards)
    series = jnp.zeros_like(near)
    for c in reversed(_SERIES):
        series = (series + c) * near
    return jnp.where(small, series, far + jnp.log1p(-jnp.exp(-2 * far)) - jnp.log(2 * far))
