"""What the phases of a method cost: arithmetic, images and seconds, training against replay and estimation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from jdcl_jax.reporting.compare import Group, Mean, mean_of
from jdcl_jax.reporting.figures import COLOURS, empty_figure, plain
from jdcl_jax.reporting.runs import Run

SAMPLING = "evaluate"
EVALUATION = ("measure", SAMPLING)
"""Phases that belong to no method; all others are its own cost."""


@dataclass(frozen=True)
class PhaseCost:
    """One phase of a method over all tasks of a run; means over the finished runs.

    `passes` is the cost of a step in forward passes of one batch, a backward pass counting as two, so that plain
    training is 3; NaN where a run does not say enough to know.
    """

    phase: str
    steps: Mean
    images: Mean
    passes: Mean
    flops: Mean
    seconds: Mean
    compiling: Mean


def phase_costs(group: Group) -> list[PhaseCost]:
    """The phases in the order in which they first appear, evaluation last."""
    names = {str(row["phase"]): None for run in group.finished for row in run.results.get("cost") or []}
    return [_phase(group, name) for name in sorted(names, key=_last)]


def _last(phase: str) -> int:
    """A key that puts evaluation behind all else."""
    return EVALUATION.index(phase) + 1 if phase in EVALUATION else 0


def _phase(group: Group, name: str) -> PhaseCost:
    runs = [run for run in group.finished if any(row["phase"] == name for row in run.results.get("cost") or [])]

    def mean(key: str) -> Mean:
        return mean_of([total(run, key, name) for run in runs])

    of_a_step = [math.nan if name in EVALUATION else passes_per_step(run, name) for run in runs]
    return PhaseCost(
        name,
        mean("steps"),
        mean("images"),
        mean_of(of_a_step),
        mean("model_flops"),
        mean("seconds"),
        mean("compile_seconds"),
    )


def total(run: Run, key: str, *phases: str) -> float:
    """The sum of one entry of a run's cost rows over these phases; over all but evaluation if none is named."""
    rows = [
        row
        for row in run.results.get("cost") or []
        if (row["phase"] in phases if phases else row["phase"] not in EVALUATION)
    ]
    values = [row.get(key) for row in rows]
    return math.fsum(value for value in values if isinstance(value, int | float)) if rows else math.nan


def passes(run: Run, *phases: str) -> float:
    """Forward passes of one batch that these phases (all but evaluation if none is named) stand for."""
    forward = _setting(run, "train", "batch_size") * forward_flops(run)
    return total(run, "model_flops", *phases) / forward if forward else math.nan


def passes_per_step(run: Run, phase: str) -> float:
    """The same of one step of a phase."""
    steps = total(run, "steps", phase)
    return passes(run, phase) / steps if steps else math.nan


def forward_flops(run: Run) -> float:
    """FLOPs of a forward pass on one image: recorded, or else what sampling spent on an image and step."""
    recorded = run.results.get("forward_flops")
    if isinstance(recorded, int | float):
        return float(recorded)
    guided = _setting(run, "sampler", "guidance") > 0 and (_section(run, "model").get("class_conditional") is True)
    passes = total(run, "images", SAMPLING) * _setting(run, "sampler", "steps") * (2 if guided else 1)
    return total(run, "model_flops", SAMPLING) / passes if passes else math.nan


def _section(run: Run, name: str) -> Mapping[str, Any]:
    return (run.results.get("config") or {}).get(name) or {}


def _setting(run: Run, section: str, key: str) -> float:
    value = _section(run, section).get(key)
    return float(value) if isinstance(value, int | float) else math.nan


def flops_figure(methods: Mapping[str, Sequence[PhaseCost]]) -> Figure:
    """The arithmetic of training a run of each method, by phase; evaluation is left out."""
    amounts = {name: {cost.phase: cost.flops.mean for cost in own} for name, own in methods.items()}
    figure = _bars(amounts, title="arithmetic of training", x_label="model FLOPs")
    figure.axes[0].xaxis.set_major_formatter(EngFormatter())
    return figure


def seconds_figure(methods: Mapping[str, Sequence[PhaseCost]]) -> Figure:
    """The same in time, without compilation, which a cache may have spared some of them."""
    amounts = {
        name: {c.phase: c.seconds.mean - np.nan_to_num(c.compiling.mean) for c in own if c.phase not in EVALUATION}
        for name, own in methods.items()
    }
    longest = max((np.nansum(list(own.values())) for own in amounts.values()), default=0.0)
    unit, size = ("hours", 3600.0) if longest > 7200 else ("minutes", 60.0) if longest > 300 else ("seconds", 1.0)
    scaled = {name: {phase: seconds / size for phase, seconds in own.items()} for name, own in amounts.items()}
    return _bars(scaled, title="time of training, without compilation", x_label=unit)


def _bars(methods: Mapping[str, Mapping[str, float]], *, title: str, x_label: str) -> Figure:
    """Bars from the left, stacked by phase, evaluation left out; the first method on top. NaN counts as nothing."""
    names = dict.fromkeys(phase for own in methods.values() for phase in own)
    phases = [phase for phase in names if phase not in EVALUATION]
    longest = max(map(len, methods), default=0)
    figure, axes = empty_figure(5.0 + 0.065 * longest, max(1.1 + 0.3 * len(methods), 0.5 + 0.17 * len(phases)))
    axes.set_title(plain(title), fontsize=10)
    at = np.arange(len(methods))
    left = np.zeros(len(methods))
    for index, phase in enumerate(phases):
        values = np.nan_to_num([own.get(phase, 0.0) for own in methods.values()])
        colour, hatch = COLOURS[index % len(COLOURS)], ("", "////", "....", "xxxx")[index // len(COLOURS) % 4]
        bars = axes.barh(at, values, left=left, height=0.65, color=colour, label=plain(phase))
        for bar in bars:
            bar.set(hatch=hatch, edgecolor="white", linewidth=0)
        left += values
    axes.set_yticks(at, [plain(name) for name in methods])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.set_xlabel(x_label, fontsize=8.5)
    if phases:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure
