"""A study's runs, as its workdir holds them: study.json and a folder for each run."""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jdcl_jax.errors import UserError
from jdcl_jax.paths import named_path
from jdcl_jax.reporting import timesteps
from jdcl_jax.reporting.compare import Group
from jdcl_jax.reporting.runs import Labelled, Score, Summary, load_run, parse_scores

RECORD, FORMAT = "study.json", 1
STRUCTURE = "figures/structure.json"
"""What `jdcl_jax.fisher` has measured on one of the runs."""

SUMMARIES = {
    "last_union": "last union",
    "average": "average (AFQ)",
    "incremental": "incremental (AIQ)",
    "forgetting_max": "forgetting (max)",
    "rise": "rise (FR)",
}
"""The summaries that a study shows, and what they are called in its tables."""

SCORE_GROUPS = {
    "Accuracy of the network's own classifier": (
        "accuracy",
        "accuracy_by_class",
        "accuracy_masked",
        "accuracy_masked_by_class",
        "accuracy_raw",
        "accuracy_ema",
        "accuracy_validation",
    ),
    "Frechet distance": ("fid", "fd_classifier"),
    "Replay of old tasks": ("fd_replay", "label_accuracy_replay"),
    "Kernel distance": ("kid", "kd_classifier"),
    "Precision": ("precision_inception", "precision_classifier"),
    "Recall": ("recall_inception", "recall_classifier"),
    "Class histograms: KLD": ("kld", "kld_epsilon"),
    "Class histograms: ARD": ("ard",),
    "Error of the predicted noise": ("eps_mse",),
    "Bits per dimension": ("bpd_fixed_small", "bpd_fixed_large"),
    "Frozen features": ("linear_probe", "knn_probe"),
}


@dataclass(frozen=True)
class Member(Labelled):
    """A run of a study: its method is called as it was written on the command line, and it is named by its folder."""

    slug: str = ""

    @property
    def name(self) -> str:
        return self.path.name

    @functools.cached_property
    def scores(self) -> dict[str, Score]:
        return {name: _with_rise(score) for name, score in parse_scores(self.results).items()}

    @functools.cached_property
    def curves(self) -> list[dict[str, np.ndarray]]:
        return timesteps.load_curves(self.path)


def _with_rise(score: Score) -> Score:
    """Runs that are older than this summary have backward transfer, which is the same with its sign turned."""
    if "rise" in score.summary or "bwt" not in score.summary:
        return score
    rise = Summary(-score.summary["bwt"].value, "bwt with its sign turned: > 0 got worse")
    return replace(score, summary={**score.summary, "rise": rise})


@dataclass(frozen=True)
class Study:
    """What a study's workdir holds.

    Attributes:
      workdir: its folder.
      record: study.json.
      members: the runs that have results, method by method, seed by seed.
      missing: lines about those that have none.
    """

    workdir: Path
    record: Mapping[str, Any]
    members: tuple[Member, ...]
    missing: tuple[str, ...]

    @functools.cached_property
    def groups(self) -> dict[str, Group]:
        """The runs of each method."""
        runs: dict[str, list[Member]] = {}
        for member in self.members:
            runs.setdefault(member.label, []).append(member)
        return {label: Group(own[0].dataset, label, tuple(own)) for label, own in runs.items()}

    @functools.cached_property
    def scores(self) -> dict[str, Score]:
        """Every score that a run has, in the order of `SCORE_GROUPS`; the numbers in it are those of one run."""
        found: dict[str, Score] = {}
        for run in sorted(self.members, key=lambda run: not run.finished):
            found = {**run.scores, **found}
        known = [name for names in SCORE_GROUPS.values() for name in names]
        return {name: found[name] for name in [*known, *(n for n in found if n not in known)] if name in found}

    @functools.cached_property
    def structure(self) -> Mapping[str, Any] | None:
        """What the gradients of one run have in common; None if that was not measured."""
        try:
            found = json.loads((self.workdir / STRUCTURE).read_text(encoding="utf-8"))
            return {key: found[key] for key in ("workdir", "task", "images", "method", "dataset", "rows")}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(f"{self.workdir / STRUCTURE} can't be read ({error}); delete it") from error

    @property
    def headline(self) -> str:
        """The score that stands for the others: the first there is; "" if there is none."""
        return next(iter(self.scores), "")


def read_record(workdir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """study.json of a workdir, None if there is none.

    Raises:
      UserError: it is broken.
    """
    path = named_path(workdir, "--workdir", home=False) / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']!r}, this version reads {FORMAT}")
        for entry in record["runs"]:
            if not isinstance(entry["seed"], int):
                raise TypeError("a run has no seed")
            for key in ("method", "slug", "folder"):
                Path(entry[key])
        if not (isinstance(record["calls"], list) and isinstance(record["shared"], dict)):
            raise TypeError("its calls are no list, or what they share is no object")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{path} can't be read ({reason}); restore it, or write another --workdir") from error
    return record


def load_study(workdir: str | os.PathLike[str], methods: Sequence[str] = ()) -> Study:
    """Reads the runs that study.json names, as far as they have got.

    Args:
      workdir: the study's folder.
      methods: those that come first, in this order; the others follow as they are recorded.

    Raises:
      UserError: there is no study.json, or it is broken.
    """
    record = read_record(workdir)
    if record is None:
        raise UserError(f"{workdir} holds no study: {RECORD} is missing; write the --workdir of a study")
    # Two spellings of the same options are one method, called as it was written last.
    spelled: dict[str, str] = {}
    for entry in record["runs"]:
        entry["method"] = spelled.setdefault(entry["slug"], entry["method"])
    recorded = {entry["method"]: None for entry in record["runs"]}
    order = [label for label in dict.fromkeys([*methods, *recorded]) if label in recorded]
    members, missing = [], []
    for entry in sorted(record["runs"], key=lambda entry: (order.index(entry["method"]), entry["seed"])):
        folder = Path(workdir) / entry["folder"]
        try:
            members.append(Member(folder, load_run(folder).results, label=entry["method"], slug=entry["slug"]))
        except UserError as error:
            reason = error if (folder / "results.json").exists() else "no results yet"
            missing.append(f"{entry['method']}, seed {entry['seed']}: {reason}")
    return Study(Path(workdir), record, tuple(members), tuple(missing))
