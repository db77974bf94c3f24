"""The limits of dense and sparse problems of this package, before they are allocated."""

from __future__ import annotations

from typing import Any

from ..memory import GIB, require_bytes

LIMIT = 8 * GIB  # of one problem, however much the machine has


def check_memory(key: str, value: Any, size: int, copies: float = 3.0) -> None:
    """Refuse a dense (size, size) problem that would not fit."""
    check_bytes(key, value, 8.0 * copies * size * size)


def check_bytes(key: str, value: Any, needed: float) -> None:
    """Refuse `needed` bytes beyond the limit or what the machine has left."""
    require_bytes(key, value, needed, "use fewer nodes, or simulate", LIMIT)
