"""Several runs on one page: methods beside each other, seeds averaged."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jdcl_jax.errors import UserError
from jdcl_jax.reporting import differences, formats, html, plots
from jdcl_jax.reporting.files import check_page_path, write_bytes
from jdcl_jax.reporting.page import sample_pictures
from jdcl_jax.reporting.runs import Run, Score, floats, load_run, summary_names, whole
from jdcl_jax.reporting.table import formulas, text_table


@dataclass(frozen=True)
class Mean:
    """The mean of n numbers and its standard error, NaN if n < 2.

    The error is s / sqrt(n), s the standard deviation with n - 1 degrees of freedom.
    """

    mean: float
    error: float
    n: int

    def text(self, plus_minus: str = "±", missing: str = html.MISSING, of: int = 0) -> str:
        """1.523 ± 0.041, 1.523 for one number, or `missing`; with (n=2) behind it if there should be more, `of`."""
        if self.n == 0:
            return missing
        fewer = f" (n={self.n})" if self.n < of else ""
        if self.n == 1:
            return formats.number(self.mean) + fewer
        return f"{formats.number(self.mean)} {plus_minus} {formats.error(self.error, self.mean)}{fewer}"


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and standard error of the numbers that are known."""
    known = [value for value in values if math.isfinite(value)]
    n = len(known)
    if n == 0:
        return Mean(math.nan, math.nan, 0)
    mean = math.fsum(known) / n
    if n == 1:
        return Mean(mean, math.nan, 1)
    variance = math.fsum((value - mean) ** 2 for value in known) / (n - 1)
    return Mean(mean, math.sqrt(variance / n), n)


@dataclass(frozen=True)
class Group:
    """Runs of one method on one data set; means are over the finished ones."""

    dataset: str
    method: str
    runs: tuple[Run, ...]

    @property
    def finished(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.finished)

    def summary(self, score: str, name: str) -> Mean:
        """Mean of one summary of one score."""
        found = [run.scores[score].summary for run in self.finished if score in run.scores]
        return mean_of([summary[name].value for summary in found if name in summary])

    def count(self, score: str) -> int:
        """How many finished runs have a score."""
        return sum(score in run.scores for run in self.finished)

    def union(self, score: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Means over the runs on the union after each task, and standard errors if n >= 2."""
        curves = [run.scores[score].union for run in self.finished if score in run.scores]
        length = min(map(len, curves), default=0)
        means = [mean_of([curve[task] for curve in curves]) for task in range(length)]
        # A mean over fewer runs at some tasks than at others would bend the curve.
        full = [part.n == len(curves) for part in means]
        values = np.array([part.mean if ok else math.nan for part, ok in zip(means, full, strict=True)])
        errors = np.array([part.error if ok else math.nan for part, ok in zip(means, full, strict=True)])
        return values, errors if len(curves) > 1 else None

    def total(self, name: str) -> Mean:
        """Mean of one of the totals: seconds, images or model_flops."""
        totals = [(run.results.get("totals") or {}).get(name) for run in self.finished]
        return mean_of([float(floats(value)) for value in totals])


def compare(workdirs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> str:
    """Writes one self-contained page that sets several runs beside each other.

    Runs are grouped by data set and method; of each score's summaries it gives the mean over the
    finished runs and, from two runs on, its standard error. What makes runs incomparable stands on
    top.

    Args:
      workdirs: folders of runs, of one or more seeds, methods or data sets.
      out: the page.

    Returns:
      The same numbers and warnings as plain text.

    Raises:
      UserError: a folder is no run or is given twice, a results.json is broken, or `out` cannot be
        written.
    """
    if not workdirs:
        raise UserError("no runs to compare; give the workdirs of one or more runs")
    check_page_path(out)
    runs = [load_run(workdir) for workdir in workdirs]
    places = [Path(workdir).resolve() for workdir in workdirs]
    for index, place in enumerate(places):
        if place in places[:index]:
            raise UserError(f"{workdirs[index]} is given twice; give each run once")
    with whole(*runs):
        return _compare(runs, out)


def _compare(runs: Sequence[Run], out: str | os.PathLike[str]) -> str:
    warnings = differences.warnings(runs)
    hardware = differences.hardware(runs)
    groups = [Group(dataset, method, tuple(own)) for (dataset, method), own in differences.groups(runs).items()]
    datasets = list(dict.fromkeys(group.dataset for group in groups))
    parts = [_dataset([group for group in groups if group.dataset == dataset]) for dataset in datasets]
    write_bytes(
        out,
        html.page(
            "compare.html",
            title=f"{len(runs)} runs, {len(groups)} methods" if len(datasets) == 1 else f"{len(runs)} runs",
            warnings=warnings,
            hardware=hardware,
            datasets=parts,
            runs=runs,
        ),
    )
    return _text(parts, warnings + hardware)


def _dataset(groups: Sequence[Group]) -> dict[str, Any]:
    """What the page and the text show of one data set."""
    # Of two definitions of one score the first is shown; the warnings say that they differ.
    scores: dict[str, Score] = {}
    for run in (run for group in groups for run in group.finished or group.runs):
        scores = {**run.scores, **scores}
    return {
        "name": groups[0].dataset,
        "provenance": groups[0].runs[0].results.get("provenance") or "",
        "groups": groups,
        "scores": {name: _score(score, groups) for name, score in scores.items()},
        "formulas": formulas(scores),
        "samples": [sample for group in groups for sample in _last_sample(group)],
        "cost": [_cost(group) for group in groups],
    }


def _score(score: Score, groups: Sequence[Group]) -> dict[str, Any]:
    """A row per group, and the picture of the curves."""
    having = {run.name: run.scores[score.name] for group in groups for run in group.runs if score.name in run.scores}
    names = summary_names(having)
    rows = []
    for group in groups:
        means = {name: group.summary(score.name, name) for name in names}
        rows.append(
            {
                "method": group.method,
                "n": group.count(score.name),
                "means": means,
            }
        )
    curves = {group.method: group.union(score.name) for group in groups}
    known = {name: curve for name, curve in curves.items() if np.isfinite(curve[0]).any()}
    figure = plots.union_curves(known, title=score.name, lower_is_better=score.lower_is_better) if known else None
    return {
        "direction": "lower is better" if score.lower_is_better else "higher is better",
        "description": score.description,
        "summaries": names,
        "rows": rows,
        "picture": html.picture(figure) if figure else "",
    }


def _last_sample(group: Group) -> list[tuple[str, str]]:
    """Caption and picture of the last grid of the group's first run that has one."""
    for run in group.finished or group.runs:
        pictures = sample_pictures(run)
        if pictures:
            when = list(pictures)[-1]
            return [(f"{group.method}, seed {run.seed}, {when}", pictures[when])]
    return []


def _cost(group: Group) -> dict[str, Any]:
    return {"method": group.method, "n": len(group.finished)} | {
        name: group.total(name).mean for name in ("seconds", "images", "model_flops")
    }


def _text(parts: Sequence[dict[str, Any]], warnings: Sequence[str]) -> str:
    """The page's tables for a terminal, plain ASCII where the names are."""
    blocks = ["\n".join(f"WARNING: {line}" for line in warnings)] if warnings else []
    for part in parts:
        blocks.append(f"data set {part['name']}: mean +- standard error over n seeds")
        for name, score in part["scores"].items():
            rows = [
                [
                    row["method"],
                    str(row["n"]),
                    *(row["means"][key].text("+-", "-", of=row["n"]) for key in score["summaries"]),
                ]
                for row in score["rows"]
            ]
            blocks.append(f"{name} ({score['direction']})\n" + text_table(["method", "n", *score["summaries"]], rows))
        cost = [
            [
                row["method"],
                str(row["n"]),
                formats.duration(row["seconds"]),
                formats.count(row["images"]),
                formats.flops(row["model_flops"]),
            ]
            for row in part["cost"]
        ]
        blocks.append("cost of a run\n" + text_table(["method", "n", "time", "images", "model FLOPs"], cost))
        blocks.append("\n".join(part["formulas"]))
    return "\n\n".join(block for block in blocks if block)
