"""Quasi-potential fields in the plane: V(x) for every x of a grid at once.

The kernel is in `upwind`; here a process becomes its grids, and the field answers questions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import RegularGridInterpolator
from scipy.linalg import solve_continuous_lyapunov
from scipy.ndimage import maximum_filter

from .._jax import jax, jnp
from ..dynamics import Process
from ..errors import InputError, require, whole
from .fixed_points import newton
from .hamiltonian import Hamiltonian, hamiltonian
from .upwind import march

DEFAULT_NODES = 257
LEAST_NODES = 17
# Within so many grid steps of the start V is taken from the linearised process.
SEED_STEPS = 2.5
# Drift at the start, relative to the largest in the box, that still counts as zero.
ZERO = 1e-6
# Least eigenvalue of Sigma relative to the largest one.
SINGULAR = 1e-10
CHUNK = 8192
# Nodes of the coarser grid, along each axis, whose largest error each of them is given.
NEIGHBOURHOOD = 5


@dataclass(frozen=True, eq=False)
class QuasiPotentialField:
    """V on a grid: the least action of a path from `start` to each node.

    Attributes
    ----------
    axes
        Coordinates (nx,) and (ny,) of the nodes.
    values
        V (nx, ny), in units where ``E tau ~ exp(V / eps)``.
    errors
        (nx, ny) stated error: twice the largest difference nearby between the solutions of this grid and of
        that of twice the spacing, by which `values` are extrapolated. That covers what is left
        where the method converges at any order above 0.42; an estimate, no bound.
    reached
        (nx, ny): where V is below `edge`.
    edge
        Least V on the box's own edge. Up to it V is that of the whole plane; above it, of
        paths that stay in the box.
    start
        (2,) the stable zero of the drift.
    temperature
        eps of the process that it came from.
    steps
        (nx, ny, 2): the last segment of the best path found to each node.
    notes
        Regime.
    """

    axes: tuple[np.ndarray, np.ndarray]
    values: np.ndarray = field(repr=False)
    errors: np.ndarray = field(repr=False)
    reached: np.ndarray = field(repr=False)
    edge: float
    start: np.ndarray
    temperature: float
    steps: np.ndarray = field(repr=False)
    notes: tuple[str, ...] = ()

    def __call__(self, points: ArrayLike) -> Any:
        """V at points (..., 2) of the box, bilinear between nodes: shape (...)."""
        return self._between(self.values, points)

    def error(self, points: ArrayLike) -> Any:
        """Stated error of V at points (..., 2): shape (...)."""
        return self._between(self.errors, points)

    def path(self, end: ArrayLike) -> np.ndarray:
        """Least-action path (m, 2) from the start to `end` (2,), by following the steps back."""
        x = np.asarray(self._points(end), dtype=np.float64)
        require(x.shape == (2,), "end", x.shape, "must have shape (2,)")
        h = np.array([a[1] - a[0] for a in self.axes])
        back = RegularGridInterpolator(self.axes, self.steps)
        low, high = (np.array([a[k] for a in self.axes]) for k in (0, -1))
        out = [x]
        for _ in range(20 * sum(self.values.shape)):
            if np.linalg.norm((x - self.start) / h) <= SEED_STEPS:
                break
            step = back(x)[0]
            # Half a grid step at a time: longer ones would cut the corners of a curved path.
            x = np.clip(x - 0.5 * step / max(np.linalg.norm(step / h), 1e-300), low, high)
            out.append(x)
        return np.array([self.start, *out[::-1]])

    def _between(self, table: np.ndarray, points: ArrayLike) -> Any:
        out = RegularGridInterpolator(self.axes, table)(self._points(points))
        return out if np.ndim(points) > 1 else float(out[0])

    def _points(self, points: ArrayLike) -> np.ndarray:
        x = np.asarray(points, dtype=np.float64)
        require(x.ndim >= 1 and x.shape[-1] == 2, "points", x.shape, "must have shape (..., 2)")
        low, high = (np.array([a[k] for a in self.axes]) for k in (0, -1))
        inside = ((x >= low) & (x <= high)).all()
        require(bool(inside), "points", points, "must lie in the box of the field")
        return x


def quasi_potential_field(
    process: Process,
    start: ArrayLike,
    bounds: ArrayLike,
    *,
    nodes: int | tuple[int, int] = DEFAULT_NODES,
    radius: int | None = None,
) -> QuasiPotentialField:
    """V(x) from a stable zero of the drift to every x of a box in the plane.

    ``V(x) = inf 1/2 int (xdot - b)^T Sigma^-1 (xdot - b) dt`` over paths and durations, for any
    drift b, gradient or not, and any invertible Sigma(x). `instantons` is the route to one end
    and to many digits; this is the route to all of them, and cannot miss the best path.

    Parameters
    ----------
    process
        A diffusion, or SGD with Gaussian noise.
    start
        (2,) a stable zero of the drift.
    bounds
        ``((x low, x high), (y low, y high))``.
    nodes
        Of the grid along each axis; even numbers are raised by one, so that every other node
        makes the coarser grid of the stated error.
    radius
        Longest segment of a path in grid steps; by default Dahiya & Cameron's rule
        ``10 + 4 log2(nodes / 128)``.

    Raises
    ------
    InputError
        Not two dimensions; start outside the bounds or not a stable zero (names the nearest
        one); singular noise; SGD whose Hamiltonian is not quadratic (see `quasi_potential`).

    References
    ----------
    Ordered line integral method with Simpson's rule: Dahiya & Cameron, J. Sci. Comput. 75 (2018);
    Cameron, Physica D 241 (2012); Sethian & Vladimirsky, SIAM J. Numer. Anal. 41 (2003).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from batchwell import diffusion, quasi_potential_field
    >>> well = diffusion(lambda x: -x, lambda x: jnp.eye(2), dim=2)
    >>> v = quasi_potential_field(well, [0.0, 0.0], [(-1, 1), (-1, 1)], nodes=65)
    >>> abs(v([0.5, 0.5]) - 0.5) < 5e-3  # V = 2 F = |x|^2
    True
    """
    h = hamiltonian(process)
    require(h.dim == 2, "process", f"{h.dim}-dimensional", "must have dimension 2")
    if not h.quadratic:
        raise InputError(
            "process",
            "SGD with its own Hamiltonian",
            "has no field yet: use quasi_potential point by point, or its diffusion_approximation",
        )
    box, counts = _box(bounds), _counts(nodes)
    if radius is not None:
        radius = whole("radius", radius, 1)
    axes = tuple(np.linspace(box[k, 0], box[k, 1], counts[k]) for k in (0, 1))
    drift, metric = _grids(h, [np.linspace(a[0], a[-1], 2 * len(a) - 1) for a in axes])
    x0, form = _start(h, start, box, float(np.linalg.norm(drift, axis=-1).max()))
    fine, steps = _solve(axes, drift, metric, x0, form, radius)
    coarse = tuple(a[::2] for a in axes)
    rough = _solve(coarse, drift[::2, ::2], metric[::2, ::2], x0, form, radius)[0]
    mesh = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    # Errors of first order: what the finer grid still misses is what it gained on the coarser.
    gain = fine[::2, ::2] - rough
    # The gain may change sign: the error near there is that of the neighbourhood.
    around = 2 * maximum_filter(np.abs(gain), NEIGHBOURHOOD)
    values = fine + RegularGridInterpolator(coarse, gain)(mesh)
    errors = RegularGridInterpolator(coarse, around)(mesh)
    edge = float(min(v.min() for v in (values[0], values[-1], values[:, 0], values[:, -1])))
    reached = values <= edge
    return QuasiPotentialField(
        (axes[0], axes[1]),
        values,
        errors,
        reached,
        edge,
        x0,
        h.temperature,
        steps,
        (*h.notes, f"V > {edge:.6g}: of paths inside the box (elsewhere of the whole plane)"),
    )


def _box(bounds: ArrayLike) -> np.ndarray:
    try:
        box = np.asarray(bounds, dtype=np.float64)
    except (TypeError, ValueError):
        box = np.zeros(0)
    good = box.shape == (2, 2) and bool(np.isfinite(box).all() and (box[:, 0] < box[:, 1]).all())
    require(good, "bounds", bounds, "must be ((x low, x high), (y low, y high)), low < high")
    return box


def _counts(nodes: Any) -> tuple[int, int]:
    pair = nodes if isinstance(nodes, tuple | list) else (nodes, nodes)
    require(len(pair) == 2, "nodes", nodes, "must be one whole number or two")
    a, b = (whole("nodes", n, LEAST_NODES) for n in pair)
    return a + 1 - a % 2, b + 1 - b % 2


def _grids(h: Hamiltonian, axes: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Drift (m, n, 2) and Sigma^-1 (m, n, 3) at the nodes of these axes (m,), (n,)."""
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    many = jax.jit(jax.vmap(lambda x: (h.drift(x), h.tensor(x))))
    # The last chunk is filled up, so that one shape is compiled.
    filled = np.concatenate([points, np.repeat(points[-1:], -len(points) % CHUNK, axis=0)])
    parts = [many(jnp.asarray(x)) for x in np.split(filled, len(filled) // CHUNK)]
    drift, sigma = (
        np.concatenate([np.asarray(p[k]) for p in parts])[: len(points)] for k in (0, 1)
    )
    finite = np.isfinite(drift).all(axis=1) & np.isfinite(sigma).all(axis=(1, 2))
    require(bool(finite.all()), "bounds", points[~finite][:1], "has a drift or noise not finite")
    a, b, c = sigma[:, 0, 0], sigma[:, 0, 1], sigma[:, 1, 1]
    least = np.linalg.eigvalsh(sigma)
    singular = least[:, 0] <= SINGULAR * least[:, 1].max()
    if singular.any():
        at = ", ".join(f"{v:.4g}" for v in points[singular][0])
        raise InputError("process", "singular noise", f"must have an invertible tensor; at ({at})")
    metric = np.stack([c, -b, a], axis=1) / (a * c - b * b)[:, None]
    shape = (len(axes[0]), len(axes[1]))
    return drift.reshape(*shape, 2), metric.reshape(*shape, 3)


def _start(
    h: Hamiltonian, start: ArrayLike, box: np.ndarray, largest: float
) -> tuple[np.ndarray, np.ndarray]:
    """The stable zero and the form Q (2, 2) with V ~ (x - x0) . Q (x - x0) around it.

    The linearised process has stationary covariance eps C, A C + C A^T + Sigma = 0, hence
    V = (x - x0) . C^-1 (x - x0) / 2.
    """
    x0 = np.asarray(start, dtype=np.float64)
    require(x0.shape == (2,), "start", x0.shape, "must have shape (2,)")
    inside = bool(((x0 > box[:, 0]) & (x0 < box[:, 1])).all())
    require(inside, "start", x0, "must lie inside the bounds")
    left = float(np.linalg.norm(h.drift(jnp.asarray(x0))))
    if left > ZERO * largest:
        near = np.asarray(newton(h.drift)(jnp.asarray(x0[None])))[0]
        # Newton's rounding about a zero coordinate is not shown.
        near = np.where(np.abs(near) < 1e-12 * np.abs(box).max(), 0.0, near)
        at = ", ".join(f"{v:.6g}" for v in near)
        raise InputError(
            "start", x0, f"must be a stable zero of the drift (|b| = {left:.3g}); nearest ({at})"
        )
    jacobian = np.asarray(jax.jacfwd(h.drift)(jnp.asarray(x0)))
    rate = float(np.linalg.eigvals(jacobian).real.max())
    require(rate < 0, "start", x0, f"must be a stable zero of the drift (largest rate {rate:.3g})")
    spread = solve_continuous_lyapunov(jacobian, -np.asarray(h.tensor(jnp.asarray(x0))))
    return x0, 0.5 * np.linalg.inv(spread)


def _solve(
    axes: tuple[np.ndarray, ...],
    drift: np.ndarray,
    metric: np.ndarray,
    x0: np.ndarray,
    form: np.ndarray,
    radius: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Values (nx, ny) and last segments (nx, ny, 2)."""
    h = np.array([a[1] - a[0] for a in axes])
    away = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1) - x0
    near = np.linalg.norm(away / h, axis=-1) <= SEED_STEPS
    values = np.where(near, np.einsum("xyi,ij,xyj->xy", away, form, away), np.inf)
    steps = away.copy()
    count = max(len(a) for a in axes)
    longest = max(4, round(10 + 4 * math.log2(count / 128))) if radius is None else radius
    march(values, steps, drift, metric, h, longest)
    return values, steps
