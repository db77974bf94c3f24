"""Networks whose answers are known in closed form."""

import numpy as np
import pytest

from batchwell.errors import InputError, RunError
from batchwell.metastable import (
    MarkovNetwork,
    Stage,
    escape_time,
    known_network,
    occupation,
    rate_matrix,
    relaxation_times,
    share_below,
    stationary_law,
)


def pair(a: float = 0.02, b: float = 0.06, sizes: tuple[int, ...] = (1,)) -> MarkovNetwork:
    return known_network(["a", "b"], sizes, [[[0, a], [b, 0]]] * len(sizes))


def test_two_states_relax_at_the_sum_of_their_rates() -> None:
    net, k = pair(), 0.08
    path = occupation(net, "a", [Stage(1, 10), Stage(1, 10)])
    for steps, law in zip((0, 10, 20), path, strict=True):
        want = 0.75 + 0.25 * np.exp(-k * steps)
        assert law["a"].value == pytest.approx(want, abs=1e-12)
    assert relaxation_times(net, 1)[0].value == pytest.approx(1 / k)
    assert escape_time(net, "a", 1).value == pytest.approx(50.0)
    assert stationary_law(net, 1)["a"].value == pytest.approx(0.75, abs=1e-15)


def test_the_stationary_law_of_a_reversible_chain_is_exact_over_forty_orders() -> None:
    # Detailed balance with weights w and symmetric conductances c: k_ij = c_ij / w_i.
    rng = np.random.default_rng(1)
    w = np.exp(rng.normal(0, 20, 8))
    w /= w.sum()
    c = np.exp(rng.normal(-60, 10, (8, 8)))
    c = c + c.T
    rates = c / w[:, None]
    rates *= 0.1 / rates.max()
    np.fill_diagonal(rates, 0)
    net = known_network([f"s{i}" for i in range(8)], [1], [rates])
    got = np.array([e.value for e in stationary_law(net, 1).values()])
    assert got == pytest.approx(w, rel=1e-12)
    # The same by an eigenvector of plain linear algebra fails: the check would notice.
    values, vectors = np.linalg.eig(rate_matrix(net, 1).T)
    naive = np.abs(vectors[:, np.argmin(np.abs(values))].real)
    assert not np.allclose(naive / naive.sum(), w, rtol=1e-6, atol=0)


def test_rates_between_nodes_are_linear_in_log_and_go_on_beyond() -> None:
    rates = [[[0, np.exp(-2.0 * b)], [np.exp(-3.0 * b), 0]] for b in (1, 2, 4)]
    net = known_network(["a", "b"], [1, 2, 4], rates)
    for b in (1.0, 1.5, 3.0, 4.0, 9.0):
        assert rate_matrix(net, b)[0, 1] == pytest.approx(np.exp(-2 * b), rel=1e-12)
    assert "extrapolated" in stationary_law(net, 9)["a"].notes[0]
    assert stationary_law(net, 3)["a"].notes == ()


def test_a_state_without_way_out_holds_all_and_two_of_them_are_refused() -> None:
    one = known_network(["a", "b"], [1], [[[0, 0.1], [0, 0]]])
    assert stationary_law(one, 1)["b"].value == 1.0
    two = known_network(["a", "b", "c"], [1], [[[0, 0.1, 0.1], [0, 0, 0], [0, 0, 0]]])
    with pytest.raises(RunError, match="no unique stationary law"):
        stationary_law(two, 1)


def test_flat_share_counts_the_flat_states() -> None:
    net = known_network(["flat", "sharp"], [1], [[[0, 0.02], [0.06, 0]]], sharpness=[0.5, 2.0])
    assert share_below(net, 1).value == pytest.approx(0.75)
    assert share_below(net, 1, 3.0).value == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: known_network(["a", "b"], [1], [[[0, -0.1], [0.1, 0]]]), "rates"),
        (lambda: known_network(["a", "b"], [2, 1], [[[0, 0.1], [0.1, 0]]] * 2), "batch_sizes"),
        (lambda: known_network(["a"], [1], [[[0]]]), "labels"),
        (lambda: occupation(pair(), "c", [Stage(1, 1)]), "state"),
        (lambda: occupation(pair(), [0.0, 0.0], [Stage(1, 1)]), "start"),
        (lambda: rate_matrix(pair(), 0), "batch_size"),
    ],
)
def test_refusals_are_one_line(make, word) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value).startswith(word)
    assert "\n" not in str(error.value)
