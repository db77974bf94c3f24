"""The gallery: every entry builds, and what it claims to know is true where that is cheap to see.

Statistical budget: two mean exit times at 4 standard errors (6e-5 each). Everything else is exact:
quadratures, moment equations, minima, and contracts of the roster.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from batchwell.dynamics import SGD, diffusion_approximation
from batchwell.ensemble import first_exits
from batchwell.errors import InputError
from batchwell.landscape import quench
from batchwell.law import exit_time, transfer_operator
from batchwell.loss import additive, check_at
from batchwell.problems import PROBLEMS, problem
from batchwell.problems.real import logistic_minimum, network_data
from batchwell.settings import make_settings

ALL = {name: build() for name, build in PROBLEMS.items()}


def known(name: str, question: str, process: str) -> list:
    return [k for k in ALL[name].known if (k.question, k.process) == (question, process)]


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_builds(name):
    entry = ALL[name]
    assert entry.name == name
    assert problem(name).name == name
    assert entry.summary
    start = np.array(entry.start)
    if entry.stochastic_loss is None:
        assert entry.process is not None
        with pytest.raises(InputError, match="has no loss"):
            _ = entry.loss
        process = entry.process(0.04)
        np.testing.assert_allclose(process.tensor(start), 0.04 * np.eye(2), atol=1e-15)
    else:
        check_at(entry.loss, start)
        process = diffusion_approximation(SGD(entry.loss, 0.1, 2))
        tensor = np.asarray(process.tensor(start))
        np.testing.assert_allclose(
            tensor, 0.05 * np.asarray(entry.loss.covariance(start)), atol=1e-12
        )
    if entry.domain is not None:
        assert bool(entry.domain.contains(start))
    make_settings({"problem": name, **entry.settings})
    for answer in entry.known:
        assert answer.source
        assert answer.process in ("sgd", "diffusion-1", "diffusion-2")
        assert np.isfinite(np.asarray(answer.value, dtype=float)).all()


def test_an_unknown_problem_lists_the_gallery():
    with pytest.raises(InputError, match="problem = 'triple-well': must be one of double-well, "):
        problem("triple-well")


@pytest.mark.parametrize(
    ("given", "ending"),
    [("double_well", r"; did you mean double-well\?$"), ("cosine", "[a-z]$"), (3, "[a-z]$")],
)
def test_a_misspelt_name_is_answered_with_the_nearest(given, ending):
    with pytest.raises(InputError, match="must be one of double-well, .*" + ending):
        problem(given)


def mean_exit_time(force, sigma2, start, low, high) -> float:
    """1-D mean exit time by quadrature; `low` reflecting if -inf, `high` absorbing; start inside.

    For dX = force dt + sqrt(sigma2) dW with scale density exp(-psi), psi = 2/sigma2 times the
    integral of force. Only for one absorbing end: E tau = 2/sigma2 int_start^high dy e^{-psi(y)}
    int_low^y e^{psi(z)} dz.
    """

    def psi(y):
        return 2 / sigma2 * quad(force, 0, y)[0]

    def inner(y):
        return quad(lambda z: math.exp(psi(z) - psi(y)), low, y, epsabs=1e-12)[0]

    return 2 / sigma2 * quad(inner, start, high, epsabs=1e-9, epsrel=1e-9)[0]


def test_double_wells_diffusion_times_by_quadrature():
    process = {
        k.settings["learning_rate"]: k
        for k in known("double-well", "mean_exit_time", "diffusion-1")
    }
    for eta in (0.2, 0.1):
        got = mean_exit_time(lambda x: x - x**3, eta, -1.0, -4.0, 1.0)
        assert got == pytest.approx(process[eta].value, rel=1e-7)
        assert process[eta].unit == "time"


def test_saddles_diffusion_times_in_closed_form():
    # (1/2)[log(4/eps) + gamma] - eps/4, up to higher order in eps.
    for answer in known("linear-saddle", "mean_exit_time", "diffusion-1"):
        eps = answer.settings["learning_rate"]
        formula = 0.5 * (math.log(4 / eps) + np.euler_gamma) - eps / 4
        assert answer.value == pytest.approx(formula, abs=10 * eps**2)


@pytest.mark.parametrize(("name", "eta"), [("double-well", 0.2), ("linear-saddle", 0.1)])
def test_sgds_exit_times_by_simulation(name, eta):
    entry = ALL[name]
    truth = next(
        k for k in known(name, "mean_exit_time", "sgd") if k.settings["learning_rate"] == eta
    )
    assert truth.unit == "steps"
    exits = first_exits(SGD(entry.loss, eta), entry.start, entry.domain, 20_000, 8000, seed=91)
    assert exits.observed.all()
    error = exits.steps.std() / math.sqrt(8000)
    assert abs(exits.steps.mean() - truth.value) < 4 * error
    # Control: the diffusion's answer, in steps, is another number.
    other = next(
        (k.value / eta for k in known(name, "mean_exit_time", "diffusion-1")
         if k.settings["learning_rate"] == eta),
        0.5 * (math.log(4 / eta) + np.euler_gamma) / eta,
    )  # fmt: skip
    assert abs(exits.steps.mean() - other) > 4 * error


def test_quadratics_stationary_covariance_solves_its_equation():
    (answer,) = known("quadratic", "stationary_covariance", "sgd")
    loss, eta = ALL["quadratic"].loss, answer.settings["learning_rate"]
    h, sigma = (np.asarray(f(jnp.zeros(2))) for f in (loss.hessian, loss.covariance))
    c = np.array(answer.value)
    np.testing.assert_allclose(h @ c + c @ h - eta * h @ c @ h, eta * sigma, atol=1e-7)
    np.testing.assert_allclose(h, [[2, 0.5], [0.5, 1]])
    np.testing.assert_allclose(sigma, [[1, -0.4], [-0.4, 0.5]], atol=1e-12)


def test_least_squares_is_the_stated_one():
    loss = ALL["least-squares"].loss
    assert float(loss.mean(jnp.ones(2))) == pytest.approx((0 + 9 / 2 + 0) / 3)
    values = {k.process: k.value for k in known("least-squares", "mean_loss", "sgd")}
    assert values == {"sgd": 0.8155641356}
    assert len(ALL["least-squares"].known) == 3


def test_maier_steins_drift_and_its_saddle():
    process = ALL["maier-stein"].process(1.0)
    for x in ([-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]):
        np.testing.assert_allclose(process.drift(jnp.array(x)), 0, atol=1e-15)
    u, v = 0.4, -0.7
    want = [u - u**3 - 10 * u * v * v, -(1 + u * u) * v]
    np.testing.assert_allclose(process.drift(jnp.array([u, v])), want)


def test_tilted_wells_have_unequal_minima():
    loss = ALL["tilted-well"].loss
    q = quench(loss, [[-1.0], [1.3]])
    left, right = q.attractors.centers[q.labels].ravel()
    assert left < -0.9
    assert right > 0.5
    curvature = [float(loss.hessian(jnp.array([x]))[0, 0]) for x in (left, right)]
    assert min(curvature) > 0
    assert abs(curvature[0] - curvature[1]) > 0.5


def test_the_logistic_problem_is_the_stated_one():
    entry = ALL["breast-cancer-logistic"]
    loss = entry.loss
    assert (loss.n, loss.dim) == (569, 3)
    best = logistic_minimum(loss)
    np.testing.assert_allclose(best, entry.start)
    assert np.linalg.norm(np.asarray(loss.gradient(jnp.asarray(best)))) < 1e-12
    assert np.linalg.eigvalsh(np.asarray(loss.hessian(jnp.asarray(best))))[0] >= 0.05
    # The domain is {F < F* + .02}.
    direction = np.array([1.0, 0.0, 0.0])
    height = float(loss.mean(jnp.asarray(best)))
    for scale in np.linspace(0, 2, 9):
        x = best + scale * direction
        inside = float(loss.mean(jnp.asarray(x))) < height + 0.02
        assert bool(entry.domain.contains(x)) == inside


def test_the_network_is_the_stated_one():
    entry = ALL["breast-cancer-network"]
    inputs, labels = network_data()
    assert inputs.shape == (120, 4)
    assert set(labels) == {-1.0, 1.0}
    assert (entry.loss.n, entry.loss.dim) == (120, 25)
    again = network_data()
    np.testing.assert_array_equal(inputs, again[0])
    rng = np.random.default_rng(92)
    w = rng.standard_normal(25)
    hidden = np.tanh(inputs @ w[:16].reshape(4, 4).T + w[16:20])
    score = hidden @ w[20:24] + w[24]
    want = np.mean(np.log1p(np.exp(-labels * score))) + 0.5e-3 * w @ w
    assert float(entry.loss.mean(jnp.asarray(w))) == pytest.approx(want, rel=1e-12)
    # Its symmetry really leaves the loss unchanged: swap units 0 and 2, flip unit 1.
    units = [[*range(4 * j, 4 * j + 4), 16 + j, 20 + j] for j in range(4)]
    image = w.copy()
    image[units[0]], image[units[2]] = w[units[2]], w[units[0]]
    image[units[1]] = -w[units[1]]
    assert float(entry.loss.mean(jnp.asarray(image))) == pytest.approx(want, rel=1e-12)
    assert entry.symmetry.distance(image, w) == pytest.approx(0, abs=1e-12)
    assert entry.symmetry.distance(rng.standard_normal(25), w) > 1
    assert jax.config.jax_enable_x64


def test_the_digits_network_is_the_stated_one_and_its_tests_are_held_out():
    from batchwell.problems.real import digits_data

    entry = ALL["digits-network"]
    (inputs, labels), (held, truth) = digits_data()
    assert (inputs.shape, held.shape) == ((150, 6), (1647, 6))
    assert (len(labels), len(truth)) == (150, 1647)
    assert (entry.loss.n, entry.loss.dim) == (150, 33)
    # No training row is held out.
    assert not {tuple(row) for row in inputs} & {tuple(row) for row in held}
    assert set(truth) == {-1.0, 1.0}
    w = np.random.default_rng(93).standard_normal(33)
    hidden = np.tanh(held @ w[:24].reshape(4, 6).T + w[24:28])
    score = hidden @ w[28:32] + w[32]
    error = float(entry.tests["test error"].mean(jnp.asarray(w)))
    assert error == pytest.approx(np.mean(truth * score <= 0), abs=1e-12)
    loss = float(entry.tests["test loss"].mean(jnp.asarray(w)))
    assert loss == pytest.approx(np.mean(np.log1p(np.exp(-truth * score))), rel=1e-9)
    image = entry.symmetry.align(w, np.random.default_rng(94).standard_normal(33))
    assert float(entry.loss.mean(image)) == pytest.approx(float(entry.loss.mean(w)), abs=1e-12)


def test_the_product_of_wells_is_left_as_its_coordinates_are():
    # The chance to be inside is the product of three chains' in one dimension; 4 standard errors.
    entry, chance = ALL["product-wells"], 1.0
    (answer,) = (k for k in known("product-wells", "mean_exit_time", "sgd") if k.value < 100)
    for scale in (1.0, 1.25, 1.5):
        well = additive(lambda x, a=scale: a * (x @ x - 1) ** 2 / 4)
        op = transfer_operator(SGD(well, 0.2), (-3, 0))
        law, inside = op.row(np.array([[-1.0]]))[0][0], [1.0]
        while len(inside) < 3000:
            inside.append(law.sum())
            law = law @ op.rates
        chance = chance * np.array(inside)
    assert answer.value == pytest.approx(chance.sum(), rel=1e-7)
    sgd = SGD(entry.loss, 0.2)
    seen = first_exits(sgd, entry.start, entry.domain, 4096, 4096, seed=5).steps
    assert abs(seen.mean() - answer.value) < 4 * seen.std() / 64
    assert seen.mean() < 0.6 * mean_of_first(0.2)  # one coordinate alone stays much longer


def mean_of_first(eta: float) -> float:
    """Mean steps until the first coordinate of product-wells alone comes to 0."""
    well = additive(lambda x: (x @ x - 1) ** 2 / 4)
    return exit_time(transfer_operator(SGD(well, eta), (-3, 0)), [-1.0]).value
