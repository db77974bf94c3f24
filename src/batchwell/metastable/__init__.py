"""Basins as a Markov network: rates for every batch size, occupation, the best schedule.

Build once
    `transition_rates` (landscape, learning_rate, batch_sizes): rates between basins, and a
    `MarkovNetwork` of them. `known_network`: a network of rates known otherwise.
Ask many
    `stationary_law`, `relaxation_times`, `escape_time`, `occupation`, `share_below`;
    `optimal_schedule`: the batch size over examples that most likely ends in chosen states.
Hold against SGD itself
    `final_basins`: where paths end under a schedule, by simulation.
"""

from __future__ import annotations

from .final import NOWHERE, UNLISTED, FinalBasins, Stage, final_basins, stages
from .network import (
    ELSEWHERE,
    MarkovNetwork,
    escape_time,
    extrapolated,
    known_network,
    occupation,
    rate_matrix,
    relaxation_times,
    share_below,
    stationary_law,
)
from .rates import EdgeRate, EscapeRate, TransitionRates
from .schedules import Schedule, ScheduleCheck, SchedulePlan

__all__ = [
    "ELSEWHERE",
    "NOWHERE",
    "UNLISTED",
    "EdgeRate",
    "EscapeRate",
    "FinalBasins",
    "MarkovNetwork",
    "Schedule",
    "ScheduleCheck",
    "SchedulePlan",
    "Stage",
    "TransitionRates",
    "escape_time",
    "extrapolated",
    "final_basins",
    "known_network",
    "occupation",
    "rate_matrix",
    "relaxation_times",
    "share_below",
    "stages",
    "stationary_law",
]
