"""The instruments behind the scores, made once per run, and their use after each task."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jdcl_jax.assembly import Parts
from jdcl_jax.data.arrays import Split
from jdcl_jax.evaluation.classifier import ClassifierSettings
from jdcl_jax.evaluation.classifier_cache import load_or_train_classifier
from jdcl_jax.evaluation.evaluate import Evaluation, evaluate_generator
from jdcl_jax.evaluation.features import FeatureExtractor
from jdcl_jax.evaluation.inception_features import InceptionFeatures
from jdcl_jax.evaluation.real import RealSide
from jdcl_jax.evaluation.scores import select


class Scorer:
    """Scores generated images against the test images of a run's tasks.

    The classifier is trained on all real training images of all classes, also those of later tasks: it is the measuring
    instrument, the same for every method, order of classes and seed, and no method sees it.

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
        started = time.perf_counter()
        trained = load_or_train_classifier(
            cache_dir(evaluation.cache_dir), parts.dataset.train, _nothing(parts), parts.dataset.test, _settings(parts)
        )
        self._classifier = trained.extractor
        self.instrument["classifier_test_accuracy"] = trained.test_accuracy
        say(f"classifier for scores: {trained.test_accuracy:.1%} on test images, {time.perf_counter() - started:.0f} s")

    def __call__(self, images: np.ndarray, task: int) -> Evaluation:
        """All scores of generated images uint8 [N, H, W, C] after a task (from 0)."""
        return evaluate_generator(
            images, self._real, task=task, scores=self._names, classifier=self._classifier, extractors=self._extractors
        )


def cache_dir(chosen: str) -> Path:
    """Where trained classifiers are kept."""
    if chosen:
        return Path(chosen).expanduser()
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


def _nothing(parts: Parts) -> Split:
    train = parts.dataset.train
    return Split(train.images[:0], train.labels[:0])
