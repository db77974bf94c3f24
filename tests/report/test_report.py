"""The report's numbers, words, figures and page, on a made-up study that holds everything."""

import importlib.util
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import batchwell
from batchwell.errors import InputError, RunError
from batchwell.estimate import Estimate, exponential_mean, ratio_of_means, share
from batchwell.report import (
    SECTIONS,
    answer,
    document,
    drawing,
    missing,
    ratios,
    references,
    render,
    summary_table,
    svg,
    write,
)
from batchwell.report.study import figures, page, reading, sections, tables
from batchwell.results import EscapeRow, StudyResult

# Tests are imported each for itself, so that a helper beside them is loaded by its path.
_SPEC = importlib.util.spec_from_file_location("sample", Path(__file__).with_name("sample.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
made_up = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(made_up)


@pytest.fixture(scope="module")
def study() -> StudyResult:
    return made_up.sample()


@pytest.fixture(scope="module")
def html(study: StudyResult) -> str:
    return render(study)


class Reader(HTMLParser):
    """Tags with attributes, and whether every opened element is closed."""

    VOID = frozenset({"meta", "br", "link", "img", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


# --- ratios ---------------------------------------------------------------------------------


def test_ratio_agrees_with_the_log_normal_one_when_events_are_many() -> None:
    top, bottom = exponential_mean(5e6, 5000, 5000), exponential_mean(2e6, 5000, 5000)
    exact, normal = ratios.ratio(top, bottom), ratio_of_means(top, bottom)
    assert exact.value == pytest.approx(normal.value, rel=1e-9)
    assert (exact.low, exact.high) == pytest.approx(normal.interval, rel=2e-3)


def covered(interval: Callable[[Estimate, Estimate], tuple[float, float]], seed: int) -> int:
    """Of 2000 censored pairs with true ratio 3 and few events, how many intervals hold it."""
    rng = np.random.default_rng(seed)
    hits = 0
    for _ in range(2000):
        slow, fast = (censored(rng, mean) for mean in (3000.0, 1000.0))
        low, high = interval(slow, fast)
        hits += low <= 3 <= high
    return hits


def censored(rng: np.random.Generator, mean: float, horizon: float = 400.0) -> Estimate:
    times = rng.exponential(mean, 12)
    seen = times <= horizon
    return exponential_mean(float(np.minimum(times, horizon).sum()), int(seen.sum()), 12)


def test_ratio_covers_with_few_events() -> None:
    def exact(top: Estimate, bottom: Estimate) -> tuple[float, float]:
        found = ratios.ratio(top, bottom)
        return found.low, found.high

    # Nominal 1900 of 2000 and conservative; below 1900 - 4 standard errors with chance < 6e-5.
    assert covered(exact, 3) >= 1900 - 4 * math.sqrt(2000 * 0.05 * 0.95)


def test_a_ratio_that_drops_censored_pairs_is_caught() -> None:
    def dropping(top: Estimate, bottom: Estimate) -> tuple[float, float]:
        found = ratios.ratio(top, bottom)
        return (found.low, found.high) if found.two_sided else (0.0, 0.0)

    assert covered(dropping, 3) < 1900 - 4 * math.sqrt(2000 * 0.05 * 0.95)


def test_ratio_with_one_side_censored_is_a_limit() -> None:
    never, seen = exponential_mean(1e6, 0, 50), exponential_mean(1e3, 50, 50)
    assert ratios.ratio(never, seen).low > 100
    assert ratios.ratio(never, seen).high == math.inf
    assert ratios.ratio(seen, never).high == pytest.approx(1 / ratios.ratio(never, seen).low)
    assert not ratios.ratio(never, never).known
    assert not ratios.ratio(None, seen).known


# --- numbers --------------------------------------------------------------------------------


def test_every_cell_is_in_the_escape_numbers(study: StudyResult) -> None:
    numbers = sections.escape(study)
    assert numbers is not None
    found = [c for place in numbers.places for cs in place.cells.values() for c in cs]
    assert len(found) == len(study.escapes) == 108
    kinds = {kind: sum(c.kind == kind for c in found) for kind in ("value", "limit", "failed")}
    assert kinds["failed"] == 1
    assert kinds["limit"] == sum(
        row.steps is not None and row.steps.n_censored == row.steps.n for row in study.escapes
    )
    assert kinds["limit"] > 10


def test_epochs_and_time(study: StudyResult) -> None:
    row = reading.cells(study, minimum="F", process="sgd", learning_rate=0.5, batch_size=4)[0]
    cell = sections.cell(row, reading.data_size(study))
    assert row.steps is not None
    assert cell.epochs is not None
    assert cell.time is not None
    assert cell.epochs.value == pytest.approx(row.steps.value * 4 / 120)
    assert cell.time.interval[1] == pytest.approx(row.steps.interval[1] * 0.5)


def test_growth_is_the_geometric_mean_of_its_steps(study: StudyResult) -> None:
    numbers = sections.escape(study)
    assert numbers is not None
    growth = next(
        g for g in numbers.growth if (g.label, g.process, g.learning_rate) == ("F", "sgd", 0.5)
    )
    assert growth.mean is not None
    product = math.prod(r.value for _, _, r in growth.steps)
    assert growth.mean[2].value == pytest.approx(product ** (1 / len(growth.steps)))
    assert growth.mean[2].low < growth.mean[2].value < growth.mean[2].high


def pair(sgd: Estimate, diffusion: Estimate) -> StudyResult:
    """A study of one cell: SGD and the order-1 diffusion."""
    cells = tuple(
        EscapeRow("A", process, 0.5, 2, 0.25, 1000, 1, steps)
        for process, steps in (("sgd", sgd), ("diffusion-1", diffusion))
    )
    return StudyResult("pair", "", "", {}, {}, escapes=cells, finished=True)


def test_minima_keep_their_order_where_labels_would_sort_otherwise(study: StudyResult) -> None:
    """AA, the 26th minimum, is sharper than D and stands after it."""
    renamed = replace(
        study,
        minima=tuple(replace(m, label="AA") if m.label == "F" else m for m in study.minima),
        escapes=tuple(replace(e, minimum="AA") if e.minimum == "F" else e for e in study.escapes),
    )
    numbers = sections.agreement(renamed)
    assert numbers is not None
    figure = figures.agreement_figure(renamed, numbers)
    assert figure is not None
    assert [[p.title.split()[2] for p in panels] for _, panels in figure.groups] == [
        ["A,", "D,", "AA,"],
        ["A,", "D,", "AA,"],
    ]


def test_verdicts_by_use_are_one_table_with_their_reasons_folded(study: StudyResult) -> None:
    uses = {"tails": "no", "escapes": "caution"}
    case = {"question": "A, B = 4", "uses": uses, "reason": "Noise is bounded.", "numbers": {}}
    failed = {"question": "D, B = 4", "verdict": "not judged.", "reason": "Ran out of time."}
    page = render(replace(study, verdicts=(case, failed)))
    table = page[page.index("The diffusion may be trusted for") : page.index("<details")]
    assert re.findall(r"<t[hd][^>]*>([^<]+)</t[hd]>", table) == [
        *("case", "tails", "escapes"),
        *("A, B = 4", "no", "caution"),
        *("D, B = 4", "not judged", "not judged"),
    ]
    folded = page[page.index("<details") : page.index("</details>")]
    assert "Noise is bounded." in folded
    assert "Ran out of time." in folded
    assert "<details" not in render(study)  # verdicts that are texts stay a list


def test_disagreement_is_claimed_only_beyond_the_intervals() -> None:
    fast, slow = exponential_mean(1e5, 100, 100), exponential_mean(1.2e5, 100, 100)
    words = answer(pair(fast, slow))
    assert "the data do not tell the order-1 diffusion from sgd" in words.lower()
    assert "disagrees" not in words
    slower = exponential_mean(3e5, 100, 100)
    assert "clearly disagrees with SGD in 1 of 1 comparable cell" in answer(pair(fast, slower))
    assert "stays longer: 3.00 [" in answer(pair(fast, slower))
    never = exponential_mean(3e6, 0, 100)
    assert "stays longer: more than" in answer(pair(fast, never))


def test_many_comparisons_are_allowed_for(study: StudyResult) -> None:
    numbers = sections.agreement(study)
    assert numbers is not None
    for c in numbers.comparisons:
        assert c.joint.low <= c.ratio.low
        assert c.joint.high >= c.ratio.high
    assert {c.verdict for c in numbers.comparisons} >= {"differs", "compatible"}
    clear = [c for c in numbers.of("diffusion-1") if c.verdict == "differs"]
    assert f"disagrees with SGD in {len(clear)} of " in answer(study)


def test_growing_is_judged_against_every_constant_batch(study: StudyResult) -> None:
    numbers = sections.finals(study)
    assert numbers is not None
    assert len(numbers.trials) == 4
    _, _, rows = numbers.groups[0]
    better = replace(
        rows[-1], loss=Estimate(0.2, 0.001, (0.198, 0.202), "loss", "sample mean", 500)
    )
    won = replace(study, finals=(*rows[:-1], better))
    assert [t.verdict for t in sections.finals(won).trials if t.quantity == "loss"] == ["lower"]
    assert "growing the batch ends at a lower loss than every constant" in answer(won).lower()
    same = replace(better, loss=rows[0].loss, sharpness=rows[0].sharpness)
    level = replace(study, finals=(rows[0], same))
    assert "not shown to end at a lower loss" in answer(level)


# --- words ----------------------------------------------------------------------------------


def test_the_answer_names_numbers_of_the_cells(study: StudyResult) -> None:
    words = answer(study)
    first = reading.cells(study, minimum="F", process="sgd", learning_rate=0.5, batch_size=1)[0]
    assert first.steps is not None
    assert f"sharp minimum F {first.steps.value:.0f} steps at batch size 1" in words
    assert "in the flat minimum A" in words
    assert "more than" in words
    assert "nan" not in words
    assert "\n" not in words.replace("\n\n", "")
    assert len(words.split("\n\n")) == 4


def growing_cells(times: dict[int, float]) -> tuple[EscapeRow, ...]:
    return tuple(
        EscapeRow("A", "sgd", 0.5, b, 0.5 / b, 10_000, 1, exponential_mean(400 * t, 400, 400))
        for b, t in times.items()
    )


def test_faster_growth_is_judged_per_doubling() -> None:
    plain = StudyResult("growth", "", "", {}, {}, finished=True)
    # 3 per doubling everywhere; only the steps between the batches differ.
    steady = answer(replace(plain, escapes=growing_cells({1: 10, 2: 30, 16: 810})))
    assert "multiplies that time on average by 3.00 [" in steady
    faster = answer(replace(plain, escapes=growing_cells({1: 10, 2: 30, 8: 3000})))
    assert "faster and faster" in faster
    assert "by 3.00 [" in faster
    assert "by 10.0 [" in faster


def test_never_leaving_is_said() -> None:
    never = exponential_mean(1e6, 0, 100)
    rows = (EscapeRow("A", "sgd", 0.5, 8, 0.1, 10_000, 1, never),)
    words = answer(StudyResult("never", "", "", {}, {}, escapes=rows, finished=True))
    assert words.endswith(
        "was never seen to leave and stays on average in minimum A more than "
        "271,000 steps at batch size 8."
    )


def test_overlapping_times_are_not_called_different(study: StudyResult) -> None:
    times = exponential_mean(1e5, 100, 100)
    rows = tuple(EscapeRow(label, "sgd", 0.5, 2, 0.25, 10_000, 1, times) for label in ("A", "F"))
    words = answer(replace(study, escapes=rows, finals=()))
    assert "do not show that it stays longer in A than in F" in words


def test_sharp_that_holds_longer_is_said(study: StudyResult) -> None:
    times = {"A": exponential_mean(1e4, 100, 100), "F": exponential_mean(1e5, 100, 100)}
    rows = tuple(EscapeRow(k, "sgd", 0.5, 2, 0.25, 10_000, 1, v) for k, v in times.items())
    assert "Sharp is not what it leaves first here" in answer(replace(study, escapes=rows))


def test_summary_table_for_the_terminal(study: StudyResult) -> None:
    table = summary_table(study)
    assert table.columns[:5] == ("minimum", "role", "sharpness", "η", "B")
    assert len(table.rows) == 3 * 2 * 6
    assert all(len(row) == len(table.columns) for row in table.rows)
    cells = {row[:5]: row[5:] for row in table.rows}
    assert cells["A", "flat", "0.284", "0.5", "16"][2] == "failed"
    assert cells["A", "flat", "0.284", "0.5", "16"][0].startswith("more than ")


# --- figures --------------------------------------------------------------------------------


def plots(figure: drawing.Figure) -> list[drawing.Plot]:
    return [p for _, found in figure.groups for p in found if isinstance(p, drawing.Plot)]


def test_escape_figure_drops_nothing(study: StudyResult) -> None:
    numbers = sections.escape(study)
    assert numbers is not None
    figure = figures.escape_figure(study, numbers)
    assert [heading for heading, _ in figure.groups] == [
        "Learning rate η = 0.25",
        "Learning rate η = 0.5",
    ]
    marks = [m for plot in plots(figure) for curve in plot.curves for m in curve.marks]
    assert len(marks) == len(study.escapes)
    limits = [m for m in marks if m.kind == "limit"]
    assert all(math.isnan(m.y) and m.high == math.inf and m.low > 0 for m in limits)
    for plot in plots(figure):
        assert all(plot.y.low < m.low for c in plot.curves for m in c.marks if m.low > 0)
        assert [curve.name for curve in plot.curves] == ["SGD", "order 1", "order 2"]


def test_the_end_of_each_watch_is_drawn_when_diffusions_are_watched_for_less(
    study: StudyResult,
) -> None:
    def levels(result: StudyResult) -> set[tuple[float, str]]:
        numbers = sections.escape(result)
        assert numbers is not None
        found = plots(figures.escape_figure(result, numbers))
        return {(value, text) for plot in found for value, text, _ in plot.rules}

    horizon = study.escapes[0].horizon
    assert levels(study) == {(horizon, "watch ends")}
    less = tuple(e if e.process == "sgd" else replace(e, horizon=300) for e in study.escapes)
    assert levels(replace(study, escapes=less)) == {
        (horizon, "SGD: watch ends"),
        (300, "diffusions: watch ends"),
    }


def test_marks_carry_the_interval(study: StudyResult) -> None:
    numbers = sections.escape(study)
    assert numbers is not None
    plot = plots(figures.escape_figure(study, numbers))[-1]
    row = reading.cells(study, minimum="F", process="sgd", learning_rate=0.5)[2]
    mark = plot.curves[0].marks[2]
    assert row.steps is not None
    assert (mark.x, mark.y) == (4, row.steps.value)
    assert (mark.low, mark.high) == row.steps.interval


def test_bars_sum_to_one_and_dots_hold_wilson_intervals(study: StudyResult) -> None:
    numbers = sections.finals(study)
    assert numbers is not None
    figure = figures.finals_figure(study, numbers)
    bars, stayed, _ = figure.groups[0][1]
    assert isinstance(bars, drawing.Bars)
    assert isinstance(stayed, drawing.Dots)
    for _, parts in bars.rows:
        assert sum(part.share for part in parts) == pytest.approx(1)
    assert [name for name, _ in bars.rows][-1] == "2 → 8 → 32"
    mark = stayed.rows[0][1]
    assert mark is not None
    assert (mark.low, mark.high) == share(round(mark.x * 500), 500).interval


def test_lines_do_not_bridge_a_limit() -> None:
    value = drawing.Mark(1, 10, 9, 11, "value", "")
    limit = drawing.Mark(2, math.nan, 50, math.inf, "limit", "")
    assert svg._runs([value, value, limit, value, value, value]) == [[value] * 2, [value] * 3]
    assert svg._runs([value, limit, value]) == []


@pytest.mark.parametrize("ends", [(0.9, 1.1), (1e-9, 1e9), (5.0, 5.0), (1.0, 40.0)])
def test_log_axes_always_have_ticks(ends: tuple[float, float]) -> None:
    axis = drawing.log_axis("t", ends)
    assert axis.low < min(ends)
    assert axis.high > max(ends)
    assert 1 <= len(axis.ticks) <= 8


@pytest.mark.parametrize("ends", [(0.0, 0.0), (-3.0, 5.0), (0.3655, 0.3911), (7.0, 7.0)])
def test_linear_axes_always_have_ticks(ends: tuple[float, float]) -> None:
    axis = drawing.linear_axis("t", ends)
    assert 2 <= len(axis.ticks) <= 9
    assert all(axis.low <= value <= axis.high for value, _ in axis.ticks)


# --- the page -------------------------------------------------------------------------------


def test_the_page_loads_nothing(html: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'")
    for tag, attributes in Reader(html).tags:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "form"}
        for name in ("src", "srcset", "data", "action", "poster", "xlink:href"):
            assert name not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in html
    assert "@import" not in html
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|import)\b\s*\(", html)


def test_the_page_is_well_formed_and_small(html: str) -> None:
    reader = Reader(html)
    assert reader.open == []
    names = [a["id"] for _, a in reader.tags if "id" in a]
    assert len(names) == len(set(names))
    targets = {(a["href"] or "")[1:] for _, a in reader.tags if "href" in a}
    assert targets <= set(names)
    assert len(html) < 400_000


def test_figures_and_tables_have_text_alternatives(html: str) -> None:
    tags = Reader(html).tags
    panels = [a for tag, a in tags if tag == "svg" and a.get("class") == "panel"]
    assert panels
    assert all(a.get("role") == "img" and a.get("aria-label") for a in panels)
    assert html.count("<table") == html.count("<caption>")
    assert html.count("<figure ") == html.count("<figcaption>") == 5


def test_everything_stands_without_a_script(html: str, study: StudyResult) -> None:
    bare = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    for paragraph in answer(study).split("\n\n"):
        assert paragraph.replace("'", "&#39;") in bare
    assert bare.count('class="mark') > 200
    for row in study.escapes:
        if row.steps is not None and row.steps.n_censored < row.steps.n:
            assert reading.known(row) is not None
    assert "failed" in bare


HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>&\'"'


def test_everything_from_the_data_is_escaped(study: StudyResult) -> None:
    rows = [replace(study.escapes[0], process=HOSTILE), *study.escapes[1:]]
    rows[1] = replace(rows[1], steps=None, error=HOSTILE)
    finals = [replace(study.finals[0], schedule=HOSTILE, shares={HOSTILE: share(3, 9)})]
    hostile = replace(
        study,
        name=HOSTILE,
        title=HOSTILE,
        description=HOSTILE,
        settings={HOSTILE: HOSTILE, "command": HOSTILE},
        versions={"batchwell": HOSTILE},
        minima=tuple(replace(m, label=HOSTILE, role=HOSTILE) for m in study.minima[:1]),
        search={HOSTILE: HOSTILE},
        escapes=tuple(replace(r, minimum=HOSTILE) for r in rows),
        finals=tuple(replace(r, start=HOSTILE) for r in finals),
        lines=(replace(study.lines[0], start=HOSTILE),),
        verdicts=({k: HOSTILE for k in ("question", "verdict", "reason", "numbers")},),
        notes=(HOSTILE,),
        finished=False,
    )
    text = render(hostile)
    assert text.count("<script") == 1
    assert "<img" not in text
    assert not [a for _, a in Reader(text).tags if any(name.startswith("on") for name in a)]


def test_round_trip_gives_the_same_page(study: StudyResult, html: str) -> None:
    assert render(StudyResult.from_dict(study.to_dict())) == html


def test_unfinished_says_what_is_missing_and_how_to_go_on() -> None:
    result = made_up.unfinished()
    gaps = missing(result)
    assert gaps[0].startswith("68 escape times")
    assert gaps[1:] == ["where SGD ends", "the loss between the minima"]
    text = render(result)
    assert "This is not finished." in text
    assert "batchwell study breast-cancer-network --out runs/demo --resume" in text
    assert "Where SGD ends was not measured." in text
    assert answer(result).startswith("This study is not finished; so far")


def test_finished_has_no_banner(html: str, study: StudyResult) -> None:
    assert missing(study) == []
    assert "not finished" not in html


def test_an_empty_result_renders() -> None:
    text = render(made_up.empty())
    assert "there is no answer yet" in text
    assert text.count('class="absent"') >= 6
    assert "References" not in text
    assert summary_table(made_up.empty()).rows == ()


def test_a_study_of_failures_alone_renders(study: StudyResult) -> None:
    rows = tuple(replace(r, steps=None, error="diverged") for r in study.escapes)
    finals = tuple(
        replace(r, shares={}, stayed=None, sharpness=None, loss=None, error="diverged")
        for r in study.finals
    )
    text = render(replace(study, escapes=rows, finals=finals))
    assert text.count("diverged") >= len(rows)


def test_numbers_that_json_lost_render_as_dashes(study: StudyResult) -> None:
    lost = replace(study.minima[0], trace=math.nan, alignment=math.inf, lambda_min=math.nan)
    rows = (lost, *study.minima[1:])
    again = StudyResult.from_dict(replace(study, minima=rows).to_dict())
    assert again.minima[0].trace is None
    assert "nan" not in re.sub(r"<s(cript|tyle)>.*?</s(cript|tyle)>", "", render(again))


BROKEN = (0.0, -1.0, 1.0, 5.0, 1e-300, 1e300, math.inf, -math.inf, math.nan)


@st.composite
def broken_estimates(draw: st.DrawFn) -> Estimate | None:
    number = st.sampled_from(BROKEN)
    n = draw(st.sampled_from([0, 1, 5]))
    ends = draw(st.tuples(number, number))
    out = draw(st.sampled_from([0, n]))
    broken = Estimate(draw(number), draw(number), ends, "steps", "broken", n, out)
    return draw(st.sampled_from([None, broken, exponential_mean(100.0, 3, 5)]))


@given(st.data())
@settings(max_examples=40)
def test_broken_numbers_never_break_the_report(data: st.DataObject) -> None:
    study = made_up.sample()
    broken = broken_estimates()
    escapes = tuple(replace(row, steps=data.draw(broken)) for row in study.escapes[::5])
    finals = tuple(
        replace(row, stayed=data.draw(broken), sharpness=data.draw(broken), loss=data.draw(broken))
        for row in study.finals[::3]
    )
    measures = st.sampled_from([*BROKEN, None])
    minima = tuple(
        replace(m, lambda_max=data.draw(measures), trace=data.draw(measures)) for m in study.minima
    )
    result = replace(study, escapes=escapes, finals=finals, minima=minima)
    reader = Reader(render(result))
    points = [v or "" for _, a in reader.tags for k, v in a.items() if k in PLACES]
    assert not [p for p in points if "nan" in p or "inf" in p]
    assert len(summary_table(result).columns) == 8


def used(result: StudyResult) -> list[str]:
    return document.cited(page.page(result))


PLACES = {"x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height", "d", "points"}


def test_references_are_those_of_the_methods_used(study: StudyResult) -> None:
    keys = set(used(study))
    assert keys <= set(references.BIBLIOGRAPHY)
    assert {"garwood", "wilson", "student", "li-tai-e", "smith", "dunn"} <= keys
    only_sgd = replace(
        study,
        escapes=tuple(r for r in study.escapes if r.process == "sgd"),
        finals=(),
        verdicts=(),
    )
    assert not {"li-tai-e", "wilson", "smith", "dunn"} & set(used(only_sgd))
    assert used(made_up.empty()) == []


def test_every_reference_has_a_use() -> None:
    rows = {key for row in SECTIONS for key in row.references}
    assert rows <= set(references.BIBLIOGRAPHY)
    sources = [p for p in Path(batchwell.__file__).parent.rglob("*.py") if p.stem != "references"]
    text = "".join(p.read_text(encoding="utf-8") for p in sources)
    assert [key for key in references.BIBLIOGRAPHY if f'"{key}"' not in text] == []


def test_the_roster_is_sound(study: StudyResult) -> None:
    keys = [row.key for row in SECTIONS]
    assert len(keys) == len(set(keys))
    for row in SECTIONS:
        assert row.numbers(study) is not None
        assert row.absent or row.numbers(made_up.empty()) is not None
    assert set(page.LEADS) <= set(keys)
    assert set(figures.FIGURES) <= set(keys)
    assert set(tables.TABLES) <= set(keys)


def test_settings_and_command_are_shown(html: str) -> None:
    assert "<code>batchwell study breast-cancer-network --out runs/demo</code>" in html
    assert "escape.batch_sizes" in html
    assert "1, 2, 4, 8, 16, 32" in html


def test_write_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.html"
    assert write(made_up.empty(), target) == target
    before = target.read_text()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match="No space left"):
        write(made_up.sample(), target)
    assert target.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_write_names_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file or directory"):
        write(made_up.empty(), tmp_path / "nowhere" / "report.html")


def test_long_tables_are_numbered_once(study: StudyResult) -> None:
    numbered = [n for part in document.parts(page.page(study)) for n, _ in part.tables]
    assert numbered == list(range(1, len(numbered) + 1))
    linked = [n for part in document.parts(page.page(study)) for n in part.elsewhere]
    assert set(linked) <= set(numbered)


def test_tables_have_full_rows(study: StudyResult) -> None:
    for part in document.parts(page.page(study)):
        for _, table in part.tables:
            assert isinstance(table, document.Table)
            assert all(len(row) == len(table.columns) for row in table.rows)
