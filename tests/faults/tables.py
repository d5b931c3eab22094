"""The campaign's file as the tables of docs/faults.md.

python tests/faults/tables.py results/faults/campaign.json
"""

import json
import sys
from pathlib import Path
from typing import Any

SIGNALS = ("SIGKILL", "SIGTERM")
UNSAVED = "ended_after_sigterm_without_saving"


def tables(found: dict[str, Any]) -> str:
    """Markdown: what was tried and survived by method, then by place."""
    methods = found["methods"]
    rows = [
        [
            f"`{name}`",
            *(f"{row['tried'].get(s, 0)} / {row['survived'].get(s, 0)}" for s in SIGNALS),
            f"{row['seconds_lost_per_resume']:.1f}",
            f"{row['most_seconds_to_end_after_sigterm']:.1f}",
            str(row[UNSAVED]),
            f"{sum(n > 0 for n in row['things_that_differ_without'].values())}"
            f" / {len(row['things_that_differ_without'])}",
            str(len(row["problems"])),
        ]
        for name, row in methods.items()
    ]
    head = ["method", *(f"{s} tried / survived" for s in SIGNALS), "seconds lost per resume"]
    head += ["most seconds to end after SIGTERM", "ended before they could save", "negative controls seen", "problems"]
    places = {place.partition(", ")[2] for row in methods.values() for place in row["tried"]} - {""}
    by_place = [[place, *(_sums(methods, f"{s}, {place}") for s in SIGNALS)] for place in sorted(places)]
    total = ["all", *(_sums(methods, s) for s in SIGNALS)]
    return f"{_table(head, rows)}\n{_table(['while', *(f'{s} tried / survived' for s in SIGNALS)], [*by_place, total])}"


def _sums(methods: dict[str, Any], key: str) -> str:
    return " / ".join(str(sum(row[kind].get(key, 0) for row in methods.values())) for kind in ("tried", "survived"))


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    print(tables(json.loads(Path(sys.argv[1]).read_text())), end="")
