"""The landscape: minima, their sharpness and symmetries, and which basin a point is in."""

from __future__ import annotations

from .quench import UNDECIDED, Attractors, Quench, basin, polish, quench

__all__ = ["UNDECIDED", "Attractors", "Quench", "basin", "polish", "quench"]
