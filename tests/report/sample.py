"""A made-up study with everything a real one can hold: limits, failures, two learning rates."""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from batchwell.estimate import Estimate, censored_mean, sample_mean, share
from batchwell.results import EscapeRow, FinalRow, LineRow, MinimumRow, StudyResult

HORIZON, PATHS, EXAMPLES = 320_000, 400, 64_000
SIZES, RATES = (1, 2, 4, 8, 16, 32), (0.25, 0.5)
BARRIERS = {"F": 0.42, "D": 0.7, "A": 1.1}  # of SGD, in units of eta / B
FACTORS = {"sgd": 1.0, "diffusion-1": 0.86, "diffusion-2": 0.93}

MINIMA = (
    MinimumRow("A", 0.3911, 0.284, 1.12, 0.0031, 0.92, 0.41, 14, 0.31, "flat", (0.1, -0.2)),
    MinimumRow("B", 0.3874, 0.402, 1.36, 0.0024, 1.05, 0.37, 9, 0.28),
    MinimumRow("C", 0.3820, 0.517, 1.58, 0.0041, 1.21, 0.52, 7, 0.25),
    MinimumRow("D", 0.3795, 0.688, 1.91, 0.0019, 1.33, 0.44, 5, 0.22, "middle", (0.4, 0.3)),
    MinimumRow("E", 0.3702, 0.941, 2.40, 0.0012, 1.62, 0.49, 2, 0.17),
    MinimumRow("F", 0.3655, 1.427, 3.02, 0.0009, 1.98, 0.63, 1, 0.12, "sharp", (1.4, -0.8)),
)


def times(rng: np.random.Generator, mean: float, paths: int = PATHS) -> Estimate:
    """Exponential exit times, watched until the horizon."""
    drawn = np.ceil(rng.exponential(mean, paths))
    return censored_mean(np.minimum(drawn, HORIZON), drawn <= HORIZON)


def escape_row(rng: np.random.Generator, at: str, process: str, eta: float, b: int) -> EscapeRow:
    barrier = BARRIERS[at] * FACTORS[process]
    mean = 40 / eta * math.exp(min(barrier * b / (2 * eta), 40))
    steps = times(rng, mean)
    return EscapeRow(
        at, process, eta, b, eta / b, HORIZON, 4, steps, 0.004, (PATHS - steps.n_censored) // 9, 1.7
    )


def escape_rows() -> tuple[EscapeRow, ...]:
    rng = np.random.default_rng(7)
    rows = [
        escape_row(rng, at, process, eta, b)
        for at in BARRIERS
        for eta in RATES
        for process in FACTORS
        for b in SIZES
    ]
    return tuple(_spoilt(row) for row in rows)


def _spoilt(row: EscapeRow) -> EscapeRow:
    key = (row.minimum, row.process, row.learning_rate, row.batch_size)
    if key == ("A", "diffusion-2", 0.5, 16):
        why = "path 17 left the finite numbers at step 812: |x| > 1e6 <unstable>"
        return replace(row, steps=None, error=why)
    return replace(row, check_shift=0.11) if key == ("F", "sgd", 0.5, 1) else row


def final_row(
    rng: np.random.Generator, start: str, stages: tuple[tuple[int, int], ...], heat: float
) -> FinalRow:
    """Shares of a Gibbs-like law of `heat`, mixed with having stayed."""
    sharp = np.array([m.lambda_max for m in MINIMA])
    stay = math.exp(-3 * heat)
    law = np.exp(-sharp * 3 * heat)
    law = (1 - stay) * law / law.sum() + stay * np.array([m.label == start for m in MINIMA])
    counts = rng.multinomial(500, np.append(law * 0.985, [0.01, 0.005]))
    names = [*(m.label for m in MINIMA), "other", "undecided"]
    shares = {name: share(int(k), 500) for name, k in zip(names, counts, strict=True)}
    drawn = np.repeat(np.arange(6), counts[:6])
    return FinalRow(
        start,
        " -> ".join(str(b) for b, _ in stages) if len(stages) > 1 else f"B = {stages[0][0]}",
        0.5,
        EXAMPLES,
        stages,
        shares,
        shares[start],
        sample_mean(sharp[drawn], "1"),
        sample_mean(np.array([m.loss for m in MINIMA])[drawn], "loss"),
        len(stages) > 1,
    )


def final_rows() -> tuple[FinalRow, ...]:
    rng = np.random.default_rng(11)
    growing = ((2, EXAMPLES // 6), (8, EXAMPLES // 24), (32, EXAMPLES // 96))
    rows = []
    for start in ("F", "A"):
        rows += [final_row(rng, start, ((b, EXAMPLES // b),), 2.4 / b) for b in SIZES]
        rows.append(final_row(rng, start, growing, 0.9))
    return tuple(rows)


def line_rows() -> tuple[LineRow, ...]:
    s = np.linspace(0, 1, 41)
    ends = {m.label: m.loss for m in MINIMA}
    pairs = (("F", "D", 0.05), ("F", "A", 0.12), ("D", "A", 0.08))
    return tuple(
        LineRow(
            a,
            b,
            tuple(s),
            tuple(ends[a] * (1 - s) + ends[b] * s + 4 * height * s * (1 - s)),
        )
        for a, b, height in pairs
    )


SETTINGS: dict[str, Any] = {
    "command": "batchwell study breast-cancer-network --out runs/demo",
    "data": {"name": "breast_cancer", "n_examples": 120, "flipped_labels": 0.15},
    "escape": {
        "batch_sizes": list(SIZES),
        "learning_rates": list(RATES),
        "paths": PATHS,
        "horizon": HORIZON,
    },
    "sampling": "with_replacement",
    "seed": 2026,
}

VERDICTS = (
    {
        "question": "Does the order-1 diffusion keep SGD's escape times from F?",
        "verdict": "No.",
        "reason": "It leaves sooner at every batch size from 2 on, by more than the intervals.",
        "numbers": {"ratio": 0.72, "interval": [0.63, 0.82], "batch_size": 4},
    },
    {
        "question": "Is order 2 closer to SGD than order 1?",
        "verdict": "The data do not tell.",
        "reason": "The intervals of both ratios overlap in all cells.",
        "numbers": {},
    },
)

NOTES = (
    "A basin is where gradient flow ends; mirror images of one minimum count as one class.",
    "Times at B = 1 are bounded from below by the interval between two looks.",
)


def sample() -> StudyResult:
    """The whole made-up study."""
    return StudyResult(
        "breast-cancer-network",
        "How batch size decides which minimum SGD ends in: a small network on breast_cancer",
        "120 examples, four principal components, four tanh units, 15% of the labels flipped.",
        SETTINGS,
        {"batchwell": "0.1.0", "python": "3.11.9", "numpy": "2.3.1", "jax": "0.8.0"},
        MINIMA,
        {"starts": 64, "converged": 63, "distinct": 6, "symmetries": "permutations and signs"},
        escape_rows(),
        final_rows(),
        line_rows(),
        VERDICTS,
        NOTES,
        96.4,
        True,
    )


def empty() -> StudyResult:
    """A study that has only begun."""
    return StudyResult("new", "", "", {}, {})


def unfinished() -> StudyResult:
    """The study cut off in the middle of its escape cells."""
    whole = sample()
    return replace(whole, escapes=whole.escapes[:40], finals=(), lines=(), finished=False)
