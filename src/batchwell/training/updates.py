"""What the loop and the callbacks do to an optimiser for the moment of an update."""

from __future__ import annotations

from typing import Any

from ..errors import InputError, require
from ._torch import torch
from .accumulate import AccumulationProbe
from .noise import GradientNoise
from .schedule import Schedule
from .steps import StepProbe, norm_squared


class OpenUpdate:
    """Micro-batches of an update in the making.

    Each loss is weighted by its examples over `unit`; gradients times `unit` x processes / examples
    are then the mean over all examples, however the micro-batches differ in size.
    """

    def __init__(self, unit: int) -> None:
        self.unit, self.local = unit, 0
        self._losses: list[tuple[int, Any]] = []

    def add(self, examples: int, loss: Any) -> None:
        """Count a micro-batch of mean `loss`."""
        self.local += examples
        self._losses.append((examples, loss))

    @property
    def micro_batches(self) -> int:
        """Micro-batches so far, of this process."""
        return len(self._losses)

    def over_processes(self, world: int, group: Any = None) -> tuple[int, float]:
        """Examples and mean loss of the update, over all processes."""
        if world == 1 and len(self._losses) == 1:
            return self.local, float(self._losses[0][1])
        loss: Any = sum(examples * loss for examples, loss in self._losses)
        if world == 1:
            return self.local, float(loss) / self.local
        both = torch.stack([loss.double(), torch.tensor(float(self.local)).to(loss).double()])
        torch.distributed.all_reduce(both, group=group)
        return round(float(both[1])), float(both[0] / both[1])


def measured(
    probe: StepProbe | None, loss: Any, scale: float, micro_batches: int
) -> GradientNoise | None:
    """The probe's answer, once in each of its windows; `scale` is that of `StepProbe.step`."""
    if probe is None:
        return None
    try:
        probe.step(loss, scale=scale)
    except InputError:
        # The rest of an epoch may be one micro-batch, which this probe has nothing to compare with.
        if not (isinstance(probe, AccumulationProbe) and micro_batches == 1):
            raise
    due = probe.steps % (probe.every * probe.window) == 0
    return probe.noise() if due and probe.known else None


def unwrapped(model: Any) -> Any:
    """The model inside of DDP."""
    return model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model


def data_size(loader: Any) -> int | None:
    """Examples of the data set, if it says."""
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):
        return None


def learning_rate_of(optimizer: Any) -> tuple[float, float]:
    """Learning rate and momentum of the first group of parameters."""
    group = optimizer.param_groups[0]
    return float(group["lr"]), float(group.get("momentum", 0.0))


def weight_decay_of(optimizer: Any) -> float:
    """The penalty's factor in what plain SGD descends; of others, or if groups differ, 0."""
    inner = getattr(optimizer, "optimizer", optimizer)  # Accelerate's is a wrapper
    if not isinstance(inner, torch.optim.SGD):
        return 0.0
    found = {float(group["weight_decay"]) for group in inner.param_groups}
    return found.pop() if len(found) == 1 else 0.0


def penalty(optimizer: Any) -> float:
    """weight_decay |x|^2 / 2, which plain SGD descends besides the loss."""
    decay = weight_decay_of(optimizer)
    if decay == 0:
        return 0.0
    parameters = [p.detach() for group in optimizer.param_groups for p in group["params"]]
    return decay / 2 * norm_squared(parameters)


def scale_gradients(optimizer: Any, factor: float) -> None:
    """Multiply all gradients by `factor`; by 1 they are not touched."""
    if factor == 1.0:
        return
    grads = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    dense = [grad for grad in grads if not grad.is_sparse]
    if dense:
        torch._foreach_mul_(dense, factor)
    for grad in grads:
        if grad.is_sparse:
            grad.mul_(factor)


def scaled_step(optimizer: Any, factor: float) -> None:
    """``optimizer.step()`` with every learning rate times `factor`, and as it was afterwards."""
    if factor == 1.0:
        optimizer.step()
        return
    before = [group["lr"] for group in optimizer.param_groups]
    try:
        for group, rate in zip(optimizer.param_groups, before, strict=True):
            group["lr"] = rate * factor
        optimizer.step()
    finally:
        for group, rate in zip(optimizer.param_groups, before, strict=True):
            group["lr"] = rate


LOADED = "the examples that the processes load at once"


def limit(schedule: Schedule, unit: int, examples: int | None, what: str = LOADED) -> Schedule:
    """`schedule` under the loader's limits; `what` says what `unit` is.

    Raises
    ------
    InputError
        A size that the user wrote down is no multiple of `unit` or larger than the data.
    """
    require(
        "noise" not in schedule.needs or schedule.first >= 2,
        "batch_size",
        schedule.first,
        f"must be at least 2: {schedule.name} follows the noise, of which one example says nothing",
    )
    for size in schedule.listed:
        require(
            size % unit == 0,
            "batch_size",
            size,
            f"must be a multiple of {unit}, {what}",
        )
        require(
            examples is None or size <= examples,
            "batch_size",
            size,
            f"is larger than the data, which has {examples} examples",
        )
    return schedule.limited(multiple_of=unit, cap=examples)
