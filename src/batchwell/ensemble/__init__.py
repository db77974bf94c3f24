"""Ensembles: many copies of SGD or of a diffusion, side by side.

What callers see is this page. Losses are lowered to machine code over lanes of paths (`fused`);
what has no such form runs on XLA (`xla`). A path's random bits depend on (seed, stream, path index)
alone, so results do not depend on chunks, lanes or threads. All functions take `Options`.
"""

from .endings import FirstExits, Trials, first_exits, run_trials
from .flow import Flow, Regions, gradient_flow
from .observation import Observation, observe
from .options import Options, SlowerEngine
from .paths import (
    DEFAULT_SUBSTEPS,
    Ensemble,
    Progress,
    advance,
    advance_or_drop,
    positions,
    start,
    within,
)
from .trials import CORE, GOAL, OUT, STOPPED, Score, Table

__all__ = [
    "CORE",
    "DEFAULT_SUBSTEPS",
    "GOAL",
    "OUT",
    "STOPPED",
    "Ensemble",
    "FirstExits",
    "Flow",
    "Observation",
    "Options",
    "Progress",
    "Regions",
    "Score",
    "SlowerEngine",
    "Table",
    "Trials",
    "advance",
    "advance_or_drop",
    "first_exits",
    "gradient_flow",
    "observe",
    "positions",
    "run_trials",
    "start",
    "within",
]
