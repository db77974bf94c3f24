"""The landscape: minima, their sharpness and symmetries, and which basin a point is in."""

from __future__ import annotations

from .explore import Exploration, explore, with_explored
from .minima import (
    Landscape,
    Minimum,
    classify,
    extended,
    find_minima,
    landscape_of,
    letters,
    line_profile,
    shapes,
)
from .quench import UNDECIDED, Attractors, BasinMap, Quench, basin, polish, quench, reach
from .saddles import NOWHERE, UNLISTED, Saddle, find_saddles
from .survey import Survey, relisted, survey

__all__ = [
    "NOWHERE",
    "UNDECIDED",
    "UNLISTED",
    "Attractors",
    "BasinMap",
    "Exploration",
    "Landscape",
    "Minimum",
    "Quench",
    "Saddle",
    "Survey",
    "basin",
    "classify",
    "explore",
    "extended",
    "find_minima",
    "find_saddles",
    "landscape_of",
    "letters",
    "line_profile",
    "polish",
    "quench",
    "reach",
    "relisted",
    "shapes",
    "survey",
    "with_explored",
]
