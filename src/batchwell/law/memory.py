"""Memory predicted before it is allocated."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from ..errors import InputError


def check_memory(key: str, value: Any, size: int, copies: float = 3.0) -> None:
    """Refuse a dense (size, size) problem that would not fit, before allocating it."""
    check_bytes(key, value, 8.0 * copies * size * size)


def check_bytes(key: str, value: Any, needed: float) -> None:
    """Refuse an allocation of `needed` bytes beyond 8 GiB or what the machine has left."""
    free = 8.0 * 2**30
    with contextlib.suppress(ValueError, OSError, AttributeError):  # unknown on some systems
        free = min(free, float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    if needed > free:
        raise InputError(
            key,
            value,
            f"would need {needed / 2**30:.3g} GiB where "
            f"{free / 2**30:.3g} GiB are free: use fewer nodes, or simulate",
        )
