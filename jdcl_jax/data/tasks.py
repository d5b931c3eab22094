"""A sequence of tasks: the images of each task, training, validation and test.

A class belongs to one task (class-incremental), or a domain does, and then its classes come again in other tasks
(domain-incremental). Tasks count from 1 in every message and from 0 in every index.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from jdcl_jax.data.arrays import Dataset, Split, strata
from jdcl_jax.data.groups import VALIDATION_STREAM, Groups, domain_groups, random_stream, task_groups
from jdcl_jax.data.labels import hide_labels
from jdcl_jax.errors import UserError

__all__ = ["TaskSequence", "TaskSplit", "domain_sequence", "make_sequence", "task_groups", "task_sequence"]

Stratum = tuple[int, ...]  # (class,), or (class, domain)


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
    known is -1. In a domain-incremental sequence a class may be in several groups.
    """

    groups: Groups
    class_names: tuple[str, ...]
    train: TaskSplit
    validation: TaskSplit
    test: TaskSplit
    true_train_labels: np.ndarray
    """All labels of the training images, int32 [N], for what measures and never for what learns."""
    domains: Groups | None = None
    """The domains of each task; None where a task is a group of classes."""


def make_sequence(
    dataset: Dataset,
    *,
    num_tasks: int,
    groups: str,
    order: str,
    first_tasks: int,
    validation: float,
    label_fraction: float,
    seed: int,
) -> TaskSequence:
    """Divides the domains of a data set into tasks, or its classes where it has no domains.

    Arguments and errors are those of `task_groups` and `task_sequence`, or `domain_groups` and `domain_sequence`.
    """
    domains = dataset.train.domains
    if domains is None:
        classes = task_groups(
            len(dataset.class_names),
            num_tasks=num_tasks,
            groups=groups,
            order=order,
            seed=seed,
            first_tasks=first_tasks,
        )
        return task_sequence(dataset, classes, validation=validation, label_fraction=label_fraction, seed=seed)
    known = np.unique(domains).tolist()
    own = domain_groups(known, num_tasks=num_tasks, groups=groups, order=order, seed=seed, first_tasks=first_tasks)
    return domain_sequence(dataset, own, validation=validation, label_fraction=label_fraction, seed=seed)


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
    _check_groups(groups, len(dataset.class_names))
    parts = [[((c,),) for c in group] for group in groups]
    return _sequence(dataset, parts, None, validation, label_fraction, seed)


def domain_sequence(
    dataset: Dataset, domains: Groups, *, validation: float = 0.1, label_fraction: float = 1.0, seed: int = 0
) -> TaskSequence:
    """The same with the images of some domains in each task, whatever their classes.

    A task's group is the classes of its training and test images, ascending; within a class images keep the order of
    the data set. Validation images and known labels are chosen within each class of each domain, from the class, the
    domain and the seed alone [ours], so that every order and grouping of the domains has the same.

    Args:
      dataset: Its train and test images have domains.
      domains: The domains of each task, as from `domain_groups`; domains in none are left out.
      validation: Share of the training images of each class of each domain, 0 <= validation < 1; 0 holds none out.
      label_fraction: Share of the labels of each class of each domain that is known.
      seed: Seed of both choices.

    Raises:
      UserError: `validation` is no such share, a domain is in two tasks or does not exist, or a class of a domain has
        no example in one of the three parts.
    """
    if dataset.train.domains is None or dataset.test.domains is None:
        raise UserError(f"{dataset.name}: its images have no domains: divide its classes into tasks")
    found = {stratum for split in (dataset.train, dataset.test) for stratum, _ in strata(split.labels, split.domains)}
    _check_domains(domains, set(dataset.train.domains.tolist()))
    parts = []
    for own in domains:
        here = sorted(stratum for stratum in found if stratum[1] in own)
        classes = sorted({stratum[0] for stratum in here})
        parts.append([tuple(stratum for stratum in here if stratum[0] == c) for c in classes])
    return _sequence(dataset, parts, domains, validation, label_fraction, seed)


def _sequence(
    dataset: Dataset,
    parts: Sequence[Sequence[Sequence[Stratum]]],
    domains: Groups | None,
    validation: float,
    label_fraction: float,
    seed: int,
) -> TaskSequence:
    """`parts` has for each task, and each class of it, the strata that its images are of."""
    if not 0 <= validation < 1:
        raise UserError(f"tasks: validation is {validation}: write a share from 0 to below 1")
    groups = tuple(tuple(own[0][0] for own in classes) for classes in parts)
    of_train = None if domains is None else dataset.train.domains
    of_test = None if domains is None else dataset.test.domains
    train_rows, test_rows = dict(strata(dataset.train.labels, of_train)), dict(strata(dataset.test.labels, of_test))
    chosen: list[list[np.ndarray]] = []  # of each class of each task: train, validation, test
    for task, classes in enumerate(parts, start=1):
        for own in classes:
            found = []
            for stratum in own:
                rows, test = (known.get(stratum, np.zeros(0, np.int64)) for known in (train_rows, test_rows))
                held_out = _held_out(len(rows), validation, seed, stratum)
                _check_stratum(dataset, task, stratum, int(np.sum(~held_out)), len(test), validation)
                found.append((rows[~held_out], rows[held_out], test))
            chosen.append([np.sort(np.concatenate(rows)) for rows in zip(*found, strict=True)])
    train, validated, tested = (list(rows) for rows in zip(*chosen, strict=True))
    trained = _task_split(dataset.train, groups, train)
    domains_of_rows = None if of_train is None else of_train[np.concatenate(train)]
    return TaskSequence(
        groups,
        dataset.class_names,
        replace(trained, labels=hide_labels(trained.labels, label_fraction, seed, domains_of_rows)),
        _task_split(dataset.train, groups, validated),
        _task_split(dataset.test, groups, tested),
        trained.labels,
        domains,
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


def _check_domains(domains: Groups, known: set[int]) -> None:
    """The same promises as `domain_groups`."""
    every = [d for own in domains for d in own]
    if not domains or not all(domains):
        raise UserError(f"tasks: domains {domains} has a task without domains: give each one or more")
    if len(set(every)) < len(every):
        raise UserError(f"tasks: domains {domains} has a domain twice: each belongs to one task")
    if not known.issuperset(every):
        raise UserError(f"tasks: domains {domains} has one that no training image is of: they are {sorted(known)}")


def _held_out(number: int, validation: float, seed: int, stratum: Stratum) -> np.ndarray:
    """Marks, among a stratum's `number` training images, those for validation: bool [number]."""
    held_out = np.zeros(number, dtype=bool)
    if validation:
        random = random_stream(seed, VALIDATION_STREAM, *stratum)
        held_out[random.permutation(number)[: max(1, round(number * validation))]] = True
    return held_out


def _check_stratum(dataset: Dataset, task: int, stratum: Stratum, train: int, test: int, validation: float) -> None:
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
    c, *domain = stratum
    of_domain = f" of domain {domain[0]}" if domain else ""
    raise UserError(
        f"{dataset.name}: class {c} ({dataset.class_names[c]}){of_domain} of task {task} has no {lack}: {cure}"
    )


def _task_split(split: Split, groups: Groups, rows_of_classes: list[np.ndarray]) -> TaskSplit:
    rows = np.concatenate(rows_of_classes)
    class_counts = np.array([len(rows) for rows in rows_of_classes])
    first_classes = np.cumsum([0] + [len(group) for group in groups[:-1]])
    counts = np.add.reduceat(class_counts, first_classes).astype(np.int32)
    starts = (np.cumsum(counts) - counts).astype(np.int32)
    return TaskSplit(split.images[rows], split.labels[rows], starts, counts)
