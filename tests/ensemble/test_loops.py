"""Large networks on array code: chosen by itself, the same answer, the same bits, soon compiled."""

import ctypes
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from batchwell import (
    SGD,
    additive,
    ball,
    diffusion,
    diffusion_approximation,
    memory,
    sublevel,
)
from batchwell.ensemble import advance, first_exits, fused, loop_dot, observe, start
from batchwell.ensemble.kernels import ARGS
from batchwell.ensemble.loop_arrays import Known, Loops
from batchwell.ensemble.mapped import mapped
from batchwell.ensemble.vector import Code
from batchwell.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from networks import network

BIG = network(64, 32, 10, 40, 1e-4)
START = 0.2 * np.random.default_rng(9).standard_normal(BIG.dim)
PROCESSES = {
    "B=1": SGD(BIG, 0.3, 1),
    "B=13": SGD(BIG, 0.3, 13),
    "B=35, subsets": SGD(BIG, 0.3, 35, "without_replacement"),
    "epochs with momentum": SGD(BIG, 0.1, 8, "reshuffle", 0.5),
    "diffusion": diffusion_approximation(SGD(BIG, 0.3, 8), 1),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_a_network_of_2410_parameters(name):
    process = PROCESSES[name]
    clock = time.process_time()
    engine = fused.engine_of(process)
    fused.Advancer(engine, 2, 1)
    assert engine.recipe.loops
    assert time.process_time() - clock < 5  # source and compilation
    state = start(process, START, 10, seed=2, substeps=2)
    looped = advance(process, state, 3, substeps=2, engine="fused")
    plain = advance(process, state, 3, substeps=2, engine="xla")
    np.testing.assert_array_equal(looped.rng, plain.rng)
    np.testing.assert_allclose(looped.x, plain.x, rtol=1e-10, atol=1e-12)
    again = advance(process, state, 1, substeps=2, threads=1)
    again = advance(process, again, 2, substeps=2, threads=3)
    np.testing.assert_array_equal(again.x, looped.x)
    single = advance(process, state, 3, substeps=2, precision="float32")
    if isinstance(process, SGD):  # the same examples; a diffusion's normals are others in float32
        moved = np.abs(plain.x - state.x).max()
        assert np.abs(single.x - plain.x).max() < 1e-4 * moved
    else:
        assert np.isfinite(single.x).all()


def test_a_diffusion_in_forty_dimensions():
    rng = np.random.default_rng(3).standard_normal((40, 40))
    matrix = rng @ rng.T / 40 + np.eye(40)
    dense = diffusion(lambda x: -(matrix @ x + 0.1 * x**3), lambda x: 0.5 * jnp.eye(40), 40, 0.01)
    assert fused.engine_of(dense, "euler").recipe.loops
    state = start(dense, np.full(40, 0.5), 9, seed=2, substeps=1)
    for scheme in ("euler", "heun"):
        a, b = (
            advance(dense, state, 20, substeps=1, scheme=scheme, engine=e) for e in ("fused", "xla")
        )
        np.testing.assert_allclose(a.x, b.x, rtol=1e-11, atol=1e-13)


def test_a_thousand_parameters_with_additive_noise():
    """The known matrix of the noise is diagonal: no product of d^2 terms is written."""
    many = additive(lambda x: jnp.sum(x**4) / 4 - x @ x / 2, dim=1000, scale=0.3)
    for process in (SGD(many, 0.05, 4), diffusion_approximation(SGD(many, 0.05, 4), 2)):
        engine = fused.engine_of(process)
        assert engine.recipe.loops
        state = start(process, np.full(1000, 0.2), 9, seed=2, substeps=2)
        a, b = (advance(process, state, 3, substeps=2, engine=e) for e in ("fused", "xla"))
        np.testing.assert_allclose(a.x, b.x, rtol=1e-11, atol=1e-13)


def test_exits_and_moments_of_a_network():
    loss = network(24, 16, 4, 20, 1e-4)
    begin = START[: loss.dim]
    process, rough = SGD(loss, 0.3, 13), SGD(loss, 2.0, 1)
    assert fused.engine_of(process).recipe.loops
    rim = float(loss.mean(begin)) + 0.02
    for sgd, domain in ((process, ball(begin, 0.35)), (rough, sublevel(loss.mean, rim, loss.dim))):
        a, b = (first_exits(sgd, begin, domain, 12, 20, seed=3, engine=e) for e in ("fused", "xla"))
        np.testing.assert_array_equal(a.steps, b.steps)
        np.testing.assert_allclose(a.points, b.points, rtol=1e-9, atol=1e-11)
        assert a.observed.any()
    state = start(process, begin, 10, seed=2)
    a, b = (
        observe(process, state, 6, every=2, bins=(-1, 1, 4), engine=e) for e in ("fused", "xla")
    )
    np.testing.assert_allclose(a.totals, b.totals, rtol=1e-9, atol=1e-11)
    np.testing.assert_array_equal(a.counts, b.counts)
    assert a.times == 3


def test_a_small_process_goes_over_to_array_code_for_a_large_test_or_observable():
    """A mean over 3000 rows, given as a plain function: no fall back, no warning."""
    table = jnp.asarray(np.random.default_rng(2).standard_normal((3000, 2)))
    process = SGD(additive(lambda x: x @ x / 2, dim=2), 0.1)

    def mean(x):
        return jnp.mean(jax.nn.softplus(table @ x)) + x @ x

    a, b = (
        first_exits(process, [0.1, 0.2], sublevel(mean, 1.0, 2), 60, 30, seed=3, engine=e)
        for e in ("fused", "xla")
    )
    np.testing.assert_array_equal(a.steps, b.steps)
    assert a.observed.any()
    state = start(process, [0.1, 0.2], 10, seed=2)
    a, b = (observe(process, state, 6, mean, engine=e) for e in ("fused", "xla"))
    np.testing.assert_allclose(a.totals, b.totals, rtol=1e-12)


def test_a_long_step_is_made_in_several_calls(monkeypatch):
    """So that Ctrl-C is answered: calls of 0.3 s are too long here, and get shorter."""
    process = SGD(additive(lambda x: x @ x / 2), 0.1)
    state = start(process, [0.4], 3000, seed=1)
    monkeypatch.setattr(fused, "FIRST_SPAN", 64)
    monkeypatch.setattr(fused, "CALL_SECONDS", 0.02)
    engine = fused.engine_of(process)
    stepper = fused.Stepper(engine, 1, 1, state.x, state.rng, state.memory)
    kernel, calls = stepper.advance.call, []

    def slow(arguments):
        queue, end = (int(arguments[ARGS.index(name)]) for name in ("queue", "blocks"))
        calls.append(end - ctypes.c_int64.from_address(queue).value)
        time.sleep(0.001 * calls[-1])
        kernel(arguments)

    stepper.advance.call = slow
    x = stepper(0, 1)
    assert sum(calls) == len(stepper.blocks.x)
    assert min(calls[1:-1]) < 64
    np.testing.assert_array_equal(x, advance(process, state, 1).x)


def test_a_kernel_that_needs_more_memory_than_there_is_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 10_000)
    many = additive(lambda x: jnp.sum(x**4) / 4, dim=2000, scale=0.31)
    with pytest.raises(InputError, match="are free: use precision='float32'"):
        fused.Advancer(fused.engine_of(SGD(many, 0.1), loops=True), 1)


@pytest.mark.parametrize("shape", [(1, 9, 1), (3, 40, 1), (9, 17, 1), (33, 5, 7), (2, 3, 11)])
def test_products_have_the_same_bits_on_narrow_processors(shape, monkeypatch):
    rows, depth, columns = shape
    left = jnp.asarray(np.random.default_rng(1).standard_normal((rows, depth)))

    def product(x):
        return (left @ jnp.outer(x, jnp.linspace(0.3, 2.0, columns))).ravel()

    points = np.random.default_rng(2).standard_normal((9, depth))
    results = []
    for wide in (True, False):
        monkeypatch.setattr(loop_dot, "wide_registers", lambda wide=wide: wide)
        results.append(mapped(product, depth, loops=True)(points))
    np.testing.assert_array_equal(*results)
    np.testing.assert_allclose(results[0], np.asarray(jax.vmap(product)(points)), rtol=1e-12)


def test_room_is_used_again():
    """A chain of products needs as much memory as two of them."""
    code = Code("trial", ["args"], 8)
    w = Loops(code, "f64")
    value = w.whole(w.take(100), (100,))
    first = code.heap_bytes
    for _ in range(10):
        value = w.store(w.combine(lambda a: w.graph.unary("tanh", a), [value], (100,)))
    assert code.heap_bytes <= 2 * first


def test_padding_and_constants_cost_no_code():
    code = Code("trial", ["args"], 8)
    w = Loops(code, "f64")
    x = w.whole(w.take(100), (100,))
    before = len(code.lines)
    ones, zeros = Known(np.ones(100)), Known(np.zeros(100))
    product = w.combine(w.graph.mul, [x, ones], (100,))
    total = w.combine(w.graph.add, [product, zeros], (100,))
    assert total.view is not None
    assert w.store(total, x.view).shape == (100,)
    assert len(code.lines) == before
