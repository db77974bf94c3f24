"""Rates of rare jumps by formulas and splitting, against the chain's own master equation."""

from dataclasses import replace

import numpy as np
import pytest

from batchwell import SGD, find_minima, problem
from batchwell.errors import InputError
from batchwell.landscape import Landscape, Saddle, find_saddles
from batchwell.metastable import Evidence, rates_from_counts, saddle_evidence, transition_rates
from batchwell.metastable.evidence import weighed

WELL = problem("tilted-well").loss
SGD_HOT = SGD(WELL, 0.1)
# Mean steps flat -> sharp and sharp -> flat, by batch size: relaxation time over the stationary
# share of the other side, both from the transfer operator (see test_rates).
KNOWN = {
    1: (835.6134973 / 0.9762998327, 835.6134973 / (1 - 0.9762998327)),
    2: (10665.9046 / 0.9996172401, 10665.9046 / (1 - 0.9996172401)),
    3: (132173.0888 / 0.9999940039, 132173.0888 / (1 - 0.9999940039354648)),
}


@pytest.fixture(scope="module")
def landscape() -> Landscape:
    return find_minima(WELL, [[-1.2], [1.2]])


@pytest.fixture(scope="module")
def saddles(landscape: Landscape) -> tuple[Saddle, ...]:
    return find_saddles(landscape)


def misses(rows: list[Evidence], widest: float) -> list[float]:
    """Distances from the truth in stated errors."""
    assert all(r.error < widest for r in rows)
    return [(-r.log_rate - np.log(KNOWN[r.batch_size][r.source])) / r.error for r in rows]


def test_formula_is_within_its_stated_error(
    landscape: Landscape, saddles: tuple[Saddle, ...]
) -> None:
    rows = saddle_evidence(SGD_HOT, landscape, saddles, [1, 2, 3])
    assert {(r.source, r.target) for r in rows} == {(0, 1), (1, 0)}
    assert np.abs(misses(rows, 0.3)).max() < 1.5
    # V / eps is 2.5 for the flat well at B = 1: nothing is said there.
    assert (0, 1) not in {(r.source, r.batch_size) for r in rows}
    # Negative control: a factor 2 is rejected where the law is sharp.
    assert min(abs(z + np.log(2) / r.error) for z, r in zip(misses(rows, 0.3), rows, strict=True)
               if r.batch_size == 3) > 3  # fmt: skip


@pytest.mark.slow
def test_splitting_counts_what_stays_across(
    landscape: Landscape, saddles: tuple[Saddle, ...]
) -> None:
    rows = saddle_evidence(SGD_HOT, landscape, saddles, [1, 3], "splitting", seed=2)
    # Four comparisons of 4 standard errors, from 8 replicas each.
    assert np.abs(misses(rows, 0.35)).max() < 4
    doubled = [replace(r, log_rate=r.log_rate + np.log(2)) for r in rows]
    assert np.abs(misses(doubled, 0.35)).max() > 4


def test_rare_rates_come_from_the_formula_where_nothing_was_seen(
    landscape: Landscape, saddles: tuple[Saddle, ...]
) -> None:
    rates = transition_rates(
        landscape, 0.1, [1, 2, 3], paths=16, horizon=40_000, saddles=saddles, seed=1
    )
    row = next(e for e in rates.escapes if (e.state, e.batch_size) == ("C", 3))
    assert row.exits == 0
    assert abs(np.log(row.time.value / KNOWN[3][1])) < 0.5
    assert row.time.interval[0] < KNOWN[3][1] < row.time.interval[1]
    assert "Eyring-Kramers" in row.evidence[1].method
    # Without it only a bound is known.
    blind = rates_from_counts(landscape, SGD_HOT, rates.counts)
    other = next(e for e in blind.escapes if (e.state, e.batch_size) == ("C", 3))
    assert other.time.interval[1] / other.time.interval[0] > 3 * (
        row.time.interval[1] / row.time.interval[0]
    )


def test_what_disagrees_with_counted_jumps_loses_and_is_named(
    landscape: Landscape,
) -> None:
    rates = transition_rates(landscape, 0.1, [1, 2], paths=16, horizon=40_000, seed=1)
    good = Evidence(0, 1, 2, -np.log(KNOWN[2][0]), 0.2, "a good formula")
    bad = Evidence(0, 1, 1, -np.log(KNOWN[1][0]) + 3.0, 0.2, "a bad formula")
    merged = rates_from_counts(landscape, SGD_HOT, rates.counts, [good, bad])
    assert any("a bad formula disagrees" in n for n in merged.notes)
    assert not any("a good formula" in n for n in merged.notes)
    said = [e for r in merged.escapes for e in r.evidence if e.method == "a bad formula"]
    assert said
    assert all("not used" in e.notes[-1] for e in said)


def test_evidence_weighs_by_its_inverse_variance() -> None:
    jumps, steps = np.zeros((1, 2, 2)), np.array([[0.0, 0.0]])
    row = Evidence(0, 1, 4, np.log(1e-3), 0.5, "m")
    merged, exposure, used, notes = weighed([row], [4], jumps, steps, "ab")
    assert merged[0, 0, 1] == pytest.approx(4.0)
    assert exposure[0, 0, 1] == pytest.approx(4000.0)
    assert (used, notes) == ([row], [])


def test_refusals(landscape: Landscape, saddles: tuple[Saddle, ...]) -> None:
    with pytest.raises(InputError, match="method = 'guess'"):
        saddle_evidence(SGD_HOT, landscape, saddles, [1], "guess")
    with pytest.raises(InputError, match="momentum"):
        saddle_evidence(replace(SGD_HOT, momentum=0.5), landscape, saddles, [1], "splitting")
