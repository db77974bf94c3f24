"""Ways out of a domain: the saddles and boundary points that an escape may pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from .._jax import jax, jnp
from ..action import FixedPoint, Instanton, fixed_points, instantons
from ..domain import Domain
from ..dynamics import SGD, Process, Sampling, diffusion_approximation
from ..errors import InputError, RunError, known_options
from .regime import drift_of, flow, temperature_of


@dataclass(frozen=True)
class Channel:
    """One way out.

    Attributes
    ----------
    path
        Instanton from the minimum to the way's narrowest point.
    saddle
        The saddle there, None where the path meets the boundary with the drift against it.
    on_boundary
        Whether that saddle lies on the boundary (half of its crossings return).
    minimum
        (d,) where the path begins.
    """

    path: Instanton
    saddle: FixedPoint | None
    on_boundary: bool
    minimum: tuple[float, ...] = ()


def channels(
    process: Process, minimum: np.ndarray, domain: Domain, **options: Any
) -> list[Channel]:
    """Ways out, cheapest first: through saddles that lead out, else over the boundary.

    Ways do not depend on the temperature: they are found once for all learning rates and batch
    sizes that share a Hamiltonian.

    Raises
    ------
    RunError
        No way out was found.
    """
    known_options(options, instantons)
    cold = at_unit_temperature(process)
    eps = temperature_of(process)
    asked = tuple(sorted(options.items()))
    found = _channels(cold, tuple(minimum.tolist()), domain, asked)
    return [replace(w, path=replace(w.path, exponent=w.path.action / eps)) for w in found]


def at_unit_temperature(process: Process) -> Process:
    """The process at learning rate 1 and batch size 1, where its action is the same."""
    if isinstance(process, SGD):
        if process.sampling != "with_replacement":
            return process
        return replace(process, learning_rate=1.0, batch_size=1)
    sgd = process.sgd
    if sgd is None or process.order != 1 or diffusion_approximation(sgd) is not process:
        return process
    return diffusion_approximation(replace(sgd, learning_rate=1.0, batch_size=1, sampling=DRAWN))


DRAWN: Sampling = "with_replacement"


@lru_cache(maxsize=64)
def _channels(
    process: Process, at: tuple[float, ...], domain: Domain, asked: tuple[tuple[str, Any], ...]
) -> list[Channel]:
    minimum, options = np.array(at), dict(asked)
    through, refused = [], []
    for p in _leading_out(_with_drift_of(process), at, domain):
        try:
            paths = instantons(process, minimum, p.x, **options)
        except RunError as error:
            refused.append(error)
            continue
        # Mirror images are ways of their own.
        through += [Channel(a, p, abs(p.level) <= 1e-7, at) for a in paths if a.index == 0]
    try:
        over = [
            Channel(a, None, False, at) for a in instantons(process, minimum, domain, **options)
        ]
    except InputError:  # no ray meets the boundary: only saddles lead out
        over = []
    except RunError as error:
        over, refused = [], [*refused, error]
    if through:
        # A path that costs as much as a saddle's, or that ends where the drift leads out anyway,
        # goes through that saddle.
        floor = min(c.path.action for c in through)
        over = [c for c in over if c.path.action < 0.999 * floor and _against(process, c, domain)]
    out = through + over
    if not out:
        raise (
            refused[0]
            if refused
            else RunError(f"no saddle and no boundary point of the {domain.name} was found")
        )
    return _without_repeats(sorted(out, key=lambda c: c.path.action))


# Error of an action, relative, above which a costlier path to the same end is not believed.
LOOSE = 1e-7


def _without_repeats(ways: list[Channel]) -> list[Channel]:
    """Ways, cheapest first, without costlier paths to an end that a cheaper one reaches too.

    At a saddle several paths may be real (V has a kink there); badly resolved ones are not.
    """
    out: list[Channel] = []
    for way in ways:
        end, start = way.path.end, way.path.path[0]
        near = 0.01 * float(np.linalg.norm(end - start))
        same = any(np.linalg.norm(end - w.path.end) <= near for w in out)
        if same and (way.saddle is None or way.path.error > LOOSE * way.path.action):
            continue
        out.append(way)
    return out


def follow(process: Process, ways: list[Channel], domain: Domain) -> list[Channel]:
    """The `ways` of a similar process with the same drift, as they are for `process`: cheapest first.

    Each is relaxed anew from its own curve; no further ones are looked for.

    Raises
    ------
    RunError
        The noise is bounded and carries `process` along none of them.
    """
    out, refused = [], []
    for way in ways:
        path = way.path
        end = domain if way.saddle is None else way.saddle.x
        start = np.asarray(way.minimum)
        try:
            found = instantons(
                process, start, end, order=max(2, len(path.coefficients)), near=[path]
            )
        except RunError as error:
            refused.append(error)
            continue
        out.append(replace(way, path=found[0]))
    if not out:
        raise refused[0]
    return sorted(out, key=lambda c: c.path.action)


def _with_drift_of(process: Process) -> Process:
    """One process for all that share its drift: their saddles are the same."""
    sgd = process if isinstance(process, SGD) else process.sgd
    plain = sgd is not None and sgd.momentum == 0
    if sgd is None or not plain or (not isinstance(process, SGD) and process.order != 1):
        return process
    if not isinstance(process, SGD) and diffusion_approximation(sgd) is not process:
        return process
    return replace(sgd, learning_rate=1.0, batch_size=1, sampling=DRAWN)


@lru_cache(maxsize=64)
def _leading_out(process: Process, at: tuple[float, ...], domain: Domain) -> list[FixedPoint]:
    return leading_out(process, np.array(at), domain)


def leading_out(process: Process, minimum: np.ndarray, domain: Domain) -> list[FixedPoint]:
    """Saddles of index 1 from which one side flows to `minimum` and the other leaves `domain`."""
    drift = drift_of(process)
    jacobian = jax.jacfwd(drift)
    out = []
    for p in fixed_points(drift, domain, minimum):
        if p.index != 1:
            continue
        values, vectors = np.linalg.eig(np.asarray(jacobian(jnp.asarray(p.x))))
        v = vectors[:, np.argmax(values.real)].real
        reach = 1e-3 * (np.linalg.norm(p.x - minimum) + 1e-12) / np.linalg.norm(v)
        ends = [_fate(process, p.x + sign * reach * v, minimum, domain) for sign in (1, -1)]
        if sorted(ends) == ["minimum", "out"]:
            out.append(p)
    return out


def _fate(process: Process, x: np.ndarray, minimum: np.ndarray, domain: Domain) -> str:
    """Where the noiseless flow from x goes: "minimum", "out" or "elsewhere"."""
    assert domain.level is not None
    inside, end = flow(process, x, domain)
    size = float(np.linalg.norm(x - minimum))
    # A flow that comes to rest on the boundary itself counts as out: noise carries it over.
    if not inside or float(domain.level(jnp.asarray(end))) > -1e-3 * size:
        return "out"
    return "minimum" if np.linalg.norm(end - minimum) < 0.05 * size else "elsewhere"


def _against(process: Process, way: Channel, domain: Domain) -> bool:
    """Whether the drift points into the domain where `way` meets the boundary."""
    assert domain.level is not None
    x = jnp.asarray(way.path.end)
    return float(jnp.dot(jax.grad(domain.level)(x), drift_of(process)(x))) < 0
