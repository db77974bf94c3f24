"""The page of a survey of exits: what it says is what was computed."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from batchwell import SGD, additive, diffusion_approximation, half_space, problem
from batchwell.exits import EXIT_METHODS, exit_survey
from batchwell.exits.survey import SGD_, sgd_and_diffusion, survey
from batchwell.exits.work import declined
from batchwell.report.contours import segments
from batchwell.report.document import render
from batchwell.report.exits import document
from batchwell.report.exits.figures import slopes, times_figure

ACROSS = half_space([1.0], 1.0)


@pytest.fixture(scope="module")
def well():
    return exit_survey(problem("double-well"), [0.2], [1, 2], ["direct", "law", "action"])


def test_the_answer_comes_first_and_is_right(well):
    page = document(well)
    assert "after 309 steps on average" in page.answer  # T8, 61.878569 / .2
    assert "exponent V = 0.5" in page.answer
    assert "The diffusion has the same exponent" in page.answer
    assert "pairs of methods agree" in page.answer
    text = render(page)
    assert text.index("309 steps") < text.index("<h2")
    assert not re.search(r'(src|href)="(?!#)', text)  # nothing is loaded


def test_lines_have_the_exponents_as_slopes(well):
    figure = times_figure(well)
    assert figure is not None
    (panel,) = figure.groups[0][1]
    lines = [c for c in panel.curves if c.joined]
    assert len(lines) == 2
    for drawn, v in zip(lines, slopes(well).values(), strict=True):
        a, b = drawn.marks
        assert math.log(b.y / a.y) / (b.x - a.x) == pytest.approx(v)
    points = [c for c in panel.curves if not c.joined]
    assert points[0].marks[0].y == pytest.approx(309.3928, abs=1e-3)


def test_all_figures_are_there(well):
    page = document(well)
    shown = {s.key for s in page.sections if s.figure is not None}
    assert shown == {"times", "ways", "seen", "saddle"}
    seen = well.seen[SGD_].exits
    assert seen.observed.mean() > 0.99
    text = render(page)
    assert text.count('role="img"') >= 8


def test_a_refusal_keeps_its_reason_and_a_disagreement_is_said():
    coins = additive(lambda x: (x @ x - 1) ** 2 / 4, "rademacher", scale=0.38)
    found = survey(
        "coins",
        "bounded noise",
        sgd_and_diffusion(coins),
        coins,
        [-1.0],
        half_space([1.0], 0.0),
        [0.1],
        [1],
        ["law", "action"],
    )
    page = document(found)
    assert "SGD never leaves" in page.answer
    assert "V = 3.463" in page.answer  # the diffusion's: .5 / .38^2
    refused = next(t for t in page.sections[0].long_tables if "no answer" in t.caption)
    assert any("never escapes" in row[2] for row in refused.rows)
    assert slopes(found)[SGD_] == math.inf


def test_a_saddle_has_the_almost_linear_law():
    page = document(exit_survey(problem("linear-saddle"), [0.1], [1, 2], ["law", "direct"]))
    assert "The start is a saddle" in page.answer
    saddle = next(s for s in page.sections if s.key == "saddle")
    assert saddle.figure is not None
    ways = next(s for s in page.sections if s.key == "ways")
    assert "no stable minimum" in ways.absent


def test_methods_listed_are_the_roster(well):
    table = document(well).sections[-1].tables[0]
    assert [row[0] for row in table.rows] == list(EXIT_METHODS)


def test_level_lines_lie_on_their_level():
    x, y = np.linspace(-1, 1, 61), np.linspace(-2, 2, 81)
    values = x[:, None] ** 2 + y[None] ** 2 / 4
    line = segments(x, y, values, 0.36)
    np.testing.assert_allclose(line[..., 0] ** 2 + line[..., 1] ** 2 / 4, 0.36, atol=2e-3)
    assert len(segments(x, y, values, 5.0)) == 0


def test_cells_are_ranked_by_trust(well):
    cell = well.of(SGD_, 0.2)[0]
    assert [m for m, _ in cell.ranked] == ["law", "direct", "action"]
    assert SGD(well.loss, 0.2).temperature == 1 / cell.inverse_temperature


def test_an_answer_that_is_not_reliable_never_stands_for_a_cell(well):
    cell = next(c for c in well.of(SGD_, 0.2) if c.batch_size == 1)
    answers = cell.comparison.answers
    for law in (
        replace(answers["law"], notes=("second method (sharp) disagrees: not reliable",)),
        replace(answers["law"], stderr=math.inf, interval=(-math.inf, math.inf)),
    ):
        worse = replace(cell.comparison, answers={**answers, "law": law})
        doubted = replace(cell, comparison=worse)
        assert cell.ranked[0][0] == "law"
        assert doubted.ranked[0][0] == "direct"
        assert doubted.answer is answers["direct"]
        shown = document(replace(well, cells=(doubted,))).sections[0].tables[0].rows[0]
        assert any(s.endswith(("(not reliable)", "(error unknown)")) for s in shown)
        only = replace(cell, comparison=replace(worse, answers={"law": law}))
        assert only.answer is law  # better than none, and called what it is


def test_a_survey_declines_what_sums_over_many_examples():
    logistic = problem("breast-cancer-logistic")
    sgd = SGD(logistic.loss, 0.1)
    assert set(declined(sgd)) == {"importance"}
    assert set(declined(diffusion_approximation(sgd))) == {"importance", "splitting", "law"}
    assert not declined(diffusion_approximation(SGD(problem("product-wells").loss, 0.1)))
    assert not declined(SGD(problem("least-squares").loss, 0.1))
