"""Mean exit times from a domain, by independent methods with one signature.

`EXIT_METHODS` is the roster: the command line's menu, the documentation's table and the tests'
parameters. To add a method, write one function ``(process, start, domain, **options) ->
Estimate`` in a file of its own, which checks its own regime, and add one row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import ArrayLike

from ..domain import Domain
from ..dynamics import SGD, Process
from ..errors import InputError, one_of
from ..estimate import Estimate
from ..problems import Problem
from .by_action import by_action
from .by_law import by_law
from .compare import ExitComparison, compare
from .direct import direct
from .exponents import ExponentRow, exponent_map, holding_batch_size
from .importance import importance
from .regime import check_start
from .roster import ExitMethod
from .scan import ScanRow, expected_slope, fitted_exponent, scan_exits, survival_curve
from .sharp import sharp
from .splitting import splitting
from .survey import ExitSurvey, sgd_and_diffusion, survey

__all__ = [
    "EXIT_METHODS",
    "ExitComparison",
    "ExitMethod",
    "ExitSurvey",
    "ExponentRow",
    "ScanRow",
    "compare_exit_times",
    "exit_scan",
    "exit_survey",
    "expected_slope",
    "exponent_map",
    "fitted_exponent",
    "holding_batch_size",
    "mean_exit_time",
    "survival_curve",
]

EXIT_METHODS: dict[str, ExitMethod] = {
    "direct": ExitMethod(direct, "simulation with censoring", "mean times up to about 1e6 steps"),
    "law": ExitMethod(
        by_law, "linear system of the chain or the diffusion", "1 dimension; diffusions to 3", False
    ),
    "sharp": ExitMethod(
        sharp, "Eyring-Kramers, for diffusions and the Gaussian chain", "V/eps above 5", False
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


def compare_exit_times(
    process: Process,
    start: ArrayLike,
    domain: Domain,
    methods: Sequence[str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> ExitComparison:
    """Run every method that applies (or `methods`) and compare the answers pairwise.

    A method that refuses the problem is kept with its reason. `options` maps a method's name to its
    options.

    Raises
    ------
    InputError
        Unknown method, or a start and domain that no method accepts.

    Examples
    --------
    >>> from batchwell import SGD, additive, half_space
    >>> sgd = SGD(additive(lambda x: (x @ x - 1) ** 2 / 4), learning_rate=0.1)
    >>> out = compare_exit_times(sgd, [-1.0], half_space([1.0], 1.0), ["law", "sharp"])
    >>> [row["method"] for row in out.table()], out.agree
    (['law', 'sharp'], True)
    """
    names = list(EXIT_METHODS) if methods is None else list(methods)
    for name in names:
        one_of("methods", name, EXIT_METHODS)
    check_start(process, start, domain)
    rows = {name: EXIT_METHODS[name] for name in names}
    return compare(rows, process, start, domain, options or {})


def exit_scan(
    process: SGD,
    start: ArrayLike,
    domain: Domain,
    learning_rates: Sequence[float],
    batch_sizes: Sequence[int],
    methods: Sequence[str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[ScanRow]:
    """`compare_exit_times` for every learning rate and batch size, with both exponents.

    The numbers of the figure of log time against B/eta; `fitted_exponent` gives its slope.

    Examples
    --------
    >>> from batchwell import SGD, additive, half_space
    >>> sgd = SGD(additive(lambda x: (x @ x - 1) ** 2 / 4), learning_rate=0.1)
    >>> rows = exit_scan(sgd, [-1.0], half_space([1.0], 0.0), [0.1], [1, 2], ["law"])
    >>> round(fitted_exponent(rows, "law").value, 2), round(rows[0].exponents.sgd, 2)
    (0.49, 0.5)
    """
    return scan_exits(
        compare_exit_times, process, start, domain, learning_rates, batch_sizes, methods, options
    )


def exit_survey(
    problem: Problem,
    learning_rates: Sequence[float],
    batch_sizes: Sequence[int],
    methods: Sequence[str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    tell: Callable[[str], None] = lambda text: None,
) -> ExitSurvey:
    """All that a report on the exits of a gallery problem shows: what `batchwell exit` runs.

    A problem without a loss is asked as the diffusion that it is, at temperature eta/B, with its
    unit of time as step.

    Raises
    ------
    InputError
        The problem has no domain.
    """
    domain = problem.domain
    if domain is None:
        raise InputError("PROBLEM", problem.name, "has no domain to leave: use `study`")
    if problem.stochastic_loss is not None:
        processes: Any = sgd_and_diffusion(problem.loss)
    else:
        make = problem.process
        assert make is not None
        processes = lambda eta, size: {"diffusion": make(eta / size)}  # noqa: E731
    return survey(
        compare_exit_times,
        problem.name,
        problem.summary,
        processes,
        problem.stochastic_loss,
        problem.start,
        domain,
        learning_rates,
        batch_sizes,
        methods,
        options,
        seed,
        tell,
    )
