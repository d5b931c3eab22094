"""The demo from end to end: `python -m jdcl_jax.main --config=configs/digits.py`, with empty caches.

python benchmarks/demo.py --out=results/demo.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _part
import _rows

ROOT = Path(__file__).parents[1]
TINY = "finetune,generation,train.steps=10,evaluation.num_samples=64,tasks.first=1,evaluation.likelihood.images=0"


def measure(options: argparse.Namespace) -> list[_rows.Row]:
    argument = f":{TINY},evaluation.scores=('kld',)" if options.tiny else ""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        command = [sys.executable, "-m", "jdcl_jax.main", f"--config=configs/digits.py{argument}"]
        start = time.perf_counter()
        environment = _part.empty_caches(folder)
        subprocess.run(
            [*command, f"--workdir={workdir}"], cwd=ROOT, env=environment, check=True, stderr=subprocess.DEVNULL
        )
        seconds = time.perf_counter() - start
        results = json.loads((workdir / "results.json").read_text())
    compiling = sum(entry["compile_seconds"] for entry in results["cost"])
    row = _rows.timed_row("the digits demo", "run", {"jdcl_jax": [seconds]}, compile_seconds=compiling)
    accuracy = results["scores"].get("accuracy", {}).get("union")
    return [{**row, **({"accuracy": accuracy[-1]} if accuracy else {})}]


if __name__ == "__main__":
    _part.run_part(_part.parser(__doc__, rounds=False).parse_args(), measure)
