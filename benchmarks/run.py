"""The whole suite: every part in a process of its own, one after another, one file, one table.

    python benchmarks/run.py --peer=torch --out=results/bench-cpu.json
    python benchmarks/run.py --show=results/bench-cpu.json

On a GPU the same command measures the same parts with larger batches and in bfloat16. A part that fails is named at the
end, and the others are kept; `--parts` measures some anew and leaves the rest of the file as it is. `--show` prints a
file's table as Markdown. The machine should be quiet meanwhile.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _part
from _rows import Row, limit_text, verdict, with_goal

PARTS = (
    "ceilings", "train_step", "step_profile", "attention", "sampling", "replay_cost",
    "growth", "evaluation", "checkpoint", "cold_start", "demo",
)  # fmt: skip
WITH_PEERS, WITHOUT_ROUNDS = ("train_step", "sampling"), ("step_profile", "growth", "demo")
PRODUCT = "matrix product"


def main() -> None:
    options = _options()
    if options.show:
        print(markdown(json.loads(options.show.read_text()), str(options.show)))
        return
    known = _known(options.out)
    failed = []
    for part in options.parts:
        print(f"-- {part}", flush=True)
        found = _run(part, options)
        if found is None:
            failed.append(part)
            continue
        known["parts"][part] = found
        _with_shares(known["parts"])
        _part.write_json(options.out, known)
    print(markdown(known, str(options.out)))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def _known(file: Path) -> dict[str, Any]:
    """What the file holds already."""
    return json.loads(file.read_text()) if file.exists() else {"parts": {}}


def _options() -> argparse.Namespace:
    made = _part.parser(__doc__, peers=True)
    made.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="only these")
    made.add_argument("--show", type=Path, help="print the table of this file and measure nothing")
    options = made.parse_args()
    if not options.out and not options.show:
        made.error("write --out=results/bench-DEVICE.json")
    if options.show and not options.show.is_file():
        made.error(f"there is no file {options.show}; measure with --out={options.show} first")
    file = options.show or options.out
    known = _known(file).get("parts")
    if known is None:
        made.error(f"{file} is of one part alone, not of the suite; name another file")
    for part in () if options.show else known.values():
        if options.tiny != part.get("tiny", False):
            made.error(f"{file} was measured {'without' if options.tiny else 'with'} --tiny; name another file")
        if (processor := part["hardware"]["processor"]) != _part.processor():
            made.error(f"{file} was measured on another processor, {processor}; name another file")
    return options


def _run(part: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """The record of a part, or None if it failed."""
    script, start = Path(__file__).with_name(f"{part}.py"), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "part.json"
        words = [
            *([] if part in WITHOUT_ROUNDS else [f"--repeats={options.repeats}"]),
            *(["--tiny"] if options.tiny else []),
        ]
        if options.peer and part in WITH_PEERS:
            words.append(f"--peer={options.peer}")
        done = subprocess.run([sys.executable, str(script), *words, f"--out={out}"], check=False)
        if done.returncode or not out.exists():
            return None
        command = shlex.join(["python", f"benchmarks/{script.name}", *words])
        return {**json.loads(out.read_text()), "command": command, "part_seconds": time.perf_counter() - start}


def _with_shares(parts: dict[str, Any]) -> None:
    """Adds to every row whose operations are known its share of the measured matrix product's rate."""
    products = parts.get("ceilings", {}).get("rows", [])
    peaks = {row["what"].split(", ")[1]: row for row in products if row["what"].startswith(PRODUCT)}
    for part in parts.values():
        for row in part["rows"]:
            if row.get("flops") and not row["what"].startswith(PRODUCT) and row.get("dtype", "float32") in peaks:
                peak = peaks[row.get("dtype", "float32")]
                of_all = row.get("devices", peak["devices"]) / peak["devices"]
                rate = row["flops"] / row["median"][next(iter(row["median"]))]
                row["share"] = rate / (peak["flops_per_second"] * of_all)


def markdown(result: dict[str, Any], file: str) -> str:
    """The table; every number is followed by the file that holds it."""
    lines = ["| what | seconds | beside | ratio | of peak | goal |", "|---|---|---|---|---|---|"]
    for part in result["parts"].values():
        lines += [line for row in part["rows"] for line in _table_lines(row, f"<!-- from: {file} -->")]
    return "\n".join(lines)


def _table_lines(row: Row, source: str) -> list[str]:
    def number(value: float) -> str:
        return f"{value:.4g} {source}"

    share = f"{row['share']:.2f} {source}" if row.get("share") else ""
    if "share_goal" in row:
        wanted = with_goal({}, row.get("share"), least=row["share_goal"])["goal"]
        share = f"{share} {limit_text(wanted)}: {_emphasised(wanted)}".lstrip()
    goal = ""
    if "goal" in row:
        figure = row["goal"]["figure"]
        number_of_goal = "" if figure is None else f"{figure:.3f} {source} "
        goal = f"{limit_text(row['goal'])}: {number_of_goal}{_emphasised(row['goal'])}"
    if "value" in row:
        return [f"| {row['what']} | {number(row['value'])} {row['unit']} | | | | {goal} |"]
    ours = next(iter(row["median"].values()))
    first = f"| {row['what']} | {number(ours)} {'an' if row['unit'][0] in 'aeio' else 'a'} {row['unit']} |"
    others = list(row["ratios"].items())
    if not others:
        return [f"{first} | | {share} | {goal} |"]
    lines = []
    for place, (name, (ratio, least, most)) in enumerate(others):
        start = first if place == 0 else "| | |"
        end = f"{share} | {goal} |" if place == 0 else " | |"
        spread = f"{ratio:.3f} {source} ({least:.3f} to {most:.3f} {source})"
        lines.append(f"{start} {name}: {number(row['median'][name])} | {spread} | {end}")
    return lines


def _emphasised(goal: dict[str, Any]) -> str:
    return verdict(goal) if goal["met"] else f"**{verdict(goal)}**"


if __name__ == "__main__":
    main()
