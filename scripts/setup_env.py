"""Make .venv fit for this checkout, at once if it already is, then run a command in it.

    python3 scripts/setup_env.py [--extra dev] [-- command ...]

Standard library only. A stamp in .venv holds a hash of pyproject.toml, constraints.txt, the
Python version, the place of the checkout and the extras; it is removed before anything is
changed and written last, so an interrupted set-up is never taken for a finished one. An
environment without a stamp is built afresh; one with an outdated stamp is brought up to date.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - this line is what an older Python gets to see
    found = ".".join(map(str, sys.version_info[:3]))
    sys.exit(
        "setup: Batchwell needs Python 3.11 or newer, this is "
        + found
        + "; name another one, for example: make demo PYTHON=python3.13"
    )

import argparse
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / "bin"
STAMP = VENV / "setup-stamp.json"
LOG = VENV / "setup.log"
LOCK = ROOT / ".venv.lock"

PYTHON = "{}.{}.{}".format(*sys.version_info)
OFFLINE = (
    "ConnectTimeout",
    "Connection refused",
    "Could not resolve host",
    "Failed to establish a new connection",
    "Name or service not known",
    "Network is unreachable",
    "NewConnectionError",
    "Temporary failure in name resolution",
    "dns error",
    "error sending request",
    "tcp connect error",
)


class SetupError(Exception):
    """Something that the user has to know, in one line."""


def digest(*parts: bytes | str) -> str:
    """Hash of the parts, each set off from the next."""
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return total.hexdigest()


def fingerprint(extras: Iterable[str]) -> str:
    """Hash of everything that decides what belongs into the environment."""
    files = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    return digest(*files, PYTHON, str(ROOT), *sorted(extras))


def read_stamp() -> dict:
    """Last finished set-up; empty when there is none."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if (BIN / "python").exists() else {}


def write_stamp(stamp: dict) -> None:
    """Put the stamp in its place in one step."""
    new = STAMP.with_suffix(".new")
    with new.open("w") as file:
        json.dump(stamp, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(STAMP)


def is_ready(wanted: set[str]) -> bool:
    """Whether the environment holds at least the wanted extras, from the files of today."""
    stamp = read_stamp()
    present = set(stamp.get("extras", ()))
    return wanted <= present and stamp.get("fingerprint") == fingerprint(present)


@contextmanager
def locked() -> Iterator[int]:
    """Let one set-up at a time touch .venv."""
    import fcntl

    with LOCK.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("setup: waiting for another set-up of this checkout", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def reason(output: str) -> str:
    """The one line of an installer's output that says why it failed."""
    if "No space left on device" in output:
        return "the disk is full"
    if any(sign in output for sign in OFFLINE):
        return "the package index cannot be reached (is this machine online?)"
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
    errors = [line for line in lines if line.lower().startswith(("error", "×"))]
    return (errors[0] if errors else lines[-1])[:200]


def call(command: list[str], lock: int) -> None:
    """Run one step silently; the lock stays taken as long as its process lives."""
    import subprocess

    done = subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=[lock],
    )
    if done.returncode:
        with suppress(OSError):
            LOG.write_text(done.stdout)
        where = f" (all of it: {LOG.relative_to(ROOT)})" if LOG.exists() else ""
        raise SetupError(reason(done.stdout) + where)


def build(wanted: set[str], lock: int) -> None:
    """Make or update the environment and stamp it."""
    stamp = read_stamp()
    extras = sorted(wanted | set(stamp.get("extras", ())))
    # uv looks for torch past the index that pip is set to, and fetches gigabytes of CUDA.
    uv = None if {"torch", "trainers"} & set(extras) else shutil.which("uv")
    tool = "uv" if uv else "pip"
    home = digest(PYTHON, str(ROOT), tool)
    reusable = stamp.get("home") == home
    target = f".[{','.join(extras)}]" if extras else "."

    verb = "updating" if reusable else "making"
    print(f"setup: {verb} .venv with {tool} on Python {PYTHON} (up to a minute)", flush=True)
    start = time.monotonic()
    STAMP.unlink(missing_ok=True)
    if not reusable:
        if VENV.exists():
            shutil.rmtree(VENV)
        python = getattr(sys, "_base_executable", None) or sys.executable
        if uv:
            call([uv, "venv", "--quiet", "--python", python, str(VENV)], lock)
        else:
            from importlib.util import find_spec

            if not (find_spec("venv") and find_spec("ensurepip")):
                raise SetupError(
                    "this Python cannot make environments (no ensurepip); install the system's "
                    f"package for it, for example python{PYTHON.rsplit('.', 1)[0]}-venv, or uv"
                )
            call([python, "-m", "venv", str(VENV)], lock)
    if uv:
        install = [uv, "pip", "install", "--quiet", "--python", str(BIN / "python")]
    else:
        # -I: a PYTHONPATH must not make pip believe that a package is already here.
        install = [str(BIN / "python"), "-I", "-m", "pip", "install", "--no-input"]
        install += ["--quiet", "--disable-pip-version-check", "--no-compile"]
    call([*install, "--constraint", "constraints.txt", "--editable", target], lock)
    write_stamp({"fingerprint": fingerprint(extras), "home": home, "extras": extras})
    print(f"setup: done in {time.monotonic() - start:.0f} s", flush=True)


def main() -> None:
    """Set up, then become the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--extra", action="append", default=[], help="extra of pyproject.toml")
    parser.add_argument("command", nargs="*", help="what to run, after --")
    options = parser.parse_args()
    wanted = set(options.extra)
    try:
        if os.name != "posix":
            raise SetupError("only POSIX systems are supported; on Windows use WSL")
        if not is_ready(wanted):
            with locked() as lock:
                if not is_ready(wanted):
                    build(wanted, lock)
        if options.command:
            os.environ["VIRTUAL_ENV"] = str(VENV)
            os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
            os.environ.pop("PYTHONHOME", None)
            os.execvp(options.command[0], options.command)
    except (SetupError, OSError) as error:
        sys.exit(f"setup: {error}")
    except KeyboardInterrupt:
        print("setup: interrupted; the next call starts afresh", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
