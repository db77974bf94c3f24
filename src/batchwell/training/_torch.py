"""The one door to torch in this wing: where it is missing, one line says how to get it."""

from __future__ import annotations

from ..errors import RunError

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":  # torch is there, but broken
        raise
    raise RunError('torch is not installed: pip install "batchwell[torch]"') from None

__all__ = ["torch"]
