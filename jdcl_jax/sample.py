"""Draws images from a run: `python -m jdcl_jax.sample --workdir=runs/fm-gd --task=3 --num=64 --out=grid.png`."""

from jdcl_jax.training.backend import reexec_with_hugepages, share_cpu

if __name__ == "__main__":
    reexec_with_hugepages()

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdcl_jax.diffusion.guidance import asked, on_clean
from jdcl_jax.errors import Arguments, UserError, exit_on_user_error
from jdcl_jax.keys import named_key
from jdcl_jax.measuring.generation import Draw, Generator, balanced_labels
from jdcl_jax.methods.denoising import generate
from jdcl_jax.methods.method import Setup
from jdcl_jax.models.resnet import masked
from jdcl_jax.reporting.grids import check_picture_path, write_grid
from jdcl_jax.reporting.logs import plain_logging
from jdcl_jax.reporting.progress import Progress
from jdcl_jax.restored import Restored, restore
from jdcl_jax.training.parallel import Parallel

MOST = 1_000_000  # images of one picture


def sample(
    workdir: Path,
    *,
    task: int,
    num: int,
    seed: int = 0,
    label: int | None = None,
    guidance: float | None = None,
    towards: int | None = None,
    scale: float | None = None,
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
      towards: a class to which a classifier that is a network of its own guides all images, whatever they are asked
        to show, by its gradient at the predicted x_0 through the denoiser (arXiv 2403.03938).
      scale: of that gradient, 1 if not given; below 0 it guides away.

    Raises:
      UserError: no such run, task or class, or nothing to guide with.
    """
    run = restore(workdir, task)
    parts, setup = run.parts, _guided(run.parts.setup, guidance)
    if scale is not None and towards is None:
        raise UserError("--scale is of --towards; write --towards=CLASS as well, or --guidance")
    seen = list(setup.seen_classes(run.task - 1))
    labels = _labels(setup.asks_for_classes, seen, label, num)
    draw = None if towards is None else _towards(run, setup, seen, towards, 1.0 if scale is None else scale)
    batch = min(num, parts.config.evaluation.batch_size)
    generator = Generator(setup, Parallel(parts.config.parallel.mode), batch, draw)
    progress = Progress()
    progress.start("sample", num, task=run.task, counts=False)
    params = run.params if towards is None else (run.params, run.solver)
    images = generator(params, named_key(seed, "sample"), num, labels, progress.update)
    progress.close()
    return images


def _towards(run: Restored, setup: Setup, seen: list[int], target: int, scale: float) -> Draw:
    solver = setup.solver
    if solver is None:
        raise UserError(
            "--towards needs a classifier that is a network of its own (classifier.kind=solver); leave it out"
        )
    if target not in seen:
        raise UserError(f"--towards={target}: the classifier has not seen that class by then; write one of {seen}")
    if not math.isfinite(scale):
        raise UserError(f"--scale={scale:g} is no scale of a gradient; write a number, below 0 to guide away")
    allowed = np.isin(np.arange(setup.num_classes), seen)

    def draw(params: Any, labels: jax.Array | None, keys: jax.Array) -> jax.Array:
        denoiser, own = params

        def log_p(images: jax.Array) -> jax.Array:
            return jax.nn.log_softmax(masked(solver.logits(own, images), jnp.asarray(allowed)))

        direction = "toward" if scale >= 0 else "away"
        term = on_clean(log_p, asked(jnp.full(len(keys), target)), abs(scale), direction=direction)
        return generate(setup, denoiser, labels, keys, replace(setup.sampler, recompute=True), [term])

    return draw


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
    parser = Arguments(prog="python -m jdcl_jax.sample", description=__doc__)
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
    parser.add_argument(
        "--towards", type=int, default=None, help="class to which a classifier of its own guides, whatever is asked for"
    )
    parser.add_argument(
        "--scale",
        type=float,
        default=None,
        help="of --towards, 1 if not given; below 0 guides away; eps is recomputed after clipping, at 0 too",
    )
    parser.add_argument("--out", type=Path, default=Path("grid.png"), help="the picture to write (PNG)")
    arguments = parser.parse_args(argv)
    plain_logging()
    with exit_on_user_error():
        check_picture_path(arguments.out)
        if not 1 <= arguments.num <= MOST or arguments.task < 0 or not 0 <= arguments.seed < 2**31:
            raise UserError(f"--num counts from 1 to {MOST}, --task from 0, --seed from 0 to {2**31 - 1}")
        share_cpu(arguments.num)
        images = sample(
            arguments.workdir,
            task=arguments.task,
            num=arguments.num,
            seed=arguments.seed,
            label=arguments.label,
            guidance=arguments.guidance,
            towards=arguments.towards,
            scale=arguments.scale,
        )
        write_grid(arguments.out, images)
        print(arguments.out)


if __name__ == "__main__":
    main()
