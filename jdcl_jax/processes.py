"""Several commands at once on one machine: each on its own cores, all of them ended with the one that waits."""

import contextlib
import itertools
import math
import os
import shlex
import signal
import subprocess
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from jdcl_jax.errors import UserError
from jdcl_jax.reporting.formats import duration
from jdcl_jax.training.backend import DEVICES_FLAG, DEVICES_VARIABLE, accelerator_expected, usable_cores

MEMORY_OF_A_JOB = 2 * 2**30  # bytes
POLL = 0.1  # seconds
PATIENCE = 20.0  # seconds between asking a process to end and ending it

Cores = tuple[int, ...] | None
"""The cores that a process may use; None: those of its parent."""


class Interrupted(Exception):  # noqa: N818 (nothing went wrong)
    """Somebody asked the whole to end, by Ctrl-C or a signal; the processes have been ended."""


@dataclass(frozen=True)
class Job:
    """A command to run.

    Attributes:
      name: what the person who waits sees.
      kind: jobs of one kind are expected to take equally long.
      command: program and arguments.
      log: file that its output is added to.
      ready: a file that is there as soon as the job has made what jobs share.
    """

    name: str
    kind: str
    command: Sequence[str]
    log: Path
    ready: Path


@dataclass(frozen=True)
class Failure:
    """A job that ended with another exit code than 0, and the last line that it wrote."""

    job: Job
    code: int
    last_line: str


def automatic_jobs(*, accelerator: bool, cores: int, free_memory: int) -> int:
    """How many jobs at once: 1 where there is an accelerator, else one per core and 2 GiB of free memory [ours]."""
    return 1 if accelerator else max(1, min(cores, free_memory // MEMORY_OF_A_JOB))


def core_shares(cores: Sequence[int], jobs: int) -> list[tuple[int, ...]]:
    """Divides cores as evenly as can be, neighbours together; more jobs than cores share them in turn.

    >>> core_shares([0, 1, 2, 3, 4], 2)
    [(0, 1, 2), (3, 4)]
    """
    if jobs >= len(cores):
        return [(cores[job % len(cores)],) for job in range(jobs)]
    size, larger = divmod(len(cores), jobs)
    begins = [job * size + min(job, larger) for job in range(jobs + 1)]
    return [tuple(cores[begin:end]) for begin, end in itertools.pairwise(begins)]


def places(asked: int, most: int) -> list[Cores]:
    """Where jobs run, an entry for each that runs at the same time.

    Args:
      asked: that many at once; 0: as many as suit the machine.
      most: no more than this.
    """
    accelerator = accelerator_expected()
    jobs = asked or automatic_jobs(accelerator=accelerator, cores=usable_cores(), free_memory=free_memory())
    jobs = max(1, min(jobs, most))
    if accelerator or jobs == 1 or not hasattr(os, "sched_setaffinity"):
        return [None] * jobs
    return list(core_shares(sorted(os.sched_getaffinity(0)), jobs))


def free_memory() -> int:
    """Bytes that a new process can have without swapping."""
    with contextlib.suppress(OSError, ValueError, IndexError):  # not Linux
        # Linux counts the files that it keeps in memory as used, though it gives them up when asked.
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return MEMORY_OF_A_JOB


def environment(cores: Cores, jobs: int) -> dict[str, str]:
    """The environment of a job; what the user has set stays as it is.

    JAX sees one device on a single core, and takes the memory of an accelerator that several jobs share as it needs it.
    """
    env = dict(os.environ)
    env.setdefault("JAX_TRACEBACK_FILTERING", "off")  # else a failed job's last line is a remark on its traceback
    if cores is not None and len(cores) == 1 and DEVICES_FLAG not in env.get("XLA_FLAGS", ""):
        env.setdefault(DEVICES_VARIABLE, "1")
    if cores is None and jobs > 1:
        # JAX would take three quarters of an accelerator's memory for the first job.
        env.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return env


def time_left(
    took: Mapping[str, Sequence[float]], waiting: Sequence[str], running: Sequence[tuple[str, float]], places: int
) -> float:
    """Seconds until all is done, NaN while nothing has finished.

    Args:
      took: kind of job -> seconds that finished ones took.
      waiting: kinds of the jobs not started.
      running: kind and seconds so far of those that run.
      places: how many run at once.
    """
    known = [seconds for some in took.values() for seconds in some]
    if not known:
        return math.nan

    def expected(kind: str) -> float:
        like = took.get(kind) or known
        return sum(like) / len(like)

    work = sum(map(expected, waiting)) + sum(max(expected(kind) - so_far, 0.0) for kind, so_far in running)
    return work / max(1, min(places, len(waiting) + len(running)))


def last_line(log: Path) -> str:
    """The last line of a log that is not empty; of a long one only its end."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 8192))
        lines = file.read().decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
    return ""


def run_all(
    jobs: Sequence[Job], places: Sequence[Cores], *, finished: int = 0, say: Callable[[str], None] = print
) -> list[Failure]:
    """Runs jobs in order, as many at once as there are places; one that fails does not stop the others.

    The second job waits until the first one's `ready` is there: what all of them share is then made once.

    Args:
      jobs: what to run.
      places: the cores of each of those that run at the same time.
      finished: how many more were finished before, for counting.
      say: takes a line for every job that starts, finishes or fails.

    Returns:
      The jobs that failed.

    Raises:
      Interrupted: on Ctrl-C, SIGTERM and SIGHUP; all jobs have ended by then.
      UserError: a log can't be written.
    """
    runner = _Runner(jobs, places, finished, say)
    with _requests_to_stop() as asked_to_stop:
        try:
            while runner.waiting or runner.running:
                runner.start_what_can()
                time.sleep(POLL)
                if asked_to_stop():
                    raise Interrupted
                runner.collect()
        finally:
            _end([child.process for child in runner.running])
    return runner.failures


@dataclass(frozen=True)
class _Child:
    job: Job
    cores: Cores
    process: subprocess.Popen[bytes]
    started: float


class _Runner:
    """What waits, what runs, what became of the rest."""

    def __init__(self, jobs: Sequence[Job], places: Sequence[Cores], finished: int, say: Callable[[str], None]):
        self.waiting, self._free, self._num_places = deque(jobs), deque(places), len(places)
        self.running: list[_Child] = []
        self.failures: list[Failure] = []
        self._started: list[Job] = []
        self._took: dict[str, list[float]] = defaultdict(list)
        self._total, self._finished, self._say, self._begin = finished + len(jobs), finished, say, time.monotonic()

    def start_what_can(self) -> None:
        while self.waiting and self._free and not self._must_wait():
            job, cores = self.waiting.popleft(), self._free.popleft()
            self._started.append(job)
            self.running.append(_Child(job, cores, _start(job, cores, self._num_places), time.monotonic()))
            self._tell(f"started   {job.name}")

    def _must_wait(self) -> bool:
        return bool(self.running) and not any(job.ready.exists() for job in self._started)

    def collect(self) -> None:
        """Takes up those that have ended."""
        for child in list(self.running):
            code = child.process.poll()
            if code is None:
                continue
            self.running.remove(child)
            self._free.append(child.cores)
            seconds = time.monotonic() - child.started
            if code == 0:
                self._finished += 1
                self._took[child.job.kind].append(seconds)
                self._tell(f"finished  {child.job.name} in {duration(seconds)}")
            else:
                failure = Failure(child.job, code, last_line(child.job.log))
                self.failures.append(failure)
                self._tell(f"failed    {child.job.name} after {duration(seconds)}: {failure.last_line}")

    def _tell(self, what: str) -> None:
        now = time.monotonic()
        waiting = [job.kind for job in self.waiting]
        running = [(child.job.kind, now - child.started) for child in self.running]
        left = time_left(self._took, waiting, running, self._num_places)
        ahead = f", about {duration(left)} left" if left > 0 else ""
        self._say(f"[{self._finished}/{self._total}] {what}  ({duration(now - self._begin)} so far{ahead})")


def _start(job: Job, cores: Cores, jobs: int) -> subprocess.Popen[bytes]:
    try:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        log = job.log.open("ab")
    except OSError as error:
        raise UserError(f"{job.log} can't be written ({error.strerror}); write another --workdir") from error
    with log, _on(cores):
        log.write(f"$ {shlex.join(job.command)}\n".encode())
        log.flush()
        return subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(cores, jobs),
        )


@contextlib.contextmanager
def _on(cores: Cores) -> Iterator[None]:
    """Keeps this thread on these cores; a process that it starts inherits them, without code between fork and exec."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Asks processes to end and waits for them; those that do not listen are killed."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _requests_to_stop() -> Iterator[Callable[[], bool]]:
    """Notes Ctrl-C, SIGTERM and SIGHUP instead of being ended by them, so that no child is left behind."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
