"""Exact moments: the written truths to the digits, batch factors by enumeration."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from batchwell import (
    SGD,
    InputError,
    additive,
    diffusion_approximation,
    finite_sum,
    sampled,
)
from batchwell.dynamics import diffusion
from batchwell.law import (
    batch_factors,
    exact_ornstein_uhlenbeck,
    expected_loss,
    mean_square_growth,
    moments,
    stability_limit,
    stationary_moments,
)

parabola = additive(lambda x: x @ x / 2)
ROWS = (np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]]), np.array([1.0, -1.0, 2.0]))
squares = finite_sum(lambda x, z: 0.5 * (z[0] @ x - z[1]) ** 2, ROWS, dim=2)
multiplicative = sampled(
    lambda x, z: (1 + 0.8 * z[0]) * x @ x / 2 + z[1] * x[0], "gaussian", dim=1, noise_dim=2
)


def both(sgd):
    return [sgd, diffusion_approximation(sgd, 1), diffusion_approximation(sgd, 2)]


def test_t1_second_moment_of_the_parabola():
    got = [moments(p, [1.0], 10).raw[1][0, 0] for p in both(SGD(parabola, 0.1))]
    np.testing.assert_allclose(got, [0.1678094622, 0.1785685191, 0.1642442174], atol=5e-11)


def test_t1_leading_constants():
    eta = 1 / 4096
    chain, first, second = (moments(p, [1.0], 4096).raw[1][0, 0] for p in both(SGD(parabola, eta)))
    # The stated limits are SGD minus the order-1 diffusion and SGD minus order 2.
    assert (chain - first) / eta == pytest.approx(-0.1353353, abs=2e-4)
    assert (chain - second) / eta**2 == pytest.approx(0.3421088, abs=2e-3)


def test_t3_least_squares():
    sgd = SGD(squares, 0.0125)
    got = [expected_loss(squares, moments(p, [1.0, 1.0], 80)) for p in both(sgd)]
    np.testing.assert_allclose(got, [0.8155641356, 0.8164431871, 0.8153610121], atol=5e-11)


def test_t3_order_one_is_closer_at_a_tenth():
    sgd = SGD(squares, 0.1)
    chain, first, second = (expected_loss(squares, moments(p, [1.0, 1.0], 10)) for p in both(sgd))
    assert abs(first - chain) < abs(second - chain)


def test_t4_stationary_covariance():
    hessian, noise = np.array([[2, 0.5], [0.5, 1]]), np.array([[1, -0.4], [-0.4, 0.5]])
    h = jnp.asarray(hessian)
    loss = additive(lambda x: x @ h @ x / 2, dim=2, scale=np.linalg.cholesky(noise))
    c = stationary_moments(SGD(loss, 0.2)).covariance
    np.testing.assert_allclose(
        [c[0, 0], c[0, 1], c[1, 1]], [0.07365722, -0.0527513, 0.08104661], atol=6e-9
    )
    np.testing.assert_allclose(hessian @ c + c @ hessian - 0.2 * hessian @ c @ hessian, 0.2 * noise)


def test_t5_multiplicative_noise():
    got = [stationary_moments(p).covariance[0, 0] for p in both(SGD(multiplicative, 0.2))]
    np.testing.assert_allclose(got, [0.1196172, 0.1068376, 0.0965251], atol=5e-8)


def test_stationary_variance_order_two_is_worse():
    a, eta = 1.0, 0.3
    got = [stationary_moments(p).covariance[0, 0] / eta for p in both(SGD(parabola, eta))]
    want = [1 / (2 * a - eta * a**2), 1 / (2 * a), 1 / (2 * a + eta * a**2)]
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_t6_rademacher_half_is_uniform():
    sgd = SGD(additive(lambda x: x @ x / 2, "rademacher"), 0.5)
    law = stationary_moments(sgd, order=4)
    assert law.raw[1][0, 0] == pytest.approx(1 / 3, rel=1e-13)
    assert law.raw[3][0, 0, 0, 0] == pytest.approx(1 / 5, rel=1e-13)


def test_stability_limits():
    a, b = 1.3, 0.7
    loss = sampled(lambda x, z: (a + b * z[0]) * x @ x / 2, "gaussian", dim=1)
    sgd = SGD(loss, 0.1)
    assert stability_limit(sgd) == pytest.approx(2 * a / (a * a + b * b), rel=1e-10)
    assert stability_limit(sgd, 1) == pytest.approx(2 * a / b**2, rel=1e-10)
    assert mean_square_growth(SGD(loss, 0.5)) == pytest.approx((1 - 0.5 * a) ** 2 + (0.5 * b) ** 2)
    with pytest.raises(InputError, match="stationary"):
        stationary_moments(SGD(loss, 1.5))


@pytest.mark.parametrize(("n", "b"), [(5, 1), (5, 2), (6, 4), (3, 2), (2, 1), (4, 4)])
def test_batch_factors_without_replacement_by_enumeration(n, b):
    c = np.random.default_rng(n * 10 + b).standard_normal(n)
    c -= c.mean()
    means = np.array([np.mean(c[list(s)]) for s in itertools.combinations(range(n), b)])
    f = batch_factors(b, n)
    m2, m3, m4 = (np.mean(c**p) for p in (2, 3, 4))
    assert np.mean(means**2) == pytest.approx(f.second * m2, abs=1e-14)
    assert np.mean(means**3) == pytest.approx(f.third * m3, abs=1e-14)
    assert np.mean(means**4) == pytest.approx(f.fourth * m4 + 3 * f.pairs * m2**2, abs=1e-14)
    assert f.second == pytest.approx((n - b) / ((n - 1) * b), abs=1e-15)
    if n > 2:
        want = (n - b) * (n - 2 * b) / (b**2 * (n - 1) * (n - 2))
        assert f.third == pytest.approx(want, abs=1e-15)


def test_batch_factors_with_replacement_by_enumeration():
    c = np.array([1.0, -3.0, 2.5, 0.0])
    c -= c.mean()
    means = np.mean(list(itertools.product(c, repeat=3)), axis=1)
    f = batch_factors(3)
    m2, m3, m4 = (np.mean(c**p) for p in (2, 3, 4))
    assert np.mean(means**2) == pytest.approx(f.second * m2)
    assert np.mean(means**3) == pytest.approx(f.third * m3)
    assert np.mean(means**4) == pytest.approx(f.fourth * m4 + 3 * f.pairs * m2**2)


def enumerated(sgd, x0, steps, order):
    """Moments by walking every sequence of batches."""
    rows, targets = ROWS
    n, b = 3, sgd.batch_size
    if sgd.sampling == "with_replacement":
        batches = list(itertools.product(range(n), repeat=b))
        walks = itertools.product(batches, repeat=steps)
    elif sgd.sampling == "without_replacement":
        walks = itertools.product(itertools.combinations(range(n), b), repeat=steps)
    else:
        walks = (
            [[i] for p in e for i in p]
            for e in itertools.product(itertools.permutations(range(n)), repeat=steps // n)
        )
    total, count = 0.0, 0
    for walk in walks:
        x, v = np.array(x0), np.zeros(2)
        for batch in walk:
            g = np.mean([rows[i] * (rows[i] @ x - targets[i]) for i in batch], axis=0)
            v = sgd.momentum * v + g
            x = x - sgd.learning_rate * v
        t = x
        for _ in range(order - 1):
            t = np.multiply.outer(t, x)
        total, count = total + t, count + 1
    return total / count


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("sampling", "batch", "momentum", "steps"),
    [
        ("with_replacement", 2, 0.0, 3),
        ("without_replacement", 2, 0.0, 4),
        ("without_replacement", 1, 0.5, 4),
        ("reshuffle", 1, 0.0, 6),
    ],
)
def test_moments_by_enumeration(sampling, batch, momentum, steps, order):
    if momentum and order == 4:
        pytest.skip("too large for a dense operator")
    sgd = SGD(squares, 0.1, batch, sampling, momentum)
    got = moments(sgd, [1.0, -0.5], steps, order).raw[order - 1]
    np.testing.assert_allclose(got, enumerated(sgd, [1.0, -0.5], steps, order), atol=1e-12)


def test_reshuffled_epochs_have_variance_of_third_order():
    a = SGD(squares, 0.02, 1, "reshuffle"), SGD(squares, 0.01, 1, "reshuffle")
    traces = [np.trace(stationary_moments(s).covariance) for s in a]
    assert math.log2(traces[0] / traces[1]) == pytest.approx(3, abs=0.1)


def test_a_wrong_factor_two_in_the_tensor_is_seen():
    right = diffusion_approximation(SGD(parabola, 0.1))
    wrong = diffusion(right.drift, lambda x: jnp.sqrt(0.2) * jnp.eye(1), 1, 0.1)
    assert moments(wrong, [1.0], 10).raw[1][0, 0] != pytest.approx(0.1785685191, abs=1e-2)


def test_exact_ornstein_uhlenbeck_reproduces_the_chain():
    h = jnp.array([[2, 0.5], [0.5, 1]])
    loss = additive(lambda x: x @ h @ x / 2 + x[0], dim=2, scale=[[1.0, 0.2], [-0.4, 0.5]])
    sgd = SGD(loss, 0.2, 2)
    process = exact_ornstein_uhlenbeck(sgd)
    for steps in (1, 7):
        a, b = moments(sgd, [1.0, 2.0], steps), moments(process, [1.0, 2.0], steps)
        np.testing.assert_allclose(a.mean, b.mean, atol=1e-12)
        np.testing.assert_allclose(a.covariance, b.covariance, atol=1e-12)
    with pytest.raises(InputError, match="additive"):
        exact_ornstein_uhlenbeck(SGD(multiplicative, 0.1))


def test_centred_moments():
    law = moments(SGD(squares, 0.1), [1.0, 1.0], 2, order=4)
    np.testing.assert_allclose(law.centred(2), law.covariance, atol=1e-14)
    np.testing.assert_allclose(law.centred(1), 0, atol=1e-14)


def test_rotation_and_order_of_examples():
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((2, 2)))[0]
    rotated = finite_sum(
        lambda x, z: 0.5 * (z[0] @ x - z[1]) ** 2, (ROWS[0][::-1] @ turn.T, ROWS[1][::-1]), dim=2
    )
    a, b = stationary_moments(SGD(squares, 0.1, 2)), stationary_moments(SGD(rotated, 0.1, 2))
    np.testing.assert_allclose(turn @ a.covariance @ turn.T, b.covariance, atol=1e-13)


def test_refusals():
    well = additive(lambda x: (x[0] ** 2 - 1) ** 2)
    with pytest.raises(InputError, match="quadratic"):
        moments(SGD(well, 0.1), [0.0], 1)
    with pytest.raises(InputError, match="epochs"):
        moments(SGD(squares, 0.1, 1, "reshuffle"), [0.0, 0.0], 4)
    heavy = sampled(lambda x, z: x @ x / 2 + z[0] * x[0], "student_t", dim=1)
    moments(SGD(heavy, 0.1), [0.0], 5, order=4)
    with pytest.raises(InputError, match="dense"):
        moments(SGD(additive(lambda x: x @ x, dim=20), 0.1), np.zeros(20), 1, order=3)
