"""Class-incremental accuracy by hand and against scikit-learn's metrics."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score

from jdcl_jax.errors import UserError
from jdcl_jax.evaluation.accuracy import Accuracies, accuracies

GROUPS = ((3, 0), (5, 1), (4, 2))
COUNTS = (40, 25, 60)


def labels_of(counts: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random classes of GROUPS, sorted by task."""
    random = np.random.default_rng(seed)
    return np.concatenate([random.choice(GROUPS[j], n) for j, n in enumerate(counts)])


def random_case(tasks: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    labels = labels_of(COUNTS[:tasks], seed)
    logits = np.random.default_rng(seed + 1).standard_normal((len(labels), 6))
    logits[np.arange(len(labels)), labels] += 0.7
    return logits, labels


def assert_same(a: Accuracies, b: Accuracies) -> None:
    for field in dataclasses.fields(Accuracies):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


def test_four_images_by_hand():
    # Tasks (0, 1) and (2, 3). Right; taken for the other task; taken for the other class; both at once.
    logits = np.array([[9, 1, 2, 3], [1, 5, 6, 0], [0, 1, 3, 4], [8, 2, 7, 6]])
    scores = accuracies(logits, np.array([0, 1, 2, 3]), [2, 2], ((0, 1), (2, 3)), 1)
    np.testing.assert_array_equal(scores.unmasked, [0.5, 0.0])
    np.testing.assert_array_equal(scores.masked, [1.0, 0.0])
    assert (scores.union, scores.union_masked) == (0.25, 0.5)
    np.testing.assert_array_equal(scores.confusion, [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0]])
    assert scores.confusion.dtype == np.int64 and scores.unmasked.dtype == np.float64


def mean_recall(labels: np.ndarray, predicted: np.ndarray) -> float:
    return recall_score(labels, predicted, labels=np.unique(labels), average="macro")


def said(classes: list[int]) -> np.ndarray:
    """Logits whose largest is that of these classes, and the second largest that of the class two further."""
    return 2.0 * np.eye(4)[classes] + np.eye(4)[(np.array(classes) + 2) % 4]


def test_over_classes_each_weighs_the_same_however_many_images_it_has():
    # Tasks (0, 1) and (2, 3); class 0 has five images, 1 one, 2 one and 3 three.
    labels = np.array([0, 0, 0, 0, 0, 1, 2, 3, 3, 3])
    # Right are four of five, none of one (taken for 3; if the task is told, for 1), one of one and one of three.
    scores = accuracies(said([0, 0, 0, 0, 1, 3, 2, 3, 2, 0]), labels, [6, 4], ((0, 1), (2, 3)), 1)
    np.testing.assert_allclose(scores.unmasked, [4 / 6, 2 / 4], rtol=1e-15)
    np.testing.assert_allclose(scores.unmasked_by_class, [(4 / 5 + 0) / 2, (1 + 1 / 3) / 2], rtol=1e-15)
    assert (scores.union, scores.union_by_class) == (0.6, pytest.approx((4 / 5 + 0 + 1 + 1 / 3) / 4, rel=1e-15))
    np.testing.assert_allclose(scores.masked, [5 / 6, 2 / 4], rtol=1e-15)
    np.testing.assert_allclose(scores.masked_by_class, [(4 / 5 + 1) / 2, (1 + 1 / 3) / 2], rtol=1e-15)
    assert scores.union_masked == 0.7
    assert scores.union_masked_by_class == pytest.approx((4 / 5 + 1 + 1 + 1 / 3) / 4, rel=1e-15)
    assert scores.unmasked_by_class.dtype == scores.masked_by_class.dtype == np.float64


def test_a_class_of_several_tasks_counts_in_each_by_its_images_there_and_once_in_the_union():
    # Class 0 is right in 1 of 1, then in 1 of 3 images; class 1 in 0 of 2 and comes once; class 2 in 1 of 1.
    labels = np.array([0, 1, 1, 0, 0, 0, 2])
    scores = accuracies(said([0, 0, 0, 2, 0, 2, 2]), labels, [3, 4], ((1, 0), (2, 0)), 1)
    np.testing.assert_allclose(scores.unmasked_by_class, [(1 + 0) / 2, (1 / 3 + 1) / 2], rtol=1e-15)
    assert scores.union_by_class == pytest.approx((2 / 4 + 0 + 1) / 3, rel=1e-15)
    np.testing.assert_allclose(scores.unmasked, [1 / 3, 2 / 4], rtol=1e-15)
    assert scores.union == 3 / 7


def test_a_class_without_images_does_not_count_as_wrong():
    scores = accuracies(said([0, 0, 2]), np.array([0, 0, 1]), [3], ((0, 1, 3), (2,)), 0)
    assert (scores.unmasked_by_class[0], scores.union_by_class) == (0.5, 0.5)
    assert np.isnan(scores.unmasked_by_class[1]) and np.isnan(scores.masked_by_class[1])


def test_means_over_images_and_over_classes_are_equal_where_classes_have_as_many_images():
    labels = np.concatenate([np.repeat(group, 30) for group in GROUPS])
    logits = np.random.default_rng(3).standard_normal((len(labels), 6)) + np.eye(6)[labels]
    scores = accuracies(logits, labels, (60, 60, 60), GROUPS, 2)
    np.testing.assert_allclose(scores.unmasked_by_class, scores.unmasked, rtol=1e-12)
    np.testing.assert_allclose(scores.masked_by_class, scores.masked, rtol=1e-12)
    assert scores.union_by_class == pytest.approx(scores.union, rel=1e-12)
    assert scores.union_masked_by_class == pytest.approx(scores.union_masked, rel=1e-12)


@pytest.mark.parametrize("task", [0, 1, 2])
def test_all_entries_are_those_of_scikit_learn(task: int):
    logits, labels = random_case(task + 1)
    scores = accuracies(logits, labels, COUNTS, GROUPS, task)
    task_of = np.repeat(np.arange(task + 1), COUNTS[: task + 1])
    own = np.array([np.isin(np.arange(6), GROUPS[j]) for j in task_of])
    predicted, masked = logits.argmax(axis=1), np.where(own, logits, -np.inf).argmax(axis=1)
    for j in range(task + 1):
        rows = task_of == j
        assert scores.unmasked[j] == pytest.approx(accuracy_score(labels[rows], predicted[rows]), rel=1e-12)
        assert scores.masked[j] == pytest.approx(accuracy_score(labels[rows], masked[rows]), rel=1e-12)
        by_class = mean_recall(labels[rows], predicted[rows])
        assert scores.unmasked_by_class[j] == pytest.approx(by_class, rel=1e-12)
        by_class = mean_recall(labels[rows], masked[rows])
        assert scores.masked_by_class[j] == pytest.approx(by_class, rel=1e-12)
    for row in (scores.unmasked, scores.masked, scores.unmasked_by_class, scores.masked_by_class):
        assert len(row) == 3 and np.isnan(row[task + 1 :]).all()
    assert scores.union_by_class == pytest.approx(mean_recall(labels, predicted), rel=1e-12)
    assert scores.union_masked_by_class == pytest.approx(mean_recall(labels, masked), rel=1e-12)
    assert scores.union == pytest.approx(accuracy_score(labels, predicted), rel=1e-12)
    assert scores.union_masked == pytest.approx(accuracy_score(labels, masked), rel=1e-12)
    np.testing.assert_array_equal(scores.confusion, confusion_matrix(labels, predicted, labels=np.arange(6)))


def test_the_union_weighs_tasks_by_their_images():
    logits, labels = random_case(3)
    scores = accuracies(logits, labels, COUNTS, GROUPS, 2)
    assert scores.union == pytest.approx(np.average(scores.unmasked, weights=COUNTS))
    assert abs(scores.union - scores.unmasked.mean()) > 1e-3


def test_classes_of_unseen_tasks_compete():
    labels = labels_of(COUNTS[:1])
    logits = np.eye(6)[labels] + 2 * np.eye(6)[4]
    scores = accuracies(logits, labels, COUNTS, GROUPS, 0)
    assert (scores.unmasked[0], scores.masked[0]) == (0.0, 1.0)
    assert scores.confusion[:, 4].sum() == COUNTS[0]


def test_confusing_tasks_alone_costs_nothing_when_masked():
    labels = labels_of(COUNTS)
    logits = np.eye(6)[labels]
    logits[:, [0, 3]] += 5.0  # the first task's classes always win
    scores = accuracies(logits, labels, COUNTS, GROUPS, 2)
    np.testing.assert_array_equal(scores.masked, [1.0, 1.0, 1.0])
    np.testing.assert_array_equal(scores.unmasked, [1.0, 0.0, 0.0])
    assert scores.union_masked == 1.0 and scores.union == COUNTS[0] / sum(COUNTS)


def test_raising_a_tasks_logits_moves_unmasked_scores_only():
    logits, labels = random_case(3)
    before = accuracies(logits, labels, COUNTS, GROUPS, 2)
    after = accuracies(logits + 1.5 * np.isin(np.arange(6), GROUPS[2]), labels, COUNTS, GROUPS, 2)
    np.testing.assert_array_equal(after.masked, before.masked)
    assert after.unmasked[2] > before.unmasked[2] and after.unmasked[0] < before.unmasked[0]


@pytest.mark.parametrize("seed", range(20))
def test_masked_is_never_below_unmasked_not_even_with_ties(seed: int):
    # Three values for six classes tie nearly everywhere, and GROUPS are not in the order of the class numbers.
    labels = labels_of(COUNTS, seed)
    logits = np.random.default_rng(seed).integers(0, 3, (len(labels), 6))
    scores = accuracies(logits, labels, COUNTS, GROUPS, 2)
    assert (scores.masked >= scores.unmasked).all() and scores.union_masked > scores.union


def test_of_equal_logits_the_lowest_class_number_wins():
    scores = accuracies(np.zeros((4, 4)), np.array([1, 1, 3, 1]), [4], ((3, 1), (0, 2)), 0)
    assert (scores.masked[0], scores.unmasked[0]) == (0.75, 0.0)
    np.testing.assert_array_equal(scores.confusion[:, 0], [0, 3, 0, 1])


def test_the_order_of_the_images_within_a_task_does_not_matter():
    logits, labels = random_case(3)
    starts = np.cumsum((0, *COUNTS))
    random = np.random.default_rng(5)
    rows = np.concatenate([start + random.permutation(n) for start, n in zip(starts, COUNTS, strict=False)])
    assert (labels[rows] != labels).any()
    assert_same(
        accuracies(logits[rows], labels[rows], COUNTS, GROUPS, 2), accuracies(logits, labels, COUNTS, GROUPS, 2)
    )


def test_counts_may_be_those_of_the_seen_tasks_or_of_all():
    logits, labels = random_case(2)
    assert_same(accuracies(logits, labels, COUNTS[:2], GROUPS, 1), accuracies(logits, labels, COUNTS, GROUPS, 1))


def test_a_head_that_rules_classes_out_by_minus_infinity_is_fine():
    labels = labels_of(COUNTS[:1])
    logits = np.where(np.isin(np.arange(6), GROUPS[0]), np.eye(6)[labels], -np.inf)
    assert accuracies(logits, labels, COUNTS, GROUPS, 0).union == 1.0


def test_a_nan_is_an_error_and_not_a_class():
    logits, labels = random_case(2)
    logits[7, 5] = np.nan
    with pytest.raises(UserError, match="NaN logit, first in row 7"):
        accuracies(logits, labels, COUNTS, GROUPS, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": np.zeros((64, 6))}, r"logits \(64, 6\), labels \(65,\)"),
        ({"logits": np.zeros((65, 6, 1))}, r"logits \(65, 6, 1\)"),
        ({"logits": np.zeros((65, 5))}, r"task 2 has classes \(5, 1\) but the logits are of 5"),
        ({"labels": np.zeros((65, 1), int)}, r"labels \(65, 1\)"),
        ({"counts": (40, 24)}, "counts of 64 images"),
        ({"counts": (65,)}, "counts of 1 tasks"),
        ({"counts": (40, 25, 0, 0)}, "counts of 4 tasks"),
        ({"counts": (65, 0)}, "at least one image"),
        ({"counts": (39, 26)}, "an image of task 2 has class [03]"),
        ({"groups": ((3, 0), (5, 2), (4, 1))}, "an image of task 2 has class 1"),
        ({"task": 2}, "counts of 65|counts of 125"),
        ({"task": 3}, "there are 3 tasks"),
        ({"task": -1}, "there are 3 tasks"),
    ],
)
def test_what_does_not_fit_is_an_error(change: dict[str, Any], message: str):
    logits, labels = random_case(2)
    given: dict[str, Any] = {"logits": logits, "labels": labels, "counts": COUNTS, "groups": GROUPS, "task": 1}
    accuracies(**given)
    with pytest.raises(UserError, match=message):
        accuracies(**(given | change))
