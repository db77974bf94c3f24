"""Agreement court: methods that share no code must agree on problems with known answers.

False-alarm budget. A pair is called in disagreement beyond 4 joint standard errors of the log. For
Gaussian errors that happens by chance once in 16000 pairs; splitting has t errors of 15 degrees of
freedom (once in 860), importance of 7 (once in 190). `PAIRS` below counts the pairs heard: 17 with
neither, 19 with splitting and not importance, 14 with importance: a false alarm in about 1 of
10 courts over all seeds. Seeds are fixed, so it is drawn once.

Planted errors must lose: each is an error that a careless implementation would make, and the court
must find it by the margin it uses to call others in agreement.
"""

import math
from itertools import combinations

import numpy as np
import pytest

from batchwell import (
    SGD,
    Diffusion,
    additive,
    ball,
    diffusion_approximation,
    finite_sum,
    half_space,
    problem,
)
from batchwell.exits import EXIT_METHODS, compare_exit_times
from batchwell.exits.compare import LIMIT, distance

WELL = additive(lambda x: (x @ x - 1) ** 2 / 4)
BOWL = additive(lambda x: x @ x / 2)
COINS = additive(lambda x: (x @ x - 1) ** 2 / 4, "rademacher")
EXAMPLES = finite_sum(
    lambda x, z: (x @ x - 1) ** 2 / 4 + z * x[0], np.array([-0.7, 0.7]), 1, "two examples"
)
ACROSS = half_space([1.0], 1.0)

PLANE = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4 + x[1] ** 2 * (0.6 + 0.4 * x[0]), dim=2)
BEYOND = half_space([1.0, 0.0], 0.8)
TILTED = problem("quadratic")

# name -> (process, start, domain, methods in their regime)
CASES = {
    "bowl, chain": (
        SGD(BOWL, 0.14),
        [0.0],
        ball([0.0], 1.0),
        ["direct", "law", "splitting", "importance"],
    ),
    "bowl, diffusion": (
        diffusion_approximation(SGD(BOWL, 0.16)),
        [0.0],
        ball([0.0], 1.0),
        ["direct", "law", "sharp", "action", "splitting"],
    ),
    "well, chain": (
        SGD(WELL, 0.1),
        [-1.0],
        ACROSS,
        ["direct", "law", "sharp", "action", "splitting", "importance"],
    ),
    "well, coin noise": (SGD(COINS, 0.12), [-1.0], ACROSS, ["direct", "law", "splitting"]),
    "well, two examples": (
        SGD(EXAMPLES, 0.1),
        [-1.0],
        half_space([1.0], 0.3),
        ["law", "splitting", "importance"],
    ),
    "quadratic in the plane, diffusion, quick": (
        diffusion_approximation(SGD(TILTED.loss, 0.2, 2)),
        TILTED.start,
        TILTED.domain,
        ["direct", "law", "splitting"],
    ),
    "quadratic in the plane, chain": (
        SGD(TILTED.loss, 0.2),
        TILTED.start,
        TILTED.domain,
        ["direct", "law", "splitting"],
    ),
    "quadratic in the plane, diffusion": (
        diffusion_approximation(SGD(TILTED.loss, 0.2, 2)),
        TILTED.start,
        TILTED.domain,
        ["direct", "importance"],
    ),
    "well in the plane, diffusion": (
        diffusion_approximation(SGD(PLANE, 0.06)),
        [-1.0, 0.0],
        BEYOND,
        ["direct", "sharp", "splitting", "importance"],
    ),
}
OPTIONS = {
    "direct": {"paths": 1024, "seed": 11},
    "splitting": {"particles": 512, "replicas": 16, "seed": 7},
    "importance": {"particles": 1024, "replicas": 8, "seed": 7},
}
SLOW = tuple(name for name in CASES if "plane" in name and not name.endswith("quick"))
PAIRS = {"importance": 14, "splitting": 19, "neither": 17}


def test_the_budget_counts_the_pairs_that_are_heard():
    heard = dict.fromkeys(PAIRS, 0)
    for *_, methods in CASES.values():
        for pair in combinations(methods, 2):
            heard[next((k for k in PAIRS if k in pair), "neither")] += 1
    assert heard == PAIRS


def test_every_method_is_heard_twice_in_quick_cases():
    quick = [m for name, (*_, methods) in CASES.items() if name not in SLOW for m in methods]
    assert all(quick.count(method) >= 2 for method in EXIT_METHODS)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in CASES],
)
def test_all_methods_agree(name):
    process, start, domain, methods = CASES[name]
    out = compare_exit_times(process, start, domain, methods, OPTIONS)
    assert not out.refused
    assert out.agree, out.verdict


def _with_tensor(process: Diffusion, factor: float) -> Diffusion:
    return Diffusion(
        process.dim,
        process.drift,
        lambda x: factor * process.tensor(x),
        lambda x, xi: math.sqrt(factor) * process.factor_vector(x, xi),
        process.noise_dim,
        process.learning_rate,
    )


def _judge(wrong, right):
    """Distance of the wrong process's answer from simulation of the right one."""
    seen = compare_exit_times(*right, ["direct"], {"direct": {"paths": 4096, "seed": 3}})
    claimed = compare_exit_times(*wrong, ["law"])
    return distance(claimed.answers["law"], seen.answers["direct"])


def test_a_covariance_off_by_five_percent_loses():
    right = (diffusion_approximation(SGD(WELL, 0.1)), [-1.0], half_space([1.0], 0.0))
    wrong = (_with_tensor(right[0], 1.05), *right[1:])
    assert _judge(wrong, right) > LIMIT
    assert _judge(right, right) < LIMIT


def test_a_missing_half_loses():
    right = (diffusion_approximation(SGD(WELL, 0.15)), [-1.0], half_space([1.0], 0.0))
    wrong = (_with_tensor(right[0], 2.0), *right[1:])
    assert _judge(wrong, right) > 3 * LIMIT


def test_an_order_two_drift_of_the_wrong_sign_loses():
    sgd = SGD(BOWL, 0.2)
    right = diffusion_approximation(sgd, order=2)
    first = diffusion_approximation(sgd, order=1)
    wrong = Diffusion(
        1,
        lambda x: 2 * first.drift(x) - right.drift(x),
        right.tensor,
        right.factor_vector,
        right.noise_dim,
        right.learning_rate,
    )
    where = ([0.0], ball([0.0], 1.0))
    assert _judge((wrong, *where), (right, *where)) > LIMIT


@pytest.mark.parametrize("method", ["splitting", "importance"])
def test_a_covariance_off_by_five_percent_loses_against_rare_event_methods(method):
    chain = SGD(WELL, 0.05)
    wrong = SGD(additive(lambda x: (x @ x - 1) ** 2 / 4, scale=math.sqrt(1.05)), 0.05)
    options = {method: {"particles": 2048, "replicas": 16, "seed": 1}}
    out = compare_exit_times(chain, [-1.0], ACROSS, [method, "law"], options).answers
    law = compare_exit_times(wrong, [-1.0], ACROSS, ["law"]).answers["law"]
    assert distance(law, out[method]) > LIMIT
    assert distance(out["law"], out[method]) < LIMIT


def test_dropping_censored_paths_loses():
    # The classical error: average only what was seen to leave.
    from batchwell.ensemble import first_exits
    from batchwell.estimate import sample_mean

    sgd = SGD(BOWL, 0.14)
    law = compare_exit_times(sgd, [0.0], ball([0.0], 1.0), ["law"]).answers["law"]
    exits = first_exits(sgd, [0.0], ball([0.0], 1.0), 2000, 1024, seed=1)
    careless = sample_mean(exits.steps[exits.observed], "steps")
    assert distance(law, careless) > 3 * LIMIT
