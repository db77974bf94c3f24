"""Public names read well: what they take is said, an example runs, formulas have a source."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import batchwell
from batchwell import training

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("api_page", ROOT / "scripts" / "api_page.py")
api_page = importlib.util.module_from_spec(spec)
spec.loader.exec_module(api_page)

NAMES = [(package, name) for package in (batchwell, training) for name in package.__all__]
IDS = [f"{package.__name__}.{name}" for package, name in NAMES]
SOURCE = re.compile(r"arXiv|\b(18|19|20)\d\d\b")
# Answers that rest on a theorem or a published algorithm: their docstrings say whose.
SOURCED = {
    "chain_action",
    "diffusion_approximation",
    "disconnectivity_tree",
    "exit_time_bounds",
    "find_saddles",
    "instantons",
    "moments",
    "optimal_schedule",
    "quasi_potential",
    "quasi_potential_field",
    "saddle_exit",
    "sharpness",
    "transfer_operator",
    "validity",
    "weak_error",
    "critical_batch_size",
    "escape_exponent",
    "hessian_density",
    "hessian_trace",
    "saddle_escape_steps",
    "stationary_loss",
}


def runnable() -> str:
    """Every line of Python that the tests run out of docstrings and pages."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    blocks = [
        block
        for page in pages
        for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    ]
    sources = (ROOT / "src").rglob("*.py")
    lines = [
        line
        for path in sources
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.match(r" *(>>>|\.\.\.) ", line)
    ]
    return "\n".join([*blocks, *lines])


def unsaid(thing: object) -> list[str]:
    """Parameters that neither the docstring nor the page's table of common arguments explains."""
    text = inspect.getdoc(thing) or ""
    entries = re.findall(r"(?m)^[*\w]+(?:, [*\w]+)*$", text)
    said = {word.strip("* ") for entry in entries for word in entry.split(",")}
    said |= set(re.findall(r"`([A-Za-z_]\w*)`", text)) | set(api_page.COMMON)
    return [name for name in inspect.signature(thing).parameters if name not in said]


def test_the_page_of_names_is_up_to_date() -> None:
    assert api_page.PAGE.read_text(encoding="utf-8") == api_page.page()


@pytest.mark.parametrize("package", [batchwell, training], ids=lambda package: package.__name__)
def test_the_page_lists_every_name_once(package) -> None:
    topics = api_page.TOPICS if package is batchwell else api_page.TRAINING
    homes = [home for group in topics.values() for home in group]
    assert sorted(homes) == sorted(set(package._HOME.values()))


@pytest.mark.parametrize(("package", "name"), NAMES, ids=IDS)
def test_arguments_are_explained(package, name) -> None:
    thing = api_page.public(package, name)
    if isinstance(thing, dict):  # a roster
        return
    assert inspect.getdoc(thing)
    first = inspect.getdoc(thing).split("\n\n")[0]
    assert len(first) < 160, f"the first paragraph is its row in docs/api.md: {first}"
    if inspect.isfunction(thing):
        assert unsaid(thing) == []


def test_an_argument_left_out_is_seen() -> None:
    def function(shown, hidden):
        """Does it.

        Parameters
        ----------
        shown
            An argument; the other one hidden in a sentence.
        """

    assert unsaid(function) == ["hidden"]


def test_every_name_has_an_example_that_runs() -> None:
    text = runnable()
    assert "mean_exit_time(" in text
    functions = [
        name for package, name in NAMES if inspect.isfunction(api_page.public(package, name))
    ]
    missing = [name for name in functions if not re.search(rf"\b{name}\(", text)]
    assert missing == ["landscape_study"]  # README's `batchwell landscape`, which takes a minute
    assert "batchwell landscape " in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(SOURCED))
def test_formulas_have_a_source(name) -> None:
    package = batchwell if name in batchwell.__all__ else training
    assert SOURCE.search(inspect.getdoc(api_page.public(package, name))), "says whose result it is"
