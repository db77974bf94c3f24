"""The code blocks of README.md and docs/*.md run, from top to bottom, as a reader would run them.

Python blocks of one file share a namespace; lines of console and bash blocks that call `batchwell`
run in the same folder. A block right below `<!-- not run: reason -->` is left out.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TIMEOUT_SECONDS = 300

FENCE = re.compile(r"^( *)```([a-z]+)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- *not run: *\S.*?-->\s*\Z", re.DOTALL)
COMMAND = re.compile(r"^(?:\$ )?(batchwell(?: .*)?)$")

DRIVER = """
import json, os, shlex, subprocess, sys
os.environ["MPLBACKEND"] = "Agg"
namespace = {"__name__": "__main__"}
for kind, where, line, text in json.load(sys.stdin):
    if kind == "python":
        exec(compile("\\n" * (line - 1) + text, where, "exec"), namespace)
    else:
        words = shlex.split(text, comments=True)
        done = subprocess.run([sys.executable, "-m", *words], stdin=subprocess.DEVNULL)
        if done.returncode:
            sys.exit(f"{where}, line {line}: exit code {done.returncode} of: {text}")
"""


class Block(NamedTuple):
    """Something to run: Python source, or one command line."""

    kind: str
    where: str
    line: int
    text: str


def read_blocks(path: Path) -> list[Block]:
    """What there is to run in a Markdown file, in its order."""
    page = path.read_text(encoding="utf-8")
    blocks = []
    for fence in FENCE.finditer(page):
        indent, language, text = fence.groups()
        if NOT_RUN.search(page[: fence.start()]):
            continue
        line = page.count("\n", 0, fence.start()) + 2
        lines = [row.removeprefix(indent) for row in text.splitlines()]
        if language == "python":
            blocks.append(Block("python", path.name, line, "\n".join(lines) + "\n"))
        elif language in {"console", "bash"}:
            joined = "\n".join(lines).replace("\\\n", "  ").splitlines()
            blocks += [
                Block("command", path.name, line, found[1])
                for row in joined
                if (found := COMMAND.match(row))
            ]
    return blocks


def run_blocks(blocks: list[Block], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run blocks one after the other in a folder of their own."""
    return subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(blocks),
        cwd=folder,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )


@pytest.mark.parametrize(
    "path", [README, *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_blocks_run(path: Path, tmp_path: Path) -> None:
    assert path.is_file(), f"{path.name} is missing"
    blocks = read_blocks(path)
    assert blocks or path != README, f"{path.name} has nothing to run"
    done = run_blocks(blocks, tmp_path)
    assert done.returncode == 0, f"{path.name}:\n{done.stdout}\n{done.stderr}"


PAGE = """
```python
x = 1
```
<!-- not run: takes an hour -->
```python
raise RuntimeError
```
- item
  ```python
  from pathlib import Path
  Path("out.txt").write_text(str(x + 1))
  ```
```console
$ make demo
$ batchwell --help  # lists the commands
output
```
```toml
batchwell = 1
```
"""


def test_a_page_is_read_and_run(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    blocks = read_blocks(page)
    assert [block.kind for block in blocks] == ["python", "python", "command"]
    done = run_blocks(blocks, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.txt").read_text() == "2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n\n```python\nx = 1\n1 / 0\n```\n", '"page.md", line 5'),
        ("```bash\nbatchwell no-such-command\n```\n", "page.md, line 2: exit code 2"),
        ("<!-- not run -->\n```python\nassert False\n```\n", "AssertionError"),  # no reason given
    ],
)
def test_a_broken_page_fails(tmp_path: Path, text: str, message: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    done = run_blocks(read_blocks(page), tmp_path)
    assert done.returncode != 0
    assert message in done.stderr
