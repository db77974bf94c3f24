"""The landscape: minima, their sharpness and symmetries, and which basin a point is in."""

from __future__ import annotations

from .attractors import UNDECIDED, Attractors
from .diverged import Diverged, Survivors, diverged_note
from .explore import Exploration, explore, with_explored
from .generalisation import Generalisation, generalisation, held_out_scores
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
from .quench import BasinMap, Quench, Runaway, basin, polish, quench, reach
from .saddles import NOWHERE, UNLISTED, Saddle, find_saddles
from .sharpness import Sharpness, sharpness
from .stationary import StationaryPoint, stationary_points
from .survey import Explained, Passage, Survey, explained, relisted, survey
from .tree import Branch, DisconnectivityTree, disconnectivity_tree
from .volumes import basin_volumes

__all__ = [
    "NOWHERE",
    "UNDECIDED",
    "UNLISTED",
    "Attractors",
    "BasinMap",
    "Branch",
    "DisconnectivityTree",
    "Diverged",
    "Explained",
    "Exploration",
    "Generalisation",
    "Landscape",
    "Minimum",
    "Passage",
    "Quench",
    "Runaway",
    "Saddle",
    "Sharpness",
    "StationaryPoint",
    "Survey",
    "Survivors",
    "basin",
    "basin_volumes",
    "classify",
    "disconnectivity_tree",
    "diverged_note",
    "explained",
    "explore",
    "extended",
    "find_minima",
    "find_saddles",
    "generalisation",
    "held_out_scores",
    "landscape_of",
    "letters",
    "line_profile",
    "polish",
    "quench",
    "reach",
    "relisted",
    "shapes",
    "sharpness",
    "stationary_points",
    "survey",
    "with_explored",
]
