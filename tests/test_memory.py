"""What is left to allocate: the page cache counts, a container's limit is kept."""

from collections import namedtuple

import psutil
import pytest

from batchwell import memory
from batchwell.errors import InputError
from batchwell.law.memory import check_bytes
from batchwell.memory import GIB, available_memory, require_bytes

Machine = namedtuple("Machine", "total available free")


def machine(monkeypatch, available, free):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Machine(24 * GIB, available, free))


def test_a_machine_whose_memory_is_full_of_page_cache_is_not_full(monkeypatch):
    machine(monkeypatch, available=6 * GIB, free=0.28 * GIB)
    require_bytes("nodes", 80, 0.9 * GIB, "use fewer")
    check_bytes("nodes", 80, 0.9 * GIB)
    with pytest.raises(InputError, match=r"nodes = 80: would need 7 GiB where 6 GiB are free: use"):
        require_bytes("nodes", 80, 7 * GIB, "use fewer")


def test_one_problem_has_a_limit_on_any_machine(monkeypatch):
    machine(monkeypatch, available=500 * GIB, free=500 * GIB)
    require_bytes("nodes", 80, 9 * GIB, "use fewer")
    with pytest.raises(InputError, match="would need 9 GiB where 8 GiB"):
        check_bytes("nodes", 80, 9 * GIB)


def test_a_containers_limit_counts_its_page_cache_as_free(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text(f"{4 * 2**30}\n")
    (tmp_path / "memory.current").write_text(f"{3 * 2**30}\n")
    (tmp_path / "memory.stat").write_text(f"anon {2**30}\ninactive_file {2 * 2**30}\n")
    assert memory._left_in_container(tmp_path) == 3 * 2**30
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._left_in_container(tmp_path) == float("inf")
    assert memory._left_in_container(tmp_path / "none") == float("inf")


def test_this_machine_has_memory():
    assert 2**20 < available_memory() <= psutil.virtual_memory().total
