"""LLVM text -> machine code, kept on disk between processes.

The cache holds one file per kernel, named by a hash of the source, of the versions of this
library and of LLVM, and of the processor. Files are written under a temporary name and renamed,
so that concurrent writers cannot tear one; a file that does not hold what its own checksum says
is compiled anew. ``BATCHWELL_CACHE`` names another directory; empty, it turns the cache off.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__

Kernel = Callable[[np.ndarray], None]
_CHECK = 32  # bytes of checksum at the start of a cache file


@lru_cache(maxsize=1)
def _llvm() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


@lru_cache(maxsize=4)
def _machine(level: int) -> Any:
    llvm = _llvm()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=level,
        jit=True,
    )


@lru_cache(maxsize=1)
def wide_registers() -> bool:
    """Whether the processor has 32 registers of 512 bits."""
    return bool(_llvm().get_host_cpu_features().get("avx512f", False))


def cache_directory() -> Path | None:
    """Where kernels are kept; None when the cache is off."""
    named = os.environ.get("BATCHWELL_CACHE")
    if named is not None:
        return Path(named) if named else None
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "batchwell" / "kernels"


def compile_kernel(source: str, name: str) -> Kernel:
    """The function `name` of LLVM text `source`: it takes an array of addresses and integers."""
    llvm = _llvm()
    processor = (llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())
    return _load(kept((*processor, source), lambda: object_code(source)), name)


def kept(about: tuple[Any, ...], make: Callable[[], bytes]) -> bytes:
    """What `make` gives, from the cache if it was made before by this version, out of `about`."""
    everything = (__version__, _llvm().llvm_version_info, *about)
    key = hashlib.sha256(repr(everything).encode()).hexdigest()
    code = _read(key)
    if code is None:
        code = make()
        _write(key, code)
    return code


def object_code(source: str) -> bytes:
    """Machine code of LLVM text, for this processor."""
    llvm = _llvm()
    module = llvm.parse_assembly(source)
    # Code of this length gains nothing from more effort, and register allocation would be slow.
    machine = _machine(2)
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = False
    options.slp_vectorization = False
    options.loop_unrolling = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return bytes(machine.emit_object(module))


_engines: list[Any] = []  # engines own the machine code: they live as long as the process


def _load(code: bytes, name: str) -> Kernel:
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address_of(code, name))
    return lambda arguments: call(arguments.ctypes.data)  # ctypes lets other threads run meanwhile


def address_of(code: bytes, name: str) -> int:
    """Where a function of machine code lies, once it is loaded."""
    llvm = _llvm()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine(2))
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return int(engine.get_function_address(name))


def _read(key: str) -> bytes | None:
    directory = cache_directory()
    if directory is None:
        return None
    try:
        data = (directory / key).read_bytes()
    except OSError:
        return None
    check, code = data[:_CHECK], data[_CHECK:]
    return code if hashlib.sha256(code).digest() == check else None


def _write(key: str, code: bytes) -> None:
    """Keep `code`; a full or read-only disk costs the next process a compilation, no more."""
    directory = cache_directory()
    if directory is None:
        return
    with contextlib.suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=directory)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            os.replace(temporary, directory / key)
        except OSError:
            os.unlink(temporary)
