"""Scores: how far along its way out a point is, for splitting.

The best score is the committor, the chance of getting out before coming back (Cerou, Guyader,
Del Moral & Malrieu, "Fluctuations of rare event simulation with particles" (2006), and the
review by Brehier et al., Ann. Appl. Probab. 26 (2016)); any error in it costs variance, not bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.linalg import eigh, solve_continuous_lyapunov

from .._jax import jax, jnp
from ..action import Instanton
from ..domain import Domain
from ..dynamics import SGD, Diffusion, Process, diffusion_approximation
from ..ensemble import Score, Table
from ..errors import BatchwellError, InputError, require
from ..law import committor_values, generator, interval
from ..law.reach import find_bounds
from .channels import Channel, channels
from .regime import flow
from .work import sums_over_many

Array = Any
# Cells of the committor's grid per direction, by dimension.
CELLS = {1: 512, 2: 80, 3: 32}
# Squared radius of the core in units of the stationary covariance.
CORE_RADIUS = 0.5


class NoWayOut(InputError):
    """A domain without boundary: no score grows towards it."""


def default_score(process: Process, minimum: np.ndarray, domain: Domain) -> Score:
    """The committor's logarithm where a grid can hold it, else `quadratic_score` or `action_score`.

    The same question gets the same object, so that code compiled for it is found again.
    """
    return _default_score(process, tuple(minimum.tolist()), domain)


@lru_cache(maxsize=32)
def _default_score(process: Process, at: tuple[float, ...], domain: Domain) -> Score:
    minimum = np.array(at)
    rounded = quadratic_score(process, minimum, domain)
    if rounded is not None and (
        len(minimum) > 3 or (len(minimum) == 3 and sums_over_many(process))
    ):
        return rounded
    if len(minimum) in CELLS:
        try:
            return committor_score(process, minimum, domain)
        except NoWayOut:
            raise
        except BatchwellError:  # unbounded, singular or too fine for the grid
            pass
    return action_score(process, minimum, domain)


def quadratic_score(process: Process, minimum: np.ndarray, domain: Domain) -> Score | None:
    """How far towards the boundary, and how unlikely, in quadratic approximation; 1 where they meet.

    The mean of the distance in the metric of the level function's Hessian and of that of the
    linearised stationary law. None unless the minimum is also one of the level function, as for a
    sublevel set of the loss.
    """
    level, point = domain.level, jnp.asarray(minimum)
    assert level is not None
    bend = np.asarray(jax.hessian(level)(point))
    slope, depth = np.asarray(jax.grad(level)(point)), -float(level(point))
    if not np.all(np.isfinite(bend)) or np.linalg.eigvalsh(bend)[0] <= 0:
        return None
    if np.linalg.norm(slope) * np.sqrt(2 * depth / np.linalg.eigvalsh(bend)[0]) > 0.05 * depth:
        return None
    own = diffusion_approximation(process) if isinstance(process, SGD) else process
    precision = np.linalg.inv(_covariance(own, minimum))
    # The most likely point of {x : x.bend x = 2 depth} has x.precision x = 2 depth times this.
    least = float(eigh(precision, bend, eigvals_only=True)[0])
    by_level, by_law = jnp.asarray(bend / (2 * depth)), jnp.asarray(precision / (2 * depth * least))

    def score(x: Array) -> Array:
        y = x - point
        return 0.5 * (jnp.sqrt(y @ by_level @ y) + jnp.sqrt(y @ by_law @ y))

    return score


def committor_score(process: Process, minimum: np.ndarray, domain: Domain) -> Table:
    """Log of the committor between a core and the outside, of the diffusion on a coarse grid.

    SGD gets the committor of its diffusion of order 1.

    Raises
    ------
    InputError
        More than 3 dimensions, an unbounded domain, or noise that is singular inside of it.
    """
    own = diffusion_approximation(process) if isinstance(process, SGD) else process
    if len(minimum) == 1:
        return _on_the_line(own, float(minimum[0]), domain)
    inside = core_function(own, minimum)
    bounds = _bounds(process, own, minimum, domain)
    names = ("core", "outside", "cut")
    ring, labels = _ring(domain, inside, bounds)
    op = generator(own, ring, CELLS[len(minimum)], bounds=bounds.tolist(), parts=(names, labels))
    return _tabulated(op.nodes, committor_values(op, "outside"), bounds, domain)


def core_function(own: Diffusion, minimum: np.ndarray) -> Callable[[Array], Array]:
    """Negative in an ellipsoid of the linearised stationary law around the minimum."""
    precision = jnp.asarray(np.linalg.inv(_covariance(own, minimum)))
    middle = jnp.asarray(minimum)
    return lambda x: (x - middle) @ precision @ (x - middle) - CORE_RADIUS


def _covariance(own: Diffusion, minimum: np.ndarray) -> np.ndarray:
    point = jnp.asarray(minimum)
    slope = np.asarray(jax.jacfwd(own.drift)(point))
    return np.asarray(solve_continuous_lyapunov(slope, -np.asarray(own.tensor(point))))


def _bounds(process: Process, own: Diffusion, minimum: np.ndarray, domain: Domain) -> np.ndarray:
    """Corners of a box (2, d) around the domain, or around its ways out where it is unbounded."""
    try:
        return np.asarray(find_bounds(domain))
    except InputError:
        ways = channels(process, minimum, domain)
        beyond = [_landing(process, w, domain) for w in ways if w.saddle is not None]
        points = np.concatenate([*[w.path.path for w in ways], *beyond])
    reach = 5 * np.sqrt(np.diag(_covariance(own, minimum)))
    ends = np.concatenate([points, minimum[None]])
    return np.stack([ends.min(axis=0) - reach, ends.max(axis=0) + reach])


def _landing(process: Process, way: Channel, domain: Domain) -> np.ndarray:
    """Where the noiseless flow past a way's saddle leaves the domain or rests: (1, d)."""
    ahead = way.path.end - way.path.path[-8]
    start = way.path.end + 0.02 * ahead * np.linalg.norm(way.path.path[0] - way.path.end) / (
        np.linalg.norm(ahead) + 1e-300
    )
    return flow(process, start, domain)[1][None]


def _ring(
    domain: Domain, inside: Callable[[Array], Array], bounds: np.ndarray
) -> tuple[Domain, Callable[[np.ndarray], np.ndarray]]:
    """The domain without the core, within the box, and which part a boundary point lies on."""
    level = domain.level
    assert level is not None
    low, high = jnp.asarray(bounds)
    edge = lambda x: jnp.max(jnp.maximum(low - x, x - high))  # noqa: E731
    ring = Domain(
        "ring", domain.dim, lambda x: jnp.maximum(jnp.maximum(level(x), edge(x)), -inside(x))
    )
    values = jax.jit(
        jax.vmap(lambda x: jnp.stack([jnp.abs(inside(x)), jnp.abs(level(x)), jnp.abs(edge(x))]))
    )
    # The part whose function is nearest to 0.
    return ring, lambda points: np.argmin(np.asarray(values(jnp.asarray(points))), axis=1)


def _tabulated(nodes: np.ndarray, chances: np.ndarray, bounds: np.ndarray, domain: Domain) -> Table:
    """The logarithm of chances at the nodes of a grid; 0 outside, lowest in the core."""
    axes = [np.unique(np.round(column, 12)) for column in nodes.T]
    step = np.array([np.diff(a).min() for a in axes])
    shape = np.round((bounds[1] - bounds[0]) / step).astype(int) + 1
    corners = np.stack(np.meshgrid(*[np.arange(m) for m in shape], indexing="ij"), axis=-1)
    points = bounds[0] + corners * step
    require(bool(np.any(chances > 0)), "domain", domain.name, "has no boundary on the grid")
    logs = np.log(np.maximum(chances, 1e-290))
    lowest = logs[logs > -600].min()
    values = np.where(domain.contains(points.reshape(-1, len(step))), lowest, 0.0).reshape(shape)
    place = tuple(np.round((nodes - bounds[0]) / step).astype(int).T)
    values[place] = np.maximum(logs, lowest)
    return Table(bounds[0], step, values)


def _on_the_line(own: Diffusion, minimum: float, domain: Domain) -> Table:
    """One dimension: the committor is a quotient of integrals of exp(-2 integral b / a)."""
    ends = interval(own, domain, (minimum,))
    core = math.sqrt(CORE_RADIUS * float(_covariance(own, np.array([minimum]))[0, 0]))
    x = np.linspace(ends.lower, ends.upper, CELLS[1])
    drift, tensor = (
        np.asarray(jax.vmap(f)(jnp.asarray(x[:, None]))).reshape(len(x))
        for f in (own.drift, own.tensor)
    )
    slope = -2 * drift / tensor
    step = x[1] - x[0]
    height = np.concatenate([[0.0], np.cumsum(0.5 * (slope[1:] + slope[:-1]) * step)])
    values = np.full(len(x), -np.inf)
    for side, is_open in ((1, ends.open_upper), (-1, ends.open_lower)):
        part = np.flatnonzero(side * (x - minimum) > core)[::side]
        if is_open or len(part) < 2:
            continue
        grown = np.logaddexp.accumulate(height[part])
        values[part] = grown - grown[-1]
    reached = values[np.isfinite(values)]
    if not reached.size:
        raise NoWayOut("domain", domain.name, "must have a boundary that a path can reach")
    lowest = reached.min()
    return Table(x[:1], np.array([step]), np.maximum(values, lowest))


def action_score(process: Process, minimum: np.ndarray, domain: Domain) -> Score:
    """Action spent on the way out, read off at the nearest point of the most likely paths.

    Past the last point of a path the score keeps growing, so that levels beyond a saddle stay
    distinct. Where no path can be found the score is the distance from the minimum.
    """
    try:
        ways = channels(process, minimum, domain)
    except BatchwellError:
        centre = jnp.asarray(minimum)
        return lambda x: jnp.linalg.norm(x - centre)
    best = [w.path for w in ways if w.path.exponent < ways[0].path.exponent + 3]
    return score_along(minimum, best)


def score_along(minimum: np.ndarray, paths: list[Instanton]) -> Score:
    """Score from the action spent along given instantons, 0 at the minimum and 1 at their ends."""
    tables = [_table(minimum, path) for path in paths]

    def score(x: Array) -> Array:
        return jnp.max(jnp.stack([_along(x, *table) for table in tables]))

    return score


def _table(minimum: np.ndarray, path: Instanton) -> tuple[Array, Array, Array]:
    """Points (m, d), spent action over the total (m,), and squared widths (m,)."""
    points = np.concatenate([minimum[None], path.path[8::8], path.end[None]])
    steps = np.diff(points, axis=0)
    theta = np.concatenate([np.zeros((1, len(minimum))), path.theta[8::8], path.theta[-1:]])
    gained = np.sum(0.5 * (theta[1:] + theta[:-1]) * steps, axis=1)
    spent = np.concatenate([[0.0], np.cumsum(np.maximum(gained, 0.0))])
    # Near a saddle the action is flat: a small part of plain length keeps the score growing.
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(steps, axis=1))])
    spent = 0.9 * np.sqrt(spent / spent[-1]) + 0.1 * length / length[-1]
    return jnp.asarray(points), jnp.asarray(spent), jnp.asarray(points[-1] - points[-2])


def _along(x: Array, points: Array, spent: Array, last: Array) -> Array:
    """Score at the nearest point of the broken line through `points`, or past its end."""
    a, b = points[:-1], points[1:]
    edge = b - a
    share = jnp.sum((x - a) * edge, axis=1) / jnp.sum(edge**2, axis=1)
    inside = jnp.clip(share, 0.0, 1.0)
    gap = jnp.sum((x - a - inside[:, None] * edge) ** 2, axis=1)
    k = jnp.argmin(gap)
    here = spent[k] + inside[k] * (spent[k + 1] - spent[k])
    beyond = jnp.dot(x - points[-1], last) / jnp.linalg.norm(points[-1] - points[0])
    beyond = beyond / jnp.linalg.norm(last)
    return jnp.where((k == share.shape[0] - 1) & (share[-1] > 1), 1.0 + beyond, here)
