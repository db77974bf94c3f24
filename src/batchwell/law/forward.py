"""Laws over time on Cartesian grids in 1-D and 2-D, forward and sparse: for pictures and distances.

Each step sends the mass of a node to the points where the process takes it (the minibatches, or
the nodes of a rule for the noise), and there to the 4 nodes around per direction by cubic Lagrange
weights: mass and the first three moments of every landing are kept, so that the grid adds no
diffusion of its own. Weights may be negative: such laws do not serve exit times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from ..dynamics import Diffusion, Process
from ..errors import require
from ..noise import noise_law
from .densities import gauss_rule, mean_density, product_nodes, quadrature
from .fields import evaluate
from .kernel import AtomKernel, kernel, with_rule
from .memory import check_bytes
from .questions import GridLaw

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WIDTH = 4  # nodes of the Lagrange weights, per direction
# Gauss nodes of the noise per direction. The first step starts from one point and takes a fine
# quadrature instead, so that the law is smooth from there on.
NOISE_NODES = {1: 12, 2: 4}
SUBSTEPS = 4  # of a diffusion per SGD step
CELLS = {1: 1600, 2: 160}


def grid_laws(
    process: Process,
    bounds: ArrayLike,
    start: ArrayLike,
    steps: Sequence[int],
    cells: int | None = None,
) -> list[GridLaw]:
    """Laws of a process from `start` after each of `steps` SGD steps, on nodes of a box.

    A diffusion is carried by Strang's splitting of drift (Runge-Kutta) and noise (Gauss nodes), four
    times per SGD step: second order in that substep, and it may be degenerate.

    Parameters
    ----------
    bounds
        (2, d): lower and upper corner, d = 1 or 2. What lands outside is `lost`.
    steps
        Increasing numbers of steps, at least 1.
    cells
        Per direction; 1600 in 1-D and 160 in 2-D by default.

    Returns
    -------
    One `GridLaw` per entry of `steps`; nodes in C order of the directions.

    Examples
    --------
    >>> from batchwell import SGD, additive
    >>> sgd = SGD(additive(lambda x: x @ x / 2, "rademacher", dim=2), 0.1)
    >>> (law,) = grid_laws(sgd, ((-2, -2), (2, 2)), [1.0, 0.0], [10])
    >>> law.mean.round(8).tolist()  # (1 - eta)^10
    [0.34867844, 0.0]
    """
    box = np.asarray(bounds, dtype=np.float64)
    d = box.shape[1]
    require(box.shape in ((2, 1), (2, 2)), "bounds", box.shape, "must be (2, 1) or (2, 2)")
    times = [int(k) for k in steps]
    require(times == sorted(times) and times[0] >= 1, "steps", steps, "must increase from 1 on")
    count = CELLS[d] if cells is None else cells
    axes = [np.linspace(a, b, count + 1) for a, b in box.T]
    nodes = np.stack([g.ravel() for g in np.meshgrid(*axes, indexing="ij")], axis=1)
    forward = _rows(process, box, count, nodes, NOISE_NODES[d]).T.tocsr()
    start = np.asarray(start, dtype=np.float64).reshape(1, d)
    mass = _rows(process, box, count, start, None).toarray()[0]
    weights = _volumes(box, count)
    per_step = SUBSTEPS if isinstance(process, Diffusion) else 1
    out, done = [], 1
    for k in times:
        for _ in range(k * per_step - done):
            mass = forward @ mass
        done = k * per_step
        out.append(GridLaw(nodes, mass, weights, lost=float(1 - mass.sum())))
    return out


def _volumes(box: Floats, count: int) -> Floats:
    inner = np.ones(count + 1)
    inner[[0, -1]] = 0.5
    spacing = (box[1] - box[0]) / count
    return np.asarray(math.prod(np.meshgrid(*(inner * h for h in spacing), indexing="ij"))).ravel()


def _rows(
    process: Process, box: Floats, count: int, x: Floats, noise_nodes: int | None
) -> sparse.csr_array:
    """Transition weights (m, n) from points x (m, d) to the nodes."""
    to, chances = landings(process, x, noise_nodes)
    m, k, d = to.shape
    check_bytes("cells", count, 24.0 * WIDTH**d * m * k)
    s = (to.reshape(-1, d) - box[0]) / (box[1] - box[0]) * count
    inside = np.all((s >= 0) & (s <= count), axis=1)
    columns: Any = np.zeros((m * k, 1), dtype=np.int64)
    values = np.where(inside, np.tile(chances, m), 0.0)[:, None]
    for i in range(d):
        place, weight = _lagrange(np.clip(s[:, i], 0, count), count)
        columns = (columns[:, :, None] * (count + 1) + place[:, None, :]).reshape(m * k, -1)
        values = (values[:, :, None] * weight[:, None, :]).reshape(m * k, -1)
    rows = np.repeat(np.arange(m), k * WIDTH**d)
    shape = (m, (count + 1) ** d)
    return sparse.csr_array((values.ravel(), (rows, columns.ravel())), shape=shape)


def _lagrange(s: Floats, count: int) -> tuple[Ints, Floats]:
    """Nodes and weights (m, WIDTH) of cubic interpolation at grid coordinates s (m,)."""
    first = np.clip(np.floor(s).astype(np.int64) - 1, 0, count + 1 - WIDTH)
    t = s - first
    weights = [
        -(t - 1) * (t - 2) * (t - 3) / 6,
        t * (t - 2) * (t - 3) / 2,
        -t * (t - 1) * (t - 3) / 2,
        t * (t - 1) * (t - 2) / 6,
    ]
    return first[:, None] + np.arange(WIDTH), np.stack(weights, axis=1)


# ------------------------------------------------------------------ landings


def landings(process: Process, x: Floats, noise_nodes: int | None) -> tuple[Floats, Floats]:
    """Points (m, k, d) that stand for one (sub)step from x (m, d), and their chances (k,)."""
    if isinstance(process, Diffusion):
        return _substep(process, x, noise_nodes)
    step = kernel(process)
    points = step if isinstance(step, AtomKernel) else with_rule(step, noise_nodes)
    return points.images(x), points.chances


def _substep(flow: Diffusion, x: Floats, noise_nodes: int | None) -> tuple[Floats, Floats]:
    time = flow.learning_rate / SUBSTEPS
    middle = _drifted(flow, x, time / 2)
    values, vectors = np.linalg.eigh(evaluate(flow, "tensor", middle))
    factor = vectors * np.sqrt(np.maximum(values, 0.0) * time)[:, None, :]
    law = mean_density(noise_law("gaussian"))
    z, w = quadrature(law) if noise_nodes is None else gauss_rule(law, noise_nodes)
    noise, chances = product_nodes(z, w, x.shape[1])
    spread = middle[:, None] + np.einsum("mdj,kj->mkd", factor, noise)
    return _drifted(flow, spread.reshape(x.shape[0] * len(noise), -1), time / 2).reshape(
        spread.shape
    ), chances


def _drifted(flow: Diffusion, x: Floats, time: float) -> Floats:
    """The flow of the drift alone, by one Runge-Kutta step of fourth order."""

    def drift(y: Floats) -> Floats:
        return evaluate(flow, "drift", y)

    a = drift(x)
    b = drift(x + 0.5 * time * a)
    c = drift(x + 0.5 * time * b)
    return np.asarray(x + time / 6 * (a + 2 * b + 2 * c + drift(x + time * c)))
