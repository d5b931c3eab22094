"""How good frozen features are: what a simple classifier that is fitted on them gets right.

Two probes, both on features standardised by the training images; a column that is constant there is left out [ours].
Neither uses random numbers.
- "linear": multinomial logistic regression (L-BFGS, at most 1,000 steps; a fit that needs more warns) with an L2
  penalty, scikit-learn's C = 100 / columns [ours]. Over the number of columns, so that it means the same for features
  of every width: each column written twice gives the same probe. Of two classes it is the binary regression.
- "knn": the 20 nearest training images, or all where there are fewer, by cosine similarity s; each votes for its class
  with weight exp(s / 0.07), as the code of DINO (arXiv 2104.14294) does [code]. Standardised features [ours], because
  the angles between features that are all positive hardly differ. Weighted, because ties of plain votes would go to the
  lowest class number, which often is an early task.
"""

from collections.abc import Callable, Sequence

import numpy as np

from jdcl_jax.errors import UserError

Predict = Callable[[np.ndarray], np.ndarray]  # features [N, F] -> classes int [N]

NEIGHBOURS = 20
_TEMPERATURE = 0.07
_INVERSE_PENALTY = 100.0  # scikit-learn's C, times the number of columns
_MOST_STEPS = 1000


def fit_probe(kind: str, features: np.ndarray, labels: np.ndarray) -> Predict:
    """Fits a probe and gives the function that predicts classes.

    Where the features say nothing (all columns constant) or there is one class only, it always predicts the most
    frequent class, the lowest of several.

    Args:
        kind: one of `PROBES`.
        features: [N, F], any real type, N >= 1.
        labels: int [N].

    Returns:
        features [M, F] -> classes [M], each one of `labels`; raises UserError for features as this function does.

    Raises:
        UserError: an unknown kind, shapes that do not fit, or features that are not finite.
    """
    if kind not in PROBES:
        raise UserError(f"unknown probe {kind!r}: write one of {', '.join(PROBES)}")
    matrix, classes = _matrix(features, f"{kind} probe: training features"), np.asarray(labels)
    if classes.shape != matrix.shape[:1] or not len(classes):
        raise UserError(f"{kind} probe: training features {matrix.shape} and labels {classes.shape}: one label per row")
    live = matrix.max(axis=0) > matrix.min(axis=0)
    values, votes = np.unique(classes, return_counts=True)
    if len(values) == 1 or not live.any():
        inner = _always(values[votes.argmax()])
    else:
        inner = PROBES[kind](matrix[:, live], classes)

    def predict(features: np.ndarray) -> np.ndarray:
        rows = _matrix(features, f"{kind} probe: features")
        if rows.shape[1] != len(live):
            raise UserError(f"{kind} probe: fitted on {len(live)} columns of features and asked about {rows.shape[1]}")
        return inner(rows[:, live]) if len(rows) else classes[:0]

    return predict


def probe_row(
    kind: str,
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    counts: Sequence[int] | np.ndarray,
    task: int,
) -> tuple[np.ndarray, float]:
    """Accuracies of a probe after task `task`: fitted on the training images of tasks 0..task, all at once.

    Args:
        kind: one of `PROBES`.
        train_features: [M, F], of training images of *all* tasks seen so far and of no other task.
        train_labels: int [M].
        test_features: [N, F], of the test images of tasks 0..task, rows sorted by task.
        test_labels: int [N]; a class without a training image is never predicted.
        counts: test images of each of the T tasks; the sum of the first task + 1 is N.
        task: the last task learned, from 0.

    Returns:
        The accuracy on each task's test images, float64 [T], NaN beyond `task`; and that on all N.

    Raises:
        UserError: as `fit_probe`.
    """
    seen = np.asarray(counts, np.int64)[: task + 1]
    if not 0 <= task < len(counts) or seen.min() < 1:
        raise UserError(
            f"{kind} probe: counts {np.asarray(counts).tolist()} after task index {task}: each seen task needs images"
        )
    truth = np.asarray(test_labels)
    if truth.shape != (seen.sum(),) or len(test_features) != len(truth):
        raise UserError(
            f"{kind} probe: {len(test_features)} test features, labels {truth.shape}, counts of {seen.sum()} images: "
            "give one row and one label for each test image of the seen tasks"
        )
    right = fit_probe(kind, train_features, train_labels)(test_features) == truth
    row = np.full(len(counts), np.nan)
    row[: task + 1] = [part.mean() for part in np.split(right, np.cumsum(seen)[:-1])]
    return row, float(right.mean())


def balanced_rows(labels: np.ndarray, most: int) -> np.ndarray:
    """At most `most` rows, each class as often as the others, evenly spaced among its images [ours].

    A class with fewer images gives all and leaves the rest to the others; where the number does not divide, the classes
    with the most images (of equal ones the highest class numbers) give one more. No random numbers.

    Args:
        labels: int [N].
        most: at least the number of classes in `labels`.

    Returns:
        Row numbers int64 [min(N, most)], ascending.

    Raises:
        UserError: `most` is below the number of classes, so that one would be lost.
    """
    every = np.asarray(labels)
    classes, counts = np.unique(every, return_counts=True)
    if most < len(classes):
        raise UserError(f"{most} images cannot show {len(classes)} classes: take at least {len(classes)}")
    chosen, left = [np.zeros(0, np.int64)], most
    for done, i in enumerate(np.argsort(counts, kind="stable")):
        quota = min(int(counts[i]), left // (len(classes) - done))
        left -= quota
        # The middles of `quota` equal pieces.
        middles = (2 * np.arange(quota, dtype=np.int64) + 1) * counts[i] // (2 * quota)
        chosen.append(np.flatnonzero(every == classes[i])[middles])
    return np.sort(np.concatenate(chosen))


def _always(value: np.generic) -> Predict:
    return lambda features: np.full(len(features), value)


def _linear(features: np.ndarray, labels: np.ndarray) -> Predict:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    regression = LogisticRegression(C=_INVERSE_PENALTY / features.shape[1], max_iter=_MOST_STEPS, solver="lbfgs")
    # One thread: on a busy machine several wait for each other, 3 to 20 times as long. It also sums in one order.
    with threadpool_limits(limits=1, user_api="blas"):
        return make_pipeline(StandardScaler(), regression).fit(features, labels).predict


def _nearest(features: np.ndarray, labels: np.ndarray) -> Predict:
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    neighbours = KNeighborsClassifier(
        n_neighbors=min(NEIGHBOURS, len(features)),
        metric="cosine",
        weights=lambda distances: np.exp(-distances / _TEMPERATURE),
    )
    return make_pipeline(StandardScaler(), neighbours).fit(features, labels).predict


PROBES: dict[str, Callable[[np.ndarray, np.ndarray], Predict]] = {"linear": _linear, "knn": _nearest}


def _matrix(features: np.ndarray, what: str) -> np.ndarray:
    """The features as float64 [N, F]."""
    matrix = np.asarray(features, np.float64)
    if matrix.ndim != 2:
        raise UserError(f"{what} of shape {matrix.shape}: give one row per image")
    bad = ~np.isfinite(matrix)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise UserError(f"{what} have NaN or infinity, first in row {row}, column {column}: check the feature network")
    return matrix
