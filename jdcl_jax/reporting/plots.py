"""Figures of a run, as matplotlib objects: no pyplot, no global state."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from jdcl_jax.reporting.figures import (
    COLOURS,
    INK,
    MARKERS,
    empty_figure,
    log_scale,
    moving_average,
    plain,
    spans_decades,
    thin,
)
from jdcl_jax.reporting.formats import count, number
from jdcl_jax.reporting.runs import floats


def loss_curves(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """The loss over the global step, a colour per phase, a dotted line where a task begins.

    Args:
      metrics: lines of metrics.jsonl; those without a number called "loss" are passed over. A faint
        line joins the logged values, the strong one is their moving average within a task and
        phase.
    """
    rows = [row for row in metrics if isinstance(row.get("loss"), int | float)]
    figure, axes = empty_figure(11, 3.6)
    phases = list(dict.fromkeys(str(row.get("phase", "train")) for row in rows))
    for task, phase in dict.fromkeys((row.get("task"), str(row.get("phase", "train"))) for row in rows):
        own = [row for row in rows if row.get("task") == task and str(row.get("phase", "train")) == phase]
        steps, losses = thin(floats([row["step"] for row in own]), floats([row["loss"] for row in own]))
        colour = COLOURS[phases.index(phase) % len(COLOURS)]
        window = max(1, len(steps) // 10)
        label = phase if phase not in axes.get_legend_handles_labels()[1] else None
        axes.plot(steps, losses, color=colour, alpha=0.3, linewidth=0.8)
        axes.plot(steps, moving_average(losses, window), color=colour, linewidth=1.6, label=label)
    if spans_decades(floats([row["loss"] for row in rows])):
        log_scale(axes)
    _mark_tasks(axes, rows)
    axes.set_xlabel("optimiser step over the whole run")
    axes.set_ylabel("training loss")
    if rows:
        axes.legend(title="phase", frameon=False, loc="upper right", ncols=len(phases))
    return figure


def _mark_tasks(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Dotted lines between the tasks, and their numbers above the picture."""
    spans: dict[int, list[int]] = {}
    for row in rows:
        if isinstance(row.get("task"), int):
            spans.setdefault(row["task"], []).append(row["step"])
    begins = {task: min(steps) for task, steps in spans.items()}
    ends = {task: max(steps) for task, steps in spans.items()}
    if not spans:
        return
    for before, task in zip(list(spans), list(spans)[1:], strict=False):
        axes.axvline((ends[before] + begins[task]) / 2, color=INK, linewidth=0.9, linestyle=(0, (1, 2)))
    top = axes.secondary_xaxis("top")
    top.set_xticks([(begins[task] + ends[task]) / 2 for task in spans], [str(task) for task in spans])
    top.tick_params(length=0, colors=INK)
    top.set_xlabel("task", color=INK)
    top.spines["top"].set_visible(False)


def goodness(values: np.ndarray, lower_is_better: bool) -> np.ndarray:
    """Scores from 0 (worst of them) to 1 (best of them), so that colours read alike in all scores.

    Positive scores that span more than a factor `LOG_RATIO` are compared by their logarithms; equal
    ones are 0.5.
    """
    values = np.asarray(values, np.float64)
    if spans_decades(values):
        values = np.log(values)
    finite = values[np.isfinite(values)]
    if finite.size == 0 or finite.max() == finite.min():
        return np.where(np.isfinite(values), 0.5, np.nan)
    scaled = (values - finite.min()) / (finite.max() - finite.min())
    return 1 - scaled if lower_is_better else scaled


def heat_map(matrix: np.ndarray, *, title: str, lower_is_better: bool) -> Figure:
    """A score matrix with its numbers in the cells; row after task i, column on task j.

    Args:
      matrix: float [T, T], NaN where unknown; above the diagonal (tasks not seen yet) nothing is
        drawn.
      title: name of the score.
      lower_is_better: direction of the score.
    """
    seen = np.where(np.tri(len(matrix), dtype=bool), np.asarray(matrix, np.float64), np.nan)
    figure = _cells(seen, goodness(seen, lower_is_better), f"{title} ({_direction(lower_is_better)})")
    axes = figure.axes[0]
    bar = figure.colorbar(axes.images[0], ax=axes, ticks=[0, 1], shrink=0.6, aspect=14, pad=0.03)
    bar.ax.set_yticklabels(["worse", "better"], fontsize=8)
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)  # type: ignore[operator]
    axes.set_xlabel("on task")
    return figure


def assigned_map(counts: np.ndarray) -> Figure:
    """How many generated samples a classifier gave to task j (columns) after task i (rows).

    Args:
      counts: [T, T]; the whole matrix is drawn, since samples can fall on tasks not seen yet.
    """
    counts = np.asarray(counts, np.float64)
    figure = _cells(counts, goodness(counts, lower_is_better=False), "generated samples assigned to each task")
    figure.axes[0].set_xlabel("assigned to task")
    return figure


def _cells(values: np.ndarray, shades: np.ndarray, title: str) -> Figure:
    """Cells shaded from 0 (light) to 1 (dark) with their values written in; NaN stays empty."""
    num, whole = len(values), bool(np.all(values[np.isfinite(values)] % 1 == 0))
    side = 0.56 if num <= 12 else 0.46
    figure, axes = empty_figure(num * side + 1.9, num * side + 1.0)
    axes.set_title(plain(title), fontsize=10)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    colours = matplotlib.colormaps["YlGnBu"]
    # imshow takes the first index as the row from the top: rows are "after task", columns "on
    # task".
    axes.imshow(np.ma.masked_invalid(shades), cmap=colours, vmin=0, vmax=1, aspect="equal")
    for i, j in np.argwhere(np.isfinite(values)):
        value = float(values[i, j])
        text = count(value) if whole else number(value, digits=3)
        size = (8.5 if num <= 12 else 6.5) * min(1.0, 6 / len(text))
        ink = "white" if shades[i, j] > 0.55 else "#222222"
        axes.text(j, i, text, ha="center", va="center", fontsize=size, color=ink)
    labels = [str(task + 1) for task in range(num)]
    axes.set_xticks(range(num), labels)
    axes.set_yticks(range(num), labels)
    axes.tick_params(length=0)
    axes.set_ylabel("after task")
    return figure


def union_curves(
    lines: Mapping[str, tuple[np.ndarray, np.ndarray | None]], *, title: str, lower_is_better: bool
) -> Figure:
    """A score on the union of the tasks seen, over the tasks, a line per name.

    Args:
      lines: name -> (values [T], standard errors [T] or None); NaN leaves a gap. The errors are
        shaded.
      title: name of the score.
      lower_is_better: direction of the score.
    """
    extra = 0.22 * ((len(lines) + 2) // 3) if len(lines) > 1 else 0.0
    figure, axes = empty_figure(4.3, 2.9 + extra)
    axes.set_title(plain(title), fontsize=10)
    for index, (name, (values, errors)) in enumerate(lines.items()):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        dashes = ("-", "--", ":")[index // len(COLOURS) % 3]
        tasks = np.arange(1, len(values) + 1)
        axes.plot(
            tasks,
            values,
            color=colour,
            marker=marker,
            markersize=4.5,
            linestyle=dashes,
            label=plain(name),
        )
        if errors is not None:
            axes.fill_between(tasks, values - errors, values + errors, color=colour, alpha=0.2, linewidth=0)
    if spans_decades(np.concatenate([np.asarray(values) for values, _ in lines.values()] or [np.zeros(0)])):
        log_scale(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("after task")
    axes.set_ylabel(f"on all tasks seen ({_direction(lower_is_better)})", fontsize=8)
    if len(lines) > 1:
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def cost_bars(cost: Sequence[Mapping[str, Any]]) -> Figure:
    """Seconds per task as bars stacked by phase; the hatched part of each is compilation.

    Args:
      cost: rows of results.json, `seconds` being wall time with `compile_seconds` within it.
    """
    tasks = list(dict.fromkeys(row["task"] for row in cost))
    phases = list(dict.fromkeys(row["phase"] for row in cost))
    longest = max((sum(_seconds(row) for row in cost if row["task"] == task) for task in tasks), default=0.0)
    unit, size = ("hours", 3600.0) if longest > 7200 else ("minutes", 60.0) if longest > 300 else ("seconds", 1.0)
    figure, axes = empty_figure(max(3.6, 0.36 * len(tasks) + 2.2), 3.0)
    bottom = np.zeros(len(tasks))
    for index, phase in enumerate(phases):
        rows = [[row for row in cost if row["task"] == task and row["phase"] == phase] for task in tasks]
        whole = np.array([sum(map(_seconds, own)) for own in rows]) / size
        compiling = (
            np.minimum([sum(_seconds(row, "compile_seconds") for row in own) for own in rows], whole * size) / size
        )
        colour = COLOURS[index % len(COLOURS)]
        at = np.arange(len(tasks))
        axes.bar(at, whole - compiling, bottom=bottom, width=0.65, color=colour, label=plain(str(phase)))
        if compiling.any():
            axes.bar(
                at,
                compiling,
                bottom=bottom + whole - compiling,
                width=0.65,
                color=colour,
                hatch="////",
                edgecolor="white",
                linewidth=0,
            )
        bottom += whole
    axes.set_xticks(range(len(tasks)), [str(task) for task in tasks])
    axes.tick_params(axis="x", length=0)
    axes.grid(False, axis="x")
    axes.set_xlabel("task")
    axes.set_ylabel(unit)
    axes.margins(y=0.05)
    handles, _ = axes.get_legend_handles_labels()
    if any(_seconds(row, "compile_seconds") for row in cost):
        handles.append(Patch(facecolor="#999999", hatch="////", edgecolor="white", label="compiling"))
    if handles:
        figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _seconds(row: Mapping[str, Any], key: str = "seconds") -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


def _direction(lower_is_better: bool) -> str:
    return "lower is better" if lower_is_better else "higher is better"
