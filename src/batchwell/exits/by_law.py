"""Exit times from the law itself: the chain's master equation, the diffusion's generator."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike

from ..domain import Domain
from ..dynamics import SGD, Process
from ..errors import known_options
from ..estimate import Estimate
from ..law import exit_time, generator, transfer_operator
from .regime import check_level, check_start


def by_law(process: Process, start: ArrayLike, domain: Domain, **options: Any) -> Estimate:
    """Mean exit time in SGD steps by solving its linear system; the interval is the mesh error.

    `options` go to `law.transfer_operator` (SGD in one dimension) or `law.generator` (diffusions in
    one to three).

    Raises
    ------
    InputError
        Too many dimensions, an unbounded domain (give bounds), noise without a density, a
        start outside, or a domain without a level function.

    Examples
    --------
    >>> from batchwell import SGD, additive, ball
    >>> sgd = SGD(additive(lambda x: x @ x / 2), learning_rate=0.1)
    >>> round(by_law(sgd, [0.0], ball([0.0], 1.0)).value, 2)
    117280.42
    """
    check_level(domain)
    x = check_start(process, start, domain)
    build: Any = transfer_operator if isinstance(process, SGD) else generator
    known_options(options, build)
    if len(x) == 1:
        options.setdefault("include", (float(x[0]),))
    return exit_time(build(process, domain, **options), x)
