"""The page of a weak study says what its numbers say."""

from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from batchwell import SGD, InputError, additive
from batchwell.report import document
from batchwell.report.weak import answer, page
from batchwell.report.weak.answer import closer
from batchwell.weak import weak_study

RATES = [0.1, 0.05, 0.025]


@pytest.fixture(scope="module")
def line():
    loss = additive(lambda x: x @ x / 2, name="bowl")
    return weak_study(SGD(loss, 0.1), [1.0], 1.0, [1 / 16, 1 / 32, 1 / 64, 1 / 128])


@pytest.fixture(scope="module")
def space():
    loss = additive(lambda x: x @ x / 2, dim=3, name="bowl-3")
    return weak_study(SGD(loss, 0.1), np.ones(3), 1.0, RATES, orders=(1,))


def test_the_answer_says_who_is_closer_and_whether_the_regime_is_reached(line):
    text = answer(line)
    assert "Order 2 is the closer one at every learning rate" in text
    assert "the regime of small learning rates is reached" in text
    assert set(closer(line).values()) == {"2"}
    # Errors exchanged between the orders must turn the answer around.
    one, two = line.errors[1], line.errors[2]
    swapped = {1: replace(one, errors=two.errors), 2: replace(two, errors=one.errors)}
    assert "Order 1 is the closer one" in answer(replace(line, errors=swapped))


def test_an_error_that_is_not_resolved_is_not_given_as_a_number(line):
    wide = tuple(
        replace(e, stderr=1.0, interval=(e.value - 1, e.value + 1)) for e in line.errors[1].errors
    )
    broad = replace(line.errors[1].observed_order, stderr=9.0)
    errors = {1: replace(line.errors[1], errors=wide, observed_order=broad, asymptotic=False)}
    text = answer(replace(line, errors=errors))
    assert "not resolved" in text
    assert "no order can be read off" in text
    document.render(page(replace(line, errors=errors), "bowl"))


class Balance(HTMLParser):
    VOID = frozenset({"meta", "line", "rect", "path", "circle", "polyline", "br"})

    def __init__(self, text):
        super().__init__()
        self.open = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = [v or "" for k, v in attrs if k in ("points", "d", "x", "y", "cx", "cy")]
        assert not [v for v in values if "nan" in v or "inf" in v]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_holds_figures_tables_and_verdicts(line):
    text = document.render(page(line, "bowl", "a bowl", "batchwell weak bowl"))
    assert not Balance(text).open
    for words in (
        "Weak error against learning rate",
        "Laws of SGD and of its diffusions over time",
        "Total variation",
        "May the diffusion be trusted?",
        "Stationary variance, η = 0.0625",
        "batchwell weak bowl",
    ):
        assert words in text
    assert len(text) < 300_000


def test_three_dimensions_say_why_there_are_no_laws(space):
    text = document.render(page(space, "bowl-3"))
    assert "No laws are shown" in text
    assert "one or two dimensions" in text
    assert "closer" not in {c for c in page(space, "bowl-3").glance.columns}


def test_an_unknown_observable_is_refused():
    loss = additive(lambda x: x @ x / 2)
    with pytest.raises(InputError, match="square"):
        weak_study(SGD(loss, 0.1), [1.0], 1.0, RATES, "x^7")
