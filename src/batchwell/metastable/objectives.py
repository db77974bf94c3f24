"""What a schedule is to achieve: a weight for every state of the network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import InputError, require
from .network import MarkovNetwork

# By name: the network's field whose smallest values count, what has them, and what must be known.
_RANKED = {
    "flattest": ("sharpness", "flattest states", "the sharpness of its states"),
    "lowest_loss": ("losses", "states of lowest loss", "the loss of its states"),
    "best_validation": (
        "scores",
        "states with the best validation score",
        "held-out scores of its states: with_scores(network, held_out_scores(landscape, "
        "tests)[name]) adds those of a problem with tests=; a mapping gives weights by hand",
    ),
}
OBJECTIVES = tuple(_RANKED)
BEST_SHARE = 0.25  # of the states that are ranked count as the best

Objective = str | Sequence[str] | Mapping[str, float]


def state_weights(network: MarkovNetwork, objective: Objective) -> tuple[np.ndarray, str]:
    """(weight of each state (m,), plain words) of an objective.

    "flattest", "lowest_loss" and "best_validation" are the quarter of the listed states with the
    smallest lambda_max, loss, or held-out score (`with_scores`); a sequence of names is a set to
    end in; a mapping gives weights by name, 0 for states that it does not name.

    Raises
    ------
    InputError
        An unknown objective or state, one that needs what the network does not know of its states
        (held-out scores, say), weights that are not finite, or all alike.

    Examples
    --------
    >>> from batchwell.metastable import known_network
    >>> net = known_network(["a", "b"], [1], [[[0, 0.1], [0.1, 0]]], sharpness=[2.0, 1.0])
    >>> state_weights(net, "flattest")
    (array([0., 1.]), 'chance to end in the flattest states: b')
    """
    if isinstance(objective, str):
        return _best(network, objective)
    out = np.zeros(len(network.labels))
    if isinstance(objective, Mapping):
        for name, weight in objective.items():
            require(math.isfinite(weight), f"objective.{name}", weight, "must be finite")
            out[network.index(name)] = weight
        words = "expected score at the end, by given weights of the states"
    else:
        for name in objective:
            out[network.index(name)] = 1.0
        words = "chance to end in " + ", ".join(objective)
    require(bool(np.ptp(out) > 0), "objective", objective, "must prefer some states to others")
    return out, words


def _best(network: MarkovNetwork, objective: str) -> tuple[np.ndarray, str]:
    if objective not in OBJECTIVES:
        allowed = ", ".join(OBJECTIVES)
        raise InputError(
            "objective", objective, f"must be one of {allowed}, names of states, or their weights"
        )
    name, what, needed = _RANKED[objective]
    value = np.asarray(getattr(network, name))
    listed = np.flatnonzero(np.isfinite(value))
    require(listed.size > 0, "objective", objective, f"needs a network that knows {needed}")
    count = max(1, round(BEST_SHARE * listed.size))
    chosen = listed[np.argsort(value[listed], kind="stable")[:count]]
    out = np.zeros(len(network.labels))
    out[chosen] = 1.0
    names = ", ".join(network.labels[i] for i in chosen)
    return out, f"chance to end in the {what}: {names}"
