"""All benchmarks: `make bench`. Each part is a process of its own: they set threads and memory."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PARTS = (
    "against_c",
    "against_peers",
    "networks",
    "on_gpu",
    "scaling",
    "work_precision",
    "law",
    "exits",
    "metastable",
    "training_overhead",
)


def main() -> None:
    """Run the parts named on the command line, or all."""
    failed = []
    for part in sys.argv[1:] or PARTS:
        file = HERE / f"{part}.py"
        about = ast.get_docstring(ast.parse(file.read_text())) or ""
        print(f"\n# {part}: {about.splitlines()[0]}\n", flush=True)
        if subprocess.run([sys.executable, str(file)], check=False).returncode:
            failed.append(part)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
