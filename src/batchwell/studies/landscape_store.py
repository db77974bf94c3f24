"""Landscapes and jump counts as arrays of a run directory, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from ..landscape import (
    Diverged,
    Landscape,
    Minimum,
    Passage,
    Runaway,
    Saddle,
    Survey,
    letters,
    shapes,
)
from ..landscape.attractors import balls
from ..loss import StochasticLoss
from ..metastable import JumpCounts, Looks
from ..runs import RunDirectory
from ..symmetry import Symmetry

Arrays = Mapping[str, np.ndarray]
Facts = Mapping[str, Any]


def survey_arrays(found: Survey) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Minima, saddles and crossings as (arrays, facts)."""
    scape, saddles = found.landscape, found.saddles
    pairs = sorted(found.crossed.items())
    two = np.array([[*s.eigenvalues, np.nan][:2] for s in saddles]).reshape(-1, 2)
    arrays = {
        "attractor": np.array([m.attractor for m in scape.minima]),
        "starts": np.array([m.starts for m in scape.minima]),
        "centers": scape.attractors.centers,
        "radii": scape.attractors.radii,
        "classes": scape.classes,
        "labels": scape.labels,
        "runaways": np.array([(r.point, r.distance) for r in scape.runaways]).reshape(-1, 2),
        "diverged": np.array(
            [(p.path, p.step, p.batch_size, p.learning_rate) for p in scape.diverged]
        ).reshape(-1, 4),
        "saddle_x": _rows([s.x for s in saddles], scape.loss.dim),
        "saddle_loss": np.array([s.loss for s in saddles]),
        "saddle_eigenvalues": two,
        "saddle_direction": _rows([s.direction for s in saddles], scape.loss.dim),
        "saddle_ends": np.array([s.ends for s in saddles], dtype=int).reshape(-1, 2),
        "saddle_end_points": np.array([s.end_points for s in saddles]).reshape(
            -1, 2, scape.loss.dim
        ),
        "saddle_gradient_norm": np.array([s.gradient_norm for s in saddles]),
        "crossed": np.array([(*pair, *seen) for pair, seen in pairs]).reshape(-1, 4),
    }
    return arrays, {"methods": [s.method for s in saddles]}


def _rows(vectors: list[np.ndarray], dim: int) -> np.ndarray:
    return np.array(vectors, dtype=np.float64).reshape(-1, dim)


def read_survey(
    loss: StochasticLoss, symmetry: Symmetry, arrays: Arrays, facts: Facts
) -> tuple[Landscape, tuple[Saddle, ...], dict[tuple[int, int], Passage]]:
    """The landscape, its saddles, and between which minima SGD passed, and how."""
    own = arrays["attractor"]
    x = arrays["centers"][own]
    rows = shapes(loss, x)
    minima = tuple(
        Minimum(
            label=letters(k),
            x=x[k],
            starts=int(arrays["starts"][k]),
            attractor=int(own[k]),
            **{name: float(values[k]) for name, values in rows.items()},
        )
        for k in range(len(x))
    )
    scape = Landscape(
        loss,
        symmetry,
        minima,
        balls(arrays["centers"], arrays["radii"]),
        arrays["classes"],
        arrays["labels"],
        tuple(Runaway(int(point), float(size)) for point, size in arrays["runaways"]),
        tuple(Diverged(int(p), int(t), int(b), float(e)) for p, t, b, e in arrays["diverged"]),
    )
    saddles = tuple(
        Saddle(
            f"S{k + 1}",
            arrays["saddle_x"][k],
            float(arrays["saddle_loss"][k]),
            arrays["saddle_eigenvalues"][k][: min(2, loss.dim)],
            arrays["saddle_direction"][k],
            (int(arrays["saddle_ends"][k, 0]), int(arrays["saddle_ends"][k, 1])),
            arrays["saddle_end_points"][k],
            float(arrays["saddle_gradient_norm"][k]),
            str(method),
        )
        for k, method in enumerate(facts["methods"])
    )
    crossed = {(int(a), int(b)): Passage(int(n), float(h)) for a, b, n, h in arrays["crossed"]}
    return scape, saddles, crossed


def write_counts(run: RunDirectory, name: str, counts: JumpCounts) -> None:
    """Store what simulation at one batch size showed."""
    arrays = {
        "lags": np.array([k.lag for k in counts.looks]),
        "counts": np.array([k.counts for k in counts.looks]),
        "jumps": counts.jumps,
        "exposure": counts.exposure,
        "first_exits": counts.first_exits,
        "series": counts.series,
    }
    lost = [asdict(path) for path in counts.diverged]
    run.write_chunk(name, arrays, {"unlisted": counts.unlisted, "diverged": lost})


def read_counts(batch_size: int, arrays: Arrays, facts: Facts) -> JumpCounts:
    """The inverse of `write_counts`."""
    looks = zip(arrays["lags"], arrays["counts"], strict=True)
    return JumpCounts(
        batch_size,
        tuple(Looks(int(lag), counts) for lag, counts in looks),
        arrays["jumps"],
        arrays["exposure"],
        arrays["first_exits"],
        arrays["series"],
        int(facts["unlisted"]),
        tuple(Diverged(**path) for path in facts["diverged"]),
    )
