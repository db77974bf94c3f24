"""Laws of SGD and of its diffusions side by side over time, and how far they are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dynamics import SGD, diffusion_approximation
from ..errors import InputError, require, whole
from ..law import (
    GridLaw,
    generator,
    law_after,
    resample,
    total_variation,
    transfer_operator,
    wasserstein,
)
from ..law.reach import reachable_interval

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Snapshots:
    """Laws of a 1-D chain and of its diffusions side by side, on common cells.

    Attributes
    ----------
    steps
        SGD steps of the snapshots (k,).
    centres
        Centres of the cells (n,).
    densities
        Per process ("SGD", "order 1", "order 2"): (k, n) mean density of each cell.
    total_variation
        Per diffusion: (k,) distance in [0, 1] from SGD, on these cells.
    wasserstein
        Per diffusion: (k,) Wasserstein-1 distance from SGD, in units of x.
    """

    steps: tuple[int, ...]
    centres: Floats
    densities: dict[str, Floats]
    total_variation: dict[str, Floats]
    wasserstein: dict[str, Floats]

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe dictionary for a figure."""
        return {
            "steps": list(self.steps),
            "centres": self.centres.tolist(),
            "densities": {k: v.tolist() for k, v in self.densities.items()},
            "total_variation": {k: v.tolist() for k, v in self.total_variation.items()},
            "wasserstein": {k: v.tolist() for k, v in self.wasserstein.items()},
        }


def snapshots(sgd: SGD, x0: float, steps: Sequence[int], cells: int = 200) -> Snapshots:
    """Densities of SGD and of its diffusions of order 1 and 2 after some numbers of steps.

    Laws are compared on `cells` common cells, as SGD with finitely many examples has atoms and no
    density of its own.

    Examples
    --------
    >>> from batchwell import SGD, additive
    >>> out = snapshots(SGD(additive(lambda x: x @ x / 2), 0.1), 1.0, [2, 20])
    >>> bool(out.total_variation["order 1"][1] < 0.05)
    True
    """
    times = tuple(whole("steps", s) for s in steps)
    require(sgd.loss.dim == 1, "dim", sgd.loss.dim, "snapshots are drawn in one dimension")
    place = reachable_interval(sgd, x0, max(times))
    open_ends: Any = place if place is not None else (-math.inf, math.inf)
    ops = {"SGD": transfer_operator(sgd, open_ends, include=(x0,))}
    for order in (1, 2):
        ops[f"order {order}"] = generator(
            diffusion_approximation(sgd, order), (-math.inf, math.inf), include=(x0,)
        )
    laws = {k: [law_after(op, [x0], t) for t in times] for k, op in ops.items()}
    centres = _common_cells([law for row in laws.values() for law in row], cells)
    on_cells = {k: [resample(law, centres[:, None]) for law in row] for k, row in laws.items()}
    width = centres[1] - centres[0]
    names = [k for k in laws if k != "SGD"]
    pairs = {k: list(zip(on_cells[k], on_cells["SGD"], strict=True)) for k in names}
    full = {k: list(zip(laws[k], laws["SGD"], strict=True)) for k in names}
    return Snapshots(
        times,
        centres,
        {k: np.array([c.mass / width for c in row]) for k, row in on_cells.items()},
        {k: np.array([total_variation(a, b) for a, b in pairs[k]]) for k in names},
        {k: np.array([wasserstein(a, b) for a, b in full[k]]) for k in names},
    )


def _common_cells(laws: list[GridLaw], cells: int) -> Floats:
    """Centres of equal cells that hold all but 1e-6 of every law."""
    low, high = math.inf, -math.inf
    for law in laws:
        share = np.cumsum(np.maximum(law.mass, 0)) / np.maximum(law.mass, 0).sum()
        x = law.nodes[:, 0]
        first, last = np.searchsorted(share, [1e-6, 1 - 1e-6])
        low = min(low, float(x[int(first)]))
        high = max(high, float(x[min(int(last), len(x) - 1)]))
    if not low < high:
        raise InputError("steps", "one point", "must leave time for the law to spread")
    width = (high - low) / cells
    return np.asarray(low + width * (np.arange(cells) + 0.5), dtype=np.float64)
