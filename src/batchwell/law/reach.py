"""Boxes that hold a domain, or all that SGD with bounded noise can come to within some steps."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..domain import Domain
from ..dynamics import SGD
from ..errors import InputError, require
from .fields import evaluate
from .kernel import AtomKernel, kernel

Floats = NDArray[np.float64]

SAMPLES = 513
FARTHEST = 1e4
CLOSING_STEPS = 3000
ROOM = 3.0  # samples between what was found of a domain and the box around it


def reachable_interval(sgd: SGD, start: float, steps: int) -> tuple[float, float] | None:
    """An interval that holds SGD with atoms for `steps` steps from `start` (1-D), else None.

    Found by stepping its ends: all images of a fine sample of the interval, with a margin
    of two sample distances on either side.
    """
    step = kernel(sgd)
    if not isinstance(step, AtomKernel):
        return None
    low = high = float(start)
    # Further steps than asked for: the set then closes, and no mass crosses its ends.
    for k in range(steps + CLOSING_STEPS):
        x = np.linspace(low, high, SAMPLES)
        to = step.images(x[:, None])[:, :, 0]
        a, b = min(low, float(to.min())), max(high, float(to.max()))
        if not (math.isfinite(a) and math.isfinite(b) and b - a < FARTHEST):
            if k > steps:
                break
            raise InputError(
                "learning_rate",
                sgd.learning_rate,
                f"lets SGD run away within {steps} steps from the start: lower it",
            )
        if low - a < 1e-9 * (b - a) and b - high < 1e-9 * (b - a):
            break
        low, high = a, b
    margin = 2 * (high - low) / SAMPLES + 1e-9
    return low - margin, high + margin


def reachable_box(sgd: SGD, start: ArrayLike, steps: int, spread: float = 8.0) -> Floats:
    """A box ((lower), (upper)) around the law of 2-D SGD from `start` up to `steps` steps.

    Gradient descent's path, widened by `spread` standard deviations of the noise gathered along it
    (linearised).
    """
    from .fields import evaluate

    x = np.asarray(start, dtype=np.float64)
    d = len(x)
    covariance = np.zeros((d, d))
    low, high = x.copy(), x.copy()
    eta = sgd.learning_rate
    for _ in range(steps):
        point = x[None]
        step = np.eye(d) - eta * evaluate(sgd.loss, "hessian", point)[0]
        noise = evaluate(sgd.loss, "covariance", point)[0]
        covariance = step @ covariance @ step.T + eta**2 * sgd.batch_factor * noise
        x = x - eta * evaluate(sgd.loss, "gradient", point)[0]
        half = spread * np.sqrt(np.diag(covariance))
        low, high = np.minimum(low, x - half), np.maximum(high, x + half)
    pad = 0.05 * (high - low) + 1e-6
    return np.stack([low - pad, high + pad])


def find_bounds(domain: Domain) -> Floats:
    """Two corners of a box around a bounded `domain`, found on grids that zoom in.

    Raises
    ------
    InputError
        Nothing of the domain was found, or it goes on beyond |x| = 100.
    """
    d = domain.dim
    low, high = np.full(d, -100.0), np.full(d, 100.0)
    count = 401 if d <= 2 else 101
    for _ in range(24):
        axes = [np.linspace(a, b, count) for a, b in zip(low, high, strict=True)]
        points = np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=1)
        kept = points[evaluate(domain, "level", points) < 0]
        if not len(kept) and high[0] > 1e-2:
            low, high = low / 5, high / 5
            continue
        require(len(kept) > 0, "domain", domain.name, "was not found: give bounds")
        # A corner reaches beyond the last sample that is inside: leave room, and look again.
        room = ROOM * (high - low) / (count - 1)
        new = kept.min(0) - room, kept.max(0) + room
        require(
            bool(np.all(new[0] > -99) and np.all(new[1] < 99)),
            "domain",
            domain.name,
            "is not bounded: give bounds, or cut it with a box",
        )
        done = np.all(np.abs(new[0] - low) + np.abs(new[1] - high) <= 2 * room)
        low, high = new
        if done:
            break
    return np.stack([low, high])
