"""Predictions against what came."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import require
from ..estimate import Estimate

_CLOSE = (0.8, 1.25)


def score(predicted: Mapping[str, Estimate], came: Mapping[str, Estimate]) -> list[dict[str, Any]]:
    """Predictions against what came: a JSON-safe row for each name that both have.

    `predicted` and `came` are estimates by name. A lower bound (an interval without upper end) is held to its bound. Otherwise the
    verdict is "agrees" within 2 standard errors of both together, "close" within 25 %, which the
    local picture's own assumptions cost easily, else how far off it is.

    Examples
    --------
    >>> one, two = (Estimate(v, 0.1, (v - 0.2, v + 0.2), "loss", "", 9) for v in (1.0, 2.0))
    >>> score({"excess": one}, {"excess": two})[0]["verdict"]
    'too low: 0.5 of what came, 7.1 standard errors'
    """
    rows = []
    for name in predicted:
        if name not in came:
            continue
        first, second = predicted[name], came[name]
        require(first.unit == second.unit, name, second.unit, f"must be in {first.unit}")
        rows.append({"name": name, **_compared(first, second)})
    return rows


def _compared(first: Estimate, second: Estimate) -> dict[str, Any]:
    row: dict[str, Any] = {
        "predicted": first.to_dict(),
        "came": second.to_dict(),
        "unit": first.unit,
    }
    if math.isinf(first.interval[1]) and math.isfinite(first.value):
        held = second.interval[1] >= first.value
        return row | {
            "z": None,
            "ratio": None,
            "verdict": "bound holds" if held else "bound broken",
        }
    error = math.hypot(first.stderr, second.stderr)
    if not (math.isfinite(first.value) and math.isfinite(second.value) and math.isfinite(error)):
        return row | {"z": None, "ratio": None, "verdict": "not determined"}
    gap = first.value - second.value
    z = gap / error if error > 0 else (0.0 if gap == 0 else None)
    ratio = first.value / second.value if second.value else None
    if z is not None and abs(z) <= 2:
        return row | {"z": z, "ratio": ratio, "verdict": "agrees"}
    side = "too low" if gap < 0 else "too high"
    if ratio is not None and _CLOSE[0] <= ratio <= _CLOSE[1]:
        side = "close"
    share = f"{ratio:.3g} of what came" if ratio is not None else f"by {abs(gap):.3g}"
    far = f", {abs(z):.2g} standard errors" if z is not None else ""
    return row | {"z": z, "ratio": ratio, "verdict": f"{side}: {share}{far}"}
