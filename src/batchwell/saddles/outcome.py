"""The law of an exit from a saddle, as numbers: mean, variance, side, survival, quantiles."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..estimate import Estimate

Floats = NDArray[np.float64]
EULER_GAMMA = 0.5772156649015329


@dataclass(frozen=True)
class SaddleExit:
    """Law of the first exit from the neighbourhood of a saddle.

    Attributes
    ----------
    mean, variance
        Of the exit time, in SGD steps (steps squared).
    side
        Chance of leaving towards ``direction``.
    growth
        Growth rates per unit of time of the unstable coordinates, largest first.
    direction
        (d,) unit vector of the fastest unstable direction.
    distance
        Distance (d's units) to the boundary along +direction and -direction.
    reach
        The same for linear growth that takes as long as the noiseless motion on the unstable manifold
        does: what the curvature of the drift makes of `distance`. inf towards a side where that motion
        stays inside.
    seed_std
        Standard deviation of the Gaussian seed of the unstable coordinate.
    offset
        Start's unstable coordinate.
    log_growth
        Log of the growth factor per SGD step.
    shift
        Constant, in steps, added for discrete overshoot and for noise on the way.
    chain
        Whether it is the law of SGD and not of a diffusion.
    times
        (m,) where several directions grow, or one in a spiral: equally likely exit times in
        steps, sorted, over a quasi-random net of seeds. Empty for a single direction.
    method, notes
        How the numbers came about, and what they do not say.
    """

    mean: float
    variance: float
    side: float
    growth: Floats
    direction: Floats
    distance: tuple[float, float]
    reach: tuple[float, float]
    seed_std: float
    offset: float
    log_growth: float
    shift: float
    method: str
    notes: tuple[str, ...] = ()
    chain: bool = True
    times: Floats = field(default_factory=lambda: np.zeros(0), repr=False)

    def survival(self, steps: ArrayLike) -> Floats:
        """Chance of still being inside after `steps` SGD steps, same shape.

        The limit law for small noise, of ``log(L / |Z|) / log g`` with Z Gaussian: its upper tail is
        Gumbel's, ``P(T > t) ~ sqrt(2 / pi) (L / s) g^-t`` (Bakhtin, SPA 118 (2008)). For the exact
        one see `exact_survival`.
        """
        from scipy.stats import norm

        if self.times.size:
            left = np.searchsorted(self.times, np.asarray(steps, dtype=float), side="right")
            return np.asarray(1.0 - left / self.times.size)
        t = np.maximum(np.asarray(steps, dtype=float) - self.shift, 0.0)
        shrink = np.exp(-self.log_growth * t)
        up, down = (length * shrink for length in self.reach)
        s, m = self.seed_std, self.offset
        return np.asarray(norm.cdf((up - m) / s) - norm.cdf((-down - m) / s))

    def _longest(self) -> float:
        """Steps after which all have left who ever do: those whose seed is not below 1e-22."""
        length = max(r for r in self.reach if math.isfinite(r))
        return (50.0 + max(math.log(length / self.seed_std), 0.0)) / self.log_growth

    def quantile(self, level: ArrayLike) -> Floats:
        """Steps by which a share `level` of paths has left, same shape."""
        from scipy.optimize import brentq

        if self.times.size:
            return np.asarray(np.quantile(self.times, np.asarray(level, dtype=float)))

        def one(q: float) -> float:
            far = self.shift + self._longest()
            inside = lambda t: float(self.survival(t)) - (1 - q)  # noqa: E731
            if inside(far) > 0:
                return math.inf
            return float(brentq(inside, self.shift, far)) if inside(self.shift) > 0 else self.shift

        return np.vectorize(one, otypes=[float])(np.asarray(level, dtype=float))

    def estimate(self) -> Estimate:
        """The mean as an `Estimate` (no sampling error; the interval is the value itself)."""
        return Estimate(
            self.mean, math.nan, (self.mean, self.mean), "steps", self.method, 0, notes=self.notes
        )


def moments(law: SaddleExit) -> tuple[float, float, float]:
    """Mean, variance and side by quadrature over the Gaussian seed.

    Centred and symmetric they are ``(log(2 L^2 / s^2) + gamma) / (2 log g)``, ``pi^2 / (8 log^2 g)``
    and 1/2.
    """
    from scipy.stats import norm

    up, down = law.reach
    s, m, log_g = law.seed_std, law.offset, law.log_growth
    side = float(norm.sf(-m / s))
    if m == 0 and up == down:
        mean = 0.5 * (math.log(2 * up**2 / s**2) + EULER_GAMMA) / log_g
        return mean + law.shift, math.pi**2 / (8 * log_g**2), side
    # log|z| on either side: tanh-sinh in the seed's quantiles handles its singularity at 0.
    z, w = _folded_nodes(m / s)
    times = np.log(np.where(z > 0, up, down) / (s * np.abs(z))) / log_g
    times = np.maximum(times, 0.0)
    mean = float(w @ times)
    return mean + law.shift, float(w @ (times - mean) ** 2), side


def _folded_nodes(m: float) -> tuple[Floats, Floats]:
    """Nodes z and weights for N(m, 1), dense around the singularity at z = 0."""
    u = np.linspace(-45.0, math.log(abs(m) + 12.0), 20001)
    z = np.exp(u)
    weights = np.gradient(u) * z / math.sqrt(2 * math.pi)
    both = np.concatenate([z, -z])
    w = np.concatenate([weights, weights]) * np.exp(-0.5 * (both - m) ** 2)
    return both, w / w.sum()
