"""Reading a workdir back: results.json, metrics.jsonl and the sample grids."""

import contextlib
import functools
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from jdcl_jax.errors import UserError
from jdcl_jax.paths import named_path

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
BROKEN = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, jinja2.TemplateError)
"""What reading a tree raises that somebody has changed by hand."""

MACHINE_KEYS = ("data.dir", "evaluation.cache_dir")
"""Keys of a config that say where things lie on a machine; a run may be resumed with other values."""

# The order in which a person reads them; others follow in the order of the file.
SUMMARIES = ("last_union", "average", "incremental", "forgetting_max", "bwt", "rise")


@dataclass(frozen=True)
class Summary:
    """One number that stands for a matrix of scores, and the formula that gave it."""

    value: float
    formula: str


@dataclass(frozen=True)
class Score:
    """One score of a run of T tasks; NaN where it is unknown.

    `matrix` is float64 [T, T]: row i, after task i, column j, on task j. `union` is float64 [T]: on
    all tasks seen.
    """

    name: str
    lower_is_better: bool
    description: str
    matrix: np.ndarray
    union: np.ndarray
    num_generated: Mapping[str, Any]
    num_real: Mapping[str, Any]
    summary: Mapping[str, Summary]

    @property
    def last_row(self) -> int:
        """Index of the last task after which anything is known; -1 if nothing is."""
        known = np.isfinite(self.matrix).any(axis=1) | np.isfinite(self.union)
        return int(np.flatnonzero(known)[-1]) if known.any() else -1

    @property
    def arrow(self) -> str:
        """The direction in which the score is better."""
        return "↓" if self.lower_is_better else "↑"


@dataclass(frozen=True)
class Run:
    """A workdir with a readable results.json."""

    path: Path
    results: Mapping[str, Any]

    @functools.cached_property
    def scores(self) -> dict[str, Score]:
        return parse_scores(self.results)

    @property
    def name(self) -> str:
        """The folder as the user wrote it."""
        return str(self.path)

    @property
    def method(self) -> str:
        return str(self.results["method"])

    @property
    def dataset(self) -> str:
        return str(self.results["dataset"])

    @property
    def seed(self) -> Any:
        return self.results["seed"]

    @property
    def finished(self) -> bool:
        return self.results["status"] == "finished"

    @property
    def num_tasks(self) -> int:
        return len(self.results["tasks"])

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl in order; those that are not whole are passed over."""
        return read_metrics(self.path / "metrics.jsonl")

    def samples(self, folder: str = "samples") -> dict[str, bytes]:
        """The PNG files of a folder by their stems (task_01, ...), in order of number."""
        found = {file.stem: file.read_bytes() for file in (self.path / folder).glob("*.png") if file.is_file()}
        return {name: found[name] for name in sorted(found, key=_by_number) if found[name].startswith(PNG_SIGNATURE)}


@dataclass(frozen=True)
class Labelled(Run):
    """A run whose method is called `label`, so that its options tell it from others of that method."""

    label: str = ""

    @property
    def method(self) -> str:
        return self.label


def _by_number(name: str) -> list[str | int]:
    """A key that puts task_2 before task_10: text and numbers by turns, text first."""
    pieces = re.split(r"([0-9]+)", name)
    return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)]


def load_run(workdir: str | os.PathLike[str]) -> Run:
    """Reads `results.json` of a workdir.

    Raises:
      UserError: the folder is missing, holds no results.json, or one that is broken; names the
        folder.
    """
    folder = named_path(workdir, "the workdir", home=False)
    path = folder / "results.json"
    if not folder.is_dir():
        raise UserError(f"{workdir} is not a folder; give the workdir of a run, e.g. runs/digits-gd-0")
    if not path.is_file():
        raise UserError(f"{workdir} holds no results.json, so it is no run; give the workdir of a run")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        _check(results)
        run = Run(path=folder, results=results)
        if not isinstance(run.scores, dict):
            raise TypeError("no scores")
    except OSError as error:
        raise UserError(f"cannot read results.json of {workdir}: {error.strerror}") from error
    except BROKEN as error:
        raise broken(str(workdir), error) from error
    return run


def broken(whose: str, error: Exception) -> UserError:
    """What to say where a results.json has not the form that it promises."""
    reason = f"no {error}" if isinstance(error, KeyError) else error or type(error).__name__
    return UserError(f"results.json of {whose} is broken ({str(reason)[:200]}); restore it, or run again")


@contextlib.contextmanager
def whole(*runs: Run) -> Iterator[None]:
    """Around what shows runs: entries of their results that have another form than was written are a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except BROKEN as error:
        raise broken(" or ".join(run.name for run in runs), error) from error


def _check(results: Any) -> None:
    """Raises unless `results` has what every page needs."""
    if not isinstance(results, dict):
        raise ValueError("it holds no object")
    if results["format"] != 1:
        raise ValueError(f"its format is {results['format']!r}, this version reads 1")
    for name in ("status", "method", "dataset", "seed"):
        if not isinstance(results[name], str | int):
            raise ValueError(f"{name} is {results[name]!r}")
    if not isinstance(results["tasks"], list) or not results["tasks"]:
        raise ValueError("it has no tasks")
    for task in results["tasks"]:
        if not isinstance(task["task"], int) or not isinstance(task["names"], list):
            raise ValueError("a task has no number or no names")
    for name, kind in {
        "scores": dict,
        "cost": list,
        "totals": dict,
        "versions": dict,
        "hardware": dict,
        "config": dict,
    }.items():
        if not isinstance(results.get(name) or kind(), kind):
            raise ValueError(f"{name} is not a {kind.__name__}")
    for row in results.get("cost") or []:
        if row["task"] is None or row["phase"] is None:
            raise ValueError("a cost has no task or no phase")


def parse_scores(results: Mapping[str, Any]) -> dict[str, Score]:
    """The scores of a results.json (or of the same tree before it was written) by name.

    Raises:
      KeyError, TypeError, ValueError: a score has not the form that results.json promises.
    """
    num_tasks = len(results["tasks"])
    return {name: _parse_score(name, score, num_tasks) for name, score in results["scores"].items()}


def _parse_score(name: str, score: Mapping[str, Any], num_tasks: int) -> Score:
    matrix, union = floats(score["matrix"]), floats(score["union"])
    if matrix.shape != (num_tasks, num_tasks) or union.shape != (num_tasks,):
        raise ValueError(f"{name} has a matrix {matrix.shape} and a union {union.shape} for {num_tasks} tasks")
    summary = {
        key: Summary(value=float(floats(entry["value"])), formula=str(entry.get("formula", "")))
        for key, entry in (score.get("summary") or {}).items()
        if entry is not None
    }
    ordered = [key for key in SUMMARIES if key in summary] + [key for key in summary if key not in SUMMARIES]
    return Score(
        name=str(name),
        lower_is_better=bool(score["lower_is_better"]),
        description=str(score.get("description", "")),
        matrix=matrix,
        union=union,
        num_generated=score.get("num_generated") or {},
        num_real=score.get("num_real") or {},
        summary={key: summary[key] for key in ordered},
    )


def floats(tree: Any) -> np.ndarray:
    """Nested lists of numbers and nulls as float64, NaN for null."""
    return np.asarray(tree, dtype=np.float64)  # NumPy reads None as NaN


def summary_names(scores: Mapping[str, Score]) -> list[str]:
    """The names of all summaries of `scores`, each once, in the order of reading."""
    names = {key: None for score in scores.values() for key in score.summary}
    return [key for key in SUMMARIES if key in names] + [key for key in names if key not in SUMMARIES]


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl that are whole and have a step; [] if there is no file."""
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows
