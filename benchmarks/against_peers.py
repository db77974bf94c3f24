"""The fused engine against diffrax, torchsde, NumPy and plain JAX: interleaved, ratios."""

from __future__ import annotations

import numpy as np

import peers
from cases import DENSE, MODES, PLANE, WELL, Case, ensemble_case, exit_case, logistic_case
from timing import interleaved

CASES = {
    "1-D": (WELL, [-1.0], 16384, 200, "well"),
    "2-D": (PLANE, [-1.0, 0.0], 16384, 200, "plane"),
    "10-D": (DENSE, np.full(10, 0.5), 4096, 100, "dense"),
}


def ratios(mine: Case, other, work: float, rounds: int = 3) -> tuple[float, float, float]:
    """Medians: (fused rate, peer's rate, ratio); `work` 0 means that the peer returns its own."""

    def peer() -> float:
        done = other()
        return work or float(done)

    return interleaved(mine.fused, peer, rounds)


def main() -> None:
    """Print the table."""
    print(f"{'case':36s} {'peer':10s} {'fused M/s':>10s} {'peer M/s':>9s} {'ratio':>7s}")
    for name, (process, x0, paths, steps, c_name) in CASES.items():
        mine = ensemble_case(name, process, x0, 16384, 1000, 0.0, c_name)
        for peer, make in peers.ENSEMBLES.items():
            row(name, peer, mine, lambda: make(name, paths, steps), paths * steps)  # noqa: B023
    for mode in MODES:
        for batch in (1, 8, 40) if mode == "reshuffle" else (1, 8, 64):
            mine, steps = logistic_case(mode, batch), 2000 // batch
            if mode == "without_replacement":
                steps = min(steps, 25)  # JAX's choice takes long
            for peer, make in peers.LOGISTIC.items():
                work = 256 * steps * batch
                row(mine.name, peer, mine, lambda: make(mode, batch, 256, steps), work)  # noqa: B023
    for peer, make in peers.EXITS.items():
        row("first exits", peer, exit_case(), lambda: make(512, 20_000), 0.0)  # noqa: B023


def row(name: str, peer: str, mine: Case, make, work: float) -> None:
    """One line; a peer that is not installed is named, not skipped in silence."""
    try:
        other = make()
        a, b, ratio = ratios(mine, other, work)
    except ImportError as missing:
        print(f"{name:36s} {peer:10s} not installed ({missing.name})")
        return
    print(f"{name:36s} {peer:10s} {a / 1e6:10.0f} {b / 1e6:9.2f} {ratio:7.0f}", flush=True)


if __name__ == "__main__":
    main()
