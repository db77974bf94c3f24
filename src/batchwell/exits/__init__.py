"""Mean exit times from a domain, by independent methods with one signature.

`EXIT_METHODS` is the roster: the command line's menu, the documentation's table and the tests'
parameters. To add a method, write one function ``(process, start, domain, **options) ->
Estimate`` in a file of its own, which checks its own regime, and add one row to
`roster.EXIT_METHODS`.
"""

from __future__ import annotations

from .compare import ExitComparison, compare_exit_times
from .exponents import ExponentRow, exponent_map, holding_batch_size
from .roster import EXIT_METHODS, ExitMethod, mean_exit_time
from .scan import ScanRow, exit_scan, expected_slope, fitted_exponent, survival_curve
from .survey import ExitSurvey, exit_survey

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
