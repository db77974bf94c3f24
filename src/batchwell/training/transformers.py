"""`TransformersSchedule`: a batch-size schedule in Transformers' Trainer, as one callback.

::

    trainer = Trainer(..., callbacks=[TransformersSchedule("0:32 20k:256", logdir="logs")])
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Unpack

from ..errors import InputError, RunError, require
from .batches import check_loader, examples_in
from .course import Course
from .follower import Follower, FollowerOptions
from .schedule import Schedule
from .updates import OpenUpdate

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    if error.name != "transformers":
        raise
    raise RunError('transformers is not installed: pip install "batchwell[trainers]"') from None


KEY = "batchwell"  # of this callback's state in the Trainer's


class TransformersSchedule(TrainerCallback):
    """Sets ``gradient_accumulation_steps`` as training goes.

    All sizes are multiples of the first, and a new one begins where the Trainer's own count allows
    it: at the next update whose place in the epoch is a multiple of the new number of accumulated
    batches, at the latest with the next epoch. The Trainer's learning-rate schedule keeps its pace
    in examples: after an update of twice the first size it moves two steps. Checkpoints can be
    resumed from: ``global_step`` counts there in updates of the first size, by which the Trainer
    finds its place.

    Parameters
    ----------
    schedule, logdir, log, log_every, keep_every
        As for `attach`. Batch sizes count examples over all processes.
    probe
        Model -> what measures the gradient noise:
        ``lambda model: Probe(model, micro_batches="equal")``, or "by_size" for models whose forward
        takes ``num_items_in_batch``. Gradients must not be clipped before it sees them.

    Raises
    ------
    InputError
        When training starts: ``gradient_accumulation_steps`` does not give the schedule's first
        size, a size is no multiple of that, a probe under ``max_grad_norm`` or fp16, a schedule
        that needs a probe without one, a checkpoint that was saved without this callback, or what
        `attach` refuses.
    """

    def __init__(self, schedule: Schedule | str | int, **options: Unpack[FollowerOptions]) -> None:
        self._follower = Follower(schedule, **options)
        self._measures = options.get("probe") is not None
        self._batches = 0  # of the epoch
        self._resumed: int | None = None  # batches accumulated when the checkpoint was saved
        self._open: OpenUpdate | None = None
        self._shared = False  # losses are shares of the update's mean

    @property
    def course(self) -> Course | None:
        """Clock and schedule, once training has started."""
        return self._follower.course

    @property
    def last_good(self) -> dict[str, Any] | None:
        """State from before a loss that was not finite: ``{"model", "optimizer", "training"}``."""
        return self._follower.good.state

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Check what is trained and start, or go on from a checkpoint."""
        loader, model = parts["train_dataloader"], parts["model"]
        check_loader(loader)
        self._world = args.world_size
        self._unit = args.train_batch_size * self._world
        self._first = args.gradient_accumulation_steps
        _check(args, self._follower.schedule, self._unit, self._measures)
        self._per_epoch = -(-len(loader) // self._first)  # the Trainer's count of updates
        self._follower.start(
            model,
            loader,
            unit=self._unit * self._first,
            what="the schedule's first size, in which the Trainer counts its place",
            main=args.process_index == 0,
            micro_batch=args.train_batch_size,
            processes=self._world,
        )
        self._batches, self._epoch = 0, -1
        if state.global_step:
            self._go_on(args, state, model)
        self._follower.keep(model, parts["optimizer"])
        self._hook = model.register_forward_hook(self._saw, with_kwargs=True)

    def _go_on(self, args: Any, state: Any, model: Any) -> None:
        saved = (state.stateful_callbacks or {}).get(KEY)
        if saved is None:
            raise InputError(
                "resume_from_checkpoint",
                state.global_step,
                "was saved without this callback: train on without resume_from_checkpoint",
            )
        require(
            args.max_steps <= 0,
            "max_steps",
            args.max_steps,
            "counts updates of changing sizes: to go on from a checkpoint say num_train_epochs",
        )
        first = saved["first"]
        require(
            first == self._first,
            "gradient_accumulation_steps",
            self._first,
            f"must be {first}, as it was when the checkpoint was saved",
        )
        self._follower.load_state_dict(saved["follower"], model)
        # The Trainer's own reckoning, from the place that `on_save` wrote down.
        epochs, done = divmod(state.global_step, self._per_epoch)
        self._epoch = epochs - 1
        if done and not args.ignore_data_skip:
            self._batches, self._resumed = done * self._first, saved["accumulated"]

    def _saw(self, model: Any, inputs: Any, named: Any, output: Any) -> None:
        """Count a batch that is trained on, and its loss."""
        if not model.training:
            return
        loss = output["loss"] if isinstance(output, dict) and "loss" in output else output[0]
        examples = examples_in([*inputs, named])
        if self._open is None:
            self._open = OpenUpdate(examples)
        self._shared = named.get("num_items_in_batch") is not None
        self._loss = loss
        self._open.add(examples, loss.detach() / examples if self._shared else loss.detach())
        self._batches += 1

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Any number of batches may be accumulated from here on."""
        assert self.course is not None
        self._epoch += 1
        if self._resumed is not None:
            args.gradient_accumulation_steps, self._resumed = self._resumed, None
            return
        self._batches = 0
        args.gradient_accumulation_steps = self.course.batch_size // self._unit

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, optimizer: Any, **_: Any
    ) -> None:
        """Stop at a loss that is not finite; scale the learning rate."""
        if self._open is None:
            raise RunError("the model's forward was not seen: call it as a module, with labels")
        total, loss = self._open.over_processes(self._world)
        if self._shared:
            loss *= total / self._world
        parts = self._open.micro_batches
        self._follower.before_update(
            optimizer, total, loss, last=self._loss, scale=1.0, parts=parts
        )
        self._loss = None

    def on_optimizer_step(
        self, args: Any, state: Any, control: Any, optimizer: Any, **_: Any
    ) -> None:
        """Put the learning rates back."""
        self._follower.restore_rates(optimizer)

    def on_step_end(
        self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **parts: Any
    ) -> None:
        """Count the update; begin the next size where the Trainer can."""
        assert self.course is not None
        assert self._open is not None
        made, self._open = self._open.micro_batches, None
        self._follower.finish(parts["model"], parts["optimizer"])
        if lr_scheduler is not None and hasattr(lr_scheduler, "lr_lambdas"):
            for _extra in range(-(-made // self._first) - 1):
                lr_scheduler.step()
        wanted = self.course.batch_size // self._unit
        if self._batches % wanted == 0:
            args.gradient_accumulation_steps = wanted

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Put the place, counted in updates of the first size, into the checkpoint."""
        path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / "trainer_state.json"
        if not (state.is_world_process_zero and path.is_file()):
            return
        saved = json.loads(path.read_text())
        done = -(-self._batches // self._first)
        saved["global_step"] = self._epoch * self._per_epoch + done
        saved["stateful_callbacks"][KEY] = {
            "follower": self._follower.state_dict(),
            "first": self._first,
            "accumulated": args.gradient_accumulation_steps,
        }
        temporary = path.with_suffix(".part")
        temporary.write_text(json.dumps(saved, indent=2))
        os.replace(temporary, path)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave the Trainer as it was, and close the log."""
        self._hook.remove()
        args.gradient_accumulation_steps = self._first
        self._follower.close()


def _check(args: Any, schedule: Schedule, unit: int, measures: bool) -> None:
    first = round(schedule.first)
    require(
        args.gradient_accumulation_steps * unit == first,
        "gradient_accumulation_steps",
        args.gradient_accumulation_steps,
        f"must be {first // unit}, which gives the schedule's first size {first}",
    )
    require(
        not measures or not args.max_grad_norm,
        "max_grad_norm",
        args.max_grad_norm,
        "must be 0 with a probe: the Trainer clips gradients before callbacks see them",
    )
    require(
        not (measures and args.fp16),
        "fp16",
        True,
        "must be off with a probe, since gradients are still scaled then: use bf16",
    )
