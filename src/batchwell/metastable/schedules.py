"""Schedules of the batch size: the best one by optimal control, and its rivals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError, require, whole
from ..estimate import Estimate
from .control import Kernels, best_step, refine, score, sweep
from .final import Stage
from .network import MarkovNetwork, extrapolated, from_draws, law_of_start
from .objectives import Objective, state_weights

Floats = NDArray[np.float64]
STAGES = 16
SIZES = 24  # batch sizes that control chooses from, about evenly spread in log B
DRAWS = 64  # of the network's rates, for the intervals of schedules


@dataclass(frozen=True)
class Schedule:
    """A batch size over examples, and where the network says it ends.

    Attributes
    ----------
    name
        "optimal", "constant B = 4", "geometric", ...
    stages
        Batch size and whole steps of each stage.
    score
        Predicted value of the objective at the end (for a set of states: the chance to be there).
    shares
        Predicted share of each state at the end.
    """

    name: str
    stages: tuple[Stage, ...]
    score: Estimate
    shares: dict[str, Estimate]

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Batch size of each stage."""
        return tuple(s.batch_size for s in self.stages)

    @property
    def grows(self) -> bool:
        """Whether the batch never shrinks and grows at least once."""
        b = self.batch_sizes
        return all(x <= y for x, y in pairwise(b)) and b[0] < b[-1]


@dataclass(frozen=True)
class SchedulePlan:
    """The best schedule for a budget of examples, beside its rivals.

    Attributes
    ----------
    best
        By optimal control.
    rivals
        Constant, step, geometric, linear, logarithmic, each growing one also reversed; those
        predicted best come first.
    objective
        In plain words.
    gain
        Predicted score of `best` minus that of the best constant batch size, paired over draws.
    growth_gain
        The same for the best schedule that never shrinks the batch.
    verdict
        Whether growth beats a constant batch, in plain words; also when it does not.
    start
        (m,) law of the start.
    budget
        Examples.
    weights
        (m,) weight of each state in the objective.
    """

    best: Schedule
    rivals: tuple[Schedule, ...]
    objective: str
    gain: Estimate
    growth_gain: Estimate
    verdict: str
    start: tuple[float, ...]
    budget: int
    weights: tuple[float, ...]

    @property
    def constant(self) -> Schedule:
        """The best constant batch size."""
        return next(s for s in self.rivals if len(set(s.batch_sizes)) == 1)

    @property
    def growing(self) -> Schedule:
        """The best schedule that never shrinks the batch and is not constant."""
        found = [s for s in (self.best, *self.rivals) if s.grows]
        return max(found, key=lambda s: s.score.value)


def geometric(low: float, high: float, count: int) -> list[float]:
    """B grows by the same factor from stage to stage."""
    return [float(b) for b in np.geomspace(low, high, count)]


def linear(low: float, high: float, count: int) -> list[float]:
    """B grows by the same number from stage to stage."""
    return [float(b) for b in np.linspace(low, high, count)]


def logarithmic(low: float, high: float, count: int) -> list[float]:
    """B grows like the logarithm of the examples seen (Hajek's cooling, Math. Oper. Res. 1988)."""
    return [float(b) for b in low + (high - low) * np.log1p(np.arange(count)) / np.log(count)]


FAMILIES: dict[str, Callable[[float, float, int], list[float]]] = {
    "geometric": geometric,
    "linear": linear,
    "logarithmic": logarithmic,
}


def optimal_schedule(
    network: MarkovNetwork,
    budget: int,
    objective: Objective = "flattest",
    *,
    start: str | ArrayLike | None = None,
    smallest: int | None = None,
    largest: int | None = None,
    stages: int = STAGES,
) -> SchedulePlan:
    """The batch size over a fixed number of examples that most likely ends where one wants.

    Parameters
    ----------
    budget
        Examples, all schedules alike.
    objective
        "flattest", "lowest_loss", "best_validation" (needs held-out scores: `with_scores`), names
        of states to end in, or a weight by state (`state_weights`).
    start
        A state's name or weights (m,); by default how often random starts reach each minimum.
    smallest, largest
        Allowed batch sizes; by default those with evidence.
    stages
        Stages of equal numbers of examples, at most.

    Raises
    ------
    InputError
        Unknown objective or start; a budget smaller than one step.

    Examples
    --------
    >>> import numpy as np
    >>> from batchwell.metastable import known_network
    >>> leave = lambda b, v: 0.1 * np.exp(-v * b)  # the flat state is left less
    >>> rates = [[[0, leave(b, 1.0)], [leave(b, 0.5), 0]] for b in (1, 8)]
    >>> net = known_network(["flat", "sharp"], [1, 8], rates, sharpness=[1.0, 2.0])
    >>> plan = optimal_schedule(net, 2000, start="sharp")
    >>> plan.best.batch_sizes[0] < plan.best.batch_sizes[-1]
    True
    """
    low, high = _limits(network, smallest, largest)
    budget, count = _stage_count(budget, high, stages)
    weights, words = state_weights(network, objective)
    p = law_of_start(network, network.starts if start is None else start)
    search = _Search(network, p, weights, budget // count, count, (low, high))
    sizes = {"optimal": search.optimal(), **search.rivals()}
    rows = {name: search.evaluate(name, b) for name, b in sizes.items()}
    best, best_draws = rows.pop("optimal")
    rivals = sorted(rows.values(), key=lambda row: -row[0].score.value)
    constant, flat_draws = next(row for row in rivals if len(set(row[0].batch_sizes)) == 1)
    growing = [row for row in [(best, best_draws), *rivals] if row[0].grows]
    top = max(growing, key=lambda row: row[0].score.value) if growing else (constant, flat_draws)
    gain = _gain(best, best_draws, constant, flat_draws)
    growth = _gain(top[0], top[1], constant, flat_draws)
    return SchedulePlan(
        best,
        tuple(row[0] for row in rivals),
        words,
        gain,
        growth,
        _verdict(top[0], constant, growth),
        tuple(float(v) for v in p),
        budget,
        tuple(float(v) for v in weights),
    )


def _limits(network: MarkovNetwork, smallest: int | None, largest: int | None) -> tuple[int, int]:
    low = whole("smallest", int(network.measured[0]) if smallest is None else smallest)
    high = whole("largest", int(network.measured[1]) if largest is None else largest)
    require(low <= high, "largest", high, f"must not lie below smallest = {low}")
    return low, high


def _stage_count(budget: int, high: int, stages: int) -> tuple[int, int]:
    """(budget, stages): as many as leave room for a step at every batch size."""
    budget, stages = whole("budget", budget), whole("stages", stages)
    if budget < high:
        raise InputError("budget", budget, f"is smaller than one step at B = {high}")
    return budget, min(stages, budget // high)


class _Search:
    """Schedules of equal stages, for one network, start, objective and budget."""

    def __init__(
        self,
        network: MarkovNetwork,
        start: Floats,
        weights: Floats,
        share: int,
        count: int,
        limits: tuple[int, int],
    ) -> None:
        self.network = replace(network, draws=network.draws[:DRAWS])
        self.start, self.weights = start, weights
        self.share, self.count, self.limits = share, count, limits
        self.kernels = Kernels(self.network, share)
        spread = np.geomspace(*limits, SIZES).round().astype(int)
        self.sizes = [int(b) for b in np.unique(spread)]
        self.ends = [int(b) for b in network.batch_sizes if limits[0] <= b <= limits[1]]
        self.ends = sorted({*self.ends, *limits})

    def value(self, sizes: Sequence[int]) -> float:
        return score(self.kernels, self.start, self.weights, sizes)

    def optimal(self) -> list[int]:
        begins = [[b] * self.count for b in self.ends]
        begins += [self.step(True), self.step(False)]
        found = [sweep(self.kernels, self.start, self.weights, b, self.sizes)[0] for b in begins]
        best = max(found, key=self.value)
        finer = refine(self.network, self.start, self.weights, best, self.share, self.limits)
        return max([best, finer], key=self.value)

    def step(self, growing: bool) -> list[int]:
        return best_step(self.kernels, self.start, self.weights, self.count, self.sizes, growing)

    def rivals(self) -> dict[str, list[int]]:
        """The best of each family over its two ends; every one that grows also reversed."""
        out = {f"constant B = {b}": [b] * self.count for b in self.ends}
        if self.count < 2 or len(self.ends) < 2:
            return out
        out["step"], out["step, shrinking"] = self.step(True), self.step(False)
        grown, _ = sweep(
            self.kernels, self.start, self.weights, out["step"], self.sizes, growing=True
        )
        out["best that grows"] = grown
        pairs = [(a, b) for a in self.ends for b in self.ends if a < b]
        for name, family in FAMILIES.items():
            shapes = [[round(v) for v in family(a, b, self.count)] for a, b in pairs]
            out[name] = max(shapes, key=self.value)
            out[f"{name}, shrinking"] = max((s[::-1] for s in shapes), key=self.value)
        return out

    def evaluate(self, name: str, sizes: Sequence[int]) -> tuple[Schedule, Floats]:
        """The schedule with its prediction, and its score in every draw."""
        few = self.network
        runs = tuple(Stage(b, self.share // b) for b in sizes)
        laws = np.tile(self.start, (1 + len(few.draws), 1))
        for b in sizes:
            laws = np.einsum("ri,rij->rj", laws, self.kernels.drawn(b))
        scores = laws @ self.weights
        notes = []
        beyond = sorted({b for b in sizes if extrapolated(few, b)})
        if beyond:
            named = ", ".join(str(b) for b in beyond)
            notes = [f"B = {named} is extrapolated beyond what was measured"]
        shares = {
            label: from_draws(float(laws[0, k]), laws[1:, k]).with_notes(*notes)
            for k, label in enumerate(few.labels)
        }
        value = from_draws(float(scores[0]), scores[1:]).with_notes(*notes)
        return Schedule(name, merged(runs), value, shares), scores[1:]


def merged(runs: Sequence[Stage]) -> tuple[Stage, ...]:
    """Neighbouring stages of one batch size joined.

    >>> merged([Stage(2, 10), Stage(2, 10), Stage(4, 5)])
    (Stage(batch_size=2, steps=20), Stage(batch_size=4, steps=5))
    """
    out: list[Stage] = []
    for stage in runs:
        if out and out[-1].batch_size == stage.batch_size:
            stage = Stage(stage.batch_size, out.pop().steps + stage.steps)
        out.append(stage)
    return tuple(out)


def _gain(a: Schedule, a_draws: Floats, b: Schedule, b_draws: Floats) -> Estimate:
    difference = a.score.value - b.score.value
    return from_draws(difference, a_draws - b_draws, "1", f"{a.name} minus {b.name}, paired")


def _verdict(growing: Schedule, constant: Schedule, gain: Estimate) -> str:
    low, high = gain.interval
    best = f"{growing.score.value:.3g} against {constant.score.value:.3g} with {constant.name}"
    if low > 0:
        return f"growing the batch is predicted to beat every constant one: {best}"
    if high <= 0 or gain.value <= 0:
        return f"growing the batch does not beat a constant one: {best}"
    return (
        f"growing the batch is not predicted to beat a constant one beyond the rates' uncertainty: "
        f"{best}, difference {gain.value:.2g} [{low:.2g}, {high:.2g}]"
    )
