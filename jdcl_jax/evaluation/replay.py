"""How good the images are that a generator replays, as they were drawn for the next task.

A generator learned tasks 0..i; at the beginning of task i + 1 it draws images of the classes that it knows, perhaps
guided. They are compared with the test images as a generator's samples are, and stand in row i of a matrix: R[i, j] is
the score of the images of task j that the generator after task i gave.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from jdcl_jax.evaluation.assign import asked
from jdcl_jax.evaluation.features import Classifier
from jdcl_jax.evaluation.frechet import LEAST, frechet_distance, statistics
from jdcl_jax.evaluation.real import RealSide


class Description(NamedTuple):
    """One line for tables, and the direction of a score."""

    words: str
    lower_is_better: bool


REPLAY_SCORES = {
    "fd_replay": Description(
        "Frechet distance of the images replayed in the next task to the test images, on features of a classifier "
        "trained on all real classes",
        True,
    ),
    "label_accuracy_replay": Description(
        "Share of the images replayed in the next task that the classifier gives the class that they stand for", False
    ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class ReplayQuality:
    """Scores of replayed images: rows float64 [T] by task, NaN for tasks not replayed, and on the union.

    Attributes:
        rows: score -> values by task.
        union: score -> value on the images of all old tasks.
        images: how many images each task has, int [T].
        total: how many there are.
    """

    rows: dict[str, np.ndarray]
    union: dict[str, float]
    images: np.ndarray
    total: int


def replay_quality(
    images: np.ndarray, labels: np.ndarray, real: RealSide, classifier: Classifier, task: int
) -> ReplayQuality:
    """Scores images that stand for classes of tasks 0..task.

    Args:
        images: uint8 [N, H, W, C].
        labels: int [N], the classes that they stand for.
        real: the test images.
        classifier: the scores' own.
        task: the last one that the generator has learned, 0-based.
    """
    features, probabilities = classifier.features_and_probabilities(images)
    right = probabilities.argmax(axis=1) == labels
    distances, shares = np.full((2, len(real.groups)), np.nan)
    counts = np.zeros(len(real.groups), np.int64)
    for seen in range(task + 1):
        rows = asked(labels, real.groups[seen])
        counts[seen] = len(rows)
        if len(rows) >= LEAST:
            distances[seen] = frechet_distance(real.task(classifier, seen).statistics, statistics(features[rows]))
            shares[seen] = float(np.mean(right[rows]))
    enough = len(images) >= LEAST
    union = frechet_distance(real.seen(classifier, task).statistics, statistics(features)) if enough else np.nan
    return ReplayQuality(
        {"fd_replay": distances, "label_accuracy_replay": shares},
        {"fd_replay": union, "label_accuracy_replay": float(np.mean(right))},
        counts,
        len(images),
    )
