"""The instruments behind the scores, made once per run, and their use after each task."""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jdcl_jax.assembly import Parts
from jdcl_jax.data.arrays import Split
from jdcl_jax.errors import UserError
from jdcl_jax.evaluation.classifier import ClassifierSettings
from jdcl_jax.evaluation.classifier_cache import load_or_train_classifier
from jdcl_jax.evaluation.evaluate import Evaluation, evaluate_generator
from jdcl_jax.evaluation.features import FeatureExtractor
from jdcl_jax.evaluation.inception_features import InceptionFeatures
from jdcl_jax.evaluation.real import RealSide
from jdcl_jax.evaluation.replay import ReplayQuality, replay_quality
from jdcl_jax.evaluation.scores import Measured, select
from jdcl_jax.paths import named_path


class Scorer:
    """Scores generated images against the test images of a run's tasks.

    The classifier is trained on all real training images of all classes, also those of later tasks and those held out
    for validation: it is the measuring instrument, the same for every method, order of classes and seed, and no method
    sees it. What it and the data are is kept as hashes in `instrument`.

    Args:
      parts: the run's parts.
      say: takes lines for the person who waits.

    Raises:
      UserError: a weights file that is not Inception.
    """

    def __init__(self, parts: Parts, say: Callable[[str], None]):
        evaluation = parts.config.evaluation
        self._names = tuple(evaluation.scores)
        self._real = RealSide(parts.sequence)
        self._extractors: dict[str, FeatureExtractor] = {}
        self.instrument: dict[str, Any] = {}
        if any(score.features == "inception" for score in select(self._names).values()):
            inception = InceptionFeatures(evaluation.inception_weights)
            self._extractors["inception"] = inception
            self.instrument["inception_sha256"] = inception.sha256
        self._check_test_counts(parts)
        self.instrument["data_sha256"] = _sha256([parts.dataset.train.images, parts.dataset.test.images])
        started = time.perf_counter()
        trained = load_or_train_classifier(
            cache_dir(evaluation.cache_dir), parts.dataset.train, _nothing(parts), parts.dataset.test, _settings(parts)
        )
        self._classifier = trained.extractor
        self.instrument["classifier_sha256"] = _sha256(jax.tree.leaves(trained.extractor.params))
        self.instrument["classifier_test_accuracy"] = trained.test_accuracy
        say(f"classifier for scores: {trained.test_accuracy:.1%} on test images, {time.perf_counter() - started:.0f} s")

    def check_same(self, before: dict[str, Any]) -> None:
        """Raises `UserError` if scores taken before came from other data, another classifier or other weights."""
        for name, value in before.items():
            if self.instrument.get(name) != value:
                raise UserError(
                    f"the scores so far were taken with another {name} ({value}, now {self.instrument.get(name)}); "
                    "resume with the same data, evaluation.cache_dir and kind of machine, or write another --workdir"
                )

    def replay(self, images: np.ndarray, labels: np.ndarray, task: int) -> ReplayQuality:
        """Scores of images that are replayed in a task (from 0) for the classes of the tasks before."""
        return replay_quality(images, labels, self._real, self._classifier, task - 1)

    def _check_test_counts(self, parts: Parts) -> None:
        fewest = int(parts.sequence.test.counts.min())
        for name, score in select(self._names).items():
            if fewest < score.least:
                raise UserError(f"{name} needs {score.least} test images a task and one has {fewest}; leave it out")

    def __call__(
        self,
        images: np.ndarray,
        task: int,
        *,
        labels: np.ndarray | None = None,
        measured: Mapping[str, Measured] | None = None,
    ) -> Evaluation:
        """All scores of generated images uint8 [N, H, W, C] after a task (from 0).

        Args:
          images: drawn from the denoiser.
          task: the last one learned.
          labels: int [N], the classes that a conditional denoiser was asked for.
          measured: scores of the network itself.
        """
        return evaluate_generator(
            images,
            self._real,
            task=task,
            scores=self._names,
            classifier=self._classifier,
            extractors=self._extractors,
            labels=labels,
            measured=measured,
        )


def cache_dir(chosen: str) -> Path:
    """Where trained classifiers are kept."""
    if chosen:
        return named_path(chosen, "evaluation.cache_dir")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jdcl_jax" / "classifiers"


def _settings(parts: Parts) -> ClassifierSettings:
    chosen = parts.config.evaluation.classifier
    return ClassifierSettings(
        num_classes=len(parts.dataset.class_names),
        channels=tuple(chosen.channels),
        features=chosen.features,
        steps=chosen.steps,
        batch_size=chosen.batch_size,
        learning_rate=chosen.learning_rate,
        shift=chosen.shift,
        flip=parts.config.data.flip,
    )


def _sha256(arrays: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _nothing(parts: Parts) -> Split:
    train = parts.dataset.train
    return Split(train.images[:0], train.labels[:0])
