"""Plain-text tables for terminals."""

from collections.abc import Mapping, Sequence
from typing import Any

from jdcl_jax.reporting.formats import number
from jdcl_jax.reporting.runs import Score, parse_scores, summary_names

TASKS_IN_A_BLOCK = 8  # so that a line stays within about 100 characters


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns beside each other, the first flush left, a rule below the header."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        return "  ".join([first, *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))])

    return "\n".join(part.rstrip() for part in [line(header), "-" * len(line(header)), *map(line, rows)])


def score_table(results: Mapping[str, Any]) -> str:
    """The scores of a run after its last evaluated task.

    A row per score: its value on each task and on the union of the tasks seen, then its summaries.
    Long task sequences are broken into blocks of columns. Below, the formula of each summary.

    Args:
      results: the tree of results.json, finished or not.
    """
    scores = parse_scores(results)
    last = max((score.last_row for score in scores.values()), default=-1)
    if last < 0:
        return "no scores yet"
    num_tasks = len(results["tasks"])
    title = f"scores after task {last + 1} of {num_tasks}"
    summaries = [name for name in summary_names(scores) if name != "last_union"]  # the column "union" is the same
    columns = [
        (f"task {j + 1}", {name: score.matrix[last, j] for name, score in scores.items()}) for j in range(last + 1)
    ]
    columns.append(("union", {name: score.union[last] for name, score in scores.items()}))
    extra = [
        (
            key,
            {name: score.summary[key].value for name, score in scores.items() if key in score.summary},
        )
        for key in summaries
    ]
    blocks = _blocks(columns, extra)
    tables = [
        text_table(
            ["score", "better", *(head for head, _ in block)],
            [
                [
                    name,
                    "lower" if score.lower_is_better else "higher",
                    *(number(values.get(name)) for _, values in block),
                ]
                for name, score in scores.items()
            ],
        )
        for block in blocks
    ]
    legend = formulas(scores)
    return "\n\n".join([title, *tables] + (["\n".join(legend)] if legend else []))


def _blocks(columns: list[Any], extra: list[Any]) -> list[list[Any]]:
    """One table where it fits, else tasks in blocks and the summaries in a table of their own."""
    if len(columns) <= TASKS_IN_A_BLOCK:
        return [columns + extra]
    blocks = [columns[start : start + TASKS_IN_A_BLOCK] for start in range(0, len(columns), TASKS_IN_A_BLOCK)]
    return blocks + ([extra] if extra else [])


def formulas(scores: Mapping[str, Score]) -> list[str]:
    """A line per summary and formula, with the scores that use it where not all do.

    >>> formulas(scores)
    ["forgetting_max (fd_classifier): mean_{j<T} (R[T,j] - min_{i<T} R[i,j])", ...]
    """
    lines = []
    for key in summary_names(scores):
        users: dict[str, list[str]] = {}
        for name, score in scores.items():
            if key in score.summary and score.summary[key].formula:
                users.setdefault(score.summary[key].formula, []).append(name)
        for formula, names in users.items():
            whose = "" if len(users) == 1 else f" ({', '.join(names)})"
            lines.append(f"{key}{whose}: {formula}")
    return lines
