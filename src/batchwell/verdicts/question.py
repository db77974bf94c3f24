"""`validity`: the numbers gathered and judged."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..domain import Domain
from ..dynamics import SGD, need_sgd
from ..errors import require
from ..points import point
from .base import NUMBERS, Validity
from .escapes import escape_numbers, has_boundary, rays_out
from .judges import JUDGES, NOISELESS, judge_short
from .kesten import kesten
from .linear import linearise, stability, variances

Floats = NDArray[np.float64]


def validity(
    sgd: SGD, region: Domain | ArrayLike, minimum: ArrayLike | None = None, seed: int = 0
) -> Validity:
    """Verdicts on the diffusion approximation of `sgd` around a minimum.

    Parameters
    ----------
    sgd
        Any `SGD`. Momentum is taken at its effective learning rate eta / (1 - mu).
    region
        The minimum itself (d,): rays go out to four standard deviations of the linearised
        stationary law; or a `Domain` around it (rays go to its boundary; a basin is sampled
        like a point).
    minimum
        The minimum (d,), needed with a `Domain`.
    seed
        Seed of the random rays.

    Returns
    -------
    A `Validity`; ``to_dict()`` is JSON-safe.

    Raises
    ------
    InputError
        The point is not a minimum to within the noise (indefinite Hessian), or shapes differ.

    References
    ----------
    Li, Malladi & Arora, arXiv:2102.12470, section 5, for noise against gradient; Gurbuzbalaban,
    Simsekli & Zhu (ICML 2021), for tails.

    Examples
    --------
    >>> import numpy as np
    >>> from batchwell import SGD, additive, ball
    >>> well = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4, "rademacher", scale=0.7)
    >>> out = validity(SGD(well, 0.01), ball([-1.0], 1.0), minimum=[-1.0])
    >>> out["stationary_variance"].trust, out["escapes"].trust
    ('yes', 'no')
    >>> round(out.numbers["exponent_ratio"], 3)
    1.178
    """
    centre = _centre(sgd, region, minimum)
    linear, notes = linearise(sgd, centre)
    numbers = {key: math.nan for key in NUMBERS}
    numbers.update(stability(linear))
    covariance, ratios = variances(linear)
    numbers.update(ratios)
    numbers.update(kesten(sgd, linear, seed))
    if linear.silent:
        return Validity((judge_short(sgd, numbers), *NOISELESS), numbers, notes)
    if covariance is not None:
        power = float(np.trace(linear.squared(covariance)))
        batch_noise = linear.factor * linear.noise + linear.multiplicative(covariance)
        noise = float(np.trace(batch_noise))
        numbers["noise_over_gradient_power"] = noise / power if power > 0 else math.nan
    rays, ray_notes = rays_out(sgd, region, centre, linear, seed)
    numbers.update(escape_numbers(sgd, rays))
    numbers["boundary_known"] = float(has_boundary(region))
    verdicts = tuple(judge(sgd, numbers) for judge in JUDGES.values())
    return Validity(verdicts, numbers, (*notes, *ray_notes))


def _centre(sgd: SGD, region: Any, minimum: Any) -> Floats:
    if isinstance(region, Domain):
        dim = need_sgd(sgd).loss.dim
        require(
            region.dim == dim, "region", f"dimension {region.dim}", f"must have dimension {dim}"
        )
        require(minimum is not None, "minimum", minimum, "must be given with a domain")
    return point("minimum", region if minimum is None else minimum, need_sgd(sgd).loss.dim)
