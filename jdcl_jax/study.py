r"""Runs methods x seeds and sets them beside each other on one page.

python -m jdcl_jax.study --config=configs/digits.py --methods='finetune,er(rehearsal_coefficient=0.1),gd' \
    --seeds=0,1,2 --workdir=runs/digits-study
"""

import argparse
import functools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from jdcl_jax.campaign import make_plan, measure_structure, run_plan
from jdcl_jax.errors import Arguments, UserError, exit_on_user_error
from jdcl_jax.processes import Failure, Interrupted
from jdcl_jax.reporting.logs import plain_logging
from jdcl_jax.reporting.study import write_study
from jdcl_jax.specs import parse_specs

EXIT_FAILURES, EXIT_INTERRUPTED = 1, 130


def study(options: argparse.Namespace, command: str) -> list[Failure]:
    """Runs what is left, unless only the page is wanted, and writes the page; returns the runs that failed.

    Raises:
      UserError: anything that cannot be, before the first run starts.
      Interrupted: by Ctrl-C or a signal.
    """
    failures: list[Failure] = []
    if options.report_only:
        methods = [spec.text for spec in parse_specs(options.methods)] if options.methods else []
    else:
        plan = make_plan(options.config, options.methods, options.seeds, options.workdir)
        methods = plan.methods
        say = functools.partial(print, file=sys.stderr, flush=True)
        failures = run_plan(plan, command=command, jobs=options.jobs, say=say)
        failures += measure_structure(plan, say=say)
    print(write_study(options.workdir, methods))
    print(f"\nstudy: {options.workdir}/study.html, {options.workdir}/study.csv")
    return failures


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = Arguments(
        prog="python -m jdcl_jax.study", description="Runs methods x seeds and sets them beside each other on one page."
    )
    parser.add_argument("--config", default="", metavar="FILE[:ARG]", help="config file, and what holds for all runs")
    parser.add_argument(
        "--methods", default="", metavar="SPECS", help="NAME or NAME(key=value,...), separated by commas"
    )
    parser.add_argument("--seeds", default="0,1,2", help="of every method, separated by commas; 0,1,2 if not given")
    parser.add_argument("--workdir", default=None, type=Path, help="the study's folder; it may be added to later")
    parser.add_argument(
        "--jobs", default=0, type=int, help="runs at once; by default one on an accelerator, on a CPU one per core"
    )
    parser.add_argument("--report-only", action="store_true", help="run nothing, make study.html and study.csv again")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; `argv` without the program's name, from the process if None."""
    words = sys.argv[1:] if argv is None else list(argv)
    options, command = _options(words), shlex.join(["python", "-m", "jdcl_jax.study", *words])
    plain_logging()
    # What is checked here needs no accelerator, and the runs want all of its memory.
    jax.config.update("jax_platforms", "cpu")
    with exit_on_user_error():
        if options.workdir is None:
            raise UserError("no workdir; write --workdir=runs/digits-study, or another folder")
        if options.jobs < 0:
            raise UserError(f"--jobs={options.jobs} is below 1; write how many runs at once, or leave it out")
        try:
            failures = study(options, command)
        except Interrupted:
            print(f"stopped; the same command goes on where it was: {command}", file=sys.stderr)
            raise SystemExit(EXIT_INTERRUPTED) from None
    if failures:
        print(f"\nfailed runs: {len(failures)}; the same command tries them again", file=sys.stderr)
        for failure in failures:
            print(f"{failure.job.name}: {failure.last_line} (all of it: {failure.job.log})", file=sys.stderr)
        raise SystemExit(EXIT_FAILURES)


if __name__ == "__main__":
    main()
