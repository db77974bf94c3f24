"""Where nothing leads out: bounded or degenerate noise that holds a process for ever."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order

from ..errors import InputError
from .operator import Operator, check_point

Floats = NDArray[np.float64]


def trapped(op: Operator, start: ArrayLike) -> str:
    """Why the process, started at start (d,), may never leave; an empty string where it surely does.

    Raises
    ------
    InputError
        A diffusion's domain has a part without a way out, but not around start.
    """
    reason = trapped_surely(op, start)
    if reason or not op.stuck.any():
        return reason
    x = check_point(op, start)
    row = sparse.csr_array(op.row(x[None])[0])
    comes = np.zeros(op.size, dtype=bool)
    for node in row.indices[row.data != 0]:
        if not comes[node]:
            comes[breadth_first_order(op.rates, int(node), return_predecessors=False)] = True
    held = np.flatnonzero(comes & op.stuck)
    if len(held):
        cause = "no noise" if op.kind == "diffusion" else "no noise, which is bounded,"
        return f"{cause} leads out of the domain from around x = {op.nodes[held[0]].round(4)}"
    if op.kind == "chain":
        return ""
    place = op.nodes[np.flatnonzero(op.stuck)[0]].round(4)
    raise InputError(
        "domain",
        "a part without a way out",
        f"must not hold points like x = {place}, from which no noise leads to its boundary: cut "
        "them off",
    )


def trapped_surely(op: Operator, start: ArrayLike) -> str:
    """Why the process can never leave from start, or an empty string."""
    x = check_point(op, start)
    if op.image is not None:
        low, high = reachable(op, float(x[0]))
        if op.nodes[0, 0] < low and high < op.nodes[-1, 0]:
            return (
                f"the noise is bounded: from x = {x[0]:.6g} SGD never leaves "
                f"[{low:.6g}, {high:.6g}] (a diffusion would)"
            )
    if not np.any(op.exits > 0):
        return "the domain has no boundary that can be crossed"
    return ""


def reachable(op: Operator, start: float) -> tuple[float, float]:
    """Interval that SGD with bounded noise can reach from start, as far as the nodes show."""
    assert op.image is not None
    y = op.nodes[:, 0]
    low = high = start
    for _ in range(100000):
        near = (y >= low) & (y <= high)
        near |= np.abs(y - start) <= (y[1] - y[0] if len(y) > 1 else 0)
        a = min(low, float(op.image[near, 0].min()))
        b = max(high, float(op.image[near, 1].max()))
        if a == low and b == high:
            break
        low, high = a, b
    return low, high
