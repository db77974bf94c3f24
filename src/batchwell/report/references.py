"""Bibliography of the methods that a study can use, and which of them a result did use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..estimate import Estimate
from ..results import FinalRow, StudyResult
from . import reading, sections


@dataclass(frozen=True)
class Reference:
    """A source, and in a few words what it was used for."""

    authors: str
    title: str
    where: str
    used_for: str


BIBLIOGRAPHY: Mapping[str, Reference] = {
    "freidlin-wentzell": Reference(
        "M. I. Freidlin, A. D. Wentzell",
        "Random Perturbations of Dynamical Systems, 3rd edition",
        "Springer (2012)",
        "exit times that grow exponentially in B / η, and their exponential law",
    ),
    "li-tai-e": Reference(
        "Q. Li, C. Tai, W. E",
        "Stochastic modified equations and dynamics of stochastic gradient algorithms I: "
        "mathematical foundations",
        "Journal of Machine Learning Research 20 (2019), no. 40",
        "the diffusions of SGD of order 1 and 2",
    ),
    "milstein-tretyakov": Reference(
        "G. N. Milstein, M. V. Tretyakov",
        "Numerical methods in the weak sense for stochastic differential equations with small "
        "noise",
        "SIAM Journal on Numerical Analysis 34 (1997), 2142-2167",
        "time steps of the diffusions",
    ),
    "garwood": Reference(
        "F. Garwood",
        "Fiducial limits for the Poisson distribution",
        "Biometrika 28 (1936), 437-442",
        "intervals of mean exit times with censored runs",
    ),
    "epstein-sobel": Reference(
        "B. Epstein, M. Sobel",
        "Life testing",
        "Journal of the American Statistical Association 48 (1953), 486-502",
        "likelihood of exponential times, censored ones kept; ratios of their means",
    ),
    "student": Reference(
        "Student",
        "The probable error of a mean",
        "Biometrika 6 (1908), 1-25",
        "intervals of sample means",
    ),
    "wilson": Reference(
        "E. B. Wilson",
        "Probable inference, the law of succession, and statistical inference",
        "Journal of the American Statistical Association 22 (1927), 209-212",
        "intervals of shares",
    ),
    "dunn": Reference(
        "O. J. Dunn",
        "Multiple comparisons among means",
        "Journal of the American Statistical Association 56 (1961), 52-64",
        "joint intervals of many comparisons (Bonferroni)",
    ),
    "keskar": Reference(
        "N. S. Keskar, D. Mudigere, J. Nocedal, M. Smelyanskiy, P. T. P. Tang",
        "On large-batch training for deep learning: generalization gap and sharp minima",
        "International Conference on Learning Representations (2017)",
        "sharpness and batch size",
    ),
    "dinh": Reference(
        "L. Dinh, R. Pascanu, S. Bengio, Y. Bengio",
        "Sharp minima can generalize for deep nets",
        "International Conference on Machine Learning (2017)",
        "why sharpness depends on the parametrisation",
    ),
    "goodfellow": Reference(
        "I. J. Goodfellow, O. Vinyals, A. M. Saxe",
        "Qualitatively characterizing neural network optimization problems",
        "International Conference on Learning Representations (2015)",
        "loss along straight lines between points",
    ),
    "smith": Reference(
        "S. L. Smith, P.-J. Kindermans, C. Ying, Q. V. Le",
        "Don't decay the learning rate, increase the batch size",
        "International Conference on Learning Representations (2018)",
        "growing the batch during training",
    ),
    "salmon": Reference(
        "J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw",
        "Parallel random numbers: as easy as 1, 2, 3",
        "SC11: International Conference for High Performance Computing (2011)",
        "keys of the random streams (Philox-4x32-10)",
    ),
    "blackman-vigna": Reference(
        "D. Blackman, S. Vigna",
        "Scrambled linear pseudorandom number generators",
        "ACM Transactions on Mathematical Software 47 (2021), no. 36",
        "the random streams (xoshiro128++)",
    ),
    "bogacki-shampine": Reference(
        "P. Bogacki, L. F. Shampine",
        "A 3(2) pair of Runge-Kutta formulas",
        "Applied Mathematics Letters 2 (1989), 321-325",
        "gradient flow that decides which basin a point lies in",
    ),
    "verwer": Reference(
        "J. G. Verwer, E. J. Spee, J. G. Blom, W. Hundsdorfer",
        "A second-order Rosenbrock method applied to photochemical dispersion problems",
        "SIAM Journal on Scientific Computing 20 (1999), 1456-1480",
        "gradient flow along flat valleys",
    ),
}


def _of_final(row: FinalRow) -> Iterator[Estimate]:
    yield from row.shares.values()
    yield from (e for e in (row.stayed, row.sharpness, row.loss) if e is not None)


# What an estimate's `method` says, and whom to cite for it.
_METHODS = {
    "gamma interval": ("garwood", "epstein-sobel"),
    "t interval": ("student",),
    "Wilson": ("wilson",),
}


def used(result: StudyResult) -> list[str]:
    """Keys of the methods this result used, in the order in which the page cites them."""
    keys: list[str] = []
    for section in sections.SECTIONS:
        if section.numbers(result) is not None:
            keys += section.references
            keys += cited_by(section.key, result)
    return list(dict.fromkeys(keys))


def cited_by(section: str, result: StudyResult) -> list[str]:
    """What one section of the page cites beyond its own row, given what the result holds."""
    rules = {"escape": _escape, "agreement": _agreement, "finals": _finals, "minima": _minima}
    return rules[section](result) if section in rules else []


def _by_method(methods: set[str]) -> list[str]:
    return [
        key
        for mark, found in _METHODS.items()
        if any(mark in method for method in methods)
        for key in found
    ]


def _escape(result: StudyResult) -> list[str]:
    diffusions = [p for p in reading.processes(result) if p.startswith("diffusion")]
    keys = ["li-tai-e", "milstein-tretyakov"] if diffusions else []
    methods = {row.steps.method for row in result.escapes if row.steps is not None}
    return [*keys, *_by_method(methods), "bogacki-shampine", "verwer", "salmon", "blackman-vigna"]


def _agreement(result: StudyResult) -> list[str]:
    numbers = sections.agreement(result)
    return ["dunn"] if numbers is not None and len(numbers.comparisons) > 1 else []


def _finals(result: StudyResult) -> list[str]:
    methods = {e.method for row in result.finals for e in _of_final(row)}
    growing = ["smith"] if any(row.growing for row in result.finals) else []
    joint = ["dunn"] if growing else []
    streams = ["bogacki-shampine", "verwer", "salmon", "blackman-vigna"]
    return [*_by_method(methods), *growing, *joint, *streams]


def _minima(result: StudyResult) -> list[str]:
    return ["bogacki-shampine", "verwer"] if result.minima else []


def numbered(result: StudyResult) -> dict[str, int]:
    """Citation number of every key used."""
    return {key: k for k, key in enumerate(used(result), 1)}
