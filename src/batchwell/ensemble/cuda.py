"""Kernels on a GPU: the same LLVM text with a thread per lane (`thread_code`), as PTX.

LLVM writes PTX, the driver turns it into machine code; no CUDA toolkit is needed. Every operation
is IEEE with its rounding spelt out, as on the CPU, so that results agree bit for bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import InputError, RunError
from ..memory import GIB
from .kernels import ARGS
from .native import kept
from .vector import room_of

LIBRARY = "libcuda.so.1"
THREADS_PER_BLOCK = 128
# What kernels write to, and the host reads back after a launch.
WRITTEN = ("x", "rng", "velocity", "order", "queue", "sums", "counts", "left", "points", "ids",
           "taken", "best", "fates")  # fmt: skip
_PROCESSORS, _THREADS_EACH, _COMPUTE_MAJOR, _COMPUTE_MINOR = 16, 39, 75, 76  # CUdevice_attribute
_NEWEST = 90  # PTX for this architecture also runs on later ones
_REGISTERS = 1024  # bytes of a thread: those that need more run an eighth at a time
_OUT_OF_MEMORY = 2  # CUresult
_FEWER = "run fewer paths at a time (results do not depend on it), or use device='cpu'"


@dataclass(frozen=True)
class Driver:
    """The CUDA driver, its first device, and the context of this process on it."""

    library: Any
    device: ctypes.c_int
    context: ctypes.c_void_p

    def call(self, what: str, function: str, *arguments: Any) -> None:
        """Call the driver.

        Raises
        ------
        InputError
            The device has not enough memory.
        RunError
            It refuses to `what` for another reason.
        """
        status = getattr(self.library, function)(*arguments)
        if status == _OUT_OF_MEMORY:
            raise InputError("device", "cuda", f"has no memory left to {what}: {_FEWER}")
        if status:
            raise RunError(
                f"the GPU refused to {what} ({self.name_of(status)}): use device='cpu', or restart "
                "this process if it did so after a kernel had failed"
            )

    def name_of(self, status: int) -> str:
        """The driver's name of an error."""
        name = ctypes.c_char_p()
        self.library.cuGetErrorName(status, ctypes.byref(name))
        return name.value.decode() if name.value else f"CUDA error {status}"

    def enter(self) -> None:
        """Make the context this thread's own; every thread of a process has to."""
        self.call("be used", "cuCtxSetCurrent", self.context)

    def attribute(self, number: int) -> int:
        """A property of the device."""
        value = ctypes.c_int()
        self.call(
            "describe itself", "cuDeviceGetAttribute", ctypes.byref(value), number, self.device
        )
        return value.value

    @property
    def architecture(self) -> int:
        """The compute capability, times ten."""
        return 10 * self.attribute(_COMPUTE_MAJOR) + self.attribute(_COMPUTE_MINOR)

    @property
    def threads(self) -> int:
        """How many threads the device holds at a time."""
        return self.attribute(_PROCESSORS) * self.attribute(_THREADS_EACH)

    @property
    def free(self) -> int:
        """Bytes of the device's memory that nobody uses."""
        self.enter()
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("count memory", "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value


@lru_cache(maxsize=1)
def driver() -> Driver | None:
    """The driver, or None where there is no device."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if library.cuInit(0) or library.cuDeviceGet(ctypes.byref(device), 0):
        return None
    if library.cuDevicePrimaryCtxRetain(ctypes.byref(context), device):
        return None
    return Driver(library, device, context)


def available() -> bool:
    """Whether there is a CUDA device."""
    return driver() is not None


def need_device() -> Driver:
    """The driver; refuses ``device="cuda"`` where there is none."""
    found = driver()
    if found is None:
        raise InputError("device", "cuda", "needs an NVIDIA GPU and its driver; use device='cpu'")
    return found


def ptx(source: str, architecture: int = 80) -> str:
    """PTX of LLVM text; its entries are functions of linkage ``ptx_kernel``."""
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple("nvptx64-nvidia-cuda")
    machine = target.create_target_machine(cpu=f"sm_{architecture}", opt=3)
    module = llvm.parse_assembly(f'target triple = "nvptx64-nvidia-cuda"\n{source}')
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_unrolling = False  # the driver's compiler would take minutes over networks
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return str(machine.emit_assembly(module))


class Program:
    """A kernel on the GPU.

    Attributes
    ----------
    room
        Bytes that each thread needs besides its registers.
    """

    def __init__(self, source: str, name: str) -> None:
        self._driver = found = need_device()
        found.enter()
        self.room = room_of(source)
        architecture = min(found.architecture, _NEWEST)
        text = kept(("ptx", architecture, source), lambda: ptx(source, architecture).encode())
        module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        found.call("load a kernel", "cuModuleLoadData", ctypes.byref(module), text)
        found.call(
            "find a kernel",
            "cuModuleGetFunction",
            ctypes.byref(self._function),
            module,
            name.encode(),
        )

    def width(self, paths: int) -> int:
        """Threads for so many paths: as many as the device holds, and has memory for."""
        most = self._driver.threads
        if self.room > _REGISTERS:
            most = max(1, min(most // 8, self._driver.free // 2 // self.room))
        return -(-paths // -(-paths // most))

    def __call__(self, values: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
        """Run on copies of the named arrays among the arguments `values`; copy back what is new."""
        width, moved = int(values[ARGS.index("width")]), values.copy()
        room = self.room * width
        self._require(room + sum(a.nbytes for a in arrays.values()))
        with _Memory(self._driver) as memory:
            copies = {name: memory.holding(array) for name, array in arrays.items()}
            for name, address in copies.items():
                moved[ARGS.index(name)] = address.value
            if room:
                moved[ARGS.index("room")] = memory.take(room).value
            self._launch(memory.holding(moved), width)
            for name in set(WRITTEN) & set(copies):
                memory.read(copies[name], arrays[name])

    def _require(self, need: int) -> None:
        free = self._driver.free
        if need > free:
            raise InputError(
                "device",
                "cuda",
                f"would need {need / GIB:.3g} GiB where {free / GIB:.3g} GiB of the GPU are free: "
                + _FEWER,
            )

    def _launch(self, block: ctypes.c_uint64, threads: int) -> None:
        pointers = (ctypes.c_void_p * 1)(ctypes.cast(ctypes.byref(block), ctypes.c_void_p))
        grid = (-(-threads // THREADS_PER_BLOCK), 1, 1)
        sizes = (*grid, THREADS_PER_BLOCK, 1, 1, 0)
        self._driver.call(
            "start a kernel", "cuLaunchKernel", self._function, *sizes, None, pointers, None
        )
        self._driver.call("finish a kernel", "cuCtxSynchronize")


class _Memory:
    """Memory of the GPU for one launch, given back at its end whatever happens."""

    def __init__(self, found: Driver) -> None:
        self._driver, self._taken = found, list[ctypes.c_uint64]()

    def __enter__(self) -> _Memory:
        return self

    def __exit__(self, *_: object) -> None:
        for address in self._taken:  # what fails here has failed, and been told, before
            self._driver.library.cuMemFree_v2(address)

    def take(self, size: int) -> ctypes.c_uint64:
        """So many bytes."""
        address, wanted = ctypes.c_uint64(), ctypes.c_size_t(max(size, 1))
        self._driver.call("hold data", "cuMemAlloc_v2", ctypes.byref(address), wanted)
        self._taken.append(address)
        return address

    def holding(self, array: np.ndarray) -> ctypes.c_uint64:
        """A copy of an array."""
        address = self.take(array.nbytes)
        self._driver.call(
            "take data", "cuMemcpyHtoD_v2", address, _start(array), ctypes.c_size_t(array.nbytes)
        )
        return address

    def read(self, address: ctypes.c_uint64, into: np.ndarray) -> None:
        """Copy an array back."""
        self._driver.call(
            "hand data back", "cuMemcpyDtoH_v2", _start(into), address, ctypes.c_size_t(into.nbytes)
        )


def _start(array: np.ndarray) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)
