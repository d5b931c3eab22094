"""Trains a diffusion model on a sequence of tasks: `python -m jdcl_jax.main --config=configs/digits.py:jdcl,seed=1`."""

import sys

from jdcl_jax.training.backend import reexec_with_hugepages, share_cpu

if __name__ == "__main__":
    reexec_with_hugepages()

import shlex
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from jdcl_jax.errors import UserError, exit_on_user_error
from jdcl_jax.experiment import run
from jdcl_jax.reporting.logs import plain_logging
from jdcl_jax.reporting.table import score_table
from jdcl_jax.training.compile_cache import use_compilation_cache
from jdcl_jax.workdir import Workdir, default_workdir

FLAGS = flags.FLAGS
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file and what it is given: configs/digits.py:jdcl,seed=1", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; runs/<dataset>-<method>-<seed> if not given.")


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
    with exit_on_user_error():
        use_compilation_cache()
        config = _CONFIG.value
        share_cpu(config.train.batch_size)
        workdir = Path(_WORKDIR.value) if _WORKDIR.value else default_workdir(config)
        if Workdir(workdir, config).finished_results() is not None:
            print(f"{workdir} is finished; its results:", file=sys.stderr)
        results = run(config, workdir, command=shlex.join(["python", "-m", "jdcl_jax.main", *sys.argv[1:]]))
        print(score_table(results))
        print(f"report: {workdir}/report.html")


def flags_parser(argv: Sequence[str]) -> list[str]:
    """What absl calls to read the command line."""
    with exit_on_user_error():
        return parse(argv)


if __name__ == "__main__":
    app.run(main, flags_parser=flags_parser)
