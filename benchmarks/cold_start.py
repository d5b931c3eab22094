"""From the command to the first line of its log, ten steps: `python -m jdcl_jax.main`, with empty caches and with
those that it left.

python benchmarks/cold_start.py --out=results/cold-start.json
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _part
import _rows

ROOT = Path(__file__).parents[1]
CONFIG = "configs/digits.py:finetune,train.log_every=10"
LIMIT = 900
"""Seconds that a start may take."""


def measure(options: argparse.Namespace) -> list[_rows.Row]:
    rounds: dict[str, list[float]] = {"warm caches": [], "empty caches": []}
    for _ in range(1 if options.tiny else min(options.repeats, 3)):
        with tempfile.TemporaryDirectory() as folder:
            caches = Path(folder)
            rounds["empty caches"].append(_seconds_to_first_step(caches, "first"))
            rounds["warm caches"].append(_seconds_to_first_step(caches, "second"))
    return [_rows.timed_row("from the command to step 10, digits, finetune", "start", rounds)]


def _seconds_to_first_step(caches: Path, name: str) -> float:
    workdir = caches / name
    command = [sys.executable, "-m", "jdcl_jax.main", f"--config={CONFIG}", f"--workdir={workdir}"]
    environment = _part.empty_caches(str(caches))
    start = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            metrics = workdir / "metrics.jsonl"
            while not (metrics.exists() and metrics.read_text().count("\n")):
                if process.poll() is not None or time.perf_counter() - start > LIMIT:
                    raise SystemExit(f"the run ended before its first step: {' '.join(command)}")
                time.sleep(0.05)
            return time.perf_counter() - start
        finally:
            process.kill()


if __name__ == "__main__":
    _part.run_part(_part.parser(__doc__).parse_args(), measure)
