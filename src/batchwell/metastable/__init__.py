"""Basins as a Markov network: rates for every batch size, occupation, the best schedule.

Build once
    `transition_rates` (landscape, learning_rate, batch_sizes): rates between basins, and a
    `MarkovNetwork` of them. `known_network`: a network of rates known otherwise.
Ask many
    `stationary_law`, `relaxation_times`, `escape_time`, `occupation`, `share_below`;
    `optimal_schedule`: the batch size over examples that most likely ends in chosen states.
Hold against SGD itself
    `check_against_runs`: occupation over time; `verify_schedules`: schedules of a plan;
    `final_basins`: where paths end under a schedule; `memory_checks`: are the jumps Markov?
"""

from __future__ import annotations

from .evidence import Evidence, saddle_evidence
from .final import NOWHERE, UNLISTED, FinalBasins, Stage, final_basins, stages
from .jumps import JumpCounts, Looks, count_jumps
from .memory import MemoryCheck, memory_checks
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
    with_scores,
)
from .objectives import OBJECTIVES, state_weights
from .rates import EdgeRate, EscapeRate, TransitionRates, rates_from_counts, transition_rates
from .regression import Spreads
from .schedules import FAMILIES, Schedule, SchedulePlan, optimal_schedule
from .verify import ScheduleCheck, Verification, check_against_runs, verify_schedules

__all__ = [
    "ELSEWHERE",
    "FAMILIES",
    "NOWHERE",
    "OBJECTIVES",
    "UNLISTED",
    "EdgeRate",
    "EscapeRate",
    "Evidence",
    "FinalBasins",
    "JumpCounts",
    "Looks",
    "MarkovNetwork",
    "MemoryCheck",
    "Schedule",
    "ScheduleCheck",
    "SchedulePlan",
    "Spreads",
    "Stage",
    "TransitionRates",
    "Verification",
    "check_against_runs",
    "count_jumps",
    "escape_time",
    "extrapolated",
    "final_basins",
    "known_network",
    "memory_checks",
    "occupation",
    "optimal_schedule",
    "rate_matrix",
    "rates_from_counts",
    "relaxation_times",
    "saddle_evidence",
    "share_below",
    "stages",
    "state_weights",
    "stationary_law",
    "transition_rates",
    "verify_schedules",
    "with_scores",
]
