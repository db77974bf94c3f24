"""Saddles that leave along several directions at once, or in a spiral.

The unstable coordinates grow as ``e^{A t} Z`` from a Gaussian seed Z; when that curve meets the
boundary has no closed form, so the law is an average over seeds on a quasi-random net.
Sources: Kifer (Israel J. Math. 40, 1981); Bakhtin (SPA 118, 2008), sec. 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .._jax import jax, jnp
from ..domain import Domain

Floats = NDArray[np.float64]
LOG2_SEEDS = 13
LOOKS, HALVINGS = 256, 45


@dataclass(frozen=True, eq=False)
class Unstable:
    """The unstable directions of a linear flow ``x' = J x``.

    Attributes
    ----------
    basis
        (d, k) real basis of the unstable subspace; its first column is the fastest direction.
    dual
        (k, d): coordinates along them.
    flow
        (k, k) A: J in these coordinates.
    """

    basis: Floats
    dual: Floats
    flow: Floats


def unstable_part(jacobian: Floats) -> Unstable:
    """Split off what grows: of J (d, d), by its eigenvectors, complex pairs as two real columns."""
    rates, right = np.linalg.eig(jacobian)
    order = np.argsort(-rates.real, kind="stable")
    rates, right = rates[order], right[:, order]
    columns = []
    for rate, v in zip(rates, right.T, strict=True):
        if rate.imag < 0:
            columns.append(v.imag)
        else:
            columns.append(v.real)
    basis = np.column_stack(columns)
    basis /= np.linalg.norm(basis, axis=0)
    count = int((rates.real > 1e-12).sum())
    inverse = np.linalg.inv(basis)
    return Unstable(basis[:, :count], inverse[:count], (inverse @ jacobian @ basis)[:count, :count])


def seed_covariance(part: Unstable, noise: Floats, step: float | None) -> Floats:
    """Covariance (k, k) of the seed: ``A C + C A^T = N``, or ``G C G^T - C = step N``, G = 1 + step A.

    `noise` (d, d) is per unit of time; `step` is the learning rate of a chain, None for a diffusion.
    """
    from scipy.linalg import solve_continuous_lyapunov, solve_discrete_lyapunov

    n = part.dual @ noise @ part.dual.T
    if step is None:
        return np.asarray(solve_continuous_lyapunov(part.flow, n))
    back = np.linalg.inv(np.eye(len(n)) + step * part.flow)
    return np.asarray(solve_discrete_lyapunov(back, step * back @ n @ back.T))


def net_of_seeds(covariance: Floats, centre: Floats, log2: int = LOG2_SEEDS) -> Floats:
    """Gaussian seeds (2^log2, k) on a scrambled Sobol net, as they come in every run."""
    from scipy.stats import norm, qmc

    k = len(centre)
    uniform = qmc.Sobol(k, seed=np.random.Generator(np.random.Philox(1971))).random_base2(log2)
    root = np.linalg.cholesky(covariance + 1e-300 * np.eye(k))
    return np.asarray(centre + norm.ppf(uniform) @ root.T)


def exit_times(
    flow: Floats, frame: Floats, seeds: Floats, x: Floats, domain: Domain
) -> tuple[Floats, Floats]:
    """(times (m,) in units of the flow, points (m, d)) where ``x + frame e^{flow t} seed`` first leaves.

    `flow` is (k, k), `frame` (d, k), `seeds` (m, k) and x (d,) or (m, d). A curve that never leaves has
    time inf.
    """
    assert domain.level is not None
    values, vectors = np.linalg.eig(flow)
    left = (np.linalg.inv(vectors) @ seeds.T).T
    shown = frame @ vectors
    level = jax.jit(jax.vmap(domain.level))

    def at(t: Floats) -> Floats:
        return np.asarray(x + ((left * np.exp(values * t[:, None])) @ shown.T).real)

    grows = values.real > 0
    smallest = max(float(np.abs(left[:, grows]).max(axis=1).min()), 1e-300)
    far = (60.0 - math.log(smallest)) / float(values.real[grows].min())
    found = np.full(len(seeds), np.inf)
    before = np.zeros(len(seeds))
    for t in np.linspace(0.0, far, LOOKS)[1:]:
        look = np.full(len(seeds), t)
        with np.errstate(over="ignore"):
            out = np.asarray(level(jnp.asarray(at(look)))) >= 0
        found = np.where(out & np.isinf(found), t, found)
        before = np.where(np.isinf(found), t, before)
        if np.all(np.isfinite(found)):
            break
    low, high = before, found.copy()
    seen = np.isfinite(high)
    high[~seen] = low[~seen]
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        out = np.asarray(level(jnp.asarray(at(middle)))) >= 0
        low, high = np.where(out, low, middle), np.where(out, middle, high)
    return np.where(seen, high, np.inf), at(high)
