"""The look of all figures, their bytes, and how many values fit in one."""

import io
import math
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# Okabe and Ito's colours, which stay apart for colour-blind readers; the yellow is left out, too
# pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, GRID = "#333333", "#dddddd"
LOG_RATIO = 20.0  # positive values that span more than this are drawn on a logarithmic scale
MAX_POINTS = 400  # of one line in a picture


def render(figure: Figure, kind: Literal["svg", "png"] = "svg") -> bytes:
    """The bytes of a picture, the same for the same figure. PNG has 110 dots per inch."""
    stream = io.BytesIO()
    if kind == "png":
        figure.savefig(stream, format="png", dpi=110)
    else:
        with matplotlib.rc_context({"svg.hashsalt": "jdcl_jax"}):
            figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def empty_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of that many inches in the look of all."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)  # inches
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#888888")
    axes.tick_params(colors=INK, labelsize=8.5)
    return figure, axes


def legend_below(figure: Figure) -> None:
    """Puts the legend of a figure's lines below it, in as many columns as its names leave room for.

    A legend that the figure has is taken away. The figure grows by the height of the new one, and in width if a name
    is longer than it.
    """
    rows = 0
    for legend in list(figure.legends):
        rows += math.ceil(len(legend.get_texts()) / 3)
        legend.remove()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    width, height = figure.get_size_inches()
    longest = max(map(len, labels), default=1)
    # Of 8 points a letter is about 0.06 inches wide; the line beside a name takes about half an inch.
    width = max(width, 0.6 + 0.065 * longest)
    columns = min(max(1, int(width / (0.5 + 0.06 * longest))), 5, len(labels))
    height += 0.15 * (math.ceil(len(labels) / columns) - rows)
    figure.set_size_inches(width, height)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def log_scale(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers at 1, 2 and 5 of each decade, fewer over many."""
    axes.set_yscale("log")
    low, high = axes.dataLim.intervaly
    subs = (1.0, 2.0, 5.0) if high < 300 * low else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def plain(text: str) -> str:
    """`text` with no part read as mathematics, nor kept out of a legend by its underscore."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def spans_decades(values: np.ndarray) -> bool:
    finite = values[np.isfinite(values)]
    return bool(finite.size and finite.min() > 0 and finite.max() > LOG_RATIO * finite.min())


def thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most about `MAX_POINTS` points, each the mean of as many neighbours."""
    size = -(-len(steps) // MAX_POINTS)
    if size <= 1:
        return steps, values
    bins = np.arange(len(steps)) // size
    filled = np.bincount(bins)
    return np.bincount(bins, steps) / filled, np.bincount(bins, values) / filled


def moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of `window` neighbours, of fewer at both ends."""
    ones = np.ones(window)
    # mode="same" of a window longer than the values would return the window's length; it never is.
    return np.convolve(values, ones, "same") / np.convolve(np.ones_like(values), ones, "same")
