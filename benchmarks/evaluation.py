"""What the scores after a task cost beside training it, in the papers' configurations.

    python benchmarks/evaluation.py --out=results/evaluation.json

A paper's run takes days on an accelerator, so its parts are timed on random pixels, with the config's own network: a
train step, a batch of the sampler, features of images, a Frechet distance. The config says how many of each there are;
the share is computed from these, for the first task, whose training is the cheapest. Pictures and files are left out.
"""

from jdcl_jax.training.backend import reexec_with_hugepages

if __name__ == "__main__":
    reexec_with_hugepages()

import argparse
from collections.abc import Callable
from typing import Any

import _compare
import _ours
import _part
import _rows
import jax
import numpy as np
import replay_cost

from jdcl_jax.assembly import Parts
from jdcl_jax.data.batches import to_float
from jdcl_jax.evaluation.features import in_batches
from jdcl_jax.evaluation.frechet import frechet_distance, statistics
from jdcl_jax.methods.method import DENOISER, Phase
from jdcl_jax.models.classifier import ImageClassifier
from jdcl_jax.models.inception import InceptionV3, inception_input
from jdcl_jax.training.parallel import Parallel

GOAL = 0.10
TINY = "model.channels=(8,16,16),model.groups=4,model.layers_per_block=1,classifier.hidden=8,context.resolutions=(16,)"
CONFIGS = {
    "JDCL": "configs/cifar10.py:jdcl",
    "generative distillation": "configs/cifar10.py:gd,generation",
    "GPPDM": "configs/cifar10.py:gppdm,gppdm_released",
    "DDGR": "configs/cifar10.py:ddgr,ddgr_released",
    "GUIDE": "configs/cifar10.py:guide,guide_released",
}
"""Of gd_paper all but the scores: these need a weights file even to be named."""
INCEPTION, CLASSIFIER = 2048, 128
"""Features of an image: of Inception, whose weights do not matter here, and of the classifier behind other scores."""


def measure(options: argparse.Namespace) -> list[_rows.Row]:
    rows = [*_feature_rows(options), *(_distance_row(options, width) for width in (INCEPTION, CLASSIFIER))]
    seconds = {row["unit"]: row["median"]["jdcl_jax"] for row in rows}
    scoring = {width: seconds[f"image, {width} features"] for width in (INCEPTION, CLASSIFIER)}
    for name, config in CONFIGS.items():
        rows += _share_rows(options, name, config, scoring, seconds)
    return rows


def _feature_rows(options: argparse.Namespace) -> list[_rows.Row]:
    """Seconds an image of both networks whose features are compared."""
    batch = 2 if options.tiny else 16 if jax.default_backend() == "cpu" else 256
    images = np.random.default_rng(0).integers(0, 256, (2 * batch, 32, 32, 3), np.uint8)
    inception, classifier = InceptionV3(num_logits=0), ImageClassifier(10, (32, 64, 128), CLASSIFIER)
    inputs = {INCEPTION: inception_input, CLASSIFIER: to_float}
    rows = []
    for width, network in ((INCEPTION, inception), (CLASSIFIER, classifier)):
        of_batch = _features(network, inputs[width], images[:batch], index=int(width == CLASSIFIER))
        side = _compare.timed(lambda of=of_batch: _all(of, images, batch), len(images))
        timings = _compare.alternate({"jdcl_jax": side}, options.repeats)
        rows.append(_rows.timed_row(f"features of 32x32 images, {width} wide", f"image, {width} features", timings))
    return rows


def _features(network: Any, as_input: Callable[..., jax.Array], images: np.ndarray, index: int) -> Callable[..., Any]:
    variables = jax.jit(network.init)(jax.random.key(0), as_input(images[:1]))
    return jax.jit(lambda batch: network.apply(variables, as_input(batch))[index])


def _all(of_batch: Callable[..., Any], images: np.ndarray, batch: int) -> None:
    for _ in in_batches(of_batch, images, batch):
        pass


def _distance_row(options: argparse.Namespace, width: int) -> _rows.Row:
    """A Frechet distance of new features from a reference whose decomposition is there already."""
    width, count = (64, 200) if options.tiny else (width, 10_000)
    random = np.random.default_rng(0)
    real, drawn = (random.standard_normal((count, width), np.float32) for _ in range(2))
    reference = statistics(real)
    assert reference.root.shape == (width, width)  # computed once, and kept
    side = _compare.timed(lambda: frechet_distance(reference, statistics(drawn)), 1)
    timings = _compare.alternate({"jdcl_jax": side}, min(options.repeats, 3))
    return _rows.timed_row(f"Frechet distance, {count:,} images", f"distance, {width} features", timings)


def _share_rows(
    options: argparse.Namespace, name: str, config: str, seconds_an_image: dict[int, float], seconds: dict[str, float]
) -> list[_rows.Row]:
    """A batch of training and of sampling by the config's network, and the share that the scores take."""
    on_cpu = jax.default_backend() == "cpu"
    batch, steps = (8 if on_cpu else 256), 4
    words = [f"train.batch_size={batch}", f"sampler.steps={steps}", f"model.dtype={_ours.compute_dtype()}"]
    small = replay_cost.parts_of(f"{config},{','.join([*words, *([TINY] if options.tiny else [])])}")
    train, _ = _ours.train_job(small, Parallel(), 1, _denoiser_phase(small))
    sample, _ = _ours.sampling_job(small, Parallel(), batch)
    sides = {"train step": _compare.timed(train, small.setup.batch_size), "sampler": _compare.timed(sample, batch)}
    timings = _compare.alternate(sides, options.repeats)
    row = _rows.timed_row(f"{name}: an image in a train step / drawn in {steps} steps", "image", timings)
    parts = replay_cost.parts_of(config)
    first, number = _denoiser_phase(parts), parts.config.evaluation.num_samples
    training = row["median"]["train step"] * parts.setup.batch_size * first.steps
    drawing = row["median"]["sampler"] / steps * parts.setup.sampler.steps * number
    # Both kinds of features of every image, and a distance of the task's and one of all.
    scoring = number * sum(seconds_an_image.values()) + 2 * sum(s for what, s in seconds.items() if "distance" in what)
    share = _rows.figure_row(
        f"{name}: scores after the first task, {number:,} images in {parts.setup.sampler.steps} steps",
        (drawing + scoring) / training,
        "of its training",
        training_seconds=training,
        drawing_seconds=drawing,
        scoring_seconds=scoring,
    )
    return [row, _rows.with_goal(share, share["value"], most=GOAL)]


def _denoiser_phase(parts: Parts) -> Phase:
    """The phase of the first task that trains the denoiser; a classifier apart costs little beside it."""
    return next(phase for phase in parts.method.phases(0) if phase.observe is None and phase.network == DENOISER)


if __name__ == "__main__":
    _part.run_part(_part.parser(__doc__).parse_args(), measure)
