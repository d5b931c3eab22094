"""A sequence of tasks: the images of each task, training, validation and test.

Tasks count from 1 in every message and from 0 in every index.
"""

from dataclasses import dataclass, replace

import numpy as np

from jdcl_jax.data.arrays import Dataset, Split
from jdcl_jax.data.groups import VALIDATION_STREAM, Groups, random_stream, task_groups
from jdcl_jax.data.labels import hide_labels
from jdcl_jax.errors import UserError

__all__ = ["TaskSequence", "TaskSplit", "task_groups", "task_sequence"]


@dataclass(frozen=True, eq=False)
class TaskSplit:
    """Images of all tasks, task after task.

    `images` uint8 [N, H, W, C]; `labels` int32 [N], the data set's own class numbers; the rows of
    task k (from 0) are `starts[k]` to `starts[k] + counts[k]`, both int32 [T]. Within a task the
    classes come in the order of its group, and a class's images in the order of the data set.
    """

    images: np.ndarray
    labels: np.ndarray
    starts: np.ndarray
    counts: np.ndarray

    def task(self, k: int) -> Split:
        """The images of task k, counted from 0; `IndexError` if there is none."""
        start, count = self._rows(k)
        return Split(self.images[start : start + count], self.labels[start : start + count])

    def seen(self, k: int) -> Split:
        """The images of tasks 0..k; `IndexError` if there is no task k."""
        end = sum(self._rows(k))
        return Split(self.images[:end], self.labels[:end])

    def _rows(self, k: int) -> tuple[int, int]:
        if not 0 <= k < len(self.starts):
            raise IndexError(f"no task with index {k}: there are {len(self.starts)}")
        return int(self.starts[k]), int(self.counts[k])


@dataclass(frozen=True, eq=False)
class TaskSequence:
    """The classes of each task, the names of *all* the data set's classes, and the images.

    `validation` is held out of the data set's training images; `test` is its test split. A training label that is not
    known is -1.
    """

    groups: Groups
    class_names: tuple[str, ...]
    train: TaskSplit
    validation: TaskSplit
    test: TaskSplit
    true_train_labels: np.ndarray
    """All labels of the training images, int32 [N], for what measures and never for what learns."""


def task_sequence(
    dataset: Dataset, groups: Groups, *, validation: float = 0.1, label_fraction: float = 1.0, seed: int = 0
) -> TaskSequence:
    """Sorts a data set's images into tasks and holds validation images out of training.

    Of each class's n training images, round(n * validation), at least 1, become validation images.
    Which ones depends on the class and the seed alone [ours], so that every order and grouping of
    the classes has the same validation images. Labels keep the data set's class numbers.

    Args:
      dataset: Where the images come from.
      groups: The classes of each task, as from `task_groups`; classes in none are left out.
      validation: Share of each class's training images, 0 <= validation < 1; 0 holds none out.
      label_fraction: Share of each class's training labels that is known; the others become -1 (see `hide_labels`).
      seed: Seed of the choice of validation images and known labels.

    Raises:
      UserError: `validation` is no such share, a class is in two tasks or does not exist, or a
        class has no example in one of the three parts.
    """
    if not 0 <= validation < 1:
        raise UserError(f"tasks: validation is {validation}: write a share from 0 to below 1")
    _check_groups(groups, len(dataset.class_names))
    train_rows, validation_rows, test_rows = [], [], []
    for task, classes in enumerate(groups, start=1):
        for c in classes:
            rows = np.flatnonzero(dataset.train.labels == c)
            held_out = _held_out(len(rows), validation, seed, c)
            train_rows.append(rows[~held_out])
            validation_rows.append(rows[held_out])
            test_rows.append(np.flatnonzero(dataset.test.labels == c))
            _check_class(dataset, task, c, len(train_rows[-1]), len(test_rows[-1]), validation)
    train = _task_split(dataset.train, groups, train_rows)
    return TaskSequence(
        groups,
        dataset.class_names,
        replace(train, labels=hide_labels(train.labels, label_fraction, seed)),
        _task_split(dataset.train, groups, validation_rows),
        _task_split(dataset.test, groups, test_rows),
        train.labels,
    )


def _check_groups(groups: Groups, num_classes: int) -> None:
    """The same promises as `task_groups`, for groups that somebody wrote by hand."""
    classes = [c for group in groups for c in group]
    if not groups or not all(groups):
        raise UserError(f"tasks: groups {groups} has a task without classes: give each one or more")
    if len(set(classes)) < len(classes):
        raise UserError(f"tasks: groups {groups} has a class twice: each belongs to one task")
    if min(classes) < 0 or max(classes) >= num_classes:
        raise UserError(f"tasks: groups {groups} has a class outside 0..{num_classes - 1}")


def _held_out(number: int, validation: float, seed: int, c: int) -> np.ndarray:
    """Marks, among a class's `number` training images, those for validation: bool [number]."""
    held_out = np.zeros(number, dtype=bool)
    if validation:
        random = random_stream(seed, VALIDATION_STREAM, c)
        held_out[random.permutation(number)[: max(1, round(number * validation))]] = True
    return held_out


def _check_class(dataset: Dataset, task: int, c: int, train: int, test: int, validation: float) -> None:
    if train and test:
        return
    if not test:
        lack, cure = "test image", "add one"
    elif validation:
        lack, cure = (
            f"training image left beside validation {validation:g}",
            "add some, or lower it",
        )
    else:
        lack, cure = "training image", "add one"
    raise UserError(f"{dataset.name}: class {c} ({dataset.class_names[c]}) of task {task} has no {lack}: {cure}")


def _task_split(split: Split, groups: Groups, rows_of_classes: list[np.ndarray]) -> TaskSplit:
    rows = np.concatenate(rows_of_classes)
    class_counts = np.array([len(rows) for rows in rows_of_classes])
    first_classes = np.cumsum([0] + [len(group) for group in groups[:-1]])
    counts = np.add.reduceat(class_counts, first_classes).astype(np.int32)
    starts = (np.cumsum(counts) - counts).astype(np.int32)
    return TaskSplit(split.images[rows], split.labels[rows], starts, counts)
