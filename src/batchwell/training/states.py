"""Which model a state belongs to, and copies of states in memory and on disk."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, whole
from ._torch import torch
from .updates import unwrapped

LAST_GOOD = "last_good.pt"


def fingerprint(model: Any) -> dict[str, Any]:
    """What tells one model from another: names, shapes and types of its parameters, as a hash."""
    inner = unwrapped(model)
    rows = [f"{name} {tuple(p.shape)} {p.dtype}" for name, p in inner.named_parameters()]
    digest = hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]
    return {
        "parameters": sum(p.numel() for p in inner.parameters()),
        "tensors": len(rows),
        "digest": digest,
    }


def check_fingerprint(saved: Mapping[str, Any], model: Any) -> None:
    """Refuse a state from another model.

    Raises
    ------
    InputError
        Says what either has.
    """
    here = fingerprint(model)
    if saved != here:
        theirs, ours = (
            f"{m.get('parameters')} parameters in {m.get('tensors')} tensors (digest "
            f"{m.get('digest')})"
            for m in (saved, here)
        )
        raise InputError("state", theirs, f"is from another model: this one has {ours}")


def clone(state: Any) -> Any:
    """A deep copy of a state dictionary; tensors without their graphs."""
    if isinstance(state, torch.Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {key: clone(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(clone(value) for value in state)
    return copy.deepcopy(state)


class LastGood:
    """A copy of the state that is known to be good: the loss at it was finite.

    Parameters
    ----------
    every
        Updates between two copies; 0 keeps none.

    Attributes
    ----------
    state
        ``{"model", "optimizer", "training"}``, the last as JSON; None as long as there is none.
    """

    def __init__(self, every: int) -> None:
        self.every = whole("keep_every", every, 0)
        self.state: dict[str, Any] | None = None
        self._pending: dict[str, Any] | None = None

    def keep(self, model: Any, optimizer: Any, training: Callable[[], Mapping[str, Any]]) -> None:
        """Copy the state; it counts as good once `confirm` is called."""
        if self.every:
            self._pending = {
                "model": clone(model.state_dict()),
                "optimizer": clone(optimizer.state_dict()),
                "training": json.dumps(training()),
            }

    def due(self, updates: int) -> bool:
        """Whether a copy is to be made after so many updates."""
        return self.every > 0 and updates % self.every == 0

    def confirm(self) -> None:
        """The loss at the state last copied was finite."""
        if self._pending is not None:
            self.state, self._pending = self._pending, None

    def save(self, folder: Path | None, held_in: str) -> str:
        """Write the state to `folder`, if there is one; says where it is kept."""
        if self.state is None:
            return "no finite loss was seen, so no state is kept"
        step, place = json.loads(self.state["training"])["course"]["updates"], held_in
        if folder is not None:
            save_atomic(self.state, folder / LAST_GOOD)
            place = str(folder / LAST_GOOD)
        return f"the last good state, of step {step}, is kept in {place}"


def save_atomic(state: Any, path: Path) -> None:
    """``torch.save`` under a temporary name, synced and renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(temporary, "wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
