"""Figures of JDCL (arXiv 2411.08224), drawn from run folders: `python -m jdcl_jax.figures KIND WORKDIR... --out=PNG`.

phases     one run: accuracy on each task after each phase
logits     one run: each class's own logit on real and on generated images, after a task
continued  runs of the method "continued": accuracy while a network learns from its own samples
ablation   runs of several variants: accuracy on all tasks seen, after each task
"""

import sys

from jdcl_jax.training.backend import reexec_with_hugepages, share_cpu

if __name__ == "__main__" and "logits" in sys.argv:  # the only figure for which images are generated
    reexec_with_hugepages()

import argparse
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from jdcl_jax.errors import Arguments, UserError, exit_on_user_error
from jdcl_jax.measuring.logits import own_logits
from jdcl_jax.reporting.accuracy import logits_figure, phase_rows, phases_figure
from jdcl_jax.reporting.figures import render
from jdcl_jax.reporting.files import write_bytes
from jdcl_jax.reporting.grids import check_picture_path
from jdcl_jax.reporting.logs import plain_logging
from jdcl_jax.reporting.runs import Run, load_run, whole
from jdcl_jax.reporting.variants import ablation_figure, continued_figure, labelled_groups
from jdcl_jax.restored import restore
from jdcl_jax.training.compile_cache import use_compilation_cache

NUM = 1000  # images that are generated for "logits"
MOST = 1_000_000  # of them
KINDS = ("phases", "logits", "continued", "ablation")


def draw(kind: str, workdirs: Sequence[Path], *, task: int, num: int) -> Figure:
    """One of the figures; see the module.

    Args:
      kind: one of `KINDS`.
      workdirs: folders of runs; one for "phases" and "logits".
      task: of "logits", after which task, from 1; 0: the last one saved.
      num: of "logits", how many images are generated.

    Raises:
      UserError: the runs are not of that kind.
    """
    runs = [load_run(workdir) for workdir in workdirs]
    places = [workdir.resolve() for workdir in workdirs]
    twice = [str(workdir) for workdir, place in zip(workdirs, places, strict=True) if places.count(place) > 1]
    if twice:
        raise UserError(f"{twice[0]} is named twice and would count as two seeds; write every folder once")
    if kind in ("phases", "logits") and len(runs) != 1:
        raise UserError(f"{kind} is a figure of one run; write one folder")
    if kind == "logits":
        return _logits(runs[0], task, num)
    with whole(*runs):
        return _phases(runs[0]) if kind == "phases" else _of_groups(kind, runs)


def _of_groups(kind: str, runs: Sequence[Run]) -> Figure:
    groups = labelled_groups(runs)
    return continued_figure(groups) if kind == "continued" else ablation_figure(groups)


def _phases(run: Run) -> Figure:
    rows = phase_rows(run)
    if not rows:
        raise UserError(f"{run.name} has no accuracy: its network does not classify; write classifier.kind=joint")
    return phases_figure(rows, f"{run.method} on {run.dataset}, seed {run.seed}")


def _logits(run: Run, task: int, num: int) -> Figure:
    restored = restore(run.path, task)
    if restored.parts.setup.classifier is None:
        raise UserError(
            f"logits are of a classifier that learns with the denoiser, which {run.name} has not; "
            "write classifier.kind=joint in a new run"
        )
    real, generated = own_logits(restored, num)
    title = f"{run.method} on {run.dataset}, seed {run.seed}, after task {restored.task}"
    return logits_figure(real, generated, title)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = Arguments(
        prog="python -m jdcl_jax.figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("workdirs", nargs="+", type=Path, metavar="WORKDIR", help="folders of runs")
    parser.add_argument("--task", type=int, default=0, help="of logits: after which task, from 1; the last one if 0")
    parser.add_argument("--num", type=int, default=NUM, help="of logits: how many images are generated")
    parser.add_argument("--out", type=Path, default=None, help="the picture (PNG); KIND.png if not given")
    options = parser.parse_args(argv)
    plain_logging()
    out = options.out or Path(f"{options.kind}.png")
    with exit_on_user_error():
        check_picture_path(out)
        if not 1 <= options.num <= MOST or options.task < 0:
            raise UserError(f"--num counts from 1 to {MOST} and --task from 0")
        if options.kind == "logits":
            share_cpu(options.num)
            use_compilation_cache()
        elif (options.task, options.num) != (0, NUM):
            raise UserError(f"--task and --num have no effect on {options.kind}; leave them out")
        write_bytes(out, render(draw(options.kind, options.workdirs, task=options.task, num=options.num), "png"))
        print(out)


if __name__ == "__main__":
    main()
