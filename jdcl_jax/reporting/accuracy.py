"""Figures of a run whose network also classifies: two of JDCL's (arXiv 2411.08224 [paper]), and a confusion matrix."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from jdcl_jax.reporting.figures import COLOURS, INK, MARKERS, empty_figure, plain
from jdcl_jax.reporting.runs import Run, floats

LONGEST = 8  # letters of a phase that fit between two marks


def phase_rows(run: Run) -> list[dict[str, Any]]:
    """The entries of results.json's "phases" that have an accuracy, in order: task, phase, accuracy [T]."""
    return [row for row in run.results.get("phases") or [] if "accuracy" in row]


def phases_figure(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Accuracy on each task's test images after each phase of training, a line per task (figure 3 of the paper)."""
    accuracy = floats([row["accuracy"] for row in rows])
    figure, axes = empty_figure(max(5.0, 0.42 * len(rows) + 2.4), 3.4)
    places = np.arange(len(rows))
    for task in range(accuracy.shape[1]):
        colour, marker = COLOURS[task % len(COLOURS)], MARKERS[task % len(MARKERS)]
        axes.plot(places, accuracy[:, task], color=colour, marker=marker, markersize=4.5, label=f"task {task + 1}")
    if max(len(row["phase"]) for row in rows) <= LONGEST:
        axes.set_xticks(places, [f"{row['phase']}\n{row['task']}" for row in rows], fontsize=7.5)
    else:
        axes.set_xticks(
            places, [f"{row['phase']} {row['task']}" for row in rows], fontsize=7.5, rotation=60, ha="right"
        )
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("phase and task")
    axes.set_ylabel("accuracy, all classes")
    axes.set_title(plain(title), fontsize=10)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def confusion_figure(matrix: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Shares of each true class (rows) that got each answer (columns).

    Args:
      matrix: counts [C, C]; classes without images are left out of the rows and, if never answered, of the columns.
      names: of the C classes.
      title: after which task.
    """
    rows = [int(c) for c in np.flatnonzero(matrix.sum(axis=1))]
    columns = [int(c) for c in np.flatnonzero(matrix.sum(axis=1) + matrix.sum(axis=0))]
    shown = matrix[np.ix_(rows, columns)]
    shares = shown / shown.sum(axis=1, keepdims=True)
    many = len(columns) > 20
    side = 0.12 if many else 0.42
    figure, axes = empty_figure(max(3.0, side * len(columns) + 1.8), max(2.6, side * len(rows) + 1.2))
    axes.grid(False)
    axes.imshow(shares, cmap=matplotlib.colormaps["YlGnBu"], vmin=0, vmax=1, aspect="equal")
    if not many:
        for i, j in np.argwhere(shown):
            ink = "white" if shares[i, j] > 0.55 else "#222222"
            axes.text(j, i, f"{shown[i, j]}", ha="center", va="center", fontsize=7.5, color=ink)
        axes.set_xticks(range(len(columns)), [plain(names[c]) for c in columns], rotation=60, ha="right")
        axes.set_yticks(range(len(rows)), [plain(names[c]) for c in rows])
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    axes.tick_params(length=0)
    axes.set_xlabel("answer")
    axes.set_ylabel("true class")
    axes.set_title(plain(title), fontsize=10)
    return figure


def logits_figure(
    real: Mapping[str, np.ndarray], generated: Mapping[str, np.ndarray], title: str, columns: int = 5
) -> Figure:
    """Distribution of each class's own logit, on real test images of it and on generated ones (figure 4 of the paper).

    Args:
      real: class name -> float [n], the class's logit on its test images.
      generated: class name -> float [m], the same on generated images that are given the class; may be empty.
      title: of which run and task.
      columns: pictures beside each other.
    """
    count = len(real)
    width, height = min(columns, count), math.ceil(count / columns)
    figure, first = empty_figure(2.1 * width + 0.4, 1.6 * height + 0.9)
    first.remove()
    everything = np.concatenate([*real.values(), *generated.values()])
    edges = np.linspace(everything.min(), everything.max(), 31)
    named: set[str] = set()
    for place, name in enumerate(real):
        axes = figure.add_subplot(height, width, place + 1)
        for values, colour, label in ((real[name], COLOURS[0], "real"), (generated[name], COLOURS[1], "generated")):
            if len(values):
                told = None if label in named else label
                axes.hist(values, edges.tolist(), density=True, color=colour, alpha=0.5, label=told)
                named.add(label)
        axes.set_title(plain(name), fontsize=8)
        axes.set_yticks([])
        axes.tick_params(labelsize=7, colors=INK)
    figure.suptitle(plain(title), fontsize=10)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure
