"""A frame that turns with the path: the spiral of an instanton out of a rotating minimum, unwound.

Where the drift circulates around a minimum the fluctuation path leaves it like ``s^(1 + i omega /
lambda)``: infinitely many turns, which no polynomial in s resolves. In coordinates that turn by
``omega / lambda`` for every factor e of the distance the path is smooth. Turning speeds are those of
the time-reversed linear drift ``-C A^T C^-1`` (C the stationary covariance, A the drift's Jacobian):
Freidlin & Wentzell, "Random Perturbations of Dynamical Systems", ch. 4, Theorem 3.1 for linear drifts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from scipy.linalg import expm, solve_continuous_lyapunov

from .._jax import jax, jnp
from .hamiltonian import Hamiltonian

# Turns slower than this share of the growth are smooth enough as they are.
SLOW = 1e-3


@dataclass(frozen=True, eq=False)
class Frame:
    """Coordinates y with ``x = x0 + s^spin y``.

    Attributes
    ----------
    spin
        (d, d) generator of the turn for each factor e of s.
    metric
        (d, d): the length ``|metric v|`` does not change under the turn.
    """

    spin: np.ndarray = field(repr=False)
    metric: np.ndarray = field(repr=False)

    def turns(self, s: np.ndarray) -> np.ndarray:
        """``s^spin`` for each of `s` (m,) > 0: (m, d, d)."""
        return np.asarray(expm(np.log(s)[:, None, None] * self.spin))


def turns(slope: np.ndarray) -> bool:
    """Whether the slowest way out of a stable zero with Jacobian `slope` (d, d) is a spiral."""
    rates = np.linalg.eigvals(slope)
    slowest = rates[np.argmax(rates.real)]
    # Without a stable zero nothing is known of how paths leave.
    return bool(slowest.real < 0 and abs(slowest.imag) > SLOW * abs(slowest.real))


@lru_cache(maxsize=64)
def turning_frame(h: Hamiltonian, at: tuple[float, ...]) -> Frame | None:
    """The frame of paths of `h` out of the point `at`; None where its slowest way out is straight."""
    x = jnp.asarray(at)
    slope = np.asarray(jax.jacfwd(h.drift)(x))
    if not turns(slope):
        return None
    slowest = float(np.linalg.eigvals(slope).real.max())
    tensor = np.asarray(h.tensor(x))
    if np.linalg.matrix_rank(tensor) < h.dim:  # its floor makes paths stiff: no place for turns
        return None
    covariance = solve_continuous_lyapunov(slope, -tensor)
    reversed_drift = -covariance @ slope.T @ np.linalg.inv(covariance)
    growth, vectors = np.linalg.eig(reversed_drift)
    spin = vectors @ np.diag(1j * growth.imag / -slowest) @ np.linalg.inv(vectors)
    # Real and imaginary parts of a pair span its plane; in these coordinates it turns in circles.
    basis = np.where(growth.imag < 0, vectors.imag, vectors.real)
    return Frame(spin.real, np.linalg.inv(basis))
