"""How often a classifier is right, among all classes and among those of the image's own task.

The unmasked accuracy is that of class-incremental learning: nobody says which task an image is from. The masked one is
that of task-incremental learning: the task is given and only its classes compete, so that it does not see tasks taken
for one another. Masked is never below unmasked, and the gap is what telling tasks apart costs.

Either is a mean over images, where a class with many test images weighs much, or one over classes, where all weigh the
same. The two are equal where all classes have as many test images.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jdcl_jax.errors import UserError


@dataclass(frozen=True, eq=False)
class Accuracies:
    """Shares of right answers in [0, 1], T tasks and C classes.

    Attributes:
        unmasked: float64 [T], argmax among all C classes; NaN for tasks not seen yet.
        masked: float64 [T], argmax among the classes of the image's own task.
        union: unmasked, over all images of all seen tasks at once.
        union_masked: masked, the same.
        unmasked_by_class: float64 [T], the share of right answers among the images that each class has in the task,
            unmasked, and of these the mean over classes; NaN for tasks not seen yet. A class without images there does
            not count.
        masked_by_class: float64 [T], masked, the same.
        union_by_class: unmasked, the mean over all classes seen, each with its images of all seen tasks at once.
        union_masked_by_class: masked, the same.
        confusion: int64 [C, C], how many images of the row's class got the column's, unmasked.
    """

    unmasked: np.ndarray
    masked: np.ndarray
    union: float
    union_masked: float
    unmasked_by_class: np.ndarray
    masked_by_class: np.ndarray
    union_by_class: float
    union_masked_by_class: float
    confusion: np.ndarray


def accuracies(
    logits: np.ndarray,
    labels: np.ndarray,
    counts: Sequence[int] | np.ndarray,
    groups: Sequence[Sequence[int]],
    task: int,
) -> Accuracies:
    """Accuracies after learning task `task`, from the logits of the images of tasks 0..task.

    The unmasked argmax runs over *all* C outputs of the head, also over classes of tasks not seen yet: there is no task
    mask, and an image that is given such a class is wrong. Of equal logits the lowest class number wins, masked or not.

    Args:
        logits: [N, C], any real type, rows sorted by task; infinities are compared like other numbers.
        labels: int [N], the true classes.
        counts: images per task, [T] or only those of the seen tasks; sum of the first task + 1 is N.
        groups: the classes of each of the T tasks, as from `data.groups.task_groups`.
        task: the last task learned, from 0.

    Raises:
        UserError: shapes that do not fit, a class that is not of its task or has no output, or a NaN.
    """
    scores, truth = np.asarray(logits, np.float64), np.asarray(labels)
    starts = _starts(counts, groups, task)
    _check(scores, truth, starts, groups)
    unmasked = scores.argmax(axis=1)
    masked = np.empty_like(unmasked)
    for j in range(task + 1):
        rows, classes = slice(starts[j], starts[j + 1]), np.sort(groups[j])
        masked[rows] = classes[scores[rows][:, classes].argmax(axis=1)]
    confusion = np.zeros((scores.shape[1],) * 2, np.int64)
    np.add.at(confusion, (truth, unmasked), 1)
    right, right_masked = unmasked == truth, masked == truth
    return Accuracies(
        unmasked=_by_task(right, starts, len(groups)),
        masked=_by_task(right_masked, starts, len(groups)),
        union=float(np.mean(right)),
        union_masked=float(np.mean(right_masked)),
        unmasked_by_class=_by_task_and_class(right, truth, starts, len(groups)),
        masked_by_class=_by_task_and_class(right_masked, truth, starts, len(groups)),
        union_by_class=_by_class(right, truth),
        union_masked_by_class=_by_class(right_masked, truth),
        confusion=confusion,
    )


def _by_task(right: np.ndarray, starts: np.ndarray, num_tasks: int) -> np.ndarray:
    """Means of bool [N] between starts [seen + 1]: float64 [T], NaN for tasks not seen."""
    means = np.full(num_tasks, np.nan)
    means[: len(starts) - 1] = np.add.reduceat(right, starts[:-1], dtype=np.int64) / np.diff(starts)
    return means


def _by_task_and_class(right: np.ndarray, truth: np.ndarray, starts: np.ndarray, num_tasks: int) -> np.ndarray:
    """`_by_class` of the rows between starts [seen + 1]: float64 [T], NaN for tasks not seen."""
    means = np.full(num_tasks, np.nan)
    for j, (start, stop) in enumerate(itertools.pairwise(starts)):
        means[j] = _by_class(right[start:stop], truth[start:stop])
    return means


def _by_class(right: np.ndarray, truth: np.ndarray) -> float:
    """The mean, over the classes that are in truth [N], of the mean of bool [N] over a class's rows."""
    _, number = np.unique(truth, return_inverse=True)
    return float(np.mean(np.bincount(number, weights=right) / np.bincount(number)))


def _starts(counts: Sequence[int] | np.ndarray, groups: Sequence[Sequence[int]], task: int) -> np.ndarray:
    """Where each seen task's rows start, and N: int64 [task + 2]."""
    if not 0 <= task < len(groups):
        raise UserError(f"accuracies after task index {task}: there are {len(groups)} tasks")
    if not task < len(counts) <= len(groups):
        raise UserError(
            f"accuracies got counts of {len(counts)} tasks: give those of {task + 1} to {len(groups)} tasks"
        )
    seen = np.asarray(counts, np.int64)[: task + 1]
    if seen.min() < 1:
        raise UserError(f"accuracies got counts {seen.tolist()}: each seen task needs at least one image")
    return np.append(0, np.cumsum(seen))


def _check(scores: np.ndarray, truth: np.ndarray, starts: np.ndarray, groups: Sequence[Sequence[int]]) -> None:
    if scores.ndim != 2 or truth.shape != scores.shape[:1] or len(truth) != starts[-1]:
        raise UserError(
            f"accuracies got logits {scores.shape}, labels {truth.shape} and counts of {starts[-1]} images: give one "
            "row of logits and one label for each image of the seen tasks"
        )
    if np.isnan(scores).any():
        row = int(np.isnan(scores).any(axis=1).argmax())
        raise UserError(f"accuracies got a NaN logit, first in row {row}: check the classifier")
    for j, (start, stop) in enumerate(itertools.pairwise(starts)):
        foreign = np.setdiff1d(truth[start:stop], groups[j])
        if foreign.size:
            raise UserError(
                f"an image of task {j + 1} has class {foreign[0]}, not one of {tuple(groups[j])}: sort images by task"
            )
        if min(groups[j]) < 0 or max(groups[j]) >= scores.shape[1]:
            raise UserError(f"task {j + 1} has classes {tuple(groups[j])} but the logits are of {scores.shape[1]}")
