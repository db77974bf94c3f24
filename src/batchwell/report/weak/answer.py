"""A weak study in plain words: the main point first."""

from __future__ import annotations

import math

from ...estimate import Estimate
from ...weak import OBSERVABLES, WeakError, WeakStudy
from ..wording import counted, listing, number, percent


def answer(study: WeakStudy) -> str:
    """Paragraphs: errors at the smallest learning rate, orders, laws, verdicts."""
    told = [_errors(study), _orders(study), _laws(study), _trust(study)]
    return "\n\n".join(text for text in told if text)


def rate(value: float) -> str:
    """A learning rate as written in a sentence."""
    return f"η = {value:g}"


def resolved(error: Estimate) -> bool:
    """Whether an error is known to differ from zero."""
    low, high = error.interval
    return bool(low > 0 or high < 0)


def closer(study: WeakStudy) -> dict[float, str]:
    """For each learning rate, which order is closer to SGD: "1", "2" or "undecided"."""
    if not {1, 2} <= set(study.errors):
        return {}
    out = {}
    first, second = study.errors[1], study.errors[2]
    for eta, a, b in zip(first.learning_rates, first.errors, second.errors, strict=True):
        gap, room = abs(a.value) - abs(b.value), a.stderr + b.stderr
        out[eta] = "undecided" if abs(gap) <= room else ("2" if gap > 0 else "1")
    return out


def _errors(study: WeakStudy) -> str:
    smallest = next(iter(study.errors.values())).learning_rates[-1]
    formula = OBSERVABLES[study.observable].formula
    parts = [f"{_off(w.errors[-1])} at order {o}" for o, w in study.errors.items()]
    text = (
        f"At {rate(smallest)} the diffusion misses SGD's mean of {formula} at time "
        f"T = {study.horizon:g} by {listing(parts)}."
    )
    winners = closer(study)
    if not winners:
        return text
    return f"{text} {_winner(winners)}"


def _off(error: Estimate) -> str:
    if resolved(error):
        return number(abs(error.value))
    return f"less than {number(max(abs(v) for v in error.interval))} (not resolved)"


def _winner(winners: dict[float, str]) -> str:
    by = {k: [eta for eta, w in winners.items() if w == k] for k in ("1", "2", "undecided")}
    if by["2"] and not by["1"] and not by["undecided"]:
        return "Order 2 is the closer one at every learning rate asked for."
    if by["1"] and not by["2"] and not by["undecided"]:
        return "Order 1 is the closer one at every learning rate asked for."
    said = []
    for key, word in (("2", "Order 2 is closer"), ("1", "order 1 is closer")):
        if by[key]:
            said.append(f"{word} at η = {listing([f'{e:g}' for e in by[key]])}")
    if by["undecided"]:
        said.append(f"undecided at η = {listing([f'{e:g}' for e in by['undecided']])}")
    text = ", ".join(said)
    return f"{text[0].upper()}{text[1:]}."


def _orders(study: WeakStudy) -> str:
    return " ".join(_order(order, errors) for order, errors in study.errors.items())


def _order(order: int, errors: WeakError) -> str:
    observed = errors.observed_order
    if not math.isfinite(observed.value) or not observed.stderr < 0.5:
        return (
            f"Order {order}: the errors at the smallest learning rates are too small to be told "
            "from their own uncertainty, so that no order can be read off."
        )
    shown = number(observed.value)
    if errors.asymptotic:
        return (
            f"Order {order}: halving η divides the error by {number(2**observed.value, 2)} (observed "
            f"order {shown}): the regime of small learning rates is reached, and the error is about "
            f"{_constant(errors)}."
        )
    if observed.value > order:
        return (
            f"Order {order}: the error falls faster than expected, with order {shown}: its leading "
            "constant nearly vanishes for this start, time and function, which says nothing about "
            "others."
        )
    return (
        f"Order {order}: the observed order is {shown} and not {order}: these learning rates are too "
        "large for the regime of small ones; do not extrapolate."
    )


def _constant(errors: WeakError) -> str:
    power = "η" if errors.order == 1 else f"η{'²' if errors.order == 2 else errors.order}"
    return f"{number(errors.constant.value)} {power}"


def _laws(study: WeakStudy) -> str:
    found = study.pictures
    if found is None:
        return ""
    parts = []
    floor = found.resolution[-1]
    for k in ("order 1", "order 2"):
        value = found.total_variation[k][-1]
        known = percent(value) if value > floor else f"at most {percent(max(value, floor))}"
        parts.append(f"{known} at {k}")
    return (
        f"As whole laws at {rate(study.sgd.learning_rate)}, after {counted(found.steps[-1], 'step')}: the "
        f"share of probability that lies elsewhere (total variation) is {listing(parts)}, seen on "
        f"{len(found.centres[0])} cells{' a side' if len(found.centres) > 1 else ''}."
    )


TRUST = {"yes": "may be trusted for", "caution": "needs care for", "no": "should not be used for"}


def _trust(study: WeakStudy) -> str:
    if not study.verdicts:
        return ""
    eta = max(study.verdicts)
    verdicts = study.verdicts[eta].verdicts
    told = []
    for trust, words in TRUST.items():
        uses = [v.use.replace("_", " ") for v in verdicts if v.trust == trust]
        if uses:
            told.append(f"{words} {listing(uses)}")
    return (
        f"At {rate(eta)}, around the minimum that descent reaches, the diffusion {listing(told)}."
    )
