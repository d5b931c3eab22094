"""Class coverage: whether the generator still makes every class, in the right proportion.

A classifier trained on all classes labels the generated images; the histogram of its answers is
compared with that of the true labels of the test images of the seen classes. KLD and ARD are the
two comparisons of the generative-distillation benchmark [code, arXiv 2311.14028]; KLD comes in two
forms, which differ in what a class costs that is never generated.

The true histogram holds the seen classes only; the predicted one holds *all* classes of the
sequence, so that mass on classes that were never shown counts as missing.

Both scores are sums over classes. A task's entry is the sum over its classes divided by its share of the test images
[ours], so that entries mean the same however many tasks were seen: a task that is never generated has an ARD of 1/2
whether it is one of two or of five. The term of a class that several tasks have is divided among them by their test
images of it [ours]; class histograms do not tell such tasks apart, and where all have the same classes in the same
proportion, all their entries are the same: the union's (of ARD, without the mass on unseen classes).
- KLD: classes with no true mass contribute nothing, so the union's value is the mean of the seen tasks' entries, each
  weighed by its share. An entry is negative where the task's classes are made too often.
- ARD: unseen classes contribute half their predicted mass. That remainder belongs to no seen task: the weighed mean of
  the seen tasks' entries plus it is the union's value.
"""

import numpy as np

from jdcl_jax.errors import UserError


def class_histogram(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """How often each class occurs in labels int [N]: int64 [num_classes].

    Raises:
        UserError: a label outside 0..num_classes-1.
    """
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise UserError(
            f"labels run from {labels.min()} to {labels.max()} but there are {num_classes} "
            f"classes: use labels 0 to {num_classes - 1}"
        )
    return np.bincount(labels, minlength=num_classes).astype(np.int64)


def kld_by_class(true_counts: np.ndarray, predicted_counts: np.ndarray) -> np.ndarray:
    """Each class's term of KL(true || predicted), in nats: float64 [C].

    Half a count is added to every class of the predicted histogram [ours], so that a class which is
    never generated costs a lot and not infinitely much.
    """
    true = _shares(true_counts)
    predicted = _shares(np.asarray(predicted_counts, np.float64) + 0.5)
    # Where the true share is 0 the term is 0; the 1 only keeps the logarithm quiet.
    return true * np.log(np.where(true > 0, true, 1.0) / predicted)


def kld_epsilon_by_class(true_counts: np.ndarray, predicted_counts: np.ndarray) -> np.ndarray:
    """The same with 1e-8 added to every share of both histograms, as arXiv 2311.14028 has it [code].

    It does not depend on how many images there are. A class of share p that is never generated costs p log(1e8 p).
    """
    true, predicted = (_shares(counts) + 1e-8 for counts in (true_counts, predicted_counts))
    return true * np.log(true / predicted)


def ard_by_class(true_counts: np.ndarray, predicted_counts: np.ndarray) -> np.ndarray:
    """Each class's term of half the L1 distance of the two histograms: float64 [C], >= 0."""
    return np.abs(_shares(true_counts) - _shares(predicted_counts)) / 2.0


def by_task(by_class: np.ndarray, true_by_task: np.ndarray) -> np.ndarray:
    """Terms float64 [C] summed over each task's classes and divided by its true share.

    Args:
        by_class: each class's term of the union.
        true_by_task: int [T, C], the true images of each class in each task; 0 in tasks not seen.

    Returns: float64 [T], NaN for a task without true images.
    """
    counts = np.asarray(true_by_task, np.float64)
    of_class, of_task = counts.sum(axis=0), counts.sum(axis=1)
    parts = by_class * counts / np.where(of_class > 0, of_class, 1.0)
    shares = np.where(of_task > 0, of_task, np.nan) / of_task.sum()
    return parts.sum(axis=1) / shares


def _shares(counts: np.ndarray) -> np.ndarray:
    total = np.sum(counts)
    if not total > 0:
        raise UserError("class coverage needs at least one real and one generated image")
    return np.asarray(counts, np.float64) / total
