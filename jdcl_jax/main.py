"""Trains a diffusion model on a sequence of tasks: `python -m jdcl_jax.main --config=configs/digits.py:gd,seed=1`."""

import sys

from jdcl_jax.training.backend import reexec_with_hugepages

if __name__ == "__main__":
    reexec_with_hugepages()

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from jdcl_jax.errors import UserError, exit_on_user_error
from jdcl_jax.experiment import run
from jdcl_jax.reporting.table import score_table
from jdcl_jax.training.compile_cache import use_compilation_cache
from jdcl_jax.workdir import Workdir, default_workdir

FLAGS = flags.FLAGS
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file and what it is given: configs/digits.py:gd,seed=1", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; runs/<dataset>-<method>-<seed> if not given.")


def parse(argv: Sequence[str]) -> list[str]:
    """Reads the command line; anything wrong with it is a `UserError` of one line."""
    try:
        rest = FLAGS(argv)
    except UserError:
        raise
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{' '.join(str(error).split())}; see python -m jdcl_jax.main --help") from error
    if len(rest) > 1:
        raise UserError(f"'{rest[1]}' is no flag; write --config=FILE:ARG, --config.KEY=VALUE and --workdir=DIR")
    if _CONFIG.value is None:
        raise UserError("no config; write --config=configs/digits.py, or another file of configs/")
    return rest


def main(argv: Sequence[str]) -> None:
    """Runs, resumes, or shows a run that is finished."""
    del argv
    plain_logging()
    with exit_on_user_error():
        use_compilation_cache()
        config = _CONFIG.value
        workdir = Path(_WORKDIR.value) if _WORKDIR.value else default_workdir(config)
        if Workdir(workdir, config).finished_results() is not None:
            print(f"{workdir} is finished; its results:", file=sys.stderr)
        results = run(config, workdir, command=shlex.join(["python", "-m", "jdcl_jax.main", *sys.argv[1:]]))
        print(score_table(results))
        print(f"report: {workdir}/report.html")


def plain_logging() -> None:
    """Our own log lines as they are; of the libraries' only the warnings."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    ours = logging.getLogger("jdcl_jax")
    ours.addHandler(logging.StreamHandler(sys.stderr))
    ours.setLevel(logging.INFO)
    ours.propagate = False


def flags_parser(argv: Sequence[str]) -> list[str]:
    """What absl calls to read the command line."""
    with exit_on_user_error():
        return parse(argv)


if __name__ == "__main__":
    app.run(main, flags_parser=flags_parser)
