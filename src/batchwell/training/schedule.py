"""Batch-size schedules: pure functions of a clock in examples, previewable without training.

A `Schedule` is a pair (`init`, `update`) over a small JSON-safe state; the caller keeps the loop::

    state = init(schedule)
    state = update(schedule, state, Reading(examples=4096, loss=0.7))
    state["batch_size"]

Clocks count examples (or tokens), never iterations: an iteration is what the schedule changes.
A measured `Reading` moves the noise-driven ones; planned ones look at the clock alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

from ..errors import InputError, finite, one_of, positive, require, whole
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
        Mean loss of one example over the update just made.
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
    >>> plan = steps("0:32 1k:128")
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


def _options(given: Mapping[str, Any], **defaults: Any) -> Options:
    known = [item.name for item in fields(Options)]
    for key in given:
        one_of("option", key, known)
    merged = {**defaults, **given}
    if "warmup" in merged:
        merged["warmup"] = examples_of("warmup", merged["warmup"])
    return Options(**merged)


def _planned(
    name: str,
    settings: Mapping[str, Any],
    options: Options,
    size_at: Callable[[int], float],
    ends: Sequence[float],
    listed: Sequence[int],
) -> Schedule:
    """A schedule that looks at the clock alone; `ends` are sizes in the order they come."""
    for before, after in pairwise(ends):
        require(
            options.may_shrink or after >= before,
            "schedule",
            f"{name}: {before:g} -> {after:g}",
            "shrinks; say may_shrink=True if that is meant",
        )

    def rule(state: State, reading: Reading, size: int) -> tuple[State, float]:
        return state, size_at(reading.examples)

    known = frozenset[str]()
    first, peak = size_at(0), max(ends)
    return Schedule(name, dict(settings), options, first, peak, tuple(listed), known, {}, rule)


def _measured(
    name: str,
    settings: Mapping[str, Any],
    options: Options,
    needs: set[str],
    start: State,
    rule: Rule,
) -> Schedule:
    first = int(settings["batch_size"])
    known = frozenset(needs)
    return Schedule(name, dict(settings), options, first, None, (first,), known, start, rule)


def constant(batch_size: int, **options: Any) -> Schedule:
    """One size throughout."""
    size = whole("batch_size", batch_size)
    chosen = _options(options)
    return _planned("constant", {"batch_size": size}, chosen, lambda _: size, [size], [size])


def parse_steps(plan: str, tokens_per_example: int = 1) -> list[tuple[int, int]]:
    """(position in examples, batch size) of each step of a plan such as "0:256 20M:1024".

    Raises
    ------
    InputError
        The plan does not begin at 0, its positions do not rise, or an entry is no
        ``position:size``.
    """
    out: list[tuple[int, int]] = []
    for entry in plan.replace(",", " ").split():
        place, colon, size = entry.partition(":")
        require(bool(colon), "schedule", plan, f"entry {entry!r} must look like 20M:1024")
        position = -(-examples_of("schedule", place) // tokens_per_example)
        require(
            not out or position > out[-1][0], "schedule", plan, f"position of {entry!r} must rise"
        )
        out.append((position, whole("schedule", examples_of("schedule", size))))
    require(bool(out) and out[0][0] == 0, "schedule", plan, "must begin at 0, as in '0:256'")
    return out


def steps(
    plan: str, *, unit: str = "examples", tokens_per_example: int = 1, **options: Any
) -> Schedule:
    """Sizes by a plan "position:size ...", positions in examples or tokens, sizes in examples.

    Parameters
    ----------
    plan
        For example ``"0:256 20M:1024"``.
    unit
        "examples" or "tokens"; with "tokens" give `tokens_per_example`, such as the length of
        the sequences.

    Examples
    --------
    >>> print(preview(steps("0:256 20M:1024"), "40M"))
    examples  batch_size  learning_rate  updates
           0         256              1        0
    20000000        1024              1    78125
    40000000        1024              1    97657
    """
    one_of("unit", unit, ("examples", "tokens"))
    whole("tokens_per_example", tokens_per_example)
    require(
        unit == "tokens" or tokens_per_example == 1,
        "unit",
        unit,
        "tokens_per_example needs unit='tokens'",
    )
    table = parse_steps(plan, tokens_per_example)

    def size_at(examples: int) -> float:
        return [size for position, size in table if position <= examples][-1]

    settings = {"plan": plan, "unit": unit, "tokens_per_example": tokens_per_example}
    sizes = [size for _, size in table]
    return _planned("steps", settings, _options(options), size_at, sizes, sizes)


def geometric(
    batch_size: int, *, factor: float = 2.0, every: int | str, **options: Any
) -> Schedule:
    """Multiplied by `factor` after each stretch of `every` examples."""
    first, ratio = whole("batch_size", batch_size), positive("factor", factor)
    stretch = whole("every", examples_of("every", every))
    chosen = _options(options)
    top = math.inf if ratio > 1 else first
    ends = [first, top if chosen.cap is None else min(top, chosen.cap)]
    require(
        ratio >= 1 or chosen.may_shrink,
        "factor",
        factor,
        "below 1 shrinks; say may_shrink=True if that is meant",
    )

    def size_at(examples: int) -> float:
        # A cap is reached long before the power leaves the floats.
        return first * ratio ** min(examples // stretch, 1000.0 / max(abs(math.log2(ratio)), 1.0))

    settings = {"batch_size": first, "factor": ratio, "every": stretch}
    return _planned("geometric", settings, chosen, size_at, ends, [first])


def _ramp(
    name: str,
    shape: Callable[[float], float],
    batch_size: int,
    to: int,
    over: int | str,
    options: Mapping[str, Any],
) -> Schedule:
    first, last = whole("batch_size", batch_size), whole("to", to)
    length = whole("over", examples_of("over", over))

    def size_at(examples: int) -> float:
        return first + (last - first) * shape(min(examples / length, 1.0))

    settings = {"batch_size": first, "to": last, "over": length}
    return _planned(name, settings, _options(options), size_at, [first, last], [first, last])


def linear(batch_size: int, *, to: int, over: int | str, **options: Any) -> Schedule:
    """From `batch_size` to `to` along a line over `over` examples, then `to`."""
    return _ramp("linear", lambda s: s, batch_size, to, over, options)


def cosine(batch_size: int, *, to: int, over: int | str, **options: Any) -> Schedule:
    """From `batch_size` to `to` along half a cosine over `over` examples, then `to`."""
    return _ramp("cosine", lambda s: (1 - math.cos(math.pi * s)) / 2, batch_size, to, over, options)


def plateau(
    batch_size: int,
    *,
    factor: float = 5.0,
    patience: int | str,
    min_delta: float = 1e-3,
    **options: Any,
) -> Schedule:
    """Multiplied by `factor` when the loss has not fallen for `patience` examples.

    The loss is averaged over a fifth of `patience` at a time, and has fallen when it is below the
    best such mean by more than the share `min_delta`.
    """
    first, ratio = whole("batch_size", batch_size), positive("factor", factor)
    require(ratio > 1, "factor", factor, "must be above 1")
    wait = whole("patience", examples_of("patience", patience), 5)
    share = finite("min_delta", min_delta)

    def rule(state: State, reading: Reading, size: int) -> tuple[State, float]:
        mean, state = _window_mean(state, reading, wait / 5)
        if mean is None:
            return state, size
        if state["best"] is None or mean < state["best"] - share * abs(state["best"]):
            return {**state, "best": mean, "since": reading.examples}, size
        if reading.examples - state["since"] < wait:
            return state, size
        return {**state, "since": reading.examples}, size * ratio

    settings = {"batch_size": first, "factor": ratio, "patience": wait, "min_delta": share}
    start = {**_EMPTY_WINDOW, "best": None, "since": 0}
    return _measured("plateau", settings, _options(options), {"loss"}, start, rule)


_EMPTY_WINDOW: dict[str, Any] = {"sum": 0.0, "examples": 0, "opened": 0}


def _window_mean(state: State, reading: Reading, window: float) -> tuple[float | None, State]:
    """Mean loss of the window that this reading closes, or None while it is open."""
    if reading.loss is None:
        return None, state
    weight = max(reading.batch_examples, 1)
    total, count = state["sum"] + reading.loss * weight, state["examples"] + weight
    if reading.examples - state["opened"] < window:
        return None, {**state, "sum": total, "examples": count}
    return total / count, {**state, **_EMPTY_WINDOW, "opened": reading.examples}


def noise_scale(batch_size: int, *, ratio: float = 1.0, **options: Any) -> Schedule:
    """The measured gradient noise scale tr Sigma / abs(grad F)^2 times `ratio`.

    Where the scale is not determined, because the gradient cannot be told from zero, the lower
    end of its interval is wanted: all that is known is that the scale is no less. `hysteresis` is
    1.5 unless given. McCandlish et al., arXiv 1812.06162, eq. (2.9).
    """
    first, share = whole("batch_size", batch_size), positive("ratio", ratio)

    def rule(state: State, reading: Reading, size: int) -> tuple[State, float]:
        if reading.noise is None:
            return state, size
        scale = reading.noise.gradient_noise_scale
        wanted = scale.value if scale.determined else scale.interval[0]
        return state, share * wanted if math.isfinite(wanted) else size

    settings = {"batch_size": first, "ratio": share}
    return _measured(
        "noise_scale", settings, _options(options, hysteresis=1.5), {"noise"}, {}, rule
    )


def variance_to_progress(
    batch_size: int,
    *,
    factor: float = 2.0,
    total: int | str | None = None,
    window: float = 0.05,
    **options: Any,
) -> Schedule:
    """Multiplied by `factor` once the noise holds up more loss than progress will still win.

    Noise of variance Sigma / B holds the loss up by eta tr Sigma / (4 B) (at a minimum, eta
    small: H C + C H = eta Sigma / B gives tr(H C) / 2); a `factor` times larger batch lowers that,
    and lowers the progress for each example, by the same share 1 - 1/`factor`. So the size grows
    when eta tr Sigma / (4 B) exceeds the loss that will be won, at the rate seen in the last two
    windows, over the examples to come.

    Parameters
    ----------
    total
        Examples of the whole training. Without it the examples to come are taken to be as many
        as those seen.
    window
        Length over which the loss is averaged, as a share of `total` (or of the examples seen).
    """
    first, ratio = whole("batch_size", batch_size), positive("factor", factor)
    require(ratio > 1, "factor", factor, "must be above 1")
    share = positive("window", window)
    require(share < 1, "window", window, "must be a share below 1")
    end = None if total is None else whole("total", examples_of("total", total))

    def rule(state: State, reading: Reading, size: int) -> tuple[State, float]:
        if reading.noise is not None and math.isfinite(reading.noise.noise_trace.value):
            state = {**state, "noise_trace": max(reading.noise.noise_trace.value, 0.0)}
        length = max(share * (reading.examples if end is None else end), 10.0 * size)
        mean, state = _window_mean(state, reading, length)
        if mean is None or reading.learning_rate is None:
            return state, size
        before, at = state["mean"], state["at"]
        state = {**state, "mean": mean, "at": reading.examples}
        if before is None or state["noise_trace"] is None:
            return state, size
        to_come = reading.examples if end is None else max(end - reading.examples, 0)
        progress = (before - mean) / (reading.examples - at) * to_come
        held = reading.learning_rate * state["noise_trace"] / (4 * size)
        if held <= progress:
            return state, size
        # Progress is to be seen at the new size: the old mean says nothing about it.
        return {**state, "mean": None, "at": None}, size * ratio

    settings = {"batch_size": first, "factor": ratio, "total": end, "window": share}
    start = {**_EMPTY_WINDOW, "mean": None, "at": None, "noise_trace": None}
    needs = {"loss", "noise"}
    return _measured("variance_to_progress", settings, _options(options), needs, start, rule)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "steps": steps,
    "geometric": geometric,
    "linear": linear,
    "cosine": cosine,
    "plateau": plateau,
    "noise_scale": noise_scale,
    "variance_to_progress": variance_to_progress,
}


def as_schedule(given: Schedule | str | int) -> Schedule:
    """A schedule out of what a user may write: itself, a plan "0:256 20M:1024", or one size."""
    if isinstance(given, Schedule):
        return given
    if isinstance(given, str):
        return steps(given)
    return constant(whole("schedule", given))


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
