"""How the cells of a study run (settings -> chunk) and read (chunk -> row of results)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from .._jax import XLA_LOCK
from ..domain import Domain
from ..dynamics import SGD
from ..estimate import Estimate, sample_mean, share
from ..exits.basin import BasinExits, basin_exits, check_interval
from ..landscape import BasinMap, Landscape, basin, classify, line_profile, shapes
from ..metastable import NOWHERE, UNLISTED, final_basins, stages
from ..results import EscapeRow, FinalRow, LineRow, MinimumRow
from ..verdicts import validity
from .plan import ROLES, EscapeCell, FinalCell, Plan, VerdictCell

Progress = Callable[[int, int], None]
Arrays = dict[str, np.ndarray]
Facts = dict[str, Any]
SHOWN_NUMBERS = (
    "eta_lambda_max",
    "stability_limit_sgd",
    "stability_limit_diffusion",
    "variance_ratio_order1",
    "variance_ratio_order2",
    "exponent_ratio",
    "kesten_sgd",
    "kesten_diffusion",
)


def limits(plan: Plan, process: str) -> tuple[int, int]:
    """(horizon in SGD steps, paths) for SGD or for a diffusion."""
    s = plan.settings
    if process == "sgd":
        return s.horizon, s.paths
    return s.diffusion_horizon or s.horizon, s.diffusion_paths


@dataclass
class Pilots:
    """Steps between two looks: one for SGD and its diffusions, so that their exits mean the same.

    Found by whichever cell asks first.
    """

    plan: Plan
    landscape: Landscape
    known: dict[str, int] = field(default_factory=dict)

    def interval(self, cell: EscapeCell) -> int:
        """SGD steps between two looks at the paths of `cell`."""
        name = f"pilot-{cell.minimum.label}-eta{cell.learning_rate:g}-B{cell.batch_size}"
        if name not in self.known:
            # Two that ask at once find the same: cheaper than one that waits.
            self.known[name] = self._measured(cell, name)
        return self.known[name]

    def _measured(self, cell: EscapeCell, name: str) -> int:
        s = self.plan.settings
        return check_interval(
            self.plan.sgd(cell.learning_rate, cell.batch_size),
            cell.minimum.x,
            home_of(self.plan, self.landscape, cell),
            s.horizon,
            s.seed,
            name,
            s.looks,
            threads=1,
        )


def home_of(plan: Plan, landscape: Landscape, cell: EscapeCell) -> Domain:
    """The basin that a cell's paths leave."""
    return basin(plan.subject.loss, landscape.attractors, cell.minimum.attractor, threads=1)


def run_escape(
    plan: Plan, landscape: Landscape, cell: EscapeCell, pilots: Pilots, progress: Progress
) -> tuple[Arrays, Facts]:
    """Simulate the exits of one cell."""
    every, home = pilots.interval(cell), home_of(plan, landscape, cell)
    horizon, paths = limits(plan, cell.process)
    exits = basin_exits(
        plan.process(cell.process, cell.learning_rate, cell.batch_size),
        cell.minimum.x,
        home,
        horizon,
        paths,
        plan.settings.seed,
        cell.name,
        check_every=every,
        substeps=plan.settings.substeps,
        threads=1,  # cells run side by side
        # A diffusion's steps dt are far above float32's resolution; SGD itself stays exact.
        precision="float64" if cell.process == "sgd" else "float32",
        progress=progress,
    )
    arrays = {
        "steps": exits.steps,
        "observed": exits.observed,
        "points": exits.points,
        "coarse-steps": exits.coarse_steps,
        "coarse-observed": exits.coarse_observed,
        "classes": _destinations(exits, home.labels, landscape),
    }
    return arrays, {"check_every": exits.check_every, "horizon": exits.horizon}


def _destinations(exits: BasinExits, labels: Any, landscape: Landscape) -> np.ndarray:
    """Class of the minimum behind each exit, UNLISTED or NOWHERE; the own class if censored."""
    assert isinstance(labels, BasinMap)
    kinds = classify(labels.attractors.centers, landscape.minima, landscape.symmetry)
    return np.where(exits.labels < 0, NOWHERE, kinds[exits.labels])


def escape_row(
    plan: Plan, landscape: Landscape, cell: EscapeCell, arrays: Arrays, facts: Mapping[str, Any]
) -> EscapeRow:
    """The result of one finished escape cell."""
    exits = BasinExits(
        arrays["steps"],
        arrays["observed"],
        arrays["classes"],
        arrays["points"],
        int(facts["check_every"]),
        arrays["coarse-steps"],
        arrays["coarse-observed"],
        int(facts["horizon"]),
    )
    own = landscape.minima.index(cell.minimum)
    return EscapeRow(
        **_head(plan, cell),
        horizon=exits.horizon,
        check_every=exits.check_every,
        steps=exits.mean(),
        check_shift=exits.check_shift,
        same_class=int(np.sum(exits.observed & (arrays["classes"] == own))),
        seconds=float(facts.get("seconds", 0.0)),
    )


def failed_escape(plan: Plan, cell: EscapeCell, error: str) -> EscapeRow:
    """The row of a cell that could not be measured, with the reason."""
    horizon, _ = limits(plan, cell.process)
    return EscapeRow(**_head(plan, cell), horizon=horizon, check_every=0, steps=None, error=error)


def _head(plan: Plan, cell: EscapeCell) -> Facts:
    sgd = plan.sgd(cell.learning_rate, cell.batch_size)
    # Reshuffled epochs have no temperature of their own; the plain ratio only places the row.
    reshuffled = sgd.sampling == "reshuffle"
    return {
        "minimum": cell.minimum.label,
        "process": cell.process,
        "learning_rate": cell.learning_rate,
        "batch_size": cell.batch_size,
        "temperature": cell.learning_rate / cell.batch_size if reshuffled else sgd.temperature,
    }


def run_final(
    plan: Plan, landscape: Landscape, cell: FinalCell, progress: Progress
) -> tuple[Arrays, Facts]:
    """Simulate one schedule from one start and find the final basins."""
    s = plan.settings
    sgd: SGD = plan.sgd(cell.learning_rate, cell.batch_sizes[0])
    schedule = stages(cell.batch_sizes, s.examples)
    ends = final_basins(
        sgd, cell.minimum.x, schedule, landscape, s.final_paths, s.seed, cell.name, 1, progress
    )
    return {"classes": ends.classes, "centers": ends.centers}, {}


def final_row(
    plan: Plan, landscape: Landscape, cell: FinalCell, arrays: Arrays, facts: Mapping[str, Any]
) -> FinalRow:
    """The result of one finished final-basin cell."""
    classes, centers = arrays["classes"], arrays["centers"]
    counts = Counter(_class_name(landscape, int(k)) for k in classes)
    shares = {name: share(count, len(classes)) for name, count in sorted(counts.items())}
    lambda_max, loss = _at_ends(plan, centers[classes != NOWHERE])
    return FinalRow(
        **_final_head(plan, cell),
        shares=shares,
        stayed=shares.get(cell.minimum.label, share(0, len(classes))),
        sharpness=lambda_max,
        loss=loss,
    )


def failed_final(plan: Plan, cell: FinalCell, error: str) -> FinalRow:
    """The row of a schedule that could not be run to its end, with the reason."""
    head = _final_head(plan, cell)
    return FinalRow(**head, shares={}, stayed=None, sharpness=None, loss=None, error=error)


def _final_head(plan: Plan, cell: FinalCell) -> Facts:
    examples = plan.settings.examples
    return {
        "start": cell.minimum.label,
        "schedule": cell.schedule,
        "learning_rate": cell.learning_rate,
        "examples": examples,
        "stages": tuple((p.batch_size, p.steps) for p in stages(cell.batch_sizes, examples)),
        "growing": len(cell.batch_sizes) > 1,
    }


def _class_name(landscape: Landscape, kind: int) -> str:
    if kind >= 0:
        return landscape.minima[kind].label
    return {UNLISTED: "other", NOWHERE: "undecided"}[kind]


def _at_ends(plan: Plan, centers: np.ndarray) -> tuple[Estimate | None, Estimate | None]:
    """Mean largest eigenvalue and mean loss at the minima reached, each (paths,)."""
    if len(centers) < 2:
        return None, None
    unique, place = np.unique(centers, axis=0, return_inverse=True)
    found = shapes(plan.subject.loss, unique)
    place = place.reshape(-1)
    return (
        sample_mean(found["lambda_max"][place], "1"),
        sample_mean(found["loss"][place], "loss"),
    )


def run_verdict(
    plan: Plan, landscape: Landscape, cell: VerdictCell, progress: Progress
) -> tuple[Arrays, Facts]:
    """Judge the diffusion at one minimum."""
    sgd = plan.sgd(cell.learning_rate, cell.batch_size)
    with XLA_LOCK:
        return {}, validity(sgd, cell.minimum.x, seed=plan.settings.seed).to_dict()


def verdict_row(
    plan: Plan, landscape: Landscape, cell: VerdictCell, arrays: Arrays, facts: Mapping[str, Any]
) -> Facts:
    """The judgement as the report shows it: trust by use, each reason once."""
    uses = {v["use"].replace("_", " "): v["trust"] for v in facts["verdicts"]}
    reasons = dict.fromkeys(v["reason"] for v in facts["verdicts"])
    several = f", η = {cell.learning_rate:g}" if len(plan.settings.learning_rates) > 1 else ""
    role = f" ({cell.role})" if cell.role in ROLES else ""
    return {
        "question": f"{cell.minimum.label}{role}, B = {cell.batch_size}{several}",
        "uses": uses,
        "reason": " ".join(f"{reason[0].upper()}{reason[1:]}." for reason in reasons),
        "numbers": {k: v for k in SHOWN_NUMBERS if (v := facts["numbers"][k]) != "nan"},
    }


def failed_verdict(plan: Plan, cell: VerdictCell, error: str) -> Facts:
    """The row of a judgement that could not be made."""
    question = f"{cell.minimum.label}, B = {cell.batch_size}"
    return {"question": question, "verdict": "not judged.", "reason": error, "numbers": {}}


def minimum_rows(plan: Plan, landscape: Landscape) -> tuple[MinimumRow, ...]:
    """All minima of the search, the chosen ones with their roles."""
    roles = {minimum.label: role for role, minimum in plan.chosen(landscape).items()}
    return tuple(
        MinimumRow(
            label=m.label,
            loss=m.loss,
            lambda_max=m.lambda_max,
            trace=m.trace,
            lambda_min=m.lambda_min,
            noise_trace=m.noise_trace,
            alignment=m.alignment,
            starts=m.starts,
            radius=float(landscape.attractors.radii[m.attractor]),
            role=roles.get(m.label, ""),
            x=tuple(float(v) for v in m.x),
        )
        for m in landscape.minima
    )


def line_rows(plan: Plan, landscape: Landscape) -> tuple[LineRow, ...]:
    """Loss along the lines between neighbouring chosen minima, and from first to last."""
    chosen = list(plan.chosen(landscape).values())
    pairs = list(pairwise(chosen))
    if len(chosen) > 2:
        pairs.append((chosen[0], chosen[-1]))
    out = []
    for a, b in pairs:
        s, values = line_profile(plan.subject.loss, a.x, b.x, landscape.symmetry)
        points = tuple(float(v) for v in s), tuple(float(v) for v in values)
        out.append(LineRow(a.label, b.label, *points))
    return tuple(out)
