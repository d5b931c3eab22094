"""Images and labels as plain arrays, and the checks that every data set passes."""

from dataclasses import dataclass, replace

import numpy as np

from jdcl_jax.errors import UserError


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images.

    `images` is uint8 [N, H, W, C] with C = 1 or 3 and pixels 0..255, `labels` int32 [N]; `domains`
    int32 [N], each >= 0, is the domain (such as the session) of each image where the stream of tasks
    is one of domains, else None.
    """

    images: np.ndarray
    labels: np.ndarray
    domains: np.ndarray | None = None

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


def rows_for_test(name: str, labels: np.ndarray, fraction: float, domains: np.ndarray | None = None) -> np.ndarray:
    """Marks the rows that become test images where a source has no test split of its own [ours].

    Stratified and fixed, no random numbers: within each class (of each domain), in the order of the
    rows, row r (from 0) is test when the whole part of (r + 1) * fraction exceeds that of
    r * fraction; 0.2 gives every 5th image of each class.

    Args:
      name: The data set's name, for the error.
      labels: int [N], each >= 0.
      fraction: Share of each class to take, 0 < fraction < 1.
      domains: int [N], each >= 0; None: none.

    Returns:
      bool [N].

    Raises:
      UserError: A class is too small to give one test image and keep one for training.
    """
    # In whole millionths: as floats, 0.29 * 100 is less than 29.
    millionths = round(fraction * 1_000_000)
    chosen = np.zeros(len(labels), dtype=bool)
    for stratum, rows in strata(labels, domains):
        r = np.arange(len(rows), dtype=np.int64)
        taken = (r + 1) * millionths // 1_000_000 > r * millionths // 1_000_000
        if not 0 < taken.sum() < len(rows):
            of_domain = f" of domain {stratum[1]}" if len(stratum) > 1 else ""
            raise UserError(
                f"{name}: class {stratum[0]}{of_domain} has {len(rows)} images, too few to split off a test "
                f"fraction of {fraction:g}: add images, or give test images of their own"
            )
        chosen[rows] = taken
    return chosen


def strata(labels: np.ndarray, domains: np.ndarray | None = None) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """Row numbers of every class, or of every class of every domain, ascending.

    Args:
      labels: int [N].
      domains: int [N], or None.

    Returns:
      ((class,), rows int64 [n]), or ((class, domain), rows), sorted; only those that occur.
    """
    names = np.stack([labels] if domains is None else [labels, domains], axis=1)
    found, number = np.unique(names, axis=0, return_inverse=True)
    number = number.reshape(-1)  # NumPy 2.0 alone gives it a second axis
    order = np.argsort(number, kind="stable")
    rows = np.split(order, np.searchsorted(number[order], np.arange(1, len(found))))
    return [(tuple(stratum), own) for stratum, own in zip(found.tolist(), rows, strict=False)]


def split_off_test(name: str, everything: Split, fraction: float) -> tuple[Split, Split]:
    """Train and test, divided by `rows_for_test`; both keep the order of the rows."""
    test = rows_for_test(name, everything.labels, fraction, everything.domains)
    return _rows(everything, ~test), _rows(everything, test)


def _rows(split: Split, chosen: np.ndarray) -> Split:
    domains = None if split.domains is None else split.domains[chosen]
    return Split(split.images[chosen], split.labels[chosen], domains)


def with_test_of_each_domain(dataset: Dataset, fraction: float) -> Dataset:
    """Gives every domain test images of its own [ours].

    A data set whose test images have all the domains of its training images stays as it is. Where
    they are of other domains (the test sessions of CORe50), they are left out, and a share of the
    training images is test instead, as `rows_for_test` takes it from every class of every domain;
    `provenance` says so. A data set without domains stays as it is.

    Raises:
      UserError: As `rows_for_test`.
    """
    train, test = dataset.train, dataset.test
    if train.domains is None or test.domains is None:
        return dataset
    if not np.setdiff1d(train.domains, test.domains).size:
        return dataset
    others = ", ".join(str(domain) for domain in np.unique(test.domains))
    kept, held_out = split_off_test(dataset.name, train, fraction)
    provenance = (
        f"{dataset.provenance}, a fixed {fraction:.0%} of every class and domain of the training images as test "
        f"images, its own test images (of the domains {others}) left out"
    )
    return replace(dataset, train=kept, test=held_out, provenance=provenance)
