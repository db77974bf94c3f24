"""Attractors: minima, and regions around them that gradient flow does not leave again.

The *trust region* of a minimum is a ball ``|x - c| < r`` on which that distance was found to fall
along the flow in every direction tried, so that the flow cannot leave it again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._jax import jax, jnp, serial
from ..errors import InputError
from ..loss import StochasticLoss
from ..streams import generator
from .spectrum import DENSE, extreme_modes, lowest_modes

Array = Any

UNDECIDED = -1
TRUST_SAFETY = 0.5  # share of the radius found that is trusted
TRUST_DIRECTIONS = 128
TRUST_STARTS, TRUST_STEPS = 16, 32  # of the search for rising directions
FIRST_SHELL, LAST_SHELL, GROWTH = 0.02, 10.0, 1.5  # times 1 + |c|; shell to shell
SAME_IMAGE = 1e-9  # relative difference of images of one minimum
FLAT = 1e-8  # smallest Hessian eigenvalue, relative to the largest, of an isolated minimum


@dataclass(frozen=True)
class Region:
    """What tells images of one minimum from other minima, and the radius of their regions."""

    norm: float
    loss: float
    spectrum: np.ndarray  # (k,)
    radius: float

    def is_image(self, other: Region) -> bool:
        """Symmetries here are moves that keep distances, so that images share their radius."""
        return (
            abs(self.norm - other.norm) <= SAME_IMAGE * (1.0 + self.norm)
            and abs(self.loss - other.loss) <= SAME_IMAGE * (1.0 + abs(self.loss))
            and bool(np.abs(self.spectrum - other.spectrum).max() <= SAME_IMAGE * self.spectrum[-1])
        )


@dataclass(frozen=True, eq=False)
class Attractors:
    """Known minima and their trust regions.

    Attributes
    ----------
    centers
        (K, d) minima, Newton-polished.
    roots
        (K, d, d) matrices R of the regions ``|R (x - c)| < radius``: 1 for balls. Above `DENSE`
        parameters none are kept, shape (K, 0, 0): all regions are balls.
    radii
        (K,).
    measured
        Regions whose radius was searched for, one for all images of a minimum; shared by all sets
        that grow from this one, since that search costs more than most quenches.
    """

    centers: np.ndarray
    roots: np.ndarray
    radii: np.ndarray
    measured: list[Region] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.centers)

    def take(self, rows: ArrayLike) -> Attractors:
        """The attractors of these rows only."""
        keep = np.asarray(rows, dtype=int)
        return replace(
            self, centers=self.centers[keep], roots=self.roots[keep], radii=self.radii[keep]
        )

    def joined(self, center: np.ndarray, radius: float) -> Attractors:
        """These and the minimum `center` (d,) with a ball of this radius."""
        one = balls(center[None], np.array([radius]))
        pairs = ((self.centers, one.centers), (self.roots, one.roots), (self.radii, one.radii))
        centers, roots, radii = (np.concatenate(pair) for pair in pairs)
        return Attractors(centers, roots, radii, self.measured)

    def labels(self, points: np.ndarray) -> np.ndarray:
        """Which trust region holds each of `points` (n, d): index or UNDECIDED, (n,)."""
        out = np.full(len(points), UNDECIDED)
        for k in range(len(self)):
            moved = points - self.centers[k]
            if self.roots.shape[1]:
                moved = moved @ self.roots[k].T
            out[np.einsum("ni,ni->n", moved, moved) < self.radii[k] ** 2] = k
        return out


def no_attractors(dim: int) -> Attractors:
    """The empty set of attractors in `dim` dimensions."""
    return balls(np.empty((0, dim)), np.empty(0))


def balls(centers: np.ndarray, radii: np.ndarray) -> Attractors:
    """Attractors `centers` (K, d) whose trust regions are balls of `radii` (K,)."""
    count, dim = centers.shape
    side = dim if dim <= DENSE else 0
    return Attractors(centers, np.tile(np.eye(side), (count, 1, 1)), radii)


def add_attractor(loss: StochasticLoss, known: Attractors, center: np.ndarray) -> Attractors:
    """`known` and the minimum `center` (d,) with its trust region."""
    values, vectors = spectrum_ends(loss, center)
    if values[0] <= FLAT * values[-1]:
        raise InputError(
            "minimum",
            f"Hessian eigenvalue {values[0]:.3g}",
            "must be isolated: all Hessian eigenvalues positive (add weight decay to a flat loss)",
        )
    if not known.measured:
        # A set that was read from disk: its radii stand for its minima's images too.
        known.measured.extend(
            _region(loss, x, spectrum_ends(loss, x)[0], float(r))
            for x, r in zip(known.centers, known.radii, strict=True)
        )
    found = _region(loss, center, values)
    image = next((r for r in known.measured if found.is_image(r)), None)
    if image is None:
        radius = TRUST_SAFETY * _trust_radius(loss, center, values, vectors)
        image = replace(found, radius=radius)
        known.measured.append(image)
    return known.joined(center, image.radius)


def _region(
    loss: StochasticLoss, center: np.ndarray, values: np.ndarray, radius: float = 0.0
) -> Region:
    height, norm = float(mean_at(loss)(center)), float(np.linalg.norm(center))
    return Region(norm, height, values, radius)


def spectrum_ends(loss: StochasticLoss, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (k,), rising, and eigenvectors (d, k) of the Hessian: all of them, or its ends."""
    if loss.dim <= DENSE:
        values, vectors = lowest_modes(loss, x, loss.dim)
        return values, vectors
    low, high = (extreme_modes(loss, x, 1, which, 1e-6) for which in ("SA", "LA"))
    return np.concatenate([low[0], high[0]]), np.concatenate([low[1], high[1]], axis=1)


def _trust_radius(
    loss: StochasticLoss, center: np.ndarray, values: np.ndarray, vectors: np.ndarray
) -> float:
    """Largest r so that |x - c|^2 falls along the flow on the shells tried up to r.

    Its derivative is -2 (x - c)^T grad F. On each shell random directions are tried, and then a
    descent to a rising one is begun from the worst of them: samples alone miss narrow ways out
    in many dimensions, and a saddle within the region would make quenches wrong.
    """
    u, falls = _directions(values, _signed(loss, center, vectors)), _descent(loss)
    scale = 1.0 + float(np.linalg.norm(center))
    good = FIRST_SHELL * scale
    while not bool(falls(center, u, good)):
        good /= GROWTH**2
        if good < 1e-9 * scale:
            return 0.0
    while good < LAST_SHELL * scale and bool(falls(center, u, good * GROWTH)):
        good *= GROWTH
    finer = good * GROWTH**0.5
    return finer if bool(falls(center, u, finer)) else good


def _signed(loss: StochasticLoss, center: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """`vectors` (d, k), each turned so that F's third derivative along it is positive.

    Images of a minimum so get images of the same directions, and the same radius.
    """
    h, slope = FIRST_SHELL * (1.0 + float(np.linalg.norm(center))), gradient_at(loss)
    odd = [v @ (np.asarray(slope(center + h * v)) + slope(center - h * v)) for v in vectors.T]
    return np.where(np.array(odd) < 0, -vectors, vectors)


def _directions(values: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Unit vectors (m, d): the Hessian's axes, random ones, and random ones along flat ways."""
    rng = generator(1705_07562, "trust-region")
    random = rng.standard_normal((TRUST_DIRECTIONS, len(vectors)))
    if len(values) == len(vectors):
        random[::2] /= np.sqrt(values)
        random = random @ vectors.T
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    u = np.concatenate([vectors.T, random])
    return np.concatenate([u, -u])


@lru_cache(maxsize=32)
def _descent(loss: StochasticLoss) -> Callable[..., Any]:
    """Whether the distance from a minimum falls everywhere on a shell around it."""
    dense = loss.dim <= DENSE

    def falls(center: Array, u: Array, radius: Array) -> Array:
        def at(v: Array) -> Array:
            """Slope against that of a quadratic F: 1 near the minimum."""
            way = v / jnp.linalg.norm(v)
            slope = jnp.dot(way, loss.gradient(center + radius * way))
            return slope / (radius * (way @ curvature @ way)) if dense else slope / radius

        def step(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            v, lowest = state
            value, uphill = jax.value_and_grad(at)(v)
            move = v - 0.3 * 0.9**k * uphill / (jnp.linalg.norm(uphill) + 1e-300)
            return move / jnp.linalg.norm(move), jnp.minimum(value, lowest)

        curvature = loss.hessian(center) if dense else None
        values = jax.vmap(at)(u)
        worst = u[jnp.argsort(values)[:TRUST_STARTS]]
        search = jax.vmap(lambda v: jax.lax.fori_loop(0, TRUST_STEPS, step, (v, jnp.inf)))
        return (jnp.min(values) > 0) & (jnp.min(search(worst)[1]) > 0)

    return serial(jax.jit(falls))


@lru_cache(maxsize=32)
def gradient_at(loss: StochasticLoss) -> Callable[[Array], Array]:
    """grad F, compiled once."""
    return serial(jax.jit(loss.gradient))


@lru_cache(maxsize=32)
def mean_at(loss: StochasticLoss) -> Callable[[Array], Array]:
    """F, compiled once."""
    return serial(jax.jit(loss.mean))
