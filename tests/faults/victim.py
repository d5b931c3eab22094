"""The command line of a run that may be hit: by a signal at some moment, or by losing a part of what it restores.

What is to happen stands as JSON in the environment variable FAULT (see `Fault`). What the run does is written to the
file TRACE, a line for each, at once.
"""

import contextlib
import dataclasses
import functools
import importlib
import json
import os
import resource
import runpy
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

PLACES = {  # where a fault strikes -> what is going on there
    "start": ("jdcl_jax.experiment", "Experiment", "__init__"),
    "step": ("jdcl_jax.phase_log", "PhaseLog", "add"),
    "replay": ("jdcl_jax.phase_log", "PhaseLog", "add"),
    "save": ("jdcl_jax.training.checkpoint", "Checkpoints", "_save"),
    "evaluation": ("jdcl_jax.measuring.evaluator", "Evaluator", "__call__"),
    "end of task": ("jdcl_jax.experiment", "Experiment", "_end_phase"),
    "report": ("jdcl_jax.workdir", "Workdir", "_report"),
}


@dataclasses.dataclass(frozen=True)
class Fault:
    """A signal, `delay` seconds after the `turn`-th time (from 1) that the run comes to `place`.

    Attributes:
      place: a key of `PLACES`; empty: nothing happens.
      signal: its number.
      lost: what the state lacks when it is restored, "memory.NAME", "memory.NAME.row" or "denoiser.NAME"; empty:
        nothing.
      slow: seconds that every call of steps takes more.
    """

    place: str = ""
    turn: int = 1
    delay: float = 0.0
    signal: int = int(signal.SIGKILL)
    lost: str = ""
    slow: float = 0.0


def wrap(place: str, around: Callable[..., Any]) -> None:
    """Replaces the function behind a place by one that calls `around(original, *args)`."""
    module, owner, name = PLACES[place]
    holder = getattr(importlib.import_module(module), owner)
    original = getattr(holder, name)
    setattr(holder, name, functools.wraps(original)(functools.partialmethod(_calling, around, original)))


def _calling(self: Any, around: Callable[..., Any], original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return around(original, self, *args, **kwargs)


def strike(fault: Fault, trace: Callable[[str], None]) -> None:
    """Makes the fault happen."""
    came = []

    def around(original: Callable[..., Any], owner: Any, *args: Any, **kwargs: Any) -> Any:
        if fault.place != "replay" or replaying(owner):
            came.append(1)
            if len(came) == fault.turn:
                threading.Thread(target=hit, daemon=True).start()
        return original(owner, *args, **kwargs)

    def hit() -> None:
        time.sleep(fault.delay)
        trace(f"signal {fault.signal} {time.time()}")
        os.kill(os.getpid(), fault.signal)

    wrap(fault.place, around)


def replaying(log: Any) -> bool:
    """Whether the steps of this log draw or use replay: an observation, or training with a teacher or a buffer."""
    return log._task > 0 and (log._phase.observe is not None or len(log._phase.streams) > 1)


def lose(lost: str) -> None:
    """Takes a part away from what is restored."""
    import jax
    import numpy as np

    from jdcl_jax.training.checkpoint import Checkpoints

    owner, name, *rest = lost.split(".")
    restore = Checkpoints.restore_newest

    def lossy(self: Checkpoints, target: Any, order: Any) -> Any:
        found = restore(self, target, order)
        if found is None:
            return None
        state, record = found
        if owner == "memory":
            whole = state["memory"][name]
            part = jax.tree.map(_without_last_row if rest else np.zeros_like, whole)
            return {**state, "memory": {**state["memory"], name: part}}, record
        network = state["networks"][owner]
        zeros = jax.tree.map(np.zeros_like, getattr(network, name))
        return {**state, "networks": {**state["networks"], owner: network.replace(**{name: zeros})}}, record

    Checkpoints.restore_newest = lossy  # type: ignore[method-assign]


def _without_last_row(array: Any) -> Any:
    """The last row that holds anything is forgotten; that of the first task's part, where that is known."""
    out = array.copy()
    if out.ndim and len(out):
        out[0] = out[-1] if (out[0] != out[-1]).any() else 0
    return out


def tracing(trace: Callable[[str], None], slow: float) -> None:
    """Writes down what is done, so that work done twice is seen."""

    def step(original: Callable[..., Any], log: Any, step: int, metrics: Any, global_step: int) -> Any:
        trace(f"step {global_step}")
        time.sleep(slow)
        return original(log, step, metrics, global_step)

    def evaluation(
        original: Callable[..., Any], owner: Any, networks: Any, memory: Any, task: int, progress: Any
    ) -> Any:
        trace(f"evaluation {task + 1}")
        return original(owner, networks, memory, task, progress)

    def begun(original: Callable[..., Any], run: Any, *args: Any, **kwargs: Any) -> Any:
        value = original(run, *args, **kwargs)
        trace(f"begun {run.task} {run.phase} {run.global_step} {time.time()}")
        return value

    wrap("step", step)
    wrap("evaluation", evaluation)
    wrap("start", begun)


def slow_down(seconds: float, trace: Callable[[str], None]) -> None:
    """Every checkpoint, and each of its parts, takes so long before it takes its place."""
    rename = os.rename

    def later(*args: Any, **kwargs: Any) -> None:
        trace(f"slow {args[0]}")
        time.sleep(seconds)
        rename(*args, **kwargs)

    os.rename = later  # type: ignore[assignment]


def leak() -> None:
    """Keeps the state of every checkpoint for good."""
    from jdcl_jax.training.checkpoint import to_host

    kept: list[Any] = []

    def keeping(original: Callable[..., Any], owner: Any, name: str, step: int, state: Any, record: Any) -> Any:
        kept.append(to_host(state))
        return original(owner, name, step, state, record)

    wrap("save", keeping)


def preload() -> None:
    """Reads the package, but asks for no device and starts no thread."""
    for module in ("jdcl_jax.experiment", "jdcl_jax.reporting.page", "jdcl_jax.reporting.table", "small_runs"):
        importlib.import_module(module)


def main() -> None:
    """`python -m jdcl_jax.main` with what FAULT says; two layers are in the UNet's place, unless FAULT_UNET is set."""
    fault = Fault(**json.loads(os.environ.get("FAULT", "{}")))
    file = os.open(os.environ["TRACE"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def trace(line: str) -> None:
        os.write(file, f"{line}\n".encode())

    import small_runs

    warnings.filterwarnings("error", module="jdcl_jax")  # as in the suite itself
    if "FAULT_UNET" not in os.environ:
        small_runs.quick(setattr)
    tracing(trace, fault.slow)
    if "MOST_MEMORY" in os.environ:
        resource.setrlimit(resource.RLIMIT_AS, (int(os.environ["MOST_MEMORY"]),) * 2)
    if "LEAK" in os.environ:
        leak()
    if "SLOW_DISK" in os.environ:
        slow_down(float(os.environ["SLOW_DISK"]), trace)
    if fault.place:
        strike(fault, trace)
    if fault.lost:
        lose(fault.lost)
    with contextlib.suppress(BrokenPipeError):
        runpy.run_module("jdcl_jax.main", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
