"""`LightningSchedule`: a batch-size schedule in Lightning, as one callback.

::

    trainer = Trainer(callbacks=[LightningSchedule("0:32 20k:256", logdir="logs")])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, RunError, require
from ._torch import torch
from .batches import check_loader, examples_in
from .course import Course
from .log import Log
from .noise import GradientNoise
from .schedule import Schedule
from .schedules import as_schedule
from .states import check_fingerprint, fingerprint
from .steps import StepProbe
from .updates import OpenUpdate, data_size, learning_rate_of, limit, measured, scale_gradients

try:
    from lightning.pytorch import Callback
except ModuleNotFoundError as error:
    if error.name not in ("lightning", "lightning.pytorch"):
        raise
    raise RunError('lightning is not installed: pip install "batchwell[trainers]"') from None


class LightningSchedule(Callback):
    """Sets how many batches Lightning accumulates, at each step boundary.

    The loader's batches are weighted by their examples; the learning rate is scaled for the moment
    of the update only. Lightning's checkpoints hold the schedule's state.

    Parameters
    ----------
    schedule, logdir, log, log_every
        As for `attach`. Batch sizes count examples over all processes.
    probe
        Module -> what measures the gradient noise, made with ``micro_batches="by_size"`` on the
        part whose forward is called: ``lambda module: Probe(module.net, micro_batches="by_size")``.

    Raises
    ------
    InputError
        When training starts: manual optimisation, ``accumulate_grad_batches`` given, several
        optimisers, a loader without length, a schedule that needs a probe without one, or what
        `attach` refuses.
    """

    def __init__(
        self,
        schedule: Schedule | str | int,
        *,
        logdir: str | Path | None = None,
        log: Log | Iterable[Log] = (),
        log_every: int = 10,
        probe: Callable[[Any], StepProbe] | None = None,
    ) -> None:
        self.schedule = as_schedule(schedule)
        self._make_probe = probe
        self._probe: StepProbe | None = None
        self._loss: Any = None
        self.course: Course | None = None
        self._logdir, self._log_every = logdir, log_every
        self._logs = [log] if callable(log) else list(log)
        self._saved: Mapping[str, Any] | None = None
        self._open: OpenUpdate | None = None
        self._examples = 0
        self._rates: list[Any] | None = None
        self._finished: tuple[int, float, float, float, GradientNoise | None] | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check what is trained and start, or go on from a checkpoint."""
        loader = trainer.train_dataloader
        _check(trainer, pl_module, loader)
        self._world = trainer.world_size
        micro = getattr(loader, "batch_size", None) or 1
        self._unit = micro * self._world
        main = trainer.is_global_zero
        self.course = Course(
            limit(self.schedule, self._unit, data_size(loader)),
            logdir=self._logdir if main else None,
            logs=self._logs if main else (),
            log_every=self._log_every,
        )
        self._model = fingerprint(pl_module)
        self._probe = None if self._make_probe is None else self._make_probe(pl_module)
        require(
            self._probe is not None or "noise" not in self.schedule.needs,
            "probe",
            None,
            f"must be given: schedule {self.schedule.name} follows the gradient noise",
        )
        facts = {"knob": "accumulation", "micro_batch": micro, "processes": self._world}
        facts |= {"data_size": data_size(loader), "model": self._model}
        self.course.event("started", schedule=self.course.schedule.describe(), **facts)
        if self._saved is not None:
            check_fingerprint(self._saved["model"], pl_module)
            self.course.load_state_dict(self._saved["course"])
            if self._probe and self._saved.get("probe"):
                self._probe.load_state_dict(self._saved["probe"])
            self._saved = None
        self._hook = trainer.optimizers[0].register_step_post_hook(self._restore_rates)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """At a step boundary, say after how many batches the next one is."""
        assert self.course is not None
        self._examples = examples_in(batch)
        if self._open is None:
            # Lightning steps where the count of the epoch's batches is a multiple of this number;
            # the first such count from here on is the number itself.
            count = self.course.batch_size // self._unit
            trainer.accumulate_grad_batches = batch_idx + count
            trainer.optimizers[0].zero_grad()
            alone = self._world == 1
            self._open = OpenUpdate(self._examples if alone else self._unit // self._world)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Weight the loss by its examples, instead of by Lightning's count of batches."""
        assert self._open is not None
        count = trainer.accumulate_grad_batches
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = scaler.get_scale() if scaler is not None else 1.0
        self._loss = loss
        self._open.add(self._examples, loss.detach() * (count / scale))
        weight = count * self._examples / self._open.unit
        if weight != 1.0:
            with torch.enable_grad():
                loss.mul_(weight)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Average the gradients; stop at a loss that is not finite."""
        assert self.course is not None
        assert self._open is not None
        total, loss = self._open.over_processes(self._world)
        rate, momentum = learning_rate_of(optimizer)
        factor = self.course.learning_rate_factor
        kept = "the last good state is that of Lightning's last checkpoint"
        self.course.check_loss(loss, rate * factor, kept)
        noise = measured(self._probe, self._loss, self._open)
        self._loss = None
        scale_gradients(optimizer, self._open.unit * self._world / total)
        self._finished = (total, loss, rate * factor, momentum, noise)
        if factor != 1.0:
            self._rates = [group["lr"] for group in optimizer.param_groups]
            for group, before in zip(optimizer.param_groups, self._rates, strict=True):
                group["lr"] = before * factor

    def _restore_rates(self, optimizer: Any, arguments: Any, keywords: Any) -> None:
        if self._rates is not None:
            for group, before in zip(optimizer.param_groups, self._rates, strict=True):
                group["lr"] = before
            self._rates = None

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Count the update, if there was one."""
        assert self.course is not None
        if self._finished is not None:
            self.course.finish(*self._finished)
            self._finished = self._open = None

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave Lightning as it was, and close the log."""
        self._hook.remove()
        if self._probe:
            self._probe.close()
        trainer.accumulate_grad_batches = 1
        if self.course is not None:
            self.course.event("closed")
            self.course.close()

    def state_dict(self) -> dict[str, Any]:
        """What Lightning's checkpoints keep."""
        if self.course is None:
            return dict(self._saved or {})
        probe = self._probe.state_dict() if self._probe else None
        return {"model": self._model, "course": self.course.state_dict(), "probe": probe}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training starts, when the model is known."""
        self._saved = state_dict or None


def _check(trainer: Any, module: Any, loader: Any) -> None:
    require(
        module.automatic_optimization,
        "automatic_optimization",
        False,
        "must be True: where the module calls its optimiser itself, use attach there",
    )
    require(
        trainer.accumulate_grad_batches == 1,
        "accumulate_grad_batches",
        trainer.accumulate_grad_batches,
        "must be left at 1: the schedule sets it",
    )
    count = len(trainer.optimizers)
    require(count == 1, "optimizers", count, "must be one")
    check_loader(loader)
    if trainer.num_training_batches == float("inf"):
        raise InputError("loader", type(loader).__name__, "has no length")
