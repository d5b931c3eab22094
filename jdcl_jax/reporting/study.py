"""A study: many methods x seeds as study.csv, study.html and figures/*.png."""

import csv
import functools
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jdcl_jax.errors import UserError
from jdcl_jax.reporting import costs, differences, html, memorising, pitfalls, plots, timesteps
from jdcl_jax.reporting.compare import Group, mean_of
from jdcl_jax.reporting.figures import render
from jdcl_jax.reporting.files import write_bytes
from jdcl_jax.reporting.page import sample_pictures
from jdcl_jax.reporting.published import published_cell
from jdcl_jax.reporting.runs import Run, Score, Summary, load_run, parse_scores
from jdcl_jax.reporting.table import formulas, text_table

RECORD, FORMAT = "study.json", 1

SUMMARIES = {
    "last_union": "last union",
    "average": "average (AFQ)",
    "incremental": "incremental (AIQ)",
    "forgetting_max": "forgetting (max)",
    "rise": "rise (FR)",
}
"""The summaries that a study shows, and what they are called in its tables."""

PUBLISHED = ("average", "rise")  # the summaries of which papers give numbers

SCORE_GROUPS = {
    "Frechet distance": ("fid", "fd_classifier"),
    "Kernel distance": ("kid", "kd_classifier"),
    "Precision": ("precision_inception", "precision_classifier"),
    "Recall": ("recall_inception", "recall_classifier"),
    "Class histograms: KLD": ("kld",),
    "Class histograms: ARD": ("ard",),
    "Error of the predicted noise": ("eps_mse",),
    "Bits per dimension": ("bpd_fixed_small", "bpd_fixed_large"),
}
OTHER_SCORES = "Other scores"


@dataclass(frozen=True)
class Member(Run):
    """A run of a study: its method is called as it was written on the command line, and it is named by its folder."""

    label: str = ""
    slug: str = ""

    @property
    def method(self) -> str:
        return self.label

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

    @property
    def headline(self) -> str:
        """The score that stands for the others: the first there is; "" if there is none."""
        return next(iter(self.scores), "")


def read_record(workdir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """study.json of a workdir, None if there is none.

    Raises:
      UserError: it is broken.
    """
    path = Path(workdir) / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']!r}, this version reads {FORMAT}")
        for entry in record["runs"]:
            if not isinstance(entry["seed"], int):
                raise TypeError("a run has no seed")
            for key in ("method", "slug", "folder"):
                Path(entry[key])
        list(record["calls"]), dict(record["shared"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
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


def write_study(workdir: str | os.PathLike[str], methods: Sequence[str] = ()) -> str:
    """Writes study.csv, study.html (self-contained) and figures/*.png of a study, whatever of it is finished.

    Args:
      workdir: the study's folder.
      methods: see `load_study`.

    Returns:
      The headline's table, warnings included, as plain text.

    Raises:
      UserError: there is no study.json, or something cannot be written.
    """
    study = load_study(workdir, methods)
    sections = {"union": _union_figures(study), **_timestep_figures(study), "cost": _cost_figures(study)}
    for name, figure in (item for section in sections.values() for item in section.items()):
        write_bytes(study.workdir / "figures" / f"{name}.png", render(figure, "png"))
    write_bytes(study.workdir / "study.csv", csv_text(study).encode("utf-8"))
    write_bytes(study.workdir / "study.html", html.page("study.html", **_context(study, sections)))
    return _text(study)


def csv_text(study: Study) -> str:
    """A row per method, score and summary: mean, standard error, n, each seed's value, and what the method's runs cost.

    What is unknown is empty. Seconds are wall time, compilation included; passes are those of `costs.PhaseCost`.
    """
    seeds = sorted({run.seed for run in study.members})
    header = ["method", "score", "summary", "mean", "standard_error", "n", *(f"seed_{seed}" for seed in seeds)]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*header, *_COSTS])
    for label, group in study.groups.items():
        spent = [_cell(mean_of([amount(run) for run in group.finished]).mean) for amount in _COSTS.values()]
        for score in study.scores:
            for summary in SUMMARIES:
                mean = group.summary(score, summary)
                values = {run.seed: _value(run, score, summary) for run in group.finished}
                own = [_cell(values.get(seed, math.nan)) for seed in seeds]
                writer.writerow([label, score, summary, _cell(mean.mean), _cell(mean.error), mean.n, *own, *spent])
    return stream.getvalue()


_COSTS: Mapping[str, Callable[[Run], float]] = {
    "training_steps": lambda run: costs.total(run, "steps"),
    "training_passes_per_step": lambda run: costs.passes_per_step(run),
    "training_model_flops": lambda run: costs.total(run, "model_flops"),
    "training_images": lambda run: costs.total(run, "images"),
    "training_seconds": lambda run: costs.total(run, "seconds"),
    "evaluation_seconds": lambda run: costs.total(run, "seconds", *costs.EVALUATION),
    **{f"eps_mse_{name}": functools.partial(memorising.last_error, name=name) for name in memorising.ERRORS},
}


def _value(run: Run, score: str, summary: str) -> float:
    found = run.scores[score].summary if score in run.scores else {}
    return found[summary].value if summary in found else math.nan


def _cell(value: float) -> str:
    return repr(float(value)) if math.isfinite(value) else ""


def _union_figures(study: Study) -> dict[str, Figure]:
    figures = {}
    for name, score in study.scores.items():
        curves = {label: group.union(name) for label, group in study.groups.items()}
        known = {label: curve for label, curve in curves.items() if np.isfinite(curve[0]).any()}
        if known:
            figures[f"union-{name}"] = plots.union_curves(known, title=name, lower_is_better=score.lower_is_better)
            if len(known) > 1:
                timesteps.legend_below(figures[f"union-{name}"])
    return figures


def _timestep_figures(study: Study) -> dict[str, dict[str, Figure]]:
    whole = _with_curves(study)
    methods: dict[str, list[Any]] = {}
    for run in whole:
        methods.setdefault(run.label, []).append(run.curves)
    return timesteps.study_figures(methods, {run.label: run.slug for run in whole})


def _with_curves(study: Study) -> list[Member]:
    """The finished runs with curves after every task, over as many timesteps as those of the first of them."""
    runs = [run for run in study.members if run.finished and len(run.curves) == run.num_tasks]
    return [run for run in runs if run.curves[0]["eps_mse"].shape == runs[0].curves[0]["eps_mse"].shape]


def _cost_figures(study: Study) -> dict[str, Figure]:
    spent = {label: costs.phase_costs(group) for label, group in study.groups.items() if group.finished}
    if not any(spent.values()):
        return {}
    return {"cost-model_flops": costs.flops_figure(spent), "cost-seconds": costs.seconds_figure(spent)}


def _context(study: Study, sections: Mapping[str, Mapping[str, Figure]]) -> dict[str, Any]:
    whole = {run.name for run in _with_curves(study)}
    return {
        "title": f"Study: {len(study.groups)} methods on {', '.join(dict.fromkeys(r.dataset for r in study.members))}",
        "call": study.record["calls"][-1] if study.record["calls"] else {},
        "calls": study.record["calls"],
        "provenance": ", ".join(dict.fromkeys(str(run.results.get("provenance") or "") for run in study.members)),
        "warnings": differences.warnings(study.members),
        "missing": study.missing,
        "hardware": differences.hardware(study.members),
        "summaries": SUMMARIES,
        "tables": list(_tables(study)),
        "published": {"columns": [SUMMARIES[key] for key in PUBLISHED], "rows": _published(study)},
        "formulas": [line for line in formulas(study.scores) if line.split(" ")[0].rstrip(":") in SUMMARIES],
        "pictures": {
            section: {name: html.picture(figure) for name, figure in figures.items()}
            for section, figures in sections.items()
        },
        "without_curves": [run.name for run in study.members if run.finished and run.name not in whole],
        "costs": {label: costs.phase_costs(group) for label, group in study.groups.items()},
        "memorising": memorising.rows(study.groups),
        "pitfalls": _pitfalls(study),
        "samples": [sample for group in study.groups.values() for sample in _last_samples(group)],
        "seeds": [_seed_row(study, run) for run in study.members],
        "headline": study.headline,
        "scores": list(study.scores),
    }


def _pitfalls(study: Study) -> dict[str, Any] | None:
    """Rankings by bits/dim against others, where enough runs have them."""
    try:
        return pitfalls.context(pitfalls.study(study.members))
    except UserError:
        return None


def _tables(study: Study) -> Iterator[dict[str, Any]]:
    """A table per score, with the title of its group above the first of a group."""
    titles = {name: title for title, names in SCORE_GROUPS.items() for name in names}
    last = ""
    for name, score in study.scores.items():
        title = titles.get(name, OTHER_SCORES)
        rows = [
            {
                "method": label,
                "n": max(group.summary(name, summary).n for summary in SUMMARIES),
                "means": [group.summary(name, summary).text() for summary in SUMMARIES],
            }
            for label, group in study.groups.items()
        ]
        yield {
            "title": title if title != last else "",
            "name": name,
            "direction": "lower is better" if score.lower_is_better else "higher is better",
            "description": score.description,
            "rows": rows,
        }
        last = title


def _published(study: Study) -> list[dict[str, Any]]:
    """Of each method with a finished run, the headline's average and rise, and what papers report of them."""
    return [
        {
            "method": label,
            "cells": [
                (
                    group.summary(study.headline, key).text(),
                    published_cell(group.finished[0].results, study.headline, key),
                )
                for key in PUBLISHED
            ],
        }
        for label, group in study.groups.items()
        if group.finished
    ]


def _last_samples(group: Group) -> list[tuple[str, str]]:
    """Caption and picture of the samples after the last task, of the first seed that has some."""
    for run in group.finished or group.runs:
        if pictures := sample_pictures(run):
            when, uri = list(pictures.items())[-1]
            return [(f"{group.method}, seed {run.seed}, {when}", uri)]
    return []


def _seed_row(study: Study, run: Member) -> dict[str, Any]:
    """One run's line of the table of all runs: the headline's summaries, and every other score on the union."""
    others = [name for name in study.scores if name != study.headline]
    return {
        "method": run.label,
        "seed": run.seed,
        "status": run.results["status"],
        "folder": run.name,
        "headline": [_value(run, study.headline, summary) for summary in SUMMARIES],
        "others": [_value(run, name, "last_union") for name in others],
        "seconds": (run.results.get("totals") or {}).get("seconds"),
    }


def _text(study: Study) -> str:
    """Warnings and the headline's table for a terminal."""
    blocks = [f"WARNING: {line}" for line in [*differences.warnings(study.members), *study.missing]]
    if study.headline:
        score = study.scores[study.headline]
        rows = [
            [label, *(group.summary(score.name, summary).text("+-", "-") for summary in SUMMARIES)]
            for label, group in study.groups.items()
        ]
        direction = "lower" if score.lower_is_better else "higher"
        blocks += [f"{score.name} ({direction} is better): mean +- standard error over the finished seeds"]
        blocks += [text_table(["method", *SUMMARIES.values()], rows)]
    return "\n".join(blocks)
