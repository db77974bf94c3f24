"""The minima of a loss from many starts, one of each kind, with their sharpness."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._jax import jax, jnp
from ..errors import Divergence, RunError, require, whole
from ..loss import StochasticLoss
from ..symmetry import NONE, Symmetry
from .attractors import UNDECIDED, Attractors, add_attractor
from .diverged import Diverged, diverged_note
from .points import points_of
from .quench import SAME_CENTER, Quench, Runaway, quench, several
from .spectrum import DENSE, curvature_and_noise

LABELS = string.ascii_uppercase.replace("B", "")  # B is the batch size
SAME = 1e-5  # distance, relative to 1 + |x|, under which two minima are one
MAX_DIM = 10_000


@dataclass(frozen=True, eq=False)
class Minimum:
    """One minimum and how sharp it is.

    Attributes
    ----------
    label
        "A", "C", "D", ... from the smallest largest Hessian eigenvalue on; B is the batch size.
    x
        (d,) one representative of its class under the symmetry.
    loss
        F(x).
    lambda_max, lambda_min, trace
        Largest and smallest eigenvalue and trace of the Hessian of F.
    noise_trace
        Trace of Sigma(x), the covariance of one example's gradient.
    alignment
        tr(H Sigma) / (|H|_F |Sigma|_F): 1 if noise is shaped like curvature.
    starts
        How many starts ended in its class.
    attractor
        Its index among the attractors of the search.
    """

    label: str
    x: np.ndarray = field(repr=False)
    loss: float
    lambda_max: float
    lambda_min: float
    trace: float
    noise_trace: float
    alignment: float
    starts: int
    attractor: int


@dataclass(frozen=True, eq=False)
class Landscape:
    """Minima found by a search, up to symmetry.

    Attributes
    ----------
    loss
        The loss that was searched.
    symmetry
        What was divided out.
    minima
        From the flattest to the sharpest.
    attractors
        All attractors met, mirror images included.
    classes
        (K,) index into `minima` of each attractor, -1 for attractors met on the way that no start
        reached.
    labels
        (starts,) attractor that each start reached, or UNDECIDED.
    runaways
        Starts from which gradient flow runs away: the loss has no lower bound there.
    diverged
        Paths of SGD that ran away while they explored (`explore`).
    """

    loss: StochasticLoss
    symmetry: Symmetry
    minima: tuple[Minimum, ...]
    attractors: Attractors
    classes: np.ndarray
    labels: np.ndarray
    runaways: tuple[Runaway, ...] = ()
    diverged: tuple[Diverged, ...] = ()

    @property
    def starts(self) -> int:
        """How many starts there were."""
        return len(self.labels)

    @property
    def undecided(self) -> int:
        """How many starts reached no isolated minimum, runaways among them."""
        return int(np.sum(self.labels == UNDECIDED))

    @property
    def notes(self) -> tuple[str, ...]:
        """What became of starts that reached no isolated minimum, and of paths that diverged."""
        out, flat = [], self.undecided - len(self.runaways)
        if self.runaways:
            out.append(
                f"Of {self.starts} starts, gradient flow from {several(self.runaways)} runs away: "
                "the loss has no lower bound there. The others were kept."
            )
        if flat:
            out.append(
                f"From {flat} of {self.starts} starts no isolated minimum was reached: the loss "
                "has flat directions, or falls ever more steeply, there (weight decay, "
                "`symmetry.quotient` or `symmetry.fixing` would mend the former)."
            )
        lost = diverged_note("While SGD explored", self.diverged, "The others were kept")
        return (*out, *lost)

    def __getitem__(self, label: str) -> Minimum:
        """The minimum called `label`."""
        for minimum in self.minima:
            if minimum.label == label:
                return minimum
        raise KeyError(label)


def find_minima(
    loss: StochasticLoss,
    starts: ArrayLike,
    symmetry: Symmetry = NONE,
    progress: Callable[[int, int], None] | None = None,
) -> Landscape:
    """The distinct minima that gradient flow reaches from `starts` (n, d).

    Each start is followed by gradient flow and its end polished by Newton's method to a
    gradient norm below 1e-9; above 200 parameters by Hessian-vector products alone. Minima that `symmetry` maps on each other count as one.

    Raises
    ------
    InputError
        No loss, more than 10,000 dimensions, or starts of the wrong shape or not finite.
    RunError
        No start reached an isolated minimum (flat directions: add weight decay).
    Divergence
        None did, and from some the flow runs away (a loss without lower bound). Where others
        reach a minimum, those that run away are named in the landscape's `runaways`.

    Examples
    --------
    >>> from batchwell import additive
    >>> well = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4 + 0.1 * x[0])
    >>> [round(m.lambda_max, 3) for m in find_minima(well, [[0.7], [-0.2], [-1.0]]).minima]
    [1.683, 2.287]
    """
    require(isinstance(loss, StochasticLoss), "loss", loss, "must be a StochasticLoss")
    require(loss.dim <= MAX_DIM, "dim", loss.dim, f"must not exceed {MAX_DIM} here")
    points = points_of("starts", starts, loss.dim)
    return landscape_of(loss, symmetry, quench(loss, points, progress=progress))


def landscape_of(loss: StochasticLoss, symmetry: Symmetry, result: Quench) -> Landscape:
    """The landscape that the quench of some starts revealed (see `find_minima`)."""
    reached = Counter(int(k) for k in result.labels if k != UNDECIDED)
    if not reached and result.runaways:
        raise Divergence(
            f"gradient flow from {several(result.runaways)} of {len(result.labels)} runs away "
            "without end, and no other reached a minimum: the loss has no lower bound there"
        )
    if not reached:
        raise RunError(
            f"no isolated minimum was reached from {len(result.labels)} starts: the loss has flat "
            "directions (add weight decay, or divide a continuous symmetry out: `symmetry.quotient`, "
            "`symmetry.fixing`), or falls without lower bound"
        )
    groups = _group(result.attractors.centers, sorted(reached), symmetry)
    shapes = [_shape(loss)(result.attractors.centers[g[0]]) for g in groups]
    order = np.argsort([float(s["lambda_max"]) for s in shapes])
    minima = tuple(
        Minimum(
            label=letters(rank),
            x=result.attractors.centers[groups[k][0]],
            starts=sum(reached[i] for i in groups[k]),
            attractor=groups[k][0],
            **{name: float(value) for name, value in shapes[k].items()},
        )
        for rank, k in enumerate(order)
    )
    classes = classify(result.attractors.centers, minima, symmetry)
    return Landscape(
        loss, symmetry, minima, result.attractors, classes, result.labels, result.runaways
    )


def extended(landscape: Landscape, points: ArrayLike) -> Landscape:
    """`landscape` with further minima listed: those of `points` (n, d) that are none of its own.

    All minima are named anew, from the flattest to the sharpest; `starts` of new ones is 0.

    Raises
    ------
    InputError
        A point that is no isolated minimum.
    """
    centers = np.atleast_2d(np.asarray(points, dtype=np.float64))
    require(
        centers.shape[1] == landscape.loss.dim,
        "points",
        centers.shape,
        f"must have shape (n, {landscape.loss.dim})",
    )
    strange = centers[classify(centers, landscape.minima, landscape.symmetry) < 0]
    if not len(strange):
        return landscape
    attractors, new = landscape.attractors, []
    for group in _group(strange, list(range(len(strange))), landscape.symmetry):
        x = strange[group[0]]
        near = np.linalg.norm(attractors.centers - x, axis=1)
        if near.min() > SAME_CENTER:
            attractors = add_attractor(landscape.loss, attractors, x)
            near = np.append(near, 0.0)
        shape = {name: float(value) for name, value in _shape(landscape.loss)(x).items()}
        new.append(Minimum(label="", x=x, starts=0, attractor=int(near.argmin()), **shape))
    ranked = sorted([*landscape.minima, *new], key=lambda m: m.lambda_max)
    minima = tuple(replace(m, label=letters(k)) for k, m in enumerate(ranked))
    classes = classify(attractors.centers, minima, landscape.symmetry)
    return replace(landscape, minima=minima, attractors=attractors, classes=classes)


def _group(centers: np.ndarray, members: list[int], symmetry: Symmetry) -> list[list[int]]:
    groups: list[list[int]] = []
    for i in members:
        for group in groups:
            if _same(centers[i], centers[group[0]], symmetry):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def _same(x: np.ndarray, reference: np.ndarray, symmetry: Symmetry) -> bool:
    # Moves keep the norm, so unequal norms settle most pairs without an alignment.
    scale = SAME * (1.0 + float(np.linalg.norm(reference)))
    if abs(float(np.linalg.norm(x)) - float(np.linalg.norm(reference))) > scale:
        return False
    return symmetry.distance(x, reference) < scale


def classify(points: np.ndarray, minima: tuple[Minimum, ...], symmetry: Symmetry) -> np.ndarray:
    """Which of `minima` each of `points` (n, d) is an image of: index or -1, (n,)."""
    out = np.full(len(points), -1)
    for i, point in enumerate(points):
        for k, minimum in enumerate(minima):
            if _same(point, minimum.x, symmetry):
                out[i] = k
                break
    return out


@lru_cache(maxsize=32)
def _shape(loss: StochasticLoss) -> Callable[[Any], dict[str, Any]]:
    # Along an orbit of a symmetry that was divided out there is neither curvature nor noise.
    loss, orbit = loss.free or loss, loss.orbit_dim
    if loss.dim > DENSE:
        return lambda x: curvature_and_noise(loss, np.asarray(x), orbit)

    def shape(x: Any) -> dict[str, Any]:
        hessian, noise = loss.hessian(x), loss.covariance(x)
        values = jnp.linalg.eigvalsh(hessian)
        size = jnp.linalg.norm(hessian) * jnp.linalg.norm(noise)
        return {
            "loss": loss.mean(x),
            "lambda_max": values[-1],
            "lambda_min": values[orbit],
            "trace": jnp.trace(hessian),
            "noise_trace": jnp.trace(noise),
            "alignment": jnp.sum(hessian * noise) / jnp.where(size > 0, size, 1.0),
        }

    return jax.jit(shape)


def shapes(loss: StochasticLoss, points: np.ndarray) -> dict[str, np.ndarray]:
    """Loss, curvature and noise at each of `points` (n, d): named as in `Minimum`, each (n,)."""
    rows = [_shape(loss)(x) for x in points]
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def letters(rank: int) -> str:
    """0, 1, ..., 24, 25, ... as A, C, ..., Z, AA, ...: without B, which is the batch size.

    >>> [letters(k) for k in (0, 1, 24, 25, 49, 50)]
    ['A', 'C', 'Z', 'AA', 'AZ', 'CA']
    """
    out = ""
    rank += 1
    while rank:
        rank, digit = divmod(rank - 1, len(LABELS))
        out = LABELS[digit] + out
    return out


def line_profile(
    loss: StochasticLoss,
    first: ArrayLike,
    second: ArrayLike,
    symmetry: Symmetry = NONE,
    points: int = 81,
) -> tuple[np.ndarray, np.ndarray]:
    """F along the straight line from `first` to the closest image of `second`.

    Returns (s, F), both (points,), s from 0 to 1.
    """
    a = points_of("first", first, loss.dim)[0]
    b = symmetry.align(points_of("second", second, loss.dim)[0], a)
    s = np.linspace(0.0, 1.0, whole("points", points, 2))
    values = _means(loss)(a + s[:, None] * (b - a))
    return s, np.asarray(values)


@lru_cache(maxsize=32)
def _means(loss: StochasticLoss) -> Callable[[Any], Any]:
    return jax.jit(jax.vmap(loss.mean))
