"""Write docs/api.md, every public name by topic, from the first lines of the docstrings.

.venv/bin/python scripts/api_page.py
"""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import batchwell
from batchwell import training

PAGE = Path(__file__).parents[1] / "docs" / "api.md"

# Topic -> the modules (of `_HOME`) whose names it lists.
TOPICS = {
    "What is descended": ("loss", "noise", "symmetry", "problems"),
    "SGD and its diffusions": ("dynamics",),
    "Where from, how long, which way": ("domain", "exits", "saddles", "law", "action"),
    "How wrong is the diffusion": ("weak", "verdicts"),
    "Minima, passes, basins": ("landscape",),
    "Jumps between minima, and batch-size schedules": ("metastable",),
    "Whole studies": ("studies", "studies.landscape"),
    "Answers and errors": ("estimate", "errors"),
}
TRAINING = {
    "Attach to a training run": ("loop", "measure", "accumulate", "log"),
    "Schedules of the batch size": ("schedule", "schedules"),
    "What was measured": ("noise",),
    "The loss around a point": ("local", "curvature", "spectrum"),
    "Predictions": ("predict", "scoring"),
}
# Arguments that mean the same wherever they stand.
COMMON = {
    "process": "an `SGD` or a `Diffusion`",
    "sgd": "an `SGD`: loss, learning rate, batch size, sampling, momentum",
    "loss": "a `StochasticLoss`",
    "domain": "a `Domain` to leave",
    "start": "point (d,) where it begins",
    "landscape": "minima, as `find_minima` or `survey` give them",
    "learning_rate": "eta > 0",
    "batch_size": "B, examples a step",
    "dim": "dimension d of x",
    "x": "point (d,)",
    "batch_sizes": "several B",
    "learning_rates": "several eta",
    "sampling": "`with_replacement`, `without_replacement` or `reshuffle`",
    "horizon": "where it ends if nothing else ends it: time t = eta k in `weak_*`, steps elsewhere",
    "momentum": "heavy ball, 0 <= momentum < 1",
    "options": "keyword arguments of the method that is asked (see its own help)",
    "paths": "independent copies simulated",
    "seed": "root of every random stream; same seed, same bits, whatever the threads",
    "threads": "at most so many; all cores if left out",
    "progress": "called with (done, of how many) as work goes on",
    "name": "how it is called in notes and reports",
    "symmetry": "a `Symmetry`; moves of it make the same minimum",
    "network": "a `MarkovNetwork`",
    "local": "a `LocalLoss`",
    "spectrum": "a `NoiseSpectrum`",
    "data_size": "n, examples in the data set",
    "products": "Hessian-vector products spent",
    "max_products": "products with the matrix at most, before it is refused",
}
HEAD = """# Every public name, by topic

Written by `scripts/api_page.py` from the docstrings; change those. `help(batchwell.mean_exit_time)`
shows a name's shapes, units, errors and an example. Which method to take when: [methods.md](methods.md).
"""


def called(name: str, thing: object) -> str:
    """`name(arguments)` of a function, the bare name of anything else."""
    if not inspect.isfunction(thing):
        return f"`{name}`"
    names = {"VAR_POSITIONAL": "*{}", "VAR_KEYWORD": "**{}"}
    words = [names.get(p.kind.name, "{}").format(n) for n, p in _parameters(thing)]
    return f"`{name}({', '.join(words)})`"


def _parameters(thing: object) -> list[tuple[str, inspect.Parameter]]:
    return list(inspect.signature(thing).parameters.items())  # type: ignore[arg-type]


def summary(thing: object) -> str:
    """First paragraph of the docstring on one line; of a roster, its keys."""
    if isinstance(thing, dict):
        return "the roster: " + ", ".join(f"`{key}`" for key in thing)
    text = inspect.getdoc(thing) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")


def public(package: ModuleType, name: str) -> Any:
    """What users get by that name.

    Doctests load a file by its path, which leaves the module in its package, in the place of a
    function of the same name.
    """
    thing = getattr(package, name)
    return getattr(thing, name) if inspect.ismodule(thing) else thing


def table(package: ModuleType, homes: tuple[str, ...]) -> list[str]:
    """Rows of the names that live in `homes`, module by module."""
    names = [n for home in homes for n, m in sorted(package._HOME.items()) if m == home]
    things = [(n, public(package, n)) for n in names]
    rows = [f"| {called(name, thing)} | {summary(thing)} |" for name, thing in things]
    return ["| name | is |", "|---|---|", *rows, ""]


def page() -> str:
    """The text of docs/api.md."""
    lines = [HEAD, "| common argument | is |", "|---|---|"]
    lines += [f"| `{name}` | {text} |" for name, text in COMMON.items()] + [""]
    for package, topics in ((batchwell, TOPICS), (training, TRAINING)):
        lines += [f"## `{package.__name__}`", ""]
        for topic, homes in topics.items():
            lines += [f"### {topic}", "", *table(package, homes)]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
