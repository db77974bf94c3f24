"""Memory predicted before it is allocated, against what the machine could still give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import InputError

GIB = 2.0**30
CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes that could be allocated without swapping, a container's limit kept.

    The page cache counts as available: it is given up when asked for, and on a machine that
    has read many files next to nothing is free in the strict sense.
    """
    import psutil  # here, for `import batchwell` is light

    return min(psutil.virtual_memory().available, _left_in_container())


def _left_in_container(cgroup: Path = CGROUP) -> float:
    """What the memory limit of a cgroup (version 2) leaves; infinite without one."""
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        return float(limit) - used + int(stat.get("inactive_file", 0))
    except (OSError, ValueError):  # no container, or its limit reads "max"
        return float("inf")


def require_bytes(
    key: str, value: Any, needed: float, remedy: str, limit: float = float("inf")
) -> None:
    """Refuse an allocation of `needed` bytes beyond `limit` or what the machine has left.

    Raises
    ------
    InputError
        Naming what is needed, what there is and what to do instead.
    """
    free = min(limit, available_memory())
    if needed > free:
        raise InputError(
            key,
            value,
            f"would need {needed / GIB:.3g} GiB where {free / GIB:.3g} GiB are free: {remedy}",
        )
