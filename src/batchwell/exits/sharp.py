"""Sharp exit times: exponent and prefactor, for diffusions and for the Gaussian chain.

Diffusions: Eyring-Kramers with a prefactor carried along the instanton, which covers Ito
noise that depends on the state and drifts that are no gradient. Bouchet & Reygner, "Generalisation
of the Eyring-Kramers transition rate formula to irreversible diffusion processes" (Ann. Henri
Poincare 17, 2016), eq. 1.10; over a boundary against the drift: Naeh, Klosek, Matkowsky & Schuss,
SIAM J. Appl. Math. 50 (1990). Gaussian SGD at finite learning rate: see `discrete_kramers`.
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
from .channels import Channel, channels
from .regime import attractor, drift_of


def sharp(process: Process, start: ArrayLike, domain: Domain, **options: Any) -> Estimate:
    """Mean exit time in SGD steps from the sharp asymptotics for small temperature.

    The rates of all ways out that were found add up. The interval spans the expected relative error
    ``eps / V`` of the expansion; it is no confidence statement. `options` go to
    `action.instantons`.

    Raises
    ------
    InputError
        SGD whose noise is not Gaussian, isotropic and independent of x (use `law`,
        `action` or `splitting`), a bad start, or a domain without a level function.
    RunError
        A degenerate way out (a vanishing determinant), or none found.

    Examples
    --------
    >>> from batchwell import SGD, additive, diffusion_approximation, half_space
    >>> well = additive(lambda x: (x @ x - 1) ** 2 / 4)
    >>> out = sharp(diffusion_approximation(SGD(well, 0.05)), [-1.0], half_space([1.0], 1.0))
    >>> round(out.value * 0.05, -1)  # 4.442883 exp(.5 / eps)
    97860.0
    """
    if domain.level is None:
        raise InputError("domain", domain.name, "must have a level function here")
    minimum = attractor(process, start, domain)
    h = hamiltonian(process)
    if isinstance(process, SGD):
        _check_chain(process, h)
    ways = channels(process, minimum, domain, **options)
    rule: Any = discrete_kramers if isinstance(process, SGD) else kramers
    logs = np.array([rule(process, h, minimum, way, domain) for way in ways])
    log_steps = -float(np.logaddexp.reduce(-logs)) - (
        0.0 if isinstance(process, SGD) else math.log(process.learning_rate)
    )
    return _estimate(log_steps, ways, process)


def _estimate(log_steps: float, ways: list[Channel], process: Process) -> Estimate:
    value = math.exp(log_steps) if log_steps < 700 else math.inf
    exponent = ways[0].path.exponent
    relative = 1.0 / max(exponent, 1.0)
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


def _check_chain(process: SGD, h: Hamiltonian) -> None:
    isotropic = h.noise is not None and np.allclose(h.noise, h.noise[0, 0] * np.eye(h.dim))
    if not (h.quadratic and isotropic and process.momentum == 0):
        raise InputError(
            "process",
            "this SGD",
            "must have isotropic Gaussian gradient noise that "
            "does not depend on x, and no momentum, for a sharp law of the chain",
        )


def kramers(
    process: Any, h: Hamiltonian, minimum: np.ndarray, way: Channel, domain: Domain
) -> float:
    """Log of the mean time (units of t) to leave by `way` alone, for a diffusion."""
    at_minimum = _inverse_covariance(h, minimum)
    carried, at_end = amplitude(h, at_minimum, way.path, way.saddle is not None)
    log_time = way.path.exponent + carried - 0.5 * np.linalg.slogdet(at_minimum)[1]
    if way.saddle is None:
        return float(log_time + _boundary_factor(h, way.path, at_end, domain))
    growth = float(way.saddle.rates[0].real)
    # At a resonance (rates lambda and -lambda) no equation at the saddle alone determines V''
    # there: take it as carried along the path.
    at_saddle = at_end if resonance(way) else _inverse_covariance(h, way.saddle.x)
    half = math.log(2.0) if way.on_boundary else 0.0
    log_time += math.log(2 * math.pi / growth) + 0.5 * np.linalg.slogdet(at_saddle)[1] - half
    return float(log_time)


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


def _inverse_covariance(h: Hamiltonian, x: np.ndarray) -> np.ndarray:
    """Second derivatives of V at a zero of the drift: C^-1 with A C + C A^T + Sigma = 0."""
    from scipy.linalg import solve_continuous_lyapunov

    a = np.asarray(jax.jacfwd(h.drift)(jnp.asarray(x)))
    c = solve_continuous_lyapunov(a, -np.asarray(h.tensor(jnp.asarray(x))))
    return np.asarray(np.linalg.inv(c))


def amplitude(
    h: Hamiltonian, at_minimum: np.ndarray, path: Instanton, ends_at_rest: bool
) -> tuple[float, np.ndarray]:
    """(integral of F dt along the instanton, second derivatives of V at its end).

    Q = V'' obeys ``dQ/dt = -(H_xx + H_xp Q + Q H_px + Q H_pp Q)`` and the amplitude of the
    quasi-stationary density ``d log K / dt = -F``, with
    ``F = div b + (d_i Sigma_ij) theta_j + Sigma : Q / 2``. Integrated in r = log(s / (1 - s)), in
    which time runs evenly at both ends. Near a saddle the equation is unstable along the path,
    where Q is known, ``Q dx = d theta``: in the second half only Q across the path is integrated. A
    polynomial curve of K terms does not resolve the last 2 / K^2 of its approach to a saddle,
    where F vanishes anyway: the integral stops there.
    """
    from scipy.integrate import solve_ivp

    d, spline = h.dim, _splines(h, path)
    by_angle = spline.derivative()
    square, at = d * d, 3 * h.dim**2

    def whole_q(row: np.ndarray, slope: np.ndarray, across: np.ndarray) -> np.ndarray:
        e, pace = row[at + 1 : at + 1 + d], row[-1]
        e = e / np.linalg.norm(e)
        known = slope[at + 1 + d : at + 1 + 2 * d] / pace
        p = np.eye(d) - np.outer(e, e)
        mixed = np.outer(e, known) + np.outer(known, e) - (e @ known) * np.outer(e, e)
        return np.asarray(p @ across @ p + mixed)

    def both(r: float) -> tuple[np.ndarray, np.ndarray]:
        angle = 2 * math.atan(math.exp(0.5 * r))
        return spline(angle), by_angle(angle) * (0.5 * math.sin(angle))

    def full(r: float, state: np.ndarray) -> np.ndarray:
        row, q = both(r)[0], state[:-1].reshape(d, d)
        change, f = flow(row, q)
        return np.concatenate([change.ravel(), [f]])

    def flow(row: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, float]:
        xx, px, pp = (row[k * square : (k + 1) * square].reshape(d, d) for k in range(3))
        time = row[-2]
        change = -(xx + px.T @ q + q @ px + q @ pp @ q) * time
        return change, (row[at] + 0.5 * np.sum(pp * q)) * time

    def across_only(r: float, state: np.ndarray) -> np.ndarray:
        row, slope = both(r)
        q = whole_q(row, slope, state[:-1].reshape(d, d))
        change, f = flow(row, q)
        e, de = row[at + 1 : at + 1 + d], slope[at + 1 : at + 1 + d]
        p, dp = np.eye(d) - np.outer(e, e), -np.outer(de, e) - np.outer(e, de)
        across = p @ change @ p + dp @ q @ p + p @ q @ dp
        return np.concatenate([across.ravel(), [f]])

    low, high = np.log(path.parameter / (1 - path.parameter))[[0, -1]]
    terms = len(path.coefficients)
    if ends_at_rest and terms:
        high = min(high, math.log(terms**2 / 2 - 1))
    state = np.concatenate([at_minimum.ravel(), [0.0]])
    # In one dimension all of Q is known from the path.
    parts = [(across_only, low, high)] if d == 1 else [(full, low, 0.0), (across_only, 0.0, high)]
    for rates, begin, stop in parts:
        done = solve_ivp(rates, (begin, stop), state, method="LSODA", rtol=1e-8, atol=1e-10)
        state = done.y[:, -1]
        if not done.success or not np.all(np.isfinite(state)):
            raise RunError("the second derivatives of V blow up along the instanton (a caustic)")
    q = whole_q(*both(high), state[:-1].reshape(d, d))
    return float(state[-1]), 0.5 * (q + q.T)


def _splines(h: Hamiltonian, path: Instanton) -> Any:
    """Second derivatives of H, tangent, theta, dt/dr and |dx|/dr, r = log(s / (1 - s)).

    As functions of the angle with s = (1 - cos angle) / 2, in which the points are evenly spread.
    """
    from scipy.interpolate import make_interp_spline

    s = path.parameter
    angle, jac = np.arccos(1 - 2 * s), s * (1 - s)
    velocity = (
        make_interp_spline(angle, path.path, k=5).derivative()(angle)
        / (0.5 * np.sin(angle))[:, None]
    )
    speed = np.linalg.norm(velocity, axis=1)
    columns = [
        _along(h, path),
        velocity / speed[:, None],
        path.theta,
        (path.clock * jac)[:, None],
        (speed * jac)[:, None],
    ]
    return make_interp_spline(angle, np.concatenate(columns, axis=1), k=5)


def _along(h: Hamiltonian, path: Instanton) -> np.ndarray:
    """Rows of H_xx, H_px (row p, column x), H_pp, div b + (d_i Sigma_ij) theta_j, for each point."""
    value = h.value

    def row(x: Any, p: Any) -> Any:
        xx = jax.hessian(value, argnums=0)(x, p)
        px = jax.jacfwd(jax.grad(value, argnums=1), argnums=0)(x, p)
        pp = h.tensor(x)
        # tr H_px at theta is div b + (d_i Sigma_ij) theta_j.
        return jnp.concatenate([xx.ravel(), px.ravel(), pp.ravel(), jnp.trace(px)[None]])

    return np.asarray(jax.jit(jax.vmap(row))(jnp.asarray(path.path), jnp.asarray(path.theta)))


def _boundary_factor(h: Hamiltonian, path: Instanton, q: np.ndarray, domain: Domain) -> float:
    """Log of time's factor for exits over the boundary, drift pointing inwards there.

    The flux out is the quasi-stationary density times the outward speed of the instanton,
    integrated over the boundary by Laplace's method.
    """
    assert domain.level is not None
    x, theta = jnp.asarray(path.end), path.theta[-1]
    slope = np.asarray(jax.grad(domain.level)(x))
    normal = slope / np.linalg.norm(slope)
    velocity = np.asarray(h.drift(x)) + np.asarray(h.tensor(x)) @ theta
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
    bottom, top = (
        np.linalg.eigvalsh(np.asarray(jax.jacfwd(drift_of(process))(jnp.asarray(x))))
        for x in (minimum, way.saddle.x)
    )
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
