"""Generators on grids: exit times, committors, laws, full tensors, curved boundaries."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from batchwell import (
    SGD,
    InputError,
    additive,
    ball,
    diffusion,
    diffusion_approximation,
    finite_sum,
)
from batchwell.law import (
    committor,
    exit_position,
    exit_time,
    exit_time_variation,
    expectation,
    generator,
    law_after,
    quasi_stationary,
    quasi_stationary_exit,
    relaxation_time,
    spectrum,
    stationary,
    stationary_expectation,
)
from batchwell.law.smooth import smooth_expectation
from batchwell.law.stencils import decompose


def ornstein(eps, dim=1):
    return diffusion(lambda x: -x, lambda x: math.sqrt(eps) * jnp.eye(dim), dim)


@pytest.mark.parametrize(
    ("eps", "time"), [(0.5, 4.50160241622907), (0.2, 66.2282042903586), (0.1, 6545.76506341078)]
)
def test_t7_exit_of_the_ornstein_uhlenbeck_process(eps, time):
    answer = exit_time(generator(ornstein(eps), (-1, 1)), [0.0])
    assert answer.value == pytest.approx(time, rel=3e-13)
    assert abs(answer.value - time) <= answer.stderr + 1e-12 * time


def test_t7_coefficient_of_variation():
    answer = exit_time_variation(generator(ornstein(0.1), (-1, 1)), [0.0])
    assert answer.value == pytest.approx(0.999794, abs=6e-7)


@pytest.mark.parametrize(
    ("eps", "time"), [(0.2, 66.26862636), (0.1, 729.6706919), (0.05, 102108.3655)]
)
def test_t8_double_well(eps, time):
    # eta = eps: answers are in steps, times in the truths are t = eta k.
    well = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4)
    flow = diffusion_approximation(SGD(well, eps))
    answer = exit_time(generator(flow, (-math.inf, 1)), [-1.0])
    assert answer.value * eps == pytest.approx(time, rel=6e-10)
    kramers = 4.442883 * math.exp(0.5 / eps)
    assert answer.value * eps / kramers == pytest.approx(1 + 0.75 * eps, abs=4 * eps**2)


@pytest.mark.parametrize(("eps", "time"), [(0.1, 184.96224), (0.05, 7791.9342)])
def test_t9_state_dependent_noise(eps, time):
    flow = diffusion(lambda x: x - x**3, lambda x: jnp.sqrt(eps * (1 + x[0] ** 2)) * jnp.eye(1), 1)
    answer = exit_time(generator(flow, (-math.inf, 1)), [-1.0])
    assert answer.value == pytest.approx(time, rel=3e-8)


def test_a_wrong_factor_two_loses():
    wrong = generator(ornstein(0.4), (-1, 1))
    answer = exit_time(wrong, [0.0])
    assert abs(answer.value - 66.2282042903586) > 1e6 * answer.stderr


def test_rare_exits_keep_their_digits():
    # E tau ~ 1e30: against the closed double integral in extended precision.
    eps = 0.0145
    answer = exit_time(generator(ornstein(eps), (-1, 1), nodes=2048), [0.0])
    assert answer.value == pytest.approx(_ou_exit(eps), rel=1e-9)
    assert answer.value > 1e28


def _ou_exit(eps):
    # tau(0) = 2/eps int_0^1 dy e^{y^2/eps} int_0^y dz e^{-z^2/eps}
    t, w = np.polynomial.legendre.leggauss(40)
    edges = np.linspace(0, 1, 101)
    y = (edges[:-1, None] + np.diff(edges)[:, None] * (t + 1) / 2).ravel()
    wy = (np.diff(edges)[:, None] * w / 2).ravel()
    inner = np.array([math.erf(v / math.sqrt(eps)) for v in y]) * math.sqrt(math.pi * eps) / 2
    return 2 / eps * float(np.sum(wy * np.exp(y**2 / eps) * inner))


@pytest.mark.parametrize("d", [2, 3])
def test_decomposition_of_random_tensors(d):
    rng = np.random.default_rng(d)
    roots = rng.standard_normal((200, d, d))
    tensors = roots @ np.swapaxes(roots, 1, 2) + 1e-3 * np.eye(d)
    w, e = decompose(tensors)
    assert (w >= 0).all()
    np.testing.assert_allclose(np.einsum("nk,nki,nkj->nij", w, e, e), tensors, atol=1e-10)


def full():
    root = 0.5 * jnp.array([[1.0, 0.0], [0.8, 0.4]])
    return diffusion(
        lambda x: -jnp.array([[1.0, 0.3], [0.1, 2.0]]) @ x,
        lambda x: root * (1 + 0.2 * x[0] ** 2),
        2,
    )


def test_rates_are_those_of_a_markov_chain():
    op = generator(full(), ball([0.0, 0.0], 1.0), nodes=32, bounds=((-1.1, -1.1), (1.1, 1.1)))
    assert op.rates.min() >= 0
    assert op.exits.min() >= 0
    assert op.rates.diagonal().max() == 0


def test_generator_reproduces_drift_and_tensor():
    flow = full()
    op = generator(flow, ((-1, -1), (1, 1)), nodes=128)
    x = op.nodes
    inner = np.flatnonzero((np.abs(x) < 0.8).all(axis=1))[::1037]
    for i in inner:
        row = op.rates[[i]].toarray()[0]
        step = x - x[i]
        b, a = row @ step, (row[:, None] * step).T @ step
        point = jnp.asarray(x[i])
        np.testing.assert_allclose(b, np.asarray(flow.drift(point)), atol=1e-9)
        np.testing.assert_allclose(a, np.asarray(flow.tensor(point)), atol=2e-2)


def test_rotation_of_the_problem():
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    q, flow = jnp.asarray(turn), full()
    turned = diffusion(
        lambda x: q @ flow.drift(q.T @ x),
        lambda x: q @ (0.5 * jnp.array([[1.0, 0.0], [0.8, 0.4]])) * (1 + 0.2 * (q.T @ x)[0] ** 2),
        2,
    )
    place, bounds = ball([0.0, 0.0], 1.0), ((-1.02, -1.02), (1.02, 1.02))
    x0 = np.array([0.2, -0.1])
    a = exit_time(generator(flow, place, nodes=96, bounds=bounds), x0)
    b = exit_time(generator(turned, place, nodes=96, bounds=bounds), turn @ x0)
    assert a.value == pytest.approx(b.value, rel=2e-4)
    assert abs(a.value - b.value) < 5 * (a.stderr + b.stderr)


def test_brownian_motion_leaves_a_ball():
    for d, x0 in ((2, [0.3, 0.4]), (3, [0.5, 0.0, 0.0])):
        flow = diffusion(lambda x: 0 * x, lambda x, d=d: jnp.eye(d), d)
        answer = exit_time(generator(flow, ball(np.zeros(d), 1.0), nodes=64 if d == 2 else 20), x0)
        assert answer.value == pytest.approx((1 - np.dot(x0, x0)) / d, rel=2e-3)


def test_product_of_two_independent_exits():
    """On a box the survival chance of independent coordinates is a product."""
    op = generator(ornstein(0.5, 2), ((-1, -1), (1, 1)), nodes=48)
    one = generator(ornstein(0.5), (-1, 1), nodes=256)
    kept = law_after(one, [0.0], 2).mass.sum()
    assert law_after(op, [0.0, 0.0], 2).mass.sum() == pytest.approx(kept**2, rel=2e-3)
    sides = exit_position(op, [0.0, 0.0])
    assert [round(s.value, 6) for s in sides.values()] == [0.25] * 4


def test_reflecting_and_absorbing_ends():
    half = generator(ornstein(0.5), (0, 1), boundary=(("reflecting", "absorbing"),))
    assert exit_time(half, [0.0]).value == pytest.approx(4.50160241622907, rel=1e-10)


def test_committor_of_brownian_motion():
    flow = diffusion(lambda x: 0 * x, lambda x: jnp.eye(1), 1)
    assert committor(generator(flow, (0, 1)), [0.3], "upper").value == pytest.approx(0.3)


def test_committor_between_two_sets():
    flow = diffusion(lambda x: 0 * x, lambda x: jnp.eye(2), 2)
    from batchwell.domain import Domain

    ring = Domain("ring", 2, lambda x: jnp.maximum(x @ x - 1.0, 0.04 - x @ x))
    op = generator(
        flow,
        ring,
        nodes=128,
        bounds=((-1.01, -1.01), (1.01, 1.01)),
        parts=(("inner", "outer"), lambda p: (np.sum(p * p, axis=1) > 0.5).astype(int)),
    )
    want = math.log(0.5) / math.log(0.2)
    assert committor(op, [0.5, 0.0], "inner").value == pytest.approx(want, rel=5e-3)


def test_spectrum_of_ornstein_uhlenbeck():
    flow = diffusion(lambda x: -x, lambda x: jnp.sqrt(0.2) * jnp.eye(1), 1, learning_rate=0.1)
    op = generator(flow, (-math.inf, math.inf))
    np.testing.assert_allclose(np.log(np.abs(spectrum(op, 3))) / 0.1, [0, -1, -2], atol=2e-3)
    assert relaxation_time(op).value == pytest.approx(10.0, rel=1e-6)


def test_stationary_laws():
    op = generator(ornstein(0.2), (-math.inf, math.inf))
    second = stationary_expectation(op, lambda x: x[:, 0] ** 2)
    assert second.value == pytest.approx(0.1, rel=1e-9)
    wide = generator(ornstein(0.2, 2), ((-2, -2), (2, 2)), nodes=48, boundary="reflecting")
    np.testing.assert_allclose(stationary(wide).covariance, 0.1 * np.eye(2), atol=1e-3)


def test_quasi_stationary_exit():
    op = generator(ornstein(0.1), (-1, 1))
    assert quasi_stationary_exit(op).value == pytest.approx(exit_time(op, [0.0]).value, rel=1e-3)


def test_fokker_planck_and_kolmogorov_agree():
    op = generator(ornstein(0.2), (-math.inf, math.inf), nodes=128, include=(0.5,))

    def square(x):
        return x[:, 0] ** 2

    forward, back = law_after(op, [0.5], 1).expect(square), expectation(op, square, [0.5], 1)
    want = 0.25 * math.exp(-2) + 0.1 * (1 - math.exp(-2))
    assert forward == pytest.approx(want, rel=1e-2)
    assert back.value == pytest.approx(want, rel=1e-6)
    exact = smooth_expectation(ornstein(0.2), square, [0.5], 1)
    assert exact.value == pytest.approx(want, rel=1e-12)


def test_answers_are_in_steps():
    a = diffusion(lambda x: -x, lambda x: jnp.sqrt(0.5) * jnp.eye(1), 1, learning_rate=0.1)
    answer = exit_time(generator(a, (-1, 1)), [0.0])
    assert answer.value == pytest.approx(45.0160241622907)
    assert answer.unit == "steps"


def test_same_temperature_same_time():
    """(eta, B) -> (c eta, c B) leaves eps, and with it the diffusion's time t, alone."""
    well = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4)
    times = [
        exit_time(generator(diffusion_approximation(SGD(well, 0.1 * c, c)), (-2, 0)), [-1.0]).value
        * 0.1
        * c
        for c in (1, 4)
    ]
    assert times[0] == pytest.approx(times[1], rel=1e-12)


def test_refusals():
    one = finite_sum(lambda x, z: 0.5 * (z @ x) ** 2, np.array([[1.0, 1.0], [2.0, 2.0]]), 2)
    flow = diffusion_approximation(SGD(one, 0.1))
    with pytest.raises(InputError, match="singular"):
        generator(flow, ((-1, -1), (1, 1)), nodes=16)
    with pytest.raises(InputError, match="GiB"):
        generator(ornstein(0.1, 3), ((-1,) * 3, (1,) * 3), nodes=400)
    with pytest.raises(InputError, match="1, 2 and 3"):
        generator(ornstein(0.1, 4), ((-1,) * 4, (1,) * 4))
    with pytest.raises(InputError, match="confines"):
        generator(diffusion(lambda x: x, lambda x: jnp.eye(1), 1), (-math.inf, 1))
    with pytest.raises(InputError, match="boundary"):
        generator(ornstein(0.1), (-1, 1), boundary="open")


def test_iterative_solver_keeps_relative_digits(monkeypatch):
    """3-D grids beyond a size are solved iteratively, to the same digits as directly."""
    from batchwell.law import sparse_solver

    root = 0.22 * jnp.array([[1.0, 0.0, 0.0], [0.4, 1.0, 0.0], [0.0, 0.3, 1.0]])
    flow = diffusion(lambda x: jnp.stack([x[0] - x[0] ** 3, -x[1], -2 * x[2]]), lambda x: root, 3)
    sides = (("reflecting", "absorbing"), ("reflecting",) * 2, ("reflecting",) * 2)

    def answer():
        op = generator(flow, ((-1.6, -0.7, -0.7), (0, 0.7, 0.7)), nodes=20, boundary=sides)
        return exit_time(op, [-1.0, 0.0, 0.0]).value

    direct = answer()
    assert direct > 1e4
    monkeypatch.setattr(sparse_solver, "DIRECT_3D", 2000)
    assert answer() == pytest.approx(direct, rel=1e-9)


def test_rare_exits_in_the_plane():
    """A second, independent direction changes nothing: 1e13 and more steps, to mesh error."""
    eps = 0.03
    one = exit_time(generator(ornstein(eps), (-1, 1)), [0.0]).value
    flow = ornstein(eps, 2)
    sides = (("absorbing", "absorbing"), ("reflecting", "reflecting"))
    op = generator(flow, ((-1, -0.8), (1, 0.8)), nodes=(256, 48), boundary=sides)
    answer = exit_time(op, [0.0, 0.0])
    assert one > 1e13
    assert answer.value == pytest.approx(one, rel=1e-3)
    assert abs(answer.value - one) < 2 * answer.stderr


def test_laws_and_spectra_in_space_need_no_direct_factors(monkeypatch):
    """The iterative solver of large 3-D grids, forced on a small one, against direct factors."""
    flow = ornstein(0.3, 3)
    box = ((-1,) * 3, (1,) * 3)

    def answers():
        op = generator(flow, box, nodes=12)
        return quasi_stationary(op).rate, spectrum(op, 3).real, quasi_stationary(op).mass

    direct = answers()
    monkeypatch.setattr("batchwell.law.sparse_solver.DIRECT_3D", 100)
    assert generator(flow, box, nodes=12).solver.iterative
    for a, b in zip(direct, answers(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10)
