"""The weak error of a diffusion against SGD, its order, and whether that order shows yet.

``e(eta) = E phi(x_K) - E phi(X_T)``, T = eta K, for SGD and its diffusion of order 1 or 2 from the
same point. Exact moments are used for quadratic losses, operators on nodes in 1 and 2 dimensions,
and otherwise a simulation with martingale controls (and common noise where it is Gaussian), which
resolves differences far below the spread of phi.

`weak_error`, `weak_errors`
    The error per learning rate, its observed order and constant, and which order is closer where.
`snapshots`
    Laws of SGD and of both diffusions side by side over time, and their distances (1-D and 2-D).
`weak_study`
    All of it, with verdicts on the diffusion, for a report.

Source: Hu, Li, Li & Liu, arXiv:1705.07562, theorem 1; Li, Tai & E (ICML 2017).
"""

from __future__ import annotations

from .densities import Snapshots, snapshots
from .order import WeakError, weak_error, weak_errors
from .study import OBSERVABLES, WeakStudy, weak_study

__all__ = [
    "OBSERVABLES",
    "Snapshots",
    "WeakError",
    "WeakStudy",
    "snapshots",
    "weak_error",
    "weak_errors",
    "weak_study",
]
