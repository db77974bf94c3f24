"""What the loop and the callbacks do to an optimiser for the moment of an update."""

from __future__ import annotations

from typing import Any

from ._torch import torch


def processes(model: Any) -> int:
    """Processes that share each update: those of DDP."""
    wrapped = isinstance(model, torch.nn.parallel.DistributedDataParallel)
    return int(torch.distributed.get_world_size(model.process_group)) if wrapped else 1


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
