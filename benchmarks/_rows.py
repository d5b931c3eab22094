"""Rows of the suite's table: seconds of one or several sides, their ratios, goals. Imports nothing heavy."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]
"""One line of the table.

  what: it is about.
  unit: of which `seconds` holds seconds: "step", "image", ...
  seconds: side -> seconds of one unit in every round, ours first.
  median: side -> their median.
  ratios: other side -> [median, least, largest] of ours / theirs, round by round.
  flops: floating-point operations of one unit, of matrix products and convolutions; added where they were counted.
  value: instead of seconds, a figure of the unit `unit`.
  goal: {"figure", "most" or "least", "met"}; a figure of None was not measured.
  devices: how many computed it, where that may differ from all of them.
  share_goal: the least share of the measured peak, where that is a goal.
"""


def timed_row(
    what: str, unit: str, seconds: Mapping[str, Sequence[float]], *, flops: float | None = None, **more: Any
) -> Row:
    """A row of timings, ours first; `seconds` are of one unit, one number a round."""
    sides = {side: [float(s) for s in rounds] for side, rounds in seconds.items()}
    ours, *others = sides
    row: Row = {
        "what": what,
        "unit": unit,
        "seconds": sides,
        "median": {side: statistics.median(rounds) for side, rounds in sides.items()},
        "ratios": {other: ratio(sides[ours], sides[other]) for other in others},
    }
    return {**row, **({"flops": flops} if flops else {}), **more}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """[median, least, largest] of the quotients, round by round."""
    quotients = [a / b for a, b in zip(ours, theirs, strict=True)]
    return [statistics.median(quotients), min(quotients), max(quotients)]


def figure_row(what: str, value: float, unit: str, **more: Any) -> Row:
    """A row of one number that is not seconds a unit."""
    return {"what": what, "unit": unit, "value": float(value), **more}


def with_goal(row: Row, figure: float | None, *, most: float | None = None, least: float | None = None) -> Row:
    """The row with a goal that `figure` meets or not; None was not measured."""
    limit = {"most": most} if most is not None else {"least": least}
    if figure is None:
        return {**row, "goal": {"figure": None, **limit, "met": False}}
    met = figure <= most if most is not None else least is not None and figure >= least
    return {**row, "goal": {"figure": float(figure), **limit, "met": bool(met)}}


def line(row: Row) -> str:
    """A row as a line of text."""
    parts = [row["what"] + ":"]
    if "value" in row:
        parts.append(f"{row['value']:.4g} {row['unit']}")
    for side, median in row.get("median", {}).items():
        rounds = row["seconds"][side]
        parts.append(f"{side} {median:.4g} s/{row['unit']} ({min(rounds):.4g} to {max(rounds):.4g}),")
    for other, (median, least, most) in row.get("ratios", {}).items():
        parts.append(f"/ {other} = {median:.3f} ({least:.3f} to {most:.3f})")
    if share := row.get("share"):
        parts.append(f"{share:.0%} of the measured peak")
    if goal := row.get("goal"):
        parts.append(f"[goal {limit_text(goal)}: {verdict(goal)}]")
    return " ".join(parts)


def verdict(goal: Mapping[str, Any]) -> str:
    """Whether it is met."""
    return "met" if goal["met"] else "not measured" if goal["figure"] is None else "NOT met"


def limit_text(goal: Mapping[str, Any]) -> str:
    """What a goal asks for."""
    return f"at most {goal['most']:g}" if "most" in goal else f"at least {goal['least']:g}"
