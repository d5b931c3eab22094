"""Whether a task costs more the more tasks went before: twenty tasks by every method, seconds and steps of each.

    python benchmarks/growth.py --out=results/growth.json

Whole runs by a small network on random pixels of 20 classes. Of each task training counts, without compiling, and what
the method makes of it for later tasks; the last task is left out, which keeps nothing. Methods whose replay set holds a
quota of every class draw and keep more with every task, by their design: for these the row tells what training costs,
and drawing and keeping apart. Those that keep a direction of every task have no goal: their arrays are made
for all tasks of the sequence at once.
"""

from jdcl_jax.training.backend import reexec_with_hugepages

if __name__ == "__main__":
    reexec_with_hugepages()

import argparse
import functools
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import _configs
import _ours
import _part
import _rows
import jax
import ml_collections
import numpy as np

from jdcl_jax import experiment
from jdcl_jax.assembly import Parts, assemble
from jdcl_jax.methods.method import Method
from jdcl_jax.methods.registry import default_options

BOUNDED = (
    "finetune", "er", "agem", "lwf", "gaussian", "symmetric_gaussian", "trajectory", "gr", "gd",
    "l2", "si", "ewc", "mas", "gpm", "ewc+gd",
)  # fmt: skip
WITH_DIRECTIONS = ("rank1_ewc", "rank1_ewc+gd")
WITH_QUOTAS = ("jdcl", "gppdm", "ddgr", "guide")
DRAW, KEEP = "draw", "keep"
GOAL = 1.10  # a task of the last quarter / one of the second; how far single tasks differ anyway [ours]
EVALUATION = ("measure", "evaluate")
STEPS = 40  # a task
OPTIONS = {
    "quota": 8,
    "replay_steps": 4,
    "replay_batch": 8,
    "global_steps": STEPS,
    "class_delay": 0,
    "replay_per_class": 8,
    "buffer_size": 40,
    "samples": 32,
}
"""Of methods; each takes those that it has."""
WITHOUT_EFFECT = {"gppdm": {"samples"}}
"""Options that a method has and refuses with the layers that it protects by default."""


def measure(options: argparse.Namespace) -> list[_rows.Row]:
    tasks = 4 if options.tiny else 20
    methods = options.methods or (["finetune"] if options.tiny else [*BOUNDED, *WITH_DIRECTIONS, *WITH_QUOTAS])
    rows = []
    for method in methods:
        print(f"{method}: {tasks} tasks", file=sys.stderr)
        rows.append(_row(method, tasks))
        _ours.forget_programs()
    return rows


def _row(method: str, tasks: int) -> _rows.Row:
    """Seconds of single tasks, those of the last quarter but the very last against those of the second."""
    cost, apart = _cost(method, tasks), (DRAW, KEEP) if method in WITH_QUOTAS else ()
    counted = [entry for entry in cost if entry["phase"] not in (*EVALUATION, *apart)]
    seconds, quarter = _by_task(counted, tasks), tasks // 4
    late = slice(tasks - quarter - 1, tasks - 1)
    row = _rows.timed_row(
        f"a task of {method} after {late.start} others / after {quarter}",
        "task",
        {"late": seconds[late], "early": seconds[quarter : 2 * quarter]},
        seconds_a_step=_seconds_a_step(counted),
        drawing_and_keeping=_by_task([entry for entry in cost if entry["phase"] in apart], tasks),
    )
    if method in WITH_DIRECTIONS:
        return row
    return _rows.with_goal(row, row["median"]["late"] / row["median"]["early"], most=GOAL)


def _by_task(entries: list[dict[str, Any]], tasks: int) -> list[float]:
    seconds = [0.0] * tasks
    for entry in entries:
        seconds[entry["task"] - 1] += entry["seconds"] - entry["compile_seconds"]
    return seconds


def _seconds_a_step(entries: list[dict[str, Any]]) -> dict[str, float]:
    """Of every phase, the median over the tasks."""
    found: dict[str, list[float]] = {}
    for entry in entries:
        if entry["steps"]:
            seconds = (entry["seconds"] - entry["compile_seconds"]) / entry["steps"]
            found.setdefault(entry["phase"], []).append(seconds)
    return {name: float(np.median(values)) for name, values in found.items()}


def _cost(method: str, tasks: int) -> list[dict[str, Any]]:
    """What the run's record says of each phase of each task, and what keeping took."""
    keeping: list[dict[str, Any]] = []

    def assembled(config: ml_collections.ConfigDict) -> Parts:
        parts = assemble(config)
        time_keeping(parts.method, keeping)
        return parts

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(experiment, "assemble", assembled):
        config = make_config(method, tasks, folder)
        results = experiment.run(config, Path(folder) / "run", stream=io.StringIO())
    return [*results["cost"], *keeping]


def time_keeping(method: Method, entries: list[dict[str, Any]]) -> None:
    """Makes the method note in an entry what each end of a phase or task takes."""

    def timed(end: Callable[..., Any], memory: Any, learned: Any, task: int, *more: Any) -> Any:
        start = time.perf_counter()
        kept = jax.block_until_ready(end(memory, learned, task, *more))
        seconds = time.perf_counter() - start
        entries.append({"task": task + 1, "phase": KEEP, "seconds": seconds, "compile_seconds": 0.0, "steps": 0})
        return kept

    for name in ("end_phase", "end_task"):  # a method with penalties is frozen
        object.__setattr__(method, name, functools.partial(timed, getattr(method, name)))


def make_config(method: str, tasks: int, folder: str) -> ml_collections.ConfigDict:
    """The config of a method's run on random pixels, which are written into the folder."""
    words = [method, *([] if method in WITH_QUOTAS else ["generation"])]
    config = _configs.config_of("configs/digits.py", *words)
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (tasks * 64, 8, 8, 1), np.uint8), np.arange(tasks * 64) % tasks
    file = Path(folder) / "random.npz"
    np.savez(file, images=images, labels=labels, test_images=images[:320], test_labels=labels[:320])
    with config.unlocked():
        config.data.update(name=f"npz:{file}", validation=0.0)
        config.tasks.num_tasks = tasks
        config.model.update(channels=(8, 16), groups=4)
        config.train.update(steps=STEPS, batch_size=32, log_every=STEPS)
        config.solver.steps = STEPS
        config.evaluation.update(num_samples=tasks, scores=("kld",), cache_dir=folder)
        config.evaluation.classifier.steps = 20
        config.evaluation.likelihood.images = 0
        config.checkpoint.every = 10 * STEPS
        known = {key for name in method.split("+") for key in default_options(name)} - WITHOUT_EFFECT.get(method, set())
        config.method.update({key: value for key, value in OPTIONS.items() if key in known})
    return config.lock()


if __name__ == "__main__":
    made = _part.parser(__doc__, rounds=False)
    made.add_argument("--methods", nargs="+", choices=(*BOUNDED, *WITH_DIRECTIONS, *WITH_QUOTAS), help="only these")
    _part.run_part(made.parse_args(), measure)
