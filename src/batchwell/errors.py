"""Errors that a user meets: one line naming the key, the value and what is allowed.

The command line turns them into exit codes: `InputError` into 2, `RunError` into 1.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any


class BatchwellError(Exception):
    """Base of every error raised on purpose; its text is one line fit for a user."""

    exit_code = 1


class InputError(BatchwellError, ValueError):
    """Refused input: ``key = value: allowed``.

    Parameters
    ----------
    key
        Name of the argument or setting as the user wrote it.
    value
        What was given.
    allowed
        What would have been accepted, in plain words.

    Examples
    --------
    >>> raise InputError("learning_rate", -1, "must be a positive finite number")
    Traceback (most recent call last):
    ...
    batchwell.errors.InputError: learning_rate = -1: must be a positive finite number
    """

    exit_code = 2

    def __init__(self, key: str, value: Any, allowed: str) -> None:
        # What is quoted from other libraries may span lines; a refusal never does.
        allowed = " ".join(allowed.split())
        self.key, self.value, self.allowed = key, value, allowed
        super().__init__(f"{key} = {_short(value)}: {allowed}")


class RunError(BatchwellError, RuntimeError):
    """Something went wrong while running; what was finished before it is kept."""


class Divergence(RunError):
    """A path or a descent left the finite numbers; says where."""


def _short(value: Any, limit: int = 80) -> str:
    text = " ".join(str(value).split()) if not isinstance(value, str) else repr(value)
    # Long paths say the most at their end, where a line or a column is named too.
    tail = 2 * limit // 3
    return text if len(text) <= limit else f"{text[: limit - tail - 3]}...{text[-tail:]}"


def require(condition: bool, key: str, value: Any, allowed: str) -> None:
    """Raise `InputError` unless `condition` holds."""
    if not condition:
        raise InputError(key, value, allowed)


def positive(key: str, value: Any) -> float:
    """`value` as a positive finite float, or `InputError`.

    >>> positive("learning_rate", 0.5)
    0.5
    """
    number = finite(key, value, "must be a positive finite number")
    require(number > 0, key, value, "must be a positive finite number")
    return number


def finite(key: str, value: Any, allowed: str = "must be a finite number") -> float:
    """`value` as a finite float, or `InputError`; text and truth values are no numbers."""
    if isinstance(value, bool | str | bytes):
        raise InputError(key, value, allowed)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(key, value, allowed) from None
    require(abs(number) < float("inf"), key, value, allowed)
    return number


def whole(key: str, value: Any, at_least: int = 1) -> int:
    """`value` as an integer not below `at_least`, or `InputError`.

    >>> whole("batch_size", 8)
    8
    """
    allowed = f"must be a whole number, at least {at_least}"
    if isinstance(value, bool):
        raise InputError(key, value, allowed)
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(key, value, allowed) from None
    require(number >= at_least, key, value, allowed)
    return number


def known_options(options: Iterable[str], function: Callable[..., Any]) -> None:
    """Refuse options that are no optional arguments of `function`, which they are handed on to.

    A function that hands its own options on leaves the check to the last one.

    >>> known_options(["revers"], lambda x, *, reverse=False: x)
    Traceback (most recent call last):
    ...
    batchwell.errors.InputError: option = 'revers': must be one of reverse; did you mean reverse?
    """
    from inspect import Parameter, signature

    taken = signature(function).parameters.values()
    if any(p.kind is Parameter.VAR_KEYWORD for p in taken):
        return
    names = [p.name for p in taken if p.default is not Parameter.empty]
    for option in options:
        one_of("option", option, names)


def one_of(key: str, value: Any, choices: Iterable[str]) -> str:
    """`value` if it is one of `choices`, or `InputError` listing them, and the nearest if any is near.

    >>> one_of("sampling", "with_replacment", ["with_replacement", "reshuffle"])
    Traceback (most recent call last):
    ...
    batchwell.errors.InputError: sampling = 'with_replacment': must be one of with_replacement, \
reshuffle; did you mean with_replacement?
    """
    names = list(choices)
    if value in names:
        return str(value)
    from difflib import get_close_matches  # a millisecond that only a refusal pays

    allowed = "must be one of " + ", ".join(names)
    near = get_close_matches(str(value), names, 1)
    raise InputError(key, value, f"{allowed}; did you mean {near[0]}?" if near else allowed)
