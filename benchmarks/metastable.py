"""How well a network of rates predicts SGD on a real loss that it did not see (T22).

Prints, for the breast-cancer network at one learning rate: what counting jumps costs; escape times
predicted for batch sizes left out of the fit against measured ones, and against a second,
independent count; shares of each basin over time against independent runs; and the best schedules,
predicted and run. CPU seconds are of this process, all threads.

    python benchmarks/metastable.py --learning-rate 0.5 --batch-sizes 2,3,4,6,8,16
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

import batchwell as bw
from batchwell.landscape import Landscape, explore, find_minima, with_explored
from batchwell.metastable import (
    JumpCounts,
    MarkovNetwork,
    TransitionRates,
    check_against_runs,
    count_jumps,
    escape_time,
    optimal_schedule,
    rates_from_counts,
    verify_schedules,
)
from batchwell.streams import generator
from timing import spent

ENOUGH = 30  # exits from which a measured escape time counts
WITHIN = 0.15  # of its logarithm


def landscape_of(starts: int, learning_rate: float, threads: int) -> Landscape:
    """Minima from random starts, and those that SGD at B = 4 visits from there."""
    problem = bw.problem("breast-cancer-network")
    x = problem.start_scale * generator(0, "search-starts").standard_normal(
        (starts, problem.loss.dim)
    )
    found = find_minima(problem.loss, x, problem.symmetry)
    origins = np.array([m.x for m in found.minima]).repeat(2, axis=0)
    sgd = bw.SGD(problem.loss, learning_rate, 4)
    return with_explored(found, explore(sgd, found, origins, 8000, 800, threads=threads))


def count(
    sgd: bw.SGD, landscape: Landscape, sizes: Sequence[int], args: argparse.Namespace, seed: int
) -> list[JumpCounts]:
    out = []
    for b in sizes:
        chain = bw.SGD(sgd.loss, sgd.learning_rate, b)
        how = {"seed": seed, "threads": args.threads}
        seconds, found = spent(lambda: count_jumps(chain, landscape, args.paths, **how))  # noqa: B023
        out.append(found)
        lost = (found.series[:, -1] == len(landscape.minima)).mean()
        print(f"  B = {b}: {seconds:.0f} CPU s, {lost:.0%} of paths end outside listed minima",
              flush=True)  # fmt: skip
    return out


def errors_of_logs(
    network: MarkovNetwork, measured: JumpCounts, labels: Sequence[str]
) -> list[tuple[str, float, float]]:
    """(state, measured time, relative error of the predicted log time) where it was measured."""
    rows = []
    for i, label in enumerate(labels[:-1]):
        exits = float(measured.jumps[i].sum())
        if exits >= ENOUGH:
            time_measured = float(measured.exposure[i] / exits)
            predicted = escape_time(network, label, measured.batch_size).value
            if time_measured > 2:
                error = np.log(predicted) / np.log(time_measured) - 1
                rows.append((label, time_measured, float(error)))
    return rows


def report_errors(name: str, cells: dict[int, list[tuple[str, float, float]]]) -> None:
    flat = [e for rows in cells.values() for _, _, e in rows]
    if not flat:
        print(f"{name}: no cell with {ENOUGH} exits")
        return
    good = sum(abs(e) <= WITHIN for e in flat)
    print(f"{name}: {good} of {len(flat)} cells within {WITHIN:.0%}; median |error| "
          f"{np.median(np.abs(flat)):.1%}, worst {max(map(abs, flat)):.1%}")  # fmt: skip
    for b, rows in cells.items():
        worst = max((abs(e) for _, _, e in rows), default=0.0)
        print(f"  B = {b}: {len(rows)} basins, worst {worst:.1%}")


def left_out(
    landscape: Landscape, sgd: bw.SGD, counts: list[JumpCounts], rates: TransitionRates
) -> dict[int, list[tuple[str, float, float]]]:
    """Errors at each inner batch size of a fit that did not see it."""
    out = {}
    for k, held in enumerate(counts[1:-1], 1):
        rest = counts[:k] + counts[k + 1 :]
        network = rates_from_counts(landscape, sgd, rest, draws=0).network
        known = {network.labels[i] for i in network.edges[:, 0]}
        rows = errors_of_logs(network, held, rates.labels)
        out[held.batch_size] = [r for r in rows if r[0] in known]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--learning-rate", type=float, default=0.5)
    parser.add_argument("--batch-sizes", default="2,3,4,6,8,16")
    parser.add_argument("--starts", type=int, default=200)
    parser.add_argument("--paths", type=int, default=8)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--examples", type=int, default=80_000)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    sizes = [int(b) for b in args.batch_sizes.split(",")]
    seconds, landscape = spent(lambda: landscape_of(args.starts, args.learning_rate, args.threads))
    print(f"{len(landscape.minima)} minima, {seconds:.0f} CPU s", flush=True)
    sgd = bw.SGD(landscape.loss, args.learning_rate)
    counts = count(sgd, landscape, sizes, args, seed=0)
    seconds, rates = spent(lambda: rates_from_counts(landscape, sgd, counts))
    print(f"fit: {seconds:.1f} CPU s; {rates.spreads}")
    for note in rates.notes:
        print(f"  {note}")
    report_errors("a batch size left out", left_out(landscape, sgd, counts, rates))
    print("second count:")
    again = count(sgd, landscape, sizes, args, seed=1)
    fresh = {c.batch_size: errors_of_logs(rates.network, c, rates.labels) for c in again}
    report_errors("an independent count", fresh)
    cells = inside = within = 0
    for c in check_against_runs(
        rates.network, sgd, landscape, sizes, [1000, 4000, 16000],
        paths=args.runs, seed=7, threads=args.threads,
    ):  # fmt: skip
        print(f"  {c.name}: {c.inside} of {c.cells} inside", flush=True)
        cells, inside, within = cells + c.cells, inside + c.inside, within + c.within
    print(f"shares over time: {inside} of {cells} inside the measured interval, {within} within "
          "joint errors")  # fmt: skip
    for objective in ("flattest", "lowest_loss"):
        plan = optimal_schedule(rates.network, args.examples, objective)
        print(f"{plan.objective}\n  {plan.verdict}")
        seen = verify_schedules(
            plan, sgd, landscape, rivals=6, paths=args.runs, seed=11, threads=args.threads
        )
        for check in seen.checks:
            print(f"  {check.name}: predicted {check.predicted_score}, measured "
                  f"{check.measured_score}; {check.inside} of {check.cells} shares inside")  # fmt: skip
        print(f"  {seen.verdict} ({seen.gain}); shares inside: {seen.inside}", flush=True)


if __name__ == "__main__":
    main()
