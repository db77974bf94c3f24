"""How an ensemble is run: which engine, precision, device, scheme, and how many threads."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, TypedDict

from ..dynamics import SGD, Process
from ..errors import InputError, one_of, require, whole
from ..memory import require_bytes
from . import cuda
from .generators import GENERATORS
from .step import SCHEMES

ENGINES = ("auto", "fused", "xla")
PRECISIONS = ("float64", "float32")
DEVICES = ("cpu", "cuda")
# Below this step, increments fall under the rounding of a float32 state (measured: -2 % at 1e-6).
SMALLEST_FLOAT32_STEP = 1e-5


class Options(TypedDict, total=False):
    """Keyword arguments that every ensemble function takes.

    Attributes
    ----------
    engine
        "auto" (fused code where the loss allows it, else XLA), "fused" or "xla".
    fallback
        With "auto": False refuses a loss that has no fused form instead of running it on XLA.
    precision
        "float64", or "float32": positions and arithmetic in float32, and Gaussian noise from
        half as many random words (`streams.normal_pair32`).
    threads
        CPU threads of the fused engine; all allowed ones by default. Results do not depend on it.
    device
        "cpu", or "cuda": an NVIDIA GPU, the same bits. Gradient flow stays on the CPU.
    scheme
        For diffusions, see `step.SCHEMES`: "heun" (weak order 2 where noise does not depend on
        x), "euler" (Euler-Maruyama), "platen" (weak order 2).
    generator
        "xoshiro" (xoshiro128++), or "philox" (Philox-4x32-10 at every draw; slower): other random
        bits of the same quality, to see that an answer does not hang on the generator.
    """

    engine: str
    fallback: bool
    precision: str
    threads: int | None
    device: str
    scheme: str
    generator: str


@dataclass(frozen=True)
class Settings:
    """`Options`, checked."""

    engine: str = "auto"
    fallback: bool = True
    precision: str = "float64"
    threads: int | None = None
    device: str = "cpu"
    scheme: str = "heun"
    generator: str = "xoshiro"


class SlowerEngine(UserWarning):
    """A loss runs on XLA because it has no fused form."""


def checked(process: Process, substeps: int, options: dict[str, Any]) -> Settings:
    """The settings that `options` ask for.

    Raises
    ------
    InputError
        Naming the option, its value and what is allowed.
    """
    whole("substeps", substeps)
    unknown = sorted(set(options) - set(Options.__annotations__))
    require(not unknown, "options", unknown, "must be among " + ", ".join(Options.__annotations__))
    out = Settings(**options)
    one_of("engine", out.engine, ENGINES)
    one_of("precision", out.precision, PRECISIONS)
    one_of("device", out.device, DEVICES)
    one_of("scheme", out.scheme, SCHEMES)
    one_of("generator", out.generator, GENERATORS)
    if out.threads is not None:
        whole("threads", out.threads)
    if out.engine == "xla":
        _only_fused(out)
    if out.device == "cuda":
        cuda.need_device()
    if out.precision == "float32":
        _float32_is_safe(process, substeps)
    return out


def _only_fused(settings: Settings) -> None:
    """Refuse on XLA what only the fused engine has."""
    for key, only in (("precision", "float64"), ("device", "cpu"), ("generator", "xoshiro")):
        value = getattr(settings, key)
        require(value == only, key, value, f"must be {only} with engine='xla'; use engine='fused'")


def _float32_is_safe(process: Process, substeps: int) -> None:
    parts = 1 if isinstance(process, SGD) else substeps
    step = process.learning_rate / parts
    if step < SMALLEST_FLOAT32_STEP:
        raise InputError(
            "precision",
            "float32",
            f"is unsafe at steps of {step:g} (rounding eats "
            f"the drift below {SMALLEST_FLOAT32_STEP:g}); use precision='float64'",
        )


_told: set[str] = set()


def fall_back(settings: Settings, reason: str) -> None:
    """Say once, in one sentence, why XLA runs this; refuse where that was not wanted."""
    if settings.engine == "fused" or not settings.fallback:
        raise InputError(
            "engine",
            "fused",
            f"cannot run this: {reason}; use engine='xla', or write the loss without it",
        )
    if settings.device != "cpu":
        raise InputError("device", settings.device, f"cannot run this: {reason}; use device='cpu'")
    _only_fused(settings)
    if reason not in _told:
        _told.add(reason)
        warnings.warn(
            f"simulating on XLA because {reason}: the same answer to rounding, "
            "at roughly 4 to 30 times the processor time",
            SlowerEngine,
            stacklevel=4,
        )


def require_memory(need: int) -> None:
    """Refuse an ensemble of `need` bytes when the machine has not that much left."""
    remedy = "run fewer paths at a time (results do not depend on it)"
    require_bytes("paths", "all at once", need, remedy)


def require_room(need: int) -> None:
    """Refuse a kernel each of whose threads needs `need` bytes when the machine has not that much."""
    remedy = "use precision='float32', or a problem of fewer parameters"
    require_bytes("threads", "one", need, remedy)
