"""The picture and the table of what per-sample gradients have in common at each timestep."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from jdcl_jax.reporting.figures import COLOURS, empty_figure
from jdcl_jax.reporting.formats import number


def structure_figure(rows: Sequence[Mapping[str, Any]], *, title: str) -> Figure:
    """Cosine to the mean of the others, its spread, and lambda_2 / lambda_1, over the timestep.

    Args:
      rows: "t", "cosine", "cosine_std" and "ratio" of each timestep.
      title: what was measured.
    """
    figure, axes = empty_figure(6.4, 3.6)
    t = [row["t"] for row in rows]
    low = [row["cosine"] - row["cosine_std"] for row in rows]
    high = [row["cosine"] + row["cosine_std"] for row in rows]
    axes.fill_between(t, low, high, color=COLOURS[0], alpha=0.18, linewidth=0, label="± its standard deviation")
    axes.plot(
        t,
        [row["cosine"] for row in rows],
        "o-",
        color=COLOURS[0],
        label="mean cosine of a gradient to the mean of the others",
    )
    axes.plot(t, [row["ratio"] for row in rows], "s-", color=COLOURS[1], label="λ₂ / λ₁ of the Fisher information")
    axes.set_ylim(min(0.0, *low) - 0.02, 1.02)
    axes.set_xlabel("timestep t")
    axes.set_title(title, fontsize=10)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def structure_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same as text."""
    lines = [f"{'t':>5} {'cosine':>8} {'spread':>8} {'l2/l1':>8} {'l1/trace':>9} {'|g|':>9}"]
    for row in rows:
        cells = [number(row[name], digits=3) for name in ("cosine", "cosine_std", "ratio", "share", "norm")]
        widths = (8, 8, 8, 9, 9)
        lines.append(f"{row['t']:>5} " + " ".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)))
    return "\n".join(lines)
