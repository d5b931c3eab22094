"""Forgetting seen over the timesteps of the diffusion: numbers and figures from a run's curves/*.npz.

Delta_ij(t) = MSE_i(t; j) - MSE_j(t; j): by how much the denoiser's error on task j at timestep t has grown from the
checkpoint after task j to that after task i (arXiv 2303.15342 shows that this differs across timesteps [paper]; the
form is [ours]). All checkpoints see the same images and the same noise, so the difference has little noise of its own.
"""

import functools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from jdcl_jax.archives import read_archive
from jdcl_jax.reporting.figures import COLOURS, INK, empty_figure, legend_below, log_scale, plain, spans_decades
from jdcl_jax.reporting.panels import in_panels

BINS = 50  # points of a line: more would show the noise of single timesteps
Curves = Mapping[str, np.ndarray]
"""What the denoiser does after one task: `eps_mse`, `bits_fixed_small`, `bits_fixed_large`, all [num_tasks, T]."""

Pair = tuple[int, int]
"""(i, j): after task i, on task j; tasks count from 1."""

CURVES = ("eps_mse", "bits_fixed_small", "bits_fixed_large")


def load_curves(workdir: str | os.PathLike[str]) -> list[dict[str, np.ndarray]]:
    """The curves of a run after task 1, 2, ...; [] if it has none.

    Reading ends at the first task whose file is missing, cannot be read, or has not the shape of the first one's.
    """
    found: list[dict[str, np.ndarray]] = []
    while (path := Path(workdir) / "curves" / f"task_{len(found) + 1:02d}.npz").is_file():
        try:
            arrays, _ = read_archive(path, CURVES)
            curves = {name: _finite(arrays[name]) for name in CURVES}
        except (OSError, ValueError, TypeError, KeyError):
            break
        shapes = {array.shape for array in [*curves.values(), *(found[0].values() if found else ())]}
        if len(shapes) > 1 or curves["eps_mse"].ndim != 2:
            break
        found.append(curves)
    return found


def _finite(values: np.ndarray) -> np.ndarray:
    """float64, NaN for what is infinite."""
    values = np.asarray(values, np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def delta(curves: Sequence[np.ndarray]) -> dict[Pair, np.ndarray]:
    """Delta_ij(t) = MSE_i(t; j) - MSE_j(t; j) for every i > j.

    Args:
      curves: the errors after task 1, 2, ..., each [num_tasks, T], row j - 1 on task j; rows of tasks not seen yet are
        not looked at.

    Returns:
      (i, j) -> [T], positive where the error has grown; pairs ordered by i, then j. {} for a single task.
    """
    return {
        (i, j): np.asarray(curves[i - 1][j - 1]) - np.asarray(curves[j - 1][j - 1])
        for i in range(2, len(curves) + 1)
        for j in range(1, i)
    }


def relative_delta(curves: Sequence[np.ndarray]) -> dict[Pair, np.ndarray]:
    """Delta_ij(t) / MSE_j(t; j), NaN where that error is 0: 1 means that the error has doubled. Else as `delta`."""
    out = {}
    for (i, j), difference in delta(curves).items():
        before = np.asarray(curves[j - 1][j - 1], np.float64)
        out[i, j] = np.divide(difference, before, out=np.full(before.shape, np.nan), where=before != 0)
    return out


def mean_over_pairs(deltas: Mapping[Pair, np.ndarray]) -> np.ndarray:
    """The mean over all pairs, [T]; an empty array if there are none."""
    return np.mean(list(deltas.values()), axis=0) if deltas else np.zeros(0)


def mean_over_seeds(seeds: Sequence[Mapping[Pair, np.ndarray]]) -> dict[Pair, np.ndarray]:
    """For every pair that all seeds have, the mean over the seeds."""
    pairs = [pair for pair in (seeds[0] if seeds else ()) if all(pair in seed for seed in seeds)]
    return {pair: np.mean([seed[pair] for seed in seeds], axis=0) for pair in pairs}


def bin_edges(timesteps: int, bins: int = BINS, *, logarithmic: bool = False) -> np.ndarray:
    """Where the bins of t = 0..timesteps - 1 begin, and the end of the last one; int [at most bins + 1].

    Bins are equally wide to a timestep; logarithmic ones are equally wide in log(t + 1), but hold a timestep at least.
    """
    bins = min(bins, timesteps)
    ends = np.geomspace(1, timesteps + 1, bins + 1) - 1 if logarithmic else np.linspace(0, timesteps, bins + 1)
    return np.unique(np.round(ends).astype(int))


def binned(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Means over the timesteps of each bin whose value is known: [..., T] -> [..., len(edges) - 1]."""
    values = np.asarray(values, np.float64)
    known = np.add.reduceat(np.isfinite(values).astype(np.float64), edges[:-1], axis=-1)
    sums = np.add.reduceat(np.nan_to_num(values), edges[:-1], axis=-1)
    return np.divide(sums, known, out=np.full(sums.shape, np.nan), where=known > 0)


def centres(edges: np.ndarray) -> np.ndarray:
    """The mean timestep of each bin."""
    return (edges[:-1] + edges[1:] - 1) / 2


def forgetting_figure(t: np.ndarray, deltas: Mapping[Pair, np.ndarray], *, title: str, relative: bool) -> Figure:
    """Delta_ij over t, a line per pair: a colour per task j, the stronger the later the task i after which it is.

    Args:
      t: timestep of each point, [P].
      deltas: (i, j) -> [P].
      title: e.g. the method.
      relative: whether they are divided by MSE_j(t; j).
    """
    tasks = sorted({j for _, j in deltas})
    last = max((i for i, _ in deltas), default=1)
    figure, axes = empty_figure(4.3, 3.0)
    axes.set_title(plain(title), fontsize=10, wrap=True)
    axes.axhline(0.0, color=INK, linewidth=0.8)
    colours = dict(zip(tasks, _task_colours(len(tasks)), strict=True))
    for (i, j), values in deltas.items():
        strength = 0.3 + 0.7 * (i - j) / max(1, last - j)
        axes.plot(t, values, color=colours[j], alpha=strength, linewidth=1.2, label=f"task {j}" if i == last else None)
    axes.set_xlabel("timestep t")
    axes.set_ylabel(_growth(relative), fontsize=8.5)
    if len(tasks) > 1:
        legend_below(figure)
    return figure


def lines_figure(
    t: np.ndarray,
    lines: Mapping[str, tuple[np.ndarray, np.ndarray | None]],
    *,
    title: str,
    y_label: str,
    zero: bool = False,
    log_t: bool = False,
) -> Figure:
    """Lines over the timesteps with a name each, ± standard errors shaded.

    Args:
      t: timestep of each point, [P].
      lines: name -> (values [P], standard errors [P] or None).
      title: what is drawn.
      y_label: its unit.
      zero: draw a line at 0; y is then linear, else it is logarithmic where values span decades.
      log_t: a logarithmic axis of t + 1, so that t = 0 has its place.
    """
    figure, axes = empty_figure(4.3, 3.0)
    axes.set_title(plain(title), fontsize=10, wrap=True)
    x = t + 1 if log_t else t
    for index, (name, (values, errors)) in enumerate(lines.items()):
        colour, dashes = COLOURS[index % len(COLOURS)], ("-", "--", ":")[index // len(COLOURS) % 3]
        axes.plot(x, values, color=colour, linewidth=1.5, linestyle=dashes, label=plain(name))
        if errors is not None:
            axes.fill_between(x, values - errors, values + errors, color=colour, alpha=0.2, linewidth=0)
    values = np.concatenate([np.asarray(values) for values, _ in lines.values()] or [np.zeros(0)])
    if zero:
        axes.axhline(0.0, color=INK, linewidth=0.8)
    elif spans_decades(values):
        log_scale(axes)
    if log_t:
        axes.set_xscale("log")
    axes.set_xlabel("timestep t + 1" if log_t else "timestep t")
    axes.set_ylabel(y_label, fontsize=8.5)
    if len(lines) > 1:
        legend_below(figure)
    return figure


def _task_colours(num: int) -> list[Any]:
    """The colours of all figures; of many tasks a scale, which shows their order."""
    return list(COLOURS[:num] if num <= len(COLOURS) else matplotlib.colormaps["viridis"](np.linspace(0, 0.95, num)))


def study_figures(methods: Mapping[str, Sequence[Sequence[Curves]]], files: Mapping[str, str]) -> dict[str, dict]:
    """All figures over the timesteps, of several methods, each with the curves of several seeds.

    Errors are averaged over the bins first, then subtracted and divided: a relative difference is that of the errors
    summed over a bin.

    Args:
      methods: name -> seeds -> after task 1, 2, ... -> curves; T is the same everywhere, the number of tasks within a
        method.
      files: name -> what its figures are called on disk.

    Returns:
      Five sections, each file name -> figure: "mean" (Delta averaged over pairs, absolute and relative, a line per
      method), "pairs" and "relative_pairs" (Delta, a figure per method), "errors" (eps-MSE after the last task, a
      figure per method) and "bits" (L_t after the last task, a line per method).
    """
    sections: dict[str, dict[str, Figure]] = {
        name: {} for name in ("mean", "pairs", "relative_pairs", "errors", "bits")
    }
    if not methods:
        return sections
    timesteps = next(iter(methods.values()))[0][0]["eps_mse"].shape[-1]
    edges = bin_edges(timesteps)
    t = centres(edges)
    errors = {
        name: [[binned(curves["eps_mse"], edges) for curves in seed] for seed in seeds]
        for name, seeds in methods.items()
    }
    for relative, difference, ending in ((False, delta, ""), (True, relative_delta, "-relative")):
        deltas = {name: [difference(seed) for seed in seeds] for name, seeds in errors.items()}
        lines = {
            name: mean_and_error([mean_over_pairs(d) for d in seeds]) for name, seeds in deltas.items() if seeds[0]
        }
        if lines:
            title, label = "forgetting, mean over pairs of tasks", _growth(relative)
            draw = functools.partial(lines_figure, t, title=title, y_label=label, zero=True)
            sections["mean"] |= in_panels(f"forgetting{ending}", lines, draw)
        for name, seeds in deltas.items():
            if pairs := mean_over_seeds(seeds):
                figure = forgetting_figure(t, pairs, title=name, relative=relative)
                sections["relative_pairs" if relative else "pairs"][f"forgetting{ending}-{files[name]}"] = figure
    for name, checkpoints in errors.items():
        last = np.mean([seed[-1] for seed in checkpoints], axis=0)
        tasks = {f"task {task + 1}": (values, None) for task, values in enumerate(last) if np.isfinite(values).any()}
        figure = lines_figure(t, tasks, title=name, y_label="error of the predicted noise")
        sections["errors"][f"eps_mse-{files[name]}"] = figure
    sections["bits"] = _bits_figures(methods, timesteps)
    return sections


def _bits_figures(methods: Mapping[str, Sequence[Sequence[Curves]]], timesteps: int) -> dict[str, Figure]:
    """L_t after the last task, mean over the tasks, over a logarithmic t: nearly all of the bound lies at small t."""
    edges = bin_edges(timesteps, logarithmic=True)
    figures: dict[str, Figure] = {}
    for kind in CURVES[1:]:
        lines = {
            name: mean_and_error([binned(np.mean(seed[-1][kind], axis=0), edges) for seed in seeds])
            for name, seeds in methods.items()
        }
        title = f"L_t with the {kind.removeprefix('bits_').replace('_', '-')} variance"
        t = centres(edges)
        draw = functools.partial(lines_figure, t, title=title, y_label="bits/dim a timestep", log_t=True)
        figures |= in_panels(kind, lines, draw)
    return figures


def mean_and_error(values: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
    """The mean of n arrays and its standard error, s / sqrt(n) with n - 1 degrees of freedom; None for a single one."""
    mean = np.mean(values, axis=0)
    return mean, np.std(values, axis=0, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else None


def _growth(relative: bool) -> str:
    return "relative growth of the error" if relative else "growth of the error"
