"""From numbers to verdicts, each with the number that decided."""

from __future__ import annotations

import math

from ..dynamics import SGD
from .base import USES, Trust, Verdict

# Relative errors of the diffusion up to which it is trusted, and beyond which it is not.
GOOD, BAD = 0.05, 0.25
# exp(V / eps) forgives less: the same share of V, at barriers of some ten eps.
GOOD_EXPONENT, BAD_EXPONENT = 0.02, 0.1
# Li, Malladi & Arora, arXiv:2102.12470 (section 5): where SGD and its diffusion agree to a factor C in
# second moments, E|noise|^2 / E|grad F|^2 is at least 1 / (C^2 - 1); they take C = sqrt 2.
LEAST_NOISE = 1.0


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


def judge_short(sgd: SGD, n: dict[str, float]) -> Verdict:
    """Whether averages over short times may be trusted."""
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
        "no" if n["noise_over_gradient_power"] < LEAST_NOISE else _grade(error, GOOD, BAD),
        f"SGD's variance is {1 / first:.4g} times "
        f"order 1's and {1 / second:.4g} times order 2's ({better} is closer); "
        f"noise over gradient power (SVAG ratio) is {n['noise_over_gradient_power']:.3g}, "
        f"and {LEAST_NOISE:g} is the least that a diffusion needs",
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


JUDGES = dict(zip(USES, (judge_short, _judge_variance, _judge_tails, _judge_escapes), strict=True))

# Of SGD that draws all examples at once, or whose noise vanishes around the minimum.
NOISELESS = tuple(
    Verdict(use, "yes", "there is no noise here: SGD and its diffusion both stay at the minimum")
    for use in USES[1:]
)
