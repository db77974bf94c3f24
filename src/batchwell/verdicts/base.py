"""What a verdict is, and the numbers that verdicts rest on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..errors import one_of
from ..estimate import _to_json

Trust = Literal["yes", "caution", "no"]

USES = ("short_time_averages", "stationary_variance", "tails", "escapes")


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
        one_of("use", use, USES)
        return next(verdict for verdict in self.verdicts if verdict.use == use)

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
    "noise_over_gradient_power": "SVAG ratio: E|batch noise|^2 / E|grad F|^2 in the stationary law "
    "of SGD linearised at the minimum (exact for quadratic losses)",
}
