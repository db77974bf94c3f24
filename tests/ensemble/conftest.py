"""Both forms of fused code for tests that ask for `mode`."""

import sys
from pathlib import Path

import pytest

from batchwell.ensemble import fused

sys.path.insert(0, str(Path(__file__).parent))

from stand_in import stand_in  # noqa: F401 (a fixture)


@pytest.fixture(params=["straight", "loops"])
def mode(request, monkeypatch):
    """Straight-line code, then array code, whatever the size of the problem."""
    monkeypatch.setattr(fused, "LOOPS_ABOVE", {"straight": 10**9, "loops": -1}[request.param])
