"""Figures of several runs whose networks also classify: two of JDCL's (arXiv 2411.08224 [paper])."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jdcl_jax.errors import UserError
from jdcl_jax.reporting.accuracy import phase_rows
from jdcl_jax.reporting.compare import Group
from jdcl_jax.reporting.figures import COLOURS, MARKERS, empty_figure, legend_below, plain
from jdcl_jax.reporting.plots import union_curves
from jdcl_jax.reporting.runs import MACHINE_KEYS, Run, floats


def continued_figure(groups: Mapping[str, Group]) -> Figure:
    """Accuracy while a network goes on learning from its own samples, over the steps (figure 1 of the paper)."""
    figure, axes = empty_figure(5.6, 3.4)
    for index, (label, group) in enumerate(groups.items()):
        curves = [_continued(run) for run in group.finished]
        steps, values = curves[0][0], np.stack([curve for _, curve in curves])
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        mean = values.mean(axis=0)
        axes.plot(steps, mean, color=colour, marker=marker, markersize=4.5, label=plain(label))
        if len(values) > 1:
            error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
            axes.fill_between(steps, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
    axes.set_xlabel("steps on generated images alone, after training on real ones")
    axes.set_ylabel("accuracy, test images")
    legend_below(figure)
    return figure


def _continued(run: Run) -> tuple[np.ndarray, np.ndarray]:
    rows, method = phase_rows(run), run.results["config"]["method"]
    if "rounds" not in method or not rows:
        raise UserError(f"{run.name} did not go on with its own samples; run the method 'continued'")
    values = floats([row["accuracy"] for row in rows])[:, 0]
    return np.linspace(0, method["global_steps"], len(values)), values


def ablation_figure(groups: Mapping[str, Group]) -> Figure:
    """Accuracy on all tasks seen, after each task, a line per variant (figure 5 of the paper)."""
    for group in groups.values():
        if any("accuracy" not in run.scores for run in group.runs):
            raise UserError(f"{group.method} was not scored by accuracy; name it in evaluation.scores of a new run")
    lines = {label: group.union("accuracy") for label, group in groups.items()}
    figure = union_curves(lines, title="accuracy", lower_is_better=False)
    legend_below(figure)
    return figure


def labelled_groups(runs: Sequence[Run]) -> dict[str, Group]:
    """Runs that differ in nothing but the seed together.

    Their label is the method, with the options in which runs of that method differ.

    Raises:
      UserError: a run that is not finished, or has no accuracy.
    """
    for run in runs:
        if not run.finished:
            raise UserError(f"{run.name} is not finished; start it again with jdcl_jax.main")
        if not phase_rows(run):
            raise UserError(f"{run.name} has no accuracy: its network does not classify; write classifier.kind=joint")
    configs = [_flat(run.results["config"]) for run in runs]
    members: dict[str, list[Run]] = {}
    for run, config in zip(runs, configs, strict=True):
        of_method = [other for one, other in zip(runs, configs, strict=True) if one.method == run.method]
        telling = [key for key in sorted(config) if len({repr(other.get(key)) for other in of_method}) > 1]
        options = ", ".join(f"{key.removeprefix('method.')}={config[key]}" for key in telling)
        members.setdefault(f"{run.method} ({options})" if options else run.method, []).append(run)
    return {label: Group(runs[0].dataset, label, tuple(own)) for label, own in members.items()}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        elif f"{prefix}{key}" not in ("seed", "method.name", *MACHINE_KEYS):
            flat[f"{prefix}{key}"] = value
    return flat
