"""Laws of SGD and of its diffusions side by side over time, and how far they are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..dynamics import SGD, diffusion_approximation
from ..errors import InputError, require, whole
from ..law import GridLaw, wasserstein
from ..law.forward import grid_laws
from ..law.reach import reachable_box
from ..points import point

Floats = NDArray[np.float64]

CELLS = {1: 200, 2: 64}
# Mesh against which the resolution is judged.
COARSE = {1: 1000, 2: 100}
# Mass of every law that may lie outside of the cells, per side and direction.
OUTSIDE = {1: 1e-6, 2: 1e-4}
REACH, WIDENINGS, LOST = 6.0, 6, 1e-6
DIRECTIONS = 32


@dataclass(frozen=True, eq=False)
class Snapshots:
    """Laws of SGD and of its diffusions side by side, on common cells in 1 or 2 dimensions.

    Attributes
    ----------
    steps
        SGD steps of the snapshots (k,).
    centres
        Per direction, centres of the cells (n,).
    densities
        Per process ("SGD", "order 1", "order 2"): (k, n) or (k, n, n) mean density of each cell.
    total_variation
        Per diffusion: (k,) distance in [0, 1] from SGD, on these cells.
    wasserstein
        Per diffusion: (k,) Wasserstein-1 distance from SGD, in units of x; in two dimensions the
        sliced one, its mean over directions (Bonneel et al., J. Math. Imaging Vis. 51, 2015).
    resolution
        (k,) total variation that the meshes themselves leave uncertain: the largest distance of
        one process's law from the same law on a coarser mesh.
    """

    steps: tuple[int, ...]
    centres: tuple[Floats, ...]
    densities: dict[str, Floats]
    total_variation: dict[str, Floats]
    wasserstein: dict[str, Floats]
    resolution: Floats

    def marginal(self, name: str, direction: int) -> Floats:
        """(k, n) density of one coordinate of process `name`."""
        density = self.densities[name]
        for i in range(len(self.centres), 0, -1):
            if i - 1 != direction:
                width = self.centres[i - 1][1] - self.centres[i - 1][0]
                density = density.sum(axis=i) * width
        return density

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe dictionary for a figure."""
        return {
            "steps": list(self.steps),
            "centres": [c.tolist() for c in self.centres],
            "densities": {k: v.round(7).tolist() for k, v in self.densities.items()},
            "total_variation": {k: v.tolist() for k, v in self.total_variation.items()},
            "wasserstein": {k: v.tolist() for k, v in self.wasserstein.items()},
            "resolution": self.resolution.tolist(),
        }


def snapshots(
    sgd: SGD, start: ArrayLike, steps: Sequence[int], cells: int | None = None
) -> Snapshots:
    """Densities of SGD and of its diffusions of order 1 and 2 after some numbers of steps.

    Laws are compared on `cells` common cells per direction (200 in 1-D, 64 in 2-D), as SGD with
    finitely many examples has atoms and no density of its own.

    Raises
    ------
    InputError
        More than 2 dimensions, one step only of noise that makes a single point, or a law that
        no box holds.

    Examples
    --------
    >>> from batchwell import SGD, additive
    >>> out = snapshots(SGD(additive(lambda x: x @ x / 2), 0.1), 1.0, [2, 20])
    >>> bool(out.total_variation["order 1"][1] < 0.05)
    True
    """
    times = tuple(sorted({whole("steps", s) for s in steps}))
    d = sgd.loss.dim
    require(d in (1, 2), "dim", d, "snapshots are drawn in one or two dimensions")
    x = point("start", start, d)
    box, chain = _held(sgd, x, times)
    flows = {f"order {o}": diffusion_approximation(sgd, o) for o in (1, 2)}
    rest = {k: grid_laws(v, box, x, times) for k, v in flows.items()}
    laws = {"SGD": chain, **rest}
    rough = {k: grid_laws(v, box, x, times, COARSE[d]) for k, v in flows.items()}
    rough["SGD"] = grid_laws(sgd, box, x, times, COARSE[d])
    count = CELLS[d] if cells is None else whole("cells", cells, 4)
    edges = _common_edges([law for row in laws.values() for law in row], count)
    volume = math.prod(e[1] - e[0] for e in edges)
    fine, coarse = (
        {k: np.array([_binned(law, edges) for law in row]) for k, row in table.items()}
        for table in (laws, rough)
    )
    names = [k for k in laws if k != "SGD"]
    return Snapshots(
        times,
        tuple((e[1:] + e[:-1]) / 2 for e in edges),
        {k: v / volume for k, v in fine.items()},
        {k: _variation(fine[k], fine["SGD"]) for k in names},
        {k: _transport(laws[k], chain, fine[k], fine["SGD"], edges) for k in names},
        np.max([_variation(fine[k], coarse[k]) for k in laws], axis=0),
    )


def _variation(first: Floats, second: Floats) -> Floats:
    gap = np.abs(first - second)
    return gap.reshape(len(gap), -1).sum(axis=1) / 2


def _held(sgd: SGD, start: Floats, times: tuple[int, ...]) -> tuple[Floats, list[GridLaw]]:
    """A box that SGD does not leave, and its laws there."""
    box = reachable_box(sgd, start, max(times), REACH)
    for _ in range(WIDENINGS):
        laws = grid_laws(sgd, box, start, times)
        if abs(laws[-1].lost) < LOST:
            return box, laws
        middle, half = box.mean(axis=0), 0.7 * (box[1] - box[0])
        box = np.stack([middle - half, middle + half])
    raise InputError(
        "start", start.tolist(), f"no box holds the law from there: it loses {laws[-1].lost:.2g}"
    )


def _axes(law: GridLaw) -> list[Floats]:
    """Edges of the nodes' own cells per direction of a Cartesian grid; ends are half cells."""
    axes = [np.unique(column) for column in law.nodes.T]
    return [np.concatenate([a[:1], (a[1:] + a[:-1]) / 2, a[-1:]]) for a in axes]


def _common_edges(laws: list[GridLaw], cells: int) -> tuple[Floats, ...]:
    """Edges of equal cells, per direction, that hold nearly all of every law."""
    d = laws[0].nodes.shape[1]
    ends = []
    for law in laws:
        axes = _axes(law)
        mass = np.maximum(law.mass, 0).reshape([len(a) - 1 for a in axes])
        for i, axis in enumerate(axes):
            along = np.cumsum(mass.sum(axis=tuple(j for j in range(d) if j != i)))
            first, last = np.searchsorted(along / along[-1], [OUTSIDE[d], 1 - OUTSIDE[d]])
            ends.append((axis[first], axis[min(int(last), len(axis) - 2) + 1]))
    table = np.reshape(ends, (len(laws), d, 2))
    low, high = table[:, :, 0].min(axis=0), table[:, :, 1].max(axis=0)
    return tuple(np.linspace(a, b, cells + 1) for a, b in zip(low, high, strict=True))


def _binned(law: GridLaw, edges: tuple[Floats, ...]) -> Floats:
    """Mass in the cells; each node's mass is spread evenly over its own cell."""
    axes = _axes(law)
    out = law.mass.reshape([len(a) - 1 for a in axes])
    for i, (own, edge) in enumerate(zip(axes, edges, strict=True)):
        share = np.clip((edge[:, None] - own[:-1]) / np.diff(own), 0, 1)
        out = np.moveaxis(np.tensordot(np.diff(share, axis=0), out, axes=(1, i)), 0, i)
    return out


def _transport(
    first: list[GridLaw], second: list[GridLaw], a: Floats, b: Floats, edges: tuple[Floats, ...]
) -> Floats:
    """Wasserstein-1 distances at each time, exact in 1-D and sliced in 2-D."""
    if len(edges) == 1:
        return np.array([wasserstein(p, q) for p, q in zip(first, second, strict=True)])
    from scipy.stats import wasserstein_distance

    middles = [(e[1:] + e[:-1]) / 2 for e in edges]
    points = np.stack([g.ravel() for g in np.meshgrid(*middles, indexing="ij")], axis=1)
    angles = np.pi * (np.arange(DIRECTIONS) + 0.5) / DIRECTIONS
    lines = np.stack([np.cos(angles), np.sin(angles)])
    weights = [np.maximum(v.reshape(len(v), -1), 0) for v in (a, b)]
    return np.array(
        [
            np.mean([wasserstein_distance(p, p, u, v) for p in (points @ lines).T])
            for u, v in zip(*weights, strict=True)
        ]
    )
