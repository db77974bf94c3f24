"""What a schedule is to achieve: a weight for every state of the network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import InputError, require
from .network import MarkovNetwork

OBJECTIVES = ("flattest", "lowest_loss")
BEST_SHARE = 0.25  # of the listed states count as the flattest, or the lowest

Objective = str | Sequence[str] | Mapping[str, float]


def state_weights(network: MarkovNetwork, objective: Objective) -> tuple[np.ndarray, str]:
    """(weight of each state (m,), plain words) of an objective.

    "flattest" and "lowest_loss" are the quarter of the listed states with the smallest lambda_max,
    or loss; a sequence of names is a set to end in; a mapping gives weights by name (a validation
    score, say), 0 for states that it does not name.

    Raises
    ------
    InputError
        An unknown objective or state, weights that are not finite, or all alike.

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
    value = network.sharpness if objective == "flattest" else network.losses
    listed = np.flatnonzero(np.isfinite(value))
    require(
        listed.size > 0, "objective", objective, "needs a network that knows this of its states"
    )
    count = max(1, round(BEST_SHARE * listed.size))
    chosen = listed[np.argsort(value[listed], kind="stable")[:count]]
    out = np.zeros(len(network.labels))
    out[chosen] = 1.0
    names = ", ".join(network.labels[i] for i in chosen)
    what = "flattest states" if objective == "flattest" else "states of lowest loss"
    return out, f"chance to end in the {what}: {names}"
