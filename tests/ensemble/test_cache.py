"""The cache of compiled kernels: hit, version change, torn file, concurrent writers, off."""

import subprocess
import sys

import numpy as np
import pytest

from batchwell.ensemble import native

SOURCE = """define void @twice(ptr %args) {
  %p = load ptr, ptr %args
  %x = load double, ptr %p
  %y = fadd double %x, %x
  store double %y, ptr %p
  ret void
}
"""


def doubles(kernel):
    value = np.array([21.0])
    kernel(np.array([value.ctypes.data]))
    return value[0] == 42.0


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BATCHWELL_CACHE", str(tmp_path / "kernels"))
    return tmp_path / "kernels"


def no_compiler(monkeypatch):
    def fail(source):
        raise AssertionError("compiled again")

    monkeypatch.setattr(native, "object_code", fail)


def test_second_time_is_read_from_disk(cache, monkeypatch):
    assert doubles(native.compile_kernel(SOURCE, "twice"))
    assert len(list(cache.iterdir())) == 1
    no_compiler(monkeypatch)
    assert doubles(native.compile_kernel(SOURCE, "twice"))


def test_another_version_does_not_find_it(cache, monkeypatch):
    native.compile_kernel(SOURCE, "twice")
    monkeypatch.setattr(native, "__version__", "0.0.0")
    native.compile_kernel(SOURCE, "twice")
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"x" * 10, b"x" * 5000])
def test_a_torn_file_is_compiled_anew(cache, damage):
    native.compile_kernel(SOURCE, "twice")
    (file,) = cache.iterdir()
    file.write_bytes(damage)
    assert doubles(native.compile_kernel(SOURCE, "twice"))
    assert len(file.read_bytes()) > 100


def test_many_writers_at_once(cache):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import numpy as np\n"
        "from batchwell.ensemble import native\n"
        "for k in range(20):\n"
        "    x = np.array([float(k)])\n"
        "    native.compile_kernel(sys.argv[2], 'twice')(np.array([x.ctypes.data]))\n"
        "    assert x[0] == 2 * k\n"
    )
    source = str(native.Path(native.__file__).parents[2])
    run = [sys.executable, "-c", program, source, SOURCE]
    writers = [subprocess.Popen(run) for _ in range(4)]
    assert [w.wait() for w in writers] == [0] * 4
    assert len(list(cache.iterdir())) == 1  # no temporary file is left


def test_without_a_place_to_write_it_still_runs(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for place in ("", str(tmp_path / "file" / "kernels")):
        monkeypatch.setenv("BATCHWELL_CACHE", place)
        assert doubles(native.compile_kernel(SOURCE, "twice"))
