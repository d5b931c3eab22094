"""report.html: one run on one page."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jdcl_jax.reporting import accuracy, html, plots
from jdcl_jax.reporting.files import check_page_path, write_bytes
from jdcl_jax.reporting.runs import Run, Score, floats, load_run, summary_names, whole
from jdcl_jax.reporting.table import formulas


def write_report(workdir: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Writes the page of a run, finished or not: one file that needs no other and no network.

    Args:
      workdir: folder with results.json and, where there are, metrics.jsonl and samples/*.png.
      out: the page; `report.html` in the workdir if None.

    Returns:
      Where the page is.

    Raises:
      UserError: the folder is no run, its results.json is broken, or the page cannot be written.
    """
    run = load_run(workdir)
    target = Path(workdir) / "report.html" if out is None else check_page_path(out)
    with whole(run):
        page = html.page("report.html", **_context(run))
    write_bytes(target, page)
    return target


def _context(run: Run) -> dict[str, Any]:
    results, scores = run.results, run.scores
    metrics = run.metrics()
    cost = results.get("cost") or []
    return {
        "title": f"{run.method} on {run.dataset}, seed {run.seed}",
        "finished": run.finished,
        "status": results["status"],
        "reduced": results.get("reduced") or "",
        "facts": _facts(run),
        "tasks": results["tasks"],
        "score_rows": list(scores.values()),
        "summaries": summary_names(scores),
        "formulas": formulas(scores),
        "loss": html.picture(plots.loss_curves(metrics)) if _has_loss(metrics) else "",
        "curves": _curves(scores),
        "heat_maps": _heat_maps(scores, results.get("assigned")),
        "samples": sample_pictures(run),
        "prototypes": sample_pictures(run, "prototypes"),
        "projection": _projection(run),
        "held_out_replay": [row for row in results.get("phases") or [] if "replay_validation_accuracy" in row],
        "accuracy": _accuracy(run),
        "replay": [row for row in results.get("phases") or [] if "replay" in row],
        "cost": cost,
        "cost_picture": html.picture(plots.cost_bars(cost)) if cost else "",
        "totals": results.get("totals") or {},
        "one_image": _one_image(results),
        "sample_counts": [_sample_counts(score) for score in scores.values()],
        "versions": {**(results.get("versions") or {}), **(results.get("hardware") or {})},
        "config": html.pretty(results.get("config") or {}),
    }


def _facts(run: Run) -> dict[str, str]:
    """What a reader wants to know first; facts that are not recorded are left out."""
    results = run.results
    facts = {
        "method": run.method,
        "data set": run.dataset,
        "pixels from": results.get("provenance"),
        "seed": run.seed,
        "tasks": run.num_tasks,
        "weights scored": {"ema": "EMA", "raw": "raw"}.get(str(results.get("weights")), results.get("weights")),
        "started": results.get("started"),
        "finished": results.get("finished"),
        "command": results.get("command"),
    }
    return {name: str(value) for name, value in facts.items() if value not in (None, "")}


def _one_image(results: Mapping[str, Any]) -> dict[str, Any]:
    """FLOPs of one image's passes through a network that classifies; {} if it does not, or if they are not recorded."""
    denoising, classifying = results.get("forward_flops"), results.get("classifying_flops")
    if not denoising or not classifying:
        return {}
    return {"denoising": denoising, "classifying": classifying, "share": classifying / denoising}


def _has_loss(metrics: Sequence[Mapping[str, Any]]) -> bool:
    return any(isinstance(row.get("loss"), int | float) for row in metrics)


def _curves(scores: Mapping[str, Score]) -> dict[str, str]:
    return {
        name: html.picture(
            plots.union_curves({name: (score.union, None)}, title=name, lower_is_better=score.lower_is_better)
        )
        for name, score in scores.items()
        if np.isfinite(score.union).any()
    }


def _heat_maps(scores: Mapping[str, Score], assigned: Any) -> dict[str, str]:
    """A picture for each score that is known per task, and for the assigned samples."""
    pictures = {
        name: plots.heat_map(score.matrix, title=name, lower_is_better=score.lower_is_better)
        for name, score in scores.items()
        if np.isfinite(score.matrix).any()
    }
    if assigned:
        counts = floats(assigned)
        if counts.ndim == 2 and np.isfinite(counts).any():
            pictures["assigned"] = plots.assigned_map(counts)
    return {name: html.picture(figure) for name, figure in pictures.items()}


def _accuracy(run: Run) -> dict[str, str]:
    """Pictures of a network that classifies, by caption: after each phase, and the confusion after the last task."""
    rows, pictures = accuracy.phase_rows(run), {}
    if rows:
        pictures["accuracy on each task after each phase"] = accuracy.phases_figure(rows, "class-incremental accuracy")
    known = [matrix for matrix in run.results.get("confusion") or [] if matrix]
    if known:
        names = class_names(run, len(known[-1]))
        title = f"answers after task {len(known)}"
        pictures["confusion matrix"] = accuracy.confusion_figure(np.array(known[-1]), names, title)
    return {name: html.picture(figure) for name, figure in pictures.items()}


def class_names(run: Run, count: int) -> list[str]:
    """Names of the classes 0..count-1 as the tasks give them; the number of those in no task."""
    known = {c: name for task in run.results["tasks"] for c, name in zip(task["classes"], task["names"], strict=True)}
    return [known.get(c, str(c)) for c in range(count)]


def sample_pictures(run: Run, folder: str = "samples") -> dict[str, str]:
    """Captions and data URIs of a run's grids of images, in the order of the tasks."""
    return {sample_caption(name): html.data_uri(png, "image/png") for name, png in run.samples(folder).items()}


def _projection(run: Run) -> dict[str, Any]:
    """Of every layer whose updates are projected, its row after each task; {} where there is none."""
    told = [row for row in run.results.get("phases") or [] if "projection" in row]
    if not told:
        return {}
    layers = [row["layer"] for row in told[0]["projection"]]
    by_task = [{row["layer"]: row for row in one["projection"]} for one in told]
    return {
        "tasks": [{"task": one["task"], "threshold": one["threshold"]} for one in told],
        "layers": {layer: [rows[layer] for rows in by_task] for layer in layers},
        "warnings": [f"task {one['task']}: {text}" for one in told for text in one.get("warnings", ())],
        "bytes": sum(row["bytes"] for row in by_task[-1].values()),
        "flops": sum(row["flops_per_step"] for row in by_task[-1].values()),
    }


def sample_caption(stem: str) -> str:
    """task_03 -> "after task 3"; other names stay."""
    prefix, _, digits = stem.partition("_")
    return f"after task {int(digits)}" if prefix == "task" and digits.isdecimal() else stem


def _sample_counts(score: Score) -> dict[str, str]:
    return {
        "score": score.name,
        "generated_per_task": _counts(score.num_generated.get("per_task")),
        "generated_union": _counts(score.num_generated.get("union")),
        "real_per_task": _counts(score.num_real.get("per_task")),
        "real_union": _counts(score.num_real.get("union")),
    }


def _counts(value: Any) -> str:
    """A count, or a list of them (one per task), as text; equal ones once."""
    values = value if isinstance(value, list) else [value]
    if len(set(map(str, values))) == 1:
        values = values[:1]
    return ", ".join(html.MISSING if item is None else f"{item:,}" for item in values)
