"""The images of each task."""

import numpy as np
import pytest

from jdcl_jax.data.arrays import Dataset, Split
from jdcl_jax.data.tasks import task_sequence
from jdcl_jax.errors import UserError

CLASSES = 4
PER_CLASS = 20


def made(train_labels, test_labels, classes=CLASSES):
    """A data set whose image number i has pixel i, test images counting from 200, so that rows can
    be told apart.
    """

    def split(labels, first):
        pixels = np.arange(first, first + len(labels), dtype=np.uint8)
        images = np.broadcast_to(pixels[:, None, None, None], (len(labels), 2, 2, 1))
        return Split(images, np.array(labels, np.int32))

    names = tuple("abcdefgh"[:classes])
    return Dataset("some", split(train_labels, 0), split(test_labels, 200), names, "made here")


@pytest.fixture
def dataset():
    return made([0, 1, 2, 3] * PER_CLASS, [3, 2, 1, 0] * 2)


GROUPS = ((2, 0), (3,), (1,))


def ids(split):
    return split.images[:, 0, 0, 0].tolist()


def test_each_task_holds_exactly_the_images_of_its_classes(dataset):
    sequence = task_sequence(dataset, GROUPS, validation=0.25)
    for k, group in enumerate(GROUPS):
        assert set(sequence.train.task(k).labels.tolist()) == set(group)
        assert set(sequence.validation.task(k).labels.tolist()) == set(group)
        assert set(sequence.test.task(k).labels.tolist()) == set(group)


def test_training_and_validation_divide_the_training_images_and_test_is_untouched(dataset):
    sequence = task_sequence(dataset, GROUPS, validation=0.25)
    train, validation = ids(sequence.train), ids(sequence.validation)
    assert sorted(train + validation) == ids(dataset.train)
    assert sorted(ids(sequence.test)) == ids(dataset.test)


def test_labels_and_images_stay_together_and_labels_keep_their_numbers(dataset):
    sequence = task_sequence(dataset, GROUPS)
    for part in (sequence.train, sequence.validation):
        assert [i % 4 for i in ids(part)] == part.labels.tolist()
    assert [3 - i % 4 for i in ids(sequence.test)] == sequence.test.labels.tolist()
    assert sequence.class_names == ("a", "b", "c", "d")


def test_tasks_are_contiguous_and_starts_and_counts_say_where(dataset):
    sequence = task_sequence(dataset, GROUPS, validation=0.25)
    assert sequence.train.counts.tolist() == [30, 15, 15]
    assert sequence.train.starts.tolist() == [0, 30, 45]
    assert sequence.validation.counts.tolist() == [10, 5, 5]
    assert sequence.test.counts.tolist() == [4, 2, 2]
    assert sequence.train.starts.dtype == sequence.train.counts.dtype == np.int32


def test_seen_is_the_prefix_of_tasks(dataset):
    train = task_sequence(dataset, GROUPS).train
    assert ids(train.seen(1)) == ids(train.task(0)) + ids(train.task(1))
    assert ids(train.seen(2)) == ids(train)
    for k in (-1, 3):
        with pytest.raises(IndexError):
            train.task(k)
        with pytest.raises(IndexError):
            train.seen(k)


def test_rows_within_a_task_follow_its_classes_and_then_the_data_set(dataset):
    sequence = task_sequence(dataset, GROUPS, validation=0)
    assert ids(sequence.train.task(0)) == list(range(2, 80, 4)) + list(range(0, 80, 4))


def test_validation_is_the_same_share_of_every_class(dataset):
    labels = task_sequence(dataset, GROUPS, validation=0.3).validation.labels
    assert np.bincount(labels).tolist() == [6, 6, 6, 6]


def test_validation_images_depend_on_the_seed_and_not_on_the_groups(dataset):
    def held_out(groups, seed):
        return set(ids(task_sequence(dataset, groups, validation=0.25, seed=seed).validation))

    assert held_out(GROUPS, 0) == held_out(((0,), (1, 2, 3)), 0)
    assert held_out(GROUPS, 0) != held_out(GROUPS, 1)


def test_different_classes_hold_out_different_places(dataset):
    validation = task_sequence(dataset, GROUPS, validation=0.25).validation
    places = {tuple(i // 4 for i in np.array(ids(validation))[validation.labels == c].tolist()) for c in range(4)}
    assert len(places) == 4


def test_without_validation_every_image_trains(dataset):
    sequence = task_sequence(dataset, GROUPS, validation=0)
    assert len(sequence.train.labels) == 4 * PER_CLASS
    assert sequence.validation.counts.tolist() == [0, 0, 0]
    assert len(sequence.validation.seen(2)) == 0


def test_a_small_share_still_holds_out_one_image_of_each_class(dataset):
    validation = task_sequence(dataset, GROUPS, validation=0.001).validation
    assert np.bincount(validation.labels).tolist() == [1, 1, 1, 1]


def test_classes_of_dropped_tasks_take_no_part_but_keep_their_numbers(dataset):
    sequence = task_sequence(dataset, ((3,), (1,)))
    assert set(sequence.train.labels.tolist()) == {1, 3}
    assert set(sequence.test.labels.tolist()) == {1, 3}
    assert len(sequence.class_names) == 4


def test_a_class_left_without_images_is_named():
    few = made([0, 0, 1], [0, 1], classes=2)
    with pytest.raises(UserError, match=r"class 1 \(b\) of task 1 has no training image left"):
        task_sequence(few, ((1,), (0,)), validation=0.5)
    assert task_sequence(few, ((1,), (0,)), validation=0).train.counts.tolist() == [1, 2]
    with pytest.raises(UserError, match=r"class 1 \(b\) of task 2 has no test image"):
        task_sequence(made([0, 0, 1, 1], [0], classes=2), ((0,), (1,)))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (((0, 1), (1, 2)), "a class twice"),
        (((0, 4),), r"outside 0\.\.3"),
        (((0, -1),), r"outside 0\.\.3"),
        (((0,), ()), "without classes"),
        ((), "without classes"),
    ],
)
def test_groups_written_by_hand_are_checked(dataset, groups, message):
    with pytest.raises(UserError, match=message):
        task_sequence(dataset, groups)


@pytest.mark.parametrize("validation", [-0.1, 1, 1.5, float("nan")])
def test_a_validation_that_is_no_share_is_refused(dataset, validation):
    with pytest.raises(UserError, match="validation is"):
        task_sequence(dataset, GROUPS, validation=validation)
