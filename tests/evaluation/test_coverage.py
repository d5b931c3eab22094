"""Coverage scores by hand and against scipy's entropy."""

import numpy as np
import pytest
import scipy.special
import scipy.stats

from jdcl_jax.errors import UserError
from jdcl_jax.evaluation.coverage import (
    ard_by_class,
    by_task,
    class_histogram,
    kld_by_class,
    kld_epsilon_by_class,
)

GROUPS = ((0, 3), (1, 2))


def of_tasks(true, groups=GROUPS):
    """True images of each class in each task, [T, C], where no class is in two."""
    return np.stack([np.where(np.isin(np.arange(len(true)), group), true, 0) for group in groups])


def test_histogram_counts_every_class_also_those_that_never_occur():
    np.testing.assert_array_equal(class_histogram(np.array([2, 0, 2, 2]), 4), [1, 0, 3, 0])
    with pytest.raises(UserError, match="labels 0 to 2"):
        class_histogram(np.array([0, 3]), 3)


def test_kld_by_hand():
    # True 1/4, 3/4; predicted (1 + .5, 5 + .5, 0 + .5) / 7.5 = .2, 11/15, 1/15.
    terms = kld_by_class(np.array([1, 3, 0]), np.array([1, 5, 0]))
    np.testing.assert_allclose(terms, [0.25 * np.log(0.25 / 0.2), 0.75 * np.log(0.75 / (11 / 15)), 0.0], rtol=1e-12)


def test_kld_adds_up_to_scipys_entropy_of_true_against_predicted():
    true, predicted = np.array([10, 0, 7, 3]), np.array([2, 9, 0, 40])
    expected = scipy.stats.entropy(true, predicted + 0.5)
    assert kld_by_class(true, predicted).sum() == pytest.approx(expected, rel=1e-12)
    assert expected != pytest.approx(scipy.stats.entropy(predicted + 0.5, true + 0.5), rel=0.1)


def test_kld_of_a_lost_class_is_large_but_finite():
    lost = kld_by_class(np.array([500, 500]), np.array([1000, 0])).sum()
    assert lost == pytest.approx(0.5 * np.log(0.5 * 1001 / 1000.5) + 0.5 * np.log(0.5 * 1001 / 0.5))


def test_kld_with_an_epsilon_is_scipys_relative_entropy_of_shares_with_1e_8_added():
    true, predicted = np.array([10, 0, 7, 3]), np.array([2, 9, 0, 40])
    expected = scipy.special.rel_entr(true / 20 + 1e-8, predicted / 51 + 1e-8)
    np.testing.assert_allclose(kld_epsilon_by_class(true, predicted), expected, rtol=1e-12)


def test_kld_with_an_epsilon_does_not_depend_on_the_number_of_images():
    # Eight of ten classes lost: .2 log(.1 / .5) + .8 log(.1 / 1e-8) = 12.57, whatever is counted.
    for images in (100, 10_000):
        lost = np.array([images // 2] * 2 + [0] * 8)
        assert kld_epsilon_by_class(np.full(10, 7), lost).sum() == pytest.approx(12.5725, abs=1e-3)
    assert kld_by_class(np.full(10, 7), lost).sum() == pytest.approx(5.76, abs=0.01)


def test_ard_by_hand_counts_mass_on_unseen_classes_as_missing():
    # True .5 .5 0 0, predicted .5 .1 .1 .3: half of 0 + .4 + .1 + .3.
    terms = ard_by_class(np.array([5, 5, 0, 0]), np.array([5, 1, 1, 3]))
    np.testing.assert_allclose(terms, [0, 0.2, 0.05, 0.15])


def test_ard_is_one_for_disjoint_and_zero_for_proportional_histograms():
    assert ard_by_class(np.array([4, 0]), np.array([0, 9])).sum() == 1.0
    assert ard_by_class(np.array([4, 8]), np.array([1, 2])).sum() == 0.0


def test_entries_weighed_by_their_shares_give_the_union_and_ard_leaves_the_unseen_mass():
    true, predicted = np.array([6, 2, 0, 2]), np.array([1, 3, 1, 5])
    groups = ((0, 3), (1,), (2,))
    kld, ard = kld_by_class(true, predicted), ard_by_class(true, predicted)
    seen = of_tasks(true, groups)
    assert 0.8 * by_task(kld, seen)[0] + 0.2 * by_task(kld, seen)[1] == pytest.approx(kld.sum())
    np.testing.assert_allclose(by_task(ard, seen), [(0.5 + 0.3) / 2 / 0.8, 0.1 / 2 / 0.2, np.nan])


def test_a_forgotten_task_scores_the_same_whether_one_of_two_or_of_five():
    for tasks in (2, 5):
        true, predicted = np.full(tasks, 20), np.array([0] + [100 // (tasks - 1)] * (tasks - 1))
        seen = of_tasks(true, [(c,) for c in range(tasks)])
        assert by_task(ard_by_class(true, predicted), seen)[0] == pytest.approx(0.5)


def test_a_task_that_was_not_seen_has_no_entry():
    # Task 1 (classes 0, 3) was learned, task 2 (classes 1, 2) was not.
    true, predicted = np.array([6, 0, 0, 2]), np.array([1, 3, 1, 5])
    kld, ard = kld_by_class(true, predicted), ard_by_class(true, predicted)
    assert by_task(kld, of_tasks(true))[0] == pytest.approx(kld.sum())
    assert np.isnan(by_task(ard, of_tasks(true))[1])


def test_kld_share_of_a_task_made_too_often_is_negative():
    terms = by_task(kld_by_class(np.full(4, 25), np.array([45, 5, 5, 45])), of_tasks(np.full(4, 25)))
    assert terms[0] < 0 < terms[1] and terms.sum() > 0


def test_no_images_is_a_clear_error():
    with pytest.raises(UserError, match="at least one"):
        ard_by_class(np.array([1, 1]), np.array([0, 0]))
