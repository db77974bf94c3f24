"""What gradient noise cannot be measured on, said by name and with the remedy."""

from __future__ import annotations

import math
from typing import Any

from ..errors import Divergence, InputError, one_of
from ._torch import torch

Tensor = Any
Module = Any
nn = torch.nn
_BATCH_NORMS = nn.modules.batchnorm._BatchNorm
_DROPOUTS = nn.modules.dropout._DropoutNd
_RANDOM = (_DROPOUTS, nn.RNNBase, nn.MultiheadAttention)
_DEPTH = 64  # nodes between a loss and the model's output


def check_model(model: Module, *, dropout: str = "refuse") -> dict[str, Module]:
    """Refuse a model whose gradient is no mean over examples, or differs each time.

    Returns
    -------
    The modules that would be refused in train mode, by name, for `check_modes`.

    Raises
    ------
    InputError
        BatchNorm in train mode, active Dropout, no trainable parameter, or a compiled or
        replicated model; names the module.
    """
    one_of("dropout", dropout, ("refuse", "noise"))
    if type(model).__name__ == "OptimizedModule":
        raise InputError(
            "model", "compiled", "hooks do not see inside: attach before torch.compile"
        )
    if isinstance(model, nn.DataParallel):
        raise InputError("model", "DataParallel", "use DistributedDataParallel instead")
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError("model", type(model).__name__, "must have a parameter that is trained")
    watched = {n: m for n, m in model.named_modules() if isinstance(m, (_BATCH_NORMS, *_RANDOM))}
    check_modes(watched, dropout)
    return watched


def check_modes(modules: dict[str, Module], dropout: str) -> None:
    """Refuse those of `modules` that are in a mode that cannot be measured."""
    for name, module in modules.items():
        what = type(module).__name__
        if isinstance(module, _BATCH_NORMS):
            if module.training or module.running_mean is None:
                raise InputError(
                    f"model.{name}",
                    what,
                    "in train mode makes examples depend on each other: call eval() on it or use "
                    "GroupNorm",
                )
        elif dropout == "refuse" and _draws(module):
            raise InputError(
                f"model.{name}",
                what,
                "makes the forward random: set its dropout to 0, call eval(), or count it as "
                'gradient noise with dropout="noise"',
            )
        elif isinstance(module, nn.MultiheadAttention) and _draws(module):
            raise InputError(f"model.{name}", what, "draws its own dropout: set its dropout to 0")


def _draws(module: Module) -> bool:
    if isinstance(module, _DROPOUTS):
        return bool(module.training and module.p > 0)
    return bool(module.training and module.dropout > 0)


def generator_state(model: Module) -> Tensor:
    """State of the random generator that the model's forward would draw from."""
    device = next(model.parameters()).device
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def check_forward(model: Module, before: Tensor, dropout: str) -> None:
    """Refuse a forward that drew random numbers since the generator was in state `before`."""
    if dropout == "refuse" and not torch.equal(before, generator_state(model)):
        raise InputError(
            "model",
            "random forward",
            "draws random numbers: call eval(), take the noise out, or count it as gradient "
            'noise with dropout="noise"',
        )


def check_loss(loss: Any, step: int, batch_size: int) -> float:
    """The loss as a number.

    Raises
    ------
    InputError
        Not a scalar.
    Divergence
        Not finite; says the step.
    """
    if isinstance(loss, torch.Tensor) and loss.numel() != 1:
        raise InputError(
            "loss", tuple(loss.shape), "must be the scalar that backward() was called on"
        )
    value = float(loss.detach() if isinstance(loss, torch.Tensor) else loss)
    if not math.isfinite(value):
        raise Divergence(f"the loss is {value} at step {step}, batch size {batch_size}")
    return value


def reduction_of(loss: Tensor, outputs: list[Any]) -> str | None:
    """How `loss` is reduced, as the graph from it down to the model's `outputs` shows.

    Returns
    -------
    "mean", "sum", or None where a sum is scaled on the way (it may have been divided by the batch
    size, and be a mean) and where no reduction is found.
    """
    path = _path(getattr(loss, "grad_fn", None), outputs)
    scaled, found = False, None
    for node in path:
        name = node.name()
        number = getattr(node, "_saved_reduction", None)
        if name.startswith("MeanBackward") or number == 1:
            return "mean"
        if found is None and (name.startswith("SumBackward") or number == 2):
            if scaled:
                return None
            found = "sum"
        scaled = scaled or name in ("DivBackward0", "MulBackward0")
    return found


def _path(start: Any, ends: list[Any]) -> list[Any]:
    """Nodes from `start` to the first of `ends` that is met, depth first."""
    stack: list[tuple[Any, list[Any]]] = [(start, [])]
    seen: set[Any] = set()
    while stack:
        node, path = stack.pop()
        if node is None or node in seen or len(path) > _DEPTH:
            continue
        if any(node is end for end in ends):
            return path
        seen.add(node)
        stack.extend((child, [*path, node]) for child, _ in reversed(node.next_functions))
    return []


def check_reduction(declared: str, found: str | None) -> None:
    """Refuse a loss that is reduced in another way than was declared.

    Raises
    ------
    InputError
        With the remedy.
    """
    if found is not None and found != declared:
        raise InputError(
            "reduction",
            declared,
            f'the loss is a {found} over the batch: say Probe(..., reduction="{found}")'
            + (" or divide it by the batch size" if found == "sum" else ""),
        )
