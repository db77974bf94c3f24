"""Lower layers never import higher ones, and no modules import each other in a circle."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "batchwell"
ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / PACKAGE

LAYERS = (
    {"errors", "estimate", "streams", "linearity", "memory", "points", "_jax", "_lazy"},
    {"noise", "loss", "domain", "symmetry"},
    {"dynamics", "problems"},
    {"ensemble", "law", "action", "landscape"},
    {"weak", "exits", "saddles", "metastable", "verdicts"},
    {"settings", "sources", "results", "runs", "progress"},
    {"report"},
    {"studies"},
    {"cli", "__main__"},
)
WINGS = {"training": 2}  # may import up to this layer; nobody imports them
FACADE = "__init__"  # lazy; its weight is tested instead
FACADE_CONSTANTS = {"__version__"}
DOORS = {"jax": "_jax"}  # the only module that may import the library: it enables float64

LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}


def read_modules(source: Path) -> dict[str, ast.Module]:
    """Every module below source by its dotted name without the package; the facade left out."""
    modules = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        if parts != (FACADE,):
            name = ".".join(parts[:-1] if parts[-1] == FACADE else parts)
            modules[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return modules


def packages(source: Path) -> set[str]:
    return {".".join(p.parent.relative_to(source).parts) for p in source.rglob("__init__.py")}


def imported_names(name: str, is_package: bool, tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Absolute dotted names that a module imports, at its top, in functions or for typing."""
    parent = [PACKAGE, *name.split(".")][: None if is_package else -1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            start = parent[: len(parent) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno
        elif isinstance(node, ast.Call) and node.args:
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0]
            if called in {"import_module", "__import__"} and isinstance(first, ast.Constant):
                text = str(first.value)
                yield (PACKAGE + text if text.startswith(".") else text), node.lineno


def unit(module: str) -> str:
    return module.split(".")[0]


def cycle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def violations(source: Path) -> list[str]:
    """Every breach of the rules, one line each."""
    modules, inner = read_modules(source), packages(source)
    found = [
        f"{name}: has no layer; add it to the table in {Path(__file__).name}"
        for name in sorted({unit(module) for module in modules})
        if name not in LEVEL and name not in WINGS
    ]
    graph: dict[str, set[str]] = {module: set() for module in modules}
    units: dict[str, set[str]] = {unit(module): set() for module in modules}
    for module, tree in modules.items():
        here = unit(module)
        for target, line in imported_names(module, module in inner, tree):
            where = f"{module}:{line}"
            top, *rest = target.split(".")
            if DOORS.get(top, module) != module:
                found.append(f"{where}: imports {top} past its one door, {DOORS[top]}")
            if top != PACKAGE:
                continue
            known = next(
                (n for k in range(len(rest), 0, -1) if (n := ".".join(rest[:k])) in modules), None
            )
            if known is None:
                if not (len(rest) == 1 and rest[0] in FACADE_CONSTANTS):
                    found.append(f"{where}: imports {target} through the facade or from nowhere")
                continue
            graph[module].add(known)
            there = unit(known)
            if there == here:
                continue
            graph[module].add(there)  # importing a.b runs a/__init__ too
            units[here].add(there)
            if there in WINGS:
                found.append(f"{where}: imports the wing {there}")
            elif here in WINGS:
                if LEVEL.get(there, 0) > WINGS[here]:
                    found.append(f"{where}: the wing {here} imports {there}, above L{WINGS[here]}")
            elif LEVEL.get(there, 0) > LEVEL.get(here, len(LAYERS)):
                found.append(f"{where}: L{LEVEL[here]} imports {there} of L{LEVEL[there]}")
    for edges in (graph, units):
        if circle := cycle(edges):
            found.append(f"{' -> '.join(circle)}: import cycle")
            break
    return found


def test_the_package_keeps_its_layers() -> None:
    assert read_modules(SOURCE), f"no modules under {SOURCE}"
    assert violations(SOURCE) == []


def test_the_contributors_table_is_the_same() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| L(\d+) \| ([^|]*) \|", page, re.MULTILINE)
    table = {int(level): set(re.findall(r"`(\w+)`", units)) for level, units in rows}
    assert table == dict(enumerate(LAYERS))


def grow(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"__init__.py": "", **files}.items():
        path = root / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / PACKAGE


def test_a_sound_tree_passes(tmp_path: Path) -> None:
    source = grow(
        tmp_path,
        {
            "__init__.py": "from batchwell.cli import main",
            "errors.py": "import numpy",
            "loss.py": "from .errors import LossError\nfrom . import streams, __version__",
            "streams.py": "from batchwell.errors import BatchwellError",
            "law/__init__.py": "from .chain import build",
            "law/chain.py": "from ..loss import StochasticLoss\nfrom ._grid import grid",
            "law/_grid.py": "def grid():\n    from batchwell import estimate\n",
            "estimate.py": "",
            "_jax.py": "import jax\nimport jax.numpy as jnp",
            "action.py": "from batchwell.law import build\nimport batchwell.law.chain",
            "training/__init__.py": "from .attach import attach",
            "training/attach.py": "import torch\nfrom batchwell.loss import StochasticLoss",
            "cli.py": "def main():\n    from batchwell import action\n",
        },
    )
    assert violations(source) == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"helpers.py": ""}, "helpers: has no layer"),
        ({"loss.py": "from batchwell.law import x", "law.py": ""}, "L1 imports law of L3"),
        ({"loss.py": "from .law.chain import x", "law/__init__.py": "", "law/chain.py": ""}, "L1"),
        ({"loss.py": "from . import exits", "exits.py": ""}, "L1 imports exits of L4"),
        (
            {"loss.py": "import batchwell.studies as s", "studies.py": ""},
            "L1 imports studies of L7",
        ),
        ({"law.py": "def f():\n    import batchwell.cli", "cli.py": ""}, "law:2: L3 imports cli"),
        (
            {
                "law.py": "from typing import TYPE_CHECKING\n"
                "if TYPE_CHECKING:\n    from batchwell.runs import Run",
                "runs.py": "",
            },
            "law:3: L3 imports runs of L5",
        ),
        (
            {
                "law.py": "import importlib\nimportlib.import_module('batchwell.runs')",
                "runs.py": "",
            },
            "law:2: L3 imports runs of L5",
        ),
        ({"law/__init__.py": "", "law/a.py": "from .. import studies", "studies.py": ""}, "L3"),
        ({"law.py": "from batchwell import SGD"}, "through the facade"),
        ({"law.py": "import batchwell"}, "through the facade"),
        ({"law.py": "import jax.numpy as jnp"}, "law:1: imports jax past its one door"),
        ({"law.py": "import batchwell.action", "action.py": "from . import law"}, "import cycle"),
        (
            {
                "law/__init__.py": "",
                "law/a.py": "from . import b",
                "law/b.py": "def f():\n    from .a import x",
            },
            "import cycle",
        ),
        (
            {  # no circle of files, but of packages
                "law/__init__.py": "",
                "law/a.py": "import batchwell.action.b",
                "law/c.py": "",
                "action/__init__.py": "",
                "action/b.py": "",
                "action/d.py": "import batchwell.law.c",
            },
            "import cycle",
        ),
        ({"cli.py": "import batchwell.training", "training/__init__.py": ""}, "the wing training"),
        (
            {
                "training/a.py": "from batchwell import law",
                "training/__init__.py": "",
                "law.py": "",
            },
            "the wing training imports law, above L2",
        ),
    ],
)
def test_each_breach_is_caught(tmp_path: Path, files: dict[str, str], message: str) -> None:
    found = violations(grow(tmp_path, files))
    assert len(found) >= 1
    assert any(message in line for line in found), found
