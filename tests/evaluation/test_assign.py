"""Which generated images a task gets, by hand."""

import numpy as np
import pytest

from jdcl_jax.errors import UserError
from jdcl_jax.evaluation.assign import asked, assign

# Six images, three classes; the classifier says 0, 1, 0, 2, 1, 0.
PROBABILITIES = np.array(
    [
        [0.6, 0.3, 0.1],
        [0.1, 0.5, 0.4],
        [0.9, 0.1, 0.0],
        [0.0, 0.2, 0.8],
        [0.3, 0.6, 0.1],
        [0.8, 0.1, 0.1],
    ]
)


def test_the_first_assigned_images_are_taken_in_sample_order():
    chosen = assign(PROBABILITIES, (0,), 2)
    assert chosen.rows.tolist() == [0, 2]  # not [2, 5], the two most confident ones
    assert chosen.assigned == 3


def test_missing_images_are_filled_up_by_the_closest_of_the_others():
    chosen = assign(PROBABILITIES, (2,), 3)
    assert chosen.rows.tolist() == [3, 1, 0]  # class 2 has .4 in image 1; 0 is first among equals
    assert chosen.assigned == 1


def test_closeness_is_the_probability_of_all_classes_of_the_task():
    # Classes 1 and 2 together: .4, .9, .1, 1, .7, .2; images 1, 3, 4 are assigned.
    chosen = assign(PROBABILITIES, (2, 1), 5)
    assert chosen.rows.tolist() == [1, 3, 4, 0, 5]
    assert chosen.assigned == 3


def test_a_forgotten_task_still_gets_its_number_of_images():
    nothing = PROBABILITIES[:, [0, 1, 2, 2]] * [1, 1, 1, 0]
    chosen = assign(nothing, (3,), 2)
    assert chosen.rows.tolist() == [0, 1] and chosen.assigned == 0


def test_all_images_can_be_asked_for_but_not_more_and_not_none():
    assert sorted(assign(PROBABILITIES, (1,), 6).rows) == list(range(6))
    for count in (0, 7):
        with pytest.raises(UserError, match=f"cannot take {count} of 6"):
            assign(PROBABILITIES, (1,), count)


def test_images_asked_for_a_task_are_all_of_its_classes_in_drawing_order():
    labels = np.array([3, 0, 1, 3, 0, 2, 1], np.int32)
    assert asked(labels, (1, 3)).tolist() == [0, 2, 3, 6]
    assert asked(labels, (0,)).tolist() == [1, 4]
    assert asked(labels, (5,)).tolist() == []
