"""Scores of what is replayed, on 'images' whose pixels are their features and class."""

import numpy as np
import pytest

from jdcl_jax.evaluation.frechet import frechet_distance_of_features
from jdcl_jax.evaluation.real import RealSide
from jdcl_jax.evaluation.replay import REPLAY_SCORES, replay_quality
from pixel_images import PixelClassifier, features, images_of, sequence_of

GROUPS = ((4, 1), (0, 3), (2, 5))


@pytest.fixture
def real() -> RealSide:
    """Tasks of 10, 12 and 8 test images."""
    labels = [np.resize(group, count) for group, count in zip(GROUPS, (10, 12, 8), strict=True)]
    return RealSide(sequence_of(GROUPS, labels))


def test_each_old_task_is_compared_by_the_images_that_stand_for_its_classes(real) -> None:
    labels = np.array([4, 1, 0, 3] * 5)
    images = images_of(labels, 1)
    quality = replay_quality(images, labels, real, PixelClassifier(), 1)
    distances = quality.rows["fd_replay"]
    for task, (first, last) in enumerate([(0, 10), (10, 22)]):
        own = features(images[np.isin(labels, GROUPS[task])])
        expected = frechet_distance_of_features(features(real.test.images[first:last]), own)
        assert distances[task] == pytest.approx(expected, rel=1e-6)
    assert np.isnan(distances[2])
    whole = frechet_distance_of_features(features(real.test.images[:22]), features(images))
    assert quality.union["fd_replay"] == pytest.approx(whole, rel=1e-6)
    assert (quality.images.tolist(), quality.total) == ([10, 10, 0], 20)


def test_an_image_is_right_that_shows_the_class_that_it_stands_for(real) -> None:
    labels = np.array([4, 1, 0, 3, 4, 1, 0, 3])
    shown = np.array([4, 4, 0, 3, 4, 4, 0, 1])
    quality = replay_quality(images_of(shown, 1), labels, real, PixelClassifier(), 1)
    np.testing.assert_array_equal(quality.rows["label_accuracy_replay"], [0.5, 0.75, np.nan])
    assert quality.union["label_accuracy_replay"] == 5 / 8


def test_a_single_image_has_no_distance(real) -> None:
    quality = replay_quality(images_of([4], 1), np.array([4]), real, PixelClassifier(), 0)
    assert np.isnan(quality.union["fd_replay"])
    assert quality.union["label_accuracy_replay"] == 1


def test_a_task_of_which_no_two_images_are_replayed_has_no_score(real) -> None:
    labels = np.array([4, 1, 4, 0])
    quality = replay_quality(images_of(labels, 1), labels, real, PixelClassifier(), 1)
    assert np.isfinite(quality.rows["fd_replay"]).tolist() == [True, False, False]
    assert np.isfinite(quality.union["fd_replay"])


def test_the_directions_of_these_scores() -> None:
    assert {name: score.lower_is_better for name, score in REPLAY_SCORES.items()} == {
        "fd_replay": True,
        "label_accuracy_replay": False,
    }
