"""`attach`: a batch-size schedule, a log and resumable state in a plain PyTorch loop.

::

    training = attach(model, optimizer, loader, "0:32 20k:256", logdir="logs")
    for inputs, targets in training:
        loss = criterion(model(inputs), targets)
        training.step(loss)  # instead of loss.backward(), optimizer.step(), optimizer.zero_grad()

With a constant schedule at the loader's batch size the parameters come out bit for bit as without.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, RunError, one_of, require, whole
from ..estimate import Estimate
from ._torch import torch
from .batches import Batches, Resized, check_loader
from .course import Course
from .forecast import Forecast
from .log import Log
from .measure import Probe
from .schedule import Reading, Schedule, update
from .schedules import as_schedule
from .states import LastGood, check_fingerprint, fingerprint
from .steps import StepProbe, processes
from .updates import (
    OpenUpdate,
    data_size,
    learning_rate_of,
    limit,
    measured,
    penalty,
    scale_gradients,
    scaled_step,
    weight_decay_of,
)

KNOBS = ("accumulation", "sampler")
_ANEW = (
    "the loader's workers begin anew with their own random generators: the same bits come out only "
    "if the dataset draws no random numbers there; with knob='accumulation' and "
    "persistent_workers=False they are brought back"
)


class Training:
    """A training loop under a schedule; made by `attach`.

    Iterate it for the batches of one epoch and call `step` with the loss of each.

    Attributes
    ----------
    course
        Clock and schedule: `examples`, `updates`, `batch_size`.
    """

    def __init__(
        self, model: Any, optimizer: Any, batches: Batches, course: Course, loop: _Loop
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.course = course
        self._batches, self._loop = batches, loop
        self._forecast: Forecast | None = None
        self._good, self._started_at = LastGood(loop.keep_every), 0
        self._open: OpenUpdate | None = None
        self._current: tuple[int, bool] | None = None

    @property
    def last_good(self) -> dict[str, Any] | None:
        """The state that a loss which is not finite leaves; see `restore_last_good`."""
        return self._good.state

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self._batches.epoch

    @property
    def batch_size(self) -> int:
        """Examples of the update to come, over all processes."""
        return self.course.batch_size

    def __len__(self) -> int:
        return len(self._batches.loader)

    def __iter__(self) -> Iterator[Any]:
        """Batches of an epoch: of the rest of it after `load_state_dict`."""
        if self.course.updates == self._started_at:
            self._keep()
        for batch in self._batches.epoch_batches():
            done = self._open.local if self._open else 0
            share = self.course.batch_size // self._loop.world
            boundary = batch.last_of_epoch or self._loop.resized or done + batch.examples >= share
            self._current = (batch.examples, boundary)
            self._loop.synchronise(self.model, boundary)
            yield batch.data
        self._loop.synchronise(self.model, True)

    def step(self, loss: Any) -> bool:
        """Take the mean loss of the batch just handed out; True when the optimiser was called.

        Raises
        ------
        RunError
            No batch was handed out since the last call.
        Divergence
            The loss is not finite: says step, batch size, learning rate, and where the last good
            state is kept. The update is not made.
        """
        if self._current is None:
            raise RunError("step was called without a batch: iterate the training, once for each")
        (examples, boundary), self._current = self._current, None
        if self._open is None:
            self._open = OpenUpdate(self._loop.unit or examples)
        opened = self._open
        weight = examples / opened.unit
        # One micro-batch of the first one's size is not touched at all.
        self._loop.backward(loss if weight == 1.0 else loss * weight)
        opened.add(examples, loss.detach())
        if boundary:
            self._update(opened, loss)
        return boundary

    def _update(self, opened: OpenUpdate, last_loss: Any) -> None:
        total, loss = opened.over_processes(self._loop.world)
        rate, momentum = learning_rate_of(self.optimizer)
        factor = self.course.learning_rate_factor
        if not math.isfinite(loss):
            self._stop(loss, rate * factor)
        self._good.confirm()
        scale = opened.local / opened.unit
        noise = measured(self._loop.probe, last_loss, scale, opened.micro_batches)
        added = penalty(self.optimizer) if self.course.penalised else 0.0
        scale_gradients(self.optimizer, opened.unit * self._loop.world / total)
        if self._loop.before_update:
            self._loop.before_update()
        scaled_step(self.optimizer, factor)
        self.optimizer.zero_grad()
        self._open = None
        self.course.finish(total, loss, rate * factor, momentum, noise, added)
        if self._forecast is not None and self._forecast.look():
            self._forecast = None
        if self._good.due(self.course.updates):
            self._keep()

    def _stop(self, loss: float, rate: float) -> None:
        self.optimizer.zero_grad()
        self._open = None
        kept = self._good.save(self.course.folder, "training.last_good")
        self.course.check_loss(loss, rate, kept)

    def _keep(self) -> None:
        self._good.keep(self.model, self.optimizer, self.state_dict)

    def restore_last_good(self) -> None:
        """Put model, optimiser and schedule back to the last good state.

        Raises
        ------
        RunError
            None is kept.
        """
        if self.last_good is None:
            raise RunError("no last good state is kept: no finite loss was seen, or keep_every=0")
        self.model.load_state_dict(self.last_good["model"])
        self.optimizer.load_state_dict(self.last_good["optimizer"])
        self.load_state_dict(json.loads(self.last_good["training"]))

    def record(self, name: str, value: Estimate | float) -> None:
        """Log a measured number, such as ``"sharpness"``; the report shows it."""
        self.course.record(name, value)

    def forecast(
        self,
        losses: Callable[[Any, Any], Any],
        batches: Iterable[Any],
        *,
        updates: int = 1000,
        sampling: str = "reshuffle",
        barrier: float | None = None,
        drop: float | None = None,
    ) -> dict[str, Estimate]:
        """Predict from the present parameters, and log what comes of it.

        Best where training hovers. What comes is looked at over the next `updates` updates of this
        batch size by itself; the report then shows one against the other. Resuming gives it up.

        Parameters
        ----------
        losses, batches
            As for `LocalLoss`: the loss of each example, and all the data; all are looked at
            64 times.
        sampling, barrier, drop
            As for `predictions`. With momentum the learning rate is the effective one,
            eta / (1 - momentum).

        Raises
        ------
        InputError
            The optimiser is not plain SGD, `updates` is below 64, or what `LocalLoss` refuses.

        Examples
        --------
        After ``training = attach(...)`` and some epochs::

            training.forecast(lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), loader)
        """
        self._forecast = Forecast(
            self.model,
            self.optimizer,
            self.course,
            losses,
            batches,
            updates=updates,
            sampling=sampling,
            barrier=barrier,
            drop=drop,
        )
        return self._forecast.predicted

    def predict(self, name: str, value: Estimate | float) -> None:
        """Log a prediction; the report shows it against what `outcome` logs under this name."""
        self.course.record(f"predicted/{name}", value)

    def outcome(self, name: str, value: Estimate | float) -> None:
        """Log what came, for a prediction of this name."""
        self.course.record(f"came/{name}", value)

    def state_dict(self) -> dict[str, Any]:
        """Small JSON-safe state: schedule, clock, place in the epoch, random generators.

        Save it beside the model's and the optimiser's own state.

        Raises
        ------
        RunError
            Amid an accumulation: the gradients so far would be lost.
        """
        if self._open is not None:
            raise RunError("state_dict amid an accumulation: call it after step returned True")
        probe = self._loop.probe
        return {
            "model": fingerprint(self.model),
            "loop": self._loop.describe(),
            "course": self.course.state_dict(),
            "batches": self._batches.state_dict(),
            "probe": probe.state_dict() if probe else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, amid the epoch if it was saved there.

        The random generators of torch, Python and NumPy are set to where they were. Those of a
        loader's workers come there by loading again what the epoch had loaded; with
        ``knob="sampler"`` (amid an epoch) or persistent workers they begin anew, and a warning says
        so.

        Raises
        ------
        InputError
            The state is of another model, loader, number of processes or schedule.
        """
        keys = {"model", "loop", "course", "batches"}
        found = set(state) if isinstance(state, Mapping) else set()
        require(keys <= found, "state", sorted(found), "must be what state_dict gave")
        check_fingerprint(state["model"], self.model)
        here = self._loop.describe()
        for key, value in state["loop"].items():
            if here.get(key) != value:
                raise InputError(key, here.get(key), f"the state was saved with {key} = {value}")
        self.course.load_state_dict(state["course"])
        self._batches.load_state_dict(state["batches"])
        if self._batches.workers_begin_anew:
            warnings.warn(_ANEW, stacklevel=2)
        if self._loop.probe and state.get("probe"):
            self._loop.probe.load_state_dict(state["probe"])
        self._open = self._current = None
        self._started_at, self._forecast = self.course.updates, None

    def close(self) -> None:
        """Take the probe off the model; sync and close the log."""
        if self._loop.probe:
            self._loop.probe.close()
        self.course.event("closed")
        self.course.close()


class _Loop:
    """What does not change while training: the user's functions, knob, processes."""

    def __init__(
        self,
        knob: str,
        loader: Any,
        world: int,
        backward: Callable[[Any], Any] | None,
        before_update: Callable[[], Any] | None,
        probe: StepProbe | None,
        keep_every: int,
    ) -> None:
        self.resized = knob == "sampler"
        self.world, self.keep_every = world, keep_every
        self.backward = backward or (lambda loss: loss.backward())
        self.before_update, self.probe = before_update, probe
        self.micro = getattr(loader, "batch_size", None) or 1
        # Processes must agree on what a loss is divided by; alone, the first micro-batch will do.
        self.unit = self.micro if world > 1 else None
        self._facts = {
            "knob": knob,
            "micro_batch": None if self.resized else self.micro,
            "loader_batches": len(loader),
            "data_size": data_size(loader),
            "processes": world,
        }

    def describe(self) -> dict[str, Any]:
        """What a saved state must agree with."""
        return dict(self._facts)

    def synchronise(self, model: Any, boundary: bool) -> None:
        """DDP sums gradients over processes at step boundaries only (what its no_sync does)."""
        if self.world > 1 and hasattr(model, "require_backward_grad_sync"):
            model.require_backward_grad_sync = boundary


def attach(
    model: Any,
    optimizer: Any,
    loader: Any,
    schedule: Schedule | str | int,
    *,
    logdir: str | Path | None = None,
    log: Log | Iterable[Log] = (),
    log_every: int = 10,
    knob: str = "accumulation",
    backward: Callable[[Any], Any] | None = None,
    before_update: Callable[[], Any] | None = None,
    probe: StepProbe | None = None,
    keep_every: int = 100,
) -> Training:
    """Put a training loop under a batch-size schedule.

    Parameters
    ----------
    model
        The module, wrapped in ``DistributedDataParallel`` where there are several processes.
    optimizer
        Its learning rate stays what the loop set; the schedule's coupling and warm-up are
        multiplied on for the moment of the update, so learning-rate schedulers work as ever.
    loader
        A ``DataLoader``, or anything with a length that gives batches. Batch sizes of the schedule
        count examples over all processes.
    schedule
        A row of `SCHEDULES`, a plan "0:256 20M:1024", or one batch size.
    logdir
        Directory of ``log.jsonl`` (read by ``batchwell train-report``) and of the last good state.
    log
        Further ``log(dict, step)`` callables, such as ``mlflow.log_metrics``.
    log_every
        Updates between two logged losses, each the mean since the one before.
    knob
        "accumulation": gradients of the loader's batches are accumulated, weighted by their
        examples. "sampler": the loader's batches are made anew, at the size wanted.
    backward
        Called with the loss instead of ``loss.backward()``; ``accelerator.backward``. Autocast in
        bfloat16 needs nothing here. A ``GradScaler``, which may leave updates out, is not
        supported: with one, keep a loop of your own and say ``Probe.step(loss, scale=...)``.
    before_update
        Called when the gradients are complete, for example to clip them.
    probe
        What measures the gradient noise, `Probe` or `AccumulationProbe`, made with
        ``micro_batches="by_size"``; its answers are logged and given to the schedule. A `Probe` is
        made if the schedule needs one.
    keep_every
        Updates between copies of model and optimiser that are kept for a loss that is not finite;
        0 keeps none.

    Raises
    ------
    InputError
        The loader has no length, or a batch of the schedule is larger than the data or no multiple
        of the micro-batches.

    Examples
    --------
    >>> import torch
    >>> from batchwell.training import attach
    >>> data = [(torch.ones(8, 2), torch.zeros(8, 1)) for _ in range(6)]
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> training = attach(model, optimizer, data, "0:8 16:32")
    >>> for inputs, targets in training:
    ...     _ = training.step((model(inputs) - targets).square().mean())
    >>> training.course.updates, training.batch_size
    (3, 32)
    """
    one_of("knob", knob, KNOBS)
    check_loader(loader)
    world, examples = processes(model), data_size(loader)
    resized = knob == "sampler"
    unit = world if resized else world * (getattr(loader, "batch_size", None) or 1)
    limited = limit(as_schedule(schedule), unit, examples)
    if probe is None and "noise" in limited.needs:
        decay = weight_decay_of(optimizer)
        probe = Probe(model, data_size=examples, micro_batches="by_size", weight_decay=decay)
    loop = _Loop(
        knob, loader, world, backward, before_update, probe, whole("keep_every", keep_every, 0)
    )
    main = world == 1 or torch.distributed.get_rank() == 0
    logs = [log] if callable(log) else list(log)
    course = Course(
        limited, logdir=logdir if main else None, logs=logs if main else (), log_every=log_every
    )
    batches = _batches(loader, course, world) if resized else Batches(loader)
    course.event(
        "started", schedule=limited.describe(), model=fingerprint(model), **loop.describe()
    )
    return Training(model, optimizer, batches, course, loop)


def _batches(loader: Any, course: Course, world: int) -> Resized:
    def ahead() -> Iterator[int]:
        state, clock = course.state, course.examples
        while True:
            yield state["batch_size"] // world
            clock += state["batch_size"]
            state = update(course.schedule, state, Reading(clock))

    return Resized(loader, lambda: course.batch_size // world, ahead)
