"""Quench: which minimum does gradient flow reach from here?

Flow ``dx/dt = -grad F`` is followed first by an adaptive explicit pair (Bogacki & Shampine,
1989), then, where it creeps along a flat valley, by an adaptive L-stable Rosenbrock pair
(ROS2 of Verwer et al., 1999), until it enters the *trust region* of a known attractor: an ellipsoid
``(x - c)^T H (x - c) < r^2`` on which that quadratic form was found to fall along the flow in
every sampled direction, so that the flow cannot leave it again. Points that reach no
known region get a Newton search from where they are; minima found so join the known
attractors, and the flow decides which one is reached.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._jax import jax, jnp
from ..domain import Domain
from ..errors import Divergence, InputError, require, whole
from ..loss import StochasticLoss
from ..streams import generator

Array = Any

FLOW_TOLERANCE = 1e-3  # error per step of the flow, in units of x
FIRST_BLOCK, BLOCK, STIFF_BLOCK, MAX_STEPS = 48, 256, 16, 20_000
STIFF_DIM = 400  # above this a Hessian per step costs more than the steps it saves
TRUST_SAFETY = 0.8  # share of the sampled radius that is trusted
TRUST_DIRECTIONS = 128
FLAT = 1e-8  # smallest Hessian eigenvalue, relative to the largest, of an isolated minimum
STATIONARY = 1e-9  # gradient norm of a polished minimum
RUNAWAY = 1e8  # times the starts' own size: no minimum is there
UNDECIDED = -1


@dataclass(frozen=True, eq=False)
class Attractors:
    """Known minima and their trust regions.

    Attributes
    ----------
    centers
        (K, d) minima, Newton-polished.
    roots
        (K, d, d) matrices R with R^T R the Hessian: region ``|R (x - c)| < radius``.
    radii
        (K,).
    """

    centers: np.ndarray
    roots: np.ndarray
    radii: np.ndarray

    def __len__(self) -> int:
        return len(self.centers)

    def take(self, rows: ArrayLike) -> Attractors:
        """The attractors of these rows only."""
        keep = np.asarray(rows)
        return Attractors(self.centers[keep], self.roots[keep], self.radii[keep])

    def labels(self, points: np.ndarray) -> np.ndarray:
        """Which trust region holds each of `points` (n, d): index or UNDECIDED, (n,)."""
        out = np.full(len(points), UNDECIDED)
        for k in range(len(self)):
            moved = (points - self.centers[k]) @ self.roots[k].T
            out[np.einsum("ni,ni->n", moved, moved) < self.radii[k] ** 2] = k
        return out


@dataclass(frozen=True, eq=False)
class Quench:
    """Where points flow to.

    Attributes
    ----------
    labels
        (n,) index into `attractors`, or UNDECIDED where no isolated minimum was reached.
    attractors
        All attractors known now (those given first, in their order).
    """

    labels: np.ndarray
    attractors: Attractors


def no_attractors(dim: int) -> Attractors:
    """The empty set of attractors in `dim` dimensions."""
    return Attractors(np.empty((0, dim)), np.empty((0, dim, dim)), np.empty(0))


def quench(
    loss: StochasticLoss,
    points: ArrayLike,
    attractors: Attractors | None = None,
    max_steps: int = MAX_STEPS,
    progress: Callable[[int, int], None] | None = None,
) -> Quench:
    """Follow gradient flow from each of `points` (n, d) to its minimum.

    Parameters
    ----------
    attractors
        Known ones; new ones are added to them.
    max_steps
        Runge-Kutta steps after which a point is left UNDECIDED (flat directions, say).

    Raises
    ------
    Divergence
        The flow runs away linearly or faster (a loss without lower bound): says from where. One
        that falls so steeply that the flow's steps shrink leaves its points UNDECIDED.

    Examples
    --------
    >>> from batchwell import additive
    >>> well = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4)
    >>> q = quench(well, [[0.3], [-2.0], [0.1]])
    >>> q.labels.tolist(), q.attractors.centers.round(9).ravel().tolist()
    ([0, 1, 0], [1.0, -1.0])
    """
    x = np.array(np.atleast_2d(np.asarray(points, dtype=np.float64)))
    require(x.shape[1] == loss.dim, "points", x.shape, f"must have shape (n, {loss.dim})")
    whole("max_steps", max_steps)
    known = no_attractors(loss.dim) if attractors is None else attractors
    labels = known.labels(x)
    open_ = np.flatnonzero(labels == UNDECIDED)
    h = np.full(len(x), 0.1)
    farthest = RUNAWAY * (1.0 + float(np.abs(x).max(initial=0.0)))
    done, block = 0, FIRST_BLOCK
    while open_.size and done < max_steps:
        flow = _flow if done == 0 or loss.dim > STIFF_DIM else _stiff_flow
        x[open_], h[open_] = flow(loss, x[open_], h[open_], block)
        _check_flow(x, open_, farthest)
        labels[open_] = known.labels(x[open_])
        open_ = open_[labels[open_] == UNDECIDED]
        if open_.size and done > 0:
            known = _search(loss, x[open_], known)
            labels[open_] = known.labels(x[open_])
            open_ = open_[labels[open_] == UNDECIDED]
        done, block = done + block, STIFF_BLOCK if loss.dim <= STIFF_DIM else BLOCK
        if progress is not None:
            progress(len(x) - open_.size, len(x))
    return Quench(labels, known)


def _check_flow(x: np.ndarray, rows: np.ndarray, farthest: float) -> None:
    # Written so that NaN fails: the flow's error control stops short of infinity.
    bad = rows[~(np.abs(x[rows]) <= farthest).all(axis=1)]
    if bad.size:
        raise Divergence(
            f"gradient flow from point {int(bad[0])} ({bad.size} of {len(x)}) runs away "
            "without end: the loss has no lower bound there"
        )


def reach(loss: StochasticLoss, points: np.ndarray, known: Attractors, own: int) -> Quench:
    """`quench` for points most of which are expected in the basin of attractor `own`.

    Most settle in it within a few steps, which is tried first; the rest get the full quench.
    """
    home = known.take([own])
    x = np.array(points, dtype=np.float64)
    labels = np.where(home.labels(x) == 0, own, UNDECIDED)
    rows = np.flatnonzero(labels == UNDECIDED)
    if rows.size:
        x[rows] = _flow(loss, x[rows], np.full(rows.size, 0.1), FIRST_BLOCK, home)[0]
        labels[rows[home.labels(x[rows]) == 0]] = own
        rows = rows[labels[rows] == UNDECIDED]
    if rows.size:
        rest = quench(loss, x[rows], known)
        labels[rows], known = rest.labels, rest.attractors
    return Quench(labels, known)


def _padded(count: int) -> int:
    """Round up to a power of eight: few compiled shapes instead of one per count."""
    size = 8
    while size < count:
        size *= 8
    return size


def _pad(a: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([a, np.repeat(a[:1], size - len(a), axis=0)])


def _flow(
    loss: StochasticLoss, x: np.ndarray, h: np.ndarray, steps: int, home: Attractors | None = None
) -> tuple[np.ndarray, np.ndarray]:
    size = _padded(len(x))
    if home is None:
        out, step = _flower(loss, False)(_pad(x, size), _pad(h, size), steps)
    else:
        region = (home.centers[0], home.roots[0], home.radii[0])
        out, step = _flower(loss, True)(_pad(x, size), _pad(h, size), steps, *region)
    return np.asarray(out)[: len(x)], np.asarray(step)[: len(x)]


def _stiff_flow(
    loss: StochasticLoss, x: np.ndarray, h: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    size = _padded(len(x))
    out, step = _stiff_flower(loss)(_pad(x, size), _pad(h, size), steps)
    return np.asarray(out)[: len(x)], np.asarray(step)[: len(x)]


@lru_cache(maxsize=32)
def _stiff_flower(loss: StochasticLoss) -> Callable[..., Any]:
    """Compiled ROS2 flow of many points over a fixed number of attempted steps."""
    gamma = 1.0 + 1.0 / np.sqrt(2.0)

    def attempt(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        x, h = state
        solver = jax.scipy.linalg.lu_factor(jnp.eye(loss.dim) + gamma * h * loss.hessian(x))
        k1 = jax.scipy.linalg.lu_solve(solver, -loss.gradient(x))
        k2 = jax.scipy.linalg.lu_solve(solver, -loss.gradient(x + h * k1) - 2 * k1)
        error = jnp.linalg.norm(0.5 * h * (k1 + k2)) / FLOW_TOLERANCE
        good = error <= 1
        factor = jnp.clip(0.9 * (error + 1e-12) ** (-1 / 2), 0.2, 5.0)
        return jnp.where(good, x + h * (1.5 * k1 + 0.5 * k2), x), h * factor

    def one(x: Array, h: Array, steps: Array) -> tuple[Array, Array]:
        return jax.lax.fori_loop(0, steps, attempt, (x, h))

    return jax.jit(jax.vmap(one, in_axes=(0, 0, None)))


@lru_cache(maxsize=32)
def _flower(loss: StochasticLoss, homing: bool) -> Callable[..., Any]:
    """Compiled flow of many points; with `homing` each stops inside the given region."""

    def body(state: Any) -> Any:
        x, k1, h, left = state
        x, k1, h = _bogacki_shampine(lambda y: -loss.gradient(y), x, k1, h)
        return x, k1, h, left - 1

    def one(x: Array, h: Array, steps: Array, *region: Array) -> tuple[Array, Array]:
        def going(state: Any) -> Array:
            more = state[3] > 0
            if homing:
                center, root, radius = region
                more &= jnp.sum((root @ (state[0] - center)) ** 2) >= radius**2
            return more

        out = jax.lax.while_loop(going, body, (x, -loss.gradient(x), h, steps))
        return out[0], out[2]

    return jax.jit(jax.vmap(one, in_axes=(0, 0, None, *([None] * 3 if homing else []))))


def _bogacki_shampine(
    f: Callable[[Array], Array], x: Array, k1: Array, h: Array
) -> tuple[Array, Array, Array]:
    """One attempted step of the 3(2) pair: (x, f(x), next h); x stays if refused."""
    k2 = f(x + 0.5 * h * k1)
    k3 = f(x + 0.75 * h * k2)
    y = x + h * (2 * k1 + 3 * k2 + 4 * k3) / 9
    k4 = f(y)
    error = jnp.linalg.norm(h * (-5 * k1 / 72 + k2 / 12 + k3 / 9 - k4 / 8)) / FLOW_TOLERANCE
    good = error <= 1
    factor = jnp.clip(0.9 * (error + 1e-12) ** (-1 / 3), 0.2, 5.0)
    return jnp.where(good, y, x), jnp.where(good, k4, k1), h * factor


def _search(loss: StochasticLoss, x: np.ndarray, known: Attractors) -> Attractors:
    """`known` with the minima that Newton's method reaches from `x` (n, d)."""
    ends = polish(loss, x)
    for end in ends[np.isfinite(ends).all(axis=1)]:
        if len(known) and np.min(np.linalg.norm(known.centers - end, axis=1)) < 1e-6:
            continue
        known = add_attractor(loss, known, end)
    return known


def polish(loss: StochasticLoss, x: np.ndarray, iterations: int = 12) -> np.ndarray:
    """Newton's method from each of `x` (n, d); rows that reach no minimum become NaN."""
    size = _padded(len(x))
    ends, norms, lowest = (
        np.asarray(a)[: len(x)] for a in _polisher(loss, iterations)(_pad(x, size))
    )
    out = np.array(ends)
    out[~((norms < STATIONARY) & (lowest > FLAT))] = np.nan
    return out


@lru_cache(maxsize=32)
def _polisher(loss: StochasticLoss, iterations: int) -> Callable[[Array], Any]:
    def newton(_: int, x: Array) -> Array:
        move = jnp.linalg.solve(loss.hessian(x), loss.gradient(x))
        # A step longer than the point's own size is no longer local: shorten it.
        longest = 0.3 * (1.0 + jnp.linalg.norm(x))
        return x - move * jnp.minimum(1.0, longest / (jnp.linalg.norm(move) + 1e-300))

    def one(x: Array) -> Any:
        x = jax.lax.fori_loop(0, iterations, newton, x)
        values = jnp.linalg.eigvalsh(loss.hessian(x))
        return x, jnp.linalg.norm(loss.gradient(x)), values[0] / jnp.max(jnp.abs(values))

    return jax.jit(jax.vmap(one))


def add_attractor(loss: StochasticLoss, known: Attractors, center: np.ndarray) -> Attractors:
    """`known` and the minimum `center` (d,) with its trust region."""
    hessian = np.asarray(_hessian(loss)(center))
    values, vectors = np.linalg.eigh(hessian)
    if values[0] <= FLAT * values[-1]:
        raise InputError(
            "minimum",
            f"Hessian eigenvalue {values[0]:.3g}",
            "must be isolated: all Hessian eigenvalues positive (add weight decay to a flat loss)",
        )
    root = np.sqrt(values)[:, None] * vectors.T
    radius = TRUST_SAFETY * _trust_radius(loss, center, hessian, vectors / np.sqrt(values))
    return Attractors(
        np.concatenate([known.centers, center[None]]),
        np.concatenate([known.roots, root[None]]),
        np.append(known.radii, radius),
    )


def _trust_radius(
    loss: StochasticLoss, center: np.ndarray, hessian: np.ndarray, spread: np.ndarray
) -> float:
    """Largest r so that (x-c)^T H (x-c) falls along the flow on all sampled shells up to r.

    Its derivative is -2 (x-c)^T H grad F. Shells grow geometrically until one fails.
    """
    rng = generator(1705_07562, "trust-region")
    u = rng.standard_normal((TRUST_DIRECTIONS, loss.dim))
    u = np.concatenate([u / np.linalg.norm(u, axis=1, keepdims=True), np.eye(loss.dim)])
    shell = np.concatenate([u, -u]) @ spread.T
    falls, good = _descent(loss), 0.0
    for radius in np.geomspace(1e-3, 1e3, 61):
        if not bool(falls(center, hessian, radius * shell)):
            break
        good = float(radius)
    return good


@lru_cache(maxsize=32)
def _descent(loss: StochasticLoss) -> Callable[..., Any]:
    def falls(center: Array, hessian: Array, offsets: Array) -> Array:
        gradients = jax.vmap(loss.gradient)(center + offsets)
        return jnp.all(jnp.einsum("ni,ij,nj->n", offsets, hessian, gradients) > 0)

    return jax.jit(falls)


@lru_cache(maxsize=32)
def _hessian(loss: StochasticLoss) -> Callable[[Array], Array]:
    return jax.jit(loss.hessian)


@dataclass
class BasinMap:
    """Labels of points, remembering minima met on the way so that none is searched twice.

    Attributes
    ----------
    attractors
        Known now: those given first, then new ones in the order of their discovery.
    own
        Index of the attractor in whose basin most points are expected.
    """

    loss: StochasticLoss
    attractors: Attractors
    own: int

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Attractor index (or UNDECIDED) of each of `points` (n, d): (n,)."""
        result = reach(self.loss, points, self.attractors, self.own)
        self.attractors = result.attractors
        return result.labels


def basin(loss: StochasticLoss, attractors: Attractors, own: int) -> Domain:
    """The basin of attraction of ``attractors.centers[own]`` as a domain to leave.

    Its `labels` are a `BasinMap`, to be asked from one thread at a time.

    Examples
    --------
    >>> from batchwell import additive
    >>> well = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4)
    >>> right = basin(well, quench(well, [[0.5], [-0.5]]).attractors, own=0)
    >>> right.contains([[0.01], [-0.01], [3.0]]).tolist()
    [True, False, True]
    """
    require(0 <= own < len(attractors), "own", own, f"must be below {len(attractors)}")
    labels = BasinMap(loss, attractors, own)
    return Domain(f"basin of minimum {own}", loss.dim, labels=labels, label=own)
