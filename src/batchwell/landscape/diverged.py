"""Paths of SGD that run away: they are named, and the others are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..dynamics import SGD
from ..ensemble import Ensemble, advance_or_drop
from ..errors import Divergence
from .quench import several


@dataclass(frozen=True)
class Diverged:
    """A path of SGD that ran away.

    Attributes
    ----------
    path, step
        Its index, and the first SGD step after which it was no longer within 1e8 times the size of
        the starts, or not finite.
    batch_size, learning_rate
        Of its SGD.
    origin
        Name of the minimum where it began, if it began at one.
    """

    path: int
    step: int
    batch_size: int
    learning_rate: float
    origin: str = ""

    def __str__(self) -> str:
        began = f" from {self.origin}" if self.origin else ""
        return f"path {self.path}{began} (at step {self.step})"


class Survivors:
    """Advances paths of SGD, and names in `lost` those that ran away.

    Parameters
    ----------
    farthest
        Coordinates beyond which a path counts as run away (`quench.farthest_from` the starts).
    origins
        Name of the minimum where each path began, by path index, if they began at minima.
    """

    def __init__(self, farthest: float, origins: Sequence[str] = ()) -> None:
        self.farthest, self.origins = farthest, origins
        self.lost: list[Diverged] = []

    def advance(
        self, sgd: SGD, state: Ensemble, steps: int, threads: int | None = None
    ) -> Ensemble:
        """Those of the paths that stay; bit for bit where they would be without the others."""
        stayed, gone = advance_or_drop(sgd, state, steps, self.farthest, threads=threads)
        for path, step in gone.items():
            origin = self.origins[path] if self.origins else ""
            self.lost.append(Diverged(path, step, sgd.batch_size, sgd.learning_rate, origin))
        return stayed

    def advance_some(
        self, sgd: SGD, state: Ensemble, steps: int, threads: int | None = None
    ) -> Ensemble:
        """As `advance`, but one path at least has to stay.

        Raises
        ------
        Divergence
            None did.
        """
        stayed = self.advance(sgd, state, steps, threads)
        if not len(stayed.x):
            raise Divergence(
                f"all {len(self.lost)} paths of SGD diverged ({_of(self.lost)}): "
                f"{several(self.lost)}; lower the learning rate or raise the batch size"
            )
        return stayed


def diverged_note(when: str, lost: Sequence[Diverged], kept: str) -> tuple[str, ...]:
    """One sentence on paths that were lost `when` ("While SGD explored"); none if none was."""
    if not lost:
        return ()
    return (
        f"{when} ({_of(lost)}), {several(lost)} diverged. {kept}; a smaller learning rate or a "
        "larger batch may keep all.",
    )


def _of(lost: Sequence[Diverged]) -> str:
    sizes = sorted({d.batch_size for d in lost})
    named = ", ".join(str(b) for b in sizes)
    return f"batch size {named}, learning rate {lost[0].learning_rate:g}"
