"""What a study will do: its subject, its checked settings, and the cells they span."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np

from .. import __version__
from ..dynamics import SGD, Process, diffusion_approximation
from ..errors import InputError, require
from ..landscape import Landscape, Minimum
from ..loss import StochasticLoss, check_at
from ..metastable import stages
from ..settings import StudySettings, make_settings, read_settings
from ..sources import Subject, subject_of
from ..streams import generator

VERSIONS = ("jax", "numba", "numpy", "scipy", "scikit-learn")
ROLES = ("flat", "middle", "sharp")
DEFAULT_GROWTH = (2, 8, 32)


def versions() -> dict[str, str]:
    """Of Batchwell, Python, and what computes."""
    own = {"batchwell": __version__, "python": python_version()}
    return own | {name: version(name) for name in VERSIONS}


def resolve(
    what: str | Path | StochasticLoss, code: str | Path | None, changes: Mapping[str, Any]
) -> tuple[Subject, StudySettings]:
    """What is studied and with which settings: a gallery name, a settings file, or a loss."""
    if isinstance(what, StochasticLoss):
        require(code is None, "code", code, "goes with a settings file, not with a loss")
        return Subject(what.name, what.name, what), make_settings(changes)
    toml = Path(what).suffix == ".toml"
    settings = read_settings(what) if toml else make_settings({"problem": str(what)})
    merged = make_settings({**settings.model_dump(exclude_unset=True), **changes})
    return subject_of(merged, Path(code) if code is not None else None)


@dataclass(frozen=True)
class Plan:
    """A subject with checked settings, and what follows from them."""

    subject: Subject
    settings: StudySettings

    def check(self) -> None:
        """Refuse what cannot work: every chain is built, the loss is tried at two starts.

        Raises
        ------
        InputError
            Naming the key, the value and what is allowed.
        """
        growing = [b for sizes in self.growing for b in sizes]
        for rate in self.settings.learning_rates:
            for size in [*self.settings.batch_sizes, *growing]:
                self.sgd(rate, size)
        for sizes in self.schedules:
            stages(sizes, self.settings.examples)
        for point in self.starts()[:2]:
            check_at(self.subject.loss, point)

    def sgd(self, learning_rate: float, batch_size: int) -> SGD:
        """SGD with the study's sampling mode and momentum."""
        s = self.settings
        return SGD(self.subject.loss, learning_rate, batch_size, s.sampling, s.momentum)

    def process(self, name: str, learning_rate: float, batch_size: int) -> Process:
        """SGD ("sgd") or its diffusion of order 1 or 2 ("diffusion-1", "diffusion-2")."""
        sgd = self.sgd(learning_rate, batch_size)
        return sgd if name == "sgd" else diffusion_approximation(sgd, int(name[-1]))

    @property
    def processes(self) -> list[str]:
        """SGD and the diffusions that exist for this sampling mode and momentum."""
        s = self.settings
        orders = [] if s.sampling == "reshuffle" else sorted(s.diffusion_orders)
        return ["sgd", *(f"diffusion-{k}" for k in orders if k == 1 or s.momentum == 0)]

    def starts(self) -> np.ndarray:
        """Random starts of the search for minima: (starts, d)."""
        rng = generator(self.settings.seed, "search-starts")
        return self.start_scale * rng.standard_normal((self.settings.starts, self.subject.loss.dim))

    @property
    def start_scale(self) -> float:
        """Standard deviation of the random starts."""
        return self.settings.start_scale or self.subject.start_scale

    @property
    def growing(self) -> list[list[int]]:
        """Schedules whose batch grows; by default one up to the largest batch size."""
        if self.settings.growing is not None:
            return self.settings.growing
        largest = max(self.settings.batch_sizes)
        default = [b for b in DEFAULT_GROWTH if b <= largest]
        return [default] if len(default) > 1 else []

    @property
    def schedules(self) -> list[list[int]]:
        """All schedules of the final-basin stage, as batch sizes of equal shares."""
        return [[b] for b in self.settings.batch_sizes] + self.growing

    def record(self, command: str) -> dict[str, Any]:
        """Resolved settings, command and versions: what goes into ``run.toml``."""
        table = self.settings.model_dump(exclude_none=True)
        table |= {"start_scale": self.start_scale, "growing": self.growing}
        return {"command": command, **table, "versions": versions()}

    def chosen(self, landscape: Landscape) -> dict[str, Minimum]:
        """Role -> minimum whose escapes are studied, from flat to sharp.

        "flat", "middle" and "sharp" are the lowest, median and highest largest Hessian
        eigenvalue among minima that at least two starts found (all, if fewer than three are):
        minima that only one start found may be far off the beaten track.
        """
        often = [m for m in landscape.minima if m.starts > 1]
        pool = often if len(often) >= len(ROLES) else list(landscape.minima)
        place = {"flat": 0, "middle": len(pool) // 2, "sharp": len(pool) - 1}
        out: dict[str, Minimum] = {}
        # "middle" last: of two minima one is flat and the other sharp.
        for name in sorted(self.settings.minima, key=lambda n: n == "middle"):
            minimum = pool[place[name]] if name in place else self._labelled(landscape, name)
            if all(minimum is not other for other in out.values()):
                out[name] = minimum
        return dict(sorted(out.items(), key=lambda item: item[1].lambda_max))

    def _labelled(self, landscape: Landscape, label: str) -> Minimum:
        try:
            return landscape[label]
        except KeyError:
            labels = ", ".join(m.label for m in landscape.minima)
            raise InputError(
                "minima", label, f"must be flat, middle, sharp or one of the labels {labels}"
            ) from None

    def escape_cells(self, landscape: Landscape) -> list[EscapeCell]:
        """Every (minimum, learning rate, batch size, process) whose exits are timed."""
        return [
            EscapeCell(minimum, process, rate, size)
            for minimum in self.chosen(landscape).values()
            for rate in self.settings.learning_rates
            for size in self.settings.batch_sizes
            for process in self.processes
        ]

    def final_cells(self, landscape: Landscape) -> list[FinalCell]:
        """Every (start, learning rate, schedule) whose final basins are counted."""
        chosen = list(self.chosen(landscape).values())
        return [
            FinalCell(minimum, rate, tuple(sizes))
            for minimum in ([chosen[0], chosen[-1]] if len(chosen) > 1 else chosen)
            for rate in self.settings.learning_rates
            for sizes in self.schedules
        ]

    def verdict_cells(self, landscape: Landscape) -> list[VerdictCell]:
        """Where the diffusion is judged: chosen minima, at the middle and the largest batch."""
        sizes = sorted(self.settings.batch_sizes)
        judged = sorted({sizes[len(sizes) // 2], sizes[-1]})
        return [
            VerdictCell(minimum, role, rate, size)
            for role, minimum in self.chosen(landscape).items()
            for rate in self.settings.learning_rates
            for size in judged
        ]


@dataclass(frozen=True)
class VerdictCell:
    """One judgement on the diffusion."""

    minimum: Minimum = field(repr=False)
    role: str
    learning_rate: float
    batch_size: int

    @property
    def name(self) -> str:
        """Name of its chunk."""
        return f"verdict-{self.minimum.label}-eta{self.learning_rate:g}-B{self.batch_size}"


@dataclass(frozen=True)
class EscapeCell:
    """One mean exit time to measure."""

    minimum: Minimum = field(repr=False)
    process: str
    learning_rate: float
    batch_size: int

    @property
    def name(self) -> str:
        """Name of its chunk and of its random stream."""
        rate = f"eta{self.learning_rate:g}"
        return f"escape-{self.minimum.label}-{self.process}-{rate}-B{self.batch_size}"


@dataclass(frozen=True)
class FinalCell:
    """One distribution over final basins to measure."""

    minimum: Minimum = field(repr=False)
    learning_rate: float
    batch_sizes: Sequence[int]

    @property
    def name(self) -> str:
        """Name of its chunk and of its random stream."""
        sizes = "-".join(str(b) for b in self.batch_sizes)
        return f"final-{self.minimum.label}-eta{self.learning_rate:g}-B{sizes}"

    @property
    def schedule(self) -> str:
        """The schedule in words."""
        sizes = [str(b) for b in self.batch_sizes]
        return f"B = {sizes[0]}" if len(sizes) == 1 else " → ".join(sizes)
