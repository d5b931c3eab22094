"""Which training labels are known: equal shares, the same ones in every order of the classes, nothing else hidden."""

import numpy as np
import pytest

from jdcl_jax.data.arrays import Dataset, Split
from jdcl_jax.data.labels import hide_labels
from jdcl_jax.data.tasks import task_sequence
from jdcl_jax.errors import UserError


def classes_of(sizes: list[int], seed: int = 0) -> np.ndarray:
    """Labels of classes of these sizes, shuffled."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int32)


def numbered(sizes: list[int]) -> Dataset:
    """A data set whose image i has only pixels i, so that every image can be told."""
    labels = classes_of(sizes)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    test = Split(images[: len(sizes)], np.arange(len(sizes), dtype=np.int32))
    return Dataset("numbered", Split(images, labels), test, tuple("abcdefgh"[: len(sizes)]), "made here")


@pytest.mark.parametrize(("fraction", "known"), [(0.008, 40), (0.05, 250)])
def test_the_published_shares_of_a_class_of_cifar10_are_40_and_250_images(fraction: float, known: int) -> None:
    labels = classes_of([5000] * 3)
    hidden = hide_labels(labels, fraction, 0)
    assert np.bincount(hidden[hidden >= 0]).tolist() == [known] * 3
    assert hidden.dtype == np.int32
    np.testing.assert_array_equal(hidden[hidden >= 0], labels[hidden >= 0])
    assert set(hidden[hidden < 0].tolist()) == {-1}


def test_every_class_has_its_rounded_share_and_at_least_one() -> None:
    hidden = hide_labels(classes_of([7, 13, 100, 1, 2]), 0.1, 0)
    assert np.bincount(hidden[hidden >= 0]).tolist() == [1, 1, 10, 1, 1]
    hidden = hide_labels(classes_of([7, 13, 100, 1, 2]), 0.4, 0)
    assert np.bincount(hidden[hidden >= 0]).tolist() == [3, 5, 40, 1, 1]


def test_a_share_of_one_keeps_all_and_of_zero_hides_all() -> None:
    labels = classes_of([30, 20])
    np.testing.assert_array_equal(hide_labels(labels, 1.0, 0), labels)
    np.testing.assert_array_equal(hide_labels(labels, 0.0, 0), np.full(50, -1))


def test_the_choice_is_repeated_exactly_and_is_another_for_another_seed() -> None:
    labels = classes_of([50, 50])
    first, again, other = (hide_labels(labels, 0.5, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_the_choice_is_no_prefix_and_not_the_same_places_in_every_class() -> None:
    hidden = hide_labels(np.repeat(np.arange(3), 100), 0.3, 0).reshape(3, 100)
    places = [tuple(np.flatnonzero(row >= 0)) for row in hidden]
    assert len(set(places)) == 3
    assert all(max(chosen) > 60 for chosen in places)
    assert all(20 < np.mean(chosen) < 80 for chosen in places)


def test_a_smaller_share_is_a_part_of_a_larger_one() -> None:
    """Curves over the share compare runs that know ever more."""
    labels = classes_of([60, 40])
    few, many = (hide_labels(labels, fraction, 1) >= 0 for fraction in (0.1, 0.5))
    assert np.all(many[few])


@pytest.mark.parametrize("fraction", [-0.01, 1.01, 5.0, float("nan")])
def test_what_is_no_share_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match=r"data\.label_fraction"):
        hide_labels(classes_of([5, 5]), fraction, 0)
    with pytest.raises(UserError, match=r"data\.label_fraction"):
        task_sequence(numbered([10, 10]), ((0, 1),), label_fraction=fraction)


# -- in a sequence of tasks

SIZES = [40, 30, 50, 20]


def known_images(groups, **how) -> set[tuple[int, int]]:
    """(number of the image, label) of all images whose label is known."""
    train = task_sequence(numbered(SIZES), groups, **how).train
    return {(int(x[0, 0, 0]), int(c)) for x, c in zip(train.images, train.labels, strict=True) if c >= 0}


@pytest.mark.parametrize("validation", [0.0, 0.1])
def test_every_order_and_grouping_of_the_classes_knows_the_same_images(validation: float) -> None:
    how = {"label_fraction": 0.25, "validation": validation, "seed": 5}
    known = known_images(((0, 1), (2, 3)), **how)
    assert known == known_images(((3,), (1, 2), (0,)), **how)
    assert known == known_images(((2, 0, 3, 1),), **how)
    assert known != known_images(((0, 1), (2, 3)), **{**how, "seed": 6})
    only = known_images(((2,),), **how)
    assert only == {(image, label) for image, label in known if label == 2}


def test_each_class_knows_its_share_of_what_is_left_for_training() -> None:
    sequence = task_sequence(numbered(SIZES), ((2, 0), (1, 3)), label_fraction=0.25, validation=0.1)
    labels = sequence.train.labels
    assert np.bincount(labels[labels >= 0]).tolist() == [9, 7, 11, 4]  # a quarter of 36, 27, 45 and 18, rounded to even


def test_only_training_labels_are_hidden_and_the_true_ones_are_kept_beside() -> None:
    dataset, groups = numbered(SIZES), ((2, 0), (1, 3))
    shown = task_sequence(dataset, groups, label_fraction=1.0)
    hidden = task_sequence(dataset, groups, label_fraction=0.25)
    for split in ("validation", "test"):
        np.testing.assert_array_equal(getattr(hidden, split).labels, getattr(shown, split).labels)
        assert getattr(hidden, split).labels.min() >= 0
    np.testing.assert_array_equal(hidden.train.images, shown.train.images)
    truth = dataset.train.labels[hidden.train.images[:, 0, 0, 0]]
    np.testing.assert_array_equal(hidden.true_train_labels, truth)
    np.testing.assert_array_equal(shown.true_train_labels, truth)
    np.testing.assert_array_equal(shown.train.labels, truth)
    known = hidden.train.labels >= 0
    assert 0 < known.mean() < 0.3
    np.testing.assert_array_equal(hidden.train.labels[known], truth[known])


def test_what_is_held_out_for_validation_does_not_depend_on_how_many_labels_are_known() -> None:
    sets = [task_sequence(numbered(SIZES), ((0, 1, 2, 3),), label_fraction=f, seed=2).validation for f in (0.1, 1.0)]
    np.testing.assert_array_equal(sets[0].images, sets[1].images)


def test_a_task_and_the_tasks_seen_have_their_hidden_labels() -> None:
    train = task_sequence(numbered(SIZES), ((2, 0), (1, 3)), label_fraction=0.25).train
    assert set(train.task(0).labels.tolist()) == {-1, 0, 2}
    assert set(train.task(1).labels.tolist()) == {-1, 1, 3}
    assert set(train.seen(1).labels.tolist()) == {-1, 0, 1, 2, 3}
