"""Escape from saddles: the whole law of exit time and side, with its constants.

Near a saddle the unstable coordinate of SGD or of its diffusion grows by a factor g per step from
a Gaussian seed, so the exit time is ``log(L / |Z|) / log g``: almost linear in the number
of steps, (1 / eta) log(1 / eta), where a minimum needs exponentially many. Its dependence on
batch size is ``log(B / eta) / (2 lambda eta)``.

Sources: Kifer, "The exit problem for small random perturbations of dynamical systems with a
hyperbolic fixed point" (Israel J. Math. 40, 1981); Bakhtin, "Exit asymptotics for small
diffusion about an unstable equilibrium" (SPA 118, 2008); Hu, Li, Li & Liu, arXiv:1705.07562, sec. 4;
overshoot of the chain: Siegmund, "Sequential Analysis" (1985), ch. 8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import logm
from scipy.special import ndtr

from .._jax import jax, jnp
from ..domain import Domain
from ..dynamics import SGD, Process, dimension
from ..errors import InputError, known_options, require
from ..estimate import Estimate
from ..points import point
from .degenerate import NO_NOISE, refuse, second_order_seed
from .index import exit_times, net_of_seeds, seed_covariance, still_to_come, unstable_part
from .simulated import direct

Floats = NDArray[np.float64]
# Growth rates below this count as zero: the saddle is degenerate.
FLAT = 1e-10
EULER_GAMMA = 0.5772156649015329
SECOND_ORDER = (
    "degenerate: no noise along the unstable direction to first order; its seed is taken as Gaussian "
    "with the mean and variance of second-order noise, good to a constant in the logarithm"
)


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
        up, down = (length * shrink for length in self.distance)
        s, m = self.seed_std, self.offset
        return np.asarray(norm.cdf((up - m) / s) - norm.cdf((-down - m) / s))

    def quantile(self, level: ArrayLike) -> Floats:
        """Steps by which a share `level` of paths has left, same shape."""
        from scipy.optimize import brentq

        if self.times.size:
            return np.asarray(np.quantile(self.times, np.asarray(level, dtype=float)))

        def one(q: float) -> float:
            far = self.shift + 50.0 / self.log_growth + self.mean * 4
            inside = lambda t: float(self.survival(t)) - (1 - q)  # noqa: E731
            return float(brentq(inside, self.shift, far)) if inside(self.shift) > 0 else self.shift

        return np.vectorize(one, otypes=[float])(np.asarray(level, dtype=float))

    def estimate(self) -> Estimate:
        """The mean as an `Estimate` (no sampling error; the interval is the value itself)."""
        return Estimate(
            self.mean, math.nan, (self.mean, self.mean), "steps", self.method, 0, notes=self.notes
        )


def saddle_exit(
    process: Process,
    saddle: ArrayLike,
    domain: Domain,
    *,
    start: ArrayLike | None = None,
    method: str = "law",
    **options: Any,
) -> SaddleExit | Estimate:
    """Exit from `domain` around a `saddle` (d,), started there or at `start`.

    Parameters
    ----------
    process
        SGD or a diffusion.
    saddle
        A zero of the drift with at least one unstable direction.
    domain
        With a level function; its distances along the fastest unstable direction count.
    start
        Off-centre start; the saddle itself by default.
    method
        "law" for the asymptotic law (`SaddleExit`), "direct" for simulation (`Estimate`),
        which nonlinear domains need.

    Raises
    ------
    InputError
        Not a saddle (says the drift's norm and offers the nearest one), or a bad domain.
    RunError
        No noise along the unstable direction (says the time that rounding alone needs).

    Examples
    --------
    >>> from batchwell import additive, ball
    >>> sgd = SGD(additive(lambda x: -(x @ x) / 2), learning_rate=0.02)
    >>> round(saddle_exit(sgd, [0.0], ball([0.0], 1.0)).mean, 1)  # exactly 149.226
    149.2
    """
    require(method in ("law", "direct"), "method", method, "must be law or direct")
    x = _check_saddle(process, saddle, domain, method)
    begin = x if start is None else point("start", start, len(x))
    require(bool(domain.contains(begin)), "start", begin, "must lie inside the domain")
    if method == "direct":
        known_options(options, direct)
        return direct(process, begin, domain, **options)
    for option in options:
        raise InputError(
            "option", option, "the law takes none: options are those of method='direct'"
        )
    return _law(process, x, begin, domain)


def _drift(process: Process) -> Any:
    if isinstance(process, SGD):
        gain = 1.0 / (1.0 - process.momentum)
        return lambda x: -gain * process.loss.gradient(x)
    return process.drift


def _noise(process: Process, x: np.ndarray) -> np.ndarray:
    """Noise tensor per unit of time (d, d) at x."""
    return np.asarray(_flow_and_noise(process)[1](jnp.asarray(x)))


def _flow_and_noise(process: Process) -> tuple[Any, Any]:
    """Drift (d,) and noise tensor (d, d) per unit of time, as functions of x."""
    if not isinstance(process, SGD):
        return process.drift, process.tensor
    scale = process.temperature / (1.0 - process.momentum) ** 2
    return _drift(process), lambda x: scale * process.loss.covariance(x)


def _check_saddle(process: Process, saddle: ArrayLike, domain: Domain, method: str) -> np.ndarray:
    dim = dimension(process)
    x = point("saddle", saddle, dim)
    require(domain.level is not None, "domain", domain.name, "must have a level function here")
    require(domain.dim == dim and bool(domain.contains(x)), "saddle", x, "must lie in the domain")
    drift = _drift(process)
    jacobian = np.asarray(jax.jacfwd(drift)(jnp.asarray(x)))
    size = float(np.linalg.norm(np.asarray(drift(jnp.asarray(x)))))
    if size > 1e-6 * (1 + np.abs(jacobian).max()):
        raise InputError(
            "saddle",
            x,
            f"is not a zero of the gradient: its norm is {size:.4g}" + _nearest(drift, x),
        )
    growth = np.linalg.eigvals(jacobian).real.max()
    if abs(growth) <= FLAT * (1 + np.abs(jacobian).max()):
        if method == "direct":
            return x
        raise InputError(
            "saddle",
            x,
            f"is degenerate (largest growth rate {growth:.3g}): no linear law holds around it; use "
            "method='direct', or mean_exit_time if it is a minimum",
        )
    require(
        growth > 0,
        "saddle",
        x,
        f"has no unstable direction (largest rate {growth:.4g}): "
        "it is a minimum; use mean_exit_time",
    )
    return x


def _nearest(drift: Any, x: np.ndarray) -> str:
    """A zero of the drift near x by Newton's method, in words."""
    jacobian = jax.jit(jax.jacfwd(drift))
    y = x.copy()
    for _ in range(50):
        a, b = np.asarray(jacobian(jnp.asarray(y))), np.asarray(drift(jnp.asarray(y)))
        y = y - np.linalg.lstsq(a, b, rcond=1e-12)[0]
    left = float(np.linalg.norm(np.asarray(drift(jnp.asarray(y)))))
    if not left < 1e-8:
        return "; no zero was found near it"
    unstable = int((np.linalg.eigvals(np.asarray(jacobian(jnp.asarray(y)))).real > 0).sum())
    kind = "a minimum" if unstable == 0 else f"a saddle of index {unstable}"
    return f"; the nearest zero found is {kind} at {np.array2string(y, precision=6)}"


def _law(process: Process, x: np.ndarray, begin: np.ndarray, domain: Domain) -> SaddleExit:
    jacobian = np.asarray(jax.jacfwd(_drift(process))(jnp.asarray(x)))
    rates, right = np.linalg.eig(jacobian)
    order = np.argsort(-rates.real)
    rates, right = rates[order], right[:, order]
    spiral = bool(abs(rates[0].imag) > 1e-9 * abs(rates[0]))
    unstable = rates[rates.real > 1e-12].real
    direction = np.array(right[:, 0].real)
    direction /= np.linalg.norm(direction)
    # Sign convention: the largest component points up, so that `side` has a meaning.
    direction *= np.sign(direction[np.argmax(np.abs(direction))])
    left = np.linalg.inv(np.column_stack([direction, right[:, 1:]]))[0].real
    noise = float(left @ _noise(process, x) @ left)
    lam, eta = float(unstable[0]), process.learning_rate
    distance = (_reach(domain, x, direction), _reach(domain, x, -direction))
    require(
        math.isfinite(min(distance)),
        "domain",
        domain.name,
        "must have a boundary along the unstable direction",
    )
    chain = isinstance(process, SGD)
    # Seed: x_k / g^k tends to start + N(0, s^2); the sum of the steps' noise is geometric.
    growth = 1 + eta * lam
    log_growth = math.log(growth) if chain else eta * lam
    variance = eta * noise / (growth**2 - 1) if chain else noise / (2 * lam)
    offset = float(left @ (begin - x))
    extra: tuple[str, ...] = ()
    if noise <= NO_NOISE * max(float(np.trace(_noise(process, x))), 1e-300):
        push, variance = second_order_seed(*_flow_and_noise(process), x, left, lam)
        if variance <= NO_NOISE**2:
            refuse(x, offset, min(distance), log_growth)
        offset, noise, extra = offset + push, 2 * lam * variance, (SECOND_ORDER,)
    seed_std = math.sqrt(variance)
    shift = _shift(chain, noise, lam, eta, distance, float(ndtr(offset / seed_std)))
    out = SaddleExit(
        math.nan,
        math.nan,
        math.nan,
        unstable,
        direction,
        distance,
        seed_std,
        offset,
        log_growth,
        shift,
        "asymptotic law of the exit from a saddle",
        (*extra, *_notes(process, unstable, noise, distance, lam, spiral)),
        chain,
    )
    if (spiral or len(unstable) > 1) and not extra:
        return _along_several(process, x, begin, domain, jacobian, out)
    mean, spread, side = _moments(out)
    return replace(out, mean=mean, variance=spread, side=side)


def _along_several(
    process: Process,
    x: np.ndarray,
    begin: np.ndarray,
    domain: Domain,
    jacobian: np.ndarray,
    law: SaddleExit,
) -> SaddleExit:
    """The law where more than one coordinate grows: an average over seeds."""
    eta, part = process.learning_rate, unstable_part(jacobian)
    covariance = seed_covariance(part, _noise(process, x), eta if law.chain else None)
    centre = part.dual @ (begin - x)
    seeds, flow = net_of_seeds(covariance, centre), part.flow
    if law.chain:  # x_k = x + (1 + eta A)^k Z
        flow = np.asarray(logm(np.eye(len(flow)) + eta * flow).real) / eta
    part = replace(part, flow=flow)
    times, points = exit_times(part, seeds, x, domain)
    times = times - still_to_come(part, covariance, points, x, domain)
    require(
        bool(np.all(np.isfinite(times))),
        "domain",
        domain.name,
        "must have a boundary along all unstable directions",
    )
    shift = _overshoot_steps(process, x, points, jacobian, domain) if law.chain else 0.0
    steps = np.sort(times / eta + shift)
    side = float(np.mean((points - x) @ law.direction > 0))
    return replace(
        law,
        mean=float(steps.mean()),
        variance=float(steps.var()),
        side=side,
        shift=shift,
        times=steps,
        method=f"{law.method}, averaged over {len(steps)} seeds",
    )


def _overshoot_steps(
    process: Process, x: np.ndarray, points: np.ndarray, jacobian: np.ndarray, domain: Domain
) -> float:
    """Mean number of steps by which overshoot of the boundary delays what leaves at `points`."""
    assert domain.level is not None
    slopes = np.asarray(jax.vmap(jax.grad(domain.level))(jnp.asarray(points[:: len(points) // 64])))
    normals = slopes / np.linalg.norm(slopes, axis=1, keepdims=True)
    eta, noise = process.learning_rate, _noise(process, x)
    speeds = np.einsum("mi,mi->m", normals, (points[:: len(points) // 64] - x) @ jacobian.T)
    sizes = np.sqrt(eta * np.einsum("mi,ij,mj->m", normals, noise, normals))
    paces = eta * np.maximum(speeds, 1e-3 * np.abs(speeds).max()) / sizes
    return float(np.mean([mean_overshoot(p) / p for p in paces]))


def _moments(law: SaddleExit) -> tuple[float, float, float]:
    """Mean, variance and side by quadrature over the Gaussian seed.

    Centred and symmetric they are ``(log(2 L^2 / s^2) + gamma) / (2 log g)``, ``pi^2 / (8 log^2 g)``
    and 1/2.
    """
    from scipy.stats import norm

    up, down = law.distance
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


def _shift(
    chain: bool, noise: float, lam: float, eta: float, distance: tuple[float, float], up: float
) -> float:
    """Constant of the mean, in steps: noise on the way out, and the chain's overshoot.

    A random walk that moves ``eta lambda L`` a step with noise passes its goal by the mean of
    its limiting overshoot (Siegmund 1985, ch. 8, for Gaussian steps), which takes
    ``overshoot / (eta lambda L)`` steps more than reaching it would. `up` is the chance of the first
    of the two distances.
    """
    return sum(
        chance * _shift_to(chain, noise, lam, eta, length)
        for chance, length in zip((up, 1 - up), distance, strict=True)
    )


def _shift_to(chain: bool, noise: float, lam: float, eta: float, length: float) -> float:
    """The constant for a boundary at one distance."""
    on_the_way = -noise / (4 * lam**2 * length**2) / eta
    if not chain:
        return on_the_way
    per_step = math.sqrt(eta * noise)
    pace = eta * lam * length / per_step
    return on_the_way + mean_overshoot(pace) / pace


def mean_overshoot(pace: float) -> float:
    """Mean limiting overshoot of a random walk with N(pace, 1) steps over a far level.

    ``(1 + pace^2) / (2 pace) - sum_n E max(-S_n, 0) / n``.

    Examples
    --------
    >>> round(mean_overshoot(1e-4), 3)  # -zeta(1/2) / sqrt(2 pi) for a driftless walk
    0.583
    """
    from scipy.stats import norm

    if pace < 1e-2:  # the sum converges too slowly; its expansion (Siegmund 1985, 10.37)
        return 0.5825971579390107 + pace / 4
    if pace > 8:
        return (1 + pace**2) / (2 * pace)
    n = np.arange(1.0, 4 + (9 / pace) ** 2)
    mean, std = n * pace, np.sqrt(n)
    below = std * norm.pdf(mean / std) - mean * norm.sf(mean / std)
    return float((1 + pace**2) / (2 * pace) - np.sum(below / n))


def _reach(domain: Domain, x: np.ndarray, u: np.ndarray) -> float:
    """Distance from x to the domain's boundary along the unit vector u; inf if none."""
    from scipy.optimize import brentq

    assert domain.level is not None
    level = jax.jit(domain.level)
    at = lambda r: float(level(jnp.asarray(x + r * u)))  # noqa: E731
    grid = np.geomspace(1e-6, 1e6, 400)
    outside = np.flatnonzero(np.asarray(jax.vmap(level)(jnp.asarray(x + grid[:, None] * u))) >= 0)
    if not outside.size:
        return math.inf
    k = int(outside[0])
    return float(brentq(at, grid[k - 1] if k else 0.0, grid[k], xtol=1e-14, rtol=1e-13))


def _notes(
    process: Process,
    unstable: np.ndarray,
    noise: float,
    distance: tuple[float, float],
    lam: float,
    spiral: bool,
) -> tuple[str, ...]:
    length = min(distance)
    small = noise / (lam * length**2)
    notes = [f"noise over distance squared {small:.3g} (small means asymptotic)"]
    if small > 0.2:
        notes.append("the noise alone reaches the boundary: use method direct")
    if spiral:
        notes.append("leaves in a spiral: seed_std and side speak of its first coordinate")
    elif len(unstable) > 1:
        rates = ", ".join(f"{r:.4g}" for r in unstable)
        notes.append(f"index {len(unstable)}, rates {rates}: all unstable directions count")
    if isinstance(process, SGD):
        notes.append("chain's own constant: overshoot of Gaussian steps")
        if process.momentum:
            notes.append("momentum enters as in the limit of small learning rates")
    notes.append("linear drift up to the boundary is assumed: curvature changes the constant")
    return tuple(notes)
