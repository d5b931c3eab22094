"""How long checkpoints hold up training: all that a run of `gd` keeps, its teacher too, is saved while steps go on.

    python benchmarks/checkpoint.py --out=results/checkpoint.json

Rounds with a checkpoint and without alternate; what a round takes longer is what one checkpoint costs, its writing in
the background included. The share is of the time between two checkpoints, `checkpoint.every` steps.
"""

from jdcl_jax.training.backend import reexec_with_hugepages

if __name__ == "__main__":
    reexec_with_hugepages()

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import _compare
import _ours
import _part
import _rows
import jax
from _sizes import SIZES

from jdcl_jax.assembly import RunArrays
from jdcl_jax.training.checkpoint import Checkpoints
from jdcl_jax.training.parallel import Parallel

GOAL = 0.05


def measure(options: argparse.Namespace) -> list[_rows.Row]:
    name = "tiny" if options.tiny else "large"
    batch = SIZES[name].batch_on(jax.default_backend(), "train")
    parts = _ours.make_parts(SIZES[name], batch, method="gd", dtype=_ours.compute_dtype())
    parallel = Parallel()
    state = parallel.replicate(RunArrays(parts).initial())
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    calls, per_call = 4, 2
    run, _ = _ours.train_job(parts, parallel, per_call)
    number, stalls = itertools.count(1), []

    def steps() -> None:
        run(calls)

    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))

        def steps_and_checkpoint() -> None:
            start = time.perf_counter()
            checkpoints.save(next(number), state, {})
            stalls.append(time.perf_counter() - start)
            steps()
            checkpoints.wait()

        sides = {"with": _compare.timed(steps_and_checkpoint, 1), "without": _compare.timed(steps, 1)}
        timings = _compare.alternate(sides, options.repeats)
        checkpoints.close()
    pairs = zip(timings["with"], timings["without"], strict=True)
    cost = statistics.median(a - b for a, b in pairs)
    between = parts.config.checkpoint.every * statistics.median(timings["without"]) / (calls * per_call)
    row = _rows.timed_row(
        f"{calls * per_call} train steps, {name}, with a checkpoint of {size / 2**20:,.0f} MiB / without",
        "round",
        timings,
        stall_seconds=statistics.median(stalls),
        cost_seconds=cost,
        every=parts.config.checkpoint.every,
    )
    figure = _rows.figure_row(f"checkpoint every {parts.config.checkpoint.every} steps", cost / between, "of the time")
    return [row, _rows.with_goal(figure, figure["value"], most=GOAL)]


if __name__ == "__main__":
    _part.run_part(_part.parser(__doc__).parse_args(), measure)
