"""Where measurements go: one callable ``log(dict, step)``, and the file that is kept by default.

MLflow's ``mlflow.log_metrics`` and Weights & Biases' ``run.log`` have this signature already;
`to_tensorboard` makes one of a ``SummaryWriter``. The values are plain numbers.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, RunError
from ..estimate import Estimate

Log = Callable[[dict[str, float], int], Any]
FILE = "log.jsonl"


class JsonLines:
    """Append-only log ``LOGDIR/log.jsonl``, one JSON object a line.

    A line is written in one call, so a crash tears at most the last one, which readers leave
    out and the next run ends. Lines called events (``{"event": ...}``) are synced to the disk.

    Raises
    ------
    InputError
        The directory or the file cannot be written.
    """

    def __init__(self, logdir: str | Path) -> None:
        self.path = Path(logdir) / FILE
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self.path, flags, 0o644)
            size = os.fstat(self._handle).st_size
            if size and os.pread(self._handle, 1, size - 1) != b"\n":
                os.write(self._handle, b"\n")  # ends the line that a crash tore
        except OSError as error:
            allowed = f"cannot be written: {error.strerror}"
            raise InputError("logdir", str(logdir), allowed) from None

    def __call__(self, values: Mapping[str, float], step: int) -> None:
        """Append the values measured at update `step`."""
        self._append({"step": step, **values})

    def event(self, name: str, step: int, **facts: Any) -> None:
        """Append what happened (start, resume, stop), and sync."""
        self._append({"event": name, "step": step, **facts})
        os.fsync(self._handle)

    def close(self) -> None:
        """Sync and close; writing again is an error."""
        if self._handle >= 0:
            os.fsync(self._handle)
            os.close(self._handle)
            self._handle = -1

    def _append(self, record: Mapping[str, Any]) -> None:
        line = json.dumps({key: _plain(value) for key, value in record.items()}) + "\n"
        try:
            os.write(self._handle, line.encode())
        except OSError as error:
            raise RunError(f"{self.path}: {error.strerror}; what was logged is kept") from None


def _plain(value: Any) -> Any:
    """JSON has no infinities: they become strings, as in `Estimate.to_dict`."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def flat(name: str, estimate: Estimate) -> dict[str, float]:
    """An estimate as plain numbers: its value under `name`, its interval beside it.

    Examples
    --------
    >>> flat("noise_scale", Estimate(8.0, 1.0, (6.0, 10.0), "examples", "given", 5))
    {'noise_scale': 8.0, 'noise_scale/low': 6.0, 'noise_scale/high': 10.0}
    """
    low, high = estimate.interval
    return {name: estimate.value, f"{name}/low": low, f"{name}/high": high}


def to_tensorboard(writer: Any, prefix: str = "batchwell/") -> Log:
    """``log(dict, step)`` for a TensorBoard ``SummaryWriter``.

    Anything with its ``add_scalar(name, value, step)`` serves as `writer`; `prefix` goes before the names.

    Examples
    --------
    >>> class Printer:
    ...     add_scalar = staticmethod(print)
    >>> to_tensorboard(Printer())({"batch_size": 32.0}, 7)
    batchwell/batch_size 32.0 7
    """

    def log(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(prefix + name, value, step)

    return log
