"""May the diffusion be trusted? Verdicts with numbers and reasons, for SGD in a region.

Four uses of a diffusion are judged apart: averages over short times, the stationary variance, tails,
and escapes. SGD is linearised at the minimum with every example's own curvature (multiplicative
noise), for which variances and stability limits are exact; escapes compare the local exponents of
the chain's Hamiltonian log E exp(-p . g) and of its Gaussian surrogate along rays out of the
minimum. A verdict is an indication drawn from these numbers, never a proof.

Sources: Hu, Li, Li & Liu, arXiv:1705.07562; Li, Malladi & Arora, "On the validity of modeling SGD
with stochastic differential equations" (2021), for the ratio of noise to gradient; Kesten (1973) and
Gurbuzbalaban, Simsekli & Zhu (2021) for tail exponents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from ._jax import jax, jnp
from .domain import Domain
from .dynamics import SGD
from .errors import InputError, require
from .estimate import _to_json
from .streams import generator as keyed_generator

Floats = NDArray[np.float64]
Trust = Literal["yes", "caution", "no"]

USES = ("short_time_averages", "stationary_variance", "tails", "escapes")
CURVATURE_BYTES = 5e8
BATCH_DRAWS = 20000
RAYS = 16
RAY_POINTS = 12
# Relative errors of the diffusion up to which it is trusted, and beyond which it is not.
GOOD, BAD = 0.05, 0.25
# exp(V / eps) forgives less: the same share of V, at barriers of some ten eps.
GOOD_EXPONENT, BAD_EXPONENT = 0.02, 0.1


@dataclass(frozen=True)
class Verdict:
    """Whether the diffusion may be trusted for one use.

    Attributes
    ----------
    use
        One of `USES`.
    trust
        "yes", "caution" or "no".
    reason
        One sentence with the number that decided.
    """

    use: str
    trust: Trust
    reason: str

    def __str__(self) -> str:
        return f"{self.use.replace('_', ' ')}: {self.trust}. {self.reason}"


@dataclass(frozen=True)
class Validity:
    """Verdicts on the diffusion approximation of one SGD in one region.

    Attributes
    ----------
    verdicts
        One per use, in the order of `USES`.
    numbers
        What they rest on (see `NUMBERS` for meanings and units); ``nan`` where a number
        could not be had.
    notes
        Plain sentences on what the numbers leave out.
    """

    verdicts: tuple[Verdict, ...]
    numbers: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __getitem__(self, use: str) -> Verdict:
        for verdict in self.verdicts:
            if verdict.use == use:
                return verdict
        raise InputError("use", use, "must be one of " + ", ".join(USES))

    def __str__(self) -> str:
        return "\n".join(str(v) for v in self.verdicts)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe dictionary: infinities and NaN become strings."""
        return {
            "verdicts": [asdict(v) for v in self.verdicts],
            "numbers": {k: _to_json(v) for k, v in self.numbers.items()},
            "notes": list(self.notes),
        }


NUMBERS = {
    "eta_lambda_max": "learning rate times largest Hessian eigenvalue at the minimum",
    "stability_limit_sgd": "largest learning rate with bounded mean square, linearised SGD",
    "stability_limit_diffusion": "the same for the diffusion of order 1",
    "variance_ratio_order1": "trace of the stationary covariance, order 1 over SGD (linearised)",
    "variance_ratio_order2": "the same for order 2",
    "variance_ratio_frozen": "the same for order 1 with noise frozen at the minimum",
    "skewness": "largest |skewness| of one example's gradient noise along the rays",
    "excess_kurtosis": "its excess kurtosis with the largest modulus",
    "kesten_sgd": "tail exponent of SGD's stationary law along the noisiest curvature",
    "kesten_diffusion": "the same for the diffusion of order 1",
    "exponent_ratio": "escape exponent, SGD over diffusion, on the easiest of the rays",
    "gradient_over_noise": "largest |grad F| over one example's noise along the rays",
    "boundary_known": "1 if rays end on a given boundary, 0 if at four standard deviations",
    "blocked_rays": "share of rays on which SGD's bounded noise cannot climb out",
    "noise_over_gradient_power": "SVAG ratio: E|noise|^2 / E|grad F|^2 when stationary",
}


@dataclass(frozen=True)
class _Linear:
    """SGD linearised at a minimum: Hessian eigenbasis, noise there, per-example curvatures."""

    eigenvalues: Floats  # (d,)
    vectors: Floats  # (d, d)
    noise: Floats  # (d, d) Sigma in the eigenbasis
    spread: Floats | None  # (m, d, d) sqrt(w) (H_z - H) in the eigenbasis, None if too large
    weights: Floats  # (m,)
    factor: float  # batch factor
    eta: float

    def lyapunov(self, s: Floats) -> Floats:
        """X with H X + X H = s."""
        return s / np.add.outer(self.eigenvalues, self.eigenvalues)

    def multiplicative(self, s: Floats) -> Floats:
        """Batch covariance of (H_z - H) x for E xx^T = s."""
        if self.spread is None:
            return np.zeros_like(s)
        # sum_m G_m s G_m^T as two matrix products: einsum takes ten times as long.
        d = len(s)
        right = self.spread.transpose(1, 0, 2).reshape(d, -1)
        left = (self.spread @ s).transpose(1, 0, 2).reshape(d, -1)
        return self.factor * (left @ right.T)

    def squared(self, s: Floats) -> Floats:
        """H s H."""
        return s * np.multiply.outer(self.eigenvalues, self.eigenvalues)


def validity(
    sgd: SGD, region: Domain | ArrayLike, minimum: ArrayLike | None = None, seed: int = 0
) -> Validity:
    """Verdicts on the diffusion approximation of `sgd` around a minimum.

    Parameters
    ----------
    sgd
        Any `SGD`. Momentum is taken at its effective learning rate eta / (1 - mu).
    region
        The minimum itself (d,): rays go out to four standard deviations of the linearised
        stationary law; or a `Domain` around it (rays go to its boundary; a basin is sampled
        like a point).
    minimum
        The minimum (d,), needed with a `Domain`.
    seed
        Seed of the random rays.

    Returns
    -------
    A `Validity`; ``to_dict()`` is JSON-safe.

    Raises
    ------
    InputError
        The point is not a minimum to within the noise (indefinite Hessian), or shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> from batchwell import SGD, additive, ball
    >>> well = additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4, "rademacher", scale=0.7)
    >>> out = validity(SGD(well, 0.01), ball([-1.0], 1.0), minimum=[-1.0])
    >>> out["stationary_variance"].trust, out["escapes"].trust
    ('yes', 'no')
    >>> round(out.numbers["exponent_ratio"], 3)
    1.178
    """
    centre = _centre(sgd, region, minimum)
    linear, notes = _linearise(sgd, centre)
    numbers = {key: math.nan for key in NUMBERS}
    numbers.update(_stability(linear))
    covariance, variances = _variances(linear)
    numbers.update(variances)
    numbers.update(_kesten(linear, seed))
    if covariance is not None:
        power = float(np.trace(linear.squared(covariance)))
        noise = linear.factor * float(np.trace(linear.noise))
        numbers["noise_over_gradient_power"] = noise / power if power > 0 else math.nan
    rays, ray_notes = _rays(sgd, region, centre, linear, seed)
    numbers.update(_escapes(sgd, rays))
    numbers["boundary_known"] = float(_has_boundary(region))
    verdicts = tuple(judge(sgd, numbers) for judge in _JUDGES.values())
    return Validity(verdicts, numbers, (*notes, *ray_notes))


def _centre(sgd: SGD, region: Any, minimum: Any) -> Floats:
    if isinstance(region, Domain):
        require(minimum is not None, "minimum", minimum, "must be given with a domain")
    point = np.asarray(region if minimum is None else minimum, dtype=np.float64)
    d = sgd.loss.dim
    require(point.shape == (d,), "minimum", point.shape, f"must have shape ({d},)")
    require(bool(np.all(np.isfinite(point))), "minimum", point, "must be finite")
    return point


# ---------------------------------------------------------------- linearised


def _linearise(sgd: SGD, centre: Floats) -> tuple[_Linear, tuple[str, ...]]:
    loss, x = sgd.loss, jnp.asarray(centre)
    d, m = loss.dim, loss.size
    values, vectors = np.linalg.eigh(np.asarray(jax.jit(loss.hessian)(x)))
    require(
        values[-1] > 0 and values[0] > -1e-3 * values[-1],
        "minimum",
        f"Hessian eigenvalue {values[0]:.3g}",
        "must be a minimum (positive curvature)",
    )
    notes = []
    floor = 1e-8 * values[-1]
    if values[0] < floor:
        notes.append(
            f"{int(np.sum(values < floor))} flat directions (curvature below "
            f"{floor:.2g}) are held in place"
        )
    noise = vectors.T @ np.asarray(jax.jit(loss.covariance)(x)) @ vectors
    spread: Floats | None = None
    if 16.0 * m * d * d <= CURVATURE_BYTES:
        each = jax.jit(jax.vmap(jax.hessian(loss.function), in_axes=(None, 0)))
        h = np.asarray(each(x, loss.nodes))
        w = np.asarray(loss.weights)
        h = h - np.tensordot(w, h, axes=1)
        spread = np.sqrt(w)[:, None, None] * np.einsum(
            "ai,mab,bj->mij", vectors, h, vectors, optimize=True
        )
    else:
        notes.append("too many parameters for per-example curvature: noise is taken as additive")
    # An epoch has no one-step noise; its numbers are those of fresh subsets, and say so.
    if sgd.sampling == "reshuffle":
        assert loss.n is not None
        factor = (loss.n - sgd.batch_size) / max(1, loss.n - 1) / sgd.batch_size
        notes.append("numbers are those of a fresh subset each step; epochs are far quieter")
    else:
        factor = sgd.batch_factor
    eta = sgd.learning_rate / (1 - sgd.momentum)
    if sgd.momentum:
        notes.append(f"momentum is taken at its effective learning rate {eta:.4g}")
    weights = np.asarray(loss.weights)
    return (
        _Linear(np.maximum(values, floor), vectors, noise, spread, weights, factor, eta),
        tuple(notes),
    )


def _radius(apply: Callable[[Floats], Floats], size: int) -> float:
    """Spectral radius of a positive map on symmetric matrices, by power iteration."""
    s = np.eye(size) / math.sqrt(size)
    value = 0.0
    for _ in range(500):
        new = apply(s)
        norm = float(np.linalg.norm(new))
        if norm == 0.0:
            return 0.0
        s = new / norm
        if abs(norm - value) <= 1e-10 * norm:
            break
        value = norm
    return norm


def _stability(linear: _Linear) -> dict[str, float]:
    """HS + SH = eta (HSH + T(S)) at the limit: eta is one over a spectral radius."""
    d = len(linear.eigenvalues)
    chain = _radius(lambda s: linear.lyapunov(linear.squared(s) + linear.multiplicative(s)), d)
    flow = _radius(lambda s: linear.lyapunov(linear.multiplicative(s)), d)
    # A power radius converges from a start that may miss growth: 1e-10 is far below use.
    return {
        "eta_lambda_max": linear.eta * float(linear.eigenvalues[-1]),
        "stability_limit_sgd": 1 / chain,
        "stability_limit_diffusion": 1 / flow if flow > 1e-12 * chain else math.inf,
    }


def _variances(linear: _Linear) -> tuple[Floats | None, dict[str, float]]:
    """Stationary covariance of linearised SGD (or None) and ratios of its trace."""
    source = linear.factor * linear.noise

    def fixed_point(apply: Callable[[Floats], Floats]) -> Floats | None:
        c = np.zeros_like(source)
        for _ in range(5000):
            new = apply(c)
            size = float(np.trace(new))
            if not size < 1e6 * max(1.0, float(np.trace(source))):
                return None
            if abs(size - float(np.trace(c))) <= 1e-10 * size:
                return new
            c = new
        return None

    eta, rate = linear.eta, linear.eigenvalues
    chain = fixed_point(
        lambda c: linear.lyapunov(eta * (linear.squared(c) + linear.multiplicative(c) + source))
    )
    first = fixed_point(lambda c: linear.lyapunov(eta * (linear.multiplicative(c) + source)))
    faster = rate + eta * rate**2 / 2
    second = fixed_point(
        lambda c: eta * (linear.multiplicative(c) + source) / np.add.outer(faster, faster)
    )
    frozen = linear.lyapunov(eta * source)
    out = {}
    if chain is not None and np.trace(chain) <= 0:  # no noise at all: nothing to compare
        return chain, {
            f"variance_ratio_{name}": math.nan for name in ("order1", "order2", "frozen")
        }
    for name, c in (("order1", first), ("order2", second), ("frozen", frozen)):
        if chain is None:
            out[f"variance_ratio_{name}"] = 0.0 if c is not None else math.nan
        elif c is None:
            out[f"variance_ratio_{name}"] = math.inf
        else:
            out[f"variance_ratio_{name}"] = float(np.trace(c) / np.trace(chain))
    return chain, out


def _kesten(linear: _Linear, seed: int) -> dict[str, float]:
    """Tail exponents along the direction whose curvature is noisiest relative to its mean."""
    none = {"kesten_sgd": math.inf, "kesten_diffusion": math.inf}
    if linear.spread is None:
        return {key: math.nan for key in none}
    own = np.einsum("mii->mi", linear.spread)
    variance = linear.factor * np.sum(own**2, axis=0)
    i = int(np.argmax(variance / linear.eigenvalues))
    if variance[i] <= 1e-14 * linear.eigenvalues[i] ** 2:
        return none
    rate = linear.eigenvalues[i]
    # Tail |x|^-kappa of dX = -r X dt + sqrt(eta (s^2 + v X^2)) dW.
    flow = 1 + 2 * rate / (linear.eta * variance[i])
    return {"kesten_sgd": _kesten_root(linear, i, seed), "kesten_diffusion": float(flow)}


def _kesten_root(linear: _Linear, i: int, seed: int) -> float:
    """Kappa > 0 with E|1 - eta h|^kappa = 1, h the batch curvature; inf if never above 1."""
    assert linear.spread is not None
    w = linear.weights
    h = linear.spread[:, i, i] / np.sqrt(w)
    count = max(1, round(1 / linear.factor)) if linear.factor > 0 else 0
    if count == 0:
        return math.inf
    if count > 1:
        rng = keyed_generator(seed, "validity-kesten")
        h = np.sum(rng.choice(h, size=(BATCH_DRAWS, count), p=w / w.sum()), axis=1) / count
        w = np.full(BATCH_DRAWS, 1 / BATCH_DRAWS)
    size = np.abs(1 - linear.eta * (linear.eigenvalues[i] + h))
    if size.max() <= 1:
        return math.inf
    log = np.log(np.maximum(size, 1e-300))

    def excess(kappa: float) -> float:
        top = kappa * log
        peak = top.max()
        return float(peak + np.log(np.sum(w * np.exp(top - peak))))

    if float(w @ log) >= 0:
        return 0.0
    high = 1.0
    while excess(high) < 0:
        high *= 2
        if high > 1e6:
            return math.inf
    return float(brentq(excess, high / 2 if high > 1 else 1e-9, high, xtol=1e-10))


# ------------------------------------------------------------------- escapes


def _rays(
    sgd: SGD, region: Any, centre: Floats, linear: _Linear, seed: int
) -> tuple[Floats, tuple[str, ...]]:
    """Points (rays, k, d) from the minimum outwards, equally spaced on each ray."""
    d = len(centre)
    rng = keyed_generator(seed, "validity-rays")
    ends = [linear.vectors[:, 0], linear.vectors[:, -1]]
    noisy = np.linalg.eigh(linear.vectors @ linear.noise @ linear.vectors.T)[1][:, -1]
    random = rng.standard_normal((RAYS, d)) if d > 1 else np.empty((0, 1))
    directions = np.array([*ends, noisy, *random])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    directions = np.concatenate([directions, -directions])
    if d == 1:
        directions = np.array([[1.0], [-1.0]])
    if _has_boundary(region):
        length = np.array([_distance(region, centre, v) for v in directions])
        directions, length = directions[np.isfinite(length)], length[np.isfinite(length)]
        notes: tuple[str, ...] = ()
    else:
        frozen = linear.lyapunov(linear.eta * linear.factor * linear.noise)
        spread = linear.vectors @ frozen @ linear.vectors.T
        # Radius of four standard deviations in each direction.
        inverse = np.linalg.pinv(spread, rcond=1e-10, hermitian=True)
        inner = np.einsum("ri,ij,rj->r", directions, inverse, directions)
        length = 4 / np.sqrt(np.maximum(inner, 1e-12))
        notes = (
            "no boundary was given: escapes are judged within four standard deviations "
            "of the stationary law",
        )
    # Midpoints: the exponent is an integral along the ray by the midpoint rule.
    s = (np.arange(RAY_POINTS * (8 if d == 1 else 1)) + 0.5) / (RAY_POINTS * (8 if d == 1 else 1))
    return centre + length[:, None, None] * s[:, None] * directions[:, None, :], notes


def _has_boundary(region: Any) -> bool:
    """Whether rays can be followed to a boundary (a basin's is known only by quenches)."""
    return isinstance(region, Domain) and not region.needs_quench


def _distance(domain: Domain, centre: Floats, v: Floats) -> float:
    """Distance from the minimum to the boundary along v, infinite beyond 1e3."""
    require(bool(domain.contains(centre)), "minimum", centre, f"must lie in the {domain.name}")
    s = np.concatenate([np.linspace(0, 10, 1001), np.logspace(1, 3, 201)])
    outside = np.flatnonzero(~domain.contains(centre + s[:, None] * v))
    if not outside.size:
        return math.inf
    low, high = s[outside[0] - 1], s[outside[0]]
    for _ in range(3):
        t = np.linspace(low, high, 65)
        k = int(np.flatnonzero(~domain.contains(centre + t[:, None] * v))[0])
        low, high = t[k - 1], t[k]
    return float((low + high) / 2)


def _escapes(sgd: SGD, rays: Floats) -> dict[str, float]:
    """Local exponents of chain and diffusion along the rays, and the noise's shape there."""
    if not len(rays):
        return {}
    loss = sgd.loss
    flat = jnp.asarray(rays.reshape(-1, loss.dim))
    ahead = rays[:, -1] - rays[:, 0]
    length = np.linalg.norm(ahead, axis=1, keepdims=True)
    unit = np.repeat(ahead / length, rays.shape[1], axis=0)
    project = jax.jit(jax.vmap(lambda x, v: loss.example_gradients(x) @ v))
    g = np.concatenate(
        [np.asarray(project(flat[i : i + 64], unit[i : i + 64])) for i in range(0, len(unit), 64)]
    )
    w = np.asarray(loss.weights)
    mean = g @ w
    c = g - mean[:, None]
    variance = np.maximum((c * c) @ w, 1e-300)
    chain = np.array([_momentum(row, w) for row in g])
    flow = np.maximum(2 * mean / variance, 0.0)
    shape = (len(rays), rays.shape[1])
    step = length[:, 0] / (rays.shape[1] - 1)
    total_chain = chain.reshape(shape).sum(axis=1) * step
    total_flow = flow.reshape(shape).sum(axis=1) * step
    best = float(total_chain.min() / total_flow.min()) if total_flow.min() > 0 else math.nan
    skew, kurtosis = _shape_of_noise(loss, c, w, variance)
    return {
        "exponent_ratio": best,
        "blocked_rays": float(np.mean(np.isinf(total_chain))),
        "gradient_over_noise": float(np.max(np.abs(mean) / np.sqrt(variance))),
        "skewness": skew,
        "excess_kurtosis": kurtosis,
    }


def _shape_of_noise(loss: Any, c: Floats, w: Floats, variance: Floats) -> tuple[float, float]:
    law = loss.noise
    if law is not None and (not math.isfinite(law.kurtosis) or not math.isfinite(law.skewness)):
        return float(law.skewness), math.inf
    skew = (c**3 @ w) / variance**1.5
    excess = (c**4 @ w) / variance**2 - 3
    return (float(skew[np.argmax(np.abs(skew))]), float(excess[np.argmax(np.abs(excess))]))


def _momentum(g: Floats, w: Floats) -> float:
    """The positive root p of log E exp(-p g) = 0: local exponent per unit of length.

    0 where the gradient pulls outwards, infinite where no example pushes outwards.
    """
    mean = float(g @ w)
    if mean <= 0:
        return 0.0
    if g.min() >= 0:
        return math.inf

    def cumulant(p: float) -> float:
        top = -p * g
        peak = top.max()
        return float(peak + np.log(np.sum(w * np.exp(top - peak))))

    high = 2 * mean / max(float((g - mean) ** 2 @ w), 1e-300)
    while cumulant(high) < 0:
        high *= 2
    low = high / 2
    while cumulant(low) > 0:
        low /= 2
    return float(brentq(cumulant, low, high, xtol=1e-14, rtol=1e-12))


# ------------------------------------------------------------------ verdicts


def _grade(error: float, good: float, bad: float) -> Trust:
    if not math.isfinite(error) or error > bad:
        return "no"
    return "yes" if error <= good else "caution"


def _unstable(sgd: SGD, n: dict[str, float]) -> str:
    if sgd.sampling == "reshuffle":
        return (
            "reshuffled epochs are no diffusion at temperature eta/B: their noise almost "
            "cancels (variance of order eta^3)"
        )
    eta = sgd.learning_rate / (1 - sgd.momentum)
    if eta >= n["stability_limit_sgd"]:
        own, other = n["stability_limit_sgd"], n["stability_limit_diffusion"]
        here = "although its diffusion is stable" if eta < other else "and so is its diffusion"
        return (
            f"SGD is unstable in mean square at the minimum, {here} "
            f"(eta {eta:.3g}; limits {own:.3g} and {other:.3g})"
        )
    return ""


def _judge_short(sgd: SGD, n: dict[str, float]) -> Verdict:
    use, reason = "short_time_averages", _unstable(sgd, n)
    if reason:
        return Verdict(use, "no", reason)
    # (1 - eta l)^k against exp(-eta l k): the decay rate is off by half of eta l.
    error = n["eta_lambda_max"] / 2
    return Verdict(
        use,
        _grade(error, GOOD, BAD),
        "the fastest decay rate is off by about "
        f"{100 * error:.2g} % at order 1 (eta lambda_max / 2)",
    )


def _judge_variance(sgd: SGD, n: dict[str, float]) -> Verdict:
    use, reason = "stationary_variance", _unstable(sgd, n)
    if reason:
        return Verdict(use, "no", reason)
    first, second = n["variance_ratio_order1"], n["variance_ratio_order2"]
    error = abs(1 / first - 1) if first > 0 else math.inf
    better = "order 1" if abs(first - 1) <= abs(second - 1) else "order 2"
    return Verdict(
        use,
        _grade(error, GOOD, BAD),
        f"SGD's variance is {1 / first:.4g} times "
        f"order 1's and {1 / second:.4g} times order 2's ({better} is closer)",
    )


def _shown(value: float) -> str:
    """Two digits, and a plain 0 for what rounding left over."""
    return "0" if abs(value) < 1e-9 else f"{value:.2g}"


def _judge_tails(sgd: SGD, n: dict[str, float]) -> Verdict:
    use, reason = "tails", _unstable(sgd, n)
    if reason:
        return Verdict(use, "no", reason)
    chain, flow = n["kesten_sgd"], n["kesten_diffusion"]
    noise = sgd.loss.noise
    if n["excess_kurtosis"] == math.inf:
        return Verdict(use, "no", "the noise itself has power-law tails, which no diffusion has")
    bounded = (
        noise is not None and math.isfinite(noise.support[0]) and math.isfinite(noise.support[1])
    )
    if bounded and chain == math.inf:
        return Verdict(
            use, "no", "SGD's noise is bounded: its law ends where the diffusion's tails go on"
        )
    if chain == math.inf and flow == math.inf:
        shape = max(abs(n["skewness"]), abs(n["excess_kurtosis"])) / sgd.batch_size**0.5
        return Verdict(
            use,
            _grade(shape, 0.1, 1.0),
            "noise is additive near the minimum; its "
            f"skewness {_shown(n['skewness'])} and excess kurtosis "
            f"{_shown(n['excess_kurtosis'])} per example shape the tails",
        )
    if chain == math.inf:
        return Verdict(
            use,
            "no" if flow < 50 else "caution",
            "every batch contracts, so SGD has "
            f"no power-law tail, but the diffusion has one with exponent {flow:.3g}",
        )
    error = abs(flow / chain - 1) if chain > 0 else math.inf
    return Verdict(
        use,
        _grade(error, 0.1, 0.5),
        f"tail exponent {chain:.3g} for SGD, {flow:.3g} "
        "for the diffusion (curvature differs between examples)",
    )


def _judge_escapes(sgd: SGD, n: dict[str, float]) -> Verdict:
    use, reason = "escapes", _unstable(sgd, n)
    if reason:
        return Verdict(use, "no", reason)
    if n["blocked_rays"] == 1:
        return Verdict(
            use,
            "no",
            "no example pushes outwards somewhere on every ray: SGD cannot "
            "climb out, the diffusion does",
        )
    error = abs(n["exponent_ratio"] - 1)
    if n["eta_lambda_max"] > 1:
        return Verdict(
            use,
            "no",
            f"eta lambda_max = {n['eta_lambda_max']:.3g}: SGD can leap over "
            "barriers, the diffusion cannot",
        )
    if not math.isfinite(error):
        return Verdict(use, "caution", "the exponents could not be compared on these rays")
    trust = _grade(error, GOOD_EXPONENT, BAD_EXPONENT)
    gaussian = sgd.loss.noise is not None and sgd.loss.noise.name == "gaussian"
    reason = f"SGD's escape exponent is {n['exponent_ratio']:.4g} times the diffusion's " + (
        "(Gaussian noise)" if gaussian else "(larger batches do not close this gap)"
    )
    if trust == "yes" and not n["boundary_known"] and not gaussian:
        # Close to the minimum every noise looks Gaussian; the way out lies beyond.
        trust = "caution"
        reason += ", seen within four standard deviations only: the way out may differ"
    return Verdict(use, trust, reason)


_JUDGES = dict(
    zip(USES, (_judge_short, _judge_variance, _judge_tails, _judge_escapes), strict=True)
)
