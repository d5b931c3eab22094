"""Two processes with two virtual devices each, on loopback, are one run: the same numbers, one writer, one end."""

import dataclasses
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from faults.lives import VICTIM, command, environment
from faults.victim import Fault
from jdcl_jax import main
from jdcl_jax.training.stopping import EXIT_AGAIN

WORDS = (
    "gd", "tasks.first=2", "train.steps=20", "train.steps_per_call=2", "checkpoint.every=1000", "train.log_every=10",
    "train.ema=0.9", "evaluation.weights=ema", "evaluation.scores=('kld','ard')",
)  # fmt: skip
FED = "data.device_memory_mib=0"
TERM = Fault("step", 11, 0.0, int(signal.SIGTERM), slow=0.5)  # JAX looks for it once a second
PATIENCE = 12  # seconds of silence after which a process counts as dead

pytestmark = pytest.mark.end_to_end


class Process:
    """One process of a run; process 0 of several writes."""

    def __init__(self, words: str, workdir: Path, fault: Fault | None, several: list[str]):
        self.log, self.workdir = Path(f"{workdir}.log"), workdir
        env = environment(FAULT=json.dumps(dataclasses.asdict(fault or Fault())), TRACE=f"{workdir}.trace")
        workdir.parent.mkdir(exist_ok=True)
        with self.log.open("ab") as out:
            arguments = [sys.executable, str(VICTIM), *command(words, workdir), *several]
            self.popen = subprocess.Popen(arguments, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def end(self) -> int:
        return self.popen.wait(timeout=280)

    def said(self) -> str:
        return self.log.read_text(errors="replace")


def one(words: str, workdir: Path, fault: Fault | None = None) -> Process:
    process = Process(words, workdir, fault, [])
    process.end()
    return process


def begin_two(
    words: str | tuple[str, str], workdir: Path, faults: tuple[Fault | None, Fault | None] = (None, None)
) -> list[Process]:
    each = (words, words) if isinstance(words, str) else words
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--multihost", f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--patience={PATIENCE}"]
    folders = (workdir, workdir.with_name("elsewhere"))
    return [Process(each[i], folders[i], faults[i], [*flags, f"--process={i}"]) for i in (0, 1)]


def two(words: str, workdir: Path, faults: tuple[Fault | None, Fault | None] = (None, None)) -> list[Process]:
    processes = begin_two(words, workdir, faults)
    for process in processes:
        process.end()
    return processes


def parameters(workdir: Path, task: int) -> dict[str, np.ndarray]:
    state = ocp.StandardCheckpointer().restore(workdir / "checkpoints" / "tasks" / str(task) / "state")
    leaves = jax.tree_util.tree_leaves_with_path(state["networks"]["denoiser"]["params"])
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def same_to_rounding(found: Path, wanted: Path) -> None:
    for task in (1, 2):
        ours, theirs = parameters(found, task), parameters(wanted, task)
        assert ours.keys() == theirs.keys()
        for name, leaf in theirs.items():
            np.testing.assert_allclose(ours[name], leaf, rtol=0, atol=1e-5, err_msg=f"task {task} {name}")


def steps(workdir: Path) -> list[int]:
    lines = [line.split() for line in Path(f"{workdir}.trace").read_text().splitlines()]
    return [int(words[1]) for words in lines if words[0] == "step"]


@pytest.fixture(scope="module")
def words(tiny_words) -> str:
    return tiny_words(*WORDS)


@pytest.fixture(scope="module")
def alone(words, tmp_path_factory) -> Path:
    """The run of one process with two devices."""
    process = one(words, tmp_path_factory.mktemp("alone") / "run")
    assert process.popen.returncode == 0, process.said()
    return process.workdir


@pytest.fixture(scope="module")
def stopped(words, tmp_path_factory) -> Path:
    """The folder of two processes that stopped in the second task, asked by a SIGTERM that only one of them got."""
    folder = tmp_path_factory.mktemp("stopped") / "two"
    processes = two(words, folder / "run", (None, TERM))
    assert [process.popen.returncode for process in processes] == [EXIT_AGAIN, EXIT_AGAIN], processes[0].said()
    return folder


@pytest.fixture(scope="module", params=["pmap", pytest.param("jit", marks=pytest.mark.long)])
def together(request, words, stopped, tmp_path_factory) -> list[Process]:
    """Two processes: under pmap those that stopped go on, under jit others make the whole run, fed by their hosts."""
    folder = tmp_path_factory.mktemp("together") / "two"
    if request.param == "pmap":
        shutil.copytree(stopped, folder)
        processes = two(words, folder / "run")
    else:
        processes = two(f"{words},parallel.mode=jit,{FED}", folder / "run")
    assert [process.popen.returncode for process in processes] == [0, 0], processes[0].said() + processes[1].said()
    return processes


def test_two_processes_leave_the_parameters_of_one(together, alone) -> None:
    """Forty steps, two tasks, the second with a teacher; under pmap stopped and resumed on the way."""
    same_to_rounding(together[0].workdir, alone)
    results = json.loads((together[0].workdir / "results.json").read_text())
    assert results["status"] == "finished"
    assert results["hardware"]["hosts"] == 2
    assert results["hardware"]["device"].endswith("x4")


def test_scores_are_of_images_of_all_devices(together, alone) -> None:
    found, wanted = (json.loads((w / "results.json").read_text()) for w in (together[0].workdir, alone))
    assert found["scores"]["kld"]["num_generated"] == wanted["scores"]["kld"]["num_generated"]
    np.testing.assert_allclose(found["scores"]["kld"]["union"], wanted["scores"]["kld"]["union"], atol=0.2)


def test_both_stop_at_the_same_step_and_none_is_made_twice(together) -> None:
    first, second = (steps(process.workdir) for process in together)
    assert first == second == list(range(2, 82, 2))[: len(first)]
    assert len(first) == 40 // 2


def test_who_stops_says_how_to_go_on(stopped) -> None:
    for name in ("run", "elsewhere"):
        assert "the same command goes on from there" in (stopped / f"{name}.log").read_text()
        assert len(steps(stopped / name)) < 40 // 2


def test_only_the_first_process_writes(together) -> None:
    assert (together[0].workdir / "report.html").exists()
    assert not together[1].workdir.exists()


@pytest.mark.long
def test_a_run_of_two_processes_goes_on_with_one_and_the_other_way_round(words, alone, stopped, tmp_path) -> None:
    shutil.copytree(stopped, tmp_path / "two")
    assert one(words, tmp_path / "two" / "run").popen.returncode == 0
    same_to_rounding(tmp_path / "two" / "run", alone)
    assert one(words, tmp_path / "one" / "run", TERM).popen.returncode == EXIT_AGAIN
    assert [p.popen.returncode for p in two(words, tmp_path / "one" / "run")] == [0, 0]
    same_to_rounding(tmp_path / "one" / "run", alone)


@pytest.mark.parametrize("dead", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_process_that_dies_ends_the_other_in_bounded_time(dead, words, tmp_path) -> None:
    faults = [None, None]
    faults[dead] = Fault("step", 5)
    processes = begin_two(words, tmp_path / "run", tuple(faults))
    processes[dead].end()
    died = time.monotonic()
    assert processes[1 - dead].end() == EXIT_AGAIN
    assert time.monotonic() - died < 3 * PATIENCE
    last = processes[1 - dead].said().rstrip().splitlines()[-1]
    assert last.startswith("error: another process of this run ended or can't be reached")
    assert "start the same command again on every host" in last


def test_a_process_that_finds_no_other_says_how_to_start(words, tmp_path) -> None:
    flags = ["--multihost", "--coordinator=127.0.0.1:1", "--processes=2", "--process=1", "--patience=5"]
    process = Process(words, tmp_path / "run", None, flags)
    assert process.end() in (2, EXIT_AGAIN)
    last = process.said().rstrip().splitlines()[-1]
    assert re.match(r"error: (--multihost can't find the other processes|another process .* can't be reached)", last)
    assert not (tmp_path / "run").exists()


def test_processes_that_were_not_started_alike_are_refused_by_all(words, tmp_path) -> None:
    """Their gradients are averaged, so that nothing else would show that half of every batch is of another seed."""
    processes = begin_two((words, f"{words},seed=1"), tmp_path / "run")
    assert [process.end() for process in processes] == [2, 2], processes[0].said()
    for process in processes:
        assert "the processes were not started alike: write the same config on every host" in process.said()
    assert not list(tmp_path.glob("*/checkpoints/*/*"))


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (SystemExit(2), 2, ""),
        (KeyboardInterrupt(), EXIT_AGAIN, "stopped without saving again; start the same command again on every host"),
        (jax.errors.JaxRuntimeError("UNKNOWN: Connection closed"), EXIT_AGAIN, "error: another process of this run"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: too large"), 1, "RESOURCE_EXHAUSTED: too large"),
        (ZeroDivisionError("ours"), 1, "ZeroDivisionError: ours"),
    ],
)
def test_only_a_lost_host_and_ctrl_c_ask_for_another_start(error, code, said, monkeypatch, capsys) -> None:
    """Else a scheduler that starts whatever ends so again would do it for ever."""
    ends = []
    monkeypatch.setattr("os._exit", ends.append)
    main._end_at_once(error)
    assert ends == [code]
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "flag",
    ["--coordinator=a:1", *(pytest.param(flag, marks=pytest.mark.long) for flag in ("--processes=2", "--process=0"))],
)
def test_what_is_said_of_hosts_without_multihost_is_refused(flag, words, tmp_path) -> None:
    process = Process(words, tmp_path / "run", None, [flag])
    assert process.end() == 2
    assert "is of no use without --multihost" in process.said().splitlines()[-1]
