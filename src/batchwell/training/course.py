"""`Course`: where a training stands on its schedule. No torch: the loop and the callbacks share it.

It counts examples and updates, asks the schedule for the next batch size, logs, and stops at the
first loss that is not finite. One `finish` for each update of the optimiser.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import Divergence, InputError, require, whole
from ..estimate import Estimate
from .log import JsonLines, Log, flat
from .noise import GradientNoise
from .schedule import Reading, Schedule, init, learning_rate_factor, update

VERSION = 1


class Course:
    """Clock, schedule and log of one training.

    Parameters
    ----------
    schedule
        Already limited to what the loader, the processes and the data allow.
    logdir
        Directory of the default log; `None` for none.
    logs
        Further ``log(dict, step)`` callables.
    log_every
        Updates between two logged losses, each the mean since the one before. A loss is logged at
        the end of each batch size too, and the first update of the next is logged without one.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        logdir: str | Path | None = None,
        logs: Iterable[Log] = (),
        log_every: int = 10,
    ) -> None:
        self.schedule = schedule
        self.state = init(schedule)
        self.examples = self.updates = 0
        self.log_every = whole("log_every", log_every)
        self.file = None if logdir is None else JsonLines(logdir)
        self._logs: list[Log] = [*([self.file] if self.file else []), *logs]
        self._loss_sum, self._loss_examples = 0.0, 0
        self._fresh = True  # no update of this batch size is logged yet

    @property
    def batch_size(self) -> int:
        """Examples of the update to come, over all processes."""
        return int(self.state["batch_size"])

    @property
    def folder(self) -> Path | None:
        """Directory of the default log."""
        return self.file.path.parent if self.file else None

    @property
    def penalised(self) -> bool:
        """Whether the schedule weighs the loss against the gradient: both then know the penalty."""
        return {"loss", "noise"} <= self.schedule.needs

    @property
    def learning_rate_factor(self) -> float:
        """Factor on the loop's learning rate for the update to come."""
        return learning_rate_factor(self.schedule, self.batch_size, self.examples)

    def check_loss(self, loss: float, learning_rate: float, kept: str) -> None:
        """Stop at a loss that is not finite, before the update is made.

        Raises
        ------
        Divergence
            Says step, examples, batch size, learning rate, and what is `kept`.
        """
        if math.isfinite(loss):
            return
        if self.file:
            self.file.event("stopped", self.updates, examples=self.examples, loss=loss)
        raise Divergence(
            f"loss is {loss} at step {self.updates} ({self.examples} examples), batch size "
            f"{self.batch_size}, learning rate {learning_rate:g}; {kept}"
        )

    def finish(
        self,
        examples: int,
        loss: float,
        learning_rate: float,
        momentum: float = 0.0,
        noise: GradientNoise | None = None,
        penalty: float = 0.0,
    ) -> None:
        """Count an update of `examples` examples made at mean `loss` and `learning_rate`.

        `penalty` is what weight decay adds to the loss that the schedule sees.
        """
        before = self.batch_size
        self.examples += examples
        self.updates += 1
        self._loss_sum += loss * examples
        self._loss_examples += examples
        effective = learning_rate / (1.0 - momentum)
        reading = Reading(self.examples, loss + penalty, noise, effective, examples)
        self.state = update(self.schedule, self.state, reading)
        changed = self.batch_size != before
        due = self.updates % self.log_every == 0 or self.updates == 1 or changed
        if due or self._fresh:
            self._log_update(before, learning_rate, effective, due)
        self._fresh = changed
        if noise is not None:
            self.record("noise_scale", noise.gradient_noise_scale)
            self.record("gradient_norm_squared", noise.gradient_norm_squared)
            self.record("noise_trace", noise.noise_trace)

    def record(self, name: str, value: Estimate | float) -> None:
        """Log a measured number, with its interval where it has one."""
        values = flat(name, value) if isinstance(value, Estimate) else {name: float(value)}
        self.log(values)

    def log(self, values: Mapping[str, float]) -> None:
        """Hand values to every log, with the clock beside them."""
        for log in self._logs:
            log({"examples": self.examples, **values}, self.updates)

    def event(self, name: str, **facts: Any) -> None:
        """Note an event in the default log."""
        if self.file:
            self.file.event(name, self.updates, examples=self.examples, **facts)

    def _log_update(self, size: int, learning_rate: float, effective: float, due: bool) -> None:
        values = {"loss": self._loss_sum / max(self._loss_examples, 1)} if due else {}
        values |= {"batch_size": size, "learning_rate": learning_rate}
        self.log(values | {"temperature": effective / size})
        if due:
            self._loss_sum, self._loss_examples = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """Small JSON-safe state."""
        return {
            "version": VERSION,
            "schedule": self.schedule.describe(),
            "state": self.state,
            "examples": self.examples,
            "updates": self.updates,
            "loss": [self._loss_sum, self._loss_examples],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises
        ------
        InputError
            The state is none of this version, or was saved under another schedule: says where
            they differ.
        """
        require(
            isinstance(state, Mapping) and state.get("version") == VERSION,
            "state",
            state.get("version") if isinstance(state, Mapping) else type(state).__name__,
            f"must be a state of version {VERSION}",
        )
        here, there = self.schedule.describe(), state["schedule"]
        for key in sorted({*here, *there}):
            if here.get(key) != there.get(key):
                allowed = f"the state was saved under another schedule: {key} = {there.get(key)}"
                raise InputError(f"schedule {key}", here.get(key), allowed)
        self.state = {"batch_size": state["state"]["batch_size"], "rule": state["state"]["rule"]}
        self.examples, self.updates = int(state["examples"]), int(state["updates"])
        self._loss_sum, self._loss_examples = float(state["loss"][0]), int(state["loss"][1])
        self.event("resumed")

    def close(self) -> None:
        """Sync and close the default log."""
        if self.file:
            self.file.close()
