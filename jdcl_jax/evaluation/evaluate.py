"""All scores of one generator after one task: one row of every matrix R."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from jdcl_jax.errors import UserError
from jdcl_jax.evaluation.assign import asked, assign
from jdcl_jax.evaluation.coverage import by_task, class_histogram
from jdcl_jax.evaluation.features import Classifier, FeatureExtractor
from jdcl_jax.evaluation.real import RealSide
from jdcl_jax.evaluation.scores import (
    CoverageScore,
    FeatureScore,
    LabelScore,
    Measured,
    MeasuredScore,
    Score,
    check_conditional,
    check_measured,
    select,
)

Counts = dict[str, int | list[int]]  # {"per_task": of every entry of a row, or a list of each [T], "union": ...}


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores after learning a task; T tasks, C classes.

    Attributes:
        task: the task learned last, 0-based.
        per_task: per score the row R[task, :], float64 [T], NaN for tasks not seen yet.
        union: per score the value on all seen tasks at once.
        assigned: int64 [T], how many generated images the classifier gave to each task, also to
            tasks not seen yet, and also of a conditional denoiser. An image of a class that several tasks have counts
            for each of them.
        histogram: int64 [C], how many generated images the classifier gave to each class.
        num_generated: per score {"per_task": images in each entry of the row, "union": ...}; with labels
            "per_task" of scores of features and labels is a list [T], 0 for tasks not seen yet.
        num_real: per score {"per_task": [T] test images of each entry, "union": ...}.
    """

    task: int
    per_task: dict[str, np.ndarray]
    union: dict[str, float]
    assigned: np.ndarray
    histogram: np.ndarray
    num_generated: dict[str, Counts]
    num_real: dict[str, Counts]


@dataclasses.dataclass(frozen=True, eq=False)
class _Entry:
    """One score: row [T], value on the union, and how many images they are of."""

    row: np.ndarray
    union: float
    num_generated: Counts
    num_real: Counts


@dataclasses.dataclass(frozen=True, eq=False)
class _Samples:
    """M generated images: what is known of them, and which of them each task takes.

    Attributes:
        features: [M, d] per extractor, filled as scores need them.
        predicted: int [M], the classifier's answers.
        histogram: int64 [C], how often it gave each.
        rows: per task, the images that scores of features take.
        labels: int [M], the classes asked for; None if unconditional.
        asked_for: per task, all images asked for its classes; None if unconditional.
    """

    features: dict[str, np.ndarray]
    predicted: np.ndarray
    histogram: np.ndarray
    rows: list[np.ndarray]
    labels: np.ndarray | None
    asked_for: list[np.ndarray] | None


def evaluate_generator(
    generated: np.ndarray,
    real: RealSide,
    *,
    task: int,
    scores: Iterable[str],
    classifier: Classifier,
    extractors: Mapping[str, FeatureExtractor] | None = None,
    labels: np.ndarray | None = None,
    measured: Mapping[str, Measured] | None = None,
) -> Evaluation:
    """Scores generated images against the test images of every seen task and of their union.

    The union takes all M generated images. Which of them a task takes depends on the denoiser:

    - Unconditional (`labels` is None): the M // T that `assign` chooses by the classifier's answers, the
      same number for every entry of the matrix.
    - Conditional: the first M // T of those that were asked to show its classes, whatever they show; all
      of them where there are fewer, and never others. Labels that run through the classes in turn give a
      task all its classes. Scores of labels take all that were asked for.

    Where several tasks have a class, as in a domain-incremental sequence, its images are of all these tasks: nobody can
    ask for a class as it was in one of them, and the classifier does not say.

    Scores of class coverage use all M for both, and the classifier's answers whether there are labels or not.

    Args:
        generated: uint8 [M, H, W, C], drawn from the generator with no choice among them.
        real: the test images; pass the same object after every task.
        task: the task learned last, 0-based.
        scores: names from `scores.SCORES`.
        classifier: predicts classes, and is the extractor named "classifier".
        extractors: further extractors by name ("inception"), as the scores need them.
        labels: int [M], the class of a seen task that each image was asked to show; None if unconditional.
        measured: scores of the network itself. Those that are not among `scores` are left out, and so are
            entries of tasks not seen yet.

    Raises:
        UserError: an unknown score, a missing extractor, label or measurement, too few images, images of
            another shape than the test images, or labels of tasks not seen yet.
    """
    chosen = select(scores)
    check_conditional(chosen, labels is not None)
    check_measured(chosen, measured or {})
    _check(generated, real, chosen, classifier, extractors or {})
    asked_for = None if labels is None else _asked_for(labels, len(generated), real, task, chosen)
    samples, assigned = _sort(generated, real, classifier, labels, asked_for)
    known = {**(extractors or {}), classifier.name: classifier}
    entries: dict[str, _Entry] = {}
    for name, score in chosen.items():
        if isinstance(score, MeasuredScore):
            entries[name] = _measured(name, (measured or {})[name], real, task)
        elif isinstance(score, CoverageScore):
            entries[name] = _coverage(score, real, task, samples)
        elif isinstance(score, LabelScore):
            entries[name] = _on_labels(score, real, task, samples)
        else:
            if score.features not in samples.features:
                samples.features[score.features] = known[score.features](generated)
            entries[name] = _on_features(score, real, task, known[score.features], samples)
    return Evaluation(
        task=task,
        per_task={name: entry.row for name, entry in entries.items()},
        union={name: entry.union for name, entry in entries.items()},
        assigned=assigned,
        histogram=samples.histogram,
        num_generated={name: entry.num_generated for name, entry in entries.items()},
        num_real={name: entry.num_real for name, entry in entries.items()},
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


def _asked_for(
    labels: np.ndarray, samples: int, real: RealSide, task: int, chosen: Mapping[str, Score]
) -> list[np.ndarray]:
    """Rows of the images asked for each task, after a check that these are enough."""
    if labels.shape != (samples,) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"labels are {labels.dtype} of shape {labels.shape} for {samples} generated images: give one int each"
        )
    seen = list(dict.fromkeys(label for group in real.groups[: task + 1] for label in group))
    strange = labels[~np.isin(labels, seen)]
    if len(strange):
        raise UserError(f"an image was asked to show class {strange[0]}, which no task seen so far has: ask for {seen}")
    asked_for = [asked(labels, group if k <= task else ()) for k, group in enumerate(real.groups)]
    for name, score in chosen.items():
        for seen_task, rows in enumerate(asked_for[: task + 1]):
            used = rows[: samples // len(real.groups)] if isinstance(score, FeatureScore) else rows
            if isinstance(score, FeatureScore | LabelScore) and len(used) < score.least:
                raise UserError(
                    f"{name} of task {seen_task + 1} has {len(used)} generated images but needs {score.least}: "
                    f"raise evaluation.num_samples ({samples}), or ask more often for classes {real.groups[seen_task]}"
                )
    return asked_for


def _sort(
    generated: np.ndarray,
    real: RealSide,
    classifier: Classifier,
    labels: np.ndarray | None,
    asked_for: list[np.ndarray] | None,
) -> tuple[_Samples, np.ndarray]:
    """The samples with the classifier's answers, and how many of them it gave to each task, int64 [T]."""
    features, probabilities = classifier.features_and_probabilities(generated)
    predicted = probabilities.argmax(axis=1)
    count = len(generated) // len(real.groups)
    assignments = [assign(probabilities, group, count) for group in real.groups]
    samples = _Samples(
        features={classifier.name: features},
        predicted=predicted,
        histogram=class_histogram(predicted, probabilities.shape[1]),
        rows=[chosen.rows for chosen in assignments] if asked_for is None else [rows[:count] for rows in asked_for],
        labels=labels,
        asked_for=asked_for,
    )
    return samples, np.array([chosen.assigned for chosen in assignments], np.int64)


def _on_features(
    score: FeatureScore, real: RealSide, task: int, extractor: FeatureExtractor, samples: _Samples
) -> _Entry:
    row, features = np.full(len(real.groups), np.nan), samples.features[score.features]
    for seen in range(task + 1):
        row[seen] = score.compare(real.task(extractor, seen), features[samples.rows[seen]])
    counts = [_used(score, len(rows)) for rows in samples.rows]
    return _Entry(
        row,
        score.compare(real.seen(extractor, task), features),
        {"per_task": counts[0] if samples.labels is None else counts, "union": _used(score, len(features))},
        _num_real(score, real, task),
    )


def _coverage(score: CoverageScore, real: RealSide, task: int, samples: _Samples) -> _Entry:
    true = np.zeros((len(real.groups), len(samples.histogram)), np.int64)
    for seen in range(task + 1):
        true[seen] = class_histogram(real.labels(seen), len(samples.histogram))
    terms = score.by_class(true.sum(axis=0), samples.histogram)
    row = by_task(terms, true)
    drawn = len(samples.predicted)
    return _Entry(row, float(terms.sum()), {"per_task": drawn, "union": drawn}, _num_real(score, real, task))


def _on_labels(score: LabelScore, real: RealSide, task: int, samples: _Samples) -> _Entry:
    labels, asked_for = samples.labels, samples.asked_for
    assert labels is not None and asked_for is not None, "check_conditional has passed"
    row = np.full(len(real.groups), np.nan)
    for seen in range(task + 1):
        row[seen] = score.compare(labels[asked_for[seen]], samples.predicted[asked_for[seen]])
    return _Entry(
        row,
        score.compare(labels, samples.predicted),
        {"per_task": [len(rows) for rows in asked_for], "union": len(labels)},
        {"per_task": [0] * len(real.groups), "union": 0},
    )


def _measured(name: str, measured: Measured, real: RealSide, task: int) -> _Entry:
    tasks = len(real.groups)
    row, counts = np.array(measured.row, np.float64), np.array(measured.images, np.int64)
    if row.shape != (tasks,) or counts.shape != (tasks,):
        raise UserError(
            f"{name} was measured as a row of shape {row.shape} on images of shape {counts.shape}: "
            f"give a value and a count for each of the {tasks} tasks"
        )
    row[task + 1 :] = np.nan
    per_task = [int(n) for n in counts]
    num_real: Counts = {"per_task": per_task, "union": sum(per_task[: task + 1])}
    return _Entry(row, float(measured.union), {"per_task": 0, "union": 0}, num_real)


def _num_real(score: Score, real: RealSide, task: int) -> Counts:
    union = _used(score, real.num_seen(task))
    return {"per_task": [_used(score, int(n)) for n in real.test.counts], "union": union}


def _used(score: Score, images: int) -> int:
    return images if score.most is None else min(images, score.most)
