"""The roster of batch-size schedules: planned by the clock, or driven by what is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any

import numpy as np

from ..errors import finite, one_of, positive, require, whole
from .schedule import Options, Reading, Rule, Schedule, State, examples_of


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
    >>> from batchwell.training import preview
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

    Noise holds the loss up by h = eta tr Sigma / (4 B) (at a minimum, eta small:
    H C + C H = eta Sigma / B, and h is tr(H C) / 2). A `factor` times larger batch lowers h, and
    lowers the progress made with an example, by the same share 1 - 1/`factor`. So the size grows
    when h exceeds the progress of an example times the examples left. Progress is the slope of the
    loss over the last five windows; when the size has just grown, and the loss falls from the noise
    that goes, it is what an update won before.

    Parameters
    ----------
    total
        Examples of the whole training. Without it the size grows where there is no progress.
    window
        Length over which the loss is averaged, as a share of `total` (or of the examples seen);
        at least 10 updates (without `total`, 50). Whole epochs are best: each of them sees the same examples.
    """
    first, ratio = whole("batch_size", batch_size), positive("factor", factor)
    require(ratio > 1, "factor", factor, "must be above 1")
    share = positive("window", window)
    require(share < 1, "window", window, "must be a share below 1")
    end = None if total is None else whole("total", examples_of("total", total))

    def rule(state: State, reading: Reading, size: int) -> tuple[State, float]:
        if reading.noise is not None and math.isfinite(reading.noise.noise_trace.value):
            state = {**state, "noise_trace": max(reading.noise.noise_trace.value, 0.0)}
        # Without a known end, only many updates can show that there is no progress.
        length = max(share * (end or reading.examples), size * (10.0 if end else 50.0))
        mean, state = _window_mean(state, reading, length)
        if mean is None or reading.learning_rate is None:
            return state, size
        state = _with_progress(state, mean, reading.examples, size)
        if state["progress"] is None or state["noise_trace"] is None:
            return state, size
        held = reading.learning_rate * state["noise_trace"] / (4 * size)
        each = state["progress"] / size
        if each > 0 and (end is None or held <= each * (end - reading.examples)):
            return state, size
        return {**state, "means": []}, size * ratio

    settings = {"batch_size": first, "factor": ratio, "total": end, "window": share}
    start = {**_EMPTY_WINDOW, "means": [], "progress": None, "noise_trace": None}
    needs = {"loss", "noise"}
    return _measured("variance_to_progress", settings, _options(options), needs, start, rule)


_WINDOWS = 5  # that a slope is taken over


def _with_progress(state: State, mean: float, examples: int, size: int) -> State:
    """The state with the loss won by an update: the slope of the last means at one batch size."""
    means = [*state["means"], [examples, mean]][-_WINDOWS:]
    state = {**state, "means": means}
    # After a growth the slope from before holds until there are as many means again.
    if len(means) < (2 if state["progress"] is None else _WINDOWS):
        return state
    return {**state, "progress": -_slope(means)[0] * size}


def annealed(
    batch_size: int,
    *,
    total: int | str,
    tolerance: float = 0.005,
    window: float = 0.05,
    **options: Any,
) -> Schedule:
    """Grown exponentially over the last examples, by as much as that is predicted to win.

    Of the eta |grad F|^2 that an update wins, noise eats all but the net progress P. With u = eta / B,
    slow progress, and directions of curvature lambda that hover, the course of u that ends
    lowest is by Pontryagin's principle u ~ M(tau)^(-1/2), tau the time to go and
    M(tau) = tr[H Sigma exp(-2 H tau)] the noise that will not be forgotten. It leaves its start where M has
    fallen to 2 P B / eta^2: the last batch is q = sqrt((eta |grad F|^2 - P) / P) times the first, whatever
    the spectrum. Of that the mean, tr(H Sigma) / tr Sigma, is known alone. The exponential
    distribution, which has the greatest entropy of those with this mean, makes M ~ (1 + 2 lambda tau)^-2: the
    batch grows as exp(examples / (q m)), m = eta tr Sigma / (4 (eta |grad F|^2 - P)), about a quarter
    of the noise scale, and noise holds up the loss by (1 + ln q) / q of the eta tr Sigma / (4 B) before.

    Parameters
    ----------
    total
        Examples of the whole training.
    tolerance
        Share of the loss that may be given up, by this prediction, for fewer updates: q is
        raised, and the growth begins sooner. With 0 the loss alone counts.
    window
        Share of `total` over which the loss is averaged, at least 10 updates. P is the slope of the
        later half of these means; what is less than its standard error is taken for that.
    """
    first, end = whole("batch_size", batch_size), whole("total", examples_of("total", total))
    share = positive("window", window)
    require(share < 1, "window", window, "must be a share below 1")
    spare = finite("tolerance", tolerance)
    require(0 <= spare < 1, "tolerance", tolerance, "must be a share below 1")

    def rule(state: State, reading: Reading, size: int) -> tuple[State, float]:
        left = end - reading.examples
        if state["begun"]:
            ratio, length = state["plan"]
            return state, first * ratio * math.exp(-max(left, 0) / length)
        mean, state = _window_mean(
            _with_noise(state, reading), reading, max(share * end, 10 * size)
        )
        if mean is not None and reading.learning_rate is not None and (noise := _mean_noise(state)):
            row = [reading.examples, mean, *noise]
            state = {**state, "rows": [*state["rows"], row], "noise": [], "readings": 0}
            plan = _anneal(state["rows"], reading.learning_rate, first, left, spare)
            state = {**state, "plan": plan}
        if state["plan"] is None:
            return state, size
        ratio, length = state["plan"]
        return {**state, "begun": left <= length * math.log(ratio)}, size

    settings = {"batch_size": first, "total": end, "tolerance": spare, "window": share}
    start = {**_EMPTY_WINDOW, "noise": [], "readings": 0, "rows": [], "plan": None, "begun": False}
    return _measured("annealed", settings, _options(options), {"loss", "noise"}, start, rule)


def _with_noise(state: State, reading: Reading) -> State:
    """The state with a reading's |grad F|^2 and tr Sigma added to its window's."""
    if reading.noise is None:
        return state
    found = [reading.noise.gradient_norm_squared.value, reading.noise.noise_trace.value]
    if not all(map(math.isfinite, found)):
        return state
    sums = [a + b for a, b in zip(state["noise"] or [0.0, 0.0], found, strict=True)]
    return {**state, "noise": sums, "readings": state["readings"] + 1}


def _mean_noise(state: State) -> list[float]:
    """That of this window; of the last one if there is no reading in this."""
    if state["noise"]:
        return [value / state["readings"] for value in state["noise"]]
    return list(state["rows"][-1][2:]) if state["rows"] else []


_LEAST_ROWS = 4  # that a slope and its error are taken from


def _anneal(
    rows: Sequence[Sequence[float]], eta: float, size: int, left: int, tolerance: float
) -> list[float] | None:
    """[q, q m] of `annealed` from windows (examples, loss, |grad F|^2, tr Sigma)."""
    from scipy.special import lambertw

    later = rows[-max(_LEAST_ROWS, -(-len(rows) // 2)) :]
    if len(later) < _LEAST_ROWS or left <= 0:
        return None
    slope, error = _slope([row[:2] for row in later])
    net = max(-slope, error) * size
    square, trace = (sum(row[k] for row in later) / len(later) for k in (2, 3))
    eaten = eta * square - net
    if eaten <= net or trace <= 0:
        return None
    memory = eta * trace / (4 * eaten)
    fits = math.exp(float(lambertw(left / memory).real))  # q m ln q is all that is left
    if eaten <= net * fits**2:
        spare = tolerance * abs(rows[-1][1]) * 4 * size / (eta * trace)
        fits = min(fits, _thrifty(math.sqrt(eaten / net), spare))
    return [fits, memory * fits]


def _thrifty(best: float, spare: float) -> float:
    """The q above `best` that costs `spare` of what noise held up: fewer updates for that."""
    from scipy.optimize import brentq

    def excess(log_q: float) -> float:
        q = math.exp(log_q)
        # Noise left, and progress foregone: h (1 + ln q) / q + (h / best^2) (q ln q - q), over h.
        return (1 + log_q) / q + q * (log_q - 1) / best**2

    low = math.log(best)
    aim, high = excess(low) + spare, low + 1.0
    while excess(high) < aim:
        high += 1.0
    return math.exp(brentq(lambda x: excess(x) - aim, low, high)) if spare > 0 else best


def _slope(points: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Slope of a line through (x, y), and its standard error."""
    x, y = np.array(points).T
    x, y = x - x.mean(), y - y.mean()
    slope = float(x @ y / (x @ x))
    rest = y - slope * x
    return slope, math.sqrt(rest @ rest / max(len(x) - 2, 1) / (x @ x))


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "steps": steps,
    "geometric": geometric,
    "linear": linear,
    "cosine": cosine,
    "plateau": plateau,
    "noise_scale": noise_scale,
    "variance_to_progress": variance_to_progress,
    "annealed": annealed,
}


def as_schedule(given: Schedule | str | int) -> Schedule:
    """A schedule out of what a user may write: itself, a plan "0:256 20M:1024", or one size."""
    if isinstance(given, Schedule):
        return given
    if isinstance(given, str):
        return steps(given)
    return constant(whole("schedule", given))
