"""Runs with the small network that are killed in the middle of a phase, and what their checkpoints hold."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jdcl_jax.assembly import RunArrays, assemble
from jdcl_jax.experiment import run
from jdcl_jax.training.checkpoint import Checkpoints

REPOSITORY = Path(__file__).parents[1]

# The command line, with the small network; it ends with SIGKILL when that checkpoint of a phase of task 2 is saved.
KILLED_IN = f"""
import os, runpy, signal, sys
from jdcl_jax.training.checkpoint import Checkpoints

sys.path.insert(0, {str(REPOSITORY / "tests")!r})
import small_runs

small_runs.quick(setattr)
save, where = Checkpoints.save, (1, int(sys.argv.pop(1)), int(sys.argv.pop(1)))

def killed(self, step, state, record):
    save(self, step, state, record)
    position = record["position"]
    if (position["task"], position["phase"], position["step"]) == where:
        self.wait()
        os.kill(os.getpid(), signal.SIGKILL)

Checkpoints.save = killed
runpy.run_module("jdcl_jax.main", run_name="__main__", alter_sys=True)
"""


def killed_at(words: str, workdir: Path, phase: int, step: int) -> str:
    """Starts configs/digits.py:words, or goes on with it, until it is killed there; what it said."""
    config = f"--config={REPOSITORY / 'configs' / 'digits.py'}:{words}"
    environment = {**os.environ, "GLIBC_TUNABLES": "", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", KILLED_IN, str(phase), str(step), config, f"--workdir={workdir}"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    return ended.stderr


def position(workdir: Path) -> tuple[int, int, int]:
    """Task, phase and step (all from 0) of the newest checkpoint in the middle of a task."""
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    found = checkpoints._record(checkpoints._latest, max(checkpoints._latest.all_steps()))["position"]
    return found["task"], found["phase"], found["step"]


def saved(workdir: Path, config: Any, task: int) -> Any:
    """The tree of a task's checkpoint, tasks from 1."""
    shapes = RunArrays(assemble(config)).shapes()
    return Checkpoints(workdir / "checkpoints", read_only=True).restore_task(task, shapes)[0]


def leaves(workdir: Path, config: Any, tasks: tuple[int, ...] = (1, 2, 3)) -> dict[str, bytes]:
    """Every leaf of every task's checkpoint: parameters, averages, optimisers, all that the method keeps."""
    return {
        f"task {task} {jax.tree_util.keystr(path)}": np.asarray(leaf).tobytes()
        for task in tasks
        for path, leaf in jax.tree_util.tree_leaves_with_path(saved(workdir, config, task))
    }


def zeros(tree: Any) -> Any:
    """The same shapes, forgotten."""
    return jax.tree.map(np.zeros_like, tree)


class StoppedError(Exception):
    """The run has reached the end of a task."""


def end_of_task(workdir: Path, config: Any, forget: Callable[[Any], Any]) -> None:
    """Goes on from the newest checkpoint without what `forget` takes away, up to the end of that task."""
    restore_newest, save_task = Checkpoints.restore_newest, Checkpoints.save_task

    def lossy(self, target, order):
        state, record = restore_newest(self, target, order)
        return forget(state), record

    def last(self, task, state, record):
        save_task(self, task, state, record)
        self.wait()
        raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "restore_newest", lossy)
        patch.setattr(Checkpoints, "save_task", last)
        with pytest.raises(StoppedError):
            run(config, workdir)
