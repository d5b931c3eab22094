"""Killed with SIGKILL and started again in a fresh process, a run ends with the very same bits.

The undisturbed run is made in this process; the killed one by the real command line, so that nothing but the files of
the workdir can carry anything over.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jdcl_jax.assembly import RunArrays, assemble
from jdcl_jax.experiment import run
from jdcl_jax.methods.method import DENOISER
from jdcl_jax.training.checkpoint import Checkpoints

pytestmark = [pytest.mark.end_to_end, pytest.mark.long]

REPOSITORY = Path(__file__).parents[1]

# Runs jdcl_jax.main as `python -m` does, but ends the process with SIGKILL at the n-th return of a function.
KILLED_AT = """
import importlib, os, runpy, signal, sys

module, name, function, count = sys.argv[1:5]
owner = getattr(importlib.import_module(module), name)
original, calls = getattr(owner, function), []

def killed(*args, **kwargs):
    value = original(*args, **kwargs)
    calls.append(1)
    if len(calls) == int(count):
        os.kill(os.getpid(), signal.SIGKILL)
    return value

setattr(owner, function, killed)
sys.argv[:] = sys.argv[4:]
runpy.run_module("jdcl_jax.main", run_name="__main__", alter_sys=True)
"""


def environment() -> dict[str, str]:
    return {**os.environ, "GLIBC_TUNABLES": "", "PYTHONPATH": str(REPOSITORY)}


def arguments(words: str, workdir: Path) -> list[str]:
    return [f"--config={REPOSITORY / 'configs' / 'digits.py'}:{words}", f"--workdir={workdir}"]


def start(command: list[str], log: Path) -> subprocess.Popen:
    with log.open("w") as out:
        return subprocess.Popen([sys.executable, *command], env=environment(), stdout=out, stderr=out)


def kill_when(process: subprocess.Popen, condition, log: Path) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def lines(workdir: Path) -> list[dict]:
    try:
        return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)]
    except (OSError, ValueError):  # not there yet, or half a line
        return []


def networks(workdir: Path, config) -> dict[str, np.ndarray]:
    """Every leaf of every task's checkpoint: parameters, optimiser, teacher."""
    checkpoints, shapes = Checkpoints(workdir / "checkpoints", read_only=True), RunArrays(assemble(config)).shapes()
    return {
        f"task {task} {jax.tree_util.keystr(path)}": np.asarray(leaf)
        for task in checkpoints.tasks()
        for path, leaf in jax.tree_util.tree_leaves_with_path(checkpoints.restore_task(task, shapes)[0])
    }


@pytest.fixture(scope="module")
def thrice_killed(gd_words, tmp_path_factory) -> Path:
    """A workdir whose run was killed three times, each time in another process, and then ended."""
    folder = tmp_path_factory.mktemp("killed")
    workdir = folder / "run"
    main = arguments(gd_words, workdir)

    # 1. from outside, as soon as task 2 is seen training
    log = folder / "1.log"
    first = start(["-m", "jdcl_jax.main", *main], log)
    kill_when(first, lambda: any(line["task"] == 2 for line in lines(workdir)), log)

    # 2. while the second checkpoint after that is still being written in the background
    log = folder / "2.log"
    second = start(["-c", KILLED_AT, "jdcl_jax.training.checkpoint", "Checkpoints", "save", "1", *main], log)
    assert second.wait(timeout=200) == -signal.SIGKILL, log.read_text()
    assert "resuming at task" in log.read_text()

    # 3. in an evaluation: its line is in metrics.jsonl, its scores not yet in results.json
    log = folder / "3.log"
    third = start(["-c", KILLED_AT, "jdcl_jax.reporting.writer", "Writer", "write_images", "1", *main], log)
    assert third.wait(timeout=200) == -signal.SIGKILL, log.read_text()
    assert lines(workdir)[-1]["phase"] == "evaluate"
    assert json.loads((workdir / "results.json").read_text())["status"] == "running"

    log = folder / "4.log"
    last = start(["-m", "jdcl_jax.main", *main], log)
    assert last.wait(timeout=200) == 0, log.read_text()
    assert "resuming at task" in log.read_text()
    assert f"report: {workdir}/report.html" in log.read_text()
    return workdir


def test_parameters_optimiser_and_teacher_are_bit_for_bit_those_of_an_undisturbed_run(thrice_killed, gd_run) -> None:
    killed, undisturbed = networks(thrice_killed, gd_run.config), networks(gd_run.workdir, gd_run.config)
    assert killed.keys() == undisturbed.keys()
    assert sum("task 3" in name for name in killed) > 100
    different = [n for n, leaf in undisturbed.items() if leaf.tobytes() != killed[n].tobytes()]
    assert different == []


def test_scores_are_equal(thrice_killed, gd_run) -> None:
    results = json.loads((thrice_killed / "results.json").read_text())
    for key in ("status", "scores", "assigned", "tasks", "instrument", "config", "provenance", "parameters"):
        assert results[key] == gd_run.results[key], key
    amounts = ("task", "phase", "steps", "images", "model_flops")
    assert [[row[k] for k in amounts] for row in results["cost"]] == [
        [row[k] for k in amounts] for row in gd_run.results["cost"]
    ]


def test_metrics_have_no_gap_no_line_twice_and_equal_values(thrice_killed, gd_run) -> None:
    def facts(workdir: Path) -> list[dict]:
        return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines(workdir)]

    assert facts(thrice_killed) == facts(gd_run.workdir)
    assert len(facts(thrice_killed)) == 15


def test_sample_grids_are_equal(thrice_killed, gd_run) -> None:
    for picture in sorted((gd_run.workdir / "samples").iterdir()):
        assert (thrice_killed / "samples" / picture.name).read_bytes() == picture.read_bytes()


def test_nothing_is_left_of_the_killed_processes(thrice_killed) -> None:
    left = [p.name for p in thrice_killed.rglob("*") if "orbax-checkpoint-tmp" in p.name or p.name.endswith(".tmp")]
    assert left == []


# -- the same comparison must fail where something is lost


def last_task_again(gd_run, folder: Path) -> Path:
    """A copy of the undisturbed run, put back to the middle of its last task."""
    workdir = folder / "run"
    shutil.copytree(gd_run.workdir, workdir)
    shutil.rmtree(workdir / "checkpoints" / "tasks" / "3")
    shutil.rmtree(workdir / "checkpoints" / "latest" / "24")  # before the last evaluation
    (workdir / "results.json").unlink()
    return workdir


def forget_nothing(state):
    return state


def forget_the_optimiser(state):
    network = state["networks"][DENOISER]
    fresh = jax.tree.map(np.zeros_like, network.opt_state)
    return {**state, "networks": {DENOISER: network.replace(opt_state=fresh)}}


def forget_the_teacher(state):
    return {**state, "memory": {"teacher": state["networks"][DENOISER].params}}


@pytest.mark.parametrize(
    ("forget", "same"), [(forget_nothing, True), (forget_the_optimiser, False), (forget_the_teacher, False)]
)
def test_the_end_differs_exactly_where_a_part_of_the_state_is_lost(forget, same, gd_run, tmp_path, monkeypatch) -> None:
    workdir = last_task_again(gd_run, tmp_path)
    restore = Checkpoints.restore_newest

    def lossy(self, target, order):
        state, record = restore(self, target, order)
        assert record["position"]["global_step"] == 20
        return forget(state), record

    monkeypatch.setattr(Checkpoints, "restore_newest", lossy)
    run(gd_run.config, workdir)
    ends = (networks(workdir, gd_run.config), networks(gd_run.workdir, gd_run.config))
    parameters = [name for name in ends[0] if name.startswith("task 3") and ".params" in name]
    assert parameters
    assert all(np.array_equal(ends[0][n], ends[1][n]) for n in parameters) is same
