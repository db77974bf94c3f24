"""Mean exit times from a domain, by independent methods with one signature.

`EXIT_METHODS` is the roster: the command line's menu, the documentation's table and the tests'
parameters. To add a method, write one function ``(process, start, domain, **options) ->
Estimate`` in a file of its own, which checks its own regime, and add one row.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike

from ..domain import Domain
from ..dynamics import Process
from ..errors import one_of
from ..estimate import Estimate
from .by_action import by_action
from .direct import direct
from .roster import ExitMethod
from .sharp import sharp

__all__ = ["EXIT_METHODS", "ExitMethod", "mean_exit_time"]

EXIT_METHODS: dict[str, ExitMethod] = {
    "direct": ExitMethod(direct, "simulation with censoring", "mean times up to about 1e6 steps"),
    "sharp": ExitMethod(
        sharp, "Eyring-Kramers, for diffusions and the Gaussian chain", "V/eps above 5", False
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
        Unknown method, bad start or domain, or a problem outside of the method's regime.
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
    return EXIT_METHODS[method].run(process, start, domain, **options)
