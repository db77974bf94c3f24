"""Losses beside obviously right NumPy, and everything that is refused. No simulation here."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from batchwell.errors import InputError
from batchwell.loss import additive, check_at, finite_sum, sampled, square_root
from batchwell.noise import NOISES

DIM = 3
RNG = np.random.default_rng(31)
A, Y = RNG.standard_normal((7, DIM)), RNG.standard_normal(7)
X = np.array([0.3, -1.2, 0.7])
XI = RNG.standard_normal(7)


def row_loss(x, z):
    """Quartic residual: gradient r^3 a, Hessian 3 r^2 a a^T with r = a.x - y."""
    return (jnp.dot(z[0], x) - z[1]) ** 4 / 4


LOSS = finite_sum(row_loss, (A, Y), DIM)
WEIGHTED = type(LOSS)(row_loss, DIM, LOSS.nodes, jnp.asarray(np.arange(1.0, 8) / 28))


def twin(loss, x):
    """Everything by hand: (F, grad, Hessian, example gradients, Sigma, third cumulant)."""
    w = np.asarray(loss.weights)
    mean = gradient = hessian = 0.0
    rows = []
    for k in range(len(Y)):
        r = A[k] @ x - Y[k]
        rows.append(r**3 * A[k])
        mean = mean + w[k] * r**4 / 4
        gradient = gradient + w[k] * rows[-1]
        hessian = hessian + w[k] * 3 * r**2 * np.outer(A[k], A[k])
    sigma, third = np.zeros((DIM, DIM)), np.zeros((DIM, DIM, DIM))
    for k in range(len(Y)):
        c = rows[k] - gradient
        sigma += w[k] * np.outer(c, c)
        third += w[k] * np.multiply.outer(np.outer(c, c), c)
    return mean, gradient, hessian, np.array(rows), sigma, third


@pytest.mark.parametrize("loss", [LOSS, WEIGHTED], ids=["uniform", "weighted"])
def test_a_finite_sum_is_its_brute_force_twin(loss):
    mean, gradient, hessian, rows, sigma, third = twin(loss, X)
    close = {"rtol": 1e-11, "atol": 1e-11}
    np.testing.assert_allclose(loss.mean(X), mean, **close)
    np.testing.assert_allclose(loss.gradient(X), gradient, **close)
    np.testing.assert_allclose(loss.hessian(X), hessian, **close)
    np.testing.assert_allclose(loss.hessian_vector(X, X[::-1]), hessian @ X[::-1], **close)
    np.testing.assert_allclose(loss.example_gradients(X), rows, **close)
    np.testing.assert_allclose(loss.covariance(X), sigma, **close)
    np.testing.assert_allclose(loss.third_cumulant(X), third, **close)
    factor = np.asarray(loss.factor(X))
    assert factor.shape == (DIM, loss.factor_dim)
    np.testing.assert_allclose(factor @ factor.T, sigma, **close)
    np.testing.assert_allclose(loss.factor_vector(X, XI), factor @ XI, **close)
    assert np.asarray(loss.covariance(X)).dtype == np.float64


def test_the_covariance_is_numpys_with_divisor_n():
    rows = np.asarray(LOSS.example_gradients(X))
    np.testing.assert_allclose(LOSS.covariance(X), np.cov(rows.T, bias=True), rtol=1e-12)
    # Control: the unbiased estimator, divisor n - 1, is another matrix.
    assert not np.allclose(LOSS.covariance(X), np.cov(rows.T), rtol=0.1)


def test_the_order_of_examples_does_not_matter():
    order = np.random.default_rng(1).permutation(7)
    other = finite_sum(row_loss, (A[order], Y[order]), DIM)
    for name in ("mean", "gradient", "hessian", "covariance", "third_cumulant"):
        np.testing.assert_allclose(getattr(other, name)(X), getattr(LOSS, name)(X), rtol=1e-11)


def test_doubling_every_example_changes_nothing():
    twice = finite_sum(row_loss, (np.tile(A, (2, 1)), np.tile(Y, 2)), DIM)
    assert twice.n == 14
    np.testing.assert_allclose(twice.covariance(X), LOSS.covariance(X), rtol=1e-12)


def test_rotated_coordinates_rotate_everything():
    q, _ = np.linalg.qr(np.random.default_rng(2).standard_normal((DIM, DIM)))
    turned = finite_sum(lambda x, z: row_loss(q.T @ x, z), (A, Y), DIM)
    np.testing.assert_allclose(turned.gradient(q @ X), q @ LOSS.gradient(X), rtol=1e-10)
    np.testing.assert_allclose(turned.covariance(q @ X), q @ LOSS.covariance(X) @ q.T, rtol=1e-9)


values = st.floats(-3, 3, allow_subnormal=False)


@given(hnp.arrays(float, DIM, elements=values), hnp.arrays(float, 7, elements=values))
@settings(max_examples=40)
def test_factor_vector_needs_no_matrix(x, xi):
    for loss in (LOSS, WEIGHTED):
        want = np.asarray(loss.factor(x)) @ xi
        got = np.asarray(loss.factor_vector(x, xi))
        np.testing.assert_allclose(got, want, atol=1e-9 * (1 + np.abs(want).max()))


def test_multiplicative_noise_in_closed_form():
    # g = (1 + .8 xi) x + xi': variance .64 x^2 + 1, third cumulant 0.
    loss = sampled(lambda x, z: (1 + 0.8 * z[0]) * x[0] ** 2 / 2 + z[1] * x[0], "gaussian", 1, 2)
    for x in (-2.0, 0.0, 0.5):
        at = np.array([x])
        assert float(loss.mean(at)) == pytest.approx(x * x / 2)
        assert float(loss.gradient(at)[0]) == pytest.approx(x)
        assert float(loss.covariance(at)[0, 0]) == pytest.approx(1 + 0.64 * x * x)
        assert float(loss.third_cumulant(at)[0, 0, 0]) == pytest.approx(0, abs=1e-12)
        s = np.asarray(loss.factor(at))
        assert float((s @ s.T)[0, 0]) == pytest.approx(1 + 0.64 * x * x)
    assert loss.n is None


@pytest.mark.parametrize("name", ["gaussian", "rademacher", "exponential", "pareto"])
def test_additive_noise_has_the_scale_it_was_given(name):
    matrix = np.array([[1.0, 0.0, 0.3], [-0.4, 0.5, 0.0]])
    loss = additive(lambda x: jnp.sum(x**4), name, 2, matrix)
    x = np.array([0.2, -0.1])
    np.testing.assert_allclose(loss.covariance(x), matrix @ matrix.T, rtol=1e-12)
    np.testing.assert_allclose(loss.gradient(x), 4 * x**3, rtol=1e-12)
    assert loss.factor_dim == 3
    xi = np.array([1.0, -2.0, 0.5])
    np.testing.assert_allclose(loss.factor_vector(x, xi), matrix @ xi, rtol=1e-12)
    # The same moments from the examples themselves, without the closed form.
    g = np.asarray(loss.example_gradients(x))
    w = np.asarray(loss.weights)
    np.testing.assert_allclose(w @ g, 4 * x**3, atol=1e-9)
    np.testing.assert_allclose(
        (w[:, None] * (g - w @ g)).T @ (g - w @ g), matrix @ matrix.T, atol=1e-9
    )
    skewness = NOISES[name]().skewness
    third = np.einsum("ik,jk,lk->ijl", matrix, matrix, matrix) * skewness
    np.testing.assert_allclose(loss.third_cumulant(x), third, atol=1e-9)


def test_a_right_closed_mean_is_taken_and_a_wrong_one_refused():
    def function(x, z):
        return jnp.sum((x - z) ** 2) / 2

    good = sampled(function, "laplace", 1, 1, mean=lambda x: (x[0] ** 2 + 1) / 2)
    assert float(good.mean(np.array([2.0]))) == 2.5
    with pytest.raises(InputError, match="mean = "):
        sampled(function, "laplace", 1, 1, mean=lambda x: x[0] ** 2 / 2)


def refused(call, key, *words):
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text, "one line"
    assert caught.value.key == key
    for word in words:
        assert word in text
    assert text.startswith(f"{key} = ")


def mean_square(x, z):
    return jnp.sum((x - z) ** 2)


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (lambda x, z: x - z, "one real number"),
        (lambda x, z: jnp.sum(x - z)[None], "one real number"),
        (lambda x, z: (jnp.sum(x), jnp.sum(z)), "one real number"),
        (lambda x, z: jnp.sum(x > z), "one real number"),
        (lambda x, z: jnp.sum(x) * 1j, "one real number"),
        (lambda x, z: None, "one real number"),
        (lambda x, z: "loss", "x of shape (2,)"),
        (lambda x, z: float(jnp.sum(x)), "jax.numpy"),
        (lambda x, z: jnp.sum(x) if x[0] > 0 else jnp.sum(z), "branches"),
        (lambda x: jnp.sum(x), "one example"),
        (lambda x, z: x @ jnp.ones(5), "x of shape (2,)"),
    ],
)
def test_losses_of_the_wrong_kind_are_refused(function, word):
    refused(lambda: finite_sum(function, np.zeros((4, 2)), 2), "loss", word)
    refused(lambda: sampled(function, "gaussian", 2, 2), "loss", word)


@pytest.mark.parametrize(
    ("data", "key", "word"),
    [
        (np.zeros((0, 2)), "data", "at least one example"),
        ((), "data", "at least one array"),
        ({}, "data", "at least one array"),
        (None, "data", "at least one array"),
        (np.float64(3.0), "data", "one row per example"),
        ((np.zeros((3, 2)), np.zeros(4)), "data", "same first axis"),
        (np.array([[1.0, 2.0], [3.0, np.nan]]), "data[1, 1]", "nan"),
        (np.array([[1.0, np.inf]]), "data[0, 1]", "finite"),
        (np.array([["a", "b"]]), "data", "numbers"),
        (np.array([[None, 1]], dtype=object), "data", "numbers"),
        (np.array([[1j, 2]]), "data", "numbers"),
    ],
)
def test_bad_data_are_refused(data, key, word):
    refused(lambda: finite_sum(mean_square, data, 2), key, word)


@pytest.mark.parametrize("dim", [0, -1, 2.0, "2", True, None])
def test_bad_dimensions_are_refused(dim):
    refused(lambda: finite_sum(mean_square, np.zeros((3, 2)), dim), "dim", "whole number")


def test_a_loss_with_hidden_randomness_is_refused():
    hidden = np.random.default_rng(5)
    loss = finite_sum(lambda x, z: mean_square(x, z) * hidden.random(), np.ones((3, 2)), 2)
    refused(lambda: check_at(loss, np.zeros(2)), "loss", "hidden randomness")


@pytest.mark.parametrize(
    "function",
    [
        lambda x, z: jnp.abs(x[0]) + x[1] ** 2,  # a kink at 0
        lambda x, z: jnp.floor(1e3 * x[0]) + x[1] ** 2,  # a jump at 0
        lambda x, z: jnp.sqrt(jnp.sum(x * x)),  # derivative NaN at 0
        lambda x, z: jax.lax.stop_gradient(x[0]) + x[1] ** 2,  # derivative left out
    ],
)
def test_a_loss_that_is_not_differentiable_where_used_is_refused(function):
    loss = finite_sum(function, np.ones((3, 2)), 2)
    refused(lambda: check_at(loss, np.zeros(2)), "loss", "differentiable")


def test_a_loss_that_is_not_finite_where_used_is_refused():
    loss = finite_sum(lambda x, z: jnp.log(x[0]), np.ones((3, 2)), 2)
    refused(lambda: check_at(loss, np.array([-1.0, 0.0])), "loss", "not finite")
    refused(lambda: check_at(loss, np.zeros(3)), "x", "(2,)")


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_sound_loss_of_any_size_passes(scale):
    loss = finite_sum(lambda x, z: scale * row_loss(x, z), (A, Y), DIM)
    check_at(loss, X)
    check_at(loss, 100 * X)


def test_additive_refuses_scales_that_do_not_fit():
    refused(lambda: additive(lambda x: x @ x, dim=2, scale=np.eye(3)), "scale", "2 rows")
    refused(lambda: additive(lambda x: x @ x, scale=np.nan), "scale", "finite")
    refused(lambda: additive(lambda x: x, dim=2), "loss", "one real number")
    refused(lambda: additive(lambda x: x @ x, "cauchy"), "noise", "gaussian")


AFFINE = {
    "product": lambda x, z: (1 + 0.8 * z[0]) * x @ x / 2 + z[1] * x[0],
    "matrix": lambda x, z: jnp.sin(x) @ jnp.array([[1.0, 2.0], [0.5, -1.0]]) @ z + jnp.sum(x**4),
    "loop": lambda x, z: jax.lax.fori_loop(0, 3, lambda k, s: 0.5 * s + z[0] * x[1], x[0]),
    "picked": lambda x, z: jnp.where(x[0] > 0, z[0], z[1]) * x[1] ** 2 + z[jnp.argmax(x)],
    "relu of x": lambda x, z: jax.nn.relu(x) @ z,
}
CURVED = {
    "square": lambda x, z: (x[0] - z[0]) ** 2 * x[1] + z[1] * x[0],
    "relu of z": lambda x, z: jax.nn.relu(z) @ x,
    "loop": lambda x, z: jax.lax.fori_loop(0, 2, lambda k, s: s * z[0], x[0] * x[1]),
    "index": lambda x, z: x[jnp.argmax(z)] * x[0],
    "quotient": lambda x, z: x[0] ** 2 / (2 + z[0]),
    "rounded": lambda x, z: x[0] * z[0].astype(int),
}


@pytest.mark.parametrize("name", AFFINE)
def test_noise_that_enters_affinely_needs_no_nodes(name):
    loss = sampled(AFFINE[name], "gaussian", 2, 2)
    plain = dataclasses.replace(loss, closed_mean=None, closed_factor=None)
    assert loss.factor_dim == 2
    for x in (np.array([0.7, -1.1]), np.array([-0.3, 0.2])):
        np.testing.assert_allclose(loss.mean(x), plain.mean(x), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(loss.covariance(x), plain.covariance(x), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", CURVED)
def test_noise_that_enters_otherwise_keeps_its_nodes(name):
    loss = sampled(CURVED[name], "gaussian", 2, 2)
    assert loss.closed_mean is None
    if name != "square":  # its gradient may be affine where the loss is not
        assert loss.closed_factor is None
    s = np.asarray(loss.factor(np.array([0.7, -1.1])))
    assert s.shape == (2, 2)
    np.testing.assert_allclose(
        s @ s.T, loss.covariance(np.array([0.7, -1.1])), rtol=1e-12, atol=1e-14
    )


def test_square_root_of_singular_matrices():
    rng = np.random.default_rng(3)
    for rank in (0, 1, 2, 4):
        a = rng.standard_normal((4, rank))
        s = np.asarray(square_root(jnp.asarray(a @ a.T)))
        np.testing.assert_allclose(s @ s.T, a @ a.T, atol=1e-7)
        assert np.allclose(s, np.tril(s))
    full = np.asarray(square_root(jnp.asarray(a @ a.T)))
    np.testing.assert_allclose(full, np.linalg.cholesky(a @ a.T), rtol=1e-9)
