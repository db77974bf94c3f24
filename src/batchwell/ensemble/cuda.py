"""The same LLVM text, with one lane, as the program of a GPU's threads.

LLVM writes PTX, the driver turns it into machine code; no CUDA toolkit is needed. Every operation
is IEEE with its rounding spelt out, as on the CPU, so that results agree bit for bit.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import InputError, RunError

THREADS_PER_BLOCK = 128
_COMPUTE_MAJOR, _COMPUTE_MINOR = 75, 76  # CUdevice_attribute
_NEWEST = 90  # PTX for this architecture also runs on later ones


@lru_cache(maxsize=1)
def _driver() -> Any:
    """The CUDA driver with a current context, or None."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    if cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device):
        return None
    return None if cuda.cuCtxSetCurrent(context) else cuda


def available() -> bool:
    """Whether there is a CUDA device."""
    return _driver() is not None


def need_device() -> None:
    """Refuse ``device="cuda"`` where there is none."""
    if not available():
        raise InputError("device", "cuda", "needs an NVIDIA GPU and its driver; use device='cpu'")


def ptx(source: str, architecture: int = 80) -> str:
    """PTX of LLVM text; its entries are functions of linkage ``ptx_kernel``."""
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple("nvptx64-nvidia-cuda")
    machine = target.create_target_machine(cpu=f"sm_{architecture}", opt=3)
    module = llvm.parse_assembly(f'target triple = "nvptx64-nvidia-cuda"\n{source}')
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return str(machine.emit_assembly(module))


def _check(status: int, what: str) -> None:
    if status:
        raise RunError(f"the GPU refused to {what} (CUDA error {status})")


def _architecture(cuda: Any) -> int:
    parts = []
    for attribute in (_COMPUTE_MAJOR, _COMPUTE_MINOR):
        value = ctypes.c_int()
        _check(cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, 0), "name its model")
        parts.append(value.value)
    return min(10 * parts[0] + parts[1], _NEWEST)


class Program:
    """A kernel on the GPU."""

    def __init__(self, source: str, name: str) -> None:
        need_device()
        self._cuda = cuda = _driver()
        text = ptx(source, _architecture(cuda)).encode()
        module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        _check(cuda.cuModuleLoadData(ctypes.byref(module), text), "load a kernel")
        _check(
            cuda.cuModuleGetFunction(ctypes.byref(self._function), module, name.encode()),
            "find a kernel",
        )

    def __call__(self, values: np.ndarray, arrays: list[np.ndarray], threads: int) -> None:
        """Run on copies of `arrays`, whose addresses `values` holds; then copy them back."""
        copies = {a.ctypes.data: (a, self._upload(a)) for a in arrays}
        moved = np.array([copies[v][1].value if v in copies else v for v in values.tolist()])
        block = self._upload(moved)
        try:
            self._launch(block, threads)
            for array, copy in copies.values():
                size = ctypes.c_size_t(array.nbytes)
                status = self._cuda.cuMemcpyDtoH_v2(
                    array.ctypes.data_as(ctypes.c_void_p), copy, size
                )
                _check(status, "hand data back")
        finally:
            for copy in [block, *(c for _, c in copies.values())]:
                self._cuda.cuMemFree_v2(copy)

    def _launch(self, block: ctypes.c_uint64, threads: int) -> None:
        pointers = (ctypes.c_void_p * 1)(ctypes.cast(ctypes.byref(block), ctypes.c_void_p))
        grid = -(-threads // THREADS_PER_BLOCK)
        status = self._cuda.cuLaunchKernel(
            self._function, grid, 1, 1, THREADS_PER_BLOCK, 1, 1, 0, None, pointers, None
        )
        _check(status, "start a kernel")
        _check(self._cuda.cuCtxSynchronize(), "run a kernel")

    def _upload(self, array: np.ndarray) -> ctypes.c_uint64:
        address, size = ctypes.c_uint64(), ctypes.c_size_t(max(array.nbytes, 1))
        _check(self._cuda.cuMemAlloc_v2(ctypes.byref(address), size), "give memory")
        source = array.ctypes.data_as(ctypes.c_void_p)
        _check(
            self._cuda.cuMemcpyHtoD_v2(address, source, ctypes.c_size_t(array.nbytes)), "take data"
        )
        return address
