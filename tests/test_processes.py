"""Several commands at once: how many, on which cores, and what becomes of them when one fails or all must end."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jdcl_jax import processes
from jdcl_jax.errors import UserError
from jdcl_jax.processes import (
    Interrupted,
    Job,
    automatic_jobs,
    core_shares,
    environment,
    last_line,
    places,
    run_all,
    time_left,
)

GIB = 2**30
REPOSITORY = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("accelerator", "cores", "free_gib", "jobs"),
    [(True, 64, 500, 1), (False, 8, 500, 8), (False, 8, 7.9, 3), (False, 8, 0.5, 1), (False, 1, 500, 1)],
)
def test_one_job_an_accelerator_or_as_many_as_cores_and_memory_hold(accelerator, cores, free_gib, jobs) -> None:
    assert automatic_jobs(accelerator=accelerator, cores=cores, free_memory=int(free_gib * GIB)) == jobs


@pytest.mark.parametrize(
    ("cores", "jobs", "shares"),
    [
        ([0, 1, 2, 3, 4], 2, [(0, 1, 2), (3, 4)]),
        ([4, 7], 2, [(4,), (7,)]),
        ([4, 7], 3, [(4,), (7,), (4,)]),
        ([0, 1, 2], 1, [(0, 1, 2)]),
        (list(range(8)), 3, [(0, 1, 2), (3, 4, 5), (6, 7)]),
    ],
)
def test_cores_are_shared_evenly(cores, jobs, shares) -> None:
    assert core_shares(cores, jobs) == shares


def test_the_places_of_a_machine(monkeypatch) -> None:
    monkeypatch.setattr(processes, "accelerator_expected", lambda: False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5, 2, 3})
    monkeypatch.setattr(processes, "free_memory", lambda: 100 * GIB)
    assert places(0, 10) == [(2,), (3,), (5,)]
    assert places(0, 2) == [(2, 3), (5,)]
    assert places(2, 10) == [(2, 3), (5,)]
    assert places(0, 1) == [None]
    monkeypatch.setattr(processes, "free_memory", lambda: 5 * GIB)
    assert places(0, 10) == [(2, 3), (5,)]
    monkeypatch.setattr(processes, "accelerator_expected", lambda: True)
    assert places(0, 10) == [None]
    assert places(3, 10) == [None, None, None]


def test_free_memory_is_that_of_this_machine() -> None:
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0.001 * whole < processes.free_memory() <= whole


def test_a_job_on_a_single_core_sees_one_device_unless_the_user_says_otherwise(monkeypatch) -> None:
    for name in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "XLA_PYTHON_CLIENT_PREALLOCATE", "JAX_TRACEBACK_FILTERING"):
        monkeypatch.delenv(name, raising=False)
    assert environment((3,), 2)["JAX_NUM_CPU_DEVICES"] == "1"
    assert "JAX_NUM_CPU_DEVICES" not in environment((3, 4), 2)
    assert "XLA_PYTHON_CLIENT_PREALLOCATE" not in environment((3,), 2)
    assert "XLA_PYTHON_CLIENT_PREALLOCATE" not in environment(None, 1)
    assert environment(None, 2)["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert environment(None, 1)["JAX_TRACEBACK_FILTERING"] == "off"
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    assert "JAX_NUM_CPU_DEVICES" not in environment((3,), 2)
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "4")
    assert environment((3,), 2)["JAX_NUM_CPU_DEVICES"] == "4"


def test_the_time_left_by_hand() -> None:
    took = {"a": [10.0, 30.0], "b": [100.0]}
    # Waiting: a 20, b 100, c as all the others 140 / 3. Running: a has 5 left, b is late. On two places at once.
    left = time_left(took, ["a", "b", "c"], [("a", 15.0), ("b", 150.0)], 2)
    assert left == pytest.approx((20 + 100 + 140 / 3 + 5) / 2)
    assert time_left(took, ["a"], [], 4) == 20  # a single job can't be shared
    assert math.isnan(time_left({}, ["a"], [], 1))
    assert time_left(took, [], [], 2) == 0


def test_the_last_line_of_a_log(tmp_path) -> None:
    log = tmp_path / "log"
    assert last_line(log) == ""
    log.write_bytes(b"x\n" * 10_000 + b"error: \xff no\n\n  \n")
    assert last_line(log) == "error: � no"


@pytest.fixture
def job(tmp_path):
    """`job("a", "print(1)")` is a job that runs Python code in which `here` is the test's folder."""

    def make(name: str, code: str, *, kind: str = "", ready: str = "") -> Job:
        preamble = "import json, os, sys, time, pathlib; here = pathlib.Path(sys.argv[1]); "
        command = [sys.executable, "-S", "-c", preamble + code, str(tmp_path)]
        return Job(
            name, kind or name, command, tmp_path / "logs" / f"{name}.log", tmp_path / (ready or f"{name}.ready")
        )

    return make


WAIT = "\nwhile not (here / '{}').exists(): time.sleep(0.01)"
TOUCH = "\n(here / '{}').touch()"


def test_jobs_write_their_logs_and_a_failure_stops_nobody(job, tmp_path) -> None:
    said: list[str] = []
    jobs = [
        job("a", "print('fine')"),
        job("b", "print('to stdout', flush=True); sys.exit('broken')"),
        job("c", "print('fine too')"),
    ]
    (failure,) = run_all(jobs, [None], finished=4, say=said.append)
    assert (failure.job.name, failure.code, failure.last_line) == ("b", 1, "broken")
    assert (tmp_path / "logs" / "b.log").read_text().endswith("to stdout\nbroken\n")
    assert (tmp_path / "logs" / "c.log").read_text().endswith("fine too\n")
    assert [re.sub(r"  \(.*", "", re.sub(r" (in|after) [0-9.]+ s", "", line)) for line in said] == [
        "[4/7] started   a",
        "[5/7] finished  a",
        "[5/7] started   b",
        "[5/7] failed    b: broken",
        "[5/7] started   c",
        "[6/7] finished  c",
    ]


def test_a_log_is_added_to(job, tmp_path) -> None:
    run_all([job("a", "print('first')")], [None], say=lambda line: None)
    run_all([job("a", "print('second')")], [None], say=lambda line: None)
    assert [line for line in (tmp_path / "logs" / "a.log").read_text().splitlines() if line[0] not in "$ "] == [
        "first",
        "second",
    ]


def test_as_many_at_once_as_there_are_places_each_on_its_own_cores(job, tmp_path) -> None:
    """Each of three jobs waits for the other two, so that all three must run together."""
    mine = sorted(os.sched_getaffinity(0))
    shares = core_shares(mine, 3)
    (tmp_path / "all.ready").touch()
    names = ["a", "b", "c"]
    write = "\n(here / '{}.cores').write_text(json.dumps(sorted(os.sched_getaffinity(0))))"
    jobs = [
        job(name, write.format(name) + "".join(WAIT.format(f"{other}.cores") for other in names), ready="all.ready")
        for name in names
    ]
    assert run_all(jobs, [*shares], say=lambda line: None) == []
    assert [tuple(json.loads((tmp_path / f"{name}.cores").read_text())) for name in names] == shares
    assert sorted(os.sched_getaffinity(0)) == mine


def test_a_place_is_taken_by_the_next_job_with_its_cores(job, tmp_path) -> None:
    cores = (sorted(os.sched_getaffinity(0))[0],)
    code = "(here / 'cores').write_text(json.dumps(sorted(os.sched_getaffinity(0))))"
    run_all([job("a", "pass"), job("b", code)], [cores], say=lambda line: None)
    assert tuple(json.loads((tmp_path / "cores").read_text())) == cores


def test_the_second_starts_when_the_first_has_made_what_they_share(job, tmp_path) -> None:
    look = "\n(here / 'seen').write_text(str((here / 'a.ready').exists()))"
    jobs = [job("a", "time.sleep(0.4)" + TOUCH.format("a.ready") + WAIT.format("seen")), job("b", look)]
    assert run_all(jobs, [None, None], say=lambda line: None) == []
    assert (tmp_path / "seen").read_text() == "True"


def test_the_second_starts_too_when_the_first_fails_before(job, tmp_path) -> None:
    jobs = [job("a", "sys.exit(3)"), job("b", TOUCH.format("done"))]
    (failure,) = run_all(jobs, [None, None], say=lambda line: None)
    assert failure.code == 3
    assert (tmp_path / "done").exists()


def test_an_estimate_is_given_as_soon_as_one_has_finished(job) -> None:
    said: list[str] = []
    run_all([job(name, "time.sleep(0.2)", kind="x") for name in "ab"], [None], say=said.append)
    assert [("left" in line) for line in said] == [False, True, True, False]


STOPPED = """
import sys
from pathlib import Path
from jdcl_jax.processes import Interrupted, Job, run_all

here = Path(sys.argv[1])
code = f'''
import os, pathlib, signal, sys, time
def end(*_):
    pathlib.Path("{here}", "asked." + str(os.getpid())).touch()
    if "{sys.argv[2]}" == "obedient":
        sys.exit()
signal.signal(signal.SIGTERM, end)
pathlib.Path("{here}", str(os.getpid())).touch()
while True:
    time.sleep(600)'''
import jdcl_jax.processes as processes
processes.PATIENCE = 0.3
jobs = [Job(name, name, [sys.executable, "-S", "-c", code], here / "logs" / name, here) for name in "abc"]
try:
    run_all(jobs, [None, None])
except Interrupted:
    sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("kind", ["obedient", "stubborn"])
def test_a_request_to_stop_ends_all_children(number, kind, tmp_path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, "-c", STOPPED, str(tmp_path), kind], env=environment, text=True)

    def children() -> list[int]:
        return [int(path.name) for path in tmp_path.iterdir() if path.name.isdecimal()]

    deadline = time.monotonic() + 60
    while len(children()) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(60) == 130
    assert len(children()) == 2  # the third never started
    for child in children():
        assert (tmp_path / f"asked.{child}").exists()
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


def test_signals_mean_what_they_meant_before(job) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run_all([job("a", "pass")], [None], say=lambda line: None)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_request_to_stop_is_raised(job) -> None:
    code = "os.kill(os.getppid(), 15); time.sleep(600)"
    with pytest.raises(Interrupted):
        run_all([job("a", code)], [None], say=lambda line: None)


def test_logs_that_cannot_be_written_are_the_users_error(job, tmp_path) -> None:
    (tmp_path / "logs").write_text("mine")
    with pytest.raises(UserError, match=r"logs/a\.log can't be written"):
        run_all([job("a", "pass")], [None], say=lambda line: None)
