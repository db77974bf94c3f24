"""Doctests are looked for in every module but those whose extra is not installed."""

from importlib.util import find_spec

# The tests need torch and have it; the trainers on top of it are the user's choice.
_TRAINERS = ("lightning", "transformers")
collect_ignore = [
    f"src/batchwell/training/{name}.py" for name in _TRAINERS if find_spec(name) is None
]
