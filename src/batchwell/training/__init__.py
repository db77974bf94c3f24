"""Real PyTorch training: measure the gradient noise, predict, and let the batch size follow.

Needs the extra ``batchwell[torch]``; importing this package does not load torch yet. Each name below
is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Public name -> module that holds it.
_HOME = {
    "GradientNoise": "noise",
    "LocalLoss": "local",
    "Probe": "measure",
    "Reading": "schedule",
    "SCHEDULES": "schedules",
    "Schedule": "schedule",
    "StepNoise": "noise",
    "Training": "loop",
    "attach": "loop",
    "combine": "noise",
    "from_accumulated": "noise",
    "hessian_density": "curvature",
    "hessian_eigenvalues": "curvature",
    "hessian_trace": "curvature",
    "noise_eigenvalues": "curvature",
    "noise_factor": "noise",
    "noise_shape": "curvature",
    "overlap": "curvature",
    "preview": "schedule",
    "to_tensorboard": "log",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'batchwell.training' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
