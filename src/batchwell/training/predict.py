"""What SGD will do around a point, from a measurement there, and how that compares with what came.

The assumptions are those of the local picture and are said in every answer: a quadratic loss around
the point, of each example in `stationary_loss`, and elsewhere noise that does not change with the
parameters. Within these the formulas are
those of the chain itself, not of its diffusion: eta lambda need not be small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import InputError, one_of, positive, require, whole
from ..estimate import Estimate
from .epochs import epoch_sizes, excess, gathered
from .lanczos import Vector
from .local import LocalLoss
from .noise import SAMPLING_MODES, noise_factor
from .own_curvature import Added, added, plus
from .spectrum import NoiseSpectrum

LOCAL = "quadratic loss and constant noise around the point of measurement"
_FLAT = 1e-9  # relative to the sharpness: curvature of no sign


def temperature(
    learning_rate: float,
    batch_size: float,
    data_size: int | None = None,
    sampling: str = "with_replacement",
) -> float:
    """eps = eta times the noise factor: eta/B, or eta (n-B)/((n-1)B) for a subset.

    Raises
    ------
    InputError
        `sampling` is "reshuffle", whose steps are not independent: it has no temperature.

    Examples
    --------
    >>> temperature(0.1, 4)
    0.025
    """
    if sampling == "reshuffle":
        raise InputError("sampling", sampling, "has no temperature: ask stationary_loss")
    return positive("learning_rate", learning_rate) * noise_factor(batch_size, data_size, sampling)


def stationary_loss(
    spectrum: NoiseSpectrum,
    learning_rate: float,
    batch_size: int,
    sampling: str = "reshuffle",
    *,
    steps: int | None = None,
    when: str = "average",
    leftover: str = "kept",
) -> Estimate:
    """Mean excess of F over the minimum while SGD hovers there.

    With independent batches it is (eps/2) tr[Sigma (2 - eta H)^-1], and what examples' own curvature
    adds: exactly where the spectrum resolves all directions (``top`` of all parameters), else to
    first order by random draws. Of reshuffled epochs, whose batches' noises sum to zero over each epoch,
    it is of order eta^3 at the ends of epochs.

    Parameters
    ----------
    steps
        So many steps after starting at the minimum; None for the stationary value. Flat
        directions need 1/(2 eta lambda) steps to settle. Not for "reshuffle".
    when
        For "reshuffle": "average" over an epoch's steps, or "epoch_end".
    leftover
        For "reshuffle", where the batch size does not divide the data: examples left over are
        "kept" as a last, smaller batch, as a DataLoader does, or "dropped" (``drop_last=True``).

    Raises
    ------
    InputError
        eta lambda_max >= 2, where SGD is not stable, or a batch larger than the data.

    References
    ----------
    Mandt, Hoffman & Blei, JMLR 18 (2017) 134, eq. (14), for small eta; for epochs, the covariance
    of sampling without replacement, summed over the chain's steps: exact where all examples
    have the same curvature. Where they have not, epochs hover higher, also since a batch's curvature
    and the noises of its epoch's earlier batches are correlated (Smith et al., arXiv:2101.12176).
    Without a stationary law, as the curvature of batches differs too much, the answer is infinite.
    """
    eta, b = positive("learning_rate", learning_rate), whole("batch_size", batch_size)
    one_of("sampling", sampling, SAMPLING_MODES)
    one_of("when", when, ("average", "epoch_end"))
    one_of("leftover", leftover, ("kept", "dropped"))
    limit = 2 / max(spectrum.lambda_max, 1e-300)
    require(eta < limit, "learning_rate", eta, f"must be below 2 / lambda_max = {limit:.6g}")
    factor = noise_factor(b, spectrum.n, sampling)
    notes = [LOCAL, *_stationarity(spectrum)]
    if sampling == "reshuffle":
        require(steps is None, "steps", steps, "is not offered for reshuffled epochs")
        notes.append(
            "what examples' own curvature adds is taken from fresh subsets, and told from none to "
            "three times of it"
        )
        sizes = epoch_sizes(spectrum.n, b, leftover)

        def function(values: Vector) -> Vector:
            each = [excess(eta, float(v), sizes, spectrum.n, when) for v in values.ravel()]
            return np.reshape(each, values.shape)

        how = f"chain of reshuffled epochs, {when.replace('_', ' ')}"
    else:

        def function(values: Vector) -> Vector:
            settled = 1.0 if steps is None else 1 - (1 - eta * values) ** (2 * steps)
            return factor * eta / 2 * settled / (2 - eta * values)

        how = f"chain with independent batches, {sampling.replace('_', ' ')}"
    limited = function if steps is not None else _positive_only(function, spectrum)
    if steps is None and spectrum.lambda_min < -1e-3 * spectrum.lambda_max:
        notes.append("not a minimum: directions of negative curvature are left out")
    answer = spectrum.trace_of(limited, "loss", how).with_notes(*notes)
    answer = _with_own_curvature(answer, spectrum, eta, b, sampling, steps)
    return _nearness(answer, spectrum)


def _with_own_curvature(
    answer: Estimate, spectrum: NoiseSpectrum, eta: float, b: int, sampling: str, steps: int | None
) -> Estimate:
    """`answer`, which takes the same curvature for all examples, and what their own adds."""
    if spectrum.own is None:
        return answer.with_notes("and the same curvature for all examples")
    epochs = sampling == "reshuffle"
    factor = noise_factor(b, spectrum.n, "without_replacement" if epochs else sampling)
    stationary = _positive_only(lambda v: factor * eta / 2 / (2 - eta * v), spectrum)
    base = spectrum.trace_of(stationary, "loss", "").value
    if base == 0:
        return answer
    settled, before = (1.0, base) if steps is None else (answer.value / base, answer.value)
    more = added(spectrum.own, spectrum.values, eta, factor, before, steps, settled)
    if epochs:
        share = answer.value / base
        value, most = share * more.value, 3 * share * more.interval[1]
        more = Added(value, value, (0.0, most))
    return plus(answer, more)


def _positive_only(function: Any, spectrum: NoiseSpectrum) -> Any:
    floor = _FLAT * spectrum.lambda_max
    return lambda values: np.where(values > floor, function(np.maximum(values, floor)), 0.0)


def _stationarity(spectrum: NoiseSpectrum) -> list[str]:
    norm = math.sqrt(spectrum.gradient_norm_squared)
    return [
        f"|grad F| = {norm:.3g} at the point: F is {spectrum.decrement:.3g} above the minimum nearby"
    ]


def _nearness(answer: Estimate, spectrum: NoiseSpectrum) -> Estimate:
    if spectrum.decrement > 0.2 * abs(answer.value):
        return answer.with_notes(
            "not at a stationary point: the way down is not small against the excess predicted"
        )
    return answer


def saddle_escape_steps(
    spectrum: NoiseSpectrum,
    learning_rate: float,
    batch_size: int,
    drop: float,
    sampling: str = "with_replacement",
) -> tuple[Estimate, ...]:
    """Mean steps until F has fallen by `drop` along each direction of negative curvature.

    Steepest first. The chain multiplies what it has by 1 + eta |lambda| at each step, so that it
    leaves after [ln(L/s) - E ln|Z| ...] / ln(1 + eta |lambda|) steps, L where the quadratic loss
    has fallen by `drop`, s the scale of the noise gathered and Z where it would be without growth;
    overshoot of the last step included.

    Raises
    ------
    InputError
        No negative curvature was resolved (ask `noise_spectrum` for ``bottom`` eigenvalues).

    References
    ----------
    Kifer, Israel J. Math. 40 (1981) 74, for the diffusion: (1/(2 lambda)) ln(1/eps); Siegmund,
    Sequential Analysis (1985), eq. (8.50), for the overshoot.
    """
    eta, b = positive("learning_rate", learning_rate), whole("batch_size", batch_size)
    drop = positive("drop", drop)
    one_of("sampling", sampling, SAMPLING_MODES)
    downwards = np.flatnonzero(spectrum.values < -_FLAT * abs(spectrum.values).max())
    require(
        downwards.size > 0,
        "spectrum",
        f"lambda_min {spectrum.lambda_min:.3g}",
        "has no negative curvature among its eigenvalues: noise_spectrum(local, bottom=...)",
    )
    order = downwards[np.argsort(spectrum.values[downwards])]
    factor = noise_factor(b, spectrum.n, sampling)
    return tuple(_escape(spectrum, int(k), eta, factor, b, drop, sampling) for k in order)


def _escape(
    spectrum: NoiseSpectrum, k: int, eta: float, factor: float, b: int, drop: float, sampling: str
) -> Estimate:
    from scipy.special import digamma
    from scipy.stats import poisson

    mu = -float(spectrum.values[k])
    growth, level = math.log1p(eta * mu), math.sqrt(2 * drop / mu)
    weight = eta * math.sqrt(float(spectrum.weights[k]))
    kick = weight * math.sqrt(factor)  # of one step
    if sampling == "reshuffle":
        scale = weight * math.sqrt(
            gathered(eta * mu, epoch_sizes(spectrum.n, b, "kept"), spectrum.n)
        )
    else:
        scale = kick / math.sqrt(eta * mu * (2 + eta * mu))
    require(0 < scale < level, "drop", drop, "must be more than the noise alone brings about")
    offset = float(spectrum.slopes[k]) / mu / scale
    # E ln|N + m| = (ln 2 + E digamma(1/2 + J)) / 2 with J Poisson of mean m^2/2.
    j = np.arange(int(offset**2 / 2 + 12 * offset + 60))
    if offset < 30:
        log_start = 0.5 * (math.log(2) + float(poisson.pmf(j, offset**2 / 2) @ digamma(0.5 + j)))
    else:
        log_start = math.log(offset)
    white = sampling != "reshuffle"
    step = eta * mu * level
    overshoot = _overshoot(step, kick) if white else step / 2
    gain = math.log(level / scale) - log_start + overshoot / level
    gain -= 0.5 * (scale / level) ** 2 if white else 0.0
    value = gain / growth
    error = float(spectrum.errors[k]) / mu * value
    spread = math.pi / math.sqrt(8) / growth if offset < 1 else 0.0
    notes = (
        LOCAL,
        f"curvature {-mu:.4g}, {offset:.2g} noise scales off the saddle to begin with",
        f"one run differs from the mean by about {spread:.3g} steps",
    )
    how = "growth of the chain along one direction"
    return Estimate(value, error, (value - 2 * error, value + 2 * error), "steps", how, 1, 0, notes)


def _overshoot(step: float, kick: float) -> float:
    """Mean excess over a level of a walk with Gaussian steps (Spitzer's identity)."""
    from scipy.stats import norm

    m = step / kick
    n = np.arange(1.0, 4000.0)
    z = m * np.sqrt(n)
    below = (np.sqrt(n) * norm.pdf(z) - m * n * norm.sf(z)) / n
    # The tail of the series, for a slow walk: its terms fall like n^-1/2 until m sqrt(n) = 1.
    return (
        kick * max(0.0, (m * m + 1) / (2 * m) - float(below.sum()))
        if m > 0.05
        else kick * (0.5826 + m / 4)
    )


def escape_exponent(
    spectrum: NoiseSpectrum,
    learning_rate: float,
    batch_size: int,
    barrier: float,
    sampling: str = "with_replacement",
) -> Estimate:
    """Lower bound of ln E[steps] to climb by `barrier` out of the basin: V/eps, V >= 2 barrier / |Sigma|.

    The action with Sigma is nowhere less than with the multiple of the identity above it, whose
    quasi-potential is 2 (F - F*) / |Sigma|.

    Raises
    ------
    InputError
        Reshuffled epochs (no temperature), or `barrier` not positive.

    References
    ----------
    Freidlin & Wentzell, Random Perturbations of Dynamical Systems (2012), chapter 4, theorem 3.1.
    """
    eps = temperature(learning_rate, batch_size, spectrum.n, sampling)
    value = 2 * positive("barrier", barrier) / (spectrum.noise_max * eps)
    return Estimate(
        value,
        math.nan,
        (value, math.inf),
        "1",
        "quasi-potential with isotropic noise above Sigma",
        spectrum.n,
        notes=(
            "a lower bound of the exponent; factors before it are not known",
            "holds where the largest eigenvalue of Sigma does not exceed that here, up to the barrier",
            "of the diffusion: SGD's own exponent differs unless its noise is Gaussian",
        ),
    )


@dataclass(frozen=True)
class Pair:
    """A learning rate and the batch sizes that go with it.

    Attributes
    ----------
    learning_rate
        eta.
    batch_size
        Same temperature as the reference: eta/B with the finite-data factor. Exact.
    batch_size_same_loss
        Same stationary excess loss, by the chain's formula, in examples; nan where no batch of the
        data does.
    eta_lambda_max
        Below 2 for stability; eta/B alone decides only while it is small.
    loss_ratio
        Stationary loss at `batch_size` over the reference's: 1 where eta/B is all that counts.
    """

    learning_rate: float
    batch_size: float
    batch_size_same_loss: Estimate
    eta_lambda_max: float
    loss_ratio: Estimate


def equivalent_pairs(
    spectrum: NoiseSpectrum,
    learning_rate: float,
    batch_size: int,
    learning_rates: Sequence[float],
    sampling: str = "with_replacement",
) -> tuple[Pair, ...]:
    """Batch sizes that keep the temperature, or the stationary loss, at other learning rates.

    Raises
    ------
    InputError
        A learning rate beyond 2 / lambda_max, or reshuffled epochs.
    """
    eps = temperature(learning_rate, batch_size, spectrum.n, sampling)
    rows = []
    for eta in learning_rates:
        ratio = _loss_ratio(spectrum, positive("learning_rate", eta), learning_rate)
        low, value, high = (
            _batch_of(eps / eta / r, spectrum.n, sampling)
            for r in (ratio.interval[0], ratio.value, ratio.interval[1])
        )
        size = replace(
            ratio,
            value=value,
            stderr=ratio.stderr * value / ratio.value,
            interval=(low, high),
            unit="examples",
        )
        same = _batch_of(eps / eta, spectrum.n, sampling)
        rows.append(Pair(eta, same, size, eta * spectrum.lambda_max, ratio))
    return tuple(rows)


def _loss_ratio(spectrum: NoiseSpectrum, eta: float, reference: float) -> Estimate:
    """Stationary loss at `eta` over that at `reference`, at one temperature."""
    base = _inverse_curvature(spectrum, reference)
    value = _inverse_curvature(spectrum, eta) / base
    # Both traces are of the same draws: the error is that of their difference.
    apart = spectrum.trace_of(
        lambda v: 1 / (1 - eta * v / 2) - value / (1 - reference * v / 2), "1", LOCAL
    )
    low, high = (value + (end - apart.value) / base for end in apart.interval)
    how = "chain with independent batches, ratio of traces"
    return replace(
        apart, value=value, stderr=apart.stderr / base, interval=(low, high), method=how
    ).with_notes(LOCAL)


def _inverse_curvature(spectrum: NoiseSpectrum, eta: float) -> float:
    """tr[Sigma (1 - eta H / 2)^-1]."""
    limit = 2 / spectrum.lambda_max
    require(eta < limit, "learning_rate", eta, f"must be below 2 / lambda_max = {limit:.6g}")
    return spectrum.trace_of(lambda v: 1 / (1 - eta * v / 2), "1", "").value


def _batch_of(factor: float, n: int, sampling: str) -> float:
    """The batch size with this noise factor; nan below one example."""
    size = 1 / factor if sampling == "with_replacement" else n / (1 + factor * (n - 1))
    return size if size >= 1 - 1e-9 else math.nan


def invariance_limit(spectrum: NoiseSpectrum, tolerance: float = 0.05) -> Estimate:
    """The learning rate up to which eta/B alone gives the stationary loss within `tolerance`.

    There the curvature's share, tr[Sigma (1 - eta H/2)^-1] / tr Sigma, has grown to 1 + tolerance.
    """
    from scipy.optimize import brentq

    tolerance = positive("tolerance", tolerance)
    trace = spectrum.trace_of(lambda v: np.ones_like(v), "1", "").value
    ceiling = 2 / spectrum.lambda_max * (1 - 1e-9)

    def excess(eta: float) -> float:
        return _inverse_curvature(spectrum, eta) / trace - 1 - tolerance

    value = ceiling if excess(ceiling) < 0 else float(brentq(excess, 1e-12 * ceiling, ceiling))
    share = spectrum.trace_of(lambda v: 1 / (1 - value * v / 2), "1", "")
    slope = (excess(value * (1 - 1e-4)) - excess(value)) / (-1e-4 * value)
    error = share.stderr / trace / slope if slope > 0 else math.nan
    return Estimate(
        value,
        error,
        (value - 2 * error, value + 2 * error),
        "learning rate",
        f"stationary loss {tolerance:.0%} off eta/B scaling",
        spectrum.n,
        notes=(LOCAL, f"eta lambda_max = {value * spectrum.lambda_max:.3g} there"),
    )


def critical_batch_size(local: LocalLoss, products: int = 60, *, seed: int = 0) -> Estimate:
    """tr(H Sigma) / (G^T H G): up to it, twice the batch saves nearly half of the steps.

    Raises
    ------
    InputError
        Curvature along the gradient is not positive: no step along it is the best.

    References
    ----------
    McCandlish, Kaplan & Amodei, arXiv:1812.06162, eq. (2.8).
    """
    from .curvature import overlap

    gradient = local.gradient()
    along = float(gradient @ local.hessian(gradient))
    require(along > 0, "local", f"G^T H G = {along:.3g}", "must curve upwards along the gradient")
    top = overlap(local, products, seed=seed).trace_product
    low, high = top.interval
    return replace(
        top,
        value=top.value / along,
        stderr=top.stderr / along,
        interval=(low / along, high / along),
        unit="examples",
    ).with_notes("at this point; it grows without bound as the gradient goes to zero")


def predictions(
    spectrum: NoiseSpectrum,
    learning_rate: float,
    batch_size: int,
    sampling: str = "reshuffle",
    *,
    barrier: float | None = None,
    drop: float | None = None,
) -> dict[str, Estimate]:
    """All that the measurement says about training on at these settings, by name.

    `barrier` adds the escape exponent, `drop` the escape along negative curvature.
    """
    out = {
        "stationary_excess_loss": stationary_loss(spectrum, learning_rate, batch_size, sampling),
        "invariance_limit": invariance_limit(spectrum),
    }
    sharp = learning_rate * spectrum.lambda_max
    out["eta_lambda_max"] = Estimate(sharp, 0.0, (sharp, sharp), "1", "Lanczos", spectrum.n)
    if sampling != "reshuffle":
        eps = temperature(learning_rate, batch_size, spectrum.n, sampling)
        out["temperature"] = Estimate(eps, 0.0, (eps, eps), "learning rate / examples", "eta c", 1)
    if barrier is not None:
        mode = "without_replacement" if sampling == "reshuffle" else sampling
        bound = escape_exponent(spectrum, learning_rate, batch_size, barrier, mode)
        if mode != sampling:
            bound = bound.with_notes("of fresh subsets: reshuffled epochs are quieter than these")
        out["escape_exponent"] = bound
    if drop is not None:
        out["saddle_escape"] = saddle_escape_steps(
            spectrum, learning_rate, batch_size, drop, sampling
        )[0]
    return out
