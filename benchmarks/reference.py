"""The C reference, compiled by gcc on the spot."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from batchwell.streams import path_states

SOURCE = Path(__file__).with_name("reference.c")


@lru_cache(maxsize=1)
def library() -> Any:
    """The compiled reference; None without gcc."""
    if shutil.which("gcc") is None:
        return None
    place = Path(tempfile.mkdtemp())
    made, target = place / "reference.o", place / "reference.so"
    flags = ["-O3", "-march=native", "-ffast-math", "-fPIC", "-c"]
    subprocess.run(["gcc", *flags, str(SOURCE), "-o", str(made)], check=True)
    # Linked without -ffast-math, which would switch subnormal numbers off in the whole process.
    subprocess.run(["gcc", "-shared", str(made), "-o", str(target), "-lm"], check=True)
    return ctypes.CDLL(str(target))


def states(paths: int) -> np.ndarray:
    """Generators as the reference has them: (4, paths)."""
    return np.ascontiguousarray(path_states(0, "paths", range(paths)).T)


def call(name: str, *args: Any) -> Any:
    """Call a C function; Python floats become float32, whole numbers long, arrays addresses."""
    function = getattr(library(), name)
    function.restype = ctypes.c_long
    converted = [
        a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray)
        else ctypes.c_float(a) if isinstance(a, float)
        else ctypes.c_long(a)
        for a in args
    ]  # fmt: skip
    return function(*converted)
