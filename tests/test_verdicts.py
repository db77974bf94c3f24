"""Verdicts on the diffusion: numbers against exact answers, each verdict both ways."""

import itertools
import json
import math
from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

from batchwell import SGD, InputError, additive, ball, finite_sum, sampled, sublevel
from batchwell.domain import Domain
from batchwell.dynamics import diffusion_approximation
from batchwell.law import stability_limit, stationary_moments
from batchwell.verdicts import NUMBERS, USES, validity

multiplicative = sampled(
    lambda x, z: (1 + 0.8 * z[0]) * x @ x / 2 + z[1] * x[0], "gaussian", dim=1, noise_dim=2
)
ROWS = (np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]]), np.array([1.0, -1.0, 2.0]))
squares = finite_sum(lambda x, z: 0.5 * (z[0] @ x - z[1]) ** 2, ROWS, dim=2)

LEAST = np.linalg.lstsq(*ROWS, rcond=None)[0]


@cache
def parabola(law="gaussian", scale=1.0):
    return additive(lambda x: x @ x / 2, law, scale=scale)


@pytest.mark.parametrize(
    ("law", "value"),
    [("gaussian", 0.64), ("rademacher", 0.88918772), ("uniform", 0.74059902), ("laplace", 0.51295)],
)
def test_exponents_of_the_parabola(law, value):
    out = validity(SGD(parabola(law), 0.05), ball([0.0], 0.8), minimum=[0.0])
    assert out.numbers["exponent_ratio"] * 0.64 == pytest.approx(value, rel=1e-4)
    assert out["escapes"].trust == ("yes" if law == "gaussian" else "no")


def test_numbers_of_multiplicative_noise_are_exact():
    sgd = SGD(multiplicative, 0.2)
    n = validity(sgd, [0.0]).numbers
    assert n["stability_limit_sgd"] == pytest.approx(stability_limit(sgd), rel=1e-8)
    assert n["stability_limit_diffusion"] == pytest.approx(stability_limit(sgd, 1), rel=1e-8)
    exact = [
        stationary_moments(p).covariance[0, 0]
        for p in (sgd, diffusion_approximation(sgd, 1), diffusion_approximation(sgd, 2))
    ]
    assert n["variance_ratio_order1"] == pytest.approx(exact[1] / exact[0], rel=1e-7)
    # Order 2 here keeps the noise of order 1, as the diffusion of order 2 does.
    assert n["variance_ratio_order2"] == pytest.approx(exact[2] / exact[0], rel=1e-7)
    assert n["kesten_diffusion"] == pytest.approx(1 + 2 / (0.2 * 0.64))
    z, w = np.polynomial.hermite_e.hermegauss(200)
    w = w / w.sum()
    root = brentq(lambda k: w @ np.abs(1 - 0.2 * (1 + 0.8 * z)) ** k - 1, 2, 30)
    assert n["kesten_sgd"] == pytest.approx(root, rel=1e-3)


def test_least_squares_in_two_dimensions():
    sgd = SGD(squares, 0.1, 2, "without_replacement")
    n = validity(sgd, LEAST).numbers
    assert n["stability_limit_sgd"] == pytest.approx(stability_limit(sgd), rel=1e-8)
    chain = np.trace(stationary_moments(sgd).covariance)
    flow = np.trace(stationary_moments(diffusion_approximation(sgd)).covariance)
    assert n["variance_ratio_order1"] == pytest.approx(flow / chain, rel=1e-7)


@pytest.mark.parametrize("eta", [0.05, 0.3, 0.9])
def test_svag_ratio_is_that_of_the_stationary_law(eta):
    """Exact for quadratic losses, noise in the curvature included: against the moments."""
    for sgd, best in ((SGD(multiplicative, eta), [0.0]), (SGD(squares, eta / 3, 2), LEAST)):
        law = stationary_moments(sgd)
        hessian = np.asarray(sgd.loss.hessian(jnp.asarray(best)))
        power = np.trace(hessian @ law.covariance @ hessian)
        # One step keeps the covariance: C = (1 - eta H) C (1 - eta H) + eta^2 E noise noise^T.
        keep = np.eye(len(best)) - sgd.learning_rate * hessian
        noise = np.trace(law.covariance - keep @ law.covariance @ keep) / sgd.learning_rate**2
        out = validity(sgd, best)
        assert out.numbers["noise_over_gradient_power"] == pytest.approx(noise / power, rel=1e-6)
        assert "SVAG" in out["stationary_variance"].reason


def test_little_noise_against_the_gradient_refuses_the_diffusion():
    """One direction: noise over gradient power is (2 - eta l) / (eta l), below 1 beyond eta l = 1."""
    out = validity(SGD(parabola(), 1.1), [0.0])
    assert out.numbers["noise_over_gradient_power"] == pytest.approx(0.9 / 1.1)
    assert out["stationary_variance"].trust == "no"
    assert validity(SGD(parabola(), 0.05), [0.0])["stationary_variance"].trust == "yes"


def test_verdicts_turn_with_the_learning_rate():
    def trust(eta, use):
        return validity(SGD(parabola(), eta), [0.0])[use].trust

    assert [trust(e, "short_time_averages") for e in (0.02, 0.3, 0.9)] == ["yes", "caution", "no"]
    assert [trust(e, "stationary_variance") for e in (0.02, 0.3, 0.9)] == ["yes", "caution", "no"]
    assert trust(0.02, "escapes") == "yes"  # the noise is Gaussian
    coin = validity(SGD(parabola("rademacher"), 0.0002), [0.0])
    assert coin.numbers["exponent_ratio"] < 1.02
    assert coin["escapes"].trust == "caution"  # close by, every noise looks Gaussian
    assert trust(1.5, "escapes") == "no"


def test_unstable_sgd_beside_a_stable_diffusion():
    out = validity(SGD(multiplicative, 1.5), [0.0])
    assert {v.trust for v in out.verdicts} == {"no"}
    assert "unstable" in out["tails"].reason


def test_reshuffled_epochs_are_refused_by_name():
    out = validity(SGD(squares, 0.05, 1, "reshuffle"), LEAST)
    assert all("reshuffled" in v.reason for v in out.verdicts)


def test_bounded_noise_that_cannot_climb():
    well = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4, "rademacher", scale=0.38)
    inside = Domain("left well", 1, lambda x: jnp.maximum(x[0], -1.6 - x[0]))
    out = validity(SGD(well, 0.05), inside, minimum=[-1.0])
    assert out.numbers["blocked_rays"] == 1
    assert "cannot climb" in out["escapes"].reason
    assert out["tails"].trust == "no"


def test_heavy_noise():
    out = validity(SGD(sampled(lambda x, z: x @ x / 2 + z[0] * x[0], "pareto", dim=1), 0.1), [0.0])
    assert out["tails"].trust == "no"


def test_real_data_variance_and_exponent():
    """T20 and T21: linearised variance to the digits, exponents as an indication."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.decomposition import PCA

    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)

    def problem(components):
        z = np.c_[PCA(components, whiten=True).fit_transform(x), np.ones(len(x))]
        loss = finite_sum(
            lambda w, z: jnp.logaddexp(0.0, -z[1] * (z[0] @ w)) + 0.025 * w @ w,
            (z, 2.0 * y - 1),
            dim=components + 1,
        )
        w = jnp.zeros(components + 1)
        for _ in range(30):
            w = w - jnp.linalg.solve(loss.hessian(w), loss.gradient(w))
        return loss, np.asarray(w)

    from batchwell.verdicts.linear import linearise, variances

    loss, best = problem(5)
    covariance, ratios = variances(linearise(SGD(loss, 0.4, 4), best)[0])
    assert np.trace(covariance) == pytest.approx(0.08227, abs=3e-5)
    assert np.trace(covariance) * ratios["variance_ratio_frozen"] == pytest.approx(0.0755, abs=5e-5)
    loss, best = problem(2)
    level = float(loss.mean(best)) + 0.02
    out = validity(SGD(loss, 0.1, 4), sublevel(loss.mean, level, 3), minimum=best)
    assert out.numbers["exponent_ratio"] == pytest.approx(0.5054 / 0.3051, rel=0.1)
    assert out["escapes"].trust == "no"


def test_report_form():
    out = validity(SGD(parabola("rademacher"), 0.1), [0.0])
    assert tuple(v.use for v in out.verdicts) == USES
    assert set(out.numbers) == set(NUMBERS)
    text = json.dumps(out.to_dict(), allow_nan=False)
    assert "inf" in text
    assert str(out).count("\n") == 3
    assert math.isinf(out.numbers["kesten_sgd"])


def test_refusals():
    with pytest.raises(InputError, match="minimum"):
        validity(SGD(parabola(), 0.1), ball([0.0], 1.0))
    with pytest.raises(InputError, match="minimum"):
        validity(SGD(additive(lambda x: -x @ x), 0.1), [0.0])
    with pytest.raises(InputError, match="shape"):
        validity(SGD(parabola(), 0.1), [0.0, 1.0])


ROOTS = np.array([1.0, 2.2, 0.5, 1.4]), np.array([0.3, -1.0, 2.0, 0.1])
LINES = finite_sum(lambda x, z: (z[0] * x[0] - z[1]) ** 2 / 2, ROOTS, 1)


@pytest.mark.parametrize("eta", [0.5, 0.55, 0.6])
@pytest.mark.parametrize(
    ("size", "sampling"),
    [(1, "with_replacement"), (2, "with_replacement"), (2, "without_replacement")],
)
def test_kesten_exponent_of_every_batch(eta, size, sampling):
    """E|1 - eta h|^kappa = 1 over all batches listed here by hand; a subset is no smaller batch."""
    h, best = ROOTS[0] ** 2, ROOTS[0] @ ROOTS[1] / (ROOTS[0] @ ROOTS[0])
    subset = sampling == "without_replacement"
    every = itertools.combinations(h, size) if subset else itertools.product(h, repeat=size)
    factors = np.abs(1 - eta * np.array([np.mean(batch) for batch in every]))
    want = math.inf
    if factors.max() > 1:
        want = brentq(lambda k: np.log(np.mean(factors**k)), 1e-3, 1e3)
    got = validity(SGD(LINES, eta, size, sampling), [best]).numbers["kesten_sgd"]
    assert got == pytest.approx(want, rel=1e-9)


def test_kesten_exponent_of_batches_too_many_to_list():
    """200 alike copies of the four rows, in batches of two: nearly the chain on the four."""
    many = finite_sum(LINES.function, tuple(np.tile(a, 200) for a in ROOTS), 1)
    best = [ROOTS[0] @ ROOTS[1] / (ROOTS[0] @ ROOTS[0])]
    few = validity(SGD(LINES, 0.55, 2), best).numbers["kesten_sgd"]
    for sampling in ("with_replacement", "without_replacement"):
        out = validity(SGD(many, 0.55, 2, sampling), best).numbers["kesten_sgd"]
        assert out == pytest.approx(few, rel=0.06)  # four standard errors of 20000 draws


@pytest.mark.parametrize(
    "sgd", [SGD(LINES, 0.1, 4, "without_replacement"), SGD(parabola(scale=0.0), 0.1)]
)
def test_without_noise_both_stay(sgd, recwarn):
    best = [ROOTS[0] @ ROOTS[1] / (ROOTS[0] @ ROOTS[0])] if sgd.loss.n else [0.0]
    out = validity(sgd, best)
    for use in ("stationary_variance", "tails", "escapes"):
        assert out[use].trust == "yes"
        assert "no noise" in out[use].reason
    assert not recwarn.list
