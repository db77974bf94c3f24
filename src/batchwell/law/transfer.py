"""`transfer_operator`: the master equation of SGD, built once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..domain import Domain
from ..dynamics import SGD
from ..errors import InputError
from .chain import chain_operator
from .operator import Operator
from .plane import plane_operator


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
    if sgd.loss.dim == 1:
        return chain_operator(sgd, place, nodes, method, include)
    if sgd.loss.dim == 2:
        return plane_operator(sgd, place, nodes, method)
    raise InputError(
        "dim",
        sgd.loss.dim,
        "transfer operators are built in 1 and 2 dimensions: "
        "use moments (quadratic losses) or simulate",
    )
