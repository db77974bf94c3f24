"""`Follower`: what a trainer's callbacks have in common, whatever calls them.

Needs no trainer: `lightning` and `transformers` say when a training starts, is about to update and
has updated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from ..errors import require
from .batches import check_loader
from .course import Course
from .log import Log
from .noise import GradientNoise
from .schedule import Schedule
from .schedules import as_schedule
from .states import LastGood, check_fingerprint, fingerprint
from .steps import StepProbe
from .updates import LOADED, data_size, learning_rate_of, limit, measured, penalty


class FollowerOptions(TypedDict, total=False):
    """Keyword arguments of the callbacks.

    Attributes
    ----------
    logdir, log, log_every, keep_every
        As for `attach`.
    probe
        Model -> what measures the gradient noise.
    """

    logdir: str | Path | None
    log: Log | Iterable[Log]
    log_every: int
    keep_every: int
    probe: Callable[[Any], StepProbe] | None


class Follower:
    """Course, probe, last good state and learning rate of a training that something else runs."""

    def __init__(
        self,
        schedule: Schedule | str | int,
        *,
        logdir: str | Path | None = None,
        log: Log | Iterable[Log] = (),
        log_every: int = 10,
        keep_every: int = 100,
        probe: Callable[[Any], StepProbe] | None = None,
    ) -> None:
        self.schedule = as_schedule(schedule)
        self.good = LastGood(keep_every)
        self.course: Course | None = None
        self.probe: StepProbe | None = None
        self._make_probe, self._logdir, self._log_every = probe, logdir, log_every
        self._logs = [log] if callable(log) else list(log)
        self._rates: list[Any] | None = None
        self._finished: tuple[int, float, float, float, GradientNoise | None, float] | None = None

    def start(
        self,
        model: Any,
        loader: Any,
        *,
        unit: int,
        main: bool,
        what: str = LOADED,
        **facts: Any,
    ) -> Course:
        """Check the schedule against the loader and open the log; sizes are multiples of `unit`."""
        check_loader(loader)
        examples = data_size(loader)
        limited = limit(self.schedule, unit, examples, what)
        require(
            self._make_probe is not None or "noise" not in limited.needs,
            "probe",
            None,
            f"must be given: schedule {limited.name} follows the gradient noise",
        )
        self.course = Course(
            limited,
            logdir=self._logdir if main else None,
            logs=self._logs if main else (),
            log_every=self._log_every,
        )
        self.probe = None if self._make_probe is None else self._make_probe(model)
        self._model = fingerprint(model)
        known = {"knob": "accumulation", "data_size": examples, "model": self._model}
        self.course.event("started", schedule=limited.describe(), **known, **facts)
        return self.course

    def keep(self, model: Any, optimizer: Any) -> None:
        """Copy the state, at the start and when it is due."""
        assert self.course is not None
        if self.course.updates == 0 or self.good.due(self.course.updates):
            self.good.keep(model, optimizer, self.state_dict)

    def before_update(
        self, optimizer: Any, examples: int, loss: float, *, last: Any, scale: float, parts: int
    ) -> None:
        """Stop at a loss that is not finite; measure; set the learning rate for the update.

        Parameters
        ----------
        examples, loss
            Of the update, over all processes.
        last, scale, parts
            The last loss that backward was called on, for the probe; the factor on all of them
            (see `StepProbe.step`); micro-batches.
        """
        assert self.course is not None
        rate, momentum = learning_rate_of(optimizer)
        factor = self.course.learning_rate_factor
        if not math.isfinite(loss):
            kept = self.good.save(self.course.folder, "the callback's last_good")
            self.course.check_loss(loss, rate * factor, kept)
        self.good.confirm()
        noise = measured(self.probe, last, scale, parts)
        added = penalty(optimizer) if self.course.penalised else 0.0
        self._finished = (examples, loss, rate * factor, momentum, noise, added)
        if factor != 1.0:
            self._rates = [group["lr"] for group in optimizer.param_groups]
            for group, before in zip(optimizer.param_groups, self._rates, strict=True):
                group["lr"] = before * factor

    def restore_rates(self, optimizer: Any) -> None:
        """Put the learning rates back after the update."""
        if self._rates is not None:
            for group, before in zip(optimizer.param_groups, self._rates, strict=True):
                group["lr"] = before
            self._rates = None

    def finish(self, model: Any, optimizer: Any) -> bool:
        """Count the update, if one was made."""
        if self._finished is None or self.course is None:
            return False
        self.course.finish(*self._finished)
        self._finished = None
        self.keep(model, optimizer)
        return True

    def close(self) -> None:
        """Take the probe off and close the log."""
        if self.probe:
            self.probe.close()
        if self.course is not None:
            self.course.event("closed")
            self.course.close()

    def state_dict(self) -> dict[str, Any]:
        """JSON-safe state, for the trainer's checkpoints."""
        assert self.course is not None
        probe = self.probe.state_dict() if self.probe else None
        return {"model": self._model, "course": self.course.state_dict(), "probe": probe}

    def load_state_dict(self, state: Mapping[str, Any], model: Any) -> None:
        """Go on from `state_dict`, after `start`.

        Raises
        ------
        InputError
            The state is of another model or schedule.
        """
        assert self.course is not None
        check_fingerprint(state["model"], model)
        self.course.load_state_dict(state["course"])
        if self.probe and state.get("probe"):
            self.probe.load_state_dict(state["probe"])
