"""The answer of a landscape's study in plain words."""

from __future__ import annotations

import math

from ...landscape import Explained
from .. import wording
from .reading import LandscapeResult, aimed, cells


def answer(result: LandscapeResult) -> str:
    """What was found, the schedule first; paragraphs separated by empty lines.

    >>> answer(LandscapeResult("demo", "Demo", {}, 1000))
    'This study is not finished, and there is no answer yet.'
    """
    if result.landscape is None:
        return "This study is not finished, and there is no answer yet."
    parts = [
        *_schedule(result),
        _landscape(result),
        *_stays(result),
        *_generalisation(result),
        *_trust(result),
    ]
    return "\n\n".join(parts)


def goal(result: LandscapeResult) -> str:
    """The minima that schedules are to end in, in words."""
    objective = result.record.get("objective", "flattest")
    if objective == "flattest":
        return "the flattest quarter of the minima"
    first = str(result.record.get("held_out", "")).split(", ")[0]
    least = "loss" if objective == "lowest_loss" else f"{first} (held out)"
    return f"the quarter of the minima with the lowest {least}"


def _schedule(result: LandscapeResult) -> list[str]:
    if result.plan is None:
        return []
    plan = result.plan
    gain, best = plan.growth_gain, plan.growing
    share = wording.percent
    aim = f"{wording.whole(result.budget)} examples"
    constant = plan.constant.batch_sizes[0]
    chances = (
        f"{share(best.score.value)} of runs end among {goal(result)}, against "
        f"{share(plan.constant.score.value)} at the best constant batch, B = {constant}"
    )
    sizes = _steps(best.batch_sizes)
    if gain.interval[0] > 0:
        head = f"Growing the batch pays: with {aim}, {sizes}, {chances} (predicted)."
    else:
        head = (
            f"Growing the batch does not pay here: with {aim}, the best schedule that grows "
            f"({sizes}) is predicted to be no better than a constant batch beyond what the rates "
            f"leave open; {chances}."
        )
    return [head + _measured_gain(result)]


def _steps(sizes: tuple[int, ...]) -> str:
    distinct = list(dict.fromkeys(sizes))
    if len(distinct) > 5:
        return f"B from {distinct[0]} to {distinct[-1]} in {len(distinct)} steps"
    return "B = " + ", then ".join(str(b) for b in distinct)


def _measured_gain(result: LandscapeResult) -> str:
    assert result.plan is not None
    ends = aimed(result.plan)
    found = {run.schedule.stages: run.measured(ends)[-1] for run in result.runs}
    grown, constant = result.plan.growing, result.plan.constant
    a, b = (found.get(s.stages) for s in (grown, constant))
    if a is None or b is None or grown.stages == constant.stages:
        return ""
    error = math.hypot(a.stderr, b.stderr)
    clear = abs(a.value - b.value) > 1.96 * error
    verdict = "a difference beyond chance" if clear else "a difference within chance"
    text = f" Run for real, they gave {wording.share(a)} and {wording.share(b)}: {verdict}."
    pairs = ((result.plan.growing.score, a), (result.plan.constant.score, b))
    if any(p.interval[0] > m.interval[1] or p.interval[1] < m.interval[0] for p, m in pairs):
        text += (
            " That is not what was predicted: trust the runs, not the network, which lumps all "
            "minima that the search did not list (more starts and paths would list more)."
        )
    return text


def _landscape(result: LandscapeResult) -> str:
    assert result.landscape is not None
    minima = result.landscape.minima
    joins = sum(s.joins for s in result.saddles)
    text = (
        f"The search found {wording.counted(len(minima), 'minimum', 'minima')} (λmax from "
        f"{wording.number(minima[0].lambda_max)} to {wording.number(minima[-1].lambda_max)}) and "
        f"{wording.counted(joins, 'pass', 'passes')} between two of them."
    )
    text = " ".join([text, *result.landscape.notes])
    return f"{text}{_passages(result.explained)}"


def _passages(seen: Explained) -> str:
    if not seen.total:
        return ""
    text = (
        f" Of {wording.counted(seen.total, 'pair')} of minima between which SGD was seen to pass, "
        f"{seen.joined} {'is' if seen.joined == 1 else 'are'} joined by a pass that was found"
    )
    if seen.around:
        text += (
            f", and {seen.around} more by passes over other minima that lie lower than where SGD "
            "crossed their border"
        )
    return f"{text}."


def _stays(result: LandscapeResult) -> list[str]:
    if result.rates is None or result.landscape is None:
        return []
    rates, often = result.rates, [m for m in result.landscape.minima if m.starts > 0]
    if len(often) < 2:
        return []
    flat, sharp = often[0].label, often[-1].label
    small, large = rates.batch_sizes[0], rates.batch_sizes[-1]

    def stay(label: str, size: int) -> str:
        return wording.estimate(rates.stay(label, size))

    return [
        f"At η = {rates.learning_rate:g} the network predicts that SGD stays in the flattest "
        f"minimum that starts reached ({flat}) {stay(flat, small)} steps at B = {small} and "
        f"{stay(flat, large)} at B = {large}; in the sharpest ({sharp}) {stay(sharp, small)} and "
        f"{stay(sharp, large)}."
    ]


def _generalisation(result: LandscapeResult) -> list[str]:
    found = result.generalisation
    if found is None:
        return []
    names = list(found.scores)
    verdicts = wording.listing(found.verdict(name) for name in names)
    return [f"Held out: {verdicts}, over {len(found.labels)} minima."]


def _trust(result: LandscapeResult) -> list[str]:
    found = cells(result)
    if not found:
        return []
    inside, close = sum(c.inside for c in found), sum(c.apart <= 1.96 for c in found)
    return [
        f"Predictions held against runs that the rates did not see: of {len(found)} final shares "
        f"of single basins, {inside} lie inside the measured 95% interval, and {close} within what "
        "prediction and measurement leave open together."
    ]
