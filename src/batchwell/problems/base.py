"""What the gallery is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..domain import Domain
from ..dynamics import Diffusion
from ..errors import InputError
from ..loss import StochasticLoss
from ..symmetry import NONE, Symmetry

# A study of a problem of one or two dimensions; another number of starts where it has many minima.
SMALL_STUDY = {
    "starts": 16,
    "learning_rates": [0.2],
    "batch_sizes": [1, 2, 4],
    "horizon": 20_000,
    "examples": 2_000,
    "paths": 64,
}


@dataclass(frozen=True)
class KnownAnswer:
    """One question to a problem whose answer is known.

    Attributes
    ----------
    question
        What is asked, e.g. "mean_exit_time", "mean_loss", "second_moment",
        "stationary_covariance", "quasipotential".
    process
        "sgd", "diffusion-1" or "diffusion-2".
    value
        The answer (a number, or nested tuples for a matrix); times in units of `unit`.
    unit
        "steps", "time", "loss", "1".
    settings
        What it depends on: learning_rate, batch_size, horizon (time), start, ...
    source
        Where it comes from, and to how many digits it may be trusted.
    """

    question: str
    process: str
    value: Any
    unit: str
    settings: Mapping[str, Any]
    source: str


@dataclass(frozen=True, eq=False)
class Problem:
    """A loss (or a process of its own) with everything a question to it needs.

    Attributes
    ----------
    name, summary
        Its name in the gallery and one line on what it shows.
    stochastic_loss
        The loss; None for a process that is no gradient descent (then `process` is set).
    start
        (d,) a natural start.
    domain
        What one exits from in the known answers; None if basins are meant.
    symmetry
        What leaves the loss unchanged.
    start_scale
        Standard deviation of random starts in a search for minima.
    known
        Known answers.
    settings
        Defaults of a study of this problem (keys of `settings.StudySettings`).
    tests
        Held-out scores of a minimum, by name: losses whose mean counts, smaller is better.
    """

    name: str
    summary: str
    stochastic_loss: StochasticLoss | None = field(repr=False)
    start: tuple[float, ...] = field(repr=False)
    domain: Domain | None = field(default=None, repr=False)
    process: Callable[[float], Diffusion] | None = field(default=None, repr=False)
    symmetry: Symmetry = field(default=NONE, repr=False)
    start_scale: float = 1.0
    known: tuple[KnownAnswer, ...] = field(default=(), repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    tests: Mapping[str, StochasticLoss] = field(default_factory=dict, repr=False)

    @property
    def loss(self) -> StochasticLoss:
        """The loss, or InputError if this problem has none."""
        if self.stochastic_loss is None:
            raise InputError("problem", self.name, "has no loss: it is a diffusion of its own")
        return self.stochastic_loss
