"""Noise laws: standardised, drawn as stated, and integrated exactly to the stated degree.

Statistical budget: per law one Kolmogorov-Smirnov (or chi-square) p-value below 6e-5, and the first
moments whose sampling error exists at 4 standard errors: 7 laws, at most 5 comparisons each, 2e-3
together. The draws come from the library's own streams, so they are the same on every run.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from batchwell.errors import InputError
from batchwell.noise import NOISES, Noise, noise_law, normal_pair, product_rule
from batchwell.streams import draw_words, path_states

ROOT3 = math.sqrt(3.0)
T5 = math.sqrt(3 / 5)
LAWS = {
    "gaussian": stats.norm(),
    "uniform": stats.uniform(-ROOT3, 2 * ROOT3),
    "laplace": stats.laplace(scale=1 / math.sqrt(2)),
    "exponential": stats.expon(loc=-1),
    "student_t": stats.t(5, scale=T5),
    "pareto": stats.pareto(5, loc=-1.25 / math.sqrt(5 / 48), scale=1 / math.sqrt(5 / 48)),
}
# Moments of order k of the standardised laws, in closed form (of the exponential: derangements).
HIGH_MOMENTS = {
    "gaussian": lambda k: 0.0 if k % 2 else float(math.prod(range(1, k, 2))),
    "uniform": lambda k: 0.0 if k % 2 else 3.0 ** (k / 2) / (k + 1),
    "laplace": lambda k: 0.0 if k % 2 else math.factorial(k) / 2.0 ** (k / 2),
    "exponential": lambda k: float(round(math.factorial(k) / math.e)),
}
ALL = [*NOISES.items()]
TAILED = [(f"{name}-{nu}", lambda n=name, v=nu: noise_law(n, v)) for name in ("student_t", "pareto")
          for nu in (2.5, 3.5, 4.5, 9.0, 12.0)]  # fmt: skip


def draw(law: Noise, count: int = 200_000) -> np.ndarray:
    words, _ = draw_words(path_states(41, law.name, range(count)), law.words)
    return np.asarray(law.draw([words[:, k] for k in range(law.words)], np))


@pytest.mark.parametrize("name", LAWS)
def test_draws_follow_the_law(name):
    x = draw(NOISES[name]())
    assert stats.kstest(x, LAWS[name].cdf).pvalue > 6e-5
    # Control: 5 % too wide is rejected.
    assert stats.kstest(1.05 * x, LAWS[name].cdf).pvalue < 6e-5


def test_scipys_laws_are_standardised():
    for law in LAWS.values():
        assert law.mean() == pytest.approx(0, abs=1e-12)
        assert law.var() == pytest.approx(1)


def test_rademacher_is_a_fair_coin():
    x = draw(NOISES["rademacher"]())
    assert set(np.unique(x)) == {-1.0, 1.0}
    assert abs(x.sum()) < 4 * math.sqrt(x.size)


def test_gaussian_pairs_are_independent_normals():
    words, _ = draw_words(path_states(42, "pair", range(100_000)), 4)
    a, b = normal_pair([words[:, k] for k in range(4)], np)
    assert stats.kstest(b, "norm").pvalue > 6e-5
    for f in (lambda u, v: u * v, lambda u, v: (u * u - 1) * (v * v - 1), lambda u, v: u * v**3):
        y = f(a, b)
        assert abs(y.mean()) < 4 * y.std() / math.sqrt(y.size)


@pytest.mark.parametrize(("name", "make"), ALL)
def test_moments_by_simulation(name, make):
    law = make()
    x = draw(law)
    for power, want in ((1, 0.0), (2, 1.0), (3, law.skewness), (4, law.kurtosis)):
        # A sample moment has a standard error only if twice its power exists (tail index 5).
        if law.parameter is not None and 2 * power >= law.parameter:
            continue
        y = x**power
        assert abs(y.mean() - want) <= 4 * y.std() / math.sqrt(y.size) + 1e-12, power


@pytest.mark.parametrize(("name", "make"), ALL)
def test_stated_moments_are_scipys(name, make):
    law = make()
    if name == "rademacher":
        assert (law.skewness, law.kurtosis) == (0.0, 1.0)
        return
    skewness, excess = LAWS[name].stats("sk")
    assert law.skewness == pytest.approx(float(skewness), abs=1e-12)
    assert law.kurtosis == pytest.approx(3 + float(excess))


@pytest.mark.parametrize("nu", [4.5, 6.0, 9.0, 30.0])
def test_stated_tail_moments_are_scipys(nu):
    assert noise_law("student_t", nu).kurtosis == pytest.approx(3 + float(stats.t(nu).stats("k")))
    skewness, excess = stats.pareto(nu).stats("sk")
    law = noise_law("pareto", nu)
    assert law.skewness == pytest.approx(float(skewness))
    assert law.kurtosis == pytest.approx(3 + float(excess))


@pytest.mark.parametrize(("name", "make"), [*ALL, *TAILED])
def test_rules_are_exact_to_their_degree(name, make):
    law = make()
    moments = {0: 1.0, 1: 0.0, 2: 1.0, 3: law.skewness, 4: law.kurtosis}
    if law.name in HIGH_MOMENTS:
        moments |= {k: HIGH_MOMENTS[law.name](k) for k in (5, 6, 7, 8, 12, 13, 20, 30, 31)}
    assert (law.rule.weights > 0).all()
    for power, want in moments.items():
        if power <= law.rule.degree:
            terms = law.rule.weights * law.rule.nodes**power
            assert abs(float(terms.sum()) - want) <= 1e-9 * (1 + float(np.abs(terms).sum())), power
    assert law.rule.degree >= 2


@pytest.mark.parametrize(("name", "make"), [*ALL, *TAILED])
def test_draws_and_nodes_stay_in_the_support(name, make):
    law = make()
    x = draw(law, 20_000)
    low, high = law.support
    assert np.isfinite(x).all()
    assert (x >= low - 1e-12).all()
    assert (x <= high + 1e-12).all()
    ends = np.array([0, 2**32 - 1], dtype=np.uint32)
    for first in ends:
        for second in ends:
            words = [np.array([w]) for w in (first, second, first, second)][: law.words]
            assert np.isfinite(law.draw(words, np)).all()
    if law.atoms:
        assert set(np.unique(x)) == set(law.rule.nodes)
    elif math.isfinite(low):
        assert x.min() < low + 0.01  # the support is not merely an outer bound


@given(st.floats(2.01, 60), st.floats(0.001, 0.999))
def test_student_t_by_its_quantile_identity(nu, u):
    # |t| drawn at V = 0: P(nu (U^(-2/nu) - 1) > r^2) = (1 + r^2/nu)^(-nu/2), Bailey's radius.
    law = noise_law("student_t", nu)
    bits = int(u * 2**53)
    words = [
        np.array([w], dtype=np.uint32) for w in (bits >> 26 << 5, (bits & (2**26 - 1)) << 6, 0, 0)
    ]
    r = float(law.draw(words, np)[0]) / math.sqrt((nu - 2) / nu)
    assert (1 + r * r / nu) ** (-nu / 2) == pytest.approx((bits + 0.5) / 2**53, rel=1e-8)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize(("name", "make"), ALL)
def test_product_rules_have_the_right_covariance(name, make, dim):
    rule = product_rule(make(), dim)
    assert rule.weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(rule.weights @ rule.nodes, 0, atol=1e-9)
    covariance = np.einsum("m,mi,mj->ij", rule.weights, rule.nodes, rule.nodes)
    np.testing.assert_allclose(covariance, np.eye(dim), atol=1e-9)


@pytest.mark.parametrize("name", ["gaussian", "exponential"])
def test_the_rule_for_many_dimensions_says_its_degree(name):
    rule = product_rule(NOISES[name](), 30)
    covariance = np.einsum("m,mi,mj->ij", rule.weights, rule.nodes, rule.nodes)
    np.testing.assert_allclose(covariance, np.eye(30), atol=1e-9)
    assert rule.degree == (3 if name == "gaussian" else 2)


@pytest.mark.parametrize("name", ["student_t", "pareto"])
@pytest.mark.parametrize("bad", [2, 1.0, -3, math.nan, math.inf, "heavy", "5", True])
def test_tail_parameters_without_variance_are_refused(name, bad):
    with pytest.raises(InputError, match="parameter = ") as caught:
        noise_law(name, bad)
    assert "\n" not in str(caught.value)


def test_unknown_laws_and_needless_parameters_are_refused():
    with pytest.raises(InputError, match="noise = 'cauchy': must be one of gaussian, "):
        noise_law("cauchy")
    with pytest.raises(InputError, match="gaussian takes no parameter"):
        noise_law("gaussian", 3.0)
    law = NOISES["laplace"]()
    assert noise_law(law) is law
