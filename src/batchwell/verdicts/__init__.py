"""May the diffusion be trusted? Verdicts with numbers and reasons, for SGD in a region.

Four uses of a diffusion are judged apart: averages over short times, the stationary variance, tails,
and escapes. SGD is linearised at the minimum with every example's own curvature (multiplicative
noise), for which variances and stability limits are exact; escapes compare the local exponents of
the chain's Hamiltonian log E exp(-p . g) and of its Gaussian surrogate along rays out of the
minimum. A verdict is an indication drawn from these numbers, never a proof.

Sources: Hu, Li, Li & Liu, arXiv:1705.07562; Li, Malladi & Arora, "On the validity of modeling SGD
with stochastic differential equations" (2021), for the ratio of noise to gradient; Kesten (1973) and
Gurbuzbalaban, Simsekli & Zhu (2021) for tail exponents.
"""

from __future__ import annotations

from .base import NUMBERS, USES, Trust, Validity, Verdict
from .question import validity

__all__ = ["NUMBERS", "USES", "Trust", "Validity", "Verdict", "validity"]
