"""The landscape: minima, their sharpness and symmetries, and which basin a point is in."""

from __future__ import annotations

from .minima import (
    Landscape,
    Minimum,
    classify,
    find_minima,
    landscape_of,
    letters,
    line_profile,
    shapes,
)
from .quench import UNDECIDED, Attractors, BasinMap, Quench, basin, polish, quench, reach
from .saddles import NOWHERE, UNLISTED, Saddle, find_saddles

__all__ = [
    "NOWHERE",
    "UNDECIDED",
    "UNLISTED",
    "Attractors",
    "BasinMap",
    "Landscape",
    "Minimum",
    "Quench",
    "Saddle",
    "basin",
    "classify",
    "find_minima",
    "find_saddles",
    "landscape_of",
    "letters",
    "line_profile",
    "polish",
    "quench",
    "reach",
    "shapes",
]
