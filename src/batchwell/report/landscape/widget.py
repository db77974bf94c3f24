"""The interactive part: sliders that move predicted escape times and shares, without a server."""

from __future__ import annotations

import json
import math
from importlib.resources import files
from typing import Any

import numpy as np
from markupsafe import Markup

from ...metastable import MarkovNetwork
from ..svg import tag
from .reading import quarters

COLUMNS = ("minimum", "λmax", "mean stay, steps", "share after the budget", "")


def script() -> str:
    """The script that brings the widget to life."""
    return files(__package__).joinpath("explorer.js").read_text(encoding="utf-8")


def explorer(network: MarkovNetwork, start: tuple[float, ...], budget: int) -> Markup:
    """Sliders and an empty table; hidden until the script fills them."""
    data = json.dumps(network_data(network, start, budget), separators=(",", ":"))
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in COLUMNS)))
    # Void elements and empty ones must not close themselves in HTML.
    sliders = [
        tag(
            "label",
            f"{name} ",
            Markup(f'<input type="range" id="explorer-{key}" min="0" step="1">'),
        )
        for key, name in (("eta", "learning rate η"), ("size", "batch size B"))
    ]
    return tag(
        "div",
        tag("p", *sliders, class_="sliders"),
        Markup('<p id="explorer-said" aria-live="polite"></p>'),
        tag("div", tag("table", head, Markup("<tbody></tbody>")), class_="scroll"),
        id="explorer",
        hidden="hidden",
        data_network=data,
    )


def network_data(network: MarkovNetwork, start: tuple[float, ...], budget: int) -> dict[str, Any]:
    """What the script needs: rates at the nodes, the start, and which states are flat or sharp."""
    flat, sharp = quarters(network)
    low, high = network.measured
    sizes = sorted({round(2 ** (k / 2)) for k in range(0, round(2 * math.log2(2 * high)) + 1)})
    etas = [float(f"{network.learning_rate * f:.3g}") for f in (0.25, 0.5, 0.75, 1, 1.5, 2)]
    return {
        "labels": list(network.labels),
        "sharpness": [_finite(v) for v in network.sharpness],
        "nodes": [float(b) for b in network.batch_sizes],
        "edges": network.edges.tolist(),
        "logs": [[_finite(v) for v in row] for row in network.log_rates],
        "start": [round(float(v), 6) for v in start],
        "flat": np.flatnonzero(flat).tolist(),
        "sharp": np.flatnonzero(sharp).tolist(),
        "eta": etas[3],
        "etas": etas,
        "sizes": sizes,
        "measured": [float(low), float(high)],
        "budget": budget,
    }


def _finite(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
