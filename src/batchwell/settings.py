"""Settings of a study: a TOML file, checked key by key before any work starts."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import InputError, require

BatchSize = Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSettings(_Strict):
    """Where the examples of a user's loss come from."""

    file: str
    target: str | None = None
    features: list[str] | None = None
    standardize: Annotated[bool, Field(strict=True)] = False


class StudySettings(_Strict):
    """Everything a study depends on, besides the code of the loss.

    Either `problem` (a name in the gallery) or `loss` (a function in the file given with
    ``--code``) with `dim` and `data`.
    """

    problem: str | None = None
    loss: str | None = None
    dim: Count | None = None
    data: DataSettings | None = None
    symmetry: str | None = None

    title: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**64, strict=True)] = 0
    sampling: Literal["with_replacement", "without_replacement", "reshuffle"] = "with_replacement"
    momentum: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.0

    starts: Count = 64
    start_scale: Rate | None = None
    minima: list[str] = ["flat", "middle", "sharp"]

    learning_rates: Annotated[list[Rate], Field(min_length=1)] = [0.1]
    batch_sizes: Annotated[list[BatchSize], Field(min_length=1)] = [1, 2, 4, 8, 16, 32]
    diffusion_orders: list[Literal[1, 2]] = [1, 2]
    paths: Annotated[int, Field(ge=2, strict=True)] = 48
    horizon: Count = 20_000
    diffusion_paths: Annotated[int, Field(ge=2, strict=True)] = 32
    diffusion_horizon: Count | None = None
    substeps: Count = 4
    looks: Count = 100

    examples: Count = 40_000
    final_paths: Annotated[int, Field(ge=2, strict=True)] = 64
    growing: list[Annotated[list[BatchSize], Field(min_length=2)]] | None = None
    network: Annotated[bool, Field(strict=True)] = False
    workers: Count | None = None

    @model_validator(mode="after")
    def _one_problem(self) -> StudySettings:
        if self.problem is not None and self.loss is not None:
            raise ValueError("problem and loss exclude each other: name one of the two")
        if self.loss is not None and (self.dim is None or self.data is None):
            raise ValueError("a loss of your own needs dim and [data] as well")
        for key in ("learning_rates", "batch_sizes", "diffusion_orders", "minima"):
            values = getattr(self, key)
            if len(set(values)) != len(values):
                raise ValueError(f"{key} = {values}: must not repeat a value")
        return self


def read_settings(path: str | Path) -> StudySettings:
    """Settings from a TOML file; paths in it are relative to its folder.

    Raises
    ------
    InputError
        No such file, not TOML, or a key that is unknown, missing or of the wrong type.
    """
    file = Path(path)
    require(file.is_file(), "study", str(path), "no such settings file (a .toml) or gallery name")
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError("settings", str(path), f"is not valid TOML: {error}") from None
    settings = make_settings(table)
    if settings.data is not None and not Path(settings.data.file).is_absolute():
        here = file.parent / settings.data.file
        return settings.model_copy(
            update={"data": settings.data.model_copy(update={"file": str(here)})}
        )
    return settings


def make_settings(table: Mapping[str, Any]) -> StudySettings:
    """Checked settings from a mapping.

    Raises
    ------
    InputError
        Naming the first bad key, its value and what is allowed.

    Examples
    --------
    >>> make_settings({"problem": "double-well", "learning_rates": [0.2]}).paths
    48
    """
    try:
        return StudySettings(**table)
    except ValidationError as error:
        raise _first_problem(error, table) from None
    except TypeError as error:
        raise InputError("settings", dict(table), str(error)) from None


def _first_problem(error: ValidationError, table: Mapping[str, Any]) -> InputError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "settings"
    if first["type"] == "extra_forbidden":
        owner = DataSettings if key.startswith("data.") else StudySettings
        return InputError(key, first["input"], "unknown key; known: " + _names(owner))
    text = str(first["msg"]).removeprefix("Value error, ")
    if not first["loc"]:
        return InputError("settings", table.get("problem") or table.get("loss"), text)
    return InputError(key, first["input"], text[0].lower() + text[1:])


def _names(model: type[BaseModel]) -> str:
    return ", ".join(sorted(model.model_fields))


def with_defaults(settings: StudySettings, defaults: Mapping[str, Any]) -> StudySettings:
    """`settings` with a problem's own `defaults` where the user said nothing."""
    unsaid = {k: v for k, v in defaults.items() if k not in settings.model_fields_set}
    return make_settings({**settings.model_dump(exclude_unset=True), **unsaid})


TEMPLATE = """\
# A study of your own loss. Run it with:
#   batchwell study {name} --code my_loss.py
# my_loss.py is Python that you wrote; it runs only because --code names it.

title = "My loss"
loss = "loss"            # the function in the --code file: loss(x, z), one example, in jax.numpy
dim = 3                  # length of the parameter vector x
# symmetry = "symmetry"  # a batchwell.Symmetry in the same file, if units may swap places
# problem = "double-well"  # instead of loss, dim and data: a problem of the gallery

seed = 0
sampling = "with_replacement"   # or "without_replacement", "reshuffle"
momentum = 0.0

# 1. Minima: gradient flow from so many random starts (normal, of this standard deviation).
starts = 64
start_scale = 1.0
minima = ["flat", "middle", "sharp"]   # whose escapes to study; labels such as "A" work too

# 2. Escapes: how many SGD steps until the basin is left; likewise for the diffusions.
learning_rates = [0.1]
batch_sizes = [1, 2, 4, 8, 16, 32]
diffusion_orders = [1, 2]
paths = 48
horizon = 20000          # SGD steps watched; a path still inside is counted as censored
diffusion_paths = 32
substeps = 4             # steps of the diffusion's scheme per SGD step
looks = 100              # checks per mean exit time whether a path has left its basin

# 3. Final basins after so many examples, at constant and at growing batch size.
examples = 40000
final_paths = 64
growing = [[2, 8, 32]]

# 4. The network of basins: passes between minima, rates of jumps, the best growth of the batch.
network = false          # true costs about half a minute; `batchwell landscape` spends more on it

[data]                   # one row per example
file = "my_data.csv"     # .csv, .parquet or .npz
target = "label"         # z = (features, target); without it z = features
# features = ["a", "b"]  # default: every other column
standardize = true       # features to mean 0 and variance 1
"""
