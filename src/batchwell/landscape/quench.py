"""Quench: which minimum does gradient flow reach from here?

Flow ``dx/dt = -grad F`` is followed adaptively (`ensemble.gradient_flow`; after a first stretch by
a method that takes long steps along flat valleys) until it enters the trust region of a known
attractor (`attractors`). Points that reach none get a Newton search from where they are; minima
found so join the known attractors, and the flow decides which is reached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse.linalg import minres

from .._jax import jax, jnp, serial
from ..domain import Domain
from ..ensemble import within
from ..ensemble.flow import Flow, Regions, gradient_flow
from ..errors import require, whole
from ..loss import StochasticLoss
from .attractors import (
    FLAT,
    UNDECIDED,
    Attractors,
    add_attractor,
    gradient_at,
    mean_at,
    no_attractors,
    spectrum_ends,
)
from .spectrum import DENSE, hessian_operator

Array = Any
Progress = Callable[[int, int], None]

FIRST_STEP = 0.1
FLOW_TOLERANCE = 1e-3  # error per step of the flow, in units of x
# Coordinates up to which a home is looked for in float32: rounding moves them by some 3e-4 a step.
FLOAT32_SIZE = 30.0
FIRST_BLOCK, HOME_BLOCK, MAX_STEPS = 64, 150, 4000
VALLEY_STAGES = 15  # of the stabilised method, after FIRST_BLOCK plain steps
STATIONARY = 1e-9  # gradient norm of a polished minimum
RUNAWAY = 1e8  # times the starts' own size: no minimum is there
SAME_CENTER = 1e-6
LARGE_BLOCK = 16  # steps of the flow between two looks, above DENSE parameters
CLOSE = 0.02  # relative distance under which one point is searched for all
POLISHED = 64  # points polished at once


@dataclass(frozen=True)
class Runaway:
    """A point whose gradient flow runs away: the loss has no lower bound there.

    Attributes
    ----------
    point
        Its row among the points given.
    distance
        |x| where it was given up; NaN if it had left the finite numbers by then.
    """

    point: int
    distance: float

    def __str__(self) -> str:
        if np.isnan(self.distance):
            return f"point {self.point} (to numbers that are not finite)"
        return f"point {self.point} (past |x| = {self.distance:.2g})"


@dataclass(frozen=True, eq=False)
class Quench:
    """Where points flow to.

    Attributes
    ----------
    labels
        (n,) index into `attractors`, or UNDECIDED where no isolated minimum was reached.
    attractors
        All attractors known now (those given first, in their order).
    runaways
        Those of the UNDECIDED that were seen to run away.
    """

    labels: np.ndarray
    attractors: Attractors
    runaways: tuple[Runaway, ...] = ()


def quench(
    loss: StochasticLoss,
    points: ArrayLike,
    attractors: Attractors | None = None,
    max_steps: int = MAX_STEPS,
    threads: int | None = None,
    progress: Progress | None = None,
    farthest: float | None = None,
) -> Quench:
    """Follow gradient flow from each of `points` (n, d) to its minimum.

    Parameters
    ----------
    attractors
        Known ones; new ones are added to them.
    max_steps
        Runge-Kutta steps after which a point is left UNDECIDED (flat directions, say).
    threads
        For the flow; by default one per core.
    farthest
        Coordinates beyond which a point counts as run away; by default 1e8 times the points' own
        size.

    Returns
    -------
    Quench
        Points from which the flow runs away linearly or faster (a loss without lower bound) are
        UNDECIDED and named in `runaways`. Where the loss falls so steeply that the flow's steps
        shrink, points are UNDECIDED only.

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
    labels, h = np.full(len(x), UNDECIDED), np.full(len(x), FIRST_STEP)
    open_ = np.arange(len(x))
    limit = farthest_from(x) if farthest is None else farthest
    done, block = 0, FIRST_BLOCK
    runaways: list[Runaway] = []
    while open_.size and done < max_steps:
        stages = VALLEY_STAGES if done else 3
        flow = _flow(loss, x[open_], h[open_], block, known, threads, stages)
        x[open_], h[open_], labels[open_] = flow.points, flow.steps, flow.labels
        # NaN counts, too: the flow's error control stops short of infinity.
        gone = open_[~within(x[open_], limit)]
        labels[gone] = UNDECIDED
        runaways += [Runaway(int(k), float(np.linalg.norm(x[k]))) for k in gone]
        open_ = np.setdiff1d(open_[labels[open_] == UNDECIDED], gone)
        if open_.size and done > 0:
            known = _search(loss, x[open_], known)
        # Later rounds are longer: what is still on its way creeps along a flat valley.
        done, block = done + block, done + block
        if progress is not None:
            progress(len(x) - open_.size, len(x))
    return Quench(labels, known, tuple(sorted(runaways, key=lambda r: r.point)))


def farthest_from(x: np.ndarray) -> float:
    """Size of a coordinate beyond which what began at the points `x` counts as run away."""
    return RUNAWAY * (1.0 + float(np.abs(x).max(initial=0.0)))


def several(rows: Sequence[object]) -> str:
    """The first three of `rows` by name, and how many more."""
    named = ", ".join(str(r) for r in rows[:3])
    return named if len(rows) <= 3 else f"{named} and {len(rows) - 3} more"


def reach(
    loss: StochasticLoss,
    points: np.ndarray,
    known: Attractors,
    homes: ArrayLike,
    threads: int | None = None,
) -> Quench:
    """`quench` for points most of which are expected in the basins of the attractors `homes`.

    Most settle there within a few steps, which is tried first: fewer regions to look at make each
    step cheaper. The rest get the full quench.
    """
    labels, x = settle(loss, points, known, homes, threads)
    rows = np.flatnonzero(labels == UNDECIDED)
    if rows.size:
        far = farthest_from(np.asarray(points))
        rest = quench(loss, x[rows], known, threads=threads, farthest=far)
        labels[rows], known = rest.labels, rest.attractors
        gone = tuple(replace(r, point=int(rows[r.point])) for r in rest.runaways)
        return Quench(labels, known, gone)
    return Quench(labels, known)


def settle(
    loss: StochasticLoss,
    points: np.ndarray,
    known: Attractors,
    homes: ArrayLike,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(labels (n,), where the points have flowed to (n, d)): which soon enter the region of a home.

    The others are left UNDECIDED, on their way. What a point does depends on no other one.
    """
    x, own = np.array(points, dtype=np.float64), np.atleast_1d(np.asarray(homes, dtype=int))
    labels, rows, h = np.full(len(x), UNDECIDED), np.arange(len(x)), np.full(len(x), FIRST_STEP)
    home = known.take(own)
    small = np.abs(x).max(axis=1, initial=0.0) <= FLOAT32_SIZE
    for stages, block in ((3, FIRST_BLOCK), (VALLEY_STAGES, HOME_BLOCK)) if own.size else ():
        for precision, part in (("float32", rows[small[rows]]), ("float64", rows[~small[rows]])):
            flow = _flow(loss, x[part], h[part], block, home, threads, stages, precision)
            x[part], h[part] = flow.points, flow.steps
            settled = flow.labels >= 0
            labels[part[settled]] = own[flow.labels[settled]]
        rows = rows[labels[rows] == UNDECIDED]
    return labels, x


def _flow(
    loss: StochasticLoss,
    x: np.ndarray,
    h: np.ndarray,
    steps: int,
    known: Attractors,
    threads: int | None,
    stages: int,
    precision: str = "float64",
) -> Flow:
    how: Any = {"threads": threads, "stages": stages, "precision": precision}
    if loss.dim <= DENSE:
        regions = Regions(known.centers, known.roots, known.radii)
        return gradient_flow(loss, x, regions, steps, FLOW_TOLERANCE, h, **how)
    # No matrices of regions: points are looked at between stretches of the flow.
    x, h, labels = x.copy(), h.copy(), known.labels(x)
    for _ in range(0, steps, LARGE_BLOCK):
        rows = np.flatnonzero(labels == UNDECIDED)
        if not rows.size:
            break
        block = min(LARGE_BLOCK, steps)
        part = gradient_flow(loss, x[rows], None, block, FLOW_TOLERANCE, h[rows], **how)
        x[rows], h[rows], labels[rows] = part.points, part.steps, known.labels(part.points)
    return Flow(x, labels, h)


def _pad(a: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([a, np.repeat(a[:1], size - len(a), axis=0)])


def _search(loss: StochasticLoss, x: np.ndarray, known: Attractors) -> Attractors:
    """`known` with the minima that Newton's method reaches from `x` (n, d).

    Of points close together one is enough: the flow finds whether the others end there too.
    """
    ends = polish(loss, x[_apart(x)])
    for end in ends[np.isfinite(ends).all(axis=1)]:
        distances = np.linalg.norm(known.centers - end, axis=1)
        if not len(known) or distances.min() > SAME_CENTER:
            known = add_attractor(loss, known, end)
    return known


def _apart(x: np.ndarray) -> list[int]:
    """Rows of x (n, d) none of which lies within `CLOSE` (1 + norm) of another."""
    rows: list[int] = []
    for i, point in enumerate(x):
        near = CLOSE * (1.0 + float(np.linalg.norm(point)))
        if not rows or np.linalg.norm(x[rows] - point, axis=1).min() > near:
            rows.append(i)
    return rows


def polish(loss: StochasticLoss, x: np.ndarray, iterations: int = 12) -> np.ndarray:
    """Newton's method from each of `x` (n, d); rows that reach no minimum become NaN."""
    if loss.dim > DENSE:
        return np.array([newton_krylov(loss, point) for point in x]).reshape(x.shape)
    out = np.empty_like(x)
    for first in range(0, len(x), POLISHED):
        part = x[first : first + POLISHED]
        # Two compiled shapes instead of one per number of points.
        size = POLISHED if len(part) > POLISHED // 8 else POLISHED // 8
        found = _polisher(loss, iterations)(_pad(part, size))
        ends, norms, lowest = (np.array(a)[: len(part)] for a in found)
        ends[~((norms < STATIONARY) & (lowest > FLAT))] = np.nan
        out[first : first + len(part)] = ends
    return out


def newton_krylov(loss: StochasticLoss, x: np.ndarray) -> np.ndarray:
    """Truncated Newton from x (d,) by Hessian-vector products alone; NaN if it ends at no minimum."""
    from scipy.optimize import minimize

    found = minimize(
        lambda y: float(mean_at(loss)(y)),
        x,
        jac=lambda y: np.asarray(gradient_at(loss)(y)),
        hessp=lambda y, v: hessian_operator(loss, y) @ v,
        method="trust-ncg",
        options={"gtol": STATIONARY / 2, "maxiter": 200},
    )
    end = np.asarray(found.x)
    # Differences of F drown in rounding before the gradient does: a few steps without looking at F.
    for _ in range(5):
        slope = np.asarray(gradient_at(loss)(end))
        if not np.linalg.norm(slope) >= STATIONARY:
            break
        end = end - minres(hessian_operator(loss, end), slope, rtol=1e-8)[0]
    if not np.linalg.norm(np.asarray(gradient_at(loss)(end))) < STATIONARY:
        return np.full_like(x, np.nan)
    values, _ = spectrum_ends(loss, end)
    return end if values[0] > FLAT * values[-1] else np.full_like(x, np.nan)


@lru_cache(maxsize=32)
def _polisher(loss: StochasticLoss, iterations: int) -> Callable[[Array], Any]:
    def newton(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, _, left = state
        move = jnp.linalg.solve(loss.hessian(x), loss.gradient(x))
        # A step longer than the point's own size is no longer local: shorten it.
        longest, length = 0.3 * (1.0 + jnp.linalg.norm(x)), jnp.linalg.norm(move)
        return x - move * jnp.minimum(1.0, longest / (length + 1e-300)), length, left - 1

    def going(state: tuple[Array, Array, Array]) -> Array:
        x, length, left = state
        # Written so that NaN stops.
        return (left > 0) & (length > 1e-14 * (1.0 + jnp.linalg.norm(x)))

    def one(x: Array) -> Any:
        x, _, _ = jax.lax.while_loop(going, newton, (x, jnp.inf, jnp.asarray(iterations)))
        values = jnp.linalg.eigvalsh(loss.hessian(x))
        return x, jnp.linalg.norm(loss.gradient(x)), values[0] / jnp.max(jnp.abs(values))

    return serial(jax.jit(jax.vmap(one)))


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
    threads: int | None = None

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Attractor index (or UNDECIDED) of each of `points` (n, d): (n,)."""
        result = reach(self.loss, points, self.attractors, self.own, self.threads)
        self.attractors = result.attractors
        return result.labels

    def settle(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `settle`, for the basin where most are expected: cheapest for many points at once."""
        return settle(self.loss, points, self.attractors, self.own, self.threads)

    def finish(self, flowed: np.ndarray) -> np.ndarray:
        """Labels (n,) of points that `settle` left UNDECIDED, from where they have flowed to."""
        result = quench(self.loss, flowed, self.attractors, threads=self.threads)
        self.attractors = result.attractors
        return result.labels


def basin(
    loss: StochasticLoss, attractors: Attractors, own: int, threads: int | None = None
) -> Domain:
    """The basin of attraction of ``attractors.centers[own]`` as a domain to leave.

    Its `labels` are a `BasinMap`, to be asked from one thread at a time.

    Parameters
    ----------
    attractors
        The minima that descent of F reaches, as `quench` finds them.
    own
        Index of the one whose basin it is.

    Examples
    --------
    >>> from batchwell import additive
    >>> well = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4)
    >>> right = basin(well, quench(well, [[0.5], [-0.5]]).attractors, own=0)
    >>> right.contains([[0.01], [-0.01], [3.0]]).tolist()
    [True, False, True]
    """
    require(0 <= own < len(attractors), "own", own, f"must be below {len(attractors)}")
    labels = BasinMap(loss, attractors, own, threads)
    return Domain(f"basin of minimum {own}", loss.dim, labels=labels, label=own)
