"""How something that was given bad input ends: it runs, or it is refused in one line. Anything else is a fault.

Every case is counted by its kind and its end; with JDCL_LONG=1 and JDCL_BAD_INPUT_TABLE=FILE.md the counts are written
as a table.
"""

import collections
import contextlib
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from jdcl_jax.errors import UserError, exit_on_user_error

REPOSITORY = Path(__file__).parents[3]
DIGITS = str(REPOSITORY / "configs" / "digits.py")
LONG = bool(os.environ.get("JDCL_LONG"))
TABLE = os.environ.get("JDCL_BAD_INPUT_TABLE", "")

COUNTS: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
STARTED = time.monotonic()


def cases(short: int, long: int) -> Callable[[Any], Any]:
    """So many generated cases, the same ones each time, in the short and in the long form."""
    return hypothesis.settings(
        max_examples=long if LONG else short,
        derandomize=True,
        deadline=None,
        database=None,
        print_blob=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A new folder for one case."""
    path = Path(tempfile.mkdtemp(prefix="jdcl_bad_input_"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def fingerprint(path: Path) -> dict[str, str]:
    """Everything in a folder: relative path -> hash of the contents, or what a link points at."""
    found = {}
    for root, folders, files in os.walk(path):
        for name in [*folders, *files]:
            entry = Path(root, name)
            key = str(entry.relative_to(path))
            if entry.is_symlink():
                found[key] = f"link to {entry.readlink()}"
            elif entry.is_file():
                found[key] = hashlib.sha256(entry.read_bytes()).hexdigest()
            else:
                found[key] = "folder" if entry.is_dir() else "special"
    return found


def ends_well(kind: str, do: Callable[[], Any], *named: str) -> Any:
    """Calls `do`, which may be refused: with a `UserError` that makes one line and has one of `named` in it.

    Returns: what it returned, or the error.
    """
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            result = do()
        except UserError as error:
            result = error
    seen = [
        f"{w.filename}: {w.message}" for w in warned if not issubclass(w.category, DeprecationWarning | ResourceWarning)
    ]
    if isinstance(result, UserError):
        assert not seen, f"warnings beside a refusal: {seen}"
        line = line_of(result)
        assert not named or any(name in line for name in named), f"{line!r} names none of {named}"
        COUNTS[kind]["refused"] += 1
    else:
        ours = [one for one in seen if f"{os.sep}jdcl_jax{os.sep}" in one]
        assert not ours, f"warnings of our own: {ours}"
        COUNTS[kind]["ran"] += 1
    return result


def line_of(error: UserError) -> str:
    """What the command line makes of an error, checked."""
    with contextlib.redirect_stderr(io.StringIO()) as stream, pytest.raises(SystemExit) as end, exit_on_user_error():
        raise error
    said = stream.getvalue()
    check_refusal(end.value.code, "", said)
    return said


def check_refusal(code: Any, out: str, err: str) -> None:
    """Exit code 2 and one line that begins with "error: " and says more than that."""
    assert code == 2, (code, err)
    assert out == ""
    assert err.startswith("error: ")
    assert len(err) > 20
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1, err
    assert "Traceback" not in err
    assert err[:-1].isprintable(), f"the line holds what a terminal may obey: {err!r}"


@dataclass(frozen=True)
class Ending:
    """What a command line left behind."""

    code: int
    out: str
    err: str


FORKING = """
import faulthandler, json, os, resource, signal, sys, traceback
sys.path.insert(0, {tests!r})
import jax, orbax.checkpoint, tensorflow_datasets
from absl import app
import small_runs
from jdcl_jax import figures, fisher, main, pitfalls, report, sample, study

small_runs.quick(setattr)
modules = dict(main=main, sample=sample, report=report, study=study, fisher=fisher, figures=figures, pitfalls=pitfalls)
for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
        os.chdir(request["folder"])
        name, *arguments = request["arguments"]
        sys.argv[:] = [f"{{name}}.py", *arguments]
        code = 0
        try:
            if name == "main":
                app.run(main.main, flags_parser=main.flags_parser)
            else:
                modules[name].main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    read = lambda name: open(name, errors="backslashreplace", newline="").read()
    print(json.dumps(dict(code=code, out=read("out"), err=read("err"))), flush=True)
"""


class CommandLines:
    """A process that has imported every program and forks itself for each command line, with the small network."""

    def __init__(self, place: Path):
        place.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "XDG_CACHE_HOME": str(place / "cache")}
        environment.pop("PYTHONWARNINGS", None)
        self._process = subprocess.Popen(
            [sys.executable, "-c", FORKING.format(tests=str(REPOSITORY / "tests"))],
            cwd=place,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __call__(self, where: Path, *arguments: str) -> Ending:
        """How `python -m jdcl_jax.ARGUMENTS[0] ...` ends in the folder `where`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"folder": str(where), "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        return Ending(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """Ends the process."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()


def check_ending(kind: str, ending: Ending, *named: str) -> bool:
    """Whether the command ran; otherwise it must have been refused in one line that has one of `named` in it."""
    assert "Traceback" not in ending.err, ending.err
    if ending.code == 0:
        COUNTS[kind]["ran"] += 1
        return True
    check_refusal(ending.code, ending.out, ending.err)
    assert not named or any(name in ending.err for name in named), f"{ending.err!r} names none of {named}"
    COUNTS[kind]["refused"] += 1
    return False


def table() -> str:
    """The counts as Markdown."""
    lines = ["| kind of input | cases | ran | refused |", "|---|---:|---:|---:|"]
    total: collections.Counter[str] = collections.Counter()
    for kind in sorted(COUNTS):
        count = COUNTS[kind]
        total += count
        lines.append(f"| {kind} | {count.total()} | {count['ran']} | {count['refused']} |")
    lines.append(f"| all | {total.total()} | {total['ran']} | {total['refused']} |")
    used = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = sum(one.ru_utime + one.ru_stime for one in used)
    lines.append(f"\nWall time {time.monotonic() - STARTED:.0f} s, processor time {seconds:.0f} s.")
    return "\n".join(lines) + "\n"
