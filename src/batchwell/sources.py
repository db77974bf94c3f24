"""What a study is about: a gallery problem, or a user's own loss and data file.

A data file (CSV, Parquet, NPZ without pickles) never executes code. Python code runs only from
the file that the user named for that purpose.
"""

from __future__ import annotations

import importlib.util
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from .errors import InputError, require
from .loss import StochasticLoss, finite_sum
from .problems import problem
from .settings import DataSettings, StudySettings, with_defaults
from .symmetry import NONE, Symmetry


@dataclass(frozen=True, eq=False)
class Subject:
    """The loss that a study asks its questions of."""

    name: str
    title: str
    loss: StochasticLoss = field(repr=False)
    symmetry: Symmetry = field(default=NONE, repr=False)
    start_scale: float = 1.0
    tests: Mapping[str, StochasticLoss] = field(default_factory=dict, repr=False)


def subject_of(settings: StudySettings, code: Path | None) -> tuple[Subject, StudySettings]:
    """The subject that `settings` name, and the settings with its defaults filled in.

    Raises
    ------
    InputError
        No or unknown problem, a loss without ``--code``, bad data, or a gallery problem that is
        not gradient descent on a loss.
    """
    if settings.loss is not None:
        return _own(settings, code), settings
    require(
        settings.problem is not None,
        "problem",
        None,
        "settings must name a problem of the gallery, or a loss of your own",
    )
    found = problem(str(settings.problem))
    filled = with_defaults(settings, found.settings)
    subject = Subject(
        found.name, found.summary, found.loss, found.symmetry, found.start_scale, found.tests
    )
    return subject, filled


def _own(settings: StudySettings, code: Path | None) -> Subject:
    require(
        code is not None,
        "loss",
        settings.loss,
        "is a function of your own: name its Python file with --code FILE.py",
    )
    assert code is not None
    # settings are checked: a loss comes with dim and data
    assert settings.dim is not None
    assert settings.data is not None
    space = load_code(code)
    function = _named(space, str(settings.loss), code, "loss")
    symmetry: Any = NONE
    if settings.symmetry is not None:
        symmetry = _named(space, settings.symmetry, code, "symmetry")
        require(
            isinstance(symmetry, Symmetry),
            "symmetry",
            settings.symmetry,
            "must be a batchwell.Symmetry",
        )
    loss = finite_sum(function, load_data(settings.data), settings.dim, str(settings.loss))
    return Subject(str(settings.loss), settings.title or str(settings.loss), loss, symmetry)


def _named(space: Mapping[str, Any], name: str, code: Path, key: str) -> Any:
    if name not in space:
        raise InputError(key, name, f"no such name in {code}")
    return space[name]


def load_code(path: Path) -> dict[str, Any]:
    """Names defined by the user's Python file (which is executed).

    Raises
    ------
    InputError
        No such file, or an error while it runs (its line and text).
    """
    require(path.is_file(), "--code", str(path), "no such Python file")
    spec = importlib.util.spec_from_file_location("batchwell_user_code", path)
    if spec is None or spec.loader is None:
        raise InputError("--code", str(path), "must be a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        line = _line_in(error, path)
        raise InputError("--code", f"{path}{line}", f"{type(error).__name__}: {error}") from error
    return vars(module)


def _line_in(error: BaseException, path: Path) -> str:
    trace, line = error.__traceback__, getattr(error, "lineno", None)
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f", line {line}" if line else ""


def load_data(settings: DataSettings) -> Any:
    """Examples from a CSV, Parquet or NPZ file.

    CSV and Parquet: (features (n, k), target (n,)) or features alone. NPZ: a dict of all arrays, or
    with `target` the pair (features, target), features being the only other array or the one named.

    Raises
    ------
    InputError
        No such file, an unknown kind, a missing column, or a value that is no number.
    """
    path = Path(settings.file)
    require(path.is_file(), "data.file", settings.file, "no such data file")
    kind = path.suffix.lower()
    require(
        kind in (".csv", ".parquet", ".npz"),
        "data.file",
        settings.file,
        "must end in .csv, .parquet or .npz",
    )
    data = _npz(path, settings) if kind == ".npz" else _frame(path, kind, settings)
    return _standardized(data) if settings.standardize else data


def _frame(path: Path, kind: str, settings: DataSettings) -> Any:
    import pandas as pd

    try:
        frame = pd.read_csv(path) if kind == ".csv" else pd.read_parquet(path)
    except (ValueError, OSError) as error:
        raise InputError("data.file", str(path), f"cannot be read: {error}") from None
    columns = [str(c) for c in frame.columns]
    frame.columns = pd.Index(columns)
    target = settings.target
    wanted = settings.features or [c for c in columns if c != target]
    for key, name in [("data.target", target), *(("data.features", w) for w in wanted)]:
        if name is not None and name not in columns:
            raise InputError(key, name, "no such column; columns: " + ", ".join(columns[:20]))
    for name in [*wanted, *([target] if target is not None else [])]:
        if frame[name].dtype.kind not in "biuf":
            raise InputError("data.file", f"{path}, column {name}", "must hold numbers only")
    features = frame[wanted].to_numpy(dtype=np.float64)
    return features if target is None else (features, frame[target].to_numpy(dtype=np.float64))


def _npz(path: Path, settings: DataSettings) -> Any:
    try:
        with open(path, "rb") as stream:
            if stream.read(2) not in (b"PK", b"\x93N"):
                raise ValueError("it is no NPZ file; write one with numpy.savez")
            stream.seek(0)
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds one bare array (numpy.save); use numpy.savez with names")
            with archive:
                arrays = {name: archive[name] for name in archive.files}
    # Damage shows as any of these, by where in the file it lies.
    except (ValueError, OSError, EOFError, NotImplementedError, BadZipFile, zlib.error) as error:
        raise InputError("data.file", str(path), f"cannot be read: {error}") from None
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
            raise InputError("data.file", f"{path}, array {name}", "must hold numbers only")
    if settings.target is None:
        return arrays
    names = settings.features or [n for n in arrays if n != settings.target]
    for key, name in [("data.target", settings.target), *(("data.features", n) for n in names)]:
        require(name in arrays, key, name, "no such array; arrays: " + ", ".join(arrays))
    require(len(names) == 1, "data.features", names, "must name one array of an .npz file")
    return arrays[names[0]], arrays[settings.target]


def _standardized(data: Any) -> Any:
    if isinstance(data, dict):
        raise InputError("data.standardize", True, "needs a target: a dict of arrays is kept as is")
    features = data[0] if isinstance(data, tuple) else data
    require(features.ndim == 2, "data.standardize", True, "needs features of shape (n, k)")
    spread = features.std(axis=0)
    flat = np.flatnonzero(spread == 0)
    require(
        flat.size == 0, "data.standardize", True, f"feature {flat[:1]} is constant: leave it out"
    )
    scaled = (features - features.mean(axis=0)) / spread
    return (scaled, data[1]) if isinstance(data, tuple) else scaled
