"""Does flat generalise better? Asked, not assumed: rank correlation over minima, with an interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .._jax import jax
from ..errors import require
from ..estimate import LEVEL, Estimate
from ..loss import StochasticLoss
from ..streams import generator
from .minima import Landscape

SENSES = ("lambda_max", "trace", "loss")
RESAMPLES = 2000
FEWEST = 4


@dataclass(frozen=True, eq=False)
class Generalisation:
    """Scores of minima on held-out examples.

    Attributes
    ----------
    labels
        Names of the n minima compared.
    values
        "lambda_max", "trace" and "loss" (of training) of each, (n,).
    scores
        Mean held-out scores of each, (n,), by name; smaller is better.
    correlations
        Spearman's rank correlation of each value with each score: above 0, sharper (or higher)
        minima score worse.
    """

    labels: tuple[str, ...]
    values: dict[str, np.ndarray] = field(repr=False)
    scores: dict[str, np.ndarray] = field(repr=False)
    correlations: dict[tuple[str, str], Estimate]

    def verdict(self, score: str, value: str = "lambda_max") -> str:
        """In plain words, also when the answer is no."""
        found = self.correlations[value, score]
        low, high = found.interval
        numbers = f"rank correlation {found.value:.2f} [{low:.2f}, {high:.2f}]"
        if low > 0:
            return f"flatter minima have a lower {score} ({numbers})"
        if high < 0:
            return f"flatter minima have a higher {score} ({numbers})"
        return f"flatter minima have no measurably lower {score} ({numbers})"


def generalisation(
    landscape: Landscape, tests: Mapping[str, StochasticLoss], *, seed: int = 0
) -> Generalisation:
    """Held-out scores of all minima, and whether sharpness goes with them.

    Parameters
    ----------
    tests
        By name, what to score a minimum with: losses of held-out examples (their means count; they
        need not be differentiable).
    seed
        Of the bootstrap over minima that gives the intervals.

    Raises
    ------
    InputError
        Fewer than four minima, or a test of another dimension.

    Notes
    -----
    Minima are a sample of what the search found, resampled as if independent; that all are scored on
    the same held-out examples is not part of the interval.

    Examples
    --------
    >>> from batchwell import additive, find_minima
    >>> wells = additive(lambda x: ((x**2 - 1) ** 2).sum() / 4 + x[0] * x[1] / 9, dim=2)
    >>> found = find_minima(wells, [[a, b] for a in (-1, 1) for b in (-1, 1)])
    >>> len(generalisation(found, {"shift": additive(lambda x: x[0], dim=2)}).labels)
    4
    """
    minima = landscape.minima
    require(len(minima) >= FEWEST, "landscape", f"{len(minima)} minima", f"needs {FEWEST} or more")
    scores = {
        name: np.array(list(by_label.values()))
        for name, by_label in held_out_scores(landscape, tests).items()
    }
    values = {sense: np.array([getattr(m, sense) for m in minima]) for sense in SENSES}
    correlations = {
        (sense, name): _spearman(values[sense], scores[name], seed, f"{sense}/{name}")
        for sense in SENSES
        for name in scores
    }
    return Generalisation(tuple(m.label for m in minima), values, scores, correlations)


def held_out_scores(
    landscape: Landscape, tests: Mapping[str, StochasticLoss]
) -> dict[str, dict[str, float]]:
    """Mean score of every minimum on held-out examples: by test, then by the minimum's label.

    Parameters
    ----------
    tests
        By name, a loss of held-out examples each; its mean counts.

    Raises
    ------
    InputError
        A test of another dimension.

    Examples
    --------
    >>> from batchwell import additive, find_minima
    >>> found = find_minima(additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4), [[-0.5], [0.5]])
    >>> sorted(held_out_scores(found, {"shift": additive(lambda x: x[0])})["shift"].values())
    [-1.0, 1.0]
    """
    points = np.array([m.x for m in landscape.minima])
    out = {}
    for name, loss in tests.items():
        require(
            loss.dim == landscape.loss.dim, f"tests.{name}", loss.dim, "must have the dimension"
        )
        scores = np.asarray(jax.jit(jax.vmap(loss.mean))(points)).tolist()
        out[name] = {m.label: s for m, s in zip(landscape.minima, scores, strict=True)}
    return out


def _spearman(a: np.ndarray, b: np.ndarray, seed: int, stream: str) -> Estimate:
    rng, n = generator(seed, f"generalisation/{stream}"), len(a)
    rows = rng.integers(n, size=(RESAMPLES, n))
    drawn = np.array([_correlation(a[r], b[r]) for r in rows])
    drawn = drawn[np.isfinite(drawn)]
    tail = 50 * (1 - LEVEL)
    value = _correlation(a, b)
    if not (drawn.size and np.isfinite(value)):
        return Estimate(
            float("nan"), float("nan"), (-1.0, 1.0), "1", "Spearman", n, notes=("all scores alike",)
        )
    low, high = (float(v) for v in np.percentile(drawn, [tail, 100 - tail]))
    ends = (min(low, value), max(high, value))
    method = "Spearman's rank correlation, percentile bootstrap over minima"
    return Estimate(value, float(drawn.std(ddof=1)), ends, "1", method, n)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import rankdata

    x, y = rankdata(a), rankdata(b)
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else float("nan")
