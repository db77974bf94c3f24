"""The fused engine against the C reference: interleaved runs, medians, ratios."""

from __future__ import annotations

import statistics
import time

import reference
from cases import Case, cases


def rate(work) -> float:
    """Units of work per CPU-second of this process."""
    clock = time.process_time()
    done = work()
    return done / (time.process_time() - clock)


def compare(case: Case, rounds: int = 7) -> tuple[float, float, float]:
    """(fused, C, ratio): medians of interleaved rates, and of their ratios."""
    case.fused(), case.c()
    pairs = [(rate(case.fused), rate(case.c)) for _ in range(rounds)]
    mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    return mine, other, statistics.median(a / b for a, b in pairs)


def main() -> bool:
    """Print the table; whether every goal is met."""
    if reference.library() is None:
        print("no gcc: the C reference cannot be built, nothing is compared")
        return True
    print(f"{'case':38s} {'M/s':>8s} {'C':>8s} {'ratio':>6s} {'goal':>5s}")
    good = True
    for case in cases():
        mine, other, ratio = compare(case)
        good &= ratio >= case.goal
        print(
            f"{case.name:38s} {mine / 1e6:8.0f} {other / 1e6:8.0f} {ratio:6.2f} {case.goal:5.2f}"
            f"{'' if ratio >= case.goal else '  below goal'}",
            flush=True,
        )
    return good


if __name__ == "__main__":
    main()
