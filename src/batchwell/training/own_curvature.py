"""Examples' own curvature: a batch's Hessian is not the data's, which is noise that grows with distance.

With batches drawn independently the covariance M of x - x* obeys, for quadratic losses exactly,
M = (1 - eta H) M (1 - eta H) + eta^2 c (Sigma + E_i D_i M D_i), D_i = H_i - H and c the noise
factor. In the directions that a spectrum resolves it is solved; what lies beyond them is averaged
over random draws, to first order in eta and in c.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from ..estimate import LEVEL, Estimate
from ..streams import generator
from .lanczos import Vector
from .local import LocalLoss
from .noise import positive_interval

_PLACES, _PROBES = 4, 2  # for each draw of the noise, and directions looked along from each
_FLAT = 1e-9  # relative to the sharpness: directions that never settle


@dataclass(frozen=True, eq=False)
class OwnCurvature:
    """How examples' gradients and Hessians differ from the mean.

    Attributes
    ----------
    gradients, deviations
        (n, k) and (n, k, k): g_i and D_i in the resolved directions.
    beyond
        E_i tr D_i Y D_i less its part in these, H Y + Y H = Sigma, for each draw of the noise.
    """

    gradients: Vector = field(repr=False)
    deviations: Vector = field(repr=False)
    beyond: Vector


@dataclass(frozen=True)
class Added:
    """What examples' own curvature adds to an excess loss; infinite where nothing is stationary."""

    value: float
    stderr: float = 0.0
    interval: tuple[float, float] = (0.0, math.inf)


def own_curvature(local: LocalLoss, basis: Vector, slopes: Vector) -> OwnCurvature:
    """In the directions `basis` (dim, k), along which examples' gradients are `slopes` (k, n)."""
    deviations = np.stack([local.curvatures(q, basis) for q in basis.T], axis=1)
    gradients = (slopes - slopes.mean(1, keepdims=True)).T
    return OwnCurvature(gradients, deviations - deviations.mean(0), np.empty(0))


def sample_beyond(
    local: LocalLoss,
    own: OwnCurvature,
    basis: Vector,
    ritz: tuple[Vector, Vector],
    noise: Vector,
    values: Vector,
    seed: int,
    draw: int,
) -> float:
    """One draw of `OwnCurvature.beyond`, from one of the noise.

    Parameters
    ----------
    ritz
        Ritz values and vectors (dim, m) of the noise off `basis`; `noise` is all of it.
    values
        Eigenvalues to `basis`.
    """
    random = generator(seed, "own curvature", draw)
    nodes, vectors = np.append(values, ritz[0]), np.column_stack([basis, ritz[1]])
    parts = noise @ vectors
    kept = nodes > _FLAT * abs(nodes).max()
    nodes, vectors, parts = nodes[kept], vectors[:, kept], parts[kept]
    # Of one draw Y is parts_j parts_k / (nodes_j + nodes_k) between these vectors.
    sizes, axes = np.linalg.eigh(np.outer(parts, parts) / (nodes[:, None] + nodes))
    roots = axes * np.sqrt(np.maximum(sizes, 0))
    squares = []
    for _ in range(_PLACES):
        place = vectors @ (roots @ random.choice([-1.0, 1.0], sizes.size))
        probes = random.choice([-1.0, 1.0], (local.dim, _PROBES))
        moved = local.curvatures(place, probes)
        inside = np.einsum("ak,nab,b->nk", basis.T @ probes, own.deviations, place @ basis)
        squares.append(((moved - moved.mean(0)) ** 2 - inside**2).mean())
    return float(np.mean(squares))


def added(
    own: OwnCurvature,
    values: Vector,
    eta: float,
    factor: float,
    base: float,
    steps: int | None = None,
    settled: float = 1.0,
) -> Added:
    """Excess loss that is added for independent batches of noise factor `factor`.

    Parameters
    ----------
    values
        (k,) eigenvalues of the resolved directions.
    base
        Excess loss to which it is added.
    steps
        So many after starting at the minimum; None for the stationary value.
    settled
        Share of the stationary excess that is there by then.
    """
    settling = values > _FLAT * abs(values).max() if steps is None else np.full(values.size, True)
    curvatures, k = values[settling], int(settling.sum())
    if k == 0:
        return Added(0.0, 0.0, (0.0, 0.0))
    rows = own.deviations[:, settling][:, :, settling].reshape(-1, k * k)
    # E_i D_i (x) D_i, as it acts on a matrix written out by rows.
    pairs = (rows.T @ rows / len(rows)).reshape(k, k, k, k).transpose(0, 2, 1, 3)
    kept = np.diag(np.outer(1 - eta * curvatures, 1 - eta * curvatures).ravel())
    bent = eta * eta * factor * pairs.reshape(k * k, k * k)
    gradients = own.gradients[:, settling]
    noise = eta * eta * factor * (gradients.T @ gradients).ravel() / len(rows)
    if steps is None and abs(np.linalg.eigvals(kept + bent)).max() >= 1 - 1e-12:
        return Added(math.inf)
    height = 0.5 * np.diag(curvatures).ravel()
    without, whole = (_gathered(step, noise, steps) for step in (kept, kept + bent))
    inside = float(height @ (whole - without))
    if not own.beyond.size:
        return Added(inside, 0.0, (inside, inside))
    rest, scale = _beyond(own.beyond), 0.25 * (eta * factor) ** 2 * settled
    ratio = (inside + scale * rest.value) / base
    if ratio >= 1:  # more than a first order can say: a lower bound
        return Added(inside, math.nan, (inside, math.inf))
    # What was added adds in turn, by about the same ratio.
    scale /= 1 - ratio
    order = 0.5 * (ratio + eta * float(curvatures.max())) * rest.value  # what the first one leaves
    value, error = inside + scale * rest.value, scale * math.hypot(rest.stderr, order)
    low, high = (inside + scale * end for end in rest.interval)
    return Added(value, error, (low - 2 * scale * order, high + 2 * scale * order))


def _gathered(step: Vector, noise: Vector, steps: int | None) -> Vector:
    """Sum of step^j noise over j < steps, or all j."""
    if steps is None:
        return np.asarray(np.linalg.solve(np.eye(len(step)) - step, noise))
    total, power = np.zeros_like(noise), np.eye(len(step))
    for bit in f"{steps:b}":  # of j terms: those of 2 j, and one more
        total, power = total + power @ total, power @ power
        if bit == "1":
            total, power = noise + step @ total, step @ power
    return total


def _beyond(draws: Vector) -> Added:
    from scipy.stats import t as student

    value, stderr = float(draws.mean()), float(draws.std(ddof=1) / math.sqrt(draws.size))
    quantile = float(student.ppf(0.5 + LEVEL / 2, draws.size - 1))
    return Added(value, stderr, positive_interval(value, stderr, quantile))


def plus(answer: Estimate, more: Added) -> Estimate:
    """An excess loss with what is added to it."""
    (low, high), (less, most) = answer.interval, more.interval
    if math.isinf(more.value):
        return replace(
            answer, value=math.inf, stderr=math.nan, interval=(low, math.inf)
        ).with_notes("not stable in mean square: the curvature of batches differs too much")
    if math.isinf(most):
        answer = answer.with_notes(
            "a lower bound: what examples' own curvature adds beyond the resolved directions is not "
            "small; ask noise_spectrum for more of them"
        )
    value = answer.value + more.value
    ends = (
        value - math.hypot(answer.value - low, more.value - less),
        value + math.hypot(high - answer.value, most - more.value),
    )
    stderr = math.hypot(answer.stderr, more.stderr)
    return replace(answer, value=value, stderr=stderr, interval=ends)
