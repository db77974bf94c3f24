"""The page of a landscape's study: what it says, draws, and computes in its script."""

import json
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner

import batchwell as bw
from batchwell._jax import jnp
from batchwell.cli import main
from batchwell.landscape import disconnectivity_tree, find_minima, find_saddles
from batchwell.metastable import Stage, known_network, occupation, optimal_schedule
from batchwell.report import document
from batchwell.report.landscape import LandscapeResult, MeasuredRun, answer, page
from batchwell.report.landscape.pictures import graph_picture, tree_picture
from batchwell.report.landscape.reading import cells, quarters
from batchwell.report.landscape.widget import network_data, script
from batchwell.studies.landscape import landscape_study
from batchwell.studies.network import cut, schedules_to_run, spread_over


@pytest.fixture(scope="module")
def himmelblau():
    problem = bw.problem("himmelblau")
    starts = [[3, 2], [-2.8, 3.1], [-3.8, -3.3], [3.6, -1.8]]
    found = find_minima(problem.loss, starts)
    return found, find_saddles(found)


def network(count: int = 4):
    """Rates of a chain of states that fall with B, faster out of flat ones."""
    rates = np.zeros((3, count, count))
    for k, b in enumerate((1.0, 2.0, 4.0)):
        for i in range(count - 1):
            rates[k, i, i + 1] = 0.01 * np.exp(-0.9 * b)
            rates[k, i + 1, i] = 0.03 * np.exp(-0.5 * b)
    labels = [*"ABCDEFGH"[: count - 1], "elsewhere"]
    sharpness = [*np.arange(1.0, count), np.nan]
    return known_network(labels, [1, 2, 4], rates, 0.2, sharpness, sharpness)


def test_the_tree_draws_every_minimum_at_its_loss(himmelblau):
    found, saddles = himmelblau
    tree = disconnectivity_tree(found, saddles)
    picture = tree_picture(found, tree)
    text = "".join(picture.body)
    assert text.count("<circle") == 4
    assert text.count("<title>") == 4
    for minimum in found.minima:
        assert f"{minimum.label}: loss 0" in text or f"{minimum.label}: loss" in text
    assert "4 minima joined by 3 passes" in picture.words
    # A part that no pass joins is drawn dotted, not at a made-up height.
    apart = tree_picture(found, disconnectivity_tree(found, saddles[:1]))
    assert "stroke-dasharray" in "".join(apart.body)
    assert "stroke-dasharray" not in text


def test_the_graph_names_its_fastest_jumps(himmelblau):
    found, _ = himmelblau
    net = network(5)
    picture = graph_picture(found, net, np.full(5, 0.2), 2)
    assert "B to A: once in 90.6 steps" in picture.words  # 1 / (.03 exp(-.5 * 2)) = 90.6
    assert "elsewhere" not in picture.words


def test_quarters_leave_out_elsewhere():
    flat, sharp = quarters(network(5))
    assert flat.tolist() == [True, False, False, False, False]
    assert sharp.tolist() == [False, False, False, True, False]


def test_schedules_are_cut_without_losing_a_step():
    stages = [Stage(2, 501), Stage(16, 63)]
    pieces = cut(stages, 2 * 501 + 16 * 63, looks=8)
    assert sum(p.steps for p in pieces if p.batch_size == 2) == 501
    assert sum(p.steps for p in pieces if p.batch_size == 16) == 63
    assert len(pieces) == 8


def test_starts_are_spread_as_the_law_says():
    origins = spread_over([0.5, 0.25, 0.25, 0.0], 40, seed=1)
    assert np.bincount(origins, minlength=4).tolist() == [20, 10, 10, 0]


def test_an_unfinished_study_says_so():
    empty = LandscapeResult("demo", "Demo", {"command": "batchwell landscape demo"}, 1000)
    assert "not finished" in answer(empty)
    text = document.render(page(empty))
    assert "batchwell landscape demo --resume" in text
    assert "the minima and passes" in text


class _Scripts(HTMLParser):
    def __init__(self):
        super().__init__()
        self.inside, self.network, self.outside = False, None, []

    def handle_starttag(self, tag, attrs):
        table = dict(attrs)
        for key in ("src", "href"):
            if table.get(key, "#").startswith(("http", "//")):
                self.outside.append(table[key])
        if table.get("id") == "explorer":
            self.network = json.loads(table["data-network"])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("landscape") / "run"
    return landscape_study(
        "two-basins",
        folder,
        batch_sizes=[1, 2],
        starts=12,
        budget=1000,
        paths=6,
        horizon=4000,
        quiet=True,
    )


def test_a_study_of_two_basins_from_end_to_end(done):
    result = done.result
    assert result.finished
    assert result.missing == []
    assert len(result.landscape.minima) == 2
    assert [s.ends for s in result.saddles if s.joins] == [(0, 1)]
    assert result.explained == (1, 0, 1)
    # Every schedule was run on as many paths, over the whole budget.
    assert {run.states.shape[1] for run in result.runs} == {96}
    assert all(abs(run.examples[-1] - 1000) <= 20 for run in result.runs)
    assert "Growing the batch" in done.answer
    kept = json.loads((done.path / "estimates.json").read_text(encoding="utf-8"))
    assert {tuple(p["between"]) for p in kept["passes"]} == {("A", "C")}
    assert len(kept["final_shares"]) == len(cells(result))
    assert all(0 <= c["measured"]["value"] <= 1 for c in kept["final_shares"])
    assert {1, 2} <= {run.schedule.batch_sizes[0] for run in result.runs}


def test_a_study_can_aim_at_the_best_held_out_score(tmp_path):
    """The sharp basin scores best here: schedules must aim there, and the words must say so."""
    loss = bw.problem("two-basins").loss
    settings = {"batch_sizes": [1, 2], "starts": 12, "budget": 400, "paths": 4, "horizon": 1000}
    flat = bw.landscape_study("two-basins", tmp_path / "a", quiet=True, **settings)
    a, c = flat.result.landscape.minima
    tests = {"distance": bw.additive(lambda x: jnp.sum((x - c.x) ** 2), dim=loss.dim)}
    held = bw.landscape_study("two-basins", tmp_path / "b", objective="best_validation",
                              tests=tests, quiet=True, **settings)  # fmt: skip
    assert flat.result.plan.weights == (1.0, 0.0, 0.0)
    assert held.result.plan.weights == (0.0, 1.0, 0.0)
    words = "the quarter of the minima with the lowest distance (held out)"
    assert words in held.answer
    assert words in held.report.read_text(encoding="utf-8")
    assert "among the flattest quarter" in flat.answer
    assert "--objective best_validation --paths" in held.result.record["command"]
    assert np.linalg.norm(a.x - c.x) > 0.1


def test_the_page_is_complete_and_asks_for_nothing(done):
    text = done.report.read_text(encoding="utf-8")
    for title in ("How large may the batch be, when?", "Disconnectivity tree", "Transition graph"):
        assert title in text
    found = _Scripts()
    found.feed(text)
    assert found.outside == []
    assert found.network["labels"] == ["A", "C", "elsewhere"]
    assert "Not finished yet" not in text
    assert 'id="explorer" hidden="hidden"' in text


def test_a_finished_study_resumes_without_work_and_to_the_same_page(done):
    before = done.report.read_text(encoding="utf-8")
    chunks = {p: p.stat().st_mtime_ns for p in (done.path / "chunks").iterdir()}
    again = landscape_study(
        "two-basins",
        done.path,
        batch_sizes=[1, 2],
        starts=12,
        budget=1000,
        paths=6,
        horizon=4000,
        quiet=True,
        resume=True,
    )
    assert {p: p.stat().st_mtime_ns for p in (done.path / "chunks").iterdir()} == chunks
    assert again.answer == done.answer

    def body(text):
        return [line for line in text.splitlines() if "Made by Batchwell" not in line]

    assert body(again.report.read_text(encoding="utf-8")) == body(before)


def test_what_was_interrupted_is_reported_and_resumed(tmp_path, monkeypatch):
    from batchwell.studies import network as module

    def stop(*args, **options):
        raise KeyboardInterrupt

    settings = {"batch_sizes": [1, 2], "starts": 6, "budget": 400, "paths": 4, "horizon": 1000}
    with monkeypatch.context() as patch:
        patch.setattr(module, "count_jumps", stop)
        with pytest.raises(KeyboardInterrupt):
            landscape_study("two-basins", tmp_path / "run", quiet=True, **settings)
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "This is not finished" in text
    assert "Disconnectivity tree" in text
    # The command that goes on names every setting, so that it meets the same run.
    assert "--batch-size 1,2 --starts 6 --budget 400 --paths 4 --seed 0 --out" in text
    again = landscape_study("two-basins", tmp_path / "run", quiet=True, resume=True, **settings)
    assert again.result.finished


def test_predictions_at_the_end_of_a_run_are_those_of_the_network():
    net = network(4)
    plan = optimal_schedule(net, 4000, start="B", stages=4)
    schedule = schedules_to_run(plan)[0]
    states = np.full((len(schedule.stages) + 1, 50), 1)
    run = MeasuredRun(schedule, schedule.stages, states)
    flat = np.array([True, False, False, False])
    want = occupation(net, "B", schedule.stages)[-1]["A"].value
    assert run.predicted(net, flat)[0, -1] == pytest.approx(want, rel=1e-9)
    assert run.measured(flat)[-1].value == 0
    # Control: from another state the prediction differs.
    other = MeasuredRun(schedule, schedule.stages, np.zeros_like(states))
    assert abs(other.predicted(net, flat)[0, -1] - want) > 1e-3


HARNESS = """
const rows = [], listeners = {};
function element() {
  return { className: "", style: {}, children: [], textContent: "", value: "0",
    appendChild(c) { this.children.push(c); return c; }, setAttribute() {},
    addEventListener(kind, f) { this.listen = f; } };
}
const parts = { "#explorer-eta": element(), "#explorer-size": element(),
  "#explorer-said": element(), tbody: element() };
const box = { dataset: { network: process.argv[2] }, hidden: true,
  querySelector: (k) => parts[k] };
global.document = { getElementById: () => box, createElement: element };
require("vm").runInThisContext(require("fs").readFileSync(process.argv[3], "utf-8"));
const out = {};
for (const [eta, size] of JSON.parse(process.argv[4])) {
  parts.tbody.children = [];
  parts["#explorer-eta"].value = String(eta);
  parts["#explorer-size"].value = String(size);
  parts["#explorer-size"].listen();
  out[eta + "/" + size] = parts.tbody.children.map((r) => r.children.map((c) => c.textContent));
}
console.log(JSON.stringify({ hidden: box.hidden, said: parts["#explorer-said"].textContent, out }));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_the_script_computes_what_the_library_does(tmp_path):
    net = network(4)
    data = network_data(net, (0.0, 1.0, 0.0, 0.0), 2000)
    (tmp_path / "harness.js").write_text(HARNESS)
    (tmp_path / "explorer.js").write_text(script())
    sizes = [data["sizes"].index(b) for b in (1, 2, 3, 4)]
    asked = [[3, k] for k in sizes]
    done = subprocess.run(
        ["node", tmp_path / "harness.js", json.dumps(data), tmp_path / "explorer.js",
         json.dumps(asked)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["hidden"] is False
    assert "after 2,000 examples" in found["said"]
    for b, (eta, k) in zip((1, 2, 3, 4), asked, strict=True):
        rows = {row[0]: row for row in found["out"][f"{eta}/{k}"]}
        law = occupation(net, "B", [Stage(b, 1)] * 0 or [Stage(b, round(2000 / b))])[-1]
        for label, estimate in law.items():
            shown = float(rows[label][3].rstrip("%")) / 100
            assert shown == pytest.approx(estimate.value, abs=0.012)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["nonsense"], "problem = 'nonsense': must be one of"),
        (["two-basins", "--batch-size", "4"], "must name at least two batch sizes"),
        (
            ["two-basins", "--batch-size", "1.5,2"],
            "--batch-size = '1.5': must be whole numbers from 1",
        ),
        (["two-basins", "--learning-rate", "-1"], "learning_rate = -1.0: must be a positive"),
        (["two-basins", "--budget", "2"], "budget = 2: must be a whole number, at least 4"),
        (["maier-stein"], "has no loss"),
        (["two-basins", "--objective", "flat"], "objective = 'flat': must be one of flattest, lo"),
        (
            ["two-basins", "--objective", "best_validation"],
            "needs held-out examples, and 'two-basins' has none: give landscape_study tests=",
        ),
    ],
)
def test_bad_input_is_one_line_before_any_work(options, says, tmp_path):
    out = tmp_path / "run"
    result = CliRunner().invoke(main, ["landscape", *options, "--out", str(out)])
    assert result.exit_code == 2
    assert says in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not out.exists()
