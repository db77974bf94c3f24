"""Run directories: crash-safe, resumable, and readable without this library.

``run.toml`` (resolved settings, versions), ``chunks/`` (one ``.npy`` per array and one ``.json`` per
finished chunk, written last), ``SHA256SUMS``, ``estimates.json``, ``report.html``. Every file is
written under a temporary name, synced and renamed: a crash or a full disk never tears one.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from .errors import InputError, RunError, require

Arrays = Mapping[str, np.ndarray]
_SUMS_LOCK = Lock()


@dataclass(frozen=True)
class RunDirectory:
    """One run on disk. Make it with `create` or `reopen`."""

    path: Path

    def has(self, name: str) -> bool:
        """Whether chunk `name` was finished and its arrays are as they were written."""
        record = self._record(name)
        return record is not None and all(
            (self.path / "chunks" / file).is_file()
            and _digest((self.path / "chunks" / file).read_bytes()) == digest
            for file, digest in record["files"].items()
        )

    def write_chunk(self, name: str, arrays: Arrays, facts: Mapping[str, Any]) -> None:
        """Store finished work; it counts only once its ``.json``, written last, is there."""
        files = {}
        for key, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, np.asarray(array), allow_pickle=False)
            file = f"{name}.{key}.npy"
            files[file] = _digest(buffer.getvalue())
            write_atomic(self.path / "chunks" / file, buffer.getvalue())
        record = json.dumps({"files": files, "facts": facts}, indent=1, sort_keys=True)
        write_atomic(self.path / "chunks" / f"{name}.json", record.encode())
        self._add_sums({f"chunks/{file}": digest for file, digest in files.items()})

    def read_chunk(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and facts of a finished chunk."""
        record = self._record(name)
        if record is None:
            raise RunError(f"{self.path}: chunk {name} is not finished")
        arrays = {
            file.removeprefix(name + ".").removesuffix(".npy"): np.load(
                self.path / "chunks" / file, allow_pickle=False
            )
            for file in record["files"]
        }
        return arrays, record["facts"]

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file of the run in one piece; returns its path."""
        write_atomic(self.path / name, text.encode())
        return self.path / name

    def _record(self, name: str) -> dict[str, Any] | None:
        file = self.path / "chunks" / f"{name}.json"
        if not file.is_file():
            return None
        try:
            out = json.loads(file.read_bytes())
        except ValueError:  # torn from outside: the chunk does not count, and is made again
            return None
        return out if isinstance(out, dict) and {"files", "facts"} <= set(out) else None

    def _add_sums(self, digests: Mapping[str, str]) -> None:
        with _SUMS_LOCK:
            file = self.path / "SHA256SUMS"
            lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
            known = {line[66:]: line[:64] for line in lines} | dict(digests)
            text = "".join(f"{digest}  {name}\n" for name, digest in sorted(known.items()))
            write_atomic(file, text.encode())


def default_folder(name: str, resume: bool = False) -> Path:
    """runs/NAME, runs/NAME-2, ...: the first that is free, or with `resume` the last there is."""
    last, count = Path("runs") / name, 1
    free = last
    while free.exists():
        last, count = free, count + 1
        free = Path("runs") / f"{name}-{count}"
    return last if resume else free


def check_new(path: str | Path) -> None:
    """Raise InputError unless a run can begin at `path`: nothing there, or an empty folder."""
    folder = Path(path)
    require(
        not folder.exists() or (folder.is_dir() and not any(folder.iterdir())),
        "out",
        str(folder),
        "must be a new or empty directory",
    )


def check_writable(path: str | Path, key: str = "out") -> None:
    """Raise InputError unless files can be written at `path` or where it would be made.

    For work whose result is written at its end: better refused before than lost after.
    """
    folder = Path(path)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(key, str(path), f"cannot be written: {error.strerror}") from None


def create(path: str | Path, settings: Mapping[str, Any], resume: bool = False) -> RunDirectory:
    """A new run directory, or with `resume` an existing one with the same settings.

    Raises
    ------
    InputError
        The directory cannot be written, holds another run, or (with `resume`) was run with
        other settings: says which.
    """
    folder = Path(path)
    text = to_toml(settings)
    file = folder / "run.toml"
    if file.is_file():
        _check_same(file, text, resume)
        _make(folder / "chunks")
        return RunDirectory(folder)
    require(not resume, "--resume", str(folder), "there is no run to resume here")
    check_new(folder)
    # run.toml comes first: what a full disk leaves behind is an empty folder that can be used again.
    _make(folder)
    write_atomic(file, text.encode(), "out")
    _make(folder / "chunks")
    return RunDirectory(folder)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("out", str(folder), f"cannot be made: {error.strerror}") from None


def _check_same(file: Path, text: str, resume: bool) -> None:
    require(
        resume,
        "out",
        str(file.parent),
        "holds a run already: give --resume to go on with it, or another --out",
    )
    try:
        old = _comparable(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError("out", str(file.parent), f"run.toml is not valid TOML: {error}") from None
    new = _comparable(text)
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if changed:
        key = changed[0]
        raise InputError(
            key,
            new.get(key),
            f"differs from the run to resume, which has {old.get(key)}; take another --out",
        )


def _comparable(text: str) -> dict[str, Any]:
    import tomllib

    table = tomllib.loads(text)
    # How many workers and which versions ran do not change what is computed.
    return {k: v for k, v in table.items() if k not in ("versions", "workers", "command")}


def write_atomic(path: Path, content: bytes, key: str = "run directory") -> None:
    """Write a file under a temporary name, sync it and rename it.

    Raises
    ------
    InputError
        The place cannot be written (no permission, not a directory).
    RunError
        The disk is full or failed; nothing that was there is lost.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True) if path.parent.is_dir() else None
        if isinstance(error, PermissionError | NotADirectoryError | FileNotFoundError):
            raise InputError(key, str(path), f"cannot be written: {error.strerror}") from None
        raise RunError(
            f"{path}: {error.strerror}; everything finished before is kept in {path.parent}"
        ) from None


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def to_toml(table: Mapping[str, Any]) -> str:
    """TOML text of nested mappings of numbers, strings, booleans and lists; None is left out.

    Examples
    --------
    >>> print(to_toml({"seed": 0, "out": None, "data": {"file": "a.csv"}}).strip())
    seed = 0
    <BLANKLINE>
    [data]
    file = "a.csv"
    """
    plain = {k: v for k, v in table.items() if v is not None and not isinstance(v, Mapping)}
    lines = [f"{_key(k)} = {_toml(v)}" for k, v in plain.items()]
    for name, inner in table.items():
        if isinstance(inner, Mapping):
            rows = (f"{_key(k)} = {_toml(v)}" for k, v in inner.items() if v is not None)
            lines += ["", f"[{_key(name)}]", *rows]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    bare = name.replace("-", "").replace("_", "").isalnum() and name.isascii()
    return name if bare else _quoted(name)


def _quoted(text: str) -> str:
    # JSON's escapes of strings are TOML's too, but JSON leaves DEL as it is, and its escapes of
    # what is not ASCII are pairs of surrogates, which TOML refuses.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml(value: Any) -> str:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        rows = (f"{_key(k)} = {_toml(v)}" for k, v in value.items() if v is not None)
        return "{" + ", ".join(rows) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return _quoted(value) if isinstance(value, str) else repr(value)
