"""The roster of exit methods, and the one question that they answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import ArrayLike

from ..domain import Domain
from ..dynamics import Process
from ..errors import known_options, one_of
from ..estimate import Estimate
from .by_action import by_action
from .by_law import by_law
from .direct import direct
from .importance import importance
from .sharp import sharp
from .splitting import splitting


@dataclass(frozen=True)
class ExitMethod:
    """An exit method as the roster knows it.

    Attributes
    ----------
    run
        ``run(process, start, domain, **options) -> Estimate``.
    summary
        What it does, in a few words.
    regime
        Where it may be trusted, in a few words.
    statistical
        Whether its standard error is one of sampling (False: deterministic).
    """

    run: Callable[..., Estimate]
    summary: str
    regime: str
    statistical: bool = True


EXIT_METHODS: dict[str, ExitMethod] = {
    "direct": ExitMethod(direct, "simulation with censoring", "mean times up to about 1e6 steps"),
    "law": ExitMethod(
        by_law, "linear system of the chain or the diffusion", "1 dimension; diffusions to 3", False
    ),
    "sharp": ExitMethod(
        sharp, "Eyring-Kramers, for diffusions and light-tailed chains", "V/eps above 5", False
    ),
    "splitting": ExitMethod(
        splitting, "multilevel splitting of simulated paths", "rare exits, without momentum"
    ),
    "importance": ExitMethod(
        importance,
        "sampling tilted along the instanton",
        "Gaussian noise or finite data, V/eps above 5",
    ),
    "action": ExitMethod(
        by_action, "least action, of SGD itself or of the diffusion", "logarithm only", False
    ),
}


def mean_exit_time(
    process: Process, start: ArrayLike, domain: Domain, method: str = "direct", **options: Any
) -> Estimate:
    """Mean time, in SGD steps, until `process` started at `start` leaves `domain`.

    Parameters
    ----------
    process
        SGD itself or a diffusion.
    start
        Shape (d,), inside the domain.
    domain
        What is left.
    method
        Key of `EXIT_METHODS`.
    options
        Handed to the method; each documents its own.

    Returns
    -------
    Estimate
        In steps; its notes say what the method's regime does not cover.

    Raises
    ------
    InputError
        Unknown method or option, bad start or domain, or a problem outside of the method's regime.
    RunError
        The method ran but has no trustworthy answer (says the number).

    Examples
    --------
    >>> from batchwell import SGD, additive, ball
    >>> sgd = SGD(additive(lambda x: x @ x / 2), learning_rate=0.2)
    >>> mean_exit_time(sgd, [0.0], ball([0.0], 1.0), paths=64, seed=1).unit
    'steps'
    """
    one_of("method", method, EXIT_METHODS)
    known_options(options, EXIT_METHODS[method].run)
    return EXIT_METHODS[method].run(process, start, domain, **options)
