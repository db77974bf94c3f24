"""Plots of a landscape's study: stays, occupation, schedules, shares by batch size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ...errors import RunError
from ...estimate import Estimate
from ...metastable import (
    MarkovNetwork,
    Schedule,
    SchedulePlan,
    Stage,
    escape_time,
    stationary_law,
)
from .. import wording
from ..drawing import (
    Axis,
    Curve,
    Figure,
    Mark,
    Plot,
    batch_axis,
    estimate_mark,
    linear_axis,
    linear_ticks,
    log_axis,
    log_ticks,
    mark_ends,
)
from .pictures import graph_picture, tree_picture
from .reading import LandscapeResult, MeasuredRun, aimed, quarters, set_share
from .wording import goal

GRID = 25  # points of a predicted line
SEEN = 0.005  # share from which a set of states gets a curve
KEPT = 0.95  # of the best share that a larger batch must keep


def share_axis() -> Axis:
    """From none to all."""
    return Axis("share of runs", 0.0, 1.0, False, linear_ticks(0.0, 1.0))


def line(name: str, style: str, x: Sequence[float], y: Sequence[float]) -> Curve:
    """A line without dots."""
    marks = tuple(Mark(float(a), float(b), math.nan, math.nan, "value", "") for a, b in
                  zip(x, y, strict=True))  # fmt: skip
    return Curve(name, style, marks, True, False)


def points(style: str, x: Sequence[float], values: Sequence[Estimate], where: str) -> Curve:
    """Measured numbers with their intervals, not joined."""
    marks = tuple(
        Mark(
            float(a),
            v.value,
            *v.interval,
            "value",
            f"{where}, {wording.whole(a)}: {wording.share(v)}",
        )
        for a, v in zip(x, values, strict=True)
    )
    return Curve("", style, marks, False, True)


def tree_figure(result: LandscapeResult) -> Figure:
    """The disconnectivity tree, sharpness as colour."""
    assert result.landscape is not None
    picture = tree_picture(result.landscape, result.tree)
    return Figure(
        "tree",
        "Disconnectivity tree",
        "Each leaf is a minimum, at the height of its loss; branches meet at the lowest pass that "
        "joins them. Colour is sharpness, by rank of λmax: from the flattest (first shade) to the "
        "sharpest (last shade). Dotted: no pass was found between these parts.",
        picture.words,
        (("", (picture,)),),
    )


def graph_figure(result: LandscapeResult) -> Figure:
    """Jumps between basins at the middle batch size."""
    assert result.landscape is not None
    assert result.rates is not None
    sizes, network = result.rates.batch_sizes, result.rates.network
    middle = sizes[len(sizes) // 2]
    start = result.plan.start if result.plan is not None else tuple(network.starts)
    stages = [Stage(middle, max(1, result.budget // middle))]
    shares = np.array([
        set_share(network, start, stages, np.arange(len(network.labels)) == k).value
        for k in range(len(network.labels))
    ])  # fmt: skip
    picture = graph_picture(result.landscape, network, shares, middle)
    return Figure(
        "graph",
        "Transition graph",
        f"The larger a basin's circle, the more runs are in it after "
        f"{wording.whole(result.budget)} examples at B = {middle}; the stronger a line, the more "
        "often SGD jumps that way. Basins that few starts and few runs reach are left out.",
        picture.words,
        (("", (picture,)),),
    )


def stay_figure(result: LandscapeResult) -> Figure:
    """Mean time in some basins by batch size."""
    assert result.rates is not None
    assert result.landscape is not None
    rates, network = result.rates, result.rates.network
    often = [m for m in result.landscape.minima if m.starts > 0] or list(result.landscape.minima)
    picks = [often[round(k * (len(often) - 1) / 5)] for k in range(6)]
    grid = np.geomspace(rates.batch_sizes[0], rates.batch_sizes[-1], GRID)
    plots = []
    for minimum in dict.fromkeys(picks):
        label = minimum.label
        times = [escape_time(network, label, float(b)).value for b in grid]
        rows = [r for r in rates.escapes if r.state == label and r.evidence]
        seen = Curve(
            "",
            "sgd",
            tuple(estimate_mark(r.batch_size, r.evidence[0], f"{label}, B = {r.batch_size}")
                  for r in rows),
            False,
        )  # fmt: skip
        finite = [t for t in times if math.isfinite(t) and t < 1e12]
        predicted = line("", "first", grid.tolist()[: len(finite)], finite)
        y = log_axis("mean stay, steps", [*mark_ends([seen]), *finite])
        title = f"Minimum {label}, λmax {wording.number(minimum.lambda_max)}"
        plots.append(Plot(title, batch_axis(rates.batch_sizes), y, (predicted, seen)))
    return Figure(
        "stays",
        "How long SGD stays",
        "Mean number of steps until a basin is left, for minima from flat to sharp. Points: from "
        "the jumps counted at that batch size alone. Lines: the network, whose rates borrow "
        "strength from all batch sizes. Arrows: no jump was seen, a lower limit.",
        "; ".join(p.title for p in plots),
        ((f"Learning rate η = {rates.learning_rate:g}", tuple(plots)),),
    )


def occupation_figure(result: LandscapeResult) -> Figure | None:
    """Shares of flat, sharp and unlisted basins over examples, predicted and measured."""
    if result.rates is None or not result.runs:
        return None
    network = result.rates.network
    flat, sharp = quarters(network)
    elsewhere = np.array([name == "elsewhere" for name in network.labels])
    plots = []
    for run in result.runs:
        curves: list[Curve] = []
        for members, name, style in (
            (flat, "flat", "first"),
            (sharp, "sharp", "second"),
            (elsewhere, "other", "other"),
        ):
            drawn, found = run.predicted(network, members), run.measured(members)
            if max(drawn[0].max(), *(v.value for v in found)) < SEEN:
                continue
            curves.append(line(name, style, run.examples.tolist(), drawn[0].tolist()))
            where = f"{name}, {run.schedule.name}, examples"
            curves.append(points(style, run.examples.tolist(), found, where))
        plots.append(Plot(_schedule_title(run), _examples_axis(result.budget), share_axis(),
                          tuple(curves)))  # fmt: skip
    return Figure(
        "occupation",
        "Occupation over examples, by schedule",
        "Shares of runs in the flattest quarter of the minima, in the sharpest quarter, and in "
        "minima that the search did not list (other). Lines: predicted by the network. Points: "
        "SGD, in runs that the network's rates did not see, with 95% intervals.",
        "; ".join(p.title for p in plots),
        (("", tuple(plots)),),
    )


def _examples_axis(budget: int) -> Axis:
    return Axis("examples seen", -0.03 * budget, 1.03 * budget, False,
                linear_ticks(0.0, float(budget), 3))  # fmt: skip


def _schedule_title(run: MeasuredRun) -> str:
    sizes = list(dict.fromkeys(run.schedule.batch_sizes))
    if len(sizes) == 1:
        return f"B = {sizes[0]} throughout"
    return f"{wording.sentence(run.schedule.name)}: B {' → '.join(_few(sizes))}"


def _few(sizes: list[int]) -> list[str]:
    names = [str(b) for b in sizes]
    return names if len(names) <= 5 else [*names[:2], "…", *names[-2:]]


def schedule_figure(result: LandscapeResult) -> Figure:
    """How large may the batch be when."""
    assert result.plan is not None
    assert result.rates is not None
    plan, sizes = result.plan, result.rates.batch_sizes
    axis = Axis("batch size B", sizes[0] / 1.25, sizes[-1] * 1.25, True,
                log_ticks(sizes[0] / 1.25, sizes[-1] * 1.25))  # fmt: skip
    chosen = [(plan.best, "best", "first")]
    if plan.growing.name != plan.best.name:
        chosen.append((plan.growing, "grows", "second"))
    chosen.append((plan.constant, "constant", "other"))
    steps = tuple(line(name, style, *_staircase(s)) for s, name, style in chosen)
    first = Plot("Best schedules", _examples_axis(result.budget), axis, steps)
    budgets, largest = largest_batches(result)
    second = Plot(
        f"Largest constant batch that keeps {KEPT:.0%} of the best share",
        _examples_axis(result.budget),
        axis,
        (line("", "first", budgets, largest),),
    )
    return Figure(
        "schedule",
        "How large may the batch be, when?",
        f"Left: the batch size over examples that is predicted to end in {goal(result)} most "
        "often, by optimal control; the best that only grows; the best constant one. Right: for "
        "each number of examples, the largest constant batch whose predicted share of runs there "
        f"is still {KEPT:.0%} of the best constant batch's.",
        plan.verdict,
        (("", (first, second)),),
    )


def _staircase(schedule: Schedule) -> tuple[list[float], list[float]]:
    x, y, seen = [], [], 0.0
    for stage in schedule.stages:
        x += [seen, seen + stage.batch_size * stage.steps]
        y += [float(stage.batch_size)] * 2
        seen = x[-1]
    return x, y


def largest_batches(result: LandscapeResult) -> tuple[list[float], list[float]]:
    """(budgets, largest constant batch that keeps most of the best share)."""
    assert result.plan is not None
    assert result.rates is not None
    network, plan = result.rates.network, result.plan
    ends = aimed(plan)
    low, high = result.rates.batch_sizes[0], result.rates.batch_sizes[-1]
    sizes = sorted({round(b) for b in np.geomspace(low, high, 13)})
    budgets = [result.budget * k / 8 for k in range(1, 9)]
    largest = []
    for budget in budgets:
        shares = [_value(network, plan, [Stage(b, max(1, int(budget // b)))], ends) for b in sizes]
        keeps = [b for b, s in zip(sizes, shares, strict=True) if s >= KEPT * max(shares)]
        largest.append(float(max(keeps)))
    return budgets, largest


def _value(
    network: MarkovNetwork, plan: SchedulePlan, stages: Sequence[Stage], members: np.ndarray
) -> float:
    return set_share(network, plan.start, stages, members).value


def share_figure(result: LandscapeResult) -> Figure:
    """Flat against sharp by batch size: at the end of the budget, and in the long run."""
    assert result.rates is not None
    assert result.plan is not None
    rates, network = result.rates, result.rates.network
    flat, sharp = quarters(network)
    grid = sorted({round(b) for b in np.geomspace(rates.batch_sizes[0], rates.batch_sizes[-1], 13)})
    constant = [r for r in result.runs if len(set(r.schedule.batch_sizes)) == 1]
    constant.sort(key=lambda r: r.schedule.batch_sizes[0])
    ends: list[Curve] = []
    long_run: list[Curve] = []
    for members, name, style in ((flat, "flat", "first"), (sharp, "sharp", "second")):
        at_end = [
            _value(network, result.plan, [Stage(b, max(1, result.budget // b))], members)
            for b in grid
        ]
        ends.append(line(name, style, grid, at_end))
        sizes = [float(r.schedule.batch_sizes[0]) for r in constant]
        ends.append(points(style, sizes, [r.measured(members)[-1] for r in constant], f"{name}, B"))
        long_run.append(line(name, style, *_long_run(network, grid, members)))
    axis = batch_axis(rates.batch_sizes)
    title = f"After {wording.whole(result.budget)} examples"
    return Figure(
        "shares",
        "Flat against sharp, by batch size",
        "Share of runs in the flattest and in the sharpest quarter of the minima at a constant "
        "batch. Left: after the budget, predicted (lines) and measured (points). Right: in the "
        "long run, which a large batch may take longer than any training to reach.",
        title,
        (("", (
            Plot(title, axis, share_axis(), tuple(ends)),
            Plot("In the long run (predicted)", axis, share_axis(), tuple(long_run)),
        )),),
    )  # fmt: skip


def _long_run(
    network: MarkovNetwork, grid: Sequence[int], members: np.ndarray
) -> tuple[list[float], list[float]]:
    x, y = [], []
    for b in grid:
        try:
            law = stationary_law(network, b)
        except RunError:  # several sets of states that are never left: no single long run
            continue
        x.append(float(b))
        y.append(sum(law[name].value for name, own in zip(network.labels, members, strict=True)
                     if own))  # fmt: skip
    return x, y


def generalisation_figure(result: LandscapeResult) -> Figure:
    """Held-out scores of the minima against their sharpness."""
    found = result.generalisation
    assert found is not None
    x = found.values["lambda_max"].tolist()
    across = log_axis("λmax", x)
    plots = []
    for name, scores in found.scores.items():
        marks = tuple(
            Mark(a, b, b, b, "value", f"{label}: λmax {wording.number(a)}, {name} "
                 f"{wording.number(b)}")
            for label, a, b in zip(found.labels, x, scores.tolist(), strict=True)
        )  # fmt: skip
        y = linear_axis(f"{name}", scores.tolist())
        plots.append(Plot(name.capitalize(), across, y, (Curve("", "first", marks, False),)))
    return Figure(
        "generalisation",
        "Held-out scores of the minima, by sharpness",
        "Each point is a minimum that the search found: its largest Hessian eigenvalue, and what "
        "it scores on examples that were not trained on (lower is better).",
        "; ".join(found.verdict(name) for name in found.scores),
        (("", tuple(plots)),),
    )
