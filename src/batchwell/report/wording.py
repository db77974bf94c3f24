"""Numbers as people read them: three digits, thousands separators, honest limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..estimate import Estimate

NOTHING = "–"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SMALLEST, _LARGEST = 1e-3, 1e7  # outside of these a power of ten reads better


def number(value: Any, digits: int = 3, keep: bool = False) -> str:
    """`value` with `digits` significant digits; a dash for what is not a number.

    Zeros at the end are dropped unless `keep`: measured numbers keep them, ticks do not.

    Examples
    --------
    >>> number(12345.6), number(0.03456), number(-2.0), number(None)
    ('12,300', '0.0346', '−2', '–')
    >>> number(1.5e-7), number(0.34), number(0.34, keep=True)
    ('1.5 × 10⁻⁷', '0.34', '0.340')
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return NOTHING if value is None else str(value)
    if not math.isfinite(value):
        return NOTHING if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value < 0:
        return "−" + number(-value, digits, keep)
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    if not _SMALLEST <= rounded < _LARGEST:
        return power(rounded, digits)
    decimals = max(0, digits - 1 - math.floor(math.log10(rounded)))
    text = f"{rounded:,.{decimals}f}"
    return text if keep or "." not in text else text.rstrip("0").rstrip(".")


def measured(value: Any, digits: int = 3) -> str:
    """A measured number: all of its significant digits, zeros too.

    >>> measured(2.4)
    '2.40'
    """
    return number(value, digits, keep=True)


def power(value: float, digits: int) -> str:
    """A positive number with a power of ten.

    >>> power(1e6, 1), power(2.5e6, 2)
    ('10⁶', '2.5 × 10⁶')
    """
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    power = "10" + str(int(exponent)).translate(_SUPERSCRIPTS)
    return power if mantissa == "1" else f"{mantissa} × {power}"


def whole(value: Any) -> str:
    """A count, every digit shown.

    >>> whole(1234567)
    '1,234,567'
    """
    return NOTHING if value is None else f"{round(value):,}"


def at_least(value: float, digits: int = 3) -> str:
    """A lower limit, rounded down so that the text claims no more than the data.

    >>> at_least(12_390.0), at_least(0.0)
    ('12,300', '0')
    """
    if not (math.isfinite(value) and value > 0):
        return number(value, digits)
    grain = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    # The tiny push undoes the rounding of value / grain itself, as of 0.3 / 0.001.
    return number(math.floor(value / grain * (1 + 1e-12)) * grain, digits)


def spoken(value: float, form: Callable[[float], str] = number) -> str:
    """A large number as one would say it.

    >>> spoken(42_512_000.0), spoken(312.4)
    ('42.5 million', '312')
    """
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if size <= value < 1000 * size:
            return f"{form(value / size)} {word}"
    return form(value)


def span(low: float, high: float, digits: int = 3) -> str:
    """An interval in brackets.

    >>> span(1.0, 2345.6)
    '[1.00, 2,350]'
    """
    return f"[{measured(low, digits)}, {measured(high, digits)}]"


def censored(estimate: Estimate) -> bool:
    """Whether only a lower limit is known: no path showed the event."""
    return estimate.n > 0 and estimate.n_censored == estimate.n


def estimate(value: Estimate | None) -> str:
    """An estimate with its interval, or its one-sided limit.

    >>> estimate(Estimate(312.4, 9.0, (295.2, 330.1), "steps", "direct", 900))
    '312 [295, 330]'
    >>> estimate(Estimate(0.38912, 2e-4, (0.38872, 0.38952), "loss", "mean", 500))
    '0.3891 [0.3887, 0.3895]'
    >>> estimate(Estimate(26400.0123, 1e-5, (26400.01229, 26400.01231), "steps", "law", 0))
    '26,400.01'
    """
    if value is None:
        return NOTHING
    if censored(value):
        return f"more than {at_least(value.interval[0])}"
    digits = _digits(value)
    shown, ends = measured(value.value, digits), span(*value.interval, digits)
    # Ends that print like the number itself say nothing more.
    return shown if ends == f"[{shown}, {shown}]" else f"{shown} {ends}"


def middle(value: Estimate) -> str:
    """An estimate without its interval, or its one-sided limit.

    >>> middle(Estimate(math.inf, math.inf, (123.4, math.inf), "steps", "direct", 1, 1))
    'more than 123'
    """
    return estimate(value) if censored(value) else number(value.value)


def _digits(value: Estimate) -> int:
    """Three digits, or as many as it takes to tell the ends of a narrow interval apart."""
    half = (value.interval[1] - value.interval[0]) / 2
    if not (math.isfinite(half) and half > 0 and value.value):
        return 3
    return min(7, max(3, 1 + math.ceil(math.log10(abs(value.value) / half))))


def percent(value: float) -> str:
    """A share in per cent: whole, but never 0 % or 100 % where it is not.

    >>> percent(0.456), percent(0.0004), percent(0.9999), percent(1.0)
    ('46%', '<0.1%', '>99.9%', '100%')
    """
    if 0 < value < 0.001:
        return "<0.1%"
    if 0.999 < value < 1:
        return ">99.9%"
    decimals = 1 if 0 < value < 0.0095 or 0.9905 < value < 1 else 0
    return f"{100 * value:.{decimals}f}%"


def share(value: Estimate | None) -> str:
    """A share with its interval, in per cent.

    >>> share(Estimate(0.5, 0.1, (0.31, 0.69), "1", "share", 20))
    '50% [31, 69]'
    """
    if value is None:
        return NOTHING
    low, high = (percent(v).rstrip("%") for v in value.interval)
    return f"{percent(value.value)} [{low}, {high}]"


def listing(items: Iterable[str], last: str = "and") -> str:
    """Items as in a sentence.

    >>> listing(["a", "b", "c"]), listing(["a"])
    ('a, b and c', 'a')
    """
    words: Sequence[str] = list(items)
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def counted(count: int, one: str, many: str = "") -> str:
    """A count with its noun.

    >>> counted(1, "cell"), counted(1200, "cell")
    ('1 cell', '1,200 cells')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def duration(seconds: float | None) -> str:
    """Seconds as a reader would say them.

    >>> duration(3.2), duration(75), duration(7320)
    ('3.2 s', '1 min 15 s', '2 h 2 min')
    """
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{number(seconds, 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def sentence(text: str) -> str:
    """`text` with a capital first letter, the rest untouched."""
    return text[:1].upper() + text[1:]
