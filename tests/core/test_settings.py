"""Settings files and data files: every bad one is a line that names the key. Nothing is random."""

import io
import os
import pickle
import tomllib
import zipfile

import numpy as np
import pandas as pd
import pytest

from batchwell.errors import InputError
from batchwell.settings import (
    TEMPLATE,
    DataSettings,
    StudySettings,
    make_settings,
    read_settings,
    with_defaults,
)
from batchwell.sources import load_code, load_data, subject_of

OWN = {"loss": "loss", "dim": 2, "data": {"file": "a.csv"}}


def refused(call, key, *words):
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert caught.value.key == key, text
    assert text.startswith(f"{key} = ")
    assert "\n" not in text
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("table", "key", "word"),
    [
        ({"batchsizes": [1]}, "batchsizes", "unknown key; known: batch_sizes"),
        ({**OWN, "data": {"file": "a", "sep": ";"}}, "data.sep", "unknown key; known: features"),
        ({"learning_rates": [0.1, -0.2]}, "learning_rates.1", "greater than 0"),
        ({"learning_rates": [0]}, "learning_rates.0", "greater than 0"),
        ({"learning_rates": [float("nan")]}, "learning_rates.0", ""),
        ({"learning_rates": [float("inf")]}, "learning_rates.0", "finite"),
        ({"learning_rates": ["0.1"]}, "learning_rates.0", "valid number"),
        ({"learning_rates": [True]}, "learning_rates.0", "valid number"),
        ({"learning_rates": 0.1}, "learning_rates", "list"),
        ({"learning_rates": []}, "learning_rates", "at least 1"),
        ({"batch_sizes": [0]}, "batch_sizes.0", "greater than or equal to 1"),
        ({"batch_sizes": [2.0]}, "batch_sizes.0", "integer"),
        ({"batch_sizes": [True]}, "batch_sizes.0", "integer"),
        ({"batch_sizes": ["2"]}, "batch_sizes.0", "integer"),
        ({"batch_sizes": [2**31]}, "batch_sizes.0", "less than or equal"),
        ({"momentum": 1.0}, "momentum", "less than 1"),
        ({"momentum": "0.5"}, "momentum", "valid number"),
        ({"momentum": float("nan")}, "momentum", ""),
        ({"sampling": "sometimes"}, "sampling", "'with_replacement', 'without_replacement'"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"seed": 2**64}, "seed", "less than"),
        ({"seed": 0.0}, "seed", "integer"),
        ({"paths": 1}, "paths", "2"),
        ({"diffusion_orders": [3]}, "diffusion_orders.0", "1 or 2"),
        ({"growing": [[2]]}, "growing.0", "at least 2"),
        ({"start_scale": 0.0}, "start_scale", "greater than 0"),
        ({"title": 3}, "title", "string"),
        ({"problem": ["a"]}, "problem", "string"),
        ({"data": "a.csv"}, "data", "dictionary"),
        ({**OWN, "data": {"file": "a", "standardize": "yes"}}, "data.standardize", "boolean"),
        ({**OWN, "data": {}}, "data.file", "required"),
        ({"problem": "a", **OWN}, "settings", "exclude each other"),
        ({"loss": "loss"}, "settings", "needs dim and [data]"),
        ({"batch_sizes": [2, 2]}, "settings", "must not repeat"),
    ],
)
def test_bad_settings_are_refused(table, key, word):
    refused(lambda: make_settings(table), key, word)


def test_settings_files_that_are_none(tmp_path):
    refused(lambda: read_settings(tmp_path / "no.toml"), "study", "no such settings file")
    refused(lambda: read_settings(tmp_path), "study", "no such settings file")
    torn = tmp_path / "torn.toml"
    torn.write_text("paths = [1 2]\n")
    refused(lambda: read_settings(torn), "settings", "not valid TOML", "line")
    torn.write_bytes(b"\xff\xfe\x00")
    refused(lambda: read_settings(torn), "settings", "not valid TOML")


def test_the_template_is_valid_and_keeps_the_defaults(tmp_path):
    table = tomllib.loads(TEMPLATE.format(name="x.toml"))
    settings = make_settings(table)
    plain = make_settings(OWN)
    for key in ("seed", "sampling", "momentum", "starts", "minima", "learning_rates", "batch_sizes",
                "diffusion_orders", "paths", "horizon", "diffusion_paths", "substeps", "examples",
                "final_paths"):  # fmt: skip
        assert getattr(settings, key) == getattr(plain, key), key


def test_data_files_are_found_beside_the_settings(tmp_path):
    file = tmp_path / "s.toml"
    file.write_text('loss = "f"\ndim = 2\n[data]\nfile = "d.csv"\n')
    settings = read_settings(file)
    assert settings.data is not None
    assert settings.data.file == str(tmp_path / "d.csv")


def test_defaults_yield_to_what_was_said():
    said = make_settings({"paths": 10, "learning_rates": [0.3]})
    out = with_defaults(said, {"paths": 99, "starts": 7})
    assert (out.paths, out.starts, out.learning_rates) == (10, 7, [0.3])


# Data files ---------------------------------------------------------------------------------------

TABLE = pd.DataFrame({"a": [1.0, 2.0, 4.0], "b": [3, 1, 2], "y": [0, 1, 1]})


def data(file, **more):
    return load_data(DataSettings(file=str(file), **more))


@pytest.fixture
def files(tmp_path):
    TABLE.to_csv(tmp_path / "t.csv", index=False)
    TABLE.to_parquet(tmp_path / "t.parquet")
    np.savez(tmp_path / "t.npz", x=TABLE[["a", "b"]].to_numpy(), y=TABLE["y"].to_numpy())
    return tmp_path


@pytest.mark.parametrize("kind", ["csv", "parquet", "npz"])
def test_three_kinds_of_files_hold_the_same_data(files, kind):
    features, target = data(files / f"t.{kind}", target="y")
    np.testing.assert_array_equal(features, TABLE[["a", "b"]])
    np.testing.assert_array_equal(target, TABLE["y"])
    scaled, same = data(files / f"t.{kind}", target="y", standardize=True)
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-15)
    np.testing.assert_allclose(scaled.std(axis=0), 1)
    np.testing.assert_array_equal(same, target)


def test_columns_are_chosen_by_name(files):
    features, _ = data(files / "t.csv", target="y", features=["b"])
    np.testing.assert_array_equal(features, TABLE[["b"]])
    assert data(files / "t.csv").shape == (3, 3)
    assert set(data(files / "t.npz")) == {"x", "y"}


def test_bad_data_files_are_refused(files):
    refused(lambda: data(files / "no.csv"), "data.file", "no such data file")
    refused(lambda: data(files), "data.file", "no such data file")
    (files / "t.pkl").write_bytes(b"")
    refused(lambda: data(files / "t.pkl"), "data.file", ".csv, .parquet or .npz")
    for kind in ("csv", "parquet", "npz"):
        refused(
            lambda k=kind: data(files / f"t.{k}", target="z"),
            "data.target",
            "a" if kind != "npz" else "x",
        )
        refused(
            lambda k=kind: data(files / f"t.{k}", target="y", features=["q"]),
            "data.features",
            "no such",
        )
    (files / "w.csv").write_text("a,b\n1,two\n")
    refused(lambda: data(files / "w.csv"), "data.file", "column b", "numbers only")
    (files / "f.csv").write_text("a,b\n1,2\n1,3\n")
    refused(lambda: data(files / "f.csv", standardize=True), "data.standardize", "[0]", "constant")
    np.savez(files / "two.npz", x=np.zeros((2, 2)), u=np.zeros(2), y=np.zeros(2))
    refused(lambda: data(files / "two.npz", target="y"), "data.features", "one array")
    refused(lambda: data(files / "two.npz", standardize=True), "data.standardize", "target")


@pytest.mark.parametrize("kind", ["csv", "parquet", "npz"])
@pytest.mark.parametrize("damage", ["empty", "noise", "cut", "flipped"])
def test_damaged_files_are_refused(files, kind, damage):
    file = files / f"t.{kind}"
    whole = file.read_bytes()
    if (kind == "csv" and damage in ("cut", "flipped")) or (kind, damage) == ("parquet", "flipped"):
        damage = "noise"  # any text is a table, and a Parquet file need not have checksums
    middle = len(whole) // 3
    file.write_bytes(
        {
            "empty": b"",
            "noise": b"\x00\xff\xfe garbage \x80" * 5,
            "cut": whole[: len(whole) // 2],
            "flipped": whole[:middle] + b"\xa5" * 40 + whole[middle + 40 :],
        }[damage]
    )
    refused(lambda: data(file, target="y"), "data.file", "")


def test_a_lone_array_in_an_npz_is_refused(files):
    with open(files / "t.npz", "wb") as stream:
        np.save(stream, np.zeros(3))
    refused(lambda: data(files / "t.npz"), "data.file", "cannot be read")


def test_text_in_an_npz_is_refused(files):
    np.savez(files / "s.npz", x=np.array([["a", "b"]]), y=np.zeros(1))
    refused(lambda: data(files / "s.npz", target="y", standardize=True), "data.file", "numbers")


class Trap:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_data_files_never_execute_code(tmp_path):
    mark = tmp_path / "sprung"
    bomb = pickle.dumps(Trap(str(mark)))
    np.savez(tmp_path / "p.npz", x=np.array([Trap(str(mark))], dtype=object))
    refused(lambda: data(tmp_path / "p.npz"), "data.file", "cannot be read")
    for name in ("bare.npz", "bare.parquet", "bare.csv"):
        (tmp_path / name).write_bytes(bomb)
        refused(lambda n=name: data(tmp_path / n), "data.file")
    inside = io.BytesIO()
    np.lib.format.write_array(inside, np.array([Trap(str(mark))], dtype=object))
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as archive:
        archive.writestr("x.npy", inside.getvalue())
    refused(lambda: data(tmp_path / "z.npz", target="x"), "data.file")
    (tmp_path / "c.csv").write_text("a\n\"=cmd|calc\"\n\"__import__('os').mkdir('x')\"\n")
    refused(lambda: data(tmp_path / "c.csv"), "data.file", "numbers only")
    assert not mark.exists()
    # Control: the trap does spring when it is unpickled.
    pickle.loads(bomb)
    assert mark.exists()


# A loss of one's own ------------------------------------------------------------------------------


def own(files, text, **more):
    code = files / "mine.py"
    code.write_text(text)
    table = {
        "loss": "loss",
        "dim": 2,
        "data": {"file": str(files / "t.csv"), "target": "y"},
        **more,
    }
    return subject_of(StudySettings(**table), code)


GOOD = "import jax.numpy as jnp\ndef loss(x, z):\n    return (jnp.dot(x, z[0]) - z[1]) ** 2\n"


def test_ones_own_loss_is_loaded(files):
    subject, settings = own(files, GOOD, title="Mine")
    assert (subject.title, subject.loss.n, settings.title) == ("Mine", 3, "Mine")
    want = np.mean((TABLE["a"] + TABLE["b"] - TABLE["y"]) ** 2)
    assert float(subject.loss.mean(np.ones(2))) == pytest.approx(want)


def test_bad_code_is_refused_with_its_line(files):
    refused(lambda: own(files, "x = 1\n"), "loss", "no such name")
    refused(lambda: own(files, "x = 1\ny = 1 / 0\n"), "--code", "line 2", "ZeroDivisionError")
    refused(lambda: own(files, "def loss(:\n"), "--code", "line 1", "SyntaxError")
    refused(lambda: own(files, 'raise ValueError("two\\nlines")\n'), "--code", "two lines")
    refused(
        lambda: own(files, "import no_such_module_at_all\n"), "--code", "line 1", "no_such_module"
    )
    refused(lambda: own(files, "import sys\nsys.exit(3)\n"), "--code", "line 2", "SystemExit")
    refused(lambda: load_code(files / "absent.py"), "--code", "no such Python file")
    refused(lambda: load_code(files / "t.csv"), "--code", "Python file")
    refused(
        lambda: own(files, GOOD + "symmetry = 3\n", symmetry="symmetry"), "symmetry", "Symmetry"
    )
    refused(lambda: own(files, "loss = 3\n"), "loss", "")
    refused(lambda: own(files, "def loss(x, z):\n    return x\n"), "loss", "one real number")


def test_code_runs_only_when_it_is_named(files):
    settings = StudySettings(loss="loss", dim=2, data=DataSettings(file=str(files / "t.csv")))
    refused(lambda: subject_of(settings, None), "loss", "--code FILE.py")
    refused(lambda: subject_of(StudySettings(), None), "problem", "must name a problem")
    refused(lambda: subject_of(StudySettings(problem="no"), None), "problem", "double-well")
    refused(lambda: subject_of(StudySettings(problem="maier-stein"), None), "problem", "no loss")


def test_a_gallery_problem_brings_its_defaults():
    subject, settings = subject_of(StudySettings(problem="double-well", paths=5), None)
    assert (subject.name, settings.starts, settings.paths) == ("double-well", 16, 5)
