"""One row of the roster of exit methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..estimate import Estimate


@dataclass(frozen=True)
class ExitMethod:
    """An exit method as the roster knows it.

    Attributes
    ----------
    run
        ``run(process, start, domain, **options) -> Estimate``.
    summary
        What it does, in a few words.
    regime
        Where it may be trusted, in a few words.
    statistical
        Whether its standard error is one of sampling (False: deterministic).
    """

    run: Callable[..., Estimate]
    summary: str
    regime: str
    statistical: bool = True
