"""`LightningSchedule`: a batch-size schedule in Lightning, as one callback.

::

    trainer = Trainer(callbacks=[LightningSchedule("0:32 20k:256", logdir="logs")])
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from ..errors import InputError, RunError, require
from ._torch import torch
from .batches import check_loader, examples_in
from .course import Course
from .follower import Follower, FollowerOptions
from .schedule import Schedule
from .updates import OpenUpdate, scale_gradients

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
    schedule, logdir, log, log_every, keep_every
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

    def __init__(self, schedule: Schedule | str | int, **options: Unpack[FollowerOptions]) -> None:
        self._follower = Follower(schedule, **options)
        self._loss: Any = None
        self._saved: Mapping[str, Any] | None = None
        self._open: OpenUpdate | None = None
        self._examples = 0

    @property
    def course(self) -> Course | None:
        """Clock and schedule, once training has started."""
        return self._follower.course

    @property
    def last_good(self) -> dict[str, Any] | None:
        """State from before a loss that was not finite: ``{"model", "optimizer", "training"}``."""
        return self._follower.good.state

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check what is trained and start, or go on from a checkpoint."""
        loader = trainer.train_dataloader
        _check(trainer, pl_module, loader)
        self._world = trainer.world_size
        micro = getattr(loader, "batch_size", None) or 1
        self._unit = micro * self._world
        self._follower.start(
            pl_module,
            loader,
            unit=self._unit,
            main=trainer.is_global_zero,
            micro_batch=micro,
            processes=self._world,
        )
        if self._saved is not None:
            self._follower.load_state_dict(self._saved, pl_module)
            self._saved = None
        self._follower.keep(pl_module, trainer.optimizers[0])
        self._hook = trainer.optimizers[0].register_step_post_hook(
            lambda optimizer, *_: self._follower.restore_rates(optimizer)
        )

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
        assert self._open is not None
        total, loss = self._open.over_processes(self._world)
        self._follower.before_update(
            optimizer,
            total,
            loss,
            last=self._loss,
            scale=self._open.local / self._open.unit,
            parts=self._open.micro_batches,
        )
        self._loss = None
        scale_gradients(optimizer, self._open.unit * self._world / total)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Count the update, if there was one."""
        if self._follower.finish(pl_module, trainer.optimizers[0]):
            self._open = None

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave Lightning as it was, and close the log."""
        self._hook.remove()
        trainer.accumulate_grad_batches = 1
        self._follower.close()

    def state_dict(self) -> dict[str, Any]:
        """What Lightning's checkpoints keep."""
        return dict(self._saved or {}) if self.course is None else self._follower.state_dict()

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
