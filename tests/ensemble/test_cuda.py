"""The GPU's kernels and the way to them, on any machine: see `stand_in`.

A GPU, where there is one, must give the same results.
"""

import ctypes
import dataclasses
import importlib
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from batchwell import SGD, additive, box, diffusion
from batchwell.ensemble import (
    Table,
    advance,
    cuda,
    first_exits,
    fused,
    observe,
    positions,
    run_trials,
    start,
)
from batchwell.ensemble.advance_kernel import advance_source
from batchwell.ensemble.exit_kernel import exit_source
from batchwell.ensemble.exits import exit_test
from batchwell.ensemble.observe import watch_of
from batchwell.ensemble.vector import room_of
from batchwell.errors import Divergence, InputError, RunError

sys.path.insert(0, str(Path(__file__).parent))

from primitives import CASES
from roster import EXITS, PROCESSES, begin, well

real_ptx = cuda.ptx
PATHS = 21  # more than the stand-in's 16 threads: two turns of 11, one of them with nothing to do
# Every kind of step in both forms of code; the others, in full, take minutes of compilation.
QUICK = {
    "laplace B=3", "momentum", "data", "subset", "epochs with momentum", "own diffusion",
    "plane, order 2", "data, order 1",
}  # fmt: skip
WELL = SGD(additive(well), 0.2)
UNIT = box([-1.0], [1.0])


def both(run, *args, **options):
    return [run(*args, device=device, **options) for device in ("cpu", "cuda")]


def same(here, there):
    for a, b in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        np.testing.assert_array_equal(a, b)


def marked(names):
    return [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in names]


# -- the same bits ----------------------------------------------------------------------------
@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("name", marked(PROCESSES))
def test_paths_have_the_same_bits(name, mode, precision, stand_in):
    process = PROCESSES[name]
    state = begin(process, PATHS)
    for steps in (1, 4):
        here, there = both(advance, process, state, steps, 2, precision=precision)
        same((here.x, here.rng, here.memory), (there.x, there.rng, there.memory))
        state = here
    assert stand_in.number("threads").value in (12, 4)  # blocks of 4


def test_a_network_runs_as_array_code(bench, stand_in):
    process = SGD(importlib.import_module("networks").network(16, 12, 4, 20, 1e-4), 0.3, 9)
    assert fused.engine_of(process).recipe.loops
    state = start(process, np.full(process.loss.dim, 0.1), 5, seed=2)
    here, there = both(advance, process, state, 3)
    same((here.x, here.rng), (there.x, there.rng))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_primitive_has_the_same_bits(name, mode, stand_in):
    """As an observable, so that losses do not have to have gradients; and its PTX is whole."""
    process = SGD(additive(lambda x: x @ x / 2, dim=4), 0.1)
    state = start(process, np.linspace(-0.9, 0.9, 4), 5, seed=2)
    for precision in ("float64", "float32"):
        here, there = both(observe, process, state, 2, CASES[name], precision=precision)
        same((here.totals, here.squares), (there.totals, there.squares))
    for source in stand_in.sources.values():
        text = real_ptx(source, 80)
        assert ".visible .entry advance" in text
        assert "call.uni" not in text


@pytest.mark.parametrize("scheme", ["euler", "platen"])
@pytest.mark.parametrize("generator", ["xoshiro", "philox"])
def test_schemes_and_generators(scheme, generator, stand_in):
    process = PROCESSES["own diffusion"]
    options = {"substeps": 2, "scheme": scheme, "generator": generator}
    same(*both(positions, process, [0.3, 0.1], [1, 5], PATHS, 3, **options))


@pytest.mark.parametrize("name", EXITS)
def test_exits_are_the_same(name, mode, stand_in):
    process, x0, domain, horizon = EXITS[name]
    here, there = both(first_exits, process, x0, domain, horizon, 60, seed=5, substeps=2)
    same((here.steps, here.observed, here.points), (there.steps, there.observed, there.points))
    assert here.observed.any()


def test_exits_in_float32_and_over_a_brownian_bridge(stand_in):
    scaled = diffusion(lambda x: -x, lambda x: jnp.sqrt(0.5) * jnp.eye(1), 1, 0.02)
    for options in ({"bridge": True}, {"precision": "float32"}):
        here, there = both(first_exits, scaled, [0.0], UNIT, 300, 50, seed=4, **options)
        same((here.steps, here.points), (there.steps, there.points))
        assert 0 < here.observed.sum() < 50  # some of them censored


@pytest.mark.parametrize("name", ["epochs with momentum", "plane, order 2"])
def test_moments_and_histograms_are_the_same(name, mode, stand_in):
    process = PROCESSES[name]
    here, there = both(
        observe, process, begin(process, PATHS), 6, lambda x: x[:2], 2, (0.0, [0.5, 1.0], 4), 2
    )
    same((here.totals, here.squares, here.counts), (there.totals, there.squares, there.counts))
    assert here.counts.sum() == 2 * 3 * PATHS


def test_trials_are_the_same(stand_in):
    table = Table(np.array([-1.0]), np.array([0.1]), np.linspace(-1, 1, 21) ** 2)
    paths = start(WELL, [0.3], 40, seed=2)
    for score in (lambda x: x @ x, table):
        here, there = both(run_trials, WELL, paths, UNIT, score, 0.01, 0.6, 500)
        same(
            (here.fates, here.points, here.steps, here.best),
            (there.fates, there.points, there.steps, there.best),
        )


def test_the_order_of_threads_does_not_matter(stand_in, monkeypatch):
    process, x0, domain, horizon = EXITS["epochs"]
    state, found = begin(process, PATHS), []
    for backwards in (False, True):
        stand_in.backwards = backwards
        monkeypatch.setattr(fused, "_kernels", {})
        seen = observe(process, state, 6, lambda x: x[:2], 2, (0.0, 1.0, 4), device="cuda")
        left = first_exits(process, x0, domain, horizon, 60, seed=5, device="cuda")
        found.append((seen.totals, seen.counts, left.steps, left.points))
    same(*found)


def test_a_wrong_thread_number_is_noticed(stand_in, monkeypatch):
    """The negative control: every thread takes the first path."""
    right = advance_source

    def wrong(*args, **options):
        return right(*args, **options).replace(
            "%thread = zext i32 %thread.number", "%thread = zext i32 0"
        )

    monkeypatch.setattr(fused, "advance_source", wrong)
    here, there = both(advance, WELL, start(WELL, [0.3], PATHS, seed=2), 3)
    assert not np.array_equal(here.x, there.x)


# -- the way to a device and back -------------------------------------------------------------
@pytest.fixture
def heard():
    """Ctrl-C is heard: tests run in the background inherit that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_nothing_is_left_on_the_device_after_an_interruption(stand_in):
    stand_in.library.interrupt_after(3)
    with pytest.raises(KeyboardInterrupt):
        advance(WELL, start(WELL, [0.3], PATHS, seed=2), 50, device="cuda")
    assert stand_in.used == 0
    assert stand_in.number("launches").value == 3


def test_long_work_is_made_in_short_calls(stand_in, monkeypatch):
    """So that Ctrl-C is answered: of paths that take no turn together, and of steps."""
    state = start(WELL, [0.3], 160, seed=2)  # ten turns of the device's threads
    monkeypatch.setattr(fused, "CALL_SECONDS", 0.0)
    here, there = both(advance, WELL, state, 1)
    same(here.x, there.x)
    assert stand_in.number("launches").value == 10


FAILURES = {
    "cuModuleLoadData": "refused to load a kernel",
    "cuModuleGetFunction": "refused to find a kernel",
    "cuDeviceGetAttribute": "refused to describe itself",
    "cuCtxSetCurrent": "refused to be used",
    "cuMemGetInfo_v2": "refused to count memory",
    "cuMemAlloc_v2": "refused to hold data",
    "cuMemcpyHtoD_v2": "refused to take data",
    "cuLaunchKernel": "refused to start a kernel",
    "cuCtxSynchronize": "refused to finish a kernel",
    "cuMemcpyDtoH_v2": "refused to hand data back",
}


@pytest.mark.parametrize("function", FAILURES)
def test_a_refusal_of_the_driver_is_told_in_one_line(function, stand_in):
    stand_in.library.fail(function.encode(), 719)
    with pytest.raises(RunError, match=FAILURES[function]) as caught:
        advance(WELL, start(WELL, [0.3], 3, seed=2), 2, device="cuda")
    assert "(CUDA_ERROR_LAUNCH_FAILED): use device='cpu'" in str(caught.value)
    assert "\n" not in str(caught.value)
    stand_in.library.fail(b"", 0)


@pytest.mark.parametrize("function", ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"])
def test_no_device(function, stand_in):
    stand_in.library.fail(function.encode(), 100)
    assert not cuda.available()
    with pytest.raises(InputError, match="needs an NVIDIA GPU and its driver; use device='cpu'"):
        advance(WELL, start(WELL, [0.3], 3, seed=2), 2, device="cuda")


def test_more_memory_than_there_is(stand_in):
    state = start(WELL, [0.3], 4000, seed=2)
    stand_in.number("total", ctypes.c_size_t).value = 50_000
    with pytest.raises(InputError, match="are free: run fewer paths at a time"):
        advance(WELL, state, 2, device="cuda")
    stand_in.library.fail(b"cuMemAlloc_v2", 2)  # somebody else was faster
    stand_in.number("total", ctypes.c_size_t).value = 10**9
    with pytest.raises(InputError, match="no memory left to hold data: run fewer"):
        advance(WELL, state, 2, device="cuda")


def test_threads_that_need_room_are_as_many_as_have_it(stand_in):
    many = SGD(additive(lambda x: jnp.sum(x**4) / 4, dim=600, scale=0.3), 0.05)
    state = start(many, np.full(600, 0.2), 10, seed=2)
    engine = fused.engine_of(many)
    assert engine.recipe.loops
    room = room_of(advance_source(engine.recipe, "f64", gpu=True))
    stand_in.attributes[39] = 80  # 160 threads, of which 20 where registers do not suffice
    for total, threads in ((10**9, 12), (9 * room, 4)):
        stand_in.number("total", ctypes.c_size_t).value = total
        here, there = both(advance, many, state, 2)
        same(here.x, there.x)
        assert stand_in.number("threads").value == threads


def test_each_thread_of_a_process_enters_the_context(stand_in):
    state = start(WELL, [0.3], 5, seed=2)
    here = advance(WELL, state, 3)
    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(advance, WELL, state, 3, device="cuda").result()
    same(here.x, there.x)


def test_ptx_is_kept_on_disk(stand_in, monkeypatch, tmp_path):
    monkeypatch.setenv("BATCHWELL_CACHE", str(tmp_path / "kernels"))
    state = start(WELL, [0.3], 3, seed=2)
    first = advance(WELL, state, 2, device="cuda")
    monkeypatch.setattr(cuda, "ptx", None)  # another process need not write it again
    monkeypatch.setattr(fused, "_kernels", {})
    same(first.x, advance(WELL, state, 2, device="cuda").x)


def test_divergence_is_reported(stand_in):
    process = SGD(additive(lambda x: x[0] ** 4), 1.0)
    with pytest.raises(Divergence, match="path 0"):
        advance(process, start(process, [5.0], 4, seed=0), 50, device="cuda")


def test_what_has_no_fused_form_is_refused(stand_in):
    process = SGD(additive(lambda x: jax.lax.bessel_i1e(x[0]) ** 2), 0.1)
    with pytest.raises(InputError, match=r"'bessel_i.*use device='cpu'"):
        advance(process, start(process, [0.3], 4, seed=0), 3, device="cuda")
    with pytest.raises(InputError, match="device = 'cuda': must be cpu with engine='xla'"):
        advance(WELL, start(WELL, [0.3], 4, seed=0), 3, device="cuda", engine="xla")


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("on_gpu")


def test_the_benchmark_runs(bench, stand_in, capsys):
    stand_in.attributes[bench.CLOCK] = 1000
    bench.main(paths=32, steps=4)
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) == 8
    assert all(float(v) > 0 for row in rows for v in row.split()[-4:])


def test_the_arithmetic_of_a_step_is_counted(bench):
    """x + a f + q xi, f = x - x^3: 3 operations, 2 fused ones, and half a pair of normals."""
    recipe = fused.engine_of(bench.WELL, "euler", "float32").recipe
    reals, wholes = bench.operations(recipe, "f32")
    bare = bench.operations(dataclasses.replace(recipe, normals=0), "f32")
    assert 20 < reals < 45
    assert 15 < wholes < 60
    assert bare[0] > reals  # each step draws a pair and throws one away


def test_without_a_device_the_benchmark_says_so(bench, capsys, monkeypatch):
    monkeypatch.setattr(cuda, "driver", lambda: None)
    bench.main()
    assert capsys.readouterr().out == "no CUDA device: the GPU's speed is unmeasured here\n"


# -- PTX --------------------------------------------------------------------------------------
def sources():
    for name in ("laplace B=3", "epochs with momentum", "data, order 1"):
        engine = fused.engine_of(PROCESSES[name])
        for kind in ("f64", "f32"):
            yield f"{name} {kind}", lambda e=engine, k=kind: advance_source(e.recipe, k, gpu=True)
    process, _, domain, _ = EXITS["sublevel of the mean"]
    for loops in (False, True):
        engine = fused.engine_of(process, loops=loops)
        test = exit_test(process, domain, False, loops)
        yield f"exits {loops}", lambda e=engine, t=test: exit_source(e.recipe, "f64", t, gpu=True)
        watch = watch_of(engine, lambda x: x[:2], 5)
        yield (
            f"bins {loops}",
            lambda e=engine, w=watch: advance_source(e.recipe, "f64", w, gpu=True),
        )


@pytest.fixture(scope="module")
def texts():
    return {name: cuda.ptx(source()) for name, source in sources()}


def test_ptx_rounds_as_the_cpu_does_and_calls_nothing(texts):
    for text in texts.values():
        assert ".visible .entry " in text
        assert "fma.rn.f" in text
        for inexact in ("approx", ".ftz", "call.uni", ".extern"):
            assert inexact not in text
        for line in text.splitlines():  # what has no mode of rounding may be contracted
            name = line.strip().split("\t")[0].split(" ")[0]
            if name.endswith((".f64", ".f32")) and name.split(".")[0] in (
                "add",
                "sub",
                "mul",
                "div",
            ):
                assert ".rn." in name, line


def test_threads_share_counts_and_the_queue_by_atomic_additions(texts):
    for loops in (False, True):
        assert "atom" in texts[f"bins {loops}"] or "red." in texts[f"bins {loops}"]
        assert "atom" in texts[f"exits {loops}"]
    assert "atom" not in texts["laplace B=3 f64"]


@pytest.mark.skipif(shutil.which("ptxas") is None, reason="no ptxas: PTX is not assembled")
def test_nvidia_assembles_the_ptx(texts, tmp_path):
    for k, (name, text) in enumerate(texts.items()):
        file = tmp_path / f"{k}.ptx"
        file.write_text(text)
        made = subprocess.run(
            ["ptxas", "-arch=sm_80", "-o", str(file.with_suffix(".cubin")), str(file)],
            capture_output=True,
            text=True,
        )
        assert made.returncode == 0, (name, made.stderr)


# -- a device ---------------------------------------------------------------------------------
@pytest.mark.skipif(not cuda.available(), reason="no CUDA device")
@pytest.mark.parametrize("name", PROCESSES)
def test_a_gpu_gives_the_same_results(name, mode):
    state = begin(PROCESSES[name], 1000)
    for precision, rounding in (("float64", 1e-14), ("float32", 1e-6)):
        here, there = both(advance, PROCESSES[name], state, 7, 2, precision=precision)
        np.testing.assert_array_equal(here.rng, there.rng)
        np.testing.assert_allclose(there.x, here.x, rtol=rounding)


@pytest.mark.skipif(not cuda.available(), reason="no CUDA device")
@pytest.mark.parametrize("name", EXITS)
def test_a_gpu_gives_the_same_exits(name, mode):
    process, x0, domain, horizon = EXITS[name]
    here, there = both(first_exits, process, x0, domain, horizon, 1000, seed=5, substeps=2)
    np.testing.assert_array_equal(here.steps, there.steps)
    np.testing.assert_allclose(here.points, there.points, rtol=1e-9, atol=1e-10)


@pytest.mark.skipif(cuda.available(), reason="there is a CUDA device")
def test_without_a_gpu_it_is_refused():
    for run in (
        lambda: advance(WELL, start(WELL, [0.3], 3, seed=2), 3, device="cuda"),
        lambda: first_exits(WELL, [0.0], UNIT, 5, 3, seed=0, device="cuda"),
    ):
        with pytest.raises(InputError, match="needs an NVIDIA GPU"):
            run()
