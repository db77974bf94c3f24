"""The fused engine against the C reference: interleaved runs, medians, ratios."""

from __future__ import annotations

import reference
from cases import cases
from timing import interleaved


def main() -> bool:
    """Print the table; whether every goal is met."""
    if reference.library() is None:
        print("no gcc: the C reference cannot be built, nothing is compared")
        return True
    print(f"{'case':38s} {'M/s':>8s} {'C':>8s} {'ratio':>6s} {'goal':>5s}")
    good = True
    for case in cases():
        mine, other, ratio = interleaved(case.fused, case.c, 7)
        good &= ratio >= case.goal
        print(
            f"{case.name:38s} {mine / 1e6:8.0f} {other / 1e6:8.0f} {ratio:6.2f} {case.goal:5.2f}"
            f"{'' if ratio >= case.goal else '  below goal'}",
            flush=True,
        )
    return good


if __name__ == "__main__":
    main()
