"""The exact law of the exit from a saddle, where drift is linear and noise Gaussian."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..dynamics import SGD
from ..errors import require, whole
from ..law import transfer_operator
from ..loss import additive
from .outcome import SaddleExit

Floats = NDArray[np.float64]
# Survival below which the rest of the law is left out.
TAIL = 1e-12


def exact_survival(law: SaddleExit, most: int = 100_000) -> Floats:
    """Chance of still being inside after 0, 1, 2, ... steps of the linear Gaussian chain: (k,).

    The law of SGD's unstable coordinate, propagated by its transfer operator between the two ends:
    what `SaddleExit.survival`, a limit law of Gumbel's type, tends to for small learning rates.
    The sum of the entries is the mean exit time. A drift that is not linear enters by `SaddleExit.reach`.

    Raises
    ------
    InputError
        Not the law of a chain, or more than `most` steps.

    Examples
    --------
    Gaussian SGD at lambda = sigma = L = 1, eta = .1: 23.252648 steps.

    >>> from batchwell import SGD, additive, ball
    >>> from batchwell.saddles import saddle_exit
    >>> sgd = SGD(additive(lambda x: -(x @ x) / 2), learning_rate=0.1)
    >>> float(exact_survival(saddle_exit(sgd, [0.0], ball([0.0], 1.0))).sum().round(5))
    23.25265
    """
    require(law.chain, "law", law.method, "must be that of SGD and not of a diffusion")
    require(not law.times.size, "law", law.method, "must have a single unstable direction")
    most = whole("most", most)
    rate = math.expm1(law.log_growth)
    # y' = (1 + rate) y + noise, written as SGD of -y^2/2 at learning rate `rate`.
    size = law.seed_std * math.sqrt((1 + rate) ** 2 - 1)
    chain = SGD(additive(lambda y: -0.5 * (y @ y), scale=size / rate), rate)
    up, down = law.reach
    op = transfer_operator(chain, (-down, up), include=(law.offset,))
    row, _ = op.row(np.array([[law.offset]]))
    mass, out = np.asarray(row, dtype=np.float64)[0], [1.0]
    while mass.sum() > TAIL:
        out.append(float(mass.sum()))
        require(len(out) <= most, "most", most, "steps are too few for this law")
        mass = mass @ op.rates
    return np.array(out)


def exact_quantile(survival: Floats, level: ArrayLike) -> Floats:
    """Steps by which a share `level` of paths has left, same shape: the first such whole number."""
    levels = np.asarray(level, dtype=np.float64)
    steps = np.searchsorted(-survival, -(1 - levels), side="left")
    return np.asarray(steps, dtype=np.float64)
