"""Surfaces whose stationary points are all known: test beds of a search of landscapes."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._jax import jnp
from ..domain import box
from ..errors import whole
from ..loss import additive
from .base import SMALL_STUDY, KnownAnswer, Problem

Array = Any
NEWTON = "Newton's method in 30-digit arithmetic, all digits shown"
STUDY = {**SMALL_STUDY, "starts": 32}

_A = (-200.0, -100.0, -170.0, 15.0)
_QUADRATIC = ((-1.0, 0.0, -10.0), (-1.0, 0.0, -10.0), (-6.5, 11.0, -6.5), (0.7, 0.6, 0.7))
_CENTERS = ((1.0, 0.0), (0.0, 0.5), (-0.5, 1.5), (-1.0, 1.0))


def _mueller_brown_surface(x: Array) -> Array:
    total = jnp.asarray(0.0)
    for height, (a, b, c), (u, v) in zip(_A, _QUADRATIC, _CENTERS, strict=True):
        p, q = x[0] - u, x[1] - v
        total = total + height * jnp.exp(a * p**2 + b * p * q + c * q**2)
    return total / 100.0


def mueller_brown() -> Problem:
    """The surface of Mueller and Brown, over 100: three minima in a bent valley, two saddles.

    Gradient noise of variance 16 in each coordinate: walls are so steep that only small learning
    rates are stable, which without it would never leave a basin.
    """
    minima = (
        (-0.5582236346, 1.4417258418, -1.4669951721),
        (0.6234994049, 0.0280377585, -1.0816672412),
        (-0.0500108230, 0.4666941048, -0.8076781810),
    )
    saddles = (
        (-0.8220015587, 0.6243128028, -0.4066484351),
        (0.2124865820, 0.2929883251, -0.7224894077),
    )
    return Problem(
        "mueller-brown",
        "three minima in a bent valley (Mueller & Brown 1979): all stationary points are known",
        additive(_mueller_brown_surface, "gaussian", 2, 4.0, name="mueller-brown"),
        (-0.5, 1.4),
        start_scale=1.0,
        known=_stationary(minima, saddles),
        settings={**STUDY, "learning_rates": [0.02]},
    )


def himmelblau() -> Problem:
    """Himmelblau's function over 100: four minima of loss 0, four saddles, one maximum."""

    def surface(x: Array) -> Array:
        return ((x[0] ** 2 + x[1] - 11.0) ** 2 + (x[0] + x[1] ** 2 - 7.0) ** 2) / 100.0

    minima = (
        (3.0, 2.0, 0.0),
        (-2.8051180870, 3.1313125183, 0.0),
        (-3.7793102534, -3.2831859913, 0.0),
        (3.5844283403, -1.8481265270, 0.0),
    )
    saddles = (
        (0.0866775046, 2.8842547011, 0.6771915009),
        (3.3851541842, 0.0738518787, 0.1331192627),
        (-3.0730257511, -0.0813530443, 1.0401516292),
        (-0.1279613467, -1.9537149804, 1.7833723920),
    )
    top = KnownAnswer(
        "maximum", "sgd", (-0.2708445907, -0.9230385565, 1.8161652152), "1", {}, NEWTON
    )
    return Problem(
        "himmelblau",
        "four equal minima, four saddles and a maximum (Himmelblau 1972)",
        additive(surface, "gaussian", 2, name="himmelblau"),
        (3.0, 2.0),
        start_scale=3.0,
        known=(*_stationary(minima, saddles), top),
        settings=STUDY,
    )


def _stationary(
    minima: tuple[tuple[float, ...], ...], saddles: tuple[tuple[float, ...], ...]
) -> tuple[KnownAnswer, ...]:
    """Rows (coordinates and loss) as known answers of the loss; they depend on no setting."""
    return tuple(
        KnownAnswer(name, "sgd", rows, "1", {}, NEWTON)
        for name, rows in (("minima", minima), ("saddles", saddles))
    )


def product_wells(dim: int = 3) -> Problem:
    """A sum of double wells, one for each coordinate: 3^d stationary points, 2^d of them minima.

    F = sum_i a_i (x_i^2 - 1)^2 / 4 with a_i = 1 + i / 4; there are d 2^(d-1) saddles of index 1, each
    of barrier a_i / 4. Left is the well of (-1, ..., -1), where all coordinates are below 0: coordinates are
    independent, so the chance to be still inside is the product of those of d double wells.
    """
    dim = whole("dim", dim)
    scale = jnp.asarray(1.0 + 0.25 * np.arange(dim))
    start = (-1.0,) * dim
    count = {"minima": 2**dim, "saddles": dim * 2 ** (dim - 1), "stationary points": 3**dim}
    return Problem(
        "product-wells",
        "a double well in each coordinate: 3^d stationary points, all known",
        additive(
            lambda x: jnp.sum(scale * (x**2 - 1.0) ** 2) / 4.0,
            "gaussian",
            dim,
            name="product-wells",
        ),
        start,
        box((-3.0,) * dim, (0.0,) * dim),
        start_scale=1.5,
        known=(
            *(
                KnownAnswer(f"number of {name}", "sgd", value, "1", {"dim": dim}, "closed form")
                for name, value in count.items()
            ),
            *(_product_times(start) if dim == 3 else ()),
        ),
        settings=STUDY,
    )


def _product_times(start: tuple[float, ...]) -> list[KnownAnswer]:
    source = "chances to be inside of three chains in one dimension, multiplied; all digits shown"
    return [
        KnownAnswer(
            "mean_exit_time",
            "sgd",
            steps,
            "steps",
            {"learning_rate": eta, "batch_size": 1, "start": start},
            source,
        )
        for eta, steps in ((0.2, 86.752164), (0.1, 2805.583981))
    ]


def two_basins() -> Problem:
    """A flat basin beside a sharp one, equally deep: what is preferred is curvature alone.

    F = (x^2 - 1)^2 / 4 (1 + c x / sqrt(1 + x^2)) with c = .6 sqrt 2: minima of loss 0 at -1, with
    F'' = .8, and at 1, with F'' = 3.2. Noise has variance 1 everywhere, so that the diffusion's
    stationary law is exp(-2 F / eps) and the share of the flat basin is a quadrature; it tends to
    2/3, the roots of the curvatures being as 1 to 2.
    """
    tilt = 0.6 * np.sqrt(2.0)

    def surface(x: Array) -> Array:
        return (x[0] ** 2 - 1.0) ** 2 / 4.0 * (1.0 + tilt * x[0] / jnp.sqrt(1.0 + x[0] ** 2))

    shares = {0.4: 0.639457698431, 0.2: 0.649021434277, 0.1: 0.658284398609}
    source = "quadrature of exp(-2 F / eps) on either side of the saddle, all digits shown"
    return Problem(
        "two-basins",
        "a flat basin beside a sharp one, equally deep: the stationary shares are known",
        additive(surface, "gaussian", name="two-basins"),
        (1.0,),
        start_scale=1.0,
        known=(
            *_stationary(((-1.0, 0.0), (1.0, 0.0)), ((0.1722121983, 0.2692893888),)),
            *(
                KnownAnswer(
                    "stationary share of the flat basin",
                    "diffusion-1",
                    value,
                    "1",
                    {"temperature": temperature},
                    source,
                )
                for temperature, value in shares.items()
            ),
        ),
        settings=STUDY,
    )
