"""Do measured schedules find what a grid of hand-made ones finds? Digits, a fifth of labels random.

    python examples/adaptive.py [--seeds 10] [--epochs 40] [--learning-rate 0.3]

Every schedule sees the same examples from the same starts. The best hand-made one is picked
afterwards, with the answers in view; the measured ones run with their defaults.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

from batchwell.training import SCHEDULES
from batchwell.training.schedules import as_schedule
from training import Outcome, digits, mean, shown, table, train

FIRST, CAP = 16, 512


def hand_made(examples: int) -> dict[str, Any]:
    """A grid of constants and of steps at shares of the training."""
    plans: dict[str, Any] = {f"constant {size}": size for size in (16, 64, 256)}
    for share in (0.5, 0.7, 0.8, 0.85, 0.9, 0.95):
        for size in (64, 256):
            plans[f"16, {size} from {share:g}"] = f"0:16 {round(share * examples)}:{size}"
    for one, two in ((0.5, 0.8), (0.7, 0.9), (0.8, 0.9)):
        first, second = round(one * examples), round(two * examples)
        plans[f"16, 64 from {one:g}, 256 from {two:g}"] = f"0:16 {first}:64 {second}:256"
    return {name: as_schedule(plan) for name, plan in plans.items()}


def measured(examples: int) -> dict[str, Any]:
    """The schedules that look at the training, untuned."""
    return {
        "variance_to_progress": SCHEDULES["variance_to_progress"](FIRST, total=examples, cap=CAP),
        "variance_to_progress, end unknown": SCHEDULES["variance_to_progress"](FIRST, cap=CAP),
        "noise_scale": SCHEDULES["noise_scale"](FIRST, cap=CAP),
        "plateau, patience 5 %": SCHEDULES["plateau"](
            FIRST, patience=max(examples // 20, 5), cap=CAP
        ),
    }


def run(
    seeds: int = 10, epochs: int = 40, learning_rate: float = 0.3
) -> tuple[str, Mapping[str, list[Outcome]]]:
    """Answer as Markdown, and all outcomes by schedule."""
    data = digits(flip=0.2)
    examples = epochs * len(data.train)
    by_hand, by_measurement = hand_made(examples), measured(examples)
    outcomes = {
        name: [
            train(data, plan, examples, seed, learning_rate=learning_rate, decay=1e-3)
            for seed in range(seeds)
        ]
        for name, plan in {**by_hand, **by_measurement}.items()
    }
    best = min(by_hand, key=lambda name: mean(o.loss for o in outcomes[name]).value)
    rows = []
    for name, found in outcomes.items():
        ratio = mean(o.loss / b.loss for o, b in zip(found, outcomes[best], strict=True))
        updates = mean(o.updates for o in found)
        test = mean(o.test_loss for o in found)
        label = f"**{name}** (best by hand)" if name == best else name
        loss = shown(mean(o.loss for o in found))
        rows.append([label, loss, f"{updates.value:.0f}", shown(ratio, 4), shown(test)])
    head = ["schedule", "training loss", "updates", "loss over the best by hand's", "test loss"]
    return table(head, rows), outcomes


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--learning-rate", type=float, default=0.3)
    options = parser.parse_args()
    start = time.process_time()
    text, _ = run(options.seeds, options.epochs, options.learning_rate)
    print(text)
    print(f"\n{options.seeds} seeds, {time.process_time() - start:.0f} s of processor time")


if __name__ == "__main__":
    main()
