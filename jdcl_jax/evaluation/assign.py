"""Which generated images count as those of a task [ours].

R[i, j] compares generated images "of task j" with task j's test images. A class-conditional network
was asked for a class, and is taken at its word: task j gets the images that were asked to show its
classes, whatever they show. So an image of the wrong class counts against the task that asked for
it, and nothing is filled up: an image that was asked to show another task says nothing of this one.

An unconditional network does not say what an image is of, so the classifier of the scores decides:
task j gets the first m images that it assigns to a class of task j, in the order in which they were
generated. Where there are fewer than m, the images that come closest, by the probability of task
j's classes, fill up.

Why so: the score is always defined; it is always taken on m images, so that its bias, which depends
on the sample count, is the same in the whole matrix; and a forgotten task scores badly, because its
place is filled with images of other tasks, where taking only what was found would judge a handful
of lucky hits.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jdcl_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Assignment:
    """The rows int64 [m] chosen for a task, and how many of *all* images were assigned to it."""

    rows: np.ndarray
    assigned: int


def assign(probabilities: np.ndarray, classes: Sequence[int], count: int) -> Assignment:
    """Chooses `count` generated images for the task that has `classes`.

    Args:
        probabilities: [M, C], the classifier's class probabilities of every generated image.
        classes: the task's class ids.
        count: m, the same for the whole matrix: number of samples // number of tasks.

    Returns:
        Assigned rows first, in sample order, then the fillers, most probable first (in sample order
        among equals). The same image may fill up several tasks.

    Raises:
        UserError: `count` is not between 1 and M.
    """
    if not 1 <= count <= len(probabilities):
        raise UserError(
            f"cannot take {count} of {len(probabilities)} generated images for a task: "
            "generate at least one image per task"
        )
    own = np.asarray(classes, np.int64)
    mine = np.isin(probabilities.argmax(axis=1), own)
    assigned, others = np.flatnonzero(mine), np.flatnonzero(~mine)
    closeness = probabilities[np.ix_(others, own)].sum(axis=1)
    fillers = others[np.argsort(-closeness, kind="stable")]
    return Assignment(np.concatenate([assigned, fillers])[:count], len(assigned))


def asked_until(groups: Sequence[Sequence[int]], least: int) -> int:
    """How many samples it takes until each task had `least`, when they run through the classes of all tasks in turn.

    Args:
        groups: the classes of each task; a class may be in several, and its samples are of all of them.
        least: at least 1.
    """
    every = list(dict.fromkeys(label for group in groups for label in group))
    most = 0
    for group in groups:
        places = np.flatnonzero(np.isin(every, group))
        rounds, rest = divmod(least - 1, len(places))
        most = max(most, rounds * len(every) + int(places[rest]) + 1)
    return most


def asked(labels: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Rows int64 [<= M] of the images that a conditional network was asked for a task, in drawing order.

    Args:
        labels: int [M], the class that each generated image was asked to show.
        classes: the task's class ids.
    """
    return np.flatnonzero(np.isin(labels, np.asarray(classes, np.int64)))
