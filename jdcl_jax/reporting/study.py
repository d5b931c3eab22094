"""A study: many methods x seeds as study.csv, study.html and figures/*.png."""

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jdcl_jax.errors import UserError
from jdcl_jax.reporting import costs, differences, html, memorising, pitfalls, plots, timesteps
from jdcl_jax.reporting.comparable import PUBLISHED_SUMMARIES, published_cell, published_score
from jdcl_jax.reporting.compare import Group
from jdcl_jax.reporting.figures import legend_below, render
from jdcl_jax.reporting.files import write_bytes
from jdcl_jax.reporting.page import sample_pictures
from jdcl_jax.reporting.panels import in_panels
from jdcl_jax.reporting.published import unstated
from jdcl_jax.reporting.runs import whole
from jdcl_jax.reporting.structure import structure_figure
from jdcl_jax.reporting.study_csv import csv_text, value_of
from jdcl_jax.reporting.study_runs import SCORE_GROUPS, SUMMARIES, Member, Study, load_study
from jdcl_jax.reporting.table import formulas, text_table

OTHER_SCORES = "Other scores"


def write_study(workdir: str | os.PathLike[str], methods: Sequence[str] = ()) -> str:
    """Writes study.csv, study.html (self-contained) and figures/*.png of a study, whatever of it is finished.

    Pictures of before that are no longer made, because there are more methods now, are deleted.

    Args:
      workdir: the study's folder.
      methods: see `load_study`.

    Returns:
      The headline's table, warnings included, as plain text.

    Raises:
      UserError: there is no study.json, or something cannot be written.
    """
    study = load_study(workdir, methods)
    with whole(*study.members):
        return _write(study)


def _write(study: Study) -> str:
    sections = {"union": _union_figures(study), **_timestep_figures(study), "cost": _cost_figures(study)}
    sections["structure"] = _structure_figures(study)
    figures = {name: figure for section in sections.values() for name, figure in section.items()}
    for name, figure in figures.items():
        write_bytes(study.workdir / "figures" / f"{name}.png", render(figure, "png"))
    for old in (study.workdir / "figures").glob("*.png"):
        if old.name.removesuffix(".png") not in figures:
            old.unlink()
    write_bytes(study.workdir / "study.csv", csv_text(study).encode("utf-8"))
    write_bytes(study.workdir / "study.html", html.page("study.html", **_context(study, sections)))
    return _text(study)


def _union_figures(study: Study) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for name, score in study.scores.items():
        curves = {label: group.union(name) for label, group in study.groups.items()}
        known = {label: curve for label, curve in curves.items() if np.isfinite(curve[0]).any()}
        if known:
            draw = functools.partial(_union_figure, title=name, lower_is_better=score.lower_is_better)
            figures |= in_panels(f"union-{name}", known, draw)
    return figures


def _union_figure(curves: Mapping[str, Any], *, title: str, lower_is_better: bool) -> Figure:
    figure = plots.union_curves(curves, title=title, lower_is_better=lower_is_better)
    if len(curves) > 1:
        legend_below(figure)
    return figure


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


def _structure_figures(study: Study) -> dict[str, Figure]:
    if not (found := study.structure):
        return {}
    title = f"{found['method']} on {found['dataset']} after task {found['task']}, {found['images']} images"
    return {"structure": structure_figure(found["rows"], title=title)}


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
        "published": {
            "columns": [SUMMARIES[key] for key in PUBLISHED_SUMMARIES],
            "rows": _published(study),
            "unstated": _unstated(study),
        },
        "structure": study.structure,
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
                "n": group.count(name),
                "means": [group.summary(name, summary).text(of=group.count(name)) for summary in SUMMARIES],
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
                for key in PUBLISHED_SUMMARIES
            ],
        }
        for label, group in study.groups.items()
        if group.finished
    ]


def _unstated(study: Study) -> list[str]:
    """What the publications leave open about the methods of this study, so that nobody can say it is the same."""
    finished = [run for run in study.members if run.finished]
    score = published_score(study.headline)
    lines = [line for run in finished for line in unstated(run.dataset, [str(run.results["method"])], score)]
    return list(dict.fromkeys(line.removeprefix("not stated: ") for line in lines))


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
        "headline": [value_of(run, study.headline, summary) for summary in SUMMARIES],
        "others": [value_of(run, name, "last_union") for name in others],
        "seconds": (run.results.get("totals") or {}).get("seconds"),
    }


def _text(study: Study) -> str:
    """Warnings and the headline's table for a terminal."""
    blocks = [f"WARNING: {line}" for line in [*differences.warnings(study.members), *study.missing]]
    if study.headline:
        score = study.scores[study.headline]
        rows = [
            [label, str(n), *(group.summary(score.name, summary).text("+-", "-", of=n) for summary in SUMMARIES)]
            for label, group in study.groups.items()
            for n in [group.count(score.name)]
        ]
        direction = "lower" if score.lower_is_better else "higher"
        blocks += [f"{score.name} ({direction} is better): mean +- standard error over the n finished seeds"]
        blocks += [text_table(["method", "n", *SUMMARIES.values()], rows)]
    return "\n".join(blocks)
