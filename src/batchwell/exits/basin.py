"""Exits from a basin of attraction: whether a path has left is a question to gradient flow.

A quench at every step would cost far more than the steps, so paths are looked at every
`check_every` steps, chosen by a pilot run as a small fraction of the mean exit time. What that
misses, excursions over the border and back between two looks, is measured on the same
paths: the mean exit time found with every second look only, against that with all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..domain import Domain
from ..dynamics import Process
from ..ensemble import DEFAULT_SUBSTEPS, Ensemble, advance, start
from ..errors import Divergence, InputError, require, whole
from ..estimate import Estimate, censored_mean
from ..landscape import UNDECIDED, BasinMap

PILOT_PATHS = 16
RARE_LOOKS = 50  # looks within the horizon, at least
LOOKS = 100  # looks per mean exit time that the check interval aims at
POINTS_TOGETHER = 256  # that gradient flow gets at a time
Progress = Callable[[int, int], None]
Advance = Callable[[Ensemble, int], Ensemble]


@dataclass(frozen=True)
class BasinExits:
    """Exits of M paths from a basin.

    Attributes
    ----------
    steps
        (M,) SGD steps until the exit (middle of the check interval), or watched if censored.
    observed
        (M,) whether the exit was seen.
    labels
        (M,) attractor that gradient flow from the exit point ends in; the own one if censored.
    points
        (M, d) where the path was when found outside, or last.
    check_every
        SGD steps between two looks.
    coarse_steps, coarse_observed
        The same as seen with every second look only.
    horizon
        SGD steps watched.
    """

    steps: np.ndarray
    observed: np.ndarray
    labels: np.ndarray
    points: np.ndarray
    check_every: int
    coarse_steps: np.ndarray
    coarse_observed: np.ndarray
    horizon: int

    @property
    def check_shift(self) -> float | None:
        """Relative change of the mean when only every second look is used; None if no exits.

        What looking at every step would change further is about this much times
        1/(sqrt 2 - 1) = 2.4, the miss growing like the root of the interval.
        """
        if not (self.observed.any() and self.coarse_observed.any()):
            return None
        fine = self.steps.sum() / self.observed.sum()
        return float(self.coarse_steps.sum() / self.coarse_observed.sum() / fine - 1.0)

    def mean(self) -> Estimate:
        """Mean exit time in SGD steps, unfinished paths censored."""
        out = censored_mean(self.steps, self.observed, "steps", "direct simulation")
        if self.check_every == 1:
            return out.with_notes("looked at after every step")
        note = f"looked at every {self.check_every} steps: times are known to half of that"
        shift = self.check_shift
        if shift is None:
            return out.with_notes(note)
        return out.with_notes(
            f"{note}; every second look only would change the mean by {shift:+.1%}"
        )


def basin_exits(
    process: Process,
    x0: ArrayLike,
    domain: Domain,
    horizon: int,
    paths: int = 64,
    seed: int = 0,
    stream: str = "basin-exits",
    check_every: int | None = None,
    looks: int = LOOKS,
    substeps: int = DEFAULT_SUBSTEPS,
    threads: int | None = None,
    precision: str = "float64",
    progress: Progress | None = None,
) -> BasinExits:
    """First exits from a `landscape.basin`, by simulation and quench.

    Parameters
    ----------
    x0
        Start (d,), inside the basin.
    horizon
        SGD steps after which a path that is still inside is censored.
    threads
        For simulation and quench; by default one per core (results do not depend on it).
    precision
        Of the simulation, see `ensemble.Options`; quenches are always in float64.
    check_every
        SGD steps between looks; by default a pilot run chooses it from `looks`.
    looks
        Looks per mean exit time that the pilot run aims at: fewer are cheaper and miss more
        excursions over the border and back (`BasinExits.check_shift` says how many).

    Raises
    ------
    InputError
        A domain that is no basin, or a start outside of it.
    Divergence
        A path left the finite numbers.

    Examples
    --------
    >>> from batchwell import SGD, additive
    >>> from batchwell.landscape import basin, quench
    >>> well = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4)
    >>> left = basin(well, quench(well, [[-1.0]]).attractors, own=0)
    >>> exits = basin_exits(SGD(well, 0.2), [-1.0], left, horizon=2000, paths=32, seed=1)
    >>> bool(exits.observed.all())
    True
    """
    horizon = whole("horizon", horizon)
    if domain.labels is None:
        raise InputError("domain", domain.name, "must be a basin (landscape.basin)")
    origin = np.asarray(x0, dtype=np.float64)
    require(bool(domain.contains(origin)), "x0", origin, f"must lie inside the {domain.name}")

    def begin(count: int, name: str) -> Ensemble:
        return start(process, origin, count, seed, name, substeps)

    def ahead(state: Ensemble, steps: int) -> Ensemble:
        return advance(process, state, steps, substeps, threads=threads, precision=precision)

    if check_every is None:
        check_every = check_interval(
            process, origin, domain, horizon, seed, stream, looks, substeps, threads
        )
    watch = _Watch(begin(paths, stream), domain, whole("check_every", check_every), horizon)
    return watch.run(ahead, progress)


def check_interval(
    process: Process,
    x0: ArrayLike,
    domain: Domain,
    horizon: int,
    seed: int = 0,
    stream: str = "basin-exits",
    looks: int = LOOKS,
    substeps: int = DEFAULT_SUBSTEPS,
    threads: int | None = None,
) -> int:
    """SGD steps between looks that a pilot run of 16 paths suggests.

    Its mean exit time over `looks`, and at most a fiftieth of the horizon. Processes that are to
    be compared need one interval for all: brief excursions count or do not count for each alike.
    """

    def ahead(state: Ensemble, steps: int) -> Ensemble:
        return advance(process, state, steps, substeps, threads=threads)

    pilot = start(process, x0, PILOT_PATHS, seed, stream + "/pilot", substeps)
    return _pilot_interval(ahead, pilot, domain, horizon, looks)


def _pilot_interval(
    ahead: Advance, pilot: Ensemble, domain: Domain, horizon: int, looks: int
) -> int:
    """Look at doubling times until half of the pilot paths are out; a share of their mean."""
    inside, total, look = np.ones(len(pilot.paths), dtype=bool), 0.0, 1
    while pilot.step < horizon and 2 * inside.sum() > len(inside):
        steps = min(look, horizon) - pilot.step
        pilot = ahead(pilot, steps)
        total += steps * inside.sum()
        inside[inside] = domain.contains(pilot.x[inside])
        look *= 2
    mean = total / max(1, int((~inside).sum()))
    return max(1, min(round(mean / looks), horizon // RARE_LOOKS))


@dataclass(frozen=True)
class _Look:
    """A moment at which the paths were looked at: what is known of where each belongs."""

    step: int
    x: np.ndarray  # (rows, d)
    labels: np.ndarray  # (rows,), UNDECIDED where gradient flow has to go on
    flowed: np.ndarray  # (rows, d), from here


class _Watch:
    """The looks at one ensemble; a path is followed until it is out at an even look too.

    Several looks are taken in one go, so that the flow has many points at a time. Points of paths
    that turn out to have left before cost little: only those still watched are followed to the end.
    """

    def __init__(self, state: Ensemble, domain: Domain, every: int, horizon: int) -> None:
        count = len(state.paths)
        self.state, self.domain, self.every, self.horizon = state, domain, every, horizon
        self.rows = np.arange(count)  # which path each row of `state` is
        self.steps, self.observed = np.full(count, float(horizon)), np.zeros(count, dtype=bool)
        self.coarse, self.coarse_observed = self.steps.copy(), self.observed.copy()
        self.labels, self.points = np.full(count, domain.label), state.x.copy()

    def run(self, ahead: Advance, progress: Progress | None) -> BasinExits:
        done, together = 0, 1
        while self.state.step < self.horizon and not self.coarse_observed.all():
            known = int(self.observed.sum())
            for look in self._looks(ahead, together):
                done += 1
                self._book(look, even=done % 2 == 0)
                if self.coarse_observed.all():
                    break
            self._drop()
            # Twice as many while nobody leaves, half as many when somebody does.
            quiet = known == int(self.observed.sum())
            most = max(1, POINTS_TOGETHER // len(self.rows))
            together = min(2 * together, most) if quiet else max(1, together // 2)
            if progress is not None:
                progress(self.state.step, self.horizon)
        return BasinExits(
            self.steps,
            self.observed,
            self.labels,
            self.points,
            self.every,
            self.coarse,
            self.coarse_observed,
            self.horizon,
        )

    def _looks(self, ahead: Advance, count: int) -> list[_Look]:
        """The next looks, at most `count`."""
        states: list[Ensemble] = []
        while len(states) < count and self.state.step < self.horizon:
            try:
                step = min(self.every, self.horizon - self.state.step)
                self.state = ahead(self.state, step)
            except Divergence:
                # Perhaps of a path that has left: those before it are looked at first.
                if not states:
                    raise
                break
            states.append(self.state)
        labels, flowed = self._settle(np.concatenate([s.x for s in states]))
        parts = zip(
            states, np.split(labels, len(states)), np.split(flowed, len(states)), strict=True
        )
        return [_Look(s.step, s.x, known, on) for s, known, on in parts]

    def _settle(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own = self.domain.labels
        return own.settle(x) if isinstance(own, BasinMap) else (np.full(len(x), UNDECIDED), x)

    def _finish(self, flowed: np.ndarray) -> np.ndarray:
        own = self.domain.labels
        assert own is not None
        return own.finish(flowed) if isinstance(own, BasinMap) else own(flowed)

    def _book(self, look: _Look, even: bool) -> None:
        going = np.flatnonzero(~self.coarse_observed[self.rows])
        paths, labels = self.rows[going], look.labels[going]
        open_ = np.flatnonzero(labels == UNDECIDED)
        if open_.size:
            labels[open_] = self._finish(look.flowed[going[open_]])
        out, first = labels != self.domain.label, ~self.observed[paths]
        self.points[paths[first]] = look.x[going[first]]
        fresh = out & first
        gap = (look.step - 1) % self.every + 1  # the last one may be shorter
        self.steps[paths[fresh]] = look.step - (gap - 1) / 2
        self.labels[paths[fresh]] = labels[fresh]
        self.observed[paths[fresh]] = True
        if even:
            self.coarse[paths[out]] = look.step - (2 * self.every - 1) / 2
            self.coarse_observed[paths[out]] = True

    def _drop(self) -> None:
        # Every new number of paths is compiled anew: drop the finished only by halves.
        keep = np.flatnonzero(~self.coarse_observed[self.rows])
        if 0 < 2 * len(keep) <= len(self.rows):
            self.state, self.rows = self.state.take(keep), self.rows[keep]
