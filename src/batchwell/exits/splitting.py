"""Multilevel splitting: exit times of any length from short pieces of simulation.

The mean exit time is ``1 / (flux x chance)``: the flux of departures from a core around the
minimum, and the chance that a departure reaches the outside before it returns to the core
(Allen, Valeriani & ten Wolde, J. Phys.: Condens. Matter 21, 463102 (2009)). The chance is a product
over levels of a score. Levels are adapted in a pilot run of its own and then held fixed, so
each chance is estimated without bias (Cerou & Guyader, Stoch. Anal. Appl. 25 (2007), two-stage
form); standard errors come from independent replicas. Ties of a discrete score: a state counts as
past a level only if its score exceeds it strictly, and equal levels are merged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .._jax import jax, jnp
from ..domain import Domain
from ..dynamics import SGD, Process
from ..ensemble.step import Step, step_of
from ..errors import InputError, RunError, require, whole
from ..estimate import Estimate
from ..streams import generator, path_states
from .regime import attractor, drift_of
from .scores import Score, action_score

Array = Any
# A stage that fewer than this share of trials survives needs a level in between.
SURVIVE = 0.25
UNSURE = 1e-12


class Lanes(NamedTuple):
    """What runs side by side: positions, memories, generators and counters of each lane."""

    x: Array
    memory: Any
    rng: Array


@dataclass(frozen=True)
class Levels:
    """Core and levels of a splitting run, from its pilot.

    Attributes
    ----------
    core
        Score below which a path counts as back at the minimum.
    values
        Increasing scores; the last stage ends outside of the domain.
    """

    core: float
    values: tuple[float, ...]


def splitting(
    process: Process,
    start: ArrayLike,
    domain: Domain,
    *,
    score: Score | None = None,
    particles: int = 512,
    replicas: int = 8,
    seed: int = 0,
    substeps: int = 4,
    second: Estimate | None = None,
) -> Estimate:
    """Mean exit time in SGD steps by multilevel splitting.

    Parameters
    ----------
    score
        ``score(x)``, (d,) -> scalar in jax.numpy, growing on the way out; by default the
        action along the most likely path (`scores.action_score`).
    particles
        Trials of each stage.
    replicas
        Independent repetitions, from which the standard error comes (at least 2).
    second
        Answer of another method. Chances below 1e-12 are called reliable only if it agrees.

    Raises
    ------
    InputError
        Reshuffled epochs, momentum, a bad start, or a domain without a level function.
    RunError
        A stage that no trial survives (says the level), or no departures from the core.

    Examples
    --------
    >>> from batchwell import SGD, additive, ball
    >>> sgd = SGD(additive(lambda x: x @ x / 2), learning_rate=0.1)
    >>> out = splitting(sgd, [0.0], ball([0.0], 1.0), particles=256, seed=1)
    >>> abs(out.value - 117280.42) < 4 * out.stderr
    True
    """
    particles, replicas = whole("particles", particles, 32), whole("replicas", replicas, 2)
    if domain.level is None:
        raise InputError("domain", domain.name, "must have a level function here")
    minimum = attractor(process, start, domain)
    if isinstance(process, SGD) and (process.momentum or process.sampling == "reshuffle"):
        raise InputError(
            "process",
            "momentum or reshuffled epochs",
            "carry memory from step to step, which levels of x alone do not see",
        )
    score = action_score(process, minimum, domain) if score is None else score
    run = SplittingRun(process, domain, minimum, score, particles, seed, substeps)
    levels = run.pilot()
    # Replicas are independent of each other and of the pilot: keyed streams of their own.
    pairs = np.array([run.replica(levels, k) for k in range(replicas)])
    return _answer(pairs, levels, particles, second)


def _answer(pairs: np.ndarray, levels: Levels, particles: int, second: Estimate | None) -> Estimate:
    from scipy.stats import t as student

    rates = pairs[:, 0] * pairs[:, 1]
    n = len(rates)
    rate, error = float(rates.mean()), float(rates.std(ddof=1) / math.sqrt(n))
    if rate <= 0:
        raise RunError("no replica reached the outside: raise particles or give a better score")
    relative = error / rate
    spread = math.exp(float(student.ppf(0.975, n - 1)) * relative)
    chance = float(pairs[:, 1].mean())
    notes = [
        f"{len(levels.values) + 1} stages of {particles} trials, {n} replicas; chance of a "
        f"departure to get out {chance:.3g}"
    ]
    if relative > 0.3:
        notes.append(f"replicas scatter by {relative * math.sqrt(n):.0%}: raise particles")
    value = 1.0 / rate
    out = Estimate(
        value,
        value * relative,
        (value / spread, value * spread),
        "steps",
        "multilevel splitting, t interval of the log over replicas",
        n,
        notes=tuple(notes),
    )
    return out if chance > UNSURE else _second_opinion(out, second)


def _second_opinion(out: Estimate, second: Estimate | None) -> Estimate:
    """Below a chance of 1e-12, call the number reliable only where another method agrees."""
    if second is None:
        return out.with_notes("chance below 1e-12 and no second method: not called reliable")
    low, high = second.interval
    agree = out.interval[0] <= high and low <= out.interval[1]
    verdict = "agrees: reliable" if agree else f"disagrees ({second}): not reliable"
    return out.with_notes(f"second method ({second.method}) {verdict}")


class SplittingRun:
    """Everything that pilot and replicas share."""

    def __init__(
        self,
        process: Process,
        domain: Domain,
        minimum: np.ndarray,
        score: Score,
        particles: int,
        seed: int,
        substeps: int,
    ) -> None:
        self.step = step_of(process, substeps)
        self.domain, self.minimum, self.score = domain, minimum, score
        self.particles, self.seed = particles, seed
        jacobian = np.asarray(jax.jacfwd(drift_of(process))(jnp.asarray(minimum)))
        slowest = -float(np.linalg.eigvals(jacobian).real.max())
        self.relaxation = math.ceil(self.step.per_sgd_step / (process.learning_rate * slowest))
        self.trial = _trial(self.step, domain, score)
        self.walk = _walk(self.step, domain, score)

    def lanes(self, name: str, x: np.ndarray) -> Lanes:
        """Lanes at the points x (m, d), with the keyed streams called `name`."""
        states = jnp.asarray(path_states(self.seed, f"splitting/{name}", np.arange(len(x))))
        points = jnp.asarray(x)
        return Lanes(points, jax.vmap(self.step.memory)(points), states)

    def settle(self, name: str, count: int) -> tuple[np.ndarray, Lanes]:
        """Scores seen while `count` lanes relax around the minimum, and the lanes."""
        lanes = self.lanes(name, np.tile(self.minimum, (count, 1)))
        lanes, _, _, _ = self.walk(lanes, self.minimum, 10 * self.relaxation, np.inf, np.inf)
        scores = np.asarray(jax.vmap(self.score)(lanes.x))
        return scores[np.isfinite(scores)], lanes

    def core(self) -> Levels:
        """Core and first level, from the spread of scores around the minimum."""
        scores, _ = self.settle("pilot", max(self.particles, 512))
        core, first = np.quantile(scores, [0.5, 0.9])
        require(first > core, "score", float(core), "must vary around the minimum")
        return Levels(float(core), (float(first),))

    def pilot(self) -> Levels:
        """Levels such that about a quarter of the trials passes each stage."""
        base = self.core()
        core, values = base.core, list(base.values)
        starts = self.departures("pilot", core, values[0])[1]
        for k in range(500):
            best = self.stage(f"pilot/{k}", starts, core, np.inf)
            if (best.reached == np.inf).mean() >= SURVIVE:
                return Levels(float(core), tuple(values))
            level = float(np.quantile(best.reached, 1 - 1.2 * SURVIVE))
            if level <= values[-1]:  # ties: go to the next distinct score
                above = best.reached[best.reached > values[-1]]
                if not above.size:
                    raise RunError(f"splitting is stuck at score {values[-1]:.6g}: raise particles")
                level = float(above.min())
            passed = self.stage(f"pilot/{k}/again", starts, core, level)
            if not passed.out.any() and not len(passed.entries):
                # The quantile itself is a tie: strictly above it nothing passes.
                level = float(np.nextafter(level, -np.inf))
                passed = self.stage(f"pilot/{k}/tie", starts, core, level)
            if not len(passed.entries):
                return Levels(float(core), tuple(values))
            values.append(level)
            starts = passed.entries
        raise RunError(f"500 levels did not reach the outside (score {values[-1]:.6g})")

    def departures(self, name: str, core: float, first: float) -> Any:
        """(flux per SGD step, points just past the first level)."""
        steps = 40 * self.relaxation
        count = max(64, self.particles // 4)
        _, lanes = self.settle(name + "/settle", count)
        lanes, crossings, time, points = self.walk(lanes, self.minimum, steps, core, first)
        crossings, time = np.asarray(crossings), np.asarray(time)
        kept = np.asarray(points).reshape(-1, len(self.minimum))
        kept = kept[np.isfinite(kept).all(axis=1)]
        if crossings.sum() < 20:
            raise RunError(f"only {int(crossings.sum())} departures from the core were seen")
        return crossings.sum() / time.sum() * self.step.per_sgd_step, kept

    def stage(self, name: str, starts: np.ndarray, core: float, level: float) -> Any:
        """`particles` trials from random `starts` until core, level or outside."""
        rng = generator(self.seed, f"splitting/{name}/choice")
        chosen = starts[rng.integers(0, len(starts), self.particles)]
        lanes = self.lanes(name, chosen)
        return Stage(*self.trial(lanes, core, level))

    def replica(self, levels: Levels, k: int) -> tuple[float, float]:
        """(flux, chance) of one independent repetition."""
        name = f"replica/{k}"
        flux, starts = self.departures(name, levels.core, levels.values[0])
        chance = 1.0
        for i, level in enumerate([*levels.values[1:], np.inf]):
            done = self.stage(f"{name}/{i}", starts, levels.core, level)
            if level == np.inf:
                return float(flux), chance * float(done.out.mean())
            passed = done.entries
            chance *= len(passed) / self.particles
            if not len(passed):
                return float(flux), 0.0
            starts = passed
        return float(flux), chance


class Stage:
    """Outcome of a stage's trials: which got out, where they passed, how high they came."""

    def __init__(self, x: Array, fate: Array, best: Array) -> None:
        fate = np.asarray(fate)
        self.out = fate == 3
        # A jump over level and boundary at once is past the level too.
        self.entries = np.asarray(x)[fate >= 2]
        self.reached = np.where(self.out, np.inf, np.asarray(best))


def _trial(step: Step, domain: Domain, score: Score) -> Callable[..., Any]:
    """Compiled: run every lane until core (fate 1), level (2) or outside (3)."""
    level_of = domain.level
    assert level_of is not None
    advance = jax.vmap(step.advance, in_axes=(None, 0, 0, 0))
    scores, levels = jax.vmap(score), jax.vmap(level_of)

    def body(state: Any) -> Any:
        k, lanes, fate, best, core, goal = state
        y, memory, rng = advance(k, *lanes)
        alive = fate == 0
        y = jnp.where(alive[:, None], y, lanes.x)
        s, out = scores(y), ~(levels(y) < 0)
        new = jnp.where(out, 3, jnp.where(s > goal, 2, jnp.where(s <= core, 1, 0)))
        fate = jnp.where(alive, new, fate)
        best = jnp.where(alive, jnp.maximum(best, s), best)
        return k + 1, Lanes(y, memory, rng), fate, best, core, goal

    @jax.jit
    def run(lanes: Lanes, core: Array, goal: Array) -> Any:
        # A start that already lies outside or past the level (it jumped) is there at once.
        s, out = scores(lanes.x), ~(levels(lanes.x) < 0)
        fate = jnp.where(out, 3, jnp.where(s > goal, 2, 0))
        state = (0, lanes, fate, s, core, goal)
        _, lanes, fate, best, _, _ = jax.lax.while_loop(lambda v: jnp.any(v[2] == 0), body, state)
        return lanes.x, fate, best

    return run


KEEP = 64


def _walk(step: Step, domain: Domain, score: Score) -> Callable[..., Any]:
    """Compiled: walk around the minimum, counting departures past `first` after visits to the core.

    A lane that leaves the domain starts again from the minimum, `home`.
    """
    level_of = domain.level
    assert level_of is not None
    advance = jax.vmap(step.advance, in_axes=(None, 0, 0, 0))
    scores, levels = jax.vmap(score), jax.vmap(level_of)

    def one(k: Array, state: Any) -> Any:
        lanes, home, count, armed, kept, core, first = state
        x, memory, rng = advance(k, *lanes)
        s, out = scores(x), ~(levels(x) < 0)
        leaves = armed & ((s > first) | out)
        slot = jnp.where(leaves & (count < KEEP), count, KEEP)  # slot KEEP is a waste bin
        kept = kept.at[jnp.arange(x.shape[0]), slot].set(x)
        armed = jnp.where(leaves, False, armed | (s <= core)) | out
        x = jnp.where(out[:, None], home, x)  # the minimum lies in the core: armed
        return Lanes(x, memory, rng), home, count + leaves, armed, kept, core, first

    @jax.jit
    def run(lanes: Lanes, home: Array, steps: Array, core: Array, first: Array) -> Any:
        m, d = lanes.x.shape
        kept = jnp.full((m, KEEP + 1, d), jnp.nan)
        armed = scores(lanes.x) <= core
        state = (lanes, home, jnp.zeros(m, dtype=int), armed, kept, core, first)
        lanes, _, count, _, kept, _, _ = jax.lax.fori_loop(0, steps, one, state)
        return lanes, count, jnp.full(m, steps), kept[:, :KEEP]

    return run
