"""What users get wrong: one line that names the key, the value and what is allowed; no traceback."""

import math

import numpy as np
import pytest

from batchwell import (
    SGD,
    InputError,
    additive,
    box,
    compare_exit_times,
    diffusion_approximation,
    exponent_map,
    finite_sum,
    half_space,
    mean_exit_time,
    quasi_potential,
    saddle_exit,
)

WELL = SGD(additive(lambda x: (x[0] ** 2 - 1) ** 2 / 4), 0.1)
LEFT = half_space([1.0], 0.0)
AROUND = box([-0.5], [0.5])
EVERYWHERE = box([-math.inf], [math.inf])


def exits(*words, start=(-1.0,), domain=LEFT, process=WELL, **options):
    return lambda: mean_exit_time(process, start, domain, *words, **options)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (exits(start=["a"]), r"start = \['a'\]: must be a point of shape"),
        (exits(start=[[1], [2, 3]]), r"start = .*must be a point of shape"),
        (exits(start=[1j]), r"start = \[1j\]: must be a point of shape"),
        (exits(domain=None), r"domain = None: must be a Domain, such as"),
        (exits(process=WELL.loss), r"process = 'StochasticLoss': must be an SGD or a Diffusion"),
        (exits(path=64), r"option = 'path': must be one of paths, .*did you mean paths\?"),
        (exits("law", paths=64), r"option = 'paths': must be one of nodes, method"),
        (exits("sharp", paths=64), r"option = 'paths': must be one of order, starts"),
        (exits("action", strts=4), r"option = 'strts': .*did you mean starts\?"),
        (exits(max_path_steps=-1), r"max_path_steps = -1: must be a positive"),
        (
            exits(process=diffusion_approximation(WELL), substeps=0),
            r"substeps = 0: must be a whole number, at least 1",
        ),
        (exits("splitting", score="x"), r"score = .*must accept x of shape \(1,\)"),
        (exits("splitting", score=lambda x: x), r"score = \(1,\): must return one number"),
        (exits("splitting", domain=EVERYWHERE), r"domain = 'box': must have a boundary"),
        (lambda: exponent_map(WELL, [-1.0], LEFT, 4), r"batch_sizes = 4: must be a list"),
        (lambda: exponent_map(WELL, [-1.0], LEFT, []), r"batch_sizes = \[\]: must be a list"),
        (
            lambda: exponent_map(WELL, [-1.0], LEFT, [1], "with_replacement"),
            r"samplings = 'with_replacement': must be a list",
        ),
        (
            lambda: compare_exit_times(WELL, [-1.0], LEFT, "law"),
            r"methods = 'law': must be a list of names",
        ),
        (
            lambda: compare_exit_times(WELL, [-1.0], LEFT, ["law"], {"lw": {}}),
            r"methods = 'lw': .*did you mean law\?",
        ),
        (
            lambda: compare_exit_times(WELL, [-1.0], LEFT, ["direct"], {"direct": {"path": 2}}),
            r"option = 'path': .*did you mean paths\?",
        ),
        (lambda: quasi_potential(WELL, "a", [0.0]), r"start = 'a': must be a point of shape"),
        (lambda: quasi_potential(WELL, [-1.0], [0.0], ordr=3), r"option = 'ordr': .*mean order"),
        (lambda: saddle_exit(WELL.loss, [0.0], AROUND), r"process = 'StochasticLoss': must be"),
        (lambda: saddle_exit(WELL, "a", AROUND), r"saddle = 'a': must be a point of shape"),
        (
            lambda: saddle_exit(WELL, [0.0], AROUND, paths=5),
            r"option = 'paths': the law takes none",
        ),
        (
            lambda: saddle_exit(WELL, [0.0], AROUND, method="direct", path=5),
            r"option = 'path': .*did you mean paths\?",
        ),
    ],
)
def test_mistakes_are_refused_in_one_line(ask, said):
    with pytest.raises(InputError, match=said) as caught:
        ask()
    assert "\n" not in str(caught.value)


def test_what_is_not_wrong_is_taken():
    sizes = [row.batch_size for row in exponent_map(WELL, [-1], LEFT, np.array([1, 2]))]
    assert sizes == [1, 2]
    start = np.array([-1], np.float32)
    assert mean_exit_time(WELL, start, half_space([1], 0), "law").value == pytest.approx(
        mean_exit_time(WELL, [-1.0], LEFT, "law").value, rel=1e-9
    )


@pytest.mark.parametrize("bend", [3, 4])
def test_degenerate_saddles_are_named_and_simulated(bend):
    # x^3 and -x^4: no linear law, but a time; that of -x^4 against a plain NumPy run.
    sign = 1.0 if bend == 3 else -1.0
    sgd = SGD(additive(lambda x: sign * x[0] ** bend / bend), 0.05, 4)
    with pytest.raises(InputError, match=r"is degenerate .* use method='direct'"):
        saddle_exit(sgd, [0.0], box([-1.0], [1.0]))
    found = saddle_exit(sgd, [0.0], box([-1.0], [1.0]), method="direct", seed=1)
    rng = np.random.Generator(np.random.Philox(3))
    x, steps = np.zeros(2048), np.zeros(2048)
    while (inside := np.abs(x) < 1).any():
        steps += inside
        gradient = sign * x ** (bend - 1) + rng.standard_normal(2048) / 2
        x = np.where(inside, x - 0.05 * gradient, x)
    error = math.hypot(found.stderr, steps.std() / math.sqrt(2048))
    assert abs(found.value - steps.mean()) < 4 * error


@pytest.mark.parametrize("index", [2, -3])
def test_entries_past_the_end_are_refused(index):
    # JAX would read the last entry, or the first, in their place: a loss of other parameters.
    with pytest.raises(InputError, match=r"index -?\d of 2 entries.*past the end.*shape \(2,\)"):
        additive(lambda x: x[0] ** 2 + x[index] ** 2, dim=2)
    with pytest.raises(InputError, match="past the end"):
        finite_sum(lambda x, z: (x[0] - z[2]) ** 2, np.ones((4, 2)), dim=2)
    assert additive(lambda x: x[0] ** 2 + x[index + (-1 if index > 0 else 1)] ** 2, dim=2).dim == 2
