"""Batch-size schedules: pure functions of a clock in examples, previewable without training.

A `Schedule` (made by a row of `schedules.SCHEDULES`) is a pair (`init`, `update`) over a small JSON-safe state; the caller keeps the loop::

    state = init(schedule)
    state = update(schedule, state, Reading(examples=4096, loss=0.7))
    state["batch_size"]

Clocks count examples (or tokens), never iterations: an iteration is what the schedule changes.
A measured `Reading` moves the noise-driven ones; planned ones look at the clock alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ..errors import InputError, finite, one_of, require, whole
from .noise import GradientNoise

State = dict[str, Any]

COUPLINGS = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}
_SUFFIXES = {"k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}


@dataclass(frozen=True)
class Options:
    """What all schedules share.

    Attributes
    ----------
    floor, cap
        Least and greatest batch size (no cap: `None`).
    multiple_of
        Every batch size is a whole multiple of this, for example micro-batch times processes.
    hysteresis
        Factor, at least 1, by which the wanted size must differ before the size is changed.
    may_shrink
        Whether the size may fall again. If not, a plan that shrinks is refused and a measured
        schedule never goes back.
    coupling
        How the learning rate follows the size: "none", "linear" (B / reference) or "sqrt".
    reference
        Batch size at which the loop's own learning rate holds (default: the first size).
    warmup
        Examples over which the learning rate rises linearly from zero.
    """

    floor: int = 1
    cap: int | None = None
    multiple_of: int = 1
    hysteresis: float = 1.0
    may_shrink: bool = False
    coupling: str = "none"
    reference: int | None = None
    warmup: int = 0

    def __post_init__(self) -> None:
        whole("floor", self.floor)
        whole("multiple_of", self.multiple_of)
        one_of("coupling", self.coupling, COUPLINGS)
        require(
            finite("hysteresis", self.hysteresis) >= 1,
            "hysteresis",
            self.hysteresis,
            "must be at least 1: the factor by which the wanted size has to differ",
        )
        if self.reference is not None:
            whole("reference", self.reference)
        if self.cap is not None:
            whole("cap", self.cap)
            low = -(-self.floor // self.multiple_of) * self.multiple_of
            require(
                low <= self.cap,
                "cap",
                self.cap,
                f"leaves no multiple of {self.multiple_of} from the floor {self.floor} up",
            )


@dataclass(frozen=True)
class Reading:
    """What a schedule may look at, at a step boundary.

    Attributes
    ----------
    examples
        Clock: examples consumed so far.
    loss
        Mean loss of one example over the update just made, with weight decay's penalty where
        that is descended too.
    noise
        Measurement of the gradient noise, if there is a new one.
    learning_rate
        Learning rate in use; with momentum the effective one, eta / (1 - momentum).
    batch_examples
        Examples of the update just made.
    """

    examples: int
    loss: float | None = None
    noise: GradientNoise | None = None
    learning_rate: float | None = None
    batch_examples: int = 0


Rule = Callable[[State, Reading, int], tuple[State, float]]


@dataclass(frozen=True)
class Schedule:
    """A batch-size schedule; made by the functions in `SCHEDULES`.

    Attributes
    ----------
    name, settings
        Row of `SCHEDULES` and its arguments, JSON-safe: what a saved state is compared with.
    first
        Size wanted at the start.
    peak
        Greatest size of the plan; `None` where measurements decide.
    listed
        Sizes that the user wrote down: those that must hold exactly.
    needs
        What the rule looks at besides the clock: "loss", "noise".
    rule_state, rule
        The rule's first state, and (state, reading, batch size) -> (state, wanted size).
    """

    name: str
    settings: Mapping[str, Any]
    options: Options
    first: float
    peak: float | None
    listed: tuple[int, ...]
    needs: frozenset[str]
    rule_state: Mapping[str, Any]
    rule: Rule

    def limited(self, multiple_of: int = 1, cap: int | None = None) -> Schedule:
        """The same schedule under further limits: of the loader, the processes, the data."""
        both = math.lcm(self.options.multiple_of, multiple_of)
        caps = [value for value in (self.options.cap, cap) if value is not None]
        options = replace(self.options, multiple_of=both, cap=min(caps) if caps else None)
        return replace(self, options=options)

    def describe(self) -> dict[str, Any]:
        """JSON-safe description: name, arguments, shared options."""
        shared = {item.name: getattr(self.options, item.name) for item in fields(self.options)}
        return {"name": self.name, **self.settings, **shared}


def init(schedule: Schedule) -> State:
    """State at the start: ``{"batch_size": ..., "rule": ...}``, JSON-safe."""
    size = _fit(schedule.options, schedule.first)
    return {"batch_size": size, "rule": dict(schedule.rule_state)}


def update(schedule: Schedule, state: State, reading: Reading) -> State:
    """State after a reading; the one given is left as it is.

    Examples
    --------
    >>> from batchwell.training import SCHEDULES
    >>> plan = SCHEDULES["steps"]("0:32 1k:128")
    >>> update(plan, init(plan), Reading(examples=1000))["batch_size"]
    128
    """
    size = int(state["batch_size"])
    rule_state, wanted = schedule.rule(dict(state["rule"]), reading, size)
    return {"batch_size": _settle(schedule.options, wanted, size), "rule": rule_state}


def learning_rate_factor(schedule: Schedule, batch_size: int, examples: int) -> float:
    """Factor on the loop's own learning rate for an update of `batch_size` from `examples` on.

    The coupling (Goyal et al., arXiv 1706.02677, for "linear"; Krizhevsky, arXiv 1404.5997, for
    "sqrt") times the warm-up, which reaches 1 with the update that ends at `warmup` examples.
    """
    options = schedule.options
    reference = options.reference or init(schedule)["batch_size"]
    factor = (batch_size / reference) ** COUPLINGS[options.coupling]
    if examples + batch_size < options.warmup:
        factor *= (examples + batch_size) / options.warmup
    return float(factor)


def _fit(options: Options, wanted: float) -> int:
    """The nearest allowed size not above `wanted`, or the least allowed one."""
    unit = options.multiple_of
    cap = math.inf if options.cap is None else options.cap
    # A wanted size of 127.9999 out of rounding errors is 128.
    size = math.floor(min(wanted, cap) * (1 + 1e-12) / unit) * unit
    return int(max(size, -(-options.floor // unit) * unit))


def _settle(options: Options, wanted: float, size: int) -> int:
    if not math.isfinite(wanted):
        wanted = math.inf if wanted > 0 and options.cap is not None else size
    band = options.hysteresis
    if size / band < wanted < size * band:
        return size
    fitted = _fit(options, wanted)
    return fitted if options.may_shrink else max(fitted, size)


def examples_of(key: str, text: float | int | str) -> int:
    """A count of examples: a whole number, or text with a suffix (k, M, G).

    Examples
    --------
    >>> examples_of("warmup", "1.5k"), examples_of("warmup", 20_000_000)
    (1500, 20000000)
    """
    allowed = "must be a count such as 5000, '5k', '1.5M' or '2G'"
    number = str(text).strip().lower().replace("_", "")
    scale = _SUFFIXES.get(number[-1:], 1)
    try:
        value = float(number[:-1] if scale > 1 else number) * scale
    except ValueError:
        raise InputError(key, text, allowed) from None
    require(math.isfinite(value) and value >= 0, key, text, allowed)
    require(abs(value - round(value)) < 1e-6 * max(1.0, value), key, text, allowed)
    return round(value)


@dataclass(frozen=True)
class Preview:
    """What a schedule would do: a row at the start, at each change, and at the end.

    Attributes
    ----------
    rows
        (examples, batch size, learning rate, updates so far) each.
    notes
        What the preview does not know.
    """

    rows: tuple[tuple[int, int, float, int], ...]
    notes: tuple[str, ...] = ()

    @property
    def updates(self) -> int:
        """Updates in all."""
        return self.rows[-1][3]

    def __str__(self) -> str:
        head = ("examples", "batch_size", "learning_rate", "updates")
        cells = [head, *((str(e), str(b), f"{r:g}", str(u)) for e, b, r, u in self.rows)]
        widths = [max(len(row[k]) for row in cells) for k in range(4)]
        lines = [
            "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True))
            for row in cells
        ]
        return "\n".join([*lines, *self.notes])


def preview(
    schedule: Schedule,
    examples: int | str,
    learning_rate: float = 1.0,
    readings: Callable[[int, int], Reading] | None = None,
) -> Preview:
    """What `schedule` does over `examples`, without training.

    Parameters
    ----------
    readings
        For schedules that need measurements: (examples, batch size) -> `Reading`, what is
        assumed to be measured. Without it they stay at their first size, and the preview says so.
    """
    total = whole("examples", examples_of("examples", examples))
    state, clock, updates = init(schedule), 0, 0
    rows: list[tuple[int, int, float, int]] = []
    warm = schedule.options.warmup == 0
    while clock < total:
        size = int(state["batch_size"])
        rate = learning_rate * learning_rate_factor(schedule, size, clock)
        warmed = not warm and clock + size >= schedule.options.warmup
        if not rows or size != rows[-1][1] or warmed:
            rows.append((clock, size, rate, updates))
            warm = warm or warmed
        taken = min(size, total - clock)
        clock, updates = clock + taken, updates + 1
        reading = Reading(clock) if readings is None else readings(clock, size)
        state = update(schedule, state, replace(reading, examples=clock, batch_examples=taken))
    rows.append((total, rows[-1][1], rate, updates))
    return Preview(tuple(rows), _preview_notes(schedule, readings is None))


def _preview_notes(schedule: Schedule, blind: bool) -> tuple[str, ...]:
    if not (schedule.needs and blind):
        return ()
    return (f"{schedule.name} follows the measured {' and '.join(sorted(schedule.needs))}",)
