"""The fused engine against XLA on the same random bits: generators equal, positions to rounding.

XLA runs `step.step_of`, a few lines of jax.numpy for one path; it shares no code with the fused
kernels but the losses themselves.
"""

import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from batchwell import SGD, additive, ball, box, diffusion, diffusion_approximation, sublevel
from batchwell.ensemble import (
    SlowerEngine,
    advance,
    exits,
    first_exits,
    fused,
    observe,
    options,
    run_trials,
    start,
)
from batchwell.errors import Divergence, InputError

sys.path.insert(0, str(Path(__file__).parent))

from roster import EXITS, PROCESSES, begin, well


@pytest.mark.parametrize("name", PROCESSES)
def test_same_paths(name, mode):
    process = PROCESSES[name]
    state = begin(process, 19)
    for steps in (2, 5):
        there = advance(process, state, steps, substeps=2, engine="fused")
        plain = advance(process, state, steps, substeps=2, engine="xla")
        np.testing.assert_array_equal(there.rng, plain.rng)
        np.testing.assert_allclose(there.x, plain.x, rtol=1e-12, atol=1e-13)
        for a, b in zip(_leaves(there.memory), _leaves(plain.memory), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)
        state = there


@pytest.mark.parametrize("scheme", ["euler", "platen"])
@pytest.mark.parametrize("name", ["own diffusion", "plane, order 2"])
def test_same_schemes(name, scheme, mode):
    process = PROCESSES[name]
    state = begin(process, 19)
    options = {"substeps": 2, "scheme": scheme}
    there = advance(process, state, 5, engine="fused", **options)
    plain = advance(process, state, 5, engine="xla", **options)
    np.testing.assert_array_equal(there.rng, plain.rng)
    np.testing.assert_allclose(there.x, plain.x, rtol=1e-12, atol=1e-13)


def _leaves(memory):
    return [np.asarray(a) for a in jax.tree.leaves(memory)]


@pytest.mark.parametrize("name", EXITS)
def test_same_exits(name, mode):
    process, x0, domain, horizon = EXITS[name]
    there = first_exits(process, x0, domain, horizon, 100, seed=5, substeps=2, engine="fused")
    plain = first_exits(process, x0, domain, horizon, 100, seed=5, substeps=2, engine="xla")
    np.testing.assert_array_equal(there.steps, plain.steps)
    np.testing.assert_array_equal(there.observed, plain.observed)
    np.testing.assert_allclose(there.points, plain.points, rtol=1e-9, atol=1e-10)
    assert there.observed.any()


@pytest.mark.parametrize("name", ["gaussian B=1", "data", "subset", "data, order 1"])
def test_bits_do_not_depend_on_chunks_lanes_or_threads(name, mode):
    process = PROCESSES[name]
    whole = advance(process, begin(process, 41), 6, substeps=2, threads=1)
    state = begin(process, 41)
    for steps in (1, 2, 3):
        state = advance(process, state, steps, substeps=2, threads=3)
    np.testing.assert_array_equal(whole.x, state.x)
    np.testing.assert_array_equal(whole.rng, state.rng)
    few = advance(process, begin(process, 41).take([40, 3]), 6, substeps=2)
    np.testing.assert_array_equal(few.x, whole.x[[40, 3]])


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("name", ["gaussian B=1", "data", "subset", "own diffusion"])
def test_bits_do_not_depend_on_how_many_lanes_a_block_has(name, precision):
    """One register per value or two; `test_cuda` has one lane alone."""
    process = PROCESSES[name]
    state, made = begin(process, 41), fused.engine_of(process, precision=precision)
    ends = []
    for wide in (False, True):
        engine = replace(made, recipe=replace(made.recipe, wide=wide))
        stepper = fused.Stepper(engine, 2, 1, state.x, state.rng, state.memory)
        ends.append((stepper.blocks.x.shape[2], stepper(0, 5)))
    assert ends[1][0] == 2 * ends[0][0]
    np.testing.assert_array_equal(ends[0][1], ends[1][1])


@pytest.mark.parametrize("name", ["well", "data", "epochs"])
def test_exits_do_not_depend_on_threads(name, mode):
    process, x0, domain, horizon = EXITS[name]
    one = first_exits(process, x0, domain, horizon, 90, seed=5, threads=1)
    two = first_exits(process, x0, domain, horizon, 90, seed=5, threads=3)
    rest = first_exits(process, x0, domain, horizon, [89, 7], seed=5)
    np.testing.assert_array_equal(one.steps, two.steps)
    np.testing.assert_array_equal(one.points, two.points)
    np.testing.assert_array_equal(one.points[[89, 7]], rest.points)


@pytest.mark.parametrize("name", ["well", "data", "epochs"])
def test_exits_do_not_depend_on_the_length_of_calls(name, mode, monkeypatch):
    """Calls that take too long are made shorter, down to two steps in the middle of an epoch."""
    process, x0, domain, horizon = EXITS[name]
    if name == "epochs":
        process = SGD(process.loss, 0.5, 4, "reshuffle")  # of three steps: two, and one
    long = first_exits(process, x0, domain, horizon, 50, seed=5, threads=1)
    portions = []
    portion = exits._portion
    monkeypatch.setattr(exits, "CALL_SECONDS", 0.0)
    monkeypatch.setattr(exits, "_portion", lambda *a: portions.append(portion(*a)) or portions[-1])
    short = first_exits(process, x0, domain, horizon, 50, seed=5, threads=1)
    np.testing.assert_array_equal(long.steps, short.steps)
    np.testing.assert_array_equal(long.points, short.points)
    assert max(portions[5:]) == (2, 1)
    assert min(portions) == ((1, 1) if name == "epochs" else (2, 1))


@pytest.mark.parametrize("name", ["data", "subset", "epochs"])
def test_same_trials(name):
    process, x0, domain, horizon = EXITS[name]
    state = start(process, x0, 60, seed=5)
    here, there = (
        run_trials(process, state, domain, lambda x: x @ x, 0.3, 1.5, horizon, engine=engine)
        for engine in ("fused", "xla")
    )
    np.testing.assert_array_equal(here.fates, there.fates)
    np.testing.assert_array_equal(here.steps, there.steps)
    np.testing.assert_allclose(here.best, there.best, rtol=1e-9)
    np.testing.assert_allclose(here.points, there.points, rtol=1e-9, atol=1e-10)
    assert len(set(here.steps)) > 2


def test_divergence_is_reported():
    process = SGD(additive(lambda x: x[0] ** 4), 1.0)
    with pytest.raises(Divergence, match="path 0"):
        advance(process, start(process, [5.0], 4, seed=0), 50)
    with pytest.raises(Divergence, match="diverged"):
        first_exits(process, [5.0], ball([0.0], 1e300), 50, 4, seed=0)


def test_options_are_checked():
    process = SGD(additive(well), 1e-6)
    state = start(process, [0.5], 4, seed=0)
    with pytest.raises(InputError, match="unsafe at steps of 1e-06"):
        advance(process, state, 1, precision="float32")
    with pytest.raises(InputError, match="engine = 'fast'"):
        advance(process, state, 1, engine="fast")
    with pytest.raises(InputError, match="GiB are free: run fewer paths"):
        start(process, [0.5], 10**13, seed=0)


def test_bridge_takes_the_bias_of_the_step_away():
    """Mean exit time 4.50160 of T7 (eps = .5): 8192 paths, standard error 1.1 %, 4 of them.

    At dt = .02 a path seen at its steps only leaves late by some 20 %: the negative control must be outside.
    """
    loss = additive(lambda x: x[0] ** 2 / 2)
    scaled = diffusion(lambda x: -x, lambda x: jnp.sqrt(0.5) * jnp.eye(1), 1, 0.02)
    means = {
        bridge: np.mean(
            first_exits(scaled, [0.0], box([-1.0], [1.0]), 10_000, 8192, seed=4, substeps=1,
                        bridge=bridge).steps
        ) * 0.02
        for bridge in (True, False)
    }  # fmt: skip
    exact, error = 4.50160241622907, 4 * 4.5 / np.sqrt(8192)
    assert abs(means[True] - exact) < error
    assert abs(means[False] - exact) > 2 * error
    with pytest.raises(InputError, match="only seen at its steps"):
        first_exits(SGD(loss, 0.1), [0.0], ball([0.0], 1.0), 10, 4, seed=4, bridge=True)


def curved(x):
    return 3 * jnp.eye(len(x)) + jnp.outer(x, x)


WITHOUT_FUSED_FORM = {
    "bessel_i0e": lambda x: jax.lax.bessel_i0e(x[0]),
    "cholesky": lambda x: jnp.sum(jnp.linalg.cholesky(curved(x))),
    "lu": lambda x: x @ jnp.linalg.solve(curved(x), x),
    "qr": lambda x: jnp.sum(jnp.linalg.qr(curved(x))[1] ** 2),
    "eigh": lambda x: jnp.linalg.eigvalsh(curved(x))[0],
    "fft": lambda x: jnp.sum(jnp.abs(jnp.fft.fft(x)) ** 2),
}


@pytest.fixture
def nothing_told(monkeypatch):
    monkeypatch.setattr(options, "_told", set())


@pytest.mark.parametrize("primitive", WITHOUT_FUSED_FORM)
def test_a_fall_back_names_the_primitive_and_its_cost(primitive, nothing_told):
    process = SGD(additive(WITHOUT_FUSED_FORM[primitive], dim=2), 0.1)
    state = start(process, [0.3, 0.4], 4, seed=0)
    said = (
        f"because '{primitive}' has no fused form: the same answer to rounding, at roughly 4 to 30"
    )
    with pytest.warns(SlowerEngine, match=said):
        there = advance(process, state, 3)
    np.testing.assert_array_equal(there.x, advance(process, state, 3, engine="xla").x)
    with pytest.raises(InputError, match=f"'{primitive}' has no fused form; use engine='xla'"):
        advance(process, state, 3, fallback=False)


def test_levels_scores_and_observables_fall_back_as_losses_do(nothing_told):
    process = SGD(additive(lambda x: x @ x / 2, dim=2), 0.1)
    state = start(process, [0.3, 0.4], 20, seed=0)
    function = WITHOUT_FUSED_FORM["eigh"]  # 3 everywhere
    with pytest.warns(SlowerEngine, match="in the observable, 'eigh'"):
        seen = observe(process, state, 4, function)
    np.testing.assert_allclose(seen.mean, 3.0)
    level = sublevel(lambda x: x @ x + function(x) - 3, 0.5, 2)
    with pytest.warns(SlowerEngine, match="because 'eigh'"):
        found = first_exits(process, [0.3, 0.4], level, 30, 20, seed=0)
    want = first_exits(process, [0.3, 0.4], sublevel(lambda x: x @ x, 0.5, 2), 30, 20, seed=0)
    np.testing.assert_array_equal(found.steps, want.steps)
    ends = [
        run_trials(process, state, ball([0.0, 0.0], 2.0), score, 3.01, 3.5, 200)
        for score in (lambda x: x @ x + function(x), lambda x: x @ x + 3)
    ]
    np.testing.assert_array_equal(ends[0].fates, ends[1].fates)
    with pytest.raises(InputError, match="needs the fused engine"):
        first_exits(
            diffusion_approximation(process), [0.3, 0.4], level, 30, 20, seed=0, bridge=True
        )
