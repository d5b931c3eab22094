"""Runs with the small network that are stopped in the middle of a phase, and what their checkpoints hold.

They are stopped by an exception, and go on in the same process; tests/faults kills processes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jdcl_jax.assembly import RunArrays, assemble
from jdcl_jax.experiment import Experiment, run
from jdcl_jax.training.checkpoint import Checkpoints


class StoppedError(Exception):
    """The run has come to where it is to be stopped."""


def share_programs(patch: pytest.MonkeyPatch) -> None:
    """Runs of one config compile each phase once between them, as one run does for all its tasks."""
    compiled: dict[str, dict[Any, Any]] = {}
    begin = Experiment.__init__

    def sharing(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        self._compiled = compiled.setdefault(self.config.to_json(), self._compiled)

    patch.setattr(Experiment, "__init__", sharing)


def stopped_at(config: Any, workdir: Path, phase: int, step: int) -> tuple[int, int, int]:
    """Starts a run, or goes on with it, until that checkpoint of a phase of task 2 is saved.

    Returns:
      Task, phase and step of the run, all from 0, where it went on.
    """
    save, began = Checkpoints.save, []

    def stopping(self, number, state, record):
        place = record["position"]
        began.append((place["task"], place["phase"], place["step"]))
        save(self, number, state, record)
        if began[-1] == (1, phase, step):
            self.wait()
            raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", stopping)
        with pytest.raises(StoppedError):
            run(config, workdir, command="tests")
    return began[0]


def position(workdir: Path) -> tuple[int, int, int]:
    """Task, phase and step (all from 0) of the newest checkpoint in the middle of a task."""
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    found = checkpoints._record(checkpoints._latest, max(checkpoints._latest.all_steps()))["position"]
    return found["task"], found["phase"], found["step"]


_shapes: dict[str, Any] = {}


def shapes_of(config: Any) -> Any:
    """Of all that a run of this config keeps."""
    text = config.to_json()
    if text not in _shapes:
        _shapes[text] = RunArrays(assemble(config)).shapes()
    return _shapes[text]


def saved(workdir: Path, config: Any, task: int) -> Any:
    """The tree of a task's checkpoint, tasks from 1."""
    return Checkpoints(workdir / "checkpoints", read_only=True).restore_task(task, shapes_of(config))[0]


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


def end_of_task(workdir: Path, config: Any, forget: Callable[[Any], Any]) -> None:
    """Goes on from the newest checkpoint without what `forget` takes away, up to the end of that task.

    The task is not evaluated, and on the way nothing is saved.
    """
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
        patch.setattr(Checkpoints, "save", lambda *saved: None)
        patch.setattr(Experiment, "_evaluate", lambda self: None)
        with pytest.raises(StoppedError):
            run(config, workdir)
