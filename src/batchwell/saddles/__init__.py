"""Escape from saddles: the law of exit time and side, sequences, and the almost linear law."""

from __future__ import annotations

from .boundary import mean_overshoot
from .exact import exact_quantile, exact_survival
from .exit import saddle_exit
from .many import EscapeLaws, SaddleSequence, batch_size_law, escape_laws, saddle_sequence
from .outcome import SaddleExit
from .simulated import exit_sides

__all__ = [
    "EscapeLaws",
    "SaddleExit",
    "SaddleSequence",
    "batch_size_law",
    "escape_laws",
    "exact_quantile",
    "exact_survival",
    "exit_sides",
    "mean_overshoot",
    "saddle_exit",
    "saddle_sequence",
]
