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
from ..action import Hamiltonian, Instanton, hamiltonian
from ..action.instanton import fejer
from ..domain import Domain
from ..dynamics import SGD, Process
from ..errors import InputError, RunError
from ..estimate import Estimate
from .amplitude import amplitude, inverse_covariance, log_overshoot, step_shift
from .channels import Channel, at_unit_temperature, channels
from .fan import fan
from .regime import attractor, drift_jacobian, drift_of

# Mean limiting overshoot of a driftless Gaussian walk in units of a step: -zeta(1/2)/sqrt(2 pi).
OVERSHOOT = 0.5825971579390107
# Error of the rule of directions above which Laplace's method at each way out is the better one.
COARSE_RULE = 0.2


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
        A degenerate way out (a vanishing determinant), none found, or bounded noise.

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
    30900.0
    """
    if domain.level is None:
        raise InputError("domain", domain.name, "must have a level function here")
    minimum = attractor(process, start, domain)
    h = hamiltonian(process)
    if isinstance(process, SGD) and process.momentum:
        raise InputError("momentum", process.momentum, "must be 0: no sharp law knows memory")
    ways = channels(process, minimum, domain, **options)
    coarse = _coarse(process, h, minimum)
    around = _around(process, h, minimum, ways, domain)
    if around is not None:
        log_steps, error = around
        said = (
            "flux summed over the whole boundary, along characteristics in all directions, error "
            f"{error:.2g}"
        )
        # In a round bowl the next term is d/2 eps/V of the time: twice as much is stated in all.
        further = (h.dim - 1) / max(ways[0].path.exponent, 1.0)
        return _estimate(log_steps, ways, process, coarse + error + further).with_notes(said)
    logs = np.array([_log_steps(process, h, minimum, way, domain) for way in ways])
    return _estimate(-float(np.logaddexp.reduce(-logs)), ways, process, coarse)


def _around(
    process: Process, h: Hamiltonian, minimum: np.ndarray, ways: list[Channel], domain: Domain
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


def _coarse(process: Process, h: Hamiltonian, minimum: np.ndarray) -> float:
    """Relative error by steps of finite size: eta times the fastest rate at the minimum, over 4."""
    if not isinstance(process, SGD):
        return 0.0
    rates = np.linalg.eigvals(np.asarray(jax.jacfwd(h.drift)(jnp.asarray(minimum))))
    return process.learning_rate * float(np.abs(rates).max()) / 4


def _log_steps(
    process: Process, h: Hamiltonian, minimum: np.ndarray, way: Channel, domain: Domain
) -> float:
    """Log of the mean number of steps to leave by `way` alone."""
    if not isinstance(process, SGD):
        return kramers(process, h, minimum, way, domain) - math.log(process.learning_rate)
    if isotropic(h) and way.saddle is not None and not way.on_boundary:
        return discrete_kramers(process, h, minimum, way, domain)
    return chain_kramers(process, h, minimum, way, domain)


def _estimate(log_steps: float, ways: list[Channel], process: Process, coarse: float) -> Estimate:
    value = math.exp(log_steps) if log_steps < 700 else math.inf
    exponent = ways[0].path.exponent
    relative = 1.0 / max(exponent, 1.0) + coarse
    notes = [
        f"log of the mean exit time in steps: {log_steps:.6g}; V/eps = {exponent:.6g}; "
        f"{len(ways)} way(s) out; expected relative error {relative:.2g}"
    ]
    if exponent < 5:
        notes.append(f"V/eps = {exponent:.3g} is below 5: outside of the asymptotic regime")
    if ways[0].saddle is None:
        notes.append("exit over a boundary against the drift: exit shape and overshoot matter")
    if any(resonance(w) for w in ways) and len(ways[0].path.end) > 1:
        notes.append("two rates at the saddle cancel: prefactor good to about 10 % only")
        relative += 0.1
    if _shared_saddle(ways):
        notes.append(
            "several paths of least action meet at one saddle, where V has a kink: the "
            "prefactor is an order of magnitude only"
        )
        relative += math.log(5.0)
    name = "discrete Eyring-Kramers" if isinstance(process, SGD) else "Eyring-Kramers"
    ends = (value * math.exp(-relative), value * math.exp(relative))
    return Estimate(
        value, math.nan, ends, "steps", f"{name}, asymptotic error", 0, notes=tuple(notes)
    )


def isotropic(h: Hamiltonian) -> bool:
    """Whether the noise is Gaussian, the same in all directions and everywhere."""
    if not h.quadratic or h.noise is None:
        return False
    return bool(np.allclose(h.noise, h.noise[0, 0] * np.eye(h.dim)))


def kramers(
    process: Any, h: Hamiltonian, minimum: np.ndarray, way: Channel, domain: Domain
) -> float:
    """Log of the mean time (units of t) to leave by `way` alone, for a diffusion."""
    at_minimum = inverse_covariance(h, minimum)
    carried, at_end = amplitude(h, at_minimum, way.path, way.saddle is not None)
    log_time = way.path.exponent + carried - 0.5 * np.linalg.slogdet(at_minimum)[1]
    if way.saddle is None:
        return float(log_time + _boundary_factor(h, way.path, at_end, domain))
    growth = float(way.saddle.rates[0].real)
    # At a resonance (rates lambda and -lambda) no equation at the saddle alone determines V''
    # there: take it as carried along the path.
    at_saddle = at_end if resonance(way) else inverse_covariance(h, way.saddle.x)
    half = math.log(2.0) if way.on_boundary else 0.0
    log_time += math.log(2 * math.pi / growth) + 0.5 * np.linalg.slogdet(at_saddle)[1] - half
    return float(log_time)


def chain_kramers(
    process: SGD, h: Hamiltonian, minimum: np.ndarray, way: Channel, domain: Domain
) -> float:
    """Log of the mean number of steps to leave by `way` alone, for SGD with any light-tailed noise.

    Relative error O(eta) + O(eps): V1 is the first order of the steps' shift of the exponent.
    """
    eta, eps = process.learning_rate, h.temperature
    log_time = kramers(process, h, minimum, way, domain) - math.log(eta)
    log_time += eta / eps * step_shift(h, way.path)
    if way.saddle is None:
        return log_time - log_overshoot(h, way.path.end, way.path.theta[-1], eta / eps)
    growth = float(way.saddle.rates[0].real)
    log_time += math.log(eta * growth / math.log1p(eta * growth))
    if way.on_boundary:
        log_time += _later(eta * growth)
    return log_time


def _later(rate: float) -> float:
    """Log of what overshoot adds to times out at a saddle on the boundary, growth 1 + `rate` a step.

    Leaving at a height y beyond the saddle takes the share Phi(y / s) of the time to pass it for
    good, s^2 the variance across it; steps see the boundary 0.5826 of their size further out
    (Siegmund (1985), ch. 8).
    """
    from scipy.special import log_ndtr

    return float(log_ndtr(OVERSHOOT * math.sqrt(2 * rate))) - math.log(0.5)


def resonance(way: Channel) -> bool:
    """Whether two rates at the saddle cancel: V'' is then not fixed by the saddle alone."""
    if way.saddle is None:
        return False
    sums = np.abs(way.saddle.rates[:, None] + way.saddle.rates[None, :])
    return bool(sums.min() < 1e-6 * np.abs(way.saddle.rates).max())


def _shared_saddle(ways: list[Channel]) -> bool:
    """Whether several paths of least action end at one saddle: V has a kink there."""
    ends = [w.saddle.x for w in ways if w.saddle is not None]
    return any(np.allclose(a, b) for i, a in enumerate(ends) for b in ends[:i])


def _boundary_factor(h: Hamiltonian, path: Instanton, q: np.ndarray, domain: Domain) -> float:
    """Log of time's factor for exits over the boundary, drift pointing inwards there.

    The flux out is the quasi-stationary density times the outward speed of the instanton,
    integrated over the boundary by Laplace's method.
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
    sign, log_det = (
        np.linalg.slogdet(tangent @ (q - bend) @ tangent.T) if len(tangent) else (1, 0.0)
    )
    if sign <= 0:
        raise RunError("the exit point is degenerate: V does not grow along the boundary from it")
    return float(0.5 * math.log(2 * math.pi * h.temperature) + 0.5 * log_det - math.log(speed))


def discrete_kramers(
    process: SGD, h: Hamiltonian, minimum: np.ndarray, way: Channel, domain: Domain
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
            domain.name,
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
    shift = -(eta**2) / (3 * eps * variance) * _bending(process, way.path)
    return math.log(2 * math.pi / growth) + dets + trace + way.path.exponent + shift


def _bending(process: SGD, path: Instanton) -> float:
    """Integral of |H grad F|^2 dt along the instanton."""
    drift = drift_of(process)
    one = lambda x: jnp.sum(jax.jvp(drift, (x,), (drift(x),))[1] ** 2)  # noqa: E731
    values = np.asarray(jax.vmap(one)(jnp.asarray(path.path))) * path.clock
    return float(fejer(len(values)) @ values)
