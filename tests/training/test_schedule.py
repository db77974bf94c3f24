"""Batch-size schedules: pure, in examples, within their limits; what is wrong is refused."""

import copy
import json
import math
from typing import Any

import numpy as np
import pytest

from batchwell.errors import InputError
from batchwell.estimate import Estimate
from batchwell.training.noise import GradientNoise
from batchwell.training.schedule import (
    Reading,
    Schedule,
    init,
    learning_rate_factor,
    preview,
    update,
)
from batchwell.training.schedules import SCHEDULES, as_schedule

ARGUMENTS: dict[str, dict[str, Any]] = {
    "constant": {"batch_size": 32},
    "steps": {"plan": "0:32 2k:64 5k:256"},
    "geometric": {"batch_size": 32, "factor": 2, "every": "2k"},
    "linear": {"batch_size": 32, "to": 256, "over": "8k"},
    "cosine": {"batch_size": 32, "to": 256, "over": "8k"},
    "plateau": {"batch_size": 32, "patience": 1000},
    "noise_scale": {"batch_size": 32},
    "variance_to_progress": {"batch_size": 32, "total": 10_000},
    "annealed": {"batch_size": 32, "total": 20_000},
}


def estimate(value: float, low: float, high: float, unit: str = "1") -> Estimate:
    return Estimate(value, (high - low) / 4, (low, high), unit, "given", 10)


def noise(scale: float, trace: float = 4.0, determined: bool = True) -> GradientNoise:
    square = trace / scale
    return GradientNoise(
        estimate(square, 0.9 * square if determined else -square, 1.1 * square),
        estimate(trace, 0.9 * trace, 1.1 * trace),
        estimate(scale, 0.8 * scale, 1.25 * scale if determined else math.inf, "examples"),
        batch_size=32,
        examples=320,
        steps=10,
    )


def make(name: str, **options: Any) -> Schedule:
    return SCHEDULES[name](**ARGUMENTS[name], **options)


def falling(examples: int, size: int) -> Reading:
    """Loss that falls and then stays, under noise whose scale grows."""
    loss = 0.3 + math.exp(-examples / 1000)
    return Reading(examples, loss, noise(20 + examples / 20), learning_rate=0.1)


def sizes(schedule: Schedule, total: int = 20_000) -> list[int]:
    return [row[1] for row in preview(schedule, total, readings=falling).rows]


def test_every_schedule_has_its_example() -> None:
    assert set(ARGUMENTS) == set(SCHEDULES)


@pytest.mark.parametrize("name", SCHEDULES)
def test_contract(name: str) -> None:
    schedule = make(name, cap=200, multiple_of=24)
    state, clock = init(schedule), 0
    while clock < 20_000:
        size = state["batch_size"]
        assert size % 24 == 0
        assert 24 <= size <= 200
        clock += size
        before = copy.deepcopy(state)
        reading = Reading(clock, 1.0 / clock, noise(50.0), 0.1, size)
        after = update(schedule, state, reading)
        assert state == before  # pure: what it was given is as it was
        assert after == update(schedule, json.loads(json.dumps(state)), reading)
        assert after["batch_size"] >= size
        state = after
    assert len(json.dumps(state)) < 2500
    json.dumps(schedule.describe())


@pytest.mark.parametrize("name", SCHEDULES)
def test_growing_ones_grow(name: str) -> None:
    seen = sizes(make(name))
    assert seen == sorted(seen)
    assert (seen[-1] > seen[0]) == (name != "constant")


def test_steps_by_hand() -> None:
    out = preview(SCHEDULES["steps"]("0:100 1k:200 3k:500"), 5000, learning_rate=0.1)
    assert [row[:2] for row in out.rows] == [(0, 100), (1000, 200), (3000, 500), (5000, 500)]
    assert [row[3] for row in out.rows] == [0, 10, 20, 24]
    assert {row[2] for row in out.rows} == {0.1}


def test_tokens_are_a_clock_too() -> None:
    plan = SCHEDULES["steps"]("0:4 20k:8", unit="tokens", tokens_per_example=500)
    assert [row[:2] for row in preview(plan, 80).rows] == [(0, 4), (40, 8), (80, 8)]


def test_clock_is_in_examples_not_in_iterations() -> None:
    small, large = (SCHEDULES["steps"](f"0:{b} 1k:{2 * b}") for b in (10, 100))
    assert preview(small, 2000).rows[1][0] == preview(large, 2000).rows[1][0] == 1000


@pytest.mark.parametrize(("coupling", "power"), [("none", 0.0), ("linear", 1.0), ("sqrt", 0.5)])
def test_coupling(coupling: str, power: float) -> None:
    plan = SCHEDULES["steps"]("0:32 1k:128", coupling=coupling)
    out = preview(plan, 2000, learning_rate=0.1)
    assert out.rows[1][2] == pytest.approx(0.1 * 4**power)
    with_reference = SCHEDULES["steps"]("0:32", coupling=coupling, reference=64)
    assert learning_rate_factor(with_reference, 32, 0) == pytest.approx(0.5**power)


def test_warm_up_is_in_examples() -> None:
    plan = SCHEDULES["constant"](50, warmup=200)
    factors = [learning_rate_factor(plan, 50, at) for at in (0, 50, 100, 150, 200)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_linear_and_cosine_meet_at_their_middle() -> None:
    for name in ("linear", "cosine"):
        plan = make(name)
        middle = update(plan, init(plan), Reading(4000))["batch_size"]
        assert middle == (32 + 256) // 2
        assert update(plan, init(plan), Reading(9000))["batch_size"] == 256
    quarter = update(make("cosine"), init(make("cosine")), Reading(2000))["batch_size"]
    assert quarter == math.floor(32 + 224 * (1 - math.cos(math.pi / 4)) / 2)


def test_noise_scale_follows_what_is_determined() -> None:
    plan = make("noise_scale", multiple_of=8)
    state = init(plan)
    assert update(plan, state, Reading(100, noise=noise(100.0)))["batch_size"] == 96
    # Not determined: the lower end of the interval is all that is known.
    unsure = noise(100.0, determined=False)
    assert update(plan, state, Reading(100, noise=unsure))["batch_size"] == 80
    assert update(plan, state, Reading(100))["batch_size"] == 32


def test_hysteresis() -> None:
    plan = make("noise_scale", hysteresis=2.0)
    assert update(plan, init(plan), Reading(100, noise=noise(63.0)))["batch_size"] == 32
    assert update(plan, init(plan), Reading(100, noise=noise(65.0)))["batch_size"] == 65


def test_a_measured_schedule_shrinks_only_when_told() -> None:
    low = Reading(100, noise=noise(5.0))
    keeps, follows = make("noise_scale"), make("noise_scale", may_shrink=True)
    assert update(keeps, init(keeps), low)["batch_size"] == 32
    assert update(follows, init(follows), low)["batch_size"] == 5


def test_plateau_waits_for_patience() -> None:
    plan = make("plateau")
    flat = preview(plan, 3300, readings=lambda e, b: Reading(e, 1.0))
    # A window of 200 ends with an update of 32, at 224; the first sets the best, then 1000 without
    # a fall are over with the fifth after it.
    assert flat.rows[1][0] == 6 * 224
    assert flat.rows[1][1] == 160
    falls = preview(plan, 3300, readings=lambda e, b: Reading(e, math.exp(-e / 1000)))
    assert falls.rows[-1][1] == 32


@pytest.mark.parametrize(("trace", "grows"), [(1e-3, False), (1e3, True)])
def test_variance_to_progress_weighs_noise_against_progress(trace: float, grows: bool) -> None:
    plan = make("variance_to_progress")

    def steady(examples: int, size: int) -> Reading:
        return Reading(examples, 1 - examples / 20_000, noise(50.0, trace), learning_rate=0.1)

    assert (preview(plan, 5_000, readings=steady).rows[-1][1] > 32) == grows


def test_variance_to_progress_has_its_factor_right() -> None:
    """Grows just above eta tr Sigma / (4 B) = rate x examples to come, not at half or twice it."""
    plan = SCHEDULES["variance_to_progress"](50, total=10_000)
    rate, eta, at = 1e-5, 0.1, 1000  # windows end at 500 and 1000
    threshold = rate * (10_000 - at) * 4 * 50 / eta

    def size_after(trace: float) -> int:
        def steady(examples: int, size: int) -> Reading:
            return Reading(examples, 1 - rate * examples, noise(50.0, trace), learning_rate=eta)

        return preview(plan, at + 50, readings=steady).rows[-1][1]

    assert size_after(threshold * 0.98) == 50
    assert size_after(threshold * 1.02) == 100


def test_variance_to_progress_without_an_end_waits_for_progress_to_stop() -> None:
    plan = SCHEDULES["variance_to_progress"](32)

    def late(slope: float) -> int:
        def reading(examples: int, size: int) -> Reading:
            return Reading(examples, 1 - slope * examples, noise(50.0), learning_rate=0.1)

        return preview(plan, 20_000, readings=reading).rows[-1][1]

    assert late(1e-6) == 32
    assert late(0.0) > 32


class Valley:
    """Exact moments of SGD in a noisy quadratic valley, with a floor that slopes down steadily."""

    def __init__(self, progress: float = 2e-5) -> None:
        # Curvatures are quantiles of the exponential distribution of mean 0.7; tr Sigma is 4.
        self.curvature = -0.7 * np.log1p(-(np.arange(300) + 0.5) / 300)
        self.weight = np.full(300, 4 / 300)
        self.eta, self.total, self.first = 0.1, 57_000, 16
        self.progress = progress  # of an update

    def end(self, size_of: Any) -> tuple[float, int]:
        """Loss and updates at the end; `size_of(examples, loss, |grad F|^2)` says the next size."""
        spread, shrink = np.zeros(300), (1 - self.eta * self.curvature) ** 2
        clock, size, updates = 0, self.first, 0
        while True:
            square = self.curvature**2 @ spread + self.progress / self.eta
            loss = 0.1 + 0.5 * float(self.curvature @ spread) - self.progress * updates
            if clock >= self.total:
                return loss, updates
            spread = shrink * spread + self.eta**2 * self.weight / size
            clock, updates = clock + size, updates + 1
            size = size_of(clock, loss, float(square))

    def under(self, schedule: Schedule) -> tuple[float, int, dict[str, Any]]:
        held = {"state": init(schedule)}

        def follow(clock: int, loss: float, square: float) -> int:
            trace = float(self.weight.sum())
            sure = [estimate(v, v, v) for v in (square, trace, trace / square)]
            found = GradientNoise(*sure, batch_size=16, examples=320, steps=20)
            size = held["state"]["batch_size"]
            reading = Reading(clock, loss, found, self.eta, size)
            held["state"] = update(schedule, held["state"], reading)
            return int(held["state"]["batch_size"])

        return *self.end(follow), held["state"]["rule"]


@pytest.fixture(scope="module")
def valley() -> Valley:
    return Valley()


@pytest.fixture(scope="module")
def annealed(valley: Valley) -> tuple[float, int, dict[str, Any]]:
    return valley.under(SCHEDULES["annealed"](16, total=valley.total, tolerance=0.0))


def test_annealed_is_below_every_step_made_by_hand(valley: Valley, annealed: Any) -> None:
    steps = [
        valley.end(lambda clock, *_, s=s, b=b: b if clock >= s * valley.total else 16)[0]
        for s in (0.5, 0.8, 0.9, 0.95, 0.97, 0.99, 1.0)
        for b in (64, 128, 256)
    ]
    assert annealed[0] < min(steps)


@pytest.mark.parametrize(("of_ratio", "of_memory"), [(2, 1), (0.5, 1), (1, 2), (1, 0.5)])
def test_annealed_has_its_factors_right(
    valley: Valley, annealed: Any, of_ratio: float, of_memory: float
) -> None:
    """With q or m off by a factor of 2 the loss ends higher: the plan is the optimum."""
    ratio, length = annealed[2]["plan"]

    def loss(q: float, m: float) -> float:
        def size(clock: int, *_: float) -> int:
            return max(16, math.floor(16 * q * math.exp((clock - valley.total) / (q * m))))

        return valley.end(size)[0]

    best = loss(ratio, length / ratio)
    assert best == pytest.approx(annealed[0], rel=1e-3)
    assert loss(of_ratio * ratio, of_memory * length / ratio) > best


def test_annealed_gives_up_what_it_was_told_to_for_fewer_updates(
    valley: Valley, annealed: Any
) -> None:
    for tolerance in (0.01, 0.05):
        plan = SCHEDULES["annealed"](16, total=valley.total, tolerance=tolerance)
        loss, updates, _ = valley.under(plan)
        assert updates < annealed[1]
        assert loss < (1 + 1.5 * tolerance) * annealed[0]


def test_annealed_stays_where_noise_eats_little() -> None:
    """Where an update wins eta |grad F|^2, and that is what is seen, no noise holds the loss up."""
    plan = SCHEDULES["annealed"](32, total=20_000)

    def gross(net_share: float) -> int:
        square, eta = 0.08, 0.1
        rate = net_share * eta * square / 32

        def reading(examples: int, size: int) -> Reading:
            return Reading(examples, 9 - rate * examples, noise(50.0), learning_rate=eta)

        return preview(plan, 20_000, readings=reading).rows[-1][1]

    assert gross(0.6) == 32
    assert gross(0.4) > 32


@pytest.mark.parametrize(
    ("make_it", "words"),
    [
        (lambda: SCHEDULES["steps"]("0:64 1k:32"), "may_shrink=True"),
        (lambda: SCHEDULES["linear"](64, to=32, over=100), "may_shrink=True"),
        (lambda: SCHEDULES["cosine"](64, to=32, over=100), "may_shrink=True"),
        (lambda: SCHEDULES["geometric"](64, factor=0.5, every=100), "may_shrink=True"),
        (lambda: SCHEDULES["steps"]("1k:64"), "must begin at 0"),
        (lambda: SCHEDULES["steps"]("0:64 2k:128 1k:256"), "must rise"),
        (lambda: SCHEDULES["steps"]("0:64 2k"), "must look like 20M:1024"),
        (lambda: SCHEDULES["steps"]("0:6.5"), "must be a count"),
        (lambda: SCHEDULES["steps"]("0:0"), "at least 1"),
        (lambda: SCHEDULES["constant"](32, coupling="cubic"), "none, linear, sqrt"),
        (lambda: SCHEDULES["constant"](32, capp=3), "capp"),
        (lambda: SCHEDULES["constant"](32, cap=30, multiple_of=32), "leaves no multiple"),
        (lambda: SCHEDULES["constant"](32, hysteresis=0.5), "at least 1"),
        (lambda: SCHEDULES["plateau"](32, patience=100, factor=1), "above 1"),
        (lambda: as_schedule("0;32"), "must look like"),
    ],
)
def test_refused(make_it: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        make_it()
    assert "\n" not in str(caught.value)


def test_shrinking_is_done_when_told() -> None:
    assert sizes(SCHEDULES["steps"]("0:64 1k:32", may_shrink=True), 2000) == [64, 32, 32]


def test_preview_says_what_it_does_not_know() -> None:
    assert "measured loss and noise" in str(preview(make("variance_to_progress"), 1000))
    assert preview(make("steps"), 1000).notes == ()
