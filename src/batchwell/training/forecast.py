"""`Forecast`: what is predicted at one point of a training, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import InputError, require, whole
from ..estimate import Estimate, batch_means
from ._torch import torch
from .course import Course
from .curvature import hessian_eigenvalues
from .local import LocalLoss, Losses
from .predict import predictions
from .spectrum import noise_spectrum
from .updates import learning_rate_of, unwrapped, weight_decay_of

BATCHES = 8  # of looks that a mean's error is taken from
LOOKS = 8 * BATCHES
TOP = 10  # eigenvalues
SCORED = ("stationary_excess_loss", "eta_lambda_max", "escape_exponent", "saddle_escape")
_GOLDEN = (math.sqrt(5) - 1) / 2


class Forecast:
    """Predictions of `predict.predictions`, and looks at the full loss while training goes on.

    The prediction is logged at once; what came is logged after `updates` updates, or when the
    batch size changes, if there were enough looks by then.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        course: Course,
        losses: Losses,
        batches: Iterable[Any],
        *,
        updates: int,
        sampling: str,
        barrier: float | None,
        drop: float | None,
    ) -> None:
        inner = getattr(optimizer, "optimizer", optimizer)
        if not isinstance(inner, torch.optim.SGD):
            raise InputError(
                "optimizer", type(inner).__name__, "must be torch.optim.SGD: predictions are of SGD"
            )
        count = whole("updates", updates)
        require(count >= LOOKS, "updates", count, f"must be at least {LOOKS}")
        rate, momentum = learning_rate_of(optimizer)
        self._rate = rate * course.learning_rate_factor / (1 - momentum)
        self._model, self._course = unwrapped(model), course
        self._local = LocalLoss(
            self._model, losses, batches, weight_decay=weight_decay_of(optimizer)
        )
        bottom = 0 if drop is None else 1
        spectrum = noise_spectrum(self._local, min(TOP, self._local.dim - bottom), bottom)
        self._size, self._start = course.batch_size, course.updates
        self._end, self._gap = self._start + count, count / (LOOKS + 1)
        # Spread by the golden ratio, or they might all fall on the same place of an epoch.
        self._due = {round((k + k * _GOLDEN % 1.0) * self._gap) for k in range(1, LOOKS + 1)}
        self._here = self._local.value()
        self._lowest = self._here - spectrum.decrement
        self._limits = {"escape_exponent": barrier, "saddle_escape": drop}
        self._left: dict[str, tuple[int, int]] = {}  # the look before, and that which saw it
        self._last = 0
        self._excess: list[float] = []
        self.predicted = predictions(
            spectrum, self._rate, self._size, sampling, barrier=barrier, drop=drop
        )
        for name, value in self.predicted.items():
            course.record(f"predicted/{name}" if name in SCORED else name, value)

    def look(self) -> bool:
        """After an update: look at the loss when it is time; True when all is said."""
        steps, changed = self._course.updates - self._start, self._course.batch_size != self._size
        if steps in self._due and not changed:
            value = self._now().value()
            self._excess.append(value - self._lowest)
            self._gone("escape_exponent", steps, lambda limit: value - self._lowest > limit)
            self._gone("saddle_escape", steps, lambda limit: self._here - value > limit)
            self._last = steps
        done = changed or self._course.updates >= self._end
        if done:
            self._say(steps)
        return done

    def _now(self) -> LocalLoss:
        trained = [p for p in self._model.parameters() if p.requires_grad]
        return self._local.moved(self._local.flat(trained))

    def _gone(self, name: str, steps: int, beyond: Callable[[float], bool]) -> None:
        limit = self._limits[name]
        if limit is not None and name not in self._left and beyond(limit):
            self._left[name] = self._last, steps

    def _say(self, steps: int) -> None:
        if len(self._excess) < 2 * BATCHES:
            self._course.event("forecast given up", looks=len(self._excess))
            return
        mean = batch_means(self._excess, "loss", BATCHES)
        self._course.record("came/stationary_excess_loss", mean)
        top = float(hessian_eigenvalues(self._now(), top=1).top[0])
        self._course.record("came/eta_lambda_max", self._rate * top)
        for name, limit in self._limits.items():
            if limit is not None and name in self.predicted:
                self._course.record(f"came/{name}", self._time(name, steps))

    def _time(self, name: str, steps: int) -> Estimate:
        """Steps until it was left (of the exponent: their logarithm), or that it was not."""
        gone = name in self._left
        early, late = map(float, self._left.get(name, (steps, math.inf)))
        if name == "escape_exponent":
            early, late = math.log(max(early, 1)), math.log(late)
        unit = "1" if name == "escape_exponent" else "steps"
        how = f"one run, looked at about every {self._gap:.0f} steps"
        return Estimate(late, math.nan, (early, late), unit, how, 1, n_censored=0 if gone else 1)
