"""Many lines on several pictures: on each as many as can be told apart, all with the same axes."""

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
from matplotlib.figure import Figure

from jdcl_jax.reporting.figures import COLOURS, log_scale

Line = TypeVar("Line")


def in_panels(name: str, lines: Mapping[str, Line], draw: Callable[[Mapping[str, Line]], Figure]) -> dict[str, Figure]:
    """Draws lines on one picture, or on several where there are more of them than colours.

    Args:
      name: what the picture is called; several are called NAME-1, NAME-2, ...
      lines: by their names; each picture has some of them, in this order.
      draw: draws some of them.

    Returns:
      Name -> figure; of several all have the limits and the scale that one picture of all lines would have.
    """
    whole = draw(lines)
    if len(lines) <= len(COLOURS):
        return {name: whole}
    figures = {}
    groups = np.array_split(np.array(list(lines), dtype=object), math.ceil(len(lines) / len(COLOURS)))
    for number, group in enumerate(groups, 1):
        figure = figures[f"{name}-{number}"] = draw({key: lines[key] for key in group})
        axes, model = figure.axes[0], whole.axes[0]
        if model.get_yscale() == "log" and axes.get_yscale() != "log":
            log_scale(axes)
        elif model.get_yscale() != axes.get_yscale():
            axes.set_yscale(model.get_yscale())
        axes.set_ylim(model.get_ylim())
    return figures
