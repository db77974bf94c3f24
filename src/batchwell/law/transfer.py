"""`transfer_operator`: the master equation of SGD, built once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..domain import Domain
from ..dynamics import SGD, need_sgd
from ..errors import InputError, require, whole
from ..points import point
from .chain import chain_operator
from .kernel import AtomKernel, kernel
from .operator import Operator
from .plane import plane_operator
from .questions import GridLaw

MAX_POINTS = 2_000_000


def enumerate_law(sgd: SGD, start: ArrayLike, steps: int, merge: float = 1e-12) -> GridLaw:
    """Exact law of SGD on finite data (or noise with atoms) after `steps` steps, any dimension.

    Every sequence of minibatches is walked; points closer than `merge` (relative to the largest
    coordinate) become one.

    Returns
    -------
    A `GridLaw` of atoms; its weights are 1, as atoms have no volume.

    Raises
    ------
    InputError
        More than two million points would be held.

    Examples
    --------
    >>> from batchwell import SGD, additive
    >>> law = enumerate_law(SGD(additive(lambda x: x @ x / 2, "rademacher"), 0.5), [0.0], 3)
    >>> law.nodes[:, 0].tolist()
    [-0.875, -0.625, -0.375, -0.125, 0.125, 0.375, 0.625, 0.875]
    >>> law.mass.tolist() == [0.125] * 8
    True
    """
    step = kernel(need_sgd(sgd))
    if not isinstance(step, AtomKernel):
        raise InputError("noise", sgd.loss.name, "must have finitely many values to be enumerated")
    points = point("start", start, sgd.loss.dim)[None]
    mass: NDArray[np.float64] = np.ones(1)
    chances = step.batches.chances
    for k in range(whole("steps", steps, 0)):
        count = len(points) * len(chances)
        require(
            count <= MAX_POINTS,
            "steps",
            steps,
            f"gives more than {MAX_POINTS} points at "
            f"step {k + 1}: use transfer_operator or simulate",
        )
        points = step.images(points).reshape(-1, points.shape[1])
        mass = np.outer(mass, chances).ravel()
        scale = merge * max(1.0, float(np.max(np.abs(points))))
        _, first, which = np.unique(
            np.round(points / scale), axis=0, return_index=True, return_inverse=True
        )
        points = points[first]
        mass = np.bincount(which.ravel(), mass).astype(np.float64)
    return GridLaw(points, mass, np.ones(len(mass)))


def transfer_operator(
    sgd: SGD,
    place: Domain | Sequence[Any],
    nodes: int | None = None,
    method: str = "auto",
    include: tuple[float, ...] = (),
) -> Operator:
    """Transfer operator of SGD inside a domain: law -> law of x - eta g(x).

    Source: the master equation of Hu, Li, Li & Liu, arXiv:1705.07562, section 2, in its forward
    form (laws) and its weak, backward form phi -> E phi(x - eta g).

    Parameters
    ----------
    sgd
        In 1 or 2 dimensions, without momentum and not reshuffled. Noise with a density must
        enter the gradient affinely; finite data and noise with atoms are pushed forward.
    place
        1-D: (lower, upper), either may be infinite (the end is cut where the law never comes), or
        a `Domain`. 2-D: a bounded `Domain`, or ((x0, y0), (x1, y1)) for a box.
    nodes
        1-D: number of nodes; 2-D: nodes per direction. Chosen from the step's width by
        default.
    method
        "auto", "nystrom" (smooth density), "hat" (monotone push-forward) or "spectral"
        (finite data, expectations only).
    include
        1-D: points that a cut end must lie beyond (the start of a transient).

    Raises
    ------
    InputError
        Naming what cannot be done and why: no known density, too many minibatches, an end that
        nothing confines, a matrix that would not fit into memory.

    Examples
    --------
    >>> from batchwell import SGD, additive
    >>> from batchwell.law import exit_time, transfer_operator
    >>> op = transfer_operator(SGD(additive(lambda x: x @ x / 2), 0.1), (-1, 1))
    >>> round(exit_time(op, [0.0]).value, 2)
    117280.42
    """
    dim = need_sgd(sgd).loss.dim
    if dim == 1:
        return chain_operator(sgd, place, nodes, method, include)
    if dim == 2:
        return plane_operator(sgd, place, nodes, method)
    raise InputError(
        "dim",
        sgd.loss.dim,
        "transfer operators are built in 1 and 2 dimensions: "
        "use moments (quadratic losses) or simulate",
    )
