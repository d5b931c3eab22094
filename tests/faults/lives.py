"""Processes of one run after another: started, hit, started again; and what each of them did."""

import dataclasses
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

from faults import victim
from faults.victim import Fault

REPOSITORY = Path(__file__).parents[2]
VICTIM = Path(__file__).with_name("victim.py")
PATIENCE = 300.0  # seconds


@dataclasses.dataclass(frozen=True)
class Life:
    """What a process did.

    Attributes:
      code: how it ended.
      seconds: how long it lived.
      ending: seconds from the signal to its end; None without one.
      log: all that it printed.
      trace: what it did, see victim.py.
      resumed: global step of the checkpoint that it should have gone on from, and its task and phase, from 0; read from
        the files alone, before it began.
    """

    code: int
    seconds: float
    ending: float | None
    log: str
    trace: list[list[str]]
    resumed: tuple[int, int, int]

    @property
    def was_hit(self) -> bool:
        """Whether the fault struck."""
        return self.ending is not None


def environment(**more: str) -> dict[str, str]:
    """Of a child: the package of this repository, one restart less, two devices."""
    ours = {"GLIBC_TUNABLES": "", "PYTHONPATH": str(REPOSITORY), "NPROC": "8", "JAX_PLATFORMS": "cpu"}
    return {"JAX_NUM_CPU_DEVICES": "2", **without_devices(os.environ), **ours, **more}


def without_devices(variables: os._Environ[str]) -> dict[str, str]:
    """The suite's own devices are asked for in another way, and both at once are an error."""
    return {name: value for name, value in variables.items() if name != "XLA_FLAGS"}


def command(words: str, workdir: Path) -> list[str]:
    """Of a run of configs/digits.py."""
    return [f"--config={REPOSITORY / 'configs' / 'digits.py'}:{words}", f"--workdir={workdir}"]


def newest_position(workdir: Path) -> tuple[int, int, int]:
    """(task, phase, global step) of the newest whole checkpoint, all from 0, without the package's help."""
    found = [(0, 0, 0, 0)]
    for record in workdir.glob("checkpoints/*/*/record/metadata"):
        if record.parents[2].name in ("latest", "tasks") and record.parents[1].name.isdigit():
            place = json.loads(record.read_text())["position"]
            found.append((place["task"], place["phase"], place["step"], place["global_step"]))
    task, phase, _, step = max(found)
    return task, phase, step


def live(
    words: str,
    workdir: Path,
    fault: Fault | None = None,
    *,
    fork: bool = False,
    beside: Path | None = None,
    **variables: str,
) -> Life:
    """Starts the run, or goes on with it, until it ends or is ended.

    Args:
      words: behind the colon of the config.
      workdir: of the run; what it says and does is kept beside it.
      fault: what is to happen to it.
      fork: the process is not started anew but split off from this one, which must have begun with `environment` and
        has read the package but not asked JAX for a device: that takes seconds less.
      beside: where its log and trace go; beside the workdir if None.
      **variables: of its environment.
    """
    resumed, trace, log = newest_position(workdir), Path(f"{beside or workdir}.trace"), Path(f"{beside or workdir}.log")
    before, arguments = len(_lines(trace)), command(words, workdir)
    workdir.parent.mkdir(parents=True, exist_ok=True)
    env = environment(FAULT=json.dumps(dataclasses.asdict(fault or Fault())), TRACE=str(trace), **variables)
    started = time.time()
    with log.open("wb") as out:
        if fork:
            code = _forked(arguments, env, out.fileno())
        else:
            code = subprocess.run(
                [sys.executable, str(VICTIM), *arguments], env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                timeout=PATIENCE,
            ).returncode  # fmt: skip
    ended = time.time()
    done = _lines(trace)[before:]
    hits = [float(words[2]) for words in done if words[0] == "signal"]
    ending = ended - hits[0] if hits else None
    return Life(code, ended - started, ending, log.read_text(errors="replace"), done, resumed)


def _forked(arguments: list[str], env: dict[str, str], out: int) -> int:
    victim.preload()
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 1
    try:
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ.clear()
        os.environ.update(env)
        sys.argv[:] = [str(VICTIM), *arguments]
        victim.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _lines(trace: Path) -> list[list[str]]:
    return [line.split() for line in trace.read_text().splitlines()] if trace.exists() else []


def steps_of(life: Life) -> list[int]:
    """The global steps with which its calls ended."""
    return [int(words[1]) for words in life.trace if words[0] == "step"]


def faults_of(life: Life, steps: list[int]) -> list[str]:
    """What a life did that it should not have: work from before its checkpoint, a gap, a traceback.

    Args:
      life: what it did.
      steps: `steps_of` a run that nothing happened to.
    """
    out, task, phase, step = [], *life.resumed
    begun = [tuple(map(int, words[1:4])) for words in life.trace if words[0] == "begun"]
    if begun and begun != [(task, phase, step)]:
        out.append(f"began at {begun} and not at its newest checkpoint, {(task, phase, step)}")
    made, after = steps_of(life), [later for later in steps if later > step]
    if made != after[: len(made)]:
        out.append(f"from step {step} it made the steps {made}")
    evaluations = [int(words[1]) for words in life.trace if words[0] == "evaluation"]
    if evaluations != list(range(task + 1, task + 1 + len(evaluations))):
        out.append(f"in task {task + 1} it evaluated {evaluations}")
    if "Traceback" in life.log:
        out.append(f"a traceback: {life.log[life.log.index('Traceback') :][:600]}")
    return out
