"""Escape from saddles: the whole law of exit time and side, with its constants.

Near a saddle the unstable coordinate of SGD or of its diffusion grows by a factor g per step from
a Gaussian seed, so the exit time is ``log(L / |Z|) / log g``: almost linear in the number
of steps, (1 / eta) log(1 / eta), where a minimum needs exponentially many. Its dependence on
batch size is ``log(B / eta) / (2 lambda eta)``.

Sources: Kifer, "The exit problem for small random perturbations of dynamical systems with a
hyperbolic fixed point" (Israel J. Math. 40, 1981); Bakhtin, "Exit asymptotics for small
diffusion about an unstable equilibrium" (SPA 118, 2008); Hu, Li, Li & Liu, arXiv:1705.07562, sec. 4;
what noise and the chain's steps do at the boundary is in `boundary`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import logm
from scipy.special import ndtr

from .._jax import jax, jnp
from ..domain import Domain, ball
from ..dynamics import SGD, Process
from ..errors import require
from ..exits.regime import drift_jacobian, drift_of
from .boundary import Linearised, noise_steps, overshoot_steps
from .degenerate import NO_NOISE, refuse, second_order_seed
from .index import Unstable, exit_times, net_of_seeds, seed_covariance, unstable_part
from .noiseless import is_linear, leaving, straightened
from .outcome import SaddleExit, moments

Floats = NDArray[np.float64]
SIDES = np.array([[1.0], [-1.0]])
# Seeds that are followed through a drift that is not linear, from where over the boundary's distance.
CURVED, NEAR_SADDLE = 1024, 1e-3
SECOND_ORDER = (
    "degenerate: no noise along the unstable direction to first order; its seed is taken as Gaussian "
    "with the mean and variance of second-order noise, good to a constant in the logarithm"
)


def law_of(process: Process, x: np.ndarray, begin: np.ndarray, domain: Domain) -> SaddleExit:
    """The law for a start `begin` (d,) near the saddle x (d,)."""
    drift, tensor = _flow_and_noise(process)
    jacobian, at_saddle = drift_jacobian(process, x), np.asarray(tensor(jnp.asarray(x)))
    part = unstable_part(jacobian)
    chain, eta = isinstance(process, SGD), process.learning_rate
    rates = np.linalg.eigvals(jacobian)
    rates = rates[np.argsort(-rates.real)]
    spiral = bool(abs(rates[0].imag) > 1e-9 * abs(rates[0]))
    unstable = rates[rates.real > 1e-12].real
    # Sign convention: the largest component points up, so that `side` has a meaning.
    direction = part.basis[:, 0]
    sign = np.sign(direction[np.argmax(np.abs(direction))])
    direction, left = sign * direction, sign * part.dual[0]
    noise, lam = float(left @ at_saddle @ left), float(unstable[0])
    distance = (_reach(domain, x, direction), _reach(domain, x, -direction))
    log_growth, variance, kept = _grown(process, lam, noise)
    offset = kept * float(left @ (begin - x))
    extra: tuple[str, ...] = ()
    if noise <= NO_NOISE * max(float(np.trace(at_saddle)), 1e-300):
        push, variance = second_order_seed(drift, tensor, x, left, lam)
        if variance <= NO_NOISE**2:
            refuse(x, offset, min(distance), log_growth)
        offset, noise, extra = offset + push, 2 * lam * variance, (SECOND_ORDER,)
    out = SaddleExit(
        math.nan,
        math.nan,
        math.nan,
        unstable,
        direction,
        distance,
        distance,
        math.sqrt(variance),
        offset,
        log_growth,
        0.0,
        "asymptotic law of the exit from a saddle",
        (*extra, *_notes(process, unstable, noise, distance, lam, spiral)),
        chain,
    )
    linear = Linearised(
        jacobian, at_saddle, part, np.array([[variance]]), eta, chain, log_growth / (eta * lam)
    )
    aside = begin - x - part.basis @ (part.dual @ (begin - x))
    small = 1e-9 * (1 + np.linalg.norm(x))
    straight = is_linear(process)
    off = np.linalg.norm(aside if straight else begin - x) > small
    if (spiral or len(unstable) > 1 or off) and not extra:
        return _along_several(
            process, x, aside, domain, linear, out, straight, kept * (part.dual @ (begin - x))
        )
    return _along_one(process, x, domain, linear, out, straight)


def _grown(process: Process, lam: float, noise: float) -> tuple[float, float, float]:
    """(log growth per step, variance of the seed, share of an offset that grows) for rate `lam`.

    ``x_k / g^k`` tends to start + N(0, s^2): the sum of the steps' noise is geometric. With momentum g is
    the larger root of ``g^2 - (1 + mu + eta h) g + mu = 0`` (h the loss's own curvature), and what
    grows is ``x_k - (mu / g) x_{k-1}``, of which the unstable direction has ``1 - mu / g^2``.
    """
    eta = process.learning_rate
    if not isinstance(process, SGD):
        return eta * lam, noise / (2 * lam), 1.0
    mu = process.momentum
    middle = 0.5 * (1 + mu + eta * lam * (1 - mu))
    g = middle + math.sqrt(middle**2 - mu)
    own = 1 - mu / g**2
    return math.log(g), eta * noise * (1 - mu) ** 2 / (g**2 - 1) / own**2, (1 - mu / g) / own


def _along_one(
    process: Process,
    x: np.ndarray,
    domain: Domain,
    linear: Linearised,
    law: SaddleExit,
    straight: bool,
) -> SaddleExit:
    """The law where one coordinate grows: two ways out, along the unstable manifold."""
    lengths = [r for r in law.distance if math.isfinite(r)]
    if straight:
        ends = (
            x
            + SIDES * np.where(np.isfinite(law.distance), law.distance, 0)[:, None] * law.direction
        )
        where = "must have a boundary along the unstable direction"
    else:
        scale = min(lengths) if lengths else 1.0 + float(np.linalg.norm(x))
        rate = float(law.growth[0])
        reach, ends = straightened(process, x, law.direction, domain, scale, law.log_growth, rate)
        law = replace(law, reach=reach)
        where = (
            f"must be left by the noiseless flow off the saddle, which stays inside near {ends[0]} and "
            f"{ends[1]}: use mean_exit_time from there"
        )
    require(math.isfinite(min(law.reach)), "domain", domain.name, where)
    up = float(ndtr(law.offset / law.seed_std))
    chances, leave = np.array([up, 1 - up]), np.isfinite(law.reach)
    guess = (math.log(max(min(law.reach) / law.seed_std, 1.0)) + 0.635) / law.log_growth
    delays, notes = _delays(process, linear, x, ends[leave], domain, guess)
    share = chances[leave] / max(float(chances[leave].sum()), 1e-300)
    law = replace(law, shift=float(share @ delays), notes=law.notes + notes)
    lost = float(chances[~leave].sum())
    if lost > 1e-12:
        said = (
            f"with chance {lost:.3g} the noiseless flow goes where it stays inside: `survival` tells "
            "when the others leave"
        )
        return replace(law, mean=math.inf, variance=math.inf, side=up, notes=(*law.notes, said))
    mean, spread, side = moments(law)
    return replace(law, mean=mean, variance=spread, side=side)


def _delays(
    process: Process,
    linear: Linearised,
    x: np.ndarray,
    ends: np.ndarray,
    domain: Domain,
    steps: float,
) -> tuple[Floats, tuple[str, ...]]:
    """(SGD steps (m,) that noise and overshoot add at exit points `ends` (m, d), notes)."""
    drift, tensor = _flow_and_noise(process)
    added, outside = noise_steps(linear, drift, x, ends, domain, steps)
    if isinstance(process, SGD):
        rate = linear.learning_rate * float(np.linalg.eigvals(linear.jacobian).real.max())
        stretch, own = math.expm1(linear.pace * rate) / rate, (1 - process.momentum) ** 2
        added = added + overshoot_steps(
            lambda y: stretch * drift(y),
            lambda y: own * tensor(y),
            ends,
            domain,
            process.learning_rate,
        )
    if outside < 0.01:
        return added, ()
    return added, (
        f"the stable directions alone leave with a chance of {outside:.0%}: use method direct",
    )


def _along_several(
    process: Process,
    x: np.ndarray,
    aside: np.ndarray,
    domain: Domain,
    linear: Linearised,
    law: SaddleExit,
    straight: bool,
    centre: np.ndarray,
) -> SaddleExit:
    """The law where several coordinates move: an average over seeds.

    Several that grow, a spiral, or a start off the saddle: `centre` (k,) along the unstable directions and
    `aside` (d,) off them.
    Noise to come is taken as there from the start, and the noiseless motion followed from then on.
    """
    eta, part, flow = linear.learning_rate, linear.part, linear.jacobian
    if len(centre) > 1:
        seed = seed_covariance(part, linear.noise, eta if law.chain else None)
        linear = replace(linear, seed=seed, pace=1.0)
        if law.chain:  # x_k = x + (1 + eta J)^k (aside + basis Z)
            flow = np.asarray(logm(np.eye(len(flow)) + eta * flow).real) / eta
    else:
        flow = linear.pace * flow
    part = replace(part, flow=part.dual @ flow @ part.basis)
    seeds = net_of_seeds(linear.seed, centre)
    if straight:
        whole = aside + seeds @ part.basis.T
        times, points = exit_times(flow, np.eye(len(flow)), whole, x, domain)
        steps = times / eta
    else:
        steps, points = _curved(process, part, seeds, x, aside, domain, law)
    require(
        bool(np.all(np.isfinite(steps))),
        "domain",
        domain.name,
        "must have a boundary along all unstable directions",
    )
    some = slice(None, None, max(1, len(points) // 64))
    delays, notes = _delays(process, linear, x, points[some], domain, float(steps.mean()))
    shift = float(delays.mean())
    steps = np.maximum(np.sort(steps + shift), 0.0)
    side = float(np.mean((points - x) @ law.direction > 0))
    return replace(
        law,
        mean=float(steps.mean()),
        variance=float(steps.var()),
        side=side,
        shift=shift,
        times=steps,
        notes=law.notes + notes,
        method=f"{law.method}, averaged over {len(steps)} seeds",
    )


def _curved(
    process: Process,
    part: Unstable,
    seeds: np.ndarray,
    x: np.ndarray,
    aside: np.ndarray,
    domain: Domain,
    law: SaddleExit,
) -> tuple[Floats, Floats]:
    """(steps, points) of `CURVED` of the `seeds`: the noiseless motion from close to the saddle."""
    seeds = seeds[:CURVED]
    begun = aside + seeds @ part.basis.T
    near = NEAR_SADDLE * min(law.distance)
    before, starts = exit_times(part.flow, part.basis, seeds, x, ball(x, near))
    far = np.linalg.norm(begun, axis=1) >= near
    before, starts = np.where(far, 0.0, before), np.where(far[:, None], x + begun, starts)
    eta, slowest = process.learning_rate, float(law.growth.min())
    growth = _grown(process, slowest, 0.0)[0]
    steps, points = leaving(process, starts, domain, growth, slowest)
    return before / eta + steps, points


def _flow_and_noise(process: Process) -> tuple[Any, Any]:
    """Drift (d,) and noise tensor (d, d) per unit of time, as functions of x."""
    if not isinstance(process, SGD):
        return process.drift, process.tensor
    scale = process.temperature / (1.0 - process.momentum) ** 2
    return drift_of(process), lambda x: scale * process.loss.covariance(x)


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
        if process.momentum and len(unstable) > 1:
            notes.append("momentum enters as in the limit of small learning rates")
        elif process.momentum:
            notes.append("growth and seed of steps with momentum; their overshoot is approximate")
    return tuple(notes)
