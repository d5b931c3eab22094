"""How near to rank 1 a run's Fisher information is: `python -m jdcl_jax.fisher --workdir=runs/digits-gd-0 --task=1`."""

from jdcl_jax.training.backend import reexec_with_hugepages

if __name__ == "__main__":
    reexec_with_hugepages()

import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jdcl_jax.errors import Arguments, UserError, exit_on_user_error
from jdcl_jax.measuring.curves import spread
from jdcl_jax.measuring.gradients_at import structures
from jdcl_jax.reporting.figures import render
from jdcl_jax.reporting.files import write_bytes
from jdcl_jax.reporting.grids import check_picture_path
from jdcl_jax.reporting.logs import plain_logging
from jdcl_jax.reporting.progress import Progress
from jdcl_jax.reporting.structure import structure_figure, structure_table
from jdcl_jax.restored import restore
from jdcl_jax.results import commit
from jdcl_jax.training.compile_cache import use_compilation_cache

MOST = 1_000_000  # gradients, and timesteps
RUN_FILES = ("config.json", "results.json", "study.json")


def measure(workdir: Path, *, task: int, images: int, timesteps: int) -> dict[str, Any]:
    """Cosines and eigenvalues at evenly spaced timesteps, on training images of the task learned last.

    They are those of the raw parameters, as the penalties take them, also where the run's scores are of their average.

    Args:
      workdir: a run's folder.
      task: after which task, from 1; 0: the last one saved.
      images: how many per-sample gradients at each timestep.
      timesteps: at how many.

    Raises:
      UserError: no such run or task, or gradients that do not fit into memory.
    """
    run = restore(workdir, task)
    split = spread(run.parts.sequence.train.task(run.task - 1), images)
    at = np.linspace(0, run.parts.setup.schedule.timesteps - 1, timesteps).round().astype(np.int64)
    progress, rows = Progress(), []
    progress.start("gradients", len(at), task=run.task, counts=False)
    for t, found in structures(run.parts.setup, run.raw, split, at):
        rows.append({"t": t, **dataclasses.asdict(found)})
        progress.update(len(rows))
    progress.close()
    facts = {"workdir": str(workdir), "task": run.task, "images": len(split), "weights": "raw", "commit": commit()}
    return {**facts, "method": run.parts.config.method.name, "dataset": run.parts.config.data.name, "rows": rows}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = Arguments(prog="python -m jdcl_jax.fisher", description=__doc__)
    parser.add_argument("--workdir", required=True, type=Path, help="a run's folder")
    parser.add_argument("--task", type=int, default=0, help="after which task, from 1; the last finished one if 0")
    parser.add_argument("--images", type=int, default=128, help="per-sample gradients at each timestep")
    parser.add_argument("--timesteps", type=int, default=11, help="at how many timesteps, evenly spaced")
    parser.add_argument("--out", type=Path, default=Path("fisher.png"), help="the picture (PNG); numbers go beside it")
    options = parser.parse_args(argv)
    plain_logging()
    with exit_on_user_error():
        check_picture_path(options.out)
        if not 3 <= options.images <= MOST or not 2 <= options.timesteps <= MOST or options.task < 0:
            raise UserError(f"--images counts from 3, --timesteps from 2, both to {MOST}, and --task from 0")
        if (numbers := options.out.with_suffix(".json")).name in RUN_FILES:
            raise UserError(
                f"--out={options.out}: its numbers would go to {numbers}, a file of runs; write another name"
            )
        use_compilation_cache()
        found = measure(options.workdir, task=options.task, images=options.images, timesteps=options.timesteps)
        found["command"] = shlex.join(["python", "-m", "jdcl_jax.fisher", *(sys.argv[1:] if argv is None else argv)])
        title = f"{found['method']} on {found['dataset']} after task {found['task']}, {found['images']} images"
        write_bytes(options.out, render(structure_figure(found["rows"], title=title), "png"))
        write_bytes(options.out.with_suffix(".json"), json.dumps(found, indent=1).encode())
        print(structure_table(found["rows"]))
        print(f"\n{options.out}, {options.out.with_suffix('.json')}")


if __name__ == "__main__":
    main()
