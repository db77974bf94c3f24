"""Scores: how far along its way out a point is, for splitting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .._jax import jnp
from ..action import Instanton
from ..domain import Domain
from ..dynamics import Process
from ..errors import BatchwellError
from .channels import channels

Array = Any
Score = Callable[[Array], Array]


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
