"""One row of every matrix, on 'images' whose pixels are their features and class."""

from types import SimpleNamespace

import numpy as np
import pytest

from jdcl_jax.errors import UserError
from jdcl_jax.evaluation.evaluate import evaluate_generator
from jdcl_jax.evaluation.frechet import frechet_distance_of_features
from jdcl_jax.evaluation.kernel import kernel_distance
from jdcl_jax.evaluation.precision_recall import precision_and_recall
from jdcl_jax.evaluation.real import RealSide

# Three tasks; the classes of a task are not neighbours.
GROUPS = ((4, 1), (0, 3), (2, 5))
NEAR, FAR = 0.9, 0.02


class PixelClassifier:
    """Class: the first pixel; features: the other three. Counts how many images it saw."""

    name = "classifier"

    def __init__(self):
        self.images_seen = 0

    def __call__(self, images):
        return self.features_and_probabilities(images)[0]

    def features_and_probabilities(self, images):
        self.images_seen += len(images)
        pixels = images.reshape(len(images), 4)
        return pixels[:, 1:].astype(np.float32), np.where(np.eye(6)[pixels[:, 0]], NEAR, FAR)


class DoublePixels:
    name = "inception"

    def __call__(self, images):
        return 2 * images.reshape(len(images), 4)[:, 1:].astype(np.float32)


def images_of(labels, seed):
    pixels = np.random.default_rng(seed).integers(0, 50, size=(len(labels), 4), dtype=np.uint8)
    pixels[:, 0] = labels
    pixels[:, 1] += 3 * np.asarray(labels, np.uint8)
    return pixels.reshape(-1, 2, 2, 1)


@pytest.fixture
def sequence():
    """Tasks of 10, 12 and 8 test images."""
    counts = np.array([10, 12, 8], np.int32)
    labels = np.concatenate([np.resize(group, count) for group, count in zip(GROUPS, counts, strict=True)])
    starts = np.cumsum(counts) - counts
    test = SimpleNamespace(images=images_of(labels, 0), labels=labels, starts=starts, counts=counts)
    return SimpleNamespace(groups=GROUPS, test=test)


# 18 generated images, so 6 per task; 9 of task 1, 4 of task 2, 5 of the unseen task 3.
LABELS = np.array([2, 4, 0, 1, 1, 2, 4, 4, 3, 5, 1, 4, 0, 1, 5, 4, 0, 2])
GENERATED = images_of(LABELS, 1)
FEATURES = GENERATED.reshape(18, 4)[:, 1:].astype(float)
TASK_1 = [1, 3, 4, 6, 7, 10]  # the first six with label 4 or 1
TASK_2 = [2, 8, 12, 16, 0, 1]  # labels 0 or 3, then the first of the equally distant others


def run(sequence, scores, task=1, **more):
    return evaluate_generator(
        GENERATED,
        RealSide(sequence),
        task=task,
        scores=scores,
        classifier=PixelClassifier(),
        **more,
    )


def test_tasks_are_scored_on_their_assigned_images_and_the_union_on_all(sequence):
    result = run(sequence, ["fd_classifier", "kd_classifier"])
    real = sequence.test.images.reshape(-1, 4)[:, 1:].astype(float)
    for name, distance in (
        ("fd_classifier", frechet_distance_of_features),
        ("kd_classifier", kernel_distance),
    ):
        expected = [
            distance(real[:10], FEATURES[TASK_1]),
            distance(real[10:22], FEATURES[TASK_2]),
            np.nan,
        ]
        np.testing.assert_allclose(result.per_task[name], expected, rtol=1e-9)
        assert result.union[name] == pytest.approx(distance(real[:22], FEATURES), rel=1e-9)


def test_precision_and_recall_are_not_swapped(sequence):
    result = run(sequence, ["precision_classifier", "recall_classifier"])
    real = sequence.test.images.reshape(-1, 4)[:22, 1:].astype(float)
    precision, recall = precision_and_recall(real, FEATURES)
    assert precision != recall
    assert result.union == {"precision_classifier": precision, "recall_classifier": recall}


def test_coverage_uses_all_images_and_divides_by_each_tasks_share(sequence):
    result = run(sequence, ["kld", "ard"])
    np.testing.assert_array_equal(result.histogram, np.bincount(LABELS))
    np.testing.assert_array_equal(result.assigned, [9, 4, 5])
    # True shares: 5/22 for classes 4 and 1, 6/22 for 0 and 3; predicted 5, 4, 3, 1 and 5 unseen.
    true = np.array([5, 5, 6, 6]) / 22
    predicted = np.array([5, 4, 3, 1])
    kld = true * np.log(true / ((predicted + 0.5) / (18 + 3)))
    ard = np.abs(true - predicted / 18) / 2
    np.testing.assert_allclose(result.per_task["kld"], [kld[:2].sum() / (10 / 22), kld[2:].sum() / (12 / 22), np.nan])
    np.testing.assert_allclose(result.per_task["ard"], [ard[:2].sum() / (10 / 22), ard[2:].sum() / (12 / 22), np.nan])
    assert result.union["kld"] == pytest.approx(kld.sum())
    assert result.union["ard"] == pytest.approx(ard.sum() + 5 / 18 / 2)


def test_counts_of_images_are_said_per_score(sequence):
    result = run(sequence, ["fd_classifier", "ard"])
    assert result.num_generated["fd_classifier"] == {"per_task": 6, "union": 18}
    assert result.num_generated["ard"] == {"per_task": 18, "union": 18}
    assert result.num_real["fd_classifier"] == {"per_task": [10, 12, 8], "union": 22}


def test_other_features_come_from_their_own_extractor(sequence):
    result = run(sequence, ["fd_classifier", "fid"], extractors={"inception": DoublePixels()})
    assert result.union["fid"] == pytest.approx(4 * result.union["fd_classifier"], rel=1e-9)


def test_real_images_pass_the_extractor_once_a_run(sequence):
    classifier, real = PixelClassifier(), RealSide(sequence)
    for task in range(3):
        evaluate_generator(GENERATED, real, task=task, scores=["fd_classifier", "kld"], classifier=classifier)
    assert classifier.images_seen == 30 + 3 * 18


def test_what_the_user_did_wrong_is_said(sequence):
    with pytest.raises(UserError, match="unknown score 'nonsense'"):
        run(sequence, ["nonsense"])
    with pytest.raises(UserError, match="fid needs inception features"):
        run(sequence, ["fid"])
    with pytest.raises(UserError, match="generate that shape"):
        evaluate_generator(
            np.zeros((18, 4, 4, 1), np.uint8),
            RealSide(sequence),
            task=0,
            scores=["kld"],
            classifier=PixelClassifier(),
        )
