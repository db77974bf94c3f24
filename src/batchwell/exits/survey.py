"""Everything that a report on exits shows: answers of all methods, ways out, simulated exits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..domain import Domain
from ..dynamics import SGD, Process, diffusion_approximation
from ..ensemble import FirstExits, first_exits
from ..errors import BatchwellError, InputError, require
from ..estimate import Estimate
from ..loss import StochasticLoss
from ..problems import Problem
from .channels import Channel, channels
from .compare import ExitComparison, compare_exit_times, reliable
from .direct import watched_domain
from .exponents import ExponentRow, exponent_map
from .regime import attractor, substeps_of, temperature_of
from .roster import EXIT_METHODS
from .work import FEWER, WORK, declined, step_work, sums_over_many

Tell = Callable[[str], None]
SGD_, DIFFUSION = "SGD", "diffusion"
# Methods whose answer stands for a cell, most trusted first; the action has no prefactor.
TRUSTED = ("law", "importance", "splitting", "direct", "sharp")
SEEN_PATHS, SEEN_LEAST, SEEN_STEPS, SUBSTEPS = 4096, 128, 4e8, 8


@dataclass(frozen=True)
class Cell:
    """One process at one learning rate and batch size, asked by all methods.

    Attributes
    ----------
    learning_rate, batch_size
        eta and B.
    inverse_temperature
        1 / eps, B/eta with replacement.
    name
        "SGD" or "diffusion".
    comparison
        Answers of all methods, in SGD steps.
    """

    learning_rate: float
    batch_size: int
    inverse_temperature: float
    name: str
    comparison: ExitComparison

    @property
    def answer(self) -> Estimate | None:
        """The answer of the most trusted method; None where only the action answered."""
        return next((a for m, a in self.ranked if m in TRUSTED), None)

    @property
    def ranked(self) -> list[tuple[str, Estimate]]:
        """(method, answer), most trusted first: `TRUSTED` ones that are reliable, then the others."""
        order = {m: k for k, m in enumerate(TRUSTED)}

        def rank(pair: tuple[str, Estimate]) -> tuple[bool, bool, int]:
            method, answer = pair
            return method not in order, not reliable(answer), order.get(method, 0)

        return sorted(self.comparison.answers.items(), key=rank)


@dataclass(frozen=True, eq=False)
class Seen:
    """Exits that were simulated where they are quickest."""

    learning_rate: float
    batch_size: int
    exits: FirstExits


@dataclass(frozen=True, eq=False)
class ExitSurvey:
    """What is known about exits from one domain.

    Attributes
    ----------
    name, summary
        Of the problem.
    loss
        What is descended; None for a diffusion of its own.
    start, domain
        From where and out of where.
    minimum
        (d,) where the noiseless flow from the start ends; None if that has no barrier to overcome.
    cells
        Answers.
    exponents
        V of SGD and of its diffusion; None where there is none (then `why` says so).
    ways
        Process -> ways out, cheapest first.
    seen
        Process -> simulated exits.
    why
        What could not be answered, and why.
    """

    name: str
    summary: str
    loss: StochasticLoss | None = field(repr=False)
    start: np.ndarray
    domain: Domain
    minimum: np.ndarray | None
    cells: tuple[Cell, ...]
    exponents: ExponentRow | None = None
    ways: Mapping[str, tuple[Channel, ...]] = field(default_factory=dict)
    seen: Mapping[str, Seen] = field(default_factory=dict)
    why: tuple[str, ...] = ()

    def of(self, name: str, learning_rate: float) -> list[Cell]:
        """Cells of one process at one learning rate, hottest first."""
        found = [c for c in self.cells if (c.name, c.learning_rate) == (name, learning_rate)]
        return sorted(found, key=lambda c: c.inverse_temperature)

    def refusals(self) -> list[tuple[str, str, str, str]]:
        """(process, methods, why they gave no answer, at which learning rates / batch sizes)."""
        places: dict[tuple[str, str, str], list[str]] = {}
        for c in self.cells:
            for method, why in c.comparison.refused.items():
                at = f"{c.learning_rate:g}/{c.batch_size}"
                places.setdefault((c.name, method, why), []).append(at)
        # Methods that say the same share one line.
        methods: dict[tuple[str, str, str], list[str]] = {}
        for (name, method, why), cells in places.items():
            methods.setdefault((name, why, ", ".join(cells)), []).append(method)
        return [(name, ", ".join(m), why, where) for (name, why, where), m in methods.items()]


def exit_survey(
    problem: Problem,
    learning_rates: Sequence[float],
    batch_sizes: Sequence[int],
    methods: Sequence[str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    tell: Callable[[str], None] = lambda text: None,
) -> ExitSurvey:
    """All that a report on the exits of a gallery problem shows: what `batchwell exit` runs.

    A problem without a loss is asked as the diffusion that it is, at temperature eta/B, with its
    unit of time as step.

    Raises
    ------
    InputError
        The problem has no domain.
    """
    domain = problem.domain
    if domain is None:
        raise InputError("PROBLEM", problem.name, "has no domain to leave: use `study`")
    if problem.stochastic_loss is not None:
        processes: Any = sgd_and_diffusion(problem.loss)
    else:
        make = problem.process
        assert make is not None
        processes = lambda eta, size: {"diffusion": make(eta / size)}  # noqa: E731
    return survey(
        problem.name,
        problem.summary,
        processes,
        problem.stochastic_loss,
        problem.start,
        domain,
        learning_rates,
        batch_sizes,
        methods,
        options,
        seed,
        tell,
    )


def survey(
    name: str,
    summary: str,
    processes: Callable[[float, int], Mapping[str, Process]],
    loss: StochasticLoss | None,
    start: Sequence[float],
    domain: Domain,
    learning_rates: Sequence[float],
    batch_sizes: Sequence[int],
    methods: Sequence[str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    tell: Tell = lambda text: None,
) -> ExitSurvey:
    """Ask `compare_exit_times` at every learning rate and batch size.

    ``processes(learning_rate, batch_size)`` maps names to processes; `tell` hears what is being
    done.
    """
    require(bool(learning_rates), "learning_rates", learning_rates, "must not be empty")
    require(bool(batch_sizes), "batch_sizes", batch_sizes, "must not be empty")
    x = np.asarray(start, dtype=np.float64)
    cells = []
    for eta in learning_rates:
        for size in batch_sizes:
            for key, process in processes(eta, size).items():
                tell(f"{key}, learning rate {eta:g}, batch size {size}")
                answers = _asked(process, x, domain, methods, options or {})
                one_over = 1.0 / _temperature(process)
                cells.append(Cell(eta, size, one_over, key, answers))
    first = processes(learning_rates[0], batch_sizes[0])
    why: list[str] = []
    tell("ways out")
    minimum, ways, exponents = _ways(first, x, domain, why)
    tell("simulated exits")
    found = ExitSurvey(name, summary, loss, x, domain, minimum, tuple(cells), exponents, ways)
    return replace(found, seen=_seen(found, processes, seed, why), why=tuple(why))


def _asked(
    process: Process,
    x: np.ndarray,
    domain: Domain,
    methods: Sequence[str] | None,
    options: Mapping[str, Mapping[str, Any]],
) -> ExitComparison:
    """`compare_exit_times` within minutes: methods not asked for by name may be declined."""
    if methods is not None:
        return compare_exit_times(process, x, domain, methods, options)
    without = declined(process)
    if sums_over_many(process):
        options = {**options, "splitting": {**FEWER, **options.get("splitting", {})}}
    names = [name for name in EXIT_METHODS if name not in without]
    answers = compare_exit_times(process, x, domain, names, options)
    return replace(answers, refused={**answers.refused, **without})


def _temperature(process: Process) -> float:
    if isinstance(process, SGD) or process.sgd is not None:
        return temperature_of(process)
    # A process of its own: the mean eigenvalue of its tensor at the origin sets the scale.
    return float(np.trace(np.asarray(process.tensor(np.zeros(process.dim))))) / process.dim


def _ways(
    processes: Mapping[str, Process], x: np.ndarray, domain: Domain, why: list[str]
) -> tuple[np.ndarray | None, dict[str, tuple[Channel, ...]], ExponentRow | None]:
    ways: dict[str, tuple[Channel, ...]] = {}
    exponents = None
    try:
        minimum = attractor(next(iter(processes.values())), x, domain)
    except InputError as error:
        why.append(str(error))
        return None, ways, None
    for key, process in processes.items():
        try:
            ways[key] = tuple(channels(process, minimum, domain))
        except BatchwellError as error:
            why.append(f"ways out of {key}: {error}")
    sgd = processes.get(SGD_)
    if isinstance(sgd, SGD):
        try:
            exponents = exponent_map(sgd, x, domain)[0]
        except BatchwellError as error:
            why.append(f"exponents: {error}")
    return minimum, ways, exponents


def _seen(
    found: ExitSurvey,
    processes: Callable[[float, int], Mapping[str, Process]],
    seed: int,
    why: list[str],
) -> dict[str, Seen]:
    """Simulated exits of each process in its hottest cell, if that takes a bearable time."""
    out = {}
    for key in dict.fromkeys(c.name for c in found.cells):
        timed = [c for c in found.cells if c.name == key and c.answer is not None]
        quick = [c for c in timed if c.answer and math.isfinite(c.answer.value)]
        if not quick:
            continue
        cell = min(quick, key=lambda c: c.answer.value if c.answer else math.inf)
        assert cell.answer is not None
        process = processes(cell.learning_rate, cell.batch_size)[key]
        substeps = substeps_of(process, found.start, SUBSTEPS, None)
        watched, _ = watched_domain(process, found.domain, found.start, substeps)
        steps = min(SEEN_STEPS, 2 * WORK / step_work(process, watched, substeps))
        paths = min(SEEN_PATHS, int(steps / cell.answer.value))
        if paths < SEEN_LEAST:
            why.append(f"{key}: exits take {cell.answer.value:.3g} steps, too long to be watched")
            continue
        horizon = math.ceil(12 * cell.answer.value) + 10
        exits = first_exits(process, found.start, watched, horizon, paths, seed, "survey", substeps)
        out[key] = Seen(cell.learning_rate, cell.batch_size, exits)
    return out


def sgd_and_diffusion(loss: StochasticLoss) -> Callable[[float, int], dict[str, Process]]:
    """``processes`` of `survey` for a loss."""

    def processes(learning_rate: float, batch_size: int) -> dict[str, Process]:
        sgd = SGD(loss, learning_rate, batch_size)
        return {SGD_: sgd, DIFFUSION: diffusion_approximation(sgd)}

    return processes
