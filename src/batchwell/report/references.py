"""Bibliography: the sources of all methods that a report can name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
    "hu-li-li-liu": Reference(
        "W. Hu, C. J. Li, L. Li, J.-G. Liu",
        "On the diffusion approximation of nonconvex stochastic gradient descent",
        "Annals of Mathematical Sciences and Applications 4 (2019), 3-32; arXiv:1705.07562",
        "weak order of the diffusions; the master equation of SGD",
    ),
    "milstein-regression": Reference(
        "G. N. Milstein, M. V. Tretyakov",
        "Practical variance reduction via regression for simulating diffusions",
        "SIAM Journal on Numerical Analysis 47 (2009), 887-910",
        "martingale controls of simulated differences",
    ),
    "bonneel": Reference(
        "N. Bonneel, J. Rabin, G. Peyré, H. Pfister",
        "Sliced and Radon Wasserstein barycenters of measures",
        "Journal of Mathematical Imaging and Vision 51 (2015), 22-45",
        "Wasserstein distances of laws in the plane",
    ),
    "li-malladi-arora": Reference(
        "Z. Li, S. Malladi, S. Arora",
        "On the validity of modeling SGD with stochastic differential equations",
        "Advances in Neural Information Processing Systems 34 (2021)",
        "where the diffusion stops to hold: noise against gradient",
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
    "mccandlish": Reference(
        "S. McCandlish, J. Kaplan, D. Amodei, OpenAI Dota Team",
        "An empirical model of large-batch training",
        "arXiv:1812.06162 (2018)",
        "the gradient noise scale",
    ),
    "fieller": Reference(
        "E. C. Fieller",
        "Some problems in interval estimation",
        "Journal of the Royal Statistical Society B 16 (1954), 175-185",
        "intervals of ratios of means",
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
    "string-method": Reference(
        "W. E, W. Ren, E. Vanden-Eijnden",
        "Simplified and improved string method for computing the minimum energy paths in "
        "barrier-crossing events",
        "Journal of Chemical Physics 126 (2007), 164103",
        "paths over passes between minima",
    ),
    "eigenvector-following": Reference(
        "C. J. Cerjan, W. H. Miller",
        "On finding transition states",
        "Journal of Chemical Physics 75 (1981), 2800-2806",
        "climbing to a saddle along one direction",
    ),
    "becker-karplus": Reference(
        "O. M. Becker, M. Karplus",
        "The topology of multidimensional potential energy surfaces: theory and application to "
        "peptide structure and kinetics",
        "Journal of Chemical Physics 106 (1997), 1495-1517",
        "disconnectivity trees",
    ),
    "pontryagin": Reference(
        "L. S. Pontryagin, V. G. Boltyanskii, R. V. Gamkrelidze, E. F. Mishchenko",
        "The Mathematical Theory of Optimal Processes",
        "Interscience (1962)",
        "the batch size over time by optimal control",
    ),
    "hajek": Reference(
        "B. Hajek",
        "Cooling schedules for optimal annealing",
        "Mathematics of Operations Research 13 (1988), 311-329",
        "batches that grow like the logarithm of time",
    ),
    "bouchet-reygner": Reference(
        "F. Bouchet, J. Reygner",
        "Generalisation of the Eyring-Kramers transition rate formula to irreversible diffusion "
        "processes",
        "Annales Henri Poincaré 17 (2016), 3499-3532",
        "sharp mean exit times of diffusions",
    ),
    "brehier": Reference(
        "C.-E. Bréhier, M. Gazeau, L. Goudenège, T. Lelièvre, M. Rousset",
        "Unbiasedness of some generalized adaptive multilevel splitting algorithms",
        "Annals of Applied Probability 26 (2016), 3559-3601",
        "splitting",
    ),
    "dupuis-wang": Reference(
        "P. Dupuis, H. Wang",
        "Importance sampling, large deviations, and differential games",
        "Stochastics and Stochastics Reports 76 (2004), 481-508",
        "sampling tilted along the most likely way out",
    ),
    "heymann": Reference(
        "M. Heymann, E. Vanden-Eijnden",
        "The geometric minimum action method: a least action principle on the space of curves",
        "Communications on Pure and Applied Mathematics 61 (2008), 1052-1117",
        "most likely ways out",
    ),
    "day": Reference(
        "M. V. Day",
        "On the exponential exit law in the small parameter exit problem",
        "Stochastics 8 (1983), 297-323",
        "the exponential law of rare exits",
    ),
    "kifer": Reference(
        "Y. Kifer",
        "The exit problem for small random perturbations of dynamical systems with a hyperbolic "
        "fixed point",
        "Israel Journal of Mathematics 40 (1981), 74-96",
        "exit times from saddles",
    ),
    "hu": Reference(
        "W. Hu, C. J. Li, L. Li, J.-G. Liu",
        "On the diffusion approximation of nonconvex stochastic gradient descent",
        "Annals of Mathematical Sciences and Applications 4 (2019), 3-32; arXiv:1705.07562",
        "SGD's almost linear time from saddles and exponential time from minima",
    ),
}
