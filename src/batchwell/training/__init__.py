"""Real PyTorch training: measure the gradient noise, predict, and let the batch size follow.

Needs the extra ``batchwell[torch]``; importing this package does not load torch yet. Each name below
is loaded when it is first used.
"""

from __future__ import annotations

from .._lazy import lazy

# Public name -> module that holds it.
_HOME = {
    "AccumulationProbe": "accumulate",
    "GradientNoise": "noise",
    "LocalLoss": "local",
    "NoiseSpectrum": "spectrum",
    "Probe": "measure",
    "Reading": "schedule",
    "SCHEDULES": "schedules",
    "Schedule": "schedule",
    "StepNoise": "noise",
    "Training": "loop",
    "attach": "loop",
    "combine": "noise",
    "critical_batch_size": "predict",
    "equivalent_pairs": "predict",
    "escape_exponent": "predict",
    "from_accumulated": "noise",
    "hessian_density": "curvature",
    "hessian_eigenvalues": "curvature",
    "hessian_trace": "curvature",
    "invariance_limit": "predict",
    "nearby_minimum": "local",
    "noise_eigenvalues": "curvature",
    "noise_factor": "noise",
    "noise_shape": "curvature",
    "noise_spectrum": "spectrum",
    "overlap": "curvature",
    "predictions": "predict",
    "preview": "schedule",
    "saddle_escape_steps": "predict",
    "score": "scoring",
    "stationary_loss": "predict",
    "temperature": "predict",
    "to_tensorboard": "log",
}

__all__ = sorted(_HOME)

__getattr__ = lazy(__name__, _HOME)


def __dir__() -> list[str]:
    return __all__
