"""Scores where the same classes come again in later tasks: sessions of one set of classes."""

import numpy as np
import pytest

from jdcl_jax.errors import UserError
from jdcl_jax.evaluation.assign import asked_until
from jdcl_jax.evaluation.coverage import ard_by_class, by_task, kld_by_class
from jdcl_jax.evaluation.evaluate import evaluate_generator
from jdcl_jax.evaluation.frechet import frechet_distance_of_features
from jdcl_jax.evaluation.real import RealSide
from jdcl_jax.evaluation.scores import check_counts
from pixel_images import PixelClassifier, features, images_of, sequence_of

# Class 1 comes in all three tasks, class 2 in the first two, class 0 in the last two.
GROUPS = ((2, 1), (0, 1, 2), (0, 1))
COUNTS = np.array([[0, 5, 7], [6, 3, 2], [4, 4, 0]])  # test images, [task, class]


@pytest.fixture
def sequence():
    return sequence_of(GROUPS, [np.repeat(np.arange(3), counts) for counts in COUNTS])


SHOWN = np.array([2, 1, 1, 0, 2, 2, 1, 0, 1, 2, 1, 0, 0, 1, 1, 2, 0, 1])  # what the classifier sees: 5, 8, 5
ASKED = np.resize([2, 1, 0], 18)


def run(sequence, scores, task, **more):
    return evaluate_generator(
        images_of(SHOWN, 1), RealSide(sequence), task=task, scores=scores, classifier=PixelClassifier(3), **more
    )


def test_the_terms_of_a_class_are_divided_by_its_test_images_and_the_union_is_the_weighed_mean():
    terms = np.array([0.3, -0.1, 0.6])
    rows = by_task(terms, COUNTS)
    # 10 images of class 0, 12 of class 1, 9 of class 2; the tasks have 12, 11 and 8 of 31.
    expected = [
        (-0.1 * 5 / 12 + 0.6 * 7 / 9) / (12 / 31),
        (0.3 * 6 / 10 - 0.1 * 3 / 12 + 0.6 * 2 / 9) / (11 / 31),
        (0.3 * 4 / 10 - 0.1 * 4 / 12) / (8 / 31),
    ]
    np.testing.assert_allclose(rows, expected, rtol=1e-12)
    assert rows @ (COUNTS.sum(axis=1) / 31) == pytest.approx(terms.sum())


def test_tasks_of_the_same_classes_in_the_same_proportion_all_have_the_unions_entry():
    true = np.outer([1, 3, 2], [4, 6, 10])
    predicted = np.array([50, 1, 9])
    for score in (kld_by_class, ard_by_class):
        terms = score(true.sum(axis=0), predicted)
        np.testing.assert_allclose(by_task(terms, true), np.full(3, terms.sum()), rtol=1e-12)


def test_coverage_takes_the_test_images_of_the_tasks_seen_so_far(sequence):
    seen = COUNTS[:2].sum(axis=0)
    predicted = np.bincount(SHOWN)
    terms = np.abs(seen / seen.sum() - predicted / 18) / 2
    result = run(sequence, ["ard"], 1)
    expected = [terms @ (row / seen) / (row.sum() / seen.sum()) for row in COUNTS[:2]]
    np.testing.assert_allclose(result.per_task["ard"], [*expected, np.nan], rtol=1e-12)
    assert result.union["ard"] == pytest.approx(terms.sum())


def test_an_image_counts_for_every_task_that_has_its_class(sequence):
    result = run(sequence, ["ard"], 2)
    of_class = np.bincount(SHOWN)
    assert result.assigned.tolist() == [of_class[1] + of_class[2], 18, of_class[0] + of_class[1]]


def test_a_task_takes_the_first_images_asked_for_any_of_its_classes(sequence):
    result = run(sequence, ["fd_classifier"], 2, labels=ASKED)
    real, generated = features(sequence.test.images), features(images_of(SHOWN, 1))
    ends = np.cumsum(COUNTS.sum(axis=1))
    for task, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        rows = [row for row in range(18) if ASKED[row] in GROUPS[task]][:6]
        expected = frechet_distance_of_features(real[start:end], generated[rows])
        assert result.per_task["fd_classifier"][task] == pytest.approx(expected, rel=1e-9)


def test_label_accuracy_of_a_task_is_of_all_its_classes_and_that_of_an_unseen_task_is_not_there(sequence):
    result = run(sequence, ["label_accuracy"], 1, labels=ASKED)
    right = ASKED == SHOWN
    expected = [right[ASKED != 0].mean(), right.mean(), np.nan]
    np.testing.assert_allclose(result.per_task["label_accuracy"], expected)
    assert result.num_generated["label_accuracy"] == {"per_task": [12, 18, 0], "union": 18}


def test_images_asked_for_classes_of_an_unseen_task_do_not_count_for_it(sequence):
    result = run(sequence, ["fd_classifier"], 0, labels=np.resize([2, 1], 18))
    assert result.num_generated["fd_classifier"] == {"per_task": [6, 0, 0], "union": 18}
    with pytest.raises(UserError, match=r"class 0, which no task seen so far has: ask for \[2, 1\]"):
        run(sequence, ["fd_classifier"], 0, labels=ASKED)
    with pytest.raises(UserError, match=r"ask for \[2, 1, 0\]"):
        run(sequence, ["fd_classifier"], 2, labels=ASKED + 1)


@pytest.mark.parametrize("least", [1, 2, 3, 7])
@pytest.mark.parametrize("groups", [GROUPS, ((0,), (0, 1, 2, 3)), ((3, 1), (0, 2)), ((1,),)])
def test_so_many_samples_are_just_enough_for_every_task(groups, least):
    every = list(dict.fromkeys(c for group in groups for c in group))

    def fewest(samples):
        labels = np.resize(every, samples)
        return min(int(np.isin(labels, group).sum()) for group in groups)

    enough = asked_until(groups, least)
    assert fewest(enough) == least
    assert fewest(enough - 1) == least - 1


def test_too_few_samples_for_a_task_are_refused_before_the_run():
    groups = ((0,), tuple(range(10)))  # precision needs 4 of a task; the fourth image of class 0 is the 31st
    check_counts(["precision_classifier", "kld", "eps_mse"], 31, 2, groups)
    with pytest.raises(UserError, match=r"30 .* too few for precision_classifier: generate at least 31"):
        check_counts(["fd_classifier", "precision_classifier"], 30, 2, groups)


def test_a_task_whose_classes_all_tasks_have_is_judged_by_its_share_of_all_images():
    sessions = ((0, 1), (0, 1), (0, 1))
    check_counts(["precision_classifier"], 12, 3, sessions)
    with pytest.raises(UserError, match="at least 12"):
        check_counts(["precision_classifier"], 11, 3, sessions)
