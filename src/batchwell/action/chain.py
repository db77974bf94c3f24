"""The action of SGD's own steps at finite learning rate, momentum included.

With ``v_{k+1} = (x_k - x_{k+1}) / eta`` and ``g_k = v_{k+1} - mu v_k`` a path of the chain takes the
minibatch gradients g_k: momentum makes the action one of second differences. Its cost is
``V = eta sum_k L(x_k, g_k)``, L the Legendre transform of ``H(x, p) = log E exp(-p . g)``.

Source: Dembo & Zeitouni, "Large Deviations Techniques and Applications", sec. 5.1 and 5.6, for
the law of the steps; Freidlin & Wentzell, ch. 5, for the limit of small steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._jax import jax, jnp
from ..domain import Domain
from ..dynamics import SGD
from ..errors import InputError, RunError, require, whole
from ..points import point
from .geometric import floor_needed
from .hamiltonian import Hamiltonian, hamiltonian
from .instanton import instantons
from .ritz import retraction

Array = Any
# Memory of the free ends: exp(-2 * 16) of the action, at the relaxation rate of the start.
RELAXATIONS = 16.0
MOST_STEPS = 20_000


@dataclass(frozen=True)
class ChainAction:
    """The cheapest path of the chain between two points.

    Attributes
    ----------
    action
        V, in units where ``E tau ~ exp(V / eps)``, at the learning rate of the chain.
    exponent
        V / eps.
    path
        (steps + 1, d) the points x_0 ... x_K.
    gradients
        (steps, d) the minibatch gradients g_k that it takes.
    noise
        (steps, d) g_k less the mean gradient at x_k.
    theta
        (steps, d) tilt p_k of the noise: ``g_k = -H_p(x_k, p_k)``.
    residual
        Largest slope of the action in a free coordinate. Between two stationary points the
        path can shift in time at almost no cost, and the action is then good to about 1e-6.
    error
        What the action changes by when twice as many steps are allowed.
    notes
        Regime.
    """

    action: float
    exponent: float
    path: np.ndarray = field(repr=False)
    gradients: np.ndarray = field(repr=False)
    noise: np.ndarray = field(repr=False)
    theta: np.ndarray = field(repr=False)
    residual: float
    error: float = math.nan
    notes: tuple[str, ...] = ()

    @property
    def end(self) -> np.ndarray:
        """(d,) the last point: where the boundary is most likely crossed if the end was free."""
        return np.asarray(self.path[-1])

    @property
    def steps(self) -> int:
        """Number of steps K."""
        return len(self.path) - 1


def chain_action(
    sgd: SGD, start: ArrayLike, end: ArrayLike | Domain, steps: int | None = None
) -> ChainAction:
    """Least action of the chain from rest at `start` (d,) to `end`, by Newton's method.

    Parameters
    ----------
    start
        A minimum; the velocity there is zero.
    end
        Where the path ends, with any velocity: a point (d,), or a domain, whose boundary is then
        reached where that is cheapest (from all local minima of the limit of small steps).
    steps
        K >= 1; by default 16 relaxation times of the minimum, after which the answer is that of
        infinitely many steps where `end` itself is no stationary point.

    Raises
    ------
    InputError
        Wrong shapes, a start that is no minimum or not in the domain, a domain without level
        function, noise without exponential moments or without all directions.
    RunError
        No path of finite cost was found, or Newton's method did not come to rest.

    Examples
    --------
    The finite learning rate and momentum of f = x^2/2: V = eps x^2 / (2 Var), Var stationary.

    >>> from batchwell import SGD, additive, stationary_moments
    >>> sgd = SGD(additive(lambda x: x @ x / 2), learning_rate=0.2, momentum=0.9)
    >>> round(chain_action(sgd, [0.0], [1.0]).exponent, 9)
    0.473684211
    >>> round(0.5 / stationary_moments(sgd).covariance[0, 0].item(), 9)
    0.473684211
    """
    if not isinstance(sgd, SGD):
        raise InputError("sgd", type(sgd).__name__, "must be SGD: a diffusion has no steps")
    dim = sgd.loss.dim
    x0 = point("start", start, dim)
    x1 = None if isinstance(end, Domain) else point("end", end, dim)
    plain = hamiltonian(replace(sgd, momentum=0.0))
    rate = _rate(sgd, x0)
    _check_noise(plain, x0)
    if steps is None:
        steps = max(8, math.ceil(RELAXATIONS * (1 - sgd.momentum) / (sgd.learning_rate * rate)))
        if sgd.momentum:
            # Under-damped chains forget at rate -log(mu) / 2 a step, however steep the minimum.
            steps = max(steps, math.ceil(-2 * RELAXATIONS / math.log(sgd.momentum)))
        require(
            steps <= MOST_STEPS,
            "steps",
            steps,
            f"relaxation takes more than {MOST_STEPS} steps; give steps",
        )
    count = whole("steps", steps)
    terms = _terms(plain, sgd.learning_rate, sgd.momentum)
    if x1 is None:
        assert isinstance(end, Domain)
        ways = [way.end for way in instantons(sgd, x0, end)]
        paths = [_free_end(terms, _guess(plain, sgd, x0, x, count), end) for x in ways]
        path, residual = min(paths, key=lambda found: float(terms.total(found[0])))
    else:
        path, residual = _newton(terms, _guess(plain, sgd, x0, x1, count))
    return _answer(plain, sgd, terms, path, residual)


def _check_noise(h: Hamiltonian, x: np.ndarray) -> None:
    require(
        not floor_needed(h, x),
        "sgd",
        "singular gradient noise",
        "must have noise in all directions: without it most paths of the chain cost infinitely much; "
        "`quasi_potential` puts a floor under it and says so",
    )


def _free_end(terms: _Terms, path: np.ndarray, domain: Domain) -> tuple[np.ndarray, float]:
    """The cheapest path to the boundary near the end of `path`, by BFGS on the boundary.

    The slope of the action in its end is that of its last term alone, as the rest is stationary.
    """
    from scipy.optimize import minimize

    dim = path.shape[1]
    onto = jax.jit(retraction(domain))
    turn = jax.jit(jax.jacfwd(retraction(domain)))
    best: list[Any] = list(_newton(terms, path))
    if dim == 1:
        return best[0], best[1]
    level = domain.level
    assert level is not None
    at = path[-1].copy()
    normal = np.asarray(jax.grad(level)(jnp.asarray(at)))
    tangent = np.linalg.svd(normal[None, :])[2][1:].T

    def both(y: np.ndarray) -> tuple[float, np.ndarray]:
        goal = np.asarray(onto(jnp.asarray(at + tangent @ y)))
        # A small move of the end fades towards the start.
        bent = best[0] + np.linspace(0, 1, len(path))[:, None] ** 8 * (goal - best[0][-1])
        bent[-1] = goal
        best[:] = _newton(terms, bent)
        last = np.asarray(terms.slopes(best[0]))[-1, 2 * dim :]
        return float(terms.total(best[0])), tangent.T @ np.asarray(turn(at + tangent @ y)).T @ last

    found = minimize(both, np.zeros(dim - 1), jac=True, method="BFGS", options={"gtol": 1e-9})
    both(found.x)
    return best[0], best[1]


def _rate(sgd: SGD, x: np.ndarray) -> float:
    """Smallest curvature of the loss at the start."""
    slope = float(np.linalg.norm(sgd.loss.gradient(jnp.asarray(x))))
    curvature = np.linalg.eigvalsh(np.asarray(jax.jacfwd(sgd.loss.gradient)(jnp.asarray(x))))
    require(
        slope <= 1e-6 * (1 + curvature[-1]) and curvature[0] > 0,
        "start",
        x.tolist(),
        f"is no minimum: gradient norm {slope:.3g}, least curvature {curvature[0]:.3g}",
    )
    return float(curvature[0])


def _guess(h: Hamiltonian, sgd: SGD, x0: np.ndarray, x1: np.ndarray, count: int) -> np.ndarray:
    """Reversed descent from the end, bent so that it begins at the start: (count + 1, d)."""
    if not h.quadratic:
        return _sampled(sgd, x0, x1, count)
    gradient = jax.jit(sgd.loss.gradient)
    # A small step towards the start leaves a saddle.
    x, points = x1 + 1e-3 * (x0 - x1), [x1]
    for _ in range(count):
        points.append(x)
        x = x - sgd.learning_rate / (1 - sgd.momentum) * np.asarray(gradient(x))
    path = np.array(points[::-1])
    if not np.all(np.isfinite(path)) or np.linalg.norm(path[0] - x0) > np.linalg.norm(x1 - x0):
        return x0 + np.linspace(0, 1, count + 1)[:, None] * (x1 - x0)
    return path + np.linspace(1, 0, count + 1)[:, None] * (x0 - path[0])


def _sampled(sgd: SGD, x0: np.ndarray, x1: np.ndarray, count: int) -> np.ndarray:
    """The instanton of small learning rates at times eta k before its end: bounded noise bears it.

    Reversed descent would need noise of twice the gradient.
    """
    found = instantons(sgd, x0, x1, starts=1)[0]
    s = np.asarray(found.parameter)
    middle = np.sqrt(found.clock[1:] * found.clock[:-1]) * np.diff(s)
    before_end = np.append(np.cumsum(middle[::-1])[::-1], 0.0)
    times = sgd.learning_rate * np.arange(count, -1, -1.0)
    at = np.interp(-times, -before_end, s)
    early = times > before_end[0]
    # Towards the minimum the path falls by a constant factor per unit of time.
    at[early] *= np.exp(-_rate(sgd, x0) / (1 - sgd.momentum) * (times[early] - before_end[0]))
    whole_s = np.concatenate([[0.0], s, [1.0]])
    points = np.vstack([x0, found.path, x1])
    path = np.stack([np.interp(at, whole_s, points[:, i]) for i in range(len(x0))], axis=1)
    path[0], path[-1] = x0, x1
    return path


@dataclass(frozen=True, eq=False)
class _Terms:
    """Costs of triples (x_{k-1}, x_k, x_{k+1}): totals, slopes (K, 3d), Hessians (K, 3d, 3d)."""

    total: Callable[[Array], Array]
    slopes: Callable[[Array], Array]
    hessians: Callable[[Array], Array]
    gradients: Callable[[Array], Array]


def _triples(path: Array) -> Array:
    """(K, 3d) triples of a path (K + 1, d) that rests before its start."""
    before = jnp.concatenate([path[:1], path[:-2]])
    return jnp.concatenate([before, path[:-1], path[1:]], axis=1)


@lru_cache(maxsize=64)
def _terms(h: Hamiltonian, eta: float, mu: float) -> _Terms:
    cost = legendre(h)

    def gradient(triple: Array) -> Array:
        before, here, after = triple.reshape(3, h.dim)
        return (here - after) / eta - mu * (before - here) / eta

    def term(triple: Array) -> Array:
        return eta * cost(triple[h.dim : 2 * h.dim], gradient(triple))[0]

    return _Terms(
        jax.jit(lambda path: jnp.sum(jax.vmap(term)(_triples(path)))),
        jax.jit(lambda path: jax.vmap(jax.grad(term))(_triples(path))),
        jax.jit(lambda path: jax.vmap(jax.hessian(term))(_triples(path))),
        jax.jit(lambda path: jax.vmap(gradient)(_triples(path))),
    )


def legendre(h: Hamiltonian) -> Callable[[Array, Array], tuple[Array, Array]]:
    """``(x, g) -> (L, p)``, ``L = sup_p -p . g - H(x, p)``; infinite for gradients out of reach."""

    def closed(x: Array, g: Array) -> tuple[Array, Array]:
        drift, sigma = h.local(x)
        p = -jnp.linalg.solve(sigma, g + drift)
        return -0.5 * jnp.dot(p, g + drift), p

    def solved(x: Array, g: Array) -> tuple[Array, Array]:
        gain = lambda p: -jnp.dot(p, g) - h.value(x, p)  # noqa: E731
        p = jax.lax.stop_gradient(_summit(jax.lax.stop_gradient((x, g)), h))
        hess = jax.lax.stop_gradient(jax.hessian(gain)(p))
        # One Newton step from the solution carries its derivatives: exact to second order.
        slope = jax.grad(gain)(p)
        found = jnp.linalg.norm(slope) <= 1e-7 * (1 + jnp.linalg.norm(g))
        return jnp.where(found, gain(p - jnp.linalg.solve(hess, slope)), jnp.inf), p

    return closed if h.quadratic else solved


def _summit(at: tuple[Array, Array], h: Hamiltonian) -> Array:
    """Maximum over p of the concave ``-p . g - H(x, p)`` by Newton, the best of 12 halved steps."""
    x, g = at
    here = h.local(x)
    gain = lambda p: -jnp.dot(p, g) - h.cumulant(here, p)  # noqa: E731
    halves = 2.0 ** -jnp.arange(12)

    def step(p: Array) -> Array:
        move = -jnp.linalg.solve(jax.hessian(gain)(p), jax.grad(gain)(p))
        tried = jax.vmap(lambda t: gain(p + t * move))(halves)
        return p + halves[jnp.nanargmax(tried)] * move

    def body(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        new = step(state[0])
        return new, jnp.linalg.norm(new - state[0]) <= 1e-13 * jnp.linalg.norm(new), state[2] + 1

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        return ~state[1] & (state[2] < 50) & jnp.all(jnp.isfinite(state[0]))

    return jax.lax.while_loop(unfinished, body, (jnp.zeros(h.dim), jnp.asarray(False), 0))[0]


def _newton(terms: _Terms, path: np.ndarray) -> tuple[np.ndarray, float]:
    """Damped Newton on the inner points (banded normal equations): path, largest slope."""
    value, damping = float(terms.total(path)), 0.0
    if not math.isfinite(value):
        raise RunError("no path of finite cost from start to end in this many steps: noise bounded")
    for _ in range(120):
        slope, band = _assemble(terms, path)
        if not slope.size:
            return path, 0.0
        move = _solve(band, slope, damping)
        expected = math.inf if move is None else float(slope @ move)
        trial, new = path.copy(), math.inf
        if move is not None:
            trial[1:-1] -= move.reshape(-1, path.shape[1])
            new = float(terms.total(trial))
        if damping < 1e-6 and 0 <= expected <= 1e-14 * abs(value):
            return path, float(np.abs(slope).max())
        if move is not None and new <= value - 1e-4 * expected + 1e-14 * abs(value):
            path, value, damping = trial, new, damping / 10 if damping > 1e-9 else 0.0
        else:
            damping = max(10 * damping, 1e-6)
    # Near a saddle the path may shift in time at almost no cost: the valley is flat, not the value.
    if expected <= 1e-6 * abs(value):
        return path, float(np.abs(slope).max())
    raise RunError(
        f"least action of the chain not found in 120 iterations, slope {np.abs(slope).max():.3g}"
    )


def _assemble(terms: _Terms, path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope (N,) and upper band (3d, N) of the Hessian in the inner points."""
    count, d = len(path) - 1, path.shape[1]
    slopes, blocks = np.asarray(terms.slopes(path)), np.asarray(terms.hessians(path))
    slope, band = np.zeros((count + 2) * d), np.zeros((3 * d, (count + 2) * d))
    start = np.arange(count) * d
    for i in range(3 * d):
        np.add.at(slope, start + i, slopes[:, i])
        for j in range(i, 3 * d):
            np.add.at(band[3 * d - 1 - (j - i)], start + j, blocks[:, i, j])
    inner = slice(2 * d, (count + 1) * d)  # x_{-1} and x_0 before, x_K after
    band = band[:, inner].copy()
    for above in range(1, min(3 * d, band.shape[1] + 1)):
        band[3 * d - 1 - above, :above] = 0.0
    return slope[inner], band


def _solve(band: np.ndarray, slope: np.ndarray, damping: float) -> np.ndarray | None:
    """The Newton step, or None where the damped Hessian is not positive."""
    from scipy.linalg import LinAlgError, solveh_banded

    shifted = band.copy()
    shifted[-1] += damping * np.abs(band[-1]).max()
    shifted = shifted[max(0, len(shifted) - shifted.shape[1]) :]
    try:
        return np.asarray(solveh_banded(shifted, slope))
    except (LinAlgError, ValueError):
        return None


def _answer(
    h: Hamiltonian, sgd: SGD, terms: _Terms, path: np.ndarray, residual: float
) -> ChainAction:
    gradients = np.asarray(terms.gradients(path))
    cost = jax.vmap(legendre(h))
    theta = np.asarray(cost(jnp.asarray(path[:-1]), jnp.asarray(gradients))[1])
    mean = np.asarray(jax.vmap(sgd.loss.gradient)(jnp.asarray(path[:-1])))
    action = float(terms.total(path))
    longer = np.concatenate([np.repeat(path[:1], len(path) - 1, axis=0), path])
    error = abs(float(terms.total(_newton(terms, longer)[0])) - action)
    return ChainAction(
        action,
        action / h.temperature,
        path,
        gradients,
        gradients - mean,
        theta,
        residual,
        error,
        h.notes,
    )
