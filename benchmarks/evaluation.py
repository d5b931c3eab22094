"""What the scores after a task cost beside training it, in the papers' configurations.

    python benchmarks/evaluation.py --out=results/evaluation.json

A paper's run takes days on an accelerator, so its parts are timed on random pixels: train steps of two sizes, by which
one of the config's batch is reckoned, and a batch of the sampler, with the config's own network; the scores of 10,000
images by features of the classifier, as a run takes them; and what Inception adds, which has weights of its own to be
named: features, of the test images too, and two Frechet distances. The config says how many of each there are; the
share is computed from these, for the first task, whose training is the cheapest. Left out: accuracies and errors on
test images, at most some forward passes of each, pictures and files.
"""

from jdcl_jax.training.backend import reexec_with_hugepages

if __name__ == "__main__":
    reexec_with_hugepages()

import argparse
import inspect
import sys
import tempfile

import _compare
import _configs
import _ours
import _part
import _rows
import jax
import numpy as np

from jdcl_jax.assembly import Parts
from jdcl_jax.evaluation.features import in_batches
from jdcl_jax.evaluation.frechet import frechet_distance, statistics
from jdcl_jax.evaluation.inception_features import InceptionFeatures
from jdcl_jax.measuring.scoring import Scorer
from jdcl_jax.methods.method import DENOISER, Phase
from jdcl_jax.models.inception import NUM_FEATURES, InceptionV3, inception_input
from jdcl_jax.training.parallel import Parallel

GOAL = 0.10
TEST_IMAGES = 10_000
SHARE = "configs/cifar10.py:gd,generation"
TINY = "model.channels=(8,16,16),model.groups=4,model.layers_per_block=1,classifier.hidden=8,context.resolutions=(16,)"
CONFIGS = {
    "JDCL": "configs/cifar10.py:jdcl",
    "generative distillation": "configs/cifar10.py:gd,generation",
    "GPPDM": "configs/cifar10.py:gppdm,gppdm_released",
    "DDGR": "configs/cifar10.py:ddgr,ddgr_released",
    "GUIDE": "configs/cifar10.py:guide,guide_released",
}
"""Of gd_paper all but the scores: these need a weights file even to be named."""
SCORES, FEATURES, DISTANCE = "scores of a classifier's features", "Inception features", "Frechet distance"


def measure(options: argparse.Namespace) -> list[_rows.Row]:
    count = 500 if options.tiny else 10_000
    rows = [_scores_row(options, count), _features_row(options), _distance_row(options, count)]
    of_scores, of_image, of_distance = (row["median"]["jdcl_jax"] for row in rows)
    # Features of the drawn images and, once a run, of the test images; a distance of the first task and of all seen.
    seconds = of_scores + (count + TEST_IMAGES) * of_image + 2 * of_distance
    for name, config in CONFIGS.items():
        rows += _share_rows(options, name, config, seconds)
    return rows


def _scores_row(options: argparse.Namespace, count: int) -> _rows.Row:
    """Seconds of what a run does with its samples after the first of five tasks."""
    config = _configs.config_of(SHARE)
    images = np.random.default_rng(1).integers(0, 256, (count, 32, 32, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        with config.unlocked():
            config.evaluation.cache_dir = folder
            config.evaluation.classifier.steps = 1  # its answers do not matter here
        scorer = Scorer(_ours.on_random_pixels(config, (32, 32, 3), 10, count), lambda text: None)
    side = _compare.timed(lambda: scorer(images, 0), 1)
    timings = _compare.alternate({"jdcl_jax": side}, min(options.repeats, 3))
    return _rows.timed_row(f"{SCORES}, {count:,} images", "task", timings, scores=list(config.evaluation.scores))


def _features_row(options: argparse.Namespace) -> _rows.Row:
    """Seconds an image of Inception; its weights do not matter here."""
    batch = inspect.signature(InceptionFeatures).parameters["batch_size"].default
    images = np.random.default_rng(0).integers(0, 256, (2 * batch, 32, 32, 3), np.uint8)
    network = InceptionV3(num_logits=0)
    variables = jax.jit(network.init)(jax.random.key(0), inception_input(images[:1]))
    of_batch = jax.jit(lambda variables, batch: network.apply(variables, inception_input(batch))[0])

    def run() -> None:
        for _ in in_batches(lambda batch: of_batch(variables, batch), images, batch):
            pass

    timings = _compare.alternate({"jdcl_jax": _compare.timed(run, len(images))}, options.repeats)
    return _rows.timed_row(f"{FEATURES} of 32x32 images", "image", timings)


def _distance_row(options: argparse.Namespace, count: int) -> _rows.Row:
    """A distance of new Inception features from a reference whose decomposition is there already."""
    width = 64 if options.tiny else NUM_FEATURES
    random = np.random.default_rng(0)
    real, drawn = (random.standard_normal((count, width), np.float32) for _ in range(2))
    reference = statistics(real)
    assert reference.root.shape == (width, width)  # computed once, and kept
    side = _compare.timed(lambda: frechet_distance(reference, statistics(drawn)), 1)
    timings = _compare.alternate({"jdcl_jax": side}, min(options.repeats, 3))
    return _rows.timed_row(f"{DISTANCE}, {count:,} images, {width} features", "distance", timings)


def _share_rows(options: argparse.Namespace, name: str, config: str, scoring: float) -> list[_rows.Row]:
    """Training by the config's network in batches of two sizes, sampling, and the share that the scores take."""
    few, many = (2, 4) if options.tiny else (8, 16) if jax.default_backend() == "cpu" else (64, 256)
    words = ["sampler.steps=4", f"model.dtype={_ours.compute_dtype()}", *([TINY] if options.tiny else [])]

    def small(batch: int) -> Parts:
        return _configs.parts_of(f"{config},{','.join([*words, f'train.batch_size={batch}'])}")

    def training_of(batch: int) -> _compare.Side:
        parts = small(batch)
        return _compare.timed(_ours.train_job(parts, Parallel(), 1, _denoiser_phase(parts))[0], batch)

    sides = {
        f"train step of {many}": lambda: training_of(many),
        f"train step of {few}": lambda: training_of(few),
        "sampler": lambda: _compare.timed(_ours.sampling_job(small(many), Parallel(), many), many),
    }
    timings: dict[str, list[float]] = {}
    for side, made in sides.items():  # one after another: the states of two of these networks need a large memory
        print(f"{name}: {side}", file=sys.stderr)
        timings |= _compare.alternate({side: made()}, options.repeats)
        _ours.forget_programs()
    row = _rows.timed_row(f"{name}: an image in a train step of {many} / of {few} / drawn in 4 steps", "image", timings)
    of_many, of_few, drawn = row["median"].values()
    parts = _configs.parts_of(config)
    first, number, batch = _denoiser_phase(parts), parts.config.evaluation.num_samples, parts.setup.batch_size
    training = first.steps * step_seconds(batch, {few: few * of_few, many: many * of_many})
    drawing = drawn / 4 * parts.setup.sampler.steps * number
    share = _rows.figure_row(
        f"{name}: scores after the first task, {number:,} images in {parts.setup.sampler.steps} steps",
        (drawing + scoring) / training,
        "of its training",
        training_seconds=training,
        drawing_seconds=drawing,
        scoring_seconds=scoring,
    )
    return [row, _rows.with_goal(share, share["value"], most=GOAL)]


def step_seconds(batch: int, measured: dict[int, float]) -> float:
    """Of a train step of so many images, by the line through two measured ones, or less.

    What a step costs whatever its batch, such as the optimizer's pass over the parameters, is a large part of a step of
    few images: no multiple of a small step is a large one. Where the larger step took longer an image, as noise and
    small caches make it, the smaller one's time an image counts: training is not to look dearer than it was seen.
    """
    (few, short), (many, long) = sorted(measured.items())
    line = short + (batch - few) * (long - short) / (many - few)
    return min(line, batch * short / few, batch * long / many)


def _denoiser_phase(parts: Parts) -> Phase:
    """The phase of the first task that trains the denoiser; a classifier apart costs little beside it."""
    return next(phase for phase in parts.method.phases(0) if phase.observe is None and phase.network == DENOISER)


if __name__ == "__main__":
    _part.run_part(_part.parser(__doc__).parse_args(), measure)
