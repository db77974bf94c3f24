"""Jumps between basins, counted in simulated paths.

Paths are looked at every `lag` steps and quenched; what happened between two looks is not seen.
Expected numbers of jumps and times in each state given the looks are found by
expectation-maximisation for a continuous-time Markov chain (Bladt & Sorensen, J. R. Statist. Soc. B
67, 395 (2005)); where jumps are rare within a lag they are the plain counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class Looks:
    """Pairs of consecutive looks at one interval.

    Attributes
    ----------
    lag
        SGD steps between the two looks of a pair.
    counts
        (m, m) pairs by state at the first and at the second look.
    """

    lag: int
    counts: np.ndarray


@dataclass(frozen=True, eq=False)
class JumpCounts:
    """What simulation at one batch size showed.

    Attributes
    ----------
    batch_size
        B.
    looks
        Pairs of looks at each lag used.
    jumps
        (m, m) expected number of jumps between states, given the looks.
    exposure
        (m,) expected SGD steps spent in each state.
    first_exits
        (n, 4) of paths started at minima: state, steps watched, 1 if it was seen to have left its
        state (0: censored), steps between looks.
    mirror
        (m,) pairs of looks in the same state but at another of its mirror images.
    new_minima
        How many minima were met that the landscape does not list.
    """

    batch_size: int
    looks: tuple[Looks, ...] = field(repr=False)
    jumps: np.ndarray = field(repr=False)
    exposure: np.ndarray = field(repr=False)
    first_exits: np.ndarray = field(repr=False)
    mirror: np.ndarray = field(repr=False)
    new_minima: int = 0
