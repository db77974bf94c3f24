"""SGD and its diffusions: batch factors by enumeration, exact moments, conventions, refusals.

No simulation. Moments of chains and diffusions whose coefficients are polynomials close exactly:
their generators are fitted on monomials, with no loss of digits, from what the library says its
drift, tensor and noise covariance are. Any factor of two in eta, B or eps shows.
"""

from itertools import combinations, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm, solve_continuous_lyapunov

from batchwell.dynamics import SGD, Diffusion, diffusion, diffusion_approximation
from batchwell.errors import InputError
from batchwell.loss import additive, finite_sum, sampled

RNG = np.random.default_rng(51)
N, DIM = 5, 2
A, Y = RNG.standard_normal((N, DIM)), RNG.standard_normal(N)
X = np.array([0.4, -0.9])


def row_loss(x, z):
    return jnp.tanh(jnp.dot(z[0], x) - z[1]) ** 2 + 0.3 * jnp.dot(z[0], x) ** 2


LOSS = finite_sum(row_loss, (A, Y), DIM)
QUADRATIC = additive(lambda x: x @ x / 2)


def batches(size: int, sampling: str) -> list[tuple[int, ...]]:
    if sampling == "with_replacement":
        return list(product(range(N), repeat=size))
    return list(combinations(range(N), size))


@pytest.mark.parametrize("sampling", ["with_replacement", "without_replacement"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_batch_factors_by_enumeration(size, sampling):
    g = np.asarray(LOSS.example_gradients(X))
    means = np.array([g[list(rows)].mean(axis=0) for rows in batches(size, sampling)])
    np.testing.assert_allclose(means.mean(axis=0), LOSS.gradient(X), atol=1e-12)
    c = means - means.mean(axis=0)
    sgd = SGD(LOSS, 0.3, size, sampling)
    covariance, third = c.T @ c / len(c), np.einsum("mi,mj,mk->ijk", c, c, c) / len(c)
    np.testing.assert_allclose(sgd.noise_covariance(X), covariance, atol=1e-12)
    replaced = sampling == "with_replacement"
    factor = 1 / size if replaced else (N - size) / ((N - 1) * size)
    assert sgd.batch_factor == pytest.approx(factor, abs=1e-15)
    assert sgd.temperature == pytest.approx(0.3 * factor, abs=1e-15)
    share = (N - size) * (N - 2 * size) / ((N - 1) * (N - 2))
    third_factor = (1.0 if replaced else share) / size**2
    np.testing.assert_allclose(third, third_factor * LOSS.third_cumulant(X), atol=1e-12)


def test_one_example_has_no_noise_without_replacement():
    assert (
        SGD(finite_sum(row_loss, (A[:1], Y[:1]), DIM), 0.1, 1, "without_replacement").temperature
        == 0
    )


@given(st.floats(1e-4, 2), st.integers(1, 10_000), st.integers(1, 50))
def test_scaling_rate_and_batch_leaves_the_temperature(eta, size, c):
    first, second = SGD(QUADRATIC, eta, size), SGD(QUADRATIC, c * eta, c * size)
    assert second.temperature == pytest.approx(first.temperature, rel=1e-12)
    assert first.temperature == pytest.approx(eta / size, rel=1e-12)


def modified(x, eta):
    """F + (eta/4) |grad F|^2, its gradient by central differences of brute-force sums."""

    def value(y):
        grads = np.asarray(jax.vmap(jax.grad(row_loss), in_axes=(None, 0))(y, (A, Y)))
        losses = [float(row_loss(y, (a, b))) for a, b in zip(A, Y, strict=True)]
        return np.mean(losses) + eta / 4 * float(np.sum(grads.mean(axis=0) ** 2))

    h = 1e-5
    return np.array([(value(x + h * e) - value(x - h * e)) / (2 * h) for e in np.eye(DIM)])


def test_drifts_against_finite_differences():
    eta = 0.7
    sgd = SGD(LOSS, eta, 2)
    first, second = (diffusion_approximation(sgd, order).drift(X) for order in (1, 2))
    np.testing.assert_allclose(first, -modified(X, 0.0), atol=1e-8)
    np.testing.assert_allclose(second, -modified(X, eta), atol=1e-8)
    # Controls: eta/2 instead of eta/4, and the other sign, are far away.
    assert np.abs(second + modified(X, 2 * eta)).max() > 1e-2
    assert np.abs(second + modified(X, -eta)).max() > 1e-2


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("sampling", ["with_replacement", "without_replacement"])
def test_tensor_and_factor_agree(order, sampling):
    sgd = SGD(LOSS, 0.3, 2, sampling)
    process = diffusion_approximation(sgd, order)
    assert (process.order, process.learning_rate, process.dim) == (order, 0.3, DIM)
    columns = np.array([process.factor_vector(X, e) for e in np.eye(process.noise_dim)]).T
    np.testing.assert_allclose(columns @ columns.T, process.tensor(X), atol=1e-14)
    np.testing.assert_allclose(process.tensor(X), 0.3 * sgd.noise_covariance(X), atol=1e-14)


@pytest.mark.parametrize("mu", [0.0, 0.5, 0.9])
def test_momentum_divides_by_one_minus_mu(mu):
    plain = diffusion_approximation(SGD(LOSS, 0.1, 2))
    heavy = diffusion_approximation(SGD(LOSS, 0.1, 2, momentum=mu))
    np.testing.assert_allclose(heavy.drift(X), plain.drift(X) / (1 - mu), rtol=1e-12)
    np.testing.assert_allclose(heavy.tensor(X), plain.tensor(X) / (1 - mu) ** 2, rtol=1e-12)
    xi = RNG.standard_normal(N)
    want = plain.factor_vector(X, xi) / (1 - mu)
    np.testing.assert_allclose(heavy.factor_vector(X, xi), want, rtol=1e-12)


def test_momentum_agrees_with_the_chains_long_run_variance():
    # Linear chain: stationary variance of heavy-ball SGD, f = a x^2/2, tends to that of the
    # diffusion as eta -> 0 (for which both are eps/(2a) / (1 - mu)).
    mu, eta = 0.6, 1e-4
    step = np.array([[1 - eta, -eta * mu], [1.0, mu]])  # (x, v) -> (x - eta v', v' = mu v + x + xi)
    noise = np.outer([-eta, 1.0], [-eta, 1.0])
    stationary = np.linalg.solve(np.eye(4) - np.kron(step, step), noise.ravel()).reshape(2, 2)
    process = diffusion_approximation(SGD(QUADRATIC, eta, momentum=mu))
    pull, tensor = -float(process.drift(np.ones(1))[0]), float(process.tensor(np.ones(1))[0, 0])
    assert tensor / (2 * pull) == pytest.approx(stationary[0, 0], rel=1e-3)


# Exact moments ------------------------------------------------------------------------------------


def monomials(x):
    """1, x_i, x_i x_j (i <= j) at x (d,)."""
    rows, columns = np.triu_indices(x.shape[0])
    return jnp.concatenate([jnp.ones(1), x, x[rows] * x[columns]])


def fitted(function, dim):
    """The matrix M with function(x) = M monomials(x), for function (d,) -> (m,) quadratic in x."""
    points = np.random.default_rng(52).standard_normal((40, dim))
    basis = np.asarray(jax.vmap(monomials)(points))
    values = np.asarray(jax.vmap(function)(points))
    solution, *_ = np.linalg.lstsq(basis, values, rcond=None)
    np.testing.assert_allclose(basis @ solution, values, atol=1e-9)
    return solution.T


def generator_of(process: Diffusion) -> np.ndarray:
    """L on monomials: b . grad + (1/2) a : hess, the convention of the generator."""

    def apply(x):
        slope, bend = jax.jacfwd(monomials)(x), jax.hessian(monomials)(x)
        return slope @ process.drift(x) + 0.5 * jnp.einsum("mij,ij->m", bend, process.tensor(x))

    return fitted(apply, process.dim)


def step_of(sgd: SGD) -> np.ndarray:
    """E monomials(x') as a matrix on monomials(x), for one step of SGD."""
    d = sgd.loss.dim
    rows, columns = np.triu_indices(d)

    def apply(x):
        y = x - sgd.learning_rate * sgd.loss.gradient(x)
        second = jnp.outer(y, y) + sgd.learning_rate**2 * sgd.noise_covariance(x)
        return jnp.concatenate([jnp.ones(1), y, second[rows, columns]])

    return fitted(apply, d)


def moments(process, x0, time: float) -> np.ndarray:
    """E monomials at `time` from x0."""
    first = np.asarray(monomials(jnp.asarray(x0)))
    if isinstance(process, SGD):
        power = round(time / process.learning_rate)
        return np.linalg.matrix_power(step_of(process), power) @ first
    return expm(time * generator_of(process)) @ first


def three(sgd: SGD) -> list:
    return [sgd, diffusion_approximation(sgd), diffusion_approximation(sgd, 2)]


def test_weak_errors_of_the_quadratic():
    # T1.
    want = (0.1678094622, 0.1785685191, 0.1642442174)
    got = [moments(p, [1.0], 1.0)[2] for p in three(SGD(QUADRATIC, 0.1))]
    np.testing.assert_allclose(got, want, atol=1e-10)
    eta = 1e-3
    chain, first, second = (moments(p, [1.0], 1.0)[2] for p in three(SGD(QUADRATIC, eta)))
    assert (chain - first) / eta == pytest.approx(-0.1353353, rel=5e-3)
    assert (chain - second) / eta**2 == pytest.approx(0.3421088, rel=5e-3)


def test_weak_errors_of_least_squares():
    # T3.
    rows, targets = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]]), np.array([1.0, -1.0, 2.0])
    loss = finite_sum(lambda x, z: 0.5 * (jnp.dot(z[0], x) - z[1]) ** 2, (rows, targets), 2)
    mean = fitted(lambda x: loss.mean(x)[None], 2)[0]
    want = (0.8155641356, 0.8164431871, 0.8153610121)
    got = [mean @ moments(p, [1.0, 1.0], 1.0) for p in three(SGD(loss, 0.0125))]
    np.testing.assert_allclose(got, want, atol=2e-10)
    chain, first, second = (mean @ moments(p, [1.0, 1.0], 1.0) for p in three(SGD(loss, 0.1)))
    assert abs(first - chain) < abs(second - chain)  # order 1 is the closer one here


def test_stationary_covariance_of_a_quadratic():
    # T4, and the Lyapunov equation for order 1.
    hessian, noise = np.array([[2, 0.5], [0.5, 1]]), np.array([[1, -0.4], [-0.4, 0.5]])
    loss = additive(lambda x: 0.5 * x @ hessian @ x, "gaussian", 2, np.linalg.cholesky(noise))
    chain, first, _ = (moments(p, [0.0, 0.0], 100.0)[3:] for p in three(SGD(loss, 0.2)))
    np.testing.assert_allclose(chain, [0.07365722, -0.0527513, 0.08104661], atol=5e-8)
    lyapunov = solve_continuous_lyapunov(hessian, 0.2 * noise)
    np.testing.assert_allclose(first, lyapunov[np.triu_indices(2)], atol=1e-10)


def test_stationary_variance_under_multiplicative_noise():
    # T5.
    loss = sampled(lambda x, z: (1 + 0.8 * z[0]) * x[0] ** 2 / 2 + z[1] * x[0], "gaussian", 1, 2)
    got = [moments(p, [0.0], 100.0)[2] for p in three(SGD(loss, 0.2))]
    np.testing.assert_allclose(got, (0.1196172, 0.1068376, 0.0965251), atol=5e-8)


@pytest.mark.parametrize("eta", [0.05, 0.5])
def test_stationary_variance_in_closed_form(eta):
    a, size = 1.5, 4
    loss = additive(lambda x: a * x @ x / 2)
    want = [eta / size / (2 * a - s * eta * a * a) for s in (1, 0, -1)]
    got = [moments(p, [0.0], 200.0)[2] for p in three(SGD(loss, eta, size))]
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_mean_square_stability():
    # f = (a + b xi) x^2/2: SGD is stable below 2a/(a^2+b^2), order 1 below 2a/b^2.
    a, b = 1.0, 1.5
    loss = sampled(lambda x, z: (a + b * z[0]) * x[0] ** 2 / 2, "gaussian", 1)
    chain, first = 2 * a / (a * a + b * b), 2 * a / b**2
    for eta, stable in ((0.99 * chain, True), (1.01 * chain, False)):
        assert bool(step_of(SGD(loss, eta))[2, 2] < 1) is stable
    for eta, stable in ((0.99 * first, True), (1.01 * first, False)):
        growth = generator_of(diffusion_approximation(SGD(loss, eta)))[2, 2]
        assert bool(growth < 0) is stable


def test_rotated_coordinates_rotate_the_diffusion():
    q, _ = np.linalg.qr(RNG.standard_normal((DIM, DIM)))
    turned = finite_sum(lambda x, z: row_loss(q.T @ x, z), (A, Y), DIM)
    for order in (1, 2):
        here = diffusion_approximation(SGD(LOSS, 0.2, 2), order)
        there = diffusion_approximation(SGD(turned, 0.2, 2), order)
        np.testing.assert_allclose(there.drift(q @ X), q @ here.drift(X), rtol=1e-9)
        np.testing.assert_allclose(there.tensor(q @ X), q @ here.tensor(X) @ q.T, rtol=1e-9)


@given(st.floats(0.1, 10))
@settings(max_examples=10)
def test_a_scaled_loss_is_a_scaled_rate(c):
    # c f with eta/c is the same chain; per unit of its own time both coefficients scale by c.
    scaled = finite_sum(lambda x, z: c * row_loss(x, z), (A, Y), DIM)
    here = diffusion_approximation(SGD(LOSS, 0.2, 2), 2)
    there = diffusion_approximation(SGD(scaled, 0.2 / c, 2), 2)
    np.testing.assert_allclose(there.drift(X), c * here.drift(X), rtol=1e-9)
    np.testing.assert_allclose(there.tensor(X), c * here.tensor(X), rtol=1e-9)


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "key", "word"),
    [
        ({"learning_rate": 0.0}, "learning_rate", "positive finite"),
        ({"learning_rate": -0.1}, "learning_rate", "positive finite"),
        ({"learning_rate": np.nan}, "learning_rate", "positive finite"),
        ({"learning_rate": np.inf}, "learning_rate", "positive finite"),
        ({"learning_rate": "0.1"}, "learning_rate", "positive finite"),
        ({"learning_rate": True}, "learning_rate", "positive finite"),
        ({"learning_rate": None}, "learning_rate", "positive finite"),
        ({"learning_rate": [0.1, 0.2]}, "learning_rate", "positive finite"),
        ({"batch_size": 0}, "batch_size", "at least 1"),
        ({"batch_size": 2.0}, "batch_size", "whole number"),
        ({"batch_size": True}, "batch_size", "whole number"),
        ({"batch_size": 6, "sampling": "without_replacement"}, "batch_size", "5 examples"),
        ({"batch_size": 6, "sampling": "reshuffle"}, "batch_size", "5 examples"),
        ({"batch_size": 2, "sampling": "reshuffle"}, "batch_size", "divide the 5"),
        ({"sampling": "sometimes"}, "sampling", "with_replacement, without_replacement, reshuffle"),
        ({"momentum": 1.0}, "momentum", "[0, 1)"),
        ({"momentum": -0.1}, "momentum", "[0, 1)"),
        ({"momentum": "0.9"}, "momentum", "finite"),
    ],
)
def test_bad_arguments_are_refused(arguments, key, word):
    with pytest.raises(InputError) as caught:
        SGD(LOSS, **{"learning_rate": 0.1, **arguments})
    assert caught.value.key == key
    assert str(caught.value).startswith(f"{key} = ")
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sampled_loss_has_no_subsets():
    for sampling in ("without_replacement", "reshuffle"):
        with pytest.raises(InputError, match=r"sampling = '\w+': a sampled loss has no data set"):
            SGD(QUADRATIC, 0.1, 1, sampling)


def test_what_has_no_diffusion_is_refused():
    epochs = SGD(LOSS, 0.1, 5, "reshuffle")
    for call in (lambda: epochs.batch_factor, lambda: epochs.temperature):
        with pytest.raises(InputError, match="sampling = 'reshuffle'"):
            call()
    with pytest.raises(InputError, match="sampling = 'reshuffle'"):
        diffusion_approximation(epochs)
    with pytest.raises(InputError, match=r"momentum = 0\.5"):
        diffusion_approximation(SGD(LOSS, 0.1, momentum=0.5), 2)
    for order in (0, 3, "1", None):
        with pytest.raises(InputError, match="order = "):
            diffusion_approximation(SGD(LOSS, 0.1), order)  # type: ignore[arg-type]


def test_numbers_of_any_kind_make_the_same_chain():
    plain = SGD(LOSS, 0.5, 2)
    for eta, size in (
        (np.float32(0.5), np.int64(2)),
        (jnp.float64(0.5), np.uint8(2)),
        (np.array(0.5), 2),
    ):
        same = SGD(LOSS, eta, size)
        assert same == plain
        assert diffusion_approximation(same) is diffusion_approximation(plain)


def test_a_diffusion_of_ones_own_is_checked():
    own = diffusion(lambda x: -x, lambda x: jnp.ones((2, 3)), 2)
    np.testing.assert_allclose(own.tensor(X), np.full((2, 2), 3.0))
    np.testing.assert_allclose(own.factor_vector(X, np.arange(3.0)), [3.0, 3.0])
    with pytest.raises(InputError, match="drift = "):
        diffusion(lambda x: x[:1], lambda x: jnp.eye(2), 2)
    with pytest.raises(InputError, match="factor = "):
        diffusion(lambda x: x, lambda x: jnp.ones(2), 2)
    with pytest.raises(InputError, match="learning_rate = "):
        diffusion(lambda x: x, lambda x: jnp.eye(2), 2, learning_rate=0.0)
