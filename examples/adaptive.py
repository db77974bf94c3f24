"""Do measured schedules find what a grid of hand-made ones finds? A fifth of the labels is random.

    python examples/adaptive.py [digits breast_cancer wine teacher] [--seeds 10] [--learning-rate 0.3]

Every schedule sees the same examples from the same starts. The best hand-made one is picked
afterwards, with the answers in view; the measured ones run with their defaults.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

from batchwell.training import SCHEDULES
from batchwell.training.schedules import as_schedule
from training import (
    Data,
    Outcome,
    breast_cancer,
    digits,
    mean,
    shown,
    table,
    teacher,
    train,
    wine,
)

FIRST, CAP = 16, 512
EPOCHS, EXAMPLES = 40, 20_000  # at least so many of both
DATA: dict[str, Callable[[float], Data]] = {
    "digits": digits,
    "breast_cancer": breast_cancer,
    "wine": wine,
    "teacher": teacher,
}


def hand_made(examples: int, largest: int) -> dict[str, Any]:
    """A grid of constants and of steps at shares of the training."""
    top = min(256, largest)
    plans: dict[str, Any] = {f"constant {size}": size for size in (16, 64, top)}
    for share in (0.5, 0.7, 0.8, 0.85, 0.9, 0.95):
        for size in (64, top):
            plans[f"16, {size} from {share:g}"] = f"0:16 {round(share * examples)}:{size}"
    for one, two in ((0.5, 0.8), (0.7, 0.9), (0.8, 0.9)):
        first, second = round(one * examples), round(two * examples)
        plans[f"16, 64 from {one:g}, {top} from {two:g}"] = f"0:16 {first}:64 {second}:{top}"
    return {name: as_schedule(plan) for name, plan in plans.items()}


def measured(examples: int) -> dict[str, Any]:
    """The schedules that look at the training, untuned."""
    return {
        "annealed": SCHEDULES["annealed"](FIRST, total=examples, cap=CAP),
        "variance_to_progress": SCHEDULES["variance_to_progress"](FIRST, total=examples, cap=CAP),
        "variance_to_progress, end unknown": SCHEDULES["variance_to_progress"](FIRST, cap=CAP),
        "noise_scale": SCHEDULES["noise_scale"](FIRST, cap=CAP),
        "plateau, patience 5 %": SCHEDULES["plateau"](
            FIRST, patience=max(examples // 20, 5), cap=CAP
        ),
    }


def run(
    name: str, seeds: int = 10, learning_rate: float = 0.3, examples: int | None = None
) -> tuple[str, Mapping[str, list[Outcome]]]:
    """Answer as Markdown, and all outcomes by schedule."""
    data = DATA[name](0.2)
    count = examples or max(EPOCHS * len(data.train), EXAMPLES)
    by_hand, by_measurement = hand_made(count, len(data.train)), measured(count)
    outcomes = {
        plan: [
            train(data, schedule, count, seed, learning_rate=learning_rate, decay=1e-3)
            for seed in range(seeds)
        ]
        for plan, schedule in {**by_hand, **by_measurement}.items()
    }
    best = min(by_hand, key=lambda plan: mean(o.loss for o in outcomes[plan]).value)
    rows = [_row(plan, found, outcomes[best], plan == best) for plan, found in outcomes.items()]
    head = ["schedule", "training loss", "updates", "loss over the best by hand's", "test loss"]
    return table(head, rows), outcomes


def _row(plan: str, found: list[Outcome], best: list[Outcome], is_best: bool) -> list[str]:
    ratio = mean(o.loss / b.loss for o, b in zip(found, best, strict=True))
    updates, test = mean(o.updates for o in found), mean(o.test_loss for o in found)
    label = f"**{plan}** (best by hand)" if is_best else plan
    loss = shown(mean(o.loss for o in found))
    return [label, loss, f"{updates.value:.0f}", shown(ratio, 4), shown(test)]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="*", default=list(DATA), choices=list(DATA))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=0.3)
    options = parser.parse_args()
    for name in options.data:
        start = time.process_time()
        text, _ = run(name, options.seeds, options.learning_rate)
        spent = time.process_time() - start
        print(f"## {name}\n\n{text}\n\n{options.seeds} seeds, {spent:.0f} s of processor time\n")


if __name__ == "__main__":
    main()
