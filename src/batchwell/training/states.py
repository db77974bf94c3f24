"""Which model a state belongs to, and copies of states in memory and on disk."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ._torch import torch
from .updates import processes


def fingerprint(model: Any) -> dict[str, Any]:
    """What tells one model from another: names, shapes and types of its parameters, as a hash."""
    inner = getattr(model, "module", model) if processes(model) > 1 else model
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


def save_atomic(state: Any, path: Path) -> None:
    """``torch.save`` under a temporary name, synced and renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(temporary, "wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
