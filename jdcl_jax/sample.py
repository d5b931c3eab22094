"""Draws images from a run: `python -m jdcl_jax.sample --workdir=runs/fm-gd --task=3 --num=64 --out=grid.png`."""

from jdcl_jax.training.backend import reexec_with_hugepages, share_cpu

if __name__ == "__main__":
    reexec_with_hugepages()

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from jdcl_jax.errors import UserError, exit_on_user_error
from jdcl_jax.keys import named_key
from jdcl_jax.measuring.generation import Generator, balanced_labels
from jdcl_jax.methods.method import Setup
from jdcl_jax.reporting.grids import check_picture_path, write_grid
from jdcl_jax.reporting.logs import plain_logging
from jdcl_jax.reporting.progress import Progress
from jdcl_jax.restored import restore
from jdcl_jax.training.parallel import Parallel


def sample(
    workdir: Path, *, task: int, num: int, seed: int = 0, label: int | None = None, guidance: float | None = None
) -> np.ndarray:
    """Draws `num` images, uint8 [num, H, W, C], from the denoiser as it was after a task (from 1; 0: the last saved).

    Args:
      workdir: a run's folder.
      task: which task's end.
      num: how many images.
      seed: names the noise; the same seed gives the same images.
      label: the class to draw where classes are asked for; None runs through the classes seen so far.
      guidance: scale, instead of the run's own: classifier-free for a conditional denoiser; for an unconditional one by
        its own classifier, which asks it for classes.

    Raises:
      UserError: no such run, task or class, or nothing to guide with.
    """
    run = restore(workdir, task)
    parts, setup = run.parts, _guided(run.parts.setup, guidance)
    generator = Generator(setup, Parallel(parts.config.parallel.mode), min(num, parts.config.evaluation.batch_size))
    progress = Progress()
    progress.start("sample", num, task=run.task, counts=False)
    seen = [c for group in parts.sequence.groups[: run.task] for c in group]
    labels = _labels(setup.asks_for_classes, seen, label, num)
    images = generator(run.params, named_key(seed, "sample"), num, labels, progress.update)
    progress.close()
    return images


def _guided(setup: Setup, guidance: float | None) -> Setup:
    if guidance is None:
        return setup
    if not 0 <= guidance < math.inf:
        raise UserError(f"--guidance={guidance:g} is no scale towards a class; write 0 or more")
    if setup.num_classes:
        return replace(setup, guidance=guidance)
    if setup.classifier is None or setup.classifier.towards is None:
        raise UserError(
            "--guidance needs a conditional denoiser or a joint classifier; this run has neither, leave it out"
        )
    return replace(setup, classifier_guidance=guidance)


def _labels(asks_for_classes: bool, seen: list[int], label: int | None, num: int) -> np.ndarray | None:
    if not asks_for_classes:
        if label is not None:
            raise UserError(
                "--label needs a conditional denoiser, or --guidance=SCALE above 0 by a joint classifier; this run's "
                "denoiser is unconditional, leave --label out"
            )
        return None
    if label is not None and label not in seen:
        raise UserError(f"--label={label} was not seen by then; write one of {seen}")
    return balanced_labels(seen if label is None else [label], num)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jdcl_jax.sample", description=__doc__)
    parser.add_argument("--workdir", required=True, type=Path, help="a run's folder")
    parser.add_argument(
        "--task", type=int, default=0, help="after which task, from 1; the last finished one if not given"
    )
    parser.add_argument("--num", type=int, default=64, help="how many images")
    parser.add_argument("--seed", type=int, default=0, help="names the noise")
    parser.add_argument("--label", type=int, default=None, help="class, of a conditional denoiser or with --guidance")
    parser.add_argument(
        "--guidance",
        type=float,
        default=None,
        help="scale: classifier-free guidance of a conditional denoiser, or to classes by a joint classifier",
    )
    parser.add_argument("--out", type=Path, default=Path("grid.png"), help="the picture to write (PNG)")
    arguments = parser.parse_args(argv)
    plain_logging()
    with exit_on_user_error():
        check_picture_path(arguments.out)
        if arguments.num < 1 or arguments.task < 0 or arguments.seed < 0:
            raise UserError("--num counts from 1, --task and --seed from 0")
        share_cpu(arguments.num)
        images = sample(
            arguments.workdir,
            task=arguments.task,
            num=arguments.num,
            seed=arguments.seed,
            label=arguments.label,
            guidance=arguments.guidance,
        )
        write_grid(arguments.out, images)
        print(arguments.out)


if __name__ == "__main__":
    main()
