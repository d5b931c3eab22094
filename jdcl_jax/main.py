"""Trains a diffusion model on a sequence of tasks: `python -m jdcl_jax.main --config=configs/digits.py:jdcl,seed=1`."""

import sys

from jdcl_jax.training.backend import reexec_with_hugepages, share_cpu
from jdcl_jax.training.supervisor import EXIT_AGAIN, LOST, REMEDY, supervise

if __name__ == "__main__":
    reexec_with_hugepages()
    supervise(sys.argv[1:])

import io
import os
import shlex
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import jax
import ml_collections
from absl import app, flags
from ml_collections import config_flags

from jdcl_jax.errors import UserError, exit_on_user_error, first_line
from jdcl_jax.experiment import run
from jdcl_jax.reporting.logs import plain_logging
from jdcl_jax.reporting.table import score_table
from jdcl_jax.training import hosts
from jdcl_jax.training.compile_cache import use_compilation_cache
from jdcl_jax.training.stopping import Stopped, listening
from jdcl_jax.workdir import Workdir, default_workdir

FLAGS = flags.FLAGS
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file and what it is given: configs/digits.py:jdcl,seed=1", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; runs/<dataset>-<method>-<seed> if not given.")
_MULTIHOST = flags.DEFINE_boolean("multihost", False, "Train over several processes, started on each host alike.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0; not needed on TPU, Slurm and Open MPI.")
_PROCESSES = flags.DEFINE_integer("processes", -1, "How many processes there are; likewise.")
_PROCESS = flags.DEFINE_integer("process", -1, "The number of this process, from 0; likewise.")
_PATIENCE = flags.DEFINE_integer("patience", 60, "Seconds of silence after which a process counts as dead.", 5)


def parse(argv: Sequence[str]) -> list[str]:
    """Reads the command line; anything wrong with it is a `UserError` of one line."""
    for word in argv:
        if word.lstrip("-").startswith("config.method.name"):
            raise UserError(
                "--config.method.name can't be set alone; write the method behind the colon: --config=FILE:gr"
            )
    try:
        rest = FLAGS(argv)
        _ = _CONFIG.value and _CONFIG.value.seed  # a config file that is missing raises only when it is looked at
    except Exception as error:  # a config file is a program and may raise anything
        raise UserError(_explanation(error)) from error
    if len(rest) > 1:
        raise UserError(f"'{rest[1]}' is no flag; write --config=FILE:ARG, --config.KEY=VALUE and --workdir=DIR")
    if _CONFIG.value is None:
        raise UserError("no config; write --config=configs/digits.py, or another file of configs/")
    return rest


def _explanation(error: Exception) -> str:
    """What was wrong in the first place: the libraries wrap a config file's own errors, traceback included."""
    chain: list[BaseException] = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(inner)
    for inner in reversed(chain):
        if isinstance(inner, UserError):
            return str(inner)
    if isinstance(error, flags.Error | AttributeError | KeyError) and "Traceback" not in str(error):
        return f"{error}; see python -m jdcl_jax.main --help"
    return f"the config can't be read: {type(chain[-1]).__name__}: {chain[-1]}"


def main(argv: Sequence[str]) -> None:
    """Runs, resumes, or shows a run that is finished."""
    del argv
    plain_logging()
    try:
        with exit_on_user_error():
            _run(shlex.join(["python", "-m", "jdcl_jax.main", *sys.argv[1:]]))
    except BaseException as error:
        if _MULTIHOST.value:
            _end_at_once(error)
        raise


def _run(command: str) -> None:
    config = _CONFIG.value
    late = (
        f"stopped before it could save again; its checkpoints are kept, the same command goes on from them: {command}"
    )
    try:
        with listening(config.checkpoint.grace, late) if not _MULTIHOST.value else nullcontext(bool) as asked_to_stop:
            _begin(config, command, asked_to_stop)
    except Stopped as stopped:
        print(f"stopped: {stopped}; the same command goes on from there: {command}", file=sys.stderr)
        raise SystemExit(EXIT_AGAIN) from None


def _begin(config: ml_collections.ConfigDict, command: str, asked_to_stop: Callable[[], bool]) -> None:
    use_compilation_cache()
    share_cpu(config.train.batch_size)
    _join()
    workdir = Path(_WORKDIR.value) if _WORKDIR.value else default_workdir(config)
    stream = sys.stderr if hosts.is_writer() else io.StringIO()
    if Workdir(workdir, config).finished_results() is not None:
        print(f"{workdir} is finished; its results:", file=stream)
    results = run(config, workdir, command=command, stream=stream, asked_to_stop=asked_to_stop)
    if hosts.is_writer():
        print(score_table(results))
        print(f"report: {workdir}/report.html")


def _join() -> None:
    if _MULTIHOST.value:
        hosts.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value, _PATIENCE.value)
        return
    for flag in (_COORDINATOR, _PROCESSES, _PROCESS):
        if flag.present:
            raise UserError(f"--{flag.name} is of no use without --multihost; write both or none")


def _end_at_once(error: BaseException) -> None:
    """Ends this process without the good-byes that JAX would wait for; the others notice its silence.

    What JAX's runtime raises here is of a host that is gone, unless a fault of our own says otherwise first.
    """
    code: int | str | None = 1
    if isinstance(error, SystemExit):
        code = error.code
    elif isinstance(error, KeyboardInterrupt):
        print(f"stopped without saving again; {REMEDY}: it goes on from the newest checkpoint", file=sys.stderr)
        code = EXIT_AGAIN
    elif isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
        print(f"error: {LOST} ({first_line(error)}); {REMEDY}", file=sys.stderr)
        code = EXIT_AGAIN
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def flags_parser(argv: Sequence[str]) -> list[str]:
    """What absl calls to read the command line."""
    with exit_on_user_error():
        return parse(argv)


if __name__ == "__main__":
    app.run(main, flags_parser=flags_parser)
