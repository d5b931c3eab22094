"""All scores of one generator after one task: one row of every matrix R."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from jdcl_jax.errors import UserError
from jdcl_jax.evaluation.assign import Assignment, assign
from jdcl_jax.evaluation.coverage import by_task, class_histogram
from jdcl_jax.evaluation.features import Classifier, FeatureExtractor
from jdcl_jax.evaluation.real import RealSide
from jdcl_jax.evaluation.scores import CoverageScore, FeatureScore, Score, select


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores after learning a task; T tasks, C classes.

    Attributes:
        task: the task learned last, 0-based.
        per_task: per score the row R[task, :], float64 [T], NaN for tasks not seen yet.
        union: per score the value on all seen tasks at once.
        assigned: int64 [T], how many generated images the classifier gave to each task, also to
            tasks not seen yet.
        histogram: int64 [C], how many generated images the classifier gave to each class.
        num_generated: per score {"per_task": images in each entry of the row, "union": ...}.
        num_real: per score {"per_task": [T] test images of each entry, "union": ...}.
    """

    task: int
    per_task: dict[str, np.ndarray]
    union: dict[str, float]
    assigned: np.ndarray
    histogram: np.ndarray
    num_generated: dict[str, dict[str, int]]
    num_real: dict[str, dict[str, int | list[int]]]


def evaluate_generator(
    generated: np.ndarray,
    real: RealSide,
    *,
    task: int,
    scores: Iterable[str],
    classifier: Classifier,
    extractors: Mapping[str, FeatureExtractor] | None = None,
) -> Evaluation:
    """Scores generated images against the test images of every seen task and of their union.

    The union takes all generated images. A task takes the M // T of them that `assign` chooses, the
    same number for every entry of the matrix. Scores of class coverage use all M for both.

    Args:
        generated: uint8 [M, H, W, C], drawn from the generator with no choice among them.
        real: the test images; pass the same object after every task.
        task: the task learned last, 0-based.
        scores: names from `scores.SCORES`.
        classifier: predicts classes, and is the extractor named "classifier".
        extractors: further extractors by name ("inception"), as the scores need them.

    Raises:
        UserError: an unknown score, a missing extractor, too few images, or images of another shape
            than the test images.
    """
    chosen = select(scores)
    _check(generated, real, chosen, classifier, extractors or {})
    own_features, probabilities = classifier.features_and_probabilities(generated)
    groups = real.groups
    assignments = [assign(probabilities, group, len(generated) // len(groups)) for group in groups]
    histogram = class_histogram(probabilities.argmax(axis=1), probabilities.shape[1])
    all_extractors: dict[str, FeatureExtractor] = {
        **(extractors or {}),
        classifier.name: classifier,
    }
    features = {classifier.name: own_features}
    rows, union = {}, {}
    for name, score in chosen.items():
        if isinstance(score, CoverageScore):
            rows[name], union[name] = _coverage(score, real, task, histogram)
            continue
        if score.features not in features:
            features[score.features] = all_extractors[score.features](generated)
        extractor = all_extractors[score.features]
        rows[name], union[name] = _on_features(score, real, task, extractor, features[score.features], assignments)
    return Evaluation(
        task=task,
        per_task=rows,
        union=union,
        assigned=np.array([assignment.assigned for assignment in assignments], np.int64),
        histogram=histogram,
        num_generated={n: _num_generated(s, len(generated), len(groups)) for n, s in chosen.items()},
        num_real={name: _num_real(score, real, task) for name, score in chosen.items()},
    )


def _check(
    generated: np.ndarray,
    real: RealSide,
    chosen: Mapping[str, Score],
    classifier: Classifier,
    extractors: Mapping[str, FeatureExtractor],
) -> None:
    if generated.shape[1:] != real.test.images.shape[1:]:
        raise UserError(
            f"generated images have shape {generated.shape[1:]} but the test images "
            f"{real.test.images.shape[1:]}: generate that shape"
        )
    for name, score in chosen.items():
        if score.features and score.features not in {classifier.name, *extractors}:
            raise UserError(
                f"score {name} needs {score.features} features: give their extractor, or leave the score out"
            )


def _on_features(
    score: FeatureScore,
    real: RealSide,
    task: int,
    extractor: FeatureExtractor,
    features: np.ndarray,
    assignments: list[Assignment],
) -> tuple[np.ndarray, float]:
    row = np.full(len(assignments), np.nan)
    for seen in range(task + 1):
        row[seen] = score.compare(real.task(extractor, seen), features[assignments[seen].rows])
    return row, score.compare(real.seen(extractor, task), features)


def _coverage(score: CoverageScore, real: RealSide, task: int, predicted: np.ndarray) -> tuple[np.ndarray, float]:
    true = class_histogram(real.test.labels[: real.num_seen(task)], len(predicted))
    terms = score.by_class(true, predicted)
    row = by_task(terms, true, real.groups)
    row[task + 1 :] = np.nan
    return row, float(terms.sum())


def _num_generated(score: Score, samples: int, tasks: int) -> dict[str, int]:
    per_task = samples if isinstance(score, CoverageScore) else samples // tasks
    return {"per_task": _used(score, per_task), "union": _used(score, samples)}


def _num_real(score: Score, real: RealSide, task: int) -> dict[str, int | list[int]]:
    union = _used(score, real.num_seen(task))
    return {"per_task": [_used(score, int(n)) for n in real.test.counts], "union": union}


def _used(score: Score, images: int) -> int:
    return images if score.most is None else min(images, score.most)
