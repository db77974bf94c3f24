"""Both forms of fused code for tests that ask for `mode`."""

import pytest

from batchwell.ensemble import fused


@pytest.fixture(params=["straight", "loops"])
def mode(request, monkeypatch):
    """Straight-line code, then array code, whatever the size of the problem."""
    monkeypatch.setattr(fused, "LOOPS_ABOVE", {"straight": 10**9, "loops": -1}[request.param])
