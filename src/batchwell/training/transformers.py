"""`TransformersSchedule`: a batch-size schedule in Transformers' Trainer, as one callback.

::

    trainer = Trainer(..., callbacks=[TransformersSchedule("0:32 20k:256", logdir="logs")])
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import RunError, require
from .batches import check_loader, examples_in
from .course import Course
from .log import Log
from .schedule import Schedule
from .schedules import as_schedule
from .states import fingerprint
from .updates import OpenUpdate, data_size, learning_rate_of, limit

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    if error.name != "transformers":
        raise
    raise RunError('transformers is not installed: pip install "batchwell[trainers]"') from None


class TransformersSchedule(TrainerCallback):
    """Sets ``gradient_accumulation_steps`` as training goes.

    A new size begins where the Trainer's own count allows it: at the next update whose place in the
    epoch is a multiple of the new number of accumulated batches, at the latest with the next
    epoch. The Trainer's learning-rate schedule keeps its pace in examples: after an
    update of twice the first size it moves two steps.

    Parameters
    ----------
    schedule, logdir, log, log_every
        As for `attach`; `schedule` must not shrink. Batch sizes count examples over all processes.

    Raises
    ------
    InputError
        When training starts: ``gradient_accumulation_steps`` does not give the schedule's first
        size, the schedule may shrink or needs the gradient noise, training goes on from a checkpoint (the Trainer finds its
        place by counting updates of one size), or what `attach` refuses.
    """

    def __init__(
        self,
        schedule: Schedule | str | int,
        *,
        logdir: str | Path | None = None,
        log: Log | Iterable[Log] = (),
        log_every: int = 10,
    ) -> None:
        self.schedule = as_schedule(schedule)
        self.course: Course | None = None
        self._logdir, self._log_every = logdir, log_every
        self._logs = [log] if callable(log) else list(log)
        self._batches = 0  # of the epoch
        self._open: OpenUpdate | None = None
        self._rates: list[Any] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Check what is trained and start."""
        loader, model = parts["train_dataloader"], parts["model"]
        check_loader(loader)
        self._world = args.world_size
        self._unit = args.train_batch_size * self._world
        limited = limit(self.schedule, self._unit, data_size(loader))
        self._first = args.gradient_accumulation_steps
        _check(args, state, limited, self._unit)
        main = args.process_index == 0
        self.course = Course(
            limited,
            logdir=self._logdir if main else None,
            logs=self._logs if main else (),
            log_every=self._log_every,
        )
        facts = {"knob": "accumulation", "micro_batch": args.train_batch_size}
        facts |= {"processes": self._world, "data_size": data_size(loader)}
        facts |= {"model": fingerprint(model)}
        self.course.event("started", schedule=limited.describe(), **facts)
        self._hook = model.register_forward_hook(self._saw, with_kwargs=True)

    def _saw(self, model: Any, inputs: Any, named: Any, output: Any) -> None:
        """Count a batch that is trained on, and its loss."""
        if not model.training:
            return
        loss = output["loss"] if isinstance(output, dict) and "loss" in output else output[0]
        examples = examples_in([*inputs, named])
        if self._open is None:
            self._open = OpenUpdate(examples)
        self._open.add(examples, loss.detach())
        self._batches += 1

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Any number of batches may be accumulated from here on."""
        assert self.course is not None
        self._batches = 0
        args.gradient_accumulation_steps = self.course.batch_size // self._unit

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, optimizer: Any, **_: Any
    ) -> None:
        """Stop at a loss that is not finite; scale the learning rate."""
        assert self.course is not None
        if self._open is None:
            raise RunError("the model's forward was not seen: call it as a module, with labels")
        total, loss = self._open.over_processes(self._world)
        rate, momentum = learning_rate_of(optimizer)
        factor = self.course.learning_rate_factor
        kept = "the last good state is that of the Trainer's last checkpoint"
        self.course.check_loss(loss, rate * factor, kept)
        self._finished = (total, loss, rate * factor, momentum)
        self._rates = [group["lr"] for group in optimizer.param_groups]
        if factor != 1.0:
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * factor

    def on_optimizer_step(
        self, args: Any, state: Any, control: Any, optimizer: Any, **_: Any
    ) -> None:
        """Put the learning rates back."""
        assert self._rates is not None
        for group, before in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = before

    def on_step_end(
        self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **_: Any
    ) -> None:
        """Count the update; begin the next size where the Trainer can."""
        assert self.course is not None
        made = args.gradient_accumulation_steps
        self.course.finish(*self._finished)
        self._open = None
        if lr_scheduler is not None and hasattr(lr_scheduler, "lr_lambdas"):
            for _extra in range(made // self._first - 1):
                lr_scheduler.step()
        wanted = self.course.batch_size // self._unit
        if self._batches % wanted == 0:
            args.gradient_accumulation_steps = wanted

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave the Trainer as it was, and close the log."""
        self._hook.remove()
        args.gradient_accumulation_steps = self._first
        if self.course is not None:
            self.course.event("closed")
            self.course.close()


def _check(args: Any, state: Any, schedule: Schedule, unit: int) -> None:
    first = round(schedule.first)
    require(
        args.gradient_accumulation_steps * unit == first,
        "gradient_accumulation_steps",
        args.gradient_accumulation_steps,
        f"must be {first // unit}, which gives the schedule's first size {first}",
    )
    require(
        "noise" not in schedule.needs,
        "schedule",
        schedule.name,
        "follows the gradient noise, which the Trainer clips before callbacks see it: use a planned "
        "schedule, or plateau",
    )
    require(
        not schedule.options.may_shrink,
        "may_shrink",
        True,
        "must be False: the Trainer makes no more updates in an epoch than it planned at the start",
    )
    require(
        state.global_step == 0,
        "resume_from_checkpoint",
        state.global_step,
        "cannot be used with a schedule: the Trainer finds its place by counting equal updates",
    )
