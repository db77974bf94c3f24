"""Noise laws with mean 0 and variance 1: what `sampled` losses draw their examples from.

Each law has closed-form draws (no rejection, so that lanes of paths stay in step), its
first cumulants, its support, and a rule of nodes and weights for expectations. The roster
`NOISES` is the menu of settings files, the docs' table and the tests' parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, finite, one_of, require
from .streams import uniform

Words = list[Any]


@dataclass(frozen=True)
class Rule:
    """Nodes (m,) and weights (m,) whose sums are expectations, exact up to `degree`."""

    nodes: NDArray[np.float64]
    weights: NDArray[np.float64]
    degree: float


@dataclass(frozen=True)
class Noise:
    """A scalar noise law with mean 0 and variance 1.

    Attributes
    ----------
    name
        Key in `NOISES`.
    words
        32-bit words used per draw (a Gaussian pair shares four).
    draw
        ``draw(words, xp)``: words -> values, in numpy or jax.numpy.
    rule
        Nodes and weights for expectations.
    skewness, kurtosis
        Third and fourth standardised moments (kurtosis 3 for a Gaussian; ``inf`` allowed).
    support
        (lower, upper) ends of the support.
    atoms
        Whether the law is a finite sum of atoms (then `rule` is the law itself).
    """

    name: str
    words: int
    draw: Callable[[Words, Any], Any] = field(repr=False)
    rule: Rule = field(repr=False)
    skewness: float
    kurtosis: float
    support: tuple[float, float]
    parameter: float | None = None
    atoms: bool = False


def _gaussian_draw(words: Words, xp: Any) -> Any:
    return normal_pair(words, xp)[0]


def normal_pair(words: Words, xp: Any) -> tuple[Any, Any]:
    """Four words -> two independent standard normals (Box-Muller, float64)."""
    radius = xp.sqrt(-2.0 * xp.log(uniform(words[0], words[1], xp)))
    angle = (2.0 * math.pi) * uniform(words[2], words[3], xp)
    return radius * xp.cos(angle), radius * xp.sin(angle)


def gaussian() -> Noise:
    """Standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(16)
    rule = Rule(nodes, weights / weights.sum(), 31)
    return Noise("gaussian", 4, _gaussian_draw, rule, 0.0, 3.0, (-math.inf, math.inf))


def rademacher() -> Noise:
    """+1 or -1 with equal chance."""
    rule = Rule(np.array([-1.0, 1.0]), np.array([0.5, 0.5]), math.inf)

    def draw(words: Words, xp: Any) -> Any:
        return xp.where(words[0] >> np.uint32(31) == 0, 1.0, -1.0)

    return Noise("rademacher", 1, draw, rule, 0.0, 1.0, (-1.0, 1.0), atoms=True)


def uniform_noise() -> Noise:
    """Uniform on [-sqrt 3, sqrt 3]."""
    edge = math.sqrt(3.0)
    nodes, weights = np.polynomial.legendre.leggauss(16)
    rule = Rule(edge * nodes, weights / 2, 31)

    def draw(words: Words, xp: Any) -> Any:
        return edge * (2.0 * uniform(words[0], words[1], xp) - 1.0)

    return Noise("uniform", 2, draw, rule, 0.0, 9 / 5, (-edge, edge))


def laplace() -> Noise:
    """Two-sided exponential with density exp(-sqrt 2 |z|) / sqrt 2."""
    scale = 1 / math.sqrt(2.0)
    x, w = np.polynomial.laguerre.laggauss(16)
    rule = Rule(
        scale * np.concatenate([-x[::-1], x]), np.concatenate([w[::-1], w]) / (2 * w.sum()), 31
    )

    def draw(words: Words, xp: Any) -> Any:
        u = uniform(words[0], words[1], xp)
        tail = -scale * xp.log(2.0 * xp.minimum(u, 1.0 - u))
        return xp.where(u < 0.5, -tail, tail)

    return Noise("laplace", 2, draw, rule, 0.0, 6.0, (-math.inf, math.inf))


def exponential() -> Noise:
    """Exponential with rate 1, shifted to mean 0: support [-1, inf)."""
    x, w = np.polynomial.laguerre.laggauss(16)
    rule = Rule(x - 1.0, w / w.sum(), 31)

    def draw(words: Words, xp: Any) -> Any:
        return -xp.log(uniform(words[0], words[1], xp)) - 1.0

    return Noise("exponential", 2, draw, rule, 2.0, 9.0, (-1.0, math.inf))


def student_t(parameter: float = 5.0) -> Noise:
    """Student's t with `parameter` > 2 degrees of freedom, scaled to variance 1.

    Drawn without rejection: sqrt(nu (U**(-2/nu) - 1)) cos(2 pi V) is t with nu degrees
    of freedom (Bailey, Math. Comp. 62 (1994)). Only moments below nu exist: the rule
    has as many nodes as they allow.
    """
    nu = _tail_index("student_t", parameter)
    scale = math.sqrt((nu - 2) / nu)
    kurtosis = 3 + 6 / (nu - 4) if nu > 4 else math.inf
    if nu > 4:
        # Three nodes 0, +-r with r^2 the kurtosis match moments up to the fifth.
        r, p = math.sqrt(kurtosis), 1 / (2 * kurtosis)
        rule = Rule(np.array([-r, 0.0, r]), np.array([p, 1 - 2 * p, p]), min(5.0, nu))
    else:
        rule = Rule(np.array([-1.0, 1.0]), np.array([0.5, 0.5]), min(3.0, nu))

    def draw(words: Words, xp: Any) -> Any:
        u, v = uniform(words[0], words[1], xp), uniform(words[2], words[3], xp)
        return scale * xp.sqrt(nu * (u ** (-2.0 / nu) - 1.0)) * xp.cos(2.0 * math.pi * v)

    skewness = 0.0 if nu > 3 else math.nan
    support = (-math.inf, math.inf)
    return Noise("student_t", 4, draw, rule, skewness, kurtosis, support, parameter=nu)


def pareto(parameter: float = 5.0) -> Noise:
    """Pareto with tail index `parameter` > 2, shifted and scaled to mean 0, variance 1."""
    a = _tail_index("pareto", parameter)
    mean = a / (a - 1)
    std = math.sqrt(a / (a - 2)) / (a - 1)
    skewness = 2 * (1 + a) / (a - 3) * math.sqrt((a - 2) / a) if a > 3 else math.inf
    excess = 6 * (a**3 + a**2 - 6 * a - 2) / (a * (a - 3) * (a - 4)) if a > 4 else math.inf
    # Two atoms with the right mean, variance and (where it exists) skewness.
    s = skewness if a > 3 else 0.0
    nodes = np.array([(s - math.hypot(s, 2)) / 2, (s + math.hypot(s, 2)) / 2])
    weights = np.array([nodes[1], -nodes[0]]) / (nodes[1] - nodes[0])
    rule = Rule(nodes, weights, 3.0 if a > 3 else 2.0)

    def draw(words: Words, xp: Any) -> Any:
        return (uniform(words[0], words[1], xp) ** (-1.0 / a) - mean) / std

    lower = (1 - mean) / std
    return Noise("pareto", 2, draw, rule, skewness, 3 + excess, (lower, math.inf), parameter=a)


NOISES: dict[str, Callable[..., Noise]] = {
    "gaussian": gaussian,
    "rademacher": rademacher,
    "uniform": uniform_noise,
    "laplace": laplace,
    "exponential": exponential,
    "student_t": student_t,
    "pareto": pareto,
}


def noise_law(name: str | Noise, parameter: float | None = None) -> Noise:
    """The noise law called `name`, with its tail `parameter` where it has one.

    Raises
    ------
    InputError
        Unknown name, or a tail parameter at which the variance does not exist.

    Examples
    --------
    >>> noise_law("rademacher").kurtosis
    1.0
    >>> noise_law("student_t", 6).kurtosis
    6.0
    """
    if isinstance(name, Noise):
        return name
    one_of("noise", name, NOISES)
    if parameter is None:
        return NOISES[name]()
    if name not in ("student_t", "pareto"):
        raise InputError("parameter", parameter, f"noise {name} takes no parameter")
    return NOISES[name](parameter)


def product_rule(law: Noise, dim: int, max_nodes: int = 4096) -> Rule:
    """Rule for `dim` independent copies of `law`: nodes (m, dim), weights (m,).

    A tensor product while it stays below `max_nodes`; beyond that, for atoms or densities
    alike, the 2 dim points +-sqrt(dim) e_i, exact up to degree 3 for symmetric laws and 2
    otherwise (mean and covariance of a gradient affine in the noise).
    """
    base = law.rule
    if len(base.nodes) ** dim <= max_nodes:
        grid = np.meshgrid(*([base.nodes] * dim), indexing="ij")
        weights = np.meshgrid(*([base.weights] * dim), indexing="ij")
        nodes = np.stack([g.ravel() for g in grid], axis=1)
        return Rule(nodes, np.prod([w.ravel() for w in weights], axis=0), base.degree)
    spread = math.sqrt(dim) * np.eye(dim)
    nodes = np.concatenate([spread, -spread])
    return Rule(nodes, np.full(2 * dim, 1 / (2 * dim)), 3.0 if law.skewness == 0 else 2.0)


def _tail_index(name: str, value: float) -> float:
    number = finite("parameter", value)
    require(number > 2, "parameter", value, f"{name} needs more than 2 (finite variance)")
    return number
