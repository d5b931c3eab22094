"""Images and labels as plain arrays, and the checks that every data set passes."""

from dataclasses import dataclass

import numpy as np

from jdcl_jax.errors import UserError


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images.

    `images` is uint8 [N, H, W, C] with C = 1 or 3 and pixels 0..255, `labels` int32 [N].
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A whole data set: train and test images of classes 0..C-1, and where the pixels come from.

    `class_names[c]` is the name of class c; `provenance` is one line for a person, printed beside
    every number.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    provenance: str


def checked(dataset: Dataset) -> Dataset:
    """Returns `dataset`; `UserError` if a label is out of range or a class lacks images."""
    classes = len(dataset.class_names)
    for split_name, split in (("training", dataset.train), ("test", dataset.test)):
        outside = split.labels[(split.labels < 0) | (split.labels >= classes)]
        if outside.size:
            raise UserError(
                f"{dataset.name}: a {split_name} label is {outside[0]}, outside 0..{classes - 1}: "
                f"labels must be the class numbers of the {classes} classes"
            )
        empty = np.flatnonzero(np.bincount(split.labels, minlength=classes) == 0)
        if empty.size:
            names = ", ".join(f"{c} ({dataset.class_names[c]})" for c in empty[:5])
            more = f" and {empty.size - 5} more" if empty.size > 5 else ""
            raise UserError(
                f"{dataset.name}: class {names}{more} has no {split_name} image: "
                f"every class 0..{classes - 1} needs at least one"
            )
    return dataset


def rows_for_test(name: str, labels: np.ndarray, fraction: float) -> np.ndarray:
    """Marks the rows that become test images where a source has no test split of its own [ours].

    Stratified and fixed, no random numbers: within each class, in the order of the rows, row r
    (from 0) is test when the whole part of (r + 1) * fraction exceeds that of r * fraction; 0.2
    gives every 5th image of each class.

    Args:
      name: The data set's name, for the error.
      labels: int [N], each >= 0.
      fraction: Share of each class to take, 0 < fraction < 1.

    Returns:
      bool [N].

    Raises:
      UserError: A class is too small to give one test image and keep one for training.
    """
    # In whole millionths: as floats, 0.29 * 100 is less than 29.
    millionths = round(fraction * 1_000_000)
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        r = np.arange(len(rows), dtype=np.int64)
        taken = (r + 1) * millionths // 1_000_000 > r * millionths // 1_000_000
        if not 0 < taken.sum() < len(rows):
            raise UserError(
                f"{name}: class {label} has {len(rows)} images, too few to split off a test "
                f"fraction of {fraction:g}: add images, or give test images of their own"
            )
        chosen[rows] = taken
    return chosen


def split_off_test(name: str, everything: Split, fraction: float) -> tuple[Split, Split]:
    """Train and test, divided by `rows_for_test`; both keep the order of the rows."""
    test = rows_for_test(name, everything.labels, fraction)
    return (
        Split(everything.images[~test], everything.labels[~test]),
        Split(everything.images[test], everything.labels[test]),
    )
