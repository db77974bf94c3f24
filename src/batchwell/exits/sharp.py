"""Sharp exit times: exponent and prefactor, for diffusions and for SGD itself.

Diffusions: Eyring-Kramers with a prefactor carried along the instanton, which covers Ito
noise that depends on the state and drifts that are no gradient. Bouchet & Reygner, "Generalisation
of the Eyring-Kramers transition rate formula to irreversible diffusion processes" (Ann. Henri
Poincare 17, 2016), eq. 1.10; over a boundary against the drift: Naeh, Klosek, Matkowsky & Schuss,
SIAM J. Appl. Math. 50 (1990). SGD: the same with its own Hamiltonian, the shift of the
exponent by finite steps and the overshoot of the boundary (`amplitude`). Isotropic Gaussian SGD
over a saddle, to the next order in the learning rate: `discrete_kramers`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._jax import jax, jnp
from ..action import FixedPoint, Hamiltonian, Instanton, hamiltonian
from ..action.frame import turns
from ..action.instanton import fejer
from ..domain import Domain
from ..dynamics import SGD, Process
from ..errors import InputError, RunError
from ..estimate import Estimate
from .amplitude import amplitude, inverse_covariance, log_overshoot, step_shift
from .channels import Channel, at_unit_temperature, channels
from .fan import fan
from .regime import attractor, check_level, drift_jacobian, drift_of

# Largest share of the exponent that the shift by finite steps, known to its first order, may take.
MOST_SHIFT = 0.5
# Relative error of a prefactor carried along a spiral, which no spline through a path's points resolves.
SPIRAL = 0.35
# Mean limiting overshoot of a driftless Gaussian walk in units of a step: -zeta(1/2)/sqrt(2 pi).
OVERSHOOT = 0.5825971579390107
# Error of the rule of directions above which Laplace's method at each way out is the better one.
COARSE_RULE = 0.2
# Spread of exits along the boundary, over the distance to it, from which it is said.
WIDE = 0.5

# Rates over a kink against splitting, Maier-Stein's drift with its stable rate 1.5, 1 and 0.7 times the
# unstable one, V/eps from 7 to 27: 1.08 to 1.18, 0.83 to 0.86, and 3.6 to 4 with a trend.
KINK = (
    "several paths of least action meet at one saddle: their rates add, each with its own prefactor, "
    "to about 20 %"
)
SLOW_KINK = (
    "several paths of least action meet at one saddle with a stable direction slower than the unstable "
    "one, where V has a kink: the prefactor is an order of magnitude only"
)


def sharp(process: Process, start: ArrayLike, domain: Domain, **options: Any) -> Estimate:
    """Mean exit time in SGD steps from the sharp asymptotics for small temperature.

    The rates of all ways out that were found add up; over a boundary against the drift, in 2 and 3
    dimensions, the flux is integrated over all of it (`fan`), elsewhere by Laplace's method. The
    interval spans the expected relative error of the expansion, ``eps / V``, times d where the flux
    is integrated; it is no confidence statement. `options` go to `action.instantons`.

    Raises
    ------
    InputError
        Momentum, noise without exponential moments, reshuffled epochs, a bad start, or a domain
        without a level function.
    RunError
        A degenerate way out (a vanishing determinant), none found, bounded noise, or steps too
        long for the expansion along the most likely way out.

    Examples
    --------
    >>> from batchwell import SGD, additive, diffusion_approximation, half_space
    >>> well = additive(lambda x: (x @ x - 1) ** 2 / 4)
    >>> out = sharp(diffusion_approximation(SGD(well, 0.05)), [-1.0], half_space([1.0], 1.0))
    >>> round(out.value * 0.05, -1)  # 4.442883 exp(.5 / eps)
    97860.0

    SGD with coin noise leaves |x| < .8 of f = x^2/2 after 30777 steps (`law`); its diffusion, 988.

    >>> from batchwell import ball
    >>> coins = SGD(additive(lambda x: x @ x / 2, "rademacher"), 0.1)
    >>> round(sharp(coins, [0.0], ball([0.0], 0.8)).value, -2)
    30400.0
    """
    check_level(domain)
    minimum = attractor(process, start, domain)
    h = hamiltonian(process)
    if isinstance(process, SGD) and process.momentum:
        raise InputError("momentum", process.momentum, "must be 0: no sharp law knows memory")
    ways, left_out = _expandable(process, h, channels(process, minimum, domain, **options))
    coarse = _coarse(process, h, minimum, ways[0])
    if turns(drift_jacobian(process, minimum)):
        coarse += SPIRAL
        left_out = [*left_out, "the way out is a spiral: its prefactor is good to a third only"]
    around = None if left_out else _around(process, minimum, ways, domain, h)
    if around is not None:
        log_steps, error = around
        said = (
            "flux summed over the whole boundary, along characteristics in all directions, error "
            f"{error:.2g}"
        )
        # In a round bowl the next term is d/2 eps/V of the time: twice as much is stated in all.
        further = (h.dim - 1) / max(ways[0].path.exponent, 1.0)
        return _estimate(log_steps, ways, process, coarse + error + further, 0.0).with_notes(said)
    found = [_log_steps(process, h, minimum, way, domain) for way in ways]
    total = -float(np.logaddexp.reduce([-log for log, _ in found]))
    return _estimate(total, ways, process, coarse, found[0][1]).with_notes(*left_out)


def _around(
    process: Process, minimum: np.ndarray, ways: list[Channel], domain: Domain, h: Hamiltonian
) -> tuple[float, float] | None:
    """(log of the mean number of steps, its error) from the flux through the whole boundary.

    None where a saddle leads out, or where `fan.fan` or its rule of directions does not do.
    """
    if any(way.saddle is not None for way in ways):
        return None
    # One fan for all learning rates and batch sizes that share a Hamiltonian.
    cold = hamiltonian(at_unit_temperature(process))
    spread = fan(cold, minimum, domain, ways[0].path.action)
    if spread is None:
        return None
    eta = process.learning_rate if isinstance(process, SGD) else 0.0
    log_rate, error = spread.log_rate(h, eta)
    if not error < COARSE_RULE:
        return None
    return -log_rate - math.log(process.learning_rate), error


def _expandable(
    process: Process, h: Hamiltonian, ways: list[Channel]
) -> tuple[list[Channel], list[str]]:
    """The ways along which steps are short enough for the expansion, and notes on the others."""
    if not isinstance(process, SGD):
        return ways, []
    kept, notes = [], []
    for way in ways:
        shift = _shift(process, h, way)
        if abs(shift) <= MOST_SHIFT * way.path.exponent:
            kept.append(way)
            continue
        where = np.array2string(way.path.end, precision=4)
        said = (
            f"steps at learning rate {process.learning_rate:g} are too long for the expansion on "
            f"the way out at {where}: they shift its exponent {way.path.exponent:.4g} by {shift:.3g}"
        )
        if not kept:
            raise RunError(f"{said}; use law, splitting or direct")
        notes.append(f"{said}; it is left out")
    return kept, notes


def _shift(process: SGD, h: Hamiltonian, way: Channel) -> float:
    """What steps of finite size add to the exponent of `way`, to the order that is known."""
    if not _over_isotropic(h, way):
        return process.learning_rate / h.temperature * step_shift(h, way.path)
    assert h.noise is not None
    scale = h.temperature * float(h.noise[0, 0])
    return -(process.learning_rate**2) / (3 * scale) * _bending(process, way.path)


def _over_isotropic(h: Hamiltonian, way: Channel) -> bool:
    """Whether isotropic Gaussian steps leave over a saddle within: where `discrete_kramers` holds."""
    return isotropic(h) and way.saddle is not None and not way.on_boundary


def _coarse(process: Process, h: Hamiltonian, minimum: np.ndarray, way: Channel) -> float:
    """Relative error by steps of finite size.

    eta times the fastest rate at the minimum over 4 in the prefactor; in the exponent the next order
    of its shift, taken as the square of the first over the exponent.
    """
    if not isinstance(process, SGD):
        return 0.0
    rates = np.linalg.eigvals(np.asarray(jax.jacfwd(h.drift)(jnp.asarray(minimum))))
    next_shift = _shift(process, h, way) ** 2 / max(way.path.exponent, 1.0)
    return process.learning_rate * float(np.abs(rates).max()) / 4 + next_shift


def _log_steps(
    process: Process, h: Hamiltonian, minimum: np.ndarray, way: Channel, domain: Domain
) -> tuple[float, float]:
    """(log of the mean number of steps to leave by `way` alone, width of its exits)."""
    if not isinstance(process, SGD):
        log_time, width = _kramers(h, minimum, way, domain, 0.0)
        return log_time - math.log(process.learning_rate), width
    if _over_isotropic(h, way):
        return discrete_kramers(process, h, minimum, way, domain), 0.0
    return chain_kramers(process, h, minimum, way, domain)


def _estimate(
    log_steps: float, ways: list[Channel], process: Process, coarse: float, width: float
) -> Estimate:
    value = math.exp(log_steps) if log_steps < 700 else math.inf
    exponent = ways[0].path.exponent
    relative = 1.0 / max(exponent, 1.0) + coarse + math.log1p(width**2)
    notes = [
        f"log of the mean exit time in steps: {log_steps:.6g}; V/eps = {exponent:.6g}; "
        f"{len(ways)} way(s) out; expected relative error {relative:.2g}"
    ]
    if exponent < 5:
        notes.append(f"V/eps = {exponent:.3g} is below 5: outside of the asymptotic regime")
    if ways[0].saddle is None:
        notes.append("exit over a boundary against the drift: exit shape and overshoot matter")
        relative += _layer(ways[0].path)
    if width > WIDE:
        notes.append(
            f"V is flat along the boundary: exits spread over {width:.2g} of the way out's length, where "
            "its second derivatives do not tell it"
        )
    if any(resonance(w) for w in ways) and len(ways[0].path.end) > 1:
        notes.append("two rates at the saddle cancel: prefactor good to about 10 % only")
        relative += 0.1
    shared = _shared_saddle(ways)
    if shared is not None:
        slow = float(np.min(-shared.rates[1:].real)) < 0.999 * float(shared.rates[0].real)
        notes.append(SLOW_KINK if slow else KINK)
        relative += math.log(5.0) if slow else 0.2
    name = "discrete Eyring-Kramers" if isinstance(process, SGD) else "Eyring-Kramers"
    ends = (value * math.exp(-relative), value * math.exp(relative))
    return Estimate(
        value, math.nan, ends, "steps", f"{name}, asymptotic error", 0, notes=tuple(notes)
    )


def _layer(path: Instanton) -> float:
    """Relative error of a boundary's prefactor: how far the density outside is from exp(-theta y / eps).

    V = theta y + Q y^2 / 2 at a distance y beyond the end; to first order in eps, ``eps |Q| / theta^2``
    along the way out (Naeh, Klosek, Matkowsky & Schuss (1990), the next term of their layer).
    """
    # A few points apart: differences of neighbours are rounding.
    step = path.path[-1] - path.path[-6]
    length = float(np.linalg.norm(step))
    last, before = (float(theta @ step) / length for theta in (path.theta[-1], path.theta[-6]))
    return path.action / path.exponent * abs(last - before) / (length * last**2)


def isotropic(h: Hamiltonian) -> bool:
    """Whether the noise is Gaussian, the same in all directions and everywhere."""
    if not h.quadratic or h.noise is None:
        return False
    return bool(np.allclose(h.noise, h.noise[0, 0] * np.eye(h.dim)))


def kramers(
    h: Hamiltonian,
    minimum: np.ndarray,
    way: Channel,
    domain: Domain | None = None,
    step: float = 0.0,
) -> float:
    """Log of the mean time (units of t) to leave by `way` alone, for a diffusion.

    Without a `domain` it is the time to pass the way's saddle for good. With a `step` (eta), boundaries
    at or near a saddle are those that steps of this length see.
    """
    return _kramers(h, minimum, way, domain, step)[0]


def _kramers(
    h: Hamiltonian, minimum: np.ndarray, way: Channel, domain: Domain | None, step: float
) -> tuple[float, float]:
    """(`kramers`, width of the exits)."""
    at_minimum = inverse_covariance(h, minimum)
    carried, at_end = amplitude(h, at_minimum, way.path, way.saddle is not None)
    log_time = way.path.exponent + carried - 0.5 * np.linalg.slogdet(at_minimum)[1]
    if way.saddle is None:
        assert domain is not None
        factor, width = _boundary_factor(h, way.path, at_end, domain, step)
        return float(log_time + factor), width
    growth = float(way.saddle.rates[0].real)
    # At a resonance (rates lambda and -lambda) no equation at the saddle alone determines V''
    # there: take it as carried along the path.
    at_saddle = at_end if resonance(way) else inverse_covariance(h, way.saddle.x)
    log_time += math.log(2 * math.pi / growth) + 0.5 * np.linalg.slogdet(at_saddle)[1]
    return float(log_time + _behind_saddle(h, way.saddle, domain, step)), 0.0


def chain_kramers(
    process: SGD, h: Hamiltonian, minimum: np.ndarray, way: Channel, domain: Domain
) -> tuple[float, float]:
    """(log of the steps to leave by `way` alone, width of its exits), any light-tailed noise.

    Relative error O(eta) + O(eps): V1 is the first order of the steps' shift of the exponent.
    """
    eta, eps = process.learning_rate, h.temperature
    log_time, width = _kramers(h, minimum, way, domain, eta)
    log_time += _shift(process, h, way) - math.log(eta)
    if way.saddle is None:
        over = log_overshoot(h, way.path.end, way.path.theta[-1], eta / eps)
        return log_time - over, width
    growth = float(way.saddle.rates[0].real)
    return log_time + math.log(eta * growth / math.log1p(eta * growth)), width


def _behind_saddle(h: Hamiltonian, saddle: FixedPoint, domain: Domain | None, step: float) -> float:
    """Log of time's factor for a boundary at or not far behind a saddle.

    Leaving at a height y beyond the saddle takes the share Phi(y / s) of the time to pass it for
    good, s^2 the variance across it; steps see the boundary 0.5826 of their size further out
    (Siegmund (1985), ch. 8).
    """
    from scipy.special import log_ndtr

    if domain is None:
        return 0.0
    assert domain.level is not None
    x = jnp.asarray(saddle.x)
    rates, right = np.linalg.eig(np.asarray(jax.jacfwd(h.drift)(x)))
    k = int(np.argmax(rates.real))
    u, left = right[:, k].real, np.linalg.inv(right)[k].real
    noise = h.temperature * float(left @ np.asarray(h.tensor(x)) @ left)
    steepness = abs(float(np.asarray(jax.grad(domain.level)(x)) @ u))
    depth = max(-float(domain.level(x)), 0.0)
    if depth > 1e3 * steepness:
        return 0.0
    height = depth / steepness + OVERSHOOT * math.sqrt(step * noise)
    return float(log_ndtr(height / math.sqrt(noise / (2 * float(rates[k].real)))))


def resonance(way: Channel) -> bool:
    """Whether two rates at the saddle cancel: V'' is then not fixed by the saddle alone."""
    if way.saddle is None:
        return False
    sums = np.abs(way.saddle.rates[:, None] + way.saddle.rates[None, :])
    return bool(sums.min() < 1e-6 * np.abs(way.saddle.rates).max())


def _shared_saddle(ways: list[Channel]) -> FixedPoint | None:
    """A saddle at which several paths of least action end: V has a kink there."""
    tops = [w.saddle for w in ways if w.saddle is not None]
    for i, a in enumerate(tops):
        if any(np.allclose(a.x, b.x) for b in tops[:i]):
            return a
    return None


def _boundary_factor(
    h: Hamiltonian, path: Instanton, q: np.ndarray, domain: Domain, step: float
) -> tuple[float, float]:
    """(log of time's factor, width) for exits over the boundary, drift pointing inwards there.

    The flux out is the quasi-stationary density times the outward speed of the instanton,
    integrated over the boundary by Laplace's method. The width is that of the exits along the boundary,
    their widest standard deviation over the distance from the minimum.
    """
    assert domain.level is not None
    x, theta = jnp.asarray(path.end), path.theta[-1]
    slope = np.asarray(jax.grad(domain.level)(x))
    normal = slope / np.linalg.norm(slope)
    velocity = np.asarray(jax.grad(h.value, argnums=1)(x, jnp.asarray(theta)))
    speed = float(velocity @ normal)
    if speed <= 0:
        raise RunError(
            f"the instanton meets the boundary at outward speed {speed:.3g}, not above 0"
        )
    bend = np.asarray(jax.hessian(domain.level)(x)) * (theta @ normal) / np.linalg.norm(slope)
    tangent = np.linalg.svd(normal[None, :])[2][1:]
    along = np.linalg.eigvalsh(tangent @ (q - bend) @ tangent.T)
    if np.any(along <= 0):
        raise RunError("the exit point is degenerate: V does not grow along the boundary from it")
    # Speed of the reversed motion a step inwards: smaller than at the boundary, or larger?
    hxp, hpp = _mixed(h, x, jnp.asarray(theta))
    slowing = float(normal @ (hxp + hpp @ q) @ normal)
    noise = float(normal @ hpp @ normal) * h.temperature
    layer = _log_layer(speed, slowing, noise, OVERSHOOT * math.sqrt(step * noise))
    log_det = float(np.log(along).sum())
    factor = 0.5 * (math.log(2 * math.pi * h.temperature) + log_det) - math.log(speed) + layer
    distance = float(np.linalg.norm(path.end - path.path[0]))
    return factor, math.sqrt(h.temperature / along.min()) / distance if along.size else 0.0


def _mixed(h: Hamiltonian, x: Any, theta: Any) -> tuple[np.ndarray, np.ndarray]:
    """(H_px, row p and column x, H_pp) at one point."""
    by_p = jax.grad(h.value, argnums=1)
    return np.asarray(jax.jacfwd(by_p, 0)(x, theta)), np.asarray(jax.jacfwd(by_p, 1)(x, theta))


def _log_layer(speed: float, change: float, noise: float, further: float) -> float:
    """Log of time's factor for a boundary in front of a saddle, met at a speed that falls outwards.

    The drift against the boundary fades towards the saddle: with speed ``v + l y`` at a depth y the layer
    is ``(2 v / a) int exp(-(2 v y + l y^2) / a) dy = sqrt(pi) z erfcx(z)``, z = v / sqrt(a l), a the noise
    across the boundary. It leads from the law over a boundary (z large) to that over a saddle. `change`
    is -l; where the speed grows outwards the factor tends to 1 for small noise. Steps see the
    boundary `further` out, of which `log_overshoot` knows what a constant speed makes.
    """
    from scipy.special import erfcx

    if change >= 0:
        return 0.0
    root = math.sqrt(-change * noise)
    seen = (speed + change * further) / root
    layer = math.sqrt(math.pi) * speed / root * float(erfcx(seen))
    return math.log(layer) + change * further**2 / noise


def discrete_kramers(
    process: SGD, h: Hamiltonian, minimum: np.ndarray, way: Channel, domain: Domain | None = None
) -> float:
    """Log of the mean number of steps to leave over a saddle, for isotropic Gaussian SGD.

    With C the discrete covariances at minimum and saddle (``C = (1 - eta H) C (1 - eta H) +
    eta eps``), growth g = 1 + eta lambda per step, and W the exponent to order eta^2,

    ``2 pi / ln g  sqrt(det C_min / |det C_saddle|)  exp((eta/2) (tr H_saddle - tr H_min) + W)``,
    ``W = (2 / eps) (Delta F - (eta^2 / 6) integral |H grad F|^2 dt)``, sigma = 1.

    In one dimension: exponent ``2 Delta f - (eta^2 / 3) integral f' f''^2 dx`` over eps and
    Kramers' prefactor times ``1 - (eta / 4) (lambda_min - |lambda_saddle|)``.
    """
    if way.saddle is None or way.on_boundary:
        raise InputError(
            "domain",
            "of this exit",
            "must reach beyond a saddle for the chain's sharp "
            "law: over other boundaries its overshoot changes the constant",
        )
    assert h.noise is not None
    eta, eps, variance = process.learning_rate, h.temperature, float(h.noise[0, 0])
    bottom, top = (np.linalg.eigvalsh(drift_jacobian(process, x)) for x in (minimum, way.saddle.x))
    # Drift eigenvalues -H: at the minimum all negative, at the saddle one positive.
    covariance = [eta * eps * variance / (1 - (1 + eta * r) ** 2) for r in (bottom, top)]
    growth = math.log1p(eta * float(top.max()))
    dets = 0.5 * float(
        np.sum(np.log(np.abs(covariance[0]))) - np.sum(np.log(np.abs(covariance[1])))
    )
    trace = 0.5 * eta * float(bottom.sum() - top.sum())
    shifted = way.path.exponent + _shift(process, h, way)
    near = _behind_saddle(h, way.saddle, domain, eta)
    return math.log(2 * math.pi / growth) + dets + trace + shifted + near


def _bending(process: SGD, path: Instanton) -> float:
    """Integral of |H grad F|^2 dt along the instanton."""
    drift = drift_of(process)
    one = lambda x: jnp.sum(jax.jvp(drift, (x,), (drift(x),))[1] ** 2)  # noqa: E731
    values = np.asarray(jax.vmap(one)(jnp.asarray(path.path))) * path.clock
    return float(fejer(len(values)) @ values)
