"""Most likely escape paths: instantons, exit points and all distinct extremals found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._jax import jax, jnp
from ..domain import Domain
from ..dynamics import Process
from ..errors import InputError, RunError, known_options, require, whole
from ..points import point
from . import ritz
from .characteristics import Characteristic, characteristics
from .fixed_points import rays, spread_directions
from .frame import Frame, turning_frame
from .geometric import FLOOR, floor_needed, momentum
from .hamiltonian import Hamiltonian, hamiltonian

DEFAULT_ORDER = 16
DEFAULT_STARTS = 8
# Points at which a found path is reported; a multiple of 3, see `_on_the_line`.
POINTS = 129


@dataclass(frozen=True)
class Instanton:
    """A path along which the action is stationary.

    Attributes
    ----------
    action
        V, in units where ``E tau ~ exp(V / eps)``.
    exponent
        V / eps, the leading exponent of the mean exit time.
    path
        (m, d) points from start to end.
    parameter
        (m,) the parameter s in (0, 1) of these points, at constant speed.
    theta
        (m, d) momentum: the exponential tilt of the noise along the path.
    clock
        (m,) dt/ds: time runs without bound towards zeros of the drift.
    end
        (d,) end of the path.
    error
        Estimated error of `action` (quadrature and truncation).
    index
        Number of directions in which the action falls: 0 for a minimum.
    notes
        Regime.
    """

    action: float
    exponent: float
    path: np.ndarray
    parameter: np.ndarray
    theta: np.ndarray
    clock: np.ndarray
    end: np.ndarray
    error: float
    index: int = 0
    coefficients: np.ndarray = field(default_factory=lambda: np.zeros((0, 1)), repr=False)
    notes: tuple[str, ...] = ()


def instantons(
    process: Process,
    start: ArrayLike,
    end: ArrayLike | Domain,
    *,
    order: int = DEFAULT_ORDER,
    starts: int = DEFAULT_STARTS,
    all_extremals: bool = False,
    seed: int = 0,
    near: Sequence[Instanton] = (),
) -> list[Instanton]:
    """Distinct extremals of the action from `start` to `end`, least action first.

    Parameters
    ----------
    process
        SGD (its own Hamiltonian) or a diffusion.
    start
        (d,), usually a minimum.
    end
        A point (d,), or a domain: then the end is free on its boundary, and the first
        answer's `end` is the most likely exit point.
    order
        Number of Chebyshev bubbles.
    starts
        Number of initial curves.
    all_extremals
        Also search for stationary curves that are not minima.
    near
        Extremals of a similar process between the same ends: the search then starts from them alone.

    Raises
    ------
    InputError
        Shapes; a domain without level function, or whose boundary no ray meets.
    RunError
        The noise is bounded and cannot carry SGD along any path tried: it never escapes.

    References
    ----------
    Freidlin & Wentzell, Random Perturbations of Dynamical Systems (2012), chapters 4 to 6.

    Examples
    --------
    >>> from batchwell import SGD, additive, ball
    >>> sgd = SGD(additive(lambda x: x @ x / 2), learning_rate=0.1)
    >>> round(instantons(sgd, [0.0], [0.8])[0].action, 12)
    0.64
    """
    h = hamiltonian(process)
    x0 = point("start", start, h.dim)
    order, starts = whole("order", order, 2), whole("starts", starts)
    domain = end if isinstance(end, Domain) else None
    targets = np.array([path.end for path in near]) if near else _targets(h, x0, end, starts, seed)
    if h.dim == 1:
        return _on_the_line(h, x0, targets)
    if h.quadratic and h.dim == 2 and floor_needed(h, x0):
        followed = characteristics(h, x0, targets[0] if domain is None else domain)
        if followed:
            return [_from_characteristic(h, x0, c) for c in followed]
    frame = turning_frame(h, tuple(x0.tolist()))
    p = ritz.problem(h, order, order // 2 + 8 if frame else 2 * order + 8, domain, frame)
    known = [path for path in near if path.coefficients.shape == (order, h.dim)]
    if known:
        tried = [_from(p, x0, path) for path in known]
    else:
        tried = _search(p, h, x0, targets, starts, all_extremals, seed)
    distinct = _distinct(x0, [f for f in tried if f.action < np.inf], frame)
    paths = [_instanton(h, x0, f, frame) for f in distinct]
    possible = [path for path in paths if _reachable(h, path)]
    if not possible:
        raise RunError(_never(h, x0, targets[0]))
    return possible


def quasi_potential(
    process: Process, start: ArrayLike, end: ArrayLike | Domain, **options: Any
) -> float:
    """Least action V from `start` to `end` (see `instantons`), with ``E tau ~ exp(V / eps)``.

    References
    ----------
    Freidlin & Wentzell, Random Perturbations of Dynamical Systems (2012), sections 4.2 and 5.4.

    Examples
    --------
    >>> from batchwell import SGD, additive
    >>> chain = SGD(additive(lambda x: x @ x / 2, "rademacher"), learning_rate=0.1)
    >>> round(quasi_potential(chain, [0.0], [0.8]), 6)
    0.889188
    """
    known_options(options, instantons)
    return instantons(process, start, end, **options)[0].action


def _targets(h: Hamiltonian, x0: np.ndarray, end: Any, starts: int, seed: int) -> np.ndarray:
    if not isinstance(end, Domain):
        return point("end", end, h.dim)[None, :]
    require(end.level is not None, "end", end.name, "must have a level function")
    require(bool(end.contains(x0)), "start", x0, "must lie inside the domain")
    jacobian = np.asarray(jax.jacfwd(h.drift)(jnp.asarray(x0)))
    found = rays(x0, end, spread_directions(jacobian, starts, seed))
    if not found:
        raise InputError("end", end.name, "has no boundary that a ray from the start meets")
    return np.array(found)


def _search(
    p: ritz.Problem,
    h: Hamiltonian,
    x0: np.ndarray,
    targets: np.ndarray,
    starts: int,
    all_extremals: bool,
    seed: int,
) -> list[ritz.Found]:
    rng = np.random.Generator(np.random.Philox(seed))
    found = []
    count = len(targets) if p.free_end else (starts if h.dim > 1 else 1)
    if p.free_end and h.dim > 1:
        flat = np.zeros(p.order * h.dim)
        straight = [p.action(np.concatenate([flat, x1]), x0, x1) for x1 in targets]
        targets = targets[np.argsort(straight)]
        count = min(count, starts)
    for k in range(count):
        x1 = targets[k % len(targets)]
        bend = np.zeros((p.order, h.dim))
        if k >= len(targets) and p.order:
            bend[:2] = rng.standard_normal((2, h.dim)) * [[2.0], [1.0]]
            bend *= float(np.linalg.norm(x1 - x0))
        u = np.concatenate([bend.ravel(), x1 if p.free_end else []])
        found.append(ritz.minimise(p, x0, x1, u))
        if all_extremals and p.second and p.order:
            found.append(ritz.minimise(p, x0, x1, u, stationary=True))
    if all_extremals and p.second and p.order and not p.free_end:
        found += _between(p, x0, targets[0], found)
    return found


def _from(p: ritz.Problem, x0: np.ndarray, path: Instanton) -> ritz.Found:
    ends = [path.end] if p.free_end else []
    unknowns = np.concatenate([path.coefficients.ravel(), *ends])
    return ritz.minimise(p, x0, path.end, unknowns)


def _between(
    p: ritz.Problem, x0: np.ndarray, x1: np.ndarray, found: list[ritz.Found]
) -> list[ritz.Found]:
    """Stationary curves between known ones: passes lie between valleys."""
    known = [f.coefficients for f in _distinct(x0, [f for f in found if _converged(f)], p.frame)]
    starts = [
        a + t * (b - a)
        for i, a in enumerate(known)
        for b in known[:i]
        for t in (0.2, 0.35, 0.5, 0.65, 0.8)
    ]
    return [ritz.minimise(p, x0, x1, u.ravel(), stationary=True) for u in starts[:60]]


def _converged(f: ritz.Found) -> bool:
    # Curves of many unknowns come from a quasi-Newton method, which stops earlier.
    loose = 1e-4 if f.quasi else 1e-6
    return bool(np.isfinite(f.action) and f.residual <= loose * max(1.0, abs(f.action)))


def _distinct(x0: np.ndarray, found: list[ritz.Found], frame: Frame | None) -> list[ritz.Found]:
    """Converged curves, least action first, without repeats; the best one if none converged."""
    ranked = sorted(found, key=lambda f: f.action)
    good = [f for f in ranked if _converged(f)] or ranked[:1]
    out: list[ritz.Found] = []
    for f in good:
        if not any(_same(x0, f, g, frame) for g in out):
            out.append(f)
    return out


def _same(x0: np.ndarray, f: ritz.Found, g: ritz.Found, frame: Frame | None) -> bool:
    """Whether two curves have one action and lie within 3 % of their length of each other."""
    if abs(f.action - g.action) > 1e-4 * abs(g.action) + 1e-12:
        return False
    a = ritz.points_on(x0, f.end, f.coefficients, np.linspace(0, 1, 17), frame)
    b = ritz.points_on(x0, g.end, g.coefficients, np.linspace(0, 1, 257), frame)
    gap = np.linalg.norm(a[:, None] - b[None], axis=2).min(axis=1).max()
    return bool(gap <= 0.03 * np.linalg.norm(np.diff(b, axis=0), axis=1).sum())


def _reachable(h: Hamiltonian, path: Instanton) -> bool:
    """Whether the noise can push along the whole curve (bounded noise may not)."""
    if h.quadratic:
        return True
    left = np.abs(np.asarray(_values(h.family)(h.knobs, path.path, path.theta)))
    pushed = np.isfinite(left) & (path.clock > 0)
    return bool(np.all(pushed) and left.max() < 1e-6)


@lru_cache(maxsize=64)
def _values(family: Callable[..., Hamiltonian]) -> Any:
    return jax.jit(lambda knobs, *at: jax.vmap(family(*knobs).value)(*at))


def _never(h: Hamiltonian, x0: np.ndarray, x1: np.ndarray) -> str:
    points = x0 + np.linspace(0, 1, 41)[:, None] * (x1 - x0)
    drift = np.linalg.norm(np.asarray(jax.vmap(h.drift)(jnp.asarray(points))), axis=1)
    return (
        f"{h.name} never escapes along the paths tried: its noise is bounded below the drift "
        f"(largest |grad F| on the way out {drift.max():.4g}), although a diffusion would"
    )


@lru_cache(maxsize=64)
def _momentum(family: Callable[..., Hamiltonian]) -> Any:
    return jax.jit(lambda knobs, *at: jax.vmap(momentum(family(*knobs)))(*at))


def _on_the_line(h: Hamiltonian, x0: np.ndarray, targets: np.ndarray) -> list[Instanton]:
    """One dimension: the path is the segment, and the action an integral of theta."""
    s = 0.5 * (1 - np.cos(np.pi * (np.arange(POINTS) + 0.5) / POINTS))
    out = []
    for x1 in targets:
        velocity = np.tile(x1 - x0, (POINTS, 1))
        points = x0 + s[:, None] * (x1 - x0)
        theta, mu = (np.asarray(v) for v in _momentum(h.family)(h.knobs, points, velocity))
        with np.errstate(over="ignore"):
            cost = theta @ (x1 - x0)
        # Every third Chebyshev node is a Chebyshev node of the rule with a third of the points.
        if not np.all(np.abs(cost) < 1e100):  # noise too small for the drift: no such momentum
            continue
        action, coarse = float(fejer(POINTS) @ cost), float(fejer(POINTS // 3) @ cost[1::3])
        path = Instanton(
            action,
            action / h.temperature,
            points,
            s,
            theta,
            mu,
            x1,
            abs(action - coarse),
            0,
            np.zeros((0, 1)),
            h.notes,
        )
        if np.isfinite(action) and _reachable(h, path):
            out.append(path)
    if not out:
        raise RunError(_never(h, x0, targets[0]))
    return sorted(out, key=lambda path: path.action)


@lru_cache(maxsize=8)
def fejer(n: int) -> np.ndarray:
    """Weights (n,) of Fejer's first rule on (0, 1), at n Chebyshev nodes."""
    angle = np.pi * (np.arange(n) + 0.5) / n
    k = np.arange(1, n // 2 + 1)
    return np.asarray((1 - 2 * (np.cos(2 * np.outer(angle, k)) / (4 * k**2 - 1)).sum(axis=1)) / n)


def _from_characteristic(h: Hamiltonian, x0: np.ndarray, c: Characteristic) -> Instanton:
    """The extremal at 129 interior Chebyshev points of its length."""
    from scipy.interpolate import CubicSpline

    lengths = np.linalg.norm(np.diff(c.points, axis=0, prepend=x0[None]), axis=1).cumsum()
    moves = np.append(True, np.diff(lengths) > 1e-12 * lengths[-1])
    both = np.concatenate([c.points, c.theta], axis=1)[moves]
    s = 0.5 * (1 - np.cos(np.pi * (np.arange(POINTS) + 0.5) / POINTS))
    points, theta = np.split(CubicSpline(lengths[moves] / lengths[-1], both)(s), 2, axis=1)
    speed = np.asarray(
        jax.vmap(jax.grad(h.value, argnums=1))(jnp.asarray(points), jnp.asarray(theta))
    )
    return Instanton(
        c.action,
        c.action / h.temperature,
        points,
        s,
        theta,
        lengths[-1] / np.linalg.norm(speed, axis=1),
        c.points[-1],
        abs(c.action) * (1e-7 + (c.gap / lengths[-1]) ** 2),
        notes=h.notes,
    )


def _instanton(h: Hamiltonian, x0: np.ndarray, f: ritz.Found, frame: Frame | None) -> Instanton:
    """The curve with its momenta, re-measured at 129 interior Chebyshev points."""
    s = 0.5 * (1 - np.cos(np.pi * (np.arange(POINTS) + 0.5) / POINTS))
    points, velocity = ritz.curve_at(x0, f.end, f.coefficients, s, frame)
    theta, mu = _momentum(h.family)(h.knobs, points, velocity)
    notes = list(h.notes)
    if h.quadratic and floor_needed(h, points[64]):
        notes.append(f"singular noise: directions without noise were given {FLOOR:g} of its mean")
    error = f.quadrature + f.truncation + f.residual**2 + 1e-12 * abs(f.action)
    out = Instanton(
        f.action,
        f.action / h.temperature,
        points,
        s,
        np.asarray(theta),
        np.asarray(mu),
        f.end,
        error,
        f.index,
        f.coefficients,
        tuple(notes),
    )
    return (
        out
        if _converged(f)
        else replace(out, notes=(*out.notes, f"not converged: gradient {f.residual:.2g}"))
    )
