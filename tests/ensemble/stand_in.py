"""A GPU for tests on machines without one: the driver's functions in C, kernels on the host.

The library is compiled by gcc, and loaded in place of libcuda. A kernel's LLVM text is compiled
for the host as it stands, with the numbers of blocks and threads put into variables that a loop
runs through. What the driver is given is its hash in place of PTX, which takes long to write and
has tests of its own.
"""

import ctypes
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from batchwell.ensemble import cuda, fused, native

SOURCE = Path(__file__).parent / "stand_in_driver.c"
ATTRIBUTES = {16: 2, 39: 8, 75: 9, 76: 0}  # two processors of eight threads, architecture 9.0

GRID = """
@number.ctaid = internal global i32 0
@number.ntid = internal global i32 0
@number.tid = internal global i32 0
define void @grid(i64 %address, i32 %grid, i32 %block) {
entry:
  %args = inttoptr i64 %address to ptr
  store i32 %block, ptr @number.ntid
  br label %block.head
block.head:
  %b = phi i32 [ 0, %entry ], [ %b.next, %block.end ]
  %b.same = add i32 %b, 0
  %b.next = add i32 %b, 1
  %b.left = sub i32 %grid, %b.next
  store i32 %b.CHOSEN, ptr @number.ctaid
  br label %thread.head
thread.head:
  %t = phi i32 [ 0, %block.head ], [ %t.next, %thread.head ]
  %t.same = add i32 %t, 0
  %t.next = add i32 %t, 1
  %t.left = sub i32 %block, %t.next
  store i32 %t.CHOSEN, ptr @number.tid
  call void @KERNEL(ptr %args)
  %more = icmp ult i32 %t.next, %block
  br i1 %more, label %thread.head, label %block.end
block.end:
  %again = icmp ult i32 %b.next, %grid
  br i1 %again, label %block.head, label %done
done:
  ret void
}
"""
NUMBER = (
    "define internal i32 @number.{0}.x() {{\n  %v = load i32, ptr @number.{0}\n  ret i32 %v\n}}\n"
)


def on_the_host(source: str, backwards: bool) -> str:
    """The kernel of GPU code, and ``grid`` that runs it for every block and thread."""
    grid = GRID.replace("CHOSEN", "left" if backwards else "same")
    name = re.search(r"define ptx_kernel void @(\w+)", source).group(1)
    text = source.replace("define ptx_kernel", "define internal")
    text = re.sub(r"declare i32 @llvm\.nvvm\.read\.ptx\.sreg\.\w+\.x\(\)\n", "", text)
    text = text.replace("@llvm.nvvm.read.ptx.sreg.", "@number.")
    numbers = "".join(NUMBER.format(part) for part in ("ctaid", "ntid", "tid"))
    return text + numbers + grid.replace("KERNEL", name)


class StandIn:
    """The library, and the kernels that it was given; the last thread first if `backwards`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library, self.sources, self.backwards = library, {}, False
        self.loader = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(self._load)
        library.load_with(self.loader)
        self.attributes = (ctypes.c_int * 128).in_dll(library, "attributes")
        for number, value in ATTRIBUTES.items():
            self.attributes[number] = value

    def _load(self, text: bytes) -> int | None:
        if (source := self.sources.get(text)) is None:
            return None
        return native.address_of(native.object_code(on_the_host(source, self.backwards)), "grid")

    def number(self, name: str, kind=ctypes.c_int):
        """A counter or setting of the library."""
        return kind.in_dll(self.library, name)

    @property
    def used(self) -> int:
        """Bytes not given back."""
        return self.number("used", ctypes.c_size_t).value


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A GPU that is none."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc: the stand-in for a GPU's driver cannot be built")
    built = tmp_path / "libstandin.so"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", str(built), str(SOURCE)], check=True)
    device = StandIn(ctypes.CDLL(str(built)))

    def remembered(source: str, architecture: int) -> str:
        text = f"sm_{architecture} {hashlib.sha256(source.encode()).hexdigest()}"
        device.sources[text.encode()] = source
        return text

    monkeypatch.setenv("BATCHWELL_CACHE", "")
    monkeypatch.setattr(cuda, "LIBRARY", str(built))
    monkeypatch.setattr(cuda, "ptx", remembered)
    monkeypatch.setattr(cuda, "THREADS_PER_BLOCK", 4)
    monkeypatch.setattr(fused, "_kernels", {})
    cuda.driver.cache_clear()
    yield device
    assert device.used == 0
    cuda.driver.cache_clear()
