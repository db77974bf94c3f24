"""Escape from saddles: what is asked, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._jax import jax, jnp
from ..domain import Domain
from ..dynamics import Process, dimension
from ..errors import InputError, known_options, require
from ..estimate import Estimate
from ..exits.regime import drift_jacobian, drift_of
from ..points import point
from .laws import law_of
from .outcome import SaddleExit
from .simulated import direct

# Growth rates below this count as zero: the saddle is degenerate.
FLAT = 1e-10


def saddle_exit(
    process: Process,
    saddle: ArrayLike,
    domain: Domain,
    *,
    start: ArrayLike | None = None,
    method: str = "law",
    **options: Any,
) -> SaddleExit | Estimate:
    """Exit from `domain` around a `saddle` (d,), started there or at `start`.

    Parameters
    ----------
    process
        SGD or a diffusion.
    saddle
        A zero of the drift with at least one unstable direction.
    domain
        With a level function. Curvature of the drift on the way out and of the boundary count.
    start
        Off-centre start; the saddle itself by default.
    method
        "law" for the asymptotic law (`SaddleExit`), "direct" for simulation (`Estimate`),
        which nonlinear domains need.

    Raises
    ------
    InputError
        Not a saddle (says the drift's norm and offers the nearest one), or a bad domain.
    RunError
        No noise along the unstable direction (says the time that rounding alone needs).

    References
    ----------
    Kifer, Israel J. Math. 40 (1981) 74; Bakhtin, Stoch. Proc. Appl. 118 (2008) 839; Hu, Li, Li & Liu,
    arXiv:1705.07562, section 4.

    Examples
    --------
    >>> from batchwell import SGD, additive, ball
    >>> sgd = SGD(additive(lambda x: -(x @ x) / 2), learning_rate=0.02)
    >>> round(saddle_exit(sgd, [0.0], ball([0.0], 1.0)).mean, 1)  # exactly 149.226
    149.2
    """
    require(method in ("law", "direct"), "method", method, "must be law or direct")
    x = _check_saddle(process, saddle, domain, method)
    begin = x if start is None else point("start", start, len(x))
    require(bool(domain.contains(begin)), "start", begin, "must lie inside the domain")
    if method == "direct":
        known_options(options, direct)
        return direct(process, begin, domain, **options)
    for option in options:
        raise InputError(
            "option", option, "the law takes none: options are those of method='direct'"
        )
    return law_of(process, x, begin, domain)


def _check_saddle(process: Process, saddle: ArrayLike, domain: Domain, method: str) -> np.ndarray:
    dim = dimension(process)
    x = point("saddle", saddle, dim)
    require(domain.level is not None, "domain", domain.name, "must have a level function here")
    require(domain.dim == dim and bool(domain.contains(x)), "saddle", x, "must lie in the domain")
    drift = drift_of(process)
    jacobian = drift_jacobian(process, x)
    size = float(np.linalg.norm(np.asarray(drift(jnp.asarray(x)))))
    if size > 1e-6 * (1 + np.abs(jacobian).max()):
        raise InputError(
            "saddle",
            x,
            f"is not a zero of the gradient: its norm is {size:.4g}" + _nearest(drift, x),
        )
    growth = np.linalg.eigvals(jacobian).real.max()
    if abs(growth) <= FLAT * (1 + np.abs(jacobian).max()):
        if method == "direct":
            return x
        raise InputError(
            "saddle",
            x,
            f"is degenerate (largest growth rate {growth:.3g}): no linear law holds around it; use "
            "method='direct', or mean_exit_time if it is a minimum",
        )
    require(
        growth > 0,
        "saddle",
        x,
        f"has no unstable direction (largest rate {growth:.4g}): "
        "it is a minimum; use mean_exit_time",
    )
    return x


def _nearest(drift: Any, x: np.ndarray) -> str:
    """A zero of the drift near x by Newton's method, in words."""
    jacobian = jax.jit(jax.jacfwd(drift))
    y = x.copy()
    for _ in range(50):
        a, b = np.asarray(jacobian(jnp.asarray(y))), np.asarray(drift(jnp.asarray(y)))
        y = y - np.linalg.lstsq(a, b, rcond=1e-12)[0]
    left = float(np.linalg.norm(np.asarray(drift(jnp.asarray(y)))))
    if not left < 1e-8:
        return "; no zero was found near it"
    unstable = int((np.linalg.eigvals(np.asarray(jacobian(jnp.asarray(y)))).real > 0).sum())
    kind = "a minimum" if unstable == 0 else f"a saddle of index {unstable}"
    return f"; the nearest zero found is {kind} at {np.array2string(y, precision=6)}"
