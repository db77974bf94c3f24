"""Batchwell: what batch size and learning rate do to SGD on a nonconvex loss.

Importing this package is cheap: each name below is loaded when it is first used.
"""

from __future__ import annotations

from ._lazy import lazy

__version__ = "0.1.0"

# Public name -> module that holds it. The one face of the library; tests hold it to this.
_HOME = {
    "BatchwellError": "errors",
    "Diffusion": "dynamics",
    "Divergence": "errors",
    "Domain": "domain",
    "EXIT_METHODS": "exits",
    "Estimate": "estimate",
    "InputError": "errors",
    "MarkovNetwork": "metastable",
    "NOISES": "noise",
    "PROBLEMS": "problems",
    "Problem": "problems",
    "RunError": "errors",
    "SGD": "dynamics",
    "StochasticLoss": "loss",
    "Study": "studies",
    "Symmetry": "symmetry",
    "additive": "loss",
    "ball": "domain",
    "basin": "landscape",
    "basin_volumes": "landscape",
    "box": "domain",
    "chain_action": "action",
    "compare_exit_times": "exits",
    "diffusion": "dynamics",
    "diffusion_approximation": "dynamics",
    "disconnectivity_tree": "landscape",
    "exit_time": "law",
    "exit_time_bounds": "law",
    "exponent_map": "exits",
    "find_minima": "landscape",
    "find_saddles": "landscape",
    "finite_sum": "loss",
    "generalisation": "landscape",
    "held_out_scores": "landscape",
    "generator": "law",
    "half_space": "domain",
    "hidden_units": "symmetry",
    "fixing": "symmetry",
    "null_directions": "symmetry",
    "quotient": "symmetry",
    "rescaling": "symmetry",
    "holding_batch_size": "exits",
    "instantons": "action",
    "landscape_study": "studies.landscape",
    "mean_exit_time": "exits",
    "moments": "law",
    "noise_law": "noise",
    "optimal_schedule": "metastable",
    "problem": "problems",
    "quasi_potential": "action",
    "quasi_potential_field": "action",
    "quench": "landscape",
    "saddle_exit": "saddles",
    "sampled": "loss",
    "sharpness": "landscape",
    "stationary_moments": "law",
    "stationary_points": "landscape",
    "study": "studies",
    "sublevel": "domain",
    "survey": "landscape",
    "transfer_operator": "law",
    "transition_rates": "metastable",
    "with_scores": "metastable",
    "validity": "verdicts",
    "verify_schedules": "metastable",
    "weak_error": "weak",
    "weak_study": "weak",
}

__all__ = sorted(_HOME)

__getattr__ = lazy(__name__, _HOME)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
