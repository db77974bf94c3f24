"""Where rare paths come out, and how often: splitting that keeps its ends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..domain import Domain
from ..dynamics import SGD
from ..ensemble import Score
from ..errors import whole
from .departures import core_of, departures, relaxation_steps
from .splitting import STREAM, launched, out_points, split


@dataclass(frozen=True, eq=False)
class Crossings:
    """Exits found by one replica.

    Attributes
    ----------
    rate
        Per SGD step; replicas' rates are independent and unbiased.
    points
        (m, d) where its paths came out, each of the same weight; none if all paths died.
    departed
        (particles, d) where its paths left the core around the minimum.
    """

    rate: float
    points: np.ndarray
    departed: np.ndarray


def crossings(
    sgd: SGD,
    minimum: ArrayLike,
    domain: Domain,
    score: Score,
    particles: int = 256,
    replicas: int = 8,
    seed: int = 0,
    threads: int | None = None,
) -> list[Crossings]:
    """Exits of SGD from `domain`, started at `minimum` (d,), by adaptive multilevel splitting.

    As `splitting.splitting`, for callers that ask where paths go on from where they came out.

    Raises
    ------
    InputError
        Too few particles or replicas, or a score that is not finite around the minimum.
    RunError
        Another minimum inside the domain holds paths back.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from batchwell import additive, half_space
    >>> sgd = SGD(additive(lambda x: (x @ x - 1) ** 2 / 4), learning_rate=0.2)
    >>> found = crossings(sgd, [-1.0], half_space([1.0], 0.0), lambda x: x[0], seed=1)
    >>> all((c.points >= 0).all() for c in found)
    True
    """
    whole("particles", particles, 32)
    whole("replicas", replicas, 2)
    start = np.asarray(minimum, dtype=float)
    relaxation = relaxation_steps(sgd, start)
    core = core_of(sgd, domain, start, score, seed, 1, relaxation, threads)
    timed = [departures(core, f"{STREAM}/{k}", particles) for k in range(replicas)]
    paths = launched(core, np.stack([points for _, points in timed]))
    split(core, paths, max(1, particles // 16))
    ends = out_points(core, paths)
    return [
        Crossings(float(paths.chance[k]) / time, ends[k], points)
        for k, (time, points) in enumerate(timed)
    ]
