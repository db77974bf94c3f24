"""Actions: what escape costs, for SGD itself and for its diffusion.

``E tau ~ exp(V / eps)`` with V the least action of a path out. `hamiltonian` builds H(x, p) from a
process, `instantons` minimises by Chebyshev-Ritz from many starts, `string_action` is the
geometric minimum action method, an independent second route; `quasi_potential_field` is V on a
whole grid of the plane, and `chain_action` the least action of the chain's own steps, at finite
learning rate and with momentum.
"""

from __future__ import annotations

from .chain import ChainAction, chain_action
from .field import QuasiPotentialField, quasi_potential_field
from .fixed_points import FixedPoint, fixed_points
from .hamiltonian import Hamiltonian, hamiltonian
from .instanton import Instanton, instantons, quasi_potential
from .string import StringPath, string_action

__all__ = [
    "ChainAction",
    "FixedPoint",
    "Hamiltonian",
    "Instanton",
    "QuasiPotentialField",
    "StringPath",
    "chain_action",
    "fixed_points",
    "hamiltonian",
    "instantons",
    "quasi_potential",
    "quasi_potential_field",
    "string_action",
]
