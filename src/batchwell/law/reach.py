"""Where SGD with bounded noise can go within some steps: sets that surely hold its law."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..dynamics import SGD
from ..errors import InputError
from .kernel import AtomKernel, kernel

Floats = NDArray[np.float64]

SAMPLES = 513
FARTHEST = 1e4
CLOSING_STEPS = 3000


def reachable_interval(sgd: SGD, x0: float, steps: int) -> tuple[float, float] | None:
    """An interval that holds SGD with atoms for `steps` steps from x0 (1-D), else None.

    Found by stepping its ends: all images of a fine sample of the interval, with a margin
    of two sample distances on either side.
    """
    step = kernel(sgd)
    if not isinstance(step, AtomKernel):
        return None
    low = high = float(x0)
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
                f"lets SGD run away within {steps} steps from x0: lower it",
            )
        if low - a < 1e-9 * (b - a) and b - high < 1e-9 * (b - a):
            break
        low, high = a, b
    margin = 2 * (high - low) / SAMPLES + 1e-9
    return low - margin, high + margin


def reachable_box(sgd: SGD, x0: ArrayLike, steps: int, spread: float = 8.0) -> Floats:
    """A box ((lower), (upper)) around the law of 2-D SGD from x0 up to `steps` steps.

    Gradient descent's path, widened by `spread` standard deviations of the noise gathered along it
    (linearised).
    """
    from .fields import evaluate

    x = np.asarray(x0, dtype=np.float64)
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
