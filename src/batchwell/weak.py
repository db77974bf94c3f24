"""The weak error of a diffusion against SGD, its order, and whether that order shows yet.

``e(eta) = E phi(x_K) - E phi(X_T)``, T = eta K, for SGD and its diffusion of order 1 or 2 from the
same point. Exact moments are used for quadratic losses, operators on nodes in 1 and 2 dimensions,
and otherwise a simulation with martingale controls (and common noise where it is Gaussian), which
resolves differences far below the spread of phi.

Source: Hu, Li, Li & Liu, arXiv:1705.07562, theorem 1; Li, Tai & E (ICML 2017); controls as in
Milstein & Tretyakov, "Practical variance reduction via regression for simulating diffusions" (SIAM
J. Numer. Anal. 47, 2009).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._jax import jax, jnp
from .dynamics import SGD, Diffusion, diffusion_approximation
from .errors import InputError, one_of, positive, require, whole
from .estimate import Estimate, sample_mean
from .law import (
    GridLaw,
    expectation,
    generator,
    is_quadratic,
    law_after,
    moments,
    resample,
    total_variation,
    transfer_operator,
    wasserstein,
)
from .law.operator import Operator, deterministic
from .law.reach import reachable_box, reachable_interval
from .law.smooth import smooth_expectation
from .streams import generator as keyed_generator

Array = Any
Floats = NDArray[np.float64]
Phi = Callable[[Array], Array]

METHODS = ("auto", "moments", "operators", "simulation")
ORDER_TOLERANCE = 0.15
CHUNK = 2048
SUBSTEPS = 4


@dataclass(frozen=True)
class WeakError:
    """Weak error of the diffusion of one order, over several learning rates.

    Attributes
    ----------
    order
        1 or 2.
    learning_rates
        (k,), from large to small.
    errors
        E phi of SGD minus E phi of the diffusion, for each learning rate.
    chain, diffusion
        The two expectations themselves.
    observed_order
        Slope of log|error| in log eta between the two smallest learning rates.
    constant
        ``error / eta**order`` extrapolated to eta = 0.
    asymptotic
        Whether the observed order has come to within 0.15 of `order`, and is settling.
    method
        "moments", "operators" or "simulation".
    notes
        Plain sentences.
    """

    order: int
    learning_rates: tuple[float, ...]
    errors: tuple[Estimate, ...]
    chain: tuple[Estimate, ...]
    diffusion: tuple[Estimate, ...]
    observed_order: Estimate
    constant: Estimate
    asymptotic: bool
    method: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows = [
            f"eta {eta:<10.6g} error {e.value:+.6e} +- {e.stderr:.1e}"
            for eta, e in zip(self.learning_rates, self.errors, strict=True)
        ]
        regime = "reached" if self.asymptotic else "not reached"
        rows.append(
            f"observed order {self.observed_order} (expected {self.order}; asymptotic "
            f"regime {regime}), constant {self.constant.value:.6g}"
        )
        return "\n".join([*rows, *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe dictionary for a report."""
        return {
            "order": self.order,
            "learning_rates": list(self.learning_rates),
            "errors": [e.to_dict() for e in self.errors],
            "chain": [e.to_dict() for e in self.chain],
            "diffusion": [e.to_dict() for e in self.diffusion],
            "observed_order": self.observed_order.to_dict(),
            "constant": self.constant.to_dict(),
            "asymptotic": self.asymptotic,
            "method": self.method,
            "notes": list(self.notes),
        }


def weak_error(
    sgd: SGD,
    order: int,
    phi: Phi,
    horizon: float,
    learning_rates: Sequence[float],
    x0: ArrayLike,
    method: str = "auto",
    paths: int = 100_000,
    seed: int = 0,
) -> WeakError:
    """Weak error of the diffusion of `order` against SGD at time `horizon`.

    Parameters
    ----------
    sgd
        SGD; its own learning rate is replaced by each of `learning_rates`.
    phi
        ``phi(x)``: scalar in jax.numpy of one point x (d,).
    horizon
        Time T = eta K; every learning rate must divide it.
    learning_rates
        At least two.
    x0
        Start (d,).
    method
        "auto" takes the first of "moments" (quadratic loss, phi of degree 2), "operators" (1 and 2
        dimensions) and "simulation" that applies.
    paths, seed
        Coupled pairs and root seed of a simulation.

    Raises
    ------
    InputError
        Naming the argument, or why a `method` does not apply.

    Examples
    --------
    T1: f = x^2/2, unit noise, E x^2 at T = 1; the constant tends to -exp(-2) = -.1353353.

    >>> from batchwell import SGD, additive
    >>> sgd = SGD(additive(lambda x: x @ x / 2), learning_rate=0.1)
    >>> out = weak_error(
    ...     sgd, 1, lambda x: x @ x, 1.0, [1 / 64, 1 / 128, 1 / 256, 1 / 512], x0=[1.0]
    ... )
    >>> out.asymptotic, round(out.constant.value, 5)
    (True, -0.13534)
    """
    return weak_errors(sgd, phi, horizon, learning_rates, x0, (order,), method, paths, seed)[order]


def weak_errors(
    sgd: SGD,
    phi: Phi,
    horizon: float,
    learning_rates: Sequence[float],
    x0: ArrayLike,
    orders: Sequence[int] = (1, 2),
    method: str = "auto",
    paths: int = 100_000,
    seed: int = 0,
) -> dict[int, WeakError]:
    """`weak_error` for several orders at once; says where order 1 is the closer one."""
    etas = _check_rates(horizon, learning_rates)
    x = np.asarray(x0, dtype=np.float64)
    require(x.shape == (sgd.loss.dim,), "x0", x.shape, f"must have shape ({sgd.loss.dim},)")
    for order in orders:
        require(order in (1, 2), "order", order, "must be 1 or 2")
    chosen = _choose(sgd, phi, one_of("method", method, METHODS))
    table: dict[int, list[tuple[Estimate, Estimate, Estimate]]] = {o: [] for o in orders}
    for eta in etas:
        here, steps = replace(sgd, learning_rate=eta), round(horizon / eta)
        rows = _rows(chosen, here, phi, x, steps, orders, paths, seed)
        for o in orders:
            table[o].append(rows[o])
    out = {o: _summarise(o, etas, table[o], chosen) for o in orders}
    return _compare(out) if {1, 2} <= set(orders) else out


def _check_rates(horizon: float, learning_rates: Sequence[float]) -> tuple[float, ...]:
    positive("horizon", horizon)
    etas = tuple(sorted({positive("learning_rates", e) for e in learning_rates}, reverse=True))
    require(len(etas) >= 2, "learning_rates", list(etas), "must hold at least two values")
    for eta in etas:
        ratio = horizon / eta
        require(
            abs(ratio - round(ratio)) < 1e-6 * ratio and round(ratio) >= 1,
            "learning_rates",
            eta,
            f"must divide the horizon {horizon:g} into whole steps",
        )
    return etas


# ------------------------------------------------------------- choice of method


def _choose(sgd: SGD, phi: Phi, method: str) -> str:
    if method != "auto":
        return method
    if _quadratic_parts(phi, sgd.loss.dim) is not None and is_quadratic(sgd.loss):
        return "moments"
    return "operators" if sgd.loss.dim <= 2 and sgd.momentum == 0 else "simulation"


def _quadratic_parts(phi: Phi, d: int) -> tuple[float, Floats, Floats] | None:
    """Value, slope and Hessian at 0 if phi is a polynomial of degree 2, else None."""
    zero = jnp.zeros(d)
    value, slope = float(phi(zero)), np.asarray(jax.grad(phi)(zero))
    curve = np.asarray(jax.hessian(phi)(zero))
    rng = np.random.Generator(np.random.Philox(1708))
    for _ in range(3):
        x = rng.standard_normal(d)
        want, got = float(phi(jnp.asarray(x))), value + slope @ x + x @ curve @ x / 2
        if not abs(want - got) <= 1e-10 * (1 + abs(want)):
            return None
    return value, slope, curve


def _rows(
    chosen: str,
    sgd: SGD,
    phi: Phi,
    x0: Floats,
    steps: int,
    orders: Sequence[int],
    paths: int,
    seed: int,
) -> dict[int, tuple[Estimate, Estimate, Estimate]]:
    """For each order: error, E phi of SGD, E phi of the diffusion."""
    if chosen == "simulation":
        return {o: _simulated(sgd, o, phi, x0, steps, paths, seed) for o in orders}
    expect = _by_moments if chosen == "moments" else _by_operators
    chain = expect(sgd, phi, x0, steps)
    out = {}
    for o in orders:
        flow = expect(diffusion_approximation(sgd, o), phi, x0, steps)
        spread = chain.stderr + flow.stderr
        error = deterministic(chain.value - flow.value, spread, "1", chosen)
        out[o] = (error, chain, flow)
    return out


def _by_moments(process: SGD | Diffusion, phi: Phi, x0: Floats, steps: int) -> Estimate:
    parts = _quadratic_parts(phi, len(x0))
    require(parts is not None, "phi", "not of degree 2", "must be a polynomial of degree 2")
    assert parts is not None
    value, slope, curve = parts
    law = moments(process, x0, steps)
    result = value + slope @ law.mean + np.sum(curve * law.raw[1]) / 2
    return deterministic(float(result), 1e-14 * (1 + abs(float(result))), "1", "exact moments")


def _by_operators(process: SGD | Diffusion, phi: Phi, x0: Floats, steps: int) -> Estimate:
    many = jax.jit(jax.vmap(phi))

    def values(points: Floats) -> Floats:
        return np.asarray(many(jnp.asarray(points)))

    sgd = process if isinstance(process, SGD) else process.sgd
    assert sgd is not None
    if len(x0) == 1:
        if isinstance(process, Diffusion):
            return smooth_expectation(process, values, x0, steps)
        return expectation(_line_operator(process, float(x0[0]), steps), values, x0, steps)
    require(len(x0) == 2, "method", "operators", "is for 1 and 2 dimensions")
    place: Any = reachable_box(sgd, x0, steps)
    if isinstance(process, Diffusion):
        return smooth_expectation(process, values, x0, steps, place)
    finite = sgd.loss.noise is None or sgd.loss.noise.atoms
    op = transfer_operator(process, place, method="spectral" if finite else "nystrom")
    return expectation(op, values, x0, steps)


def _line_operator(sgd: SGD, x0: float, steps: int) -> Operator:
    bounded = reachable_interval(sgd, x0, steps)
    if bounded is not None:
        return transfer_operator(sgd, bounded, method="spectral")
    return transfer_operator(sgd, (-math.inf, math.inf), include=(x0,))


# -------------------------------------------------------------------- simulation


def _simulated(
    sgd: SGD, order: int, phi: Phi, x0: Floats, steps: int, paths: int, seed: int
) -> tuple[Estimate, Estimate, Estimate]:
    """Pairs of SGD and its diffusion, each with a martingale subtracted from its phi.

    The martingale (`_Control`) has mean 0 exactly and carries all of phi that is linear or
    quadratic in the noise, so that only cubic terms are left to chance. Gaussian noise is
    moreover shared by the pair, and taken with both signs.
    """
    paths = whole("paths", paths, 2 * CHUNK)
    require(sgd.momentum == 0, "momentum", sgd.momentum, "must be 0 here")
    run = _pairs(sgd, diffusion_approximation(sgd, order), phi, x0, steps)
    parts = [run(keyed_generator(seed, "weak-pairs", c)) for c in range(-(-paths // CHUNK))]
    chain, flow = (np.concatenate([p[i] for p in parts]) for i in (0, 1))
    name = "simulated pairs with martingale controls"
    return tuple(sample_mean(v, "1", name) for v in (chain - flow, chain, flow))  # type: ignore[return-value]


@dataclass(frozen=True)
class _Control:
    """Quadratic picture of u_k(x) = E phi(x_K | x_k = x) around gradient descent's path.

    Attributes
    ----------
    path
        (K + 1, d) gradient descent from x0.
    slope, curve
        (K + 1, d) and (K + 1, d, d): first and second derivatives of u_k on the path.
    """

    path: Floats
    slope: Floats
    curve: Floats


def _control(sgd: SGD, phi: Phi, x0: Floats, steps: int) -> _Control:
    eta, d = sgd.learning_rate, len(x0)
    gradient = jax.jit(sgd.loss.gradient)

    @jax.jit
    def back(x: Array, p: Array, curve: Array) -> tuple[Array, Array]:
        step = jnp.eye(d) - eta * sgd.loss.hessian(x)
        bend = jax.hessian(lambda y: jnp.dot(p, sgd.loss.gradient(y)))(x)
        return step.T @ p, step.T @ curve @ step - eta * bend

    path = [jnp.asarray(x0)]
    for _ in range(steps):
        path.append(path[-1] - eta * gradient(path[-1]))
    slope, curve = [jax.grad(phi)(path[-1])], [jax.hessian(phi)(path[-1])]
    for x in reversed(path[:-1]):
        p, c = back(x, slope[-1], curve[-1])
        slope.append(p)
        curve.append(c)
    return _Control(*(np.stack(v) for v in (path, slope[::-1], curve[::-1])))


def _pairs(
    sgd: SGD, flow: Diffusion, phi: Phi, x0: Floats, steps: int
) -> Callable[[np.random.Generator], tuple[Floats, Floats]]:
    """One chunk: controlled phi of SGD and of its diffusion (extrapolated over substeps)."""
    loss, eta, fine = sgd.loss, sgd.learning_rate, 2 * SUBSTEPS
    gaussian = loss.noise is not None and loss.noise.name == "gaussian"
    control = _control(sgd, phi, x0, steps)

    def gain(middle: Array, noise: Array, spread: Array, at: Any) -> Array:
        """The martingale's increment; its mean given the past is 0 by construction."""
        path, p, curve = at
        linear = (p + curve @ (middle - path)) @ noise
        return linear + 0.5 * (noise @ curve @ noise - jnp.sum(curve * spread))

    def chain_step(x: Array, m: Array, batch: Array, dw: Array, at: Any) -> tuple[Array, Array]:
        mean = loss.gradient(x)
        if gaussian:
            noise = math.sqrt(sgd.batch_factor * eta) * loss.factor_vector(x, dw)
        else:
            examples = jax.tree.map(lambda v: v[batch], loss.nodes) if loss.n else batch
            g = jax.vmap(loss.example_gradient, in_axes=(None, 0))(x, examples).mean(axis=0)
            noise = eta * (mean - g)
        middle = x - eta * mean
        return middle + noise, m + gain(middle, noise, eta**2 * sgd.noise_covariance(x), at)

    def flow_step(y: Array, m: Array, dw: Array, h: float, at: Any) -> tuple[Array, Array]:
        # Heun in the drift, Ito in the noise: weak order 2 for additive noise.
        b, noise = flow.drift(y), flow.factor_vector(y, dw)
        middle = y + h * b
        new = y + 0.5 * h * (b + flow.drift(middle + noise)) + noise
        return new, m + gain(middle, noise, h * flow.tensor(y), at)

    def between(ends: Any, share: Any) -> Any:
        return jax.tree.map(lambda v: (1 - share) * v[0] + share * v[1], ends)

    def substeps(y: Array, m: Array, increments: Array, ends: Any) -> tuple[Array, Array]:
        count = len(increments)
        shares = jnp.arange(1, count + 1) / count

        def one(carry: Any, step: Any) -> Any:
            (y, m), (dw, share) = carry, step
            return flow_step(y, m, dw, eta / count, between(ends, share)), None

        return jax.lax.scan(one, (y, m), (increments, shares))[0]

    def advance(state: Any, dw: Array, batch: Array, ends: Any) -> Any:
        (x, mx), (y, my), (z, mz) = state
        x, mx = chain_step(x, mx, batch, dw.sum(axis=0), between(ends, 1.0))
        y, my = substeps(y, my, dw, ends)
        z, mz = substeps(z, mz, dw.reshape(SUBSTEPS, 2, -1).sum(axis=1), ends)
        return (x, mx), (y, my), (z, mz)

    many = jax.jit(jax.vmap(advance, in_axes=(0, 0, 0, None)))
    values = jax.jit(jax.vmap(phi))
    tables = (control.path, control.slope, control.curve)

    def run(rng: np.random.Generator) -> tuple[Floats, Floats]:
        start = np.broadcast_to(x0, (2 * CHUNK, len(x0))), np.zeros(2 * CHUNK)
        state = (start, start, start)
        for k in range(steps):
            half = math.sqrt(eta / fine) * rng.standard_normal((CHUNK, fine, flow.noise_dim))
            batch = _draw_batches(sgd, rng, 2 * CHUNK)
            ends = tuple(t[k : k + 2] for t in tables)
            state = many(state, np.concatenate([half, -half]), batch, ends)
        x, y, z = (
            (np.asarray(values(s)) - np.asarray(m)).reshape(2, CHUNK).mean(axis=0) for s, m in state
        )
        return x, 2 * y - z

    return run


def _draw_batches(sgd: SGD, rng: np.random.Generator, paths: int) -> np.ndarray:
    """Rows of the data (paths, B), or noise (paths, B, noise_dim); nothing if Gaussian."""
    loss, b = sgd.loss, sgd.batch_size
    if loss.noise is None:
        n = loss.size
        if sgd.sampling == "with_replacement":
            return rng.integers(0, n, (paths, b))
        return np.argsort(rng.random((paths, n)), axis=1)[:, :b]
    if loss.noise.name == "gaussian":
        return np.zeros((paths, 0))
    shape = (loss.noise.words, paths, b, loss.noise_dim)
    words = rng.integers(0, 2**32, shape, dtype=np.uint32)
    return np.asarray(loss.noise.draw(list(words), np))


# ----------------------------------------------------------------------- summary


def _summarise(
    order: int,
    etas: tuple[float, ...],
    rows: list[tuple[Estimate, Estimate, Estimate]],
    method: str,
) -> WeakError:
    errors, chain, flow = (tuple(r[i] for r in rows) for i in range(3))
    slopes = [_slope(a, b) for a, b in itertools.pairwise(zip(etas, errors, strict=True))]
    observed = slopes[-1]
    previous = slopes[-2].value if len(slopes) > 1 else observed.value
    settled = abs(observed.value - order) <= ORDER_TOLERANCE
    settling = abs(observed.value - order) <= abs(previous - order) + observed.stderr + 0.02
    resolved = math.isfinite(observed.stderr) and observed.stderr < ORDER_TOLERANCE
    notes = []
    if not resolved:
        notes.append(
            "errors are not resolved at the smallest learning rate: more paths, or "
            "larger learning rates"
        )
    elif not settled:
        notes.append(
            f"the observed order {observed.value:.3g} is not yet {order}: learning rates "
            "are too large for the asymptotic regime, or the constant nearly vanishes"
        )
    return WeakError(
        order,
        etas,
        errors,
        chain,
        flow,
        observed,
        _constant(order, etas, errors),
        bool(settled and settling and resolved),
        method,
        tuple(notes),
    )


def _slope(first: tuple[float, Estimate], second: tuple[float, Estimate]) -> Estimate:
    (eta_a, a), (eta_b, b) = first, second
    if a.value == 0 or b.value == 0:
        return deterministic(math.nan, math.nan, "1", "log-log slope")
    span = math.log(eta_a / eta_b)
    value = math.log(abs(a.value / b.value)) / span
    error = math.hypot(a.stderr / a.value, b.stderr / b.value) / span
    half = error if a.level == 1 else 1.96 * error
    return Estimate(
        value,
        error,
        (value - half, value + half),
        "1",
        "log-log slope between the two smallest learning rates",
        a.n,
        level=a.level,
    )


def _constant(order: int, etas: tuple[float, ...], errors: tuple[Estimate, ...]) -> Estimate:
    """error / eta^order is c + O(eta): a straight line through the two smallest eta."""
    (ea, a), (eb, b) = (
        (e, x.value / e**order) for e, x in zip(etas[-2:], errors[-2:], strict=True)
    )
    value = b + (b - a) * eb / (ea - eb)
    noise = math.hypot(*(x.stderr / e**order for e, x in zip(etas[-2:], errors[-2:], strict=True)))
    error = abs(value - b) + noise
    return deterministic(value, error, "1", "extrapolated to learning rate 0")


def _compare(out: dict[int, WeakError]) -> dict[int, WeakError]:
    """Say at which learning rates the diffusion of order 1 is the closer one."""
    pairs = zip(out[1].learning_rates, out[1].errors, out[2].errors, strict=True)
    worse = [eta for eta, a, b in pairs if abs(a.value) + a.stderr + b.stderr < abs(b.value)]
    if not worse:
        return out
    listed = ", ".join(f"{eta:g}" for eta in worse)
    note = f"order 1 is closer to SGD than order 2 at learning rate {listed}"
    return {o: replace(w, notes=(*w.notes, note)) for o, w in out.items()}


# --------------------------------------------------------------------- snapshots


@dataclass(frozen=True, eq=False)
class Snapshots:
    """Laws of a 1-D chain and of its diffusions side by side, on common cells.

    Attributes
    ----------
    steps
        SGD steps of the snapshots (k,).
    centres
        Centres of the cells (n,).
    densities
        Per process ("SGD", "order 1", "order 2"): (k, n) mean density of each cell.
    total_variation
        Per diffusion: (k,) distance in [0, 1] from SGD, on these cells.
    wasserstein
        Per diffusion: (k,) Wasserstein-1 distance from SGD, in units of x.
    """

    steps: tuple[int, ...]
    centres: Floats
    densities: dict[str, Floats]
    total_variation: dict[str, Floats]
    wasserstein: dict[str, Floats]

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe dictionary for a figure."""
        return {
            "steps": list(self.steps),
            "centres": self.centres.tolist(),
            "densities": {k: v.tolist() for k, v in self.densities.items()},
            "total_variation": {k: v.tolist() for k, v in self.total_variation.items()},
            "wasserstein": {k: v.tolist() for k, v in self.wasserstein.items()},
        }


def snapshots(sgd: SGD, x0: float, steps: Sequence[int], cells: int = 200) -> Snapshots:
    """Densities of SGD and of its diffusions of order 1 and 2 after some numbers of steps.

    Laws are compared on `cells` common cells, as SGD with finitely many examples has atoms and no
    density of its own.

    Examples
    --------
    >>> from batchwell import SGD, additive
    >>> out = snapshots(SGD(additive(lambda x: x @ x / 2), 0.1), 1.0, [2, 20])
    >>> bool(out.total_variation["order 1"][1] < 0.05)
    True
    """
    times = tuple(whole("steps", s) for s in steps)
    require(sgd.loss.dim == 1, "dim", sgd.loss.dim, "snapshots are drawn in one dimension")
    place = reachable_interval(sgd, x0, max(times))
    open_ends: Any = place if place is not None else (-math.inf, math.inf)
    ops = {"SGD": transfer_operator(sgd, open_ends, include=(x0,))}
    for order in (1, 2):
        ops[f"order {order}"] = generator(
            diffusion_approximation(sgd, order), (-math.inf, math.inf), include=(x0,)
        )
    laws = {k: [law_after(op, [x0], t) for t in times] for k, op in ops.items()}
    centres = _common_cells([law for row in laws.values() for law in row], cells)
    on_cells = {k: [resample(law, centres[:, None]) for law in row] for k, row in laws.items()}
    width = centres[1] - centres[0]
    names = [k for k in laws if k != "SGD"]
    pairs = {k: list(zip(on_cells[k], on_cells["SGD"], strict=True)) for k in names}
    full = {k: list(zip(laws[k], laws["SGD"], strict=True)) for k in names}
    return Snapshots(
        times,
        centres,
        {k: np.array([c.mass / width for c in row]) for k, row in on_cells.items()},
        {k: np.array([total_variation(a, b) for a, b in pairs[k]]) for k in names},
        {k: np.array([wasserstein(a, b) for a, b in full[k]]) for k in names},
    )


def _common_cells(laws: list[GridLaw], cells: int) -> Floats:
    """Centres of equal cells that hold all but 1e-6 of every law."""
    low, high = math.inf, -math.inf
    for law in laws:
        share = np.cumsum(np.maximum(law.mass, 0)) / np.maximum(law.mass, 0).sum()
        x = law.nodes[:, 0]
        first, last = np.searchsorted(share, [1e-6, 1 - 1e-6])
        low = min(low, float(x[int(first)]))
        high = max(high, float(x[min(int(last), len(x) - 1)]))
    if not low < high:
        raise InputError("steps", "one point", "must leave time for the law to spread")
    width = (high - low) / cells
    return np.asarray(low + width * (np.arange(cells) + 0.5), dtype=np.float64)
