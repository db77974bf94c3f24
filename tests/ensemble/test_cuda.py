"""GPU code: one lane of the same text. On any machine that lane runs on the CPU; a GPU, where
there is one, must give the same bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from batchwell import SGD, additive, diffusion_approximation, finite_sum
from batchwell.ensemble import advance, cuda, first_exits, fused, observe, start
from batchwell.ensemble.advance_kernel import advance_source
from batchwell.ensemble.native import compile_kernel
from batchwell.errors import InputError

WELL = additive(lambda x: jnp.sum((x**2 - 1) ** 2) / 4, "laplace", dim=3)
_RNG = np.random.default_rng(0)
DATA = finite_sum(
    lambda x, z: jax.nn.softplus(-z[1] * jnp.tanh(z[0] @ x[:3])) + 0.01 * x @ x,
    (_RNG.standard_normal((12, 3)), np.where(_RNG.random(12) < 0.5, -1.0, 1.0)), 4,
)  # fmt: skip
PROCESSES = {
    "additive": SGD(WELL, 0.1, 3, momentum=0.5),
    "data": SGD(DATA, 0.3, 2),
    "subset": SGD(DATA, 0.3, 2, "without_replacement"),
    "epochs": SGD(DATA, 0.3, 2, "reshuffle"),
    "diffusion": diffusion_approximation(SGD(DATA, 0.3, 2)),
}


def begin(process):
    dim = process.loss.dim if isinstance(process, SGD) else process.dim
    return start(process, np.linspace(0.1, 0.5, dim), 21, seed=6)


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("name", PROCESSES)
def test_one_lane_gives_the_same_bits(name, precision):
    process = PROCESSES[name]
    state = begin(process)
    engine = fused.engine_of(process, precision=precision)
    stepper = fused.Stepper(engine, 4, 1, state.x, state.rng, state.memory)
    single = fused.Advancer(engine, 4, 1)
    single.call = compile_kernel(advance_source(engine.recipe, engine.kind, lanes=1), "advance")
    blocks = fused.to_blocks(engine, state.x, state.rng, state.memory, lanes=1)
    single(0, 7 * stepper.per, blocks)
    np.testing.assert_array_equal(blocks.x[:, :, 0], stepper(0, 7))


@pytest.mark.parametrize("name", PROCESSES)
def test_ptx_is_exact_and_calls_nothing(name):
    engine = fused.engine_of(PROCESSES[name])
    text = cuda.ptx(advance_source(engine.recipe, "f64", lanes=1, linkage="ptx_kernel"))
    assert ".visible .entry advance(" in text
    assert "fma.rn.f64" in text
    for inexact in ("approx", ".ftz", "call.uni", ".extern"):
        assert inexact not in text


def test_ptx_of_philox():
    engine = fused.engine_of(PROCESSES["data"], generator="philox")
    text = cuda.ptx(advance_source(engine.recipe, "f64", lanes=1, linkage="ptx_kernel"))
    assert text.count("mul.wide.u32") + text.count("mul.hi.u32") >= 10  # a product a round or more
    assert "call.uni" not in text


class OnTheCpu:
    """Stands in for `cuda.Program`: the GPU's program, run by one thread of this machine."""

    def __init__(self, source, name):
        assert "ptx_kernel" in source
        self.call = compile_kernel(source.replace("ptx_kernel ", ""), name)

    def __call__(self, values, arrays, threads):
        addresses = {a.ctypes.data for a in arrays}
        assert all(v in addresses for v in values.tolist() if v > 2**32)  # all would be copied
        self.call(values)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_way_to_a_gpu_and_back(name, monkeypatch):
    """Everything but the device itself: blocks of one lane, arguments, results."""
    monkeypatch.setattr(cuda, "need_device", lambda: None)
    monkeypatch.setattr(cuda, "Program", OnTheCpu)
    fused._gpu_program.cache_clear()
    process, state = PROCESSES[name], begin(PROCESSES[name])
    here, there = (advance(process, state, 7, device=d) for d in ("cpu", "cuda"))
    np.testing.assert_array_equal(here.x, there.x)
    np.testing.assert_array_equal(here.rng, there.rng)
    for a, b in zip(jax.tree.leaves(here.memory), jax.tree.leaves(there.memory), strict=True):
        np.testing.assert_array_equal(a, b)
    here, there = (observe(process, state, 6, every=2, device=d) for d in ("cpu", "cuda"))
    np.testing.assert_array_equal(here.totals, there.totals)
    np.testing.assert_array_equal(here.squares, there.squares)
    with pytest.raises(InputError, match="is not for histograms yet; use device='cpu'"):
        observe(process, state, 6, bins=(-1, 1, 4), device="cuda")
    fused._gpu_program.cache_clear()


@pytest.mark.skipif(not cuda.available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("name", PROCESSES)
def test_a_gpu_gives_the_same_results(name, precision):
    state = begin(PROCESSES[name])
    here = advance(PROCESSES[name], state, 7, precision=precision)
    there = advance(PROCESSES[name], state, 7, precision=precision, device="cuda")
    np.testing.assert_array_equal(here.rng, there.rng)
    np.testing.assert_allclose(there.x, here.x, rtol=1e-14 if precision == "float64" else 1e-6)


@pytest.mark.skipif(cuda.available(), reason="there is a CUDA device")
def test_without_a_gpu_it_is_refused():
    process = PROCESSES["data"]
    with pytest.raises(InputError, match="needs an NVIDIA GPU"):
        advance(process, begin(process), 3, device="cuda")
    from batchwell import ball

    with pytest.raises(InputError, match="device = 'cuda'"):
        first_exits(process, np.zeros(4), ball(np.zeros(4), 1.0), 5, 3, seed=0, device="cuda")
