"""One row of every matrix, on 'images' whose pixels are their features and class."""

import numpy as np
import pytest

from jdcl_jax.errors import UserError
from jdcl_jax.evaluation.evaluate import evaluate_generator
from jdcl_jax.evaluation.frechet import frechet_distance_of_features
from jdcl_jax.evaluation.kernel import kernel_distance
from jdcl_jax.evaluation.precision_recall import precision_and_recall
from jdcl_jax.evaluation.real import RealSide
from jdcl_jax.evaluation.scores import Measured
from pixel_images import PixelClassifier, images_of, sequence_of

# Three tasks; the classes of a task are not neighbours.
GROUPS = ((4, 1), (0, 3), (2, 5))


class DoublePixels:
    name = "inception"

    def __call__(self, images):
        return 2 * images.reshape(len(images), 4)[:, 1:].astype(np.float32)


@pytest.fixture
def sequence():
    """Tasks of 10, 12 and 8 test images."""
    return sequence_of(GROUPS, [np.resize(group, count) for group, count in zip(GROUPS, (10, 12, 8), strict=True)])


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


# The same 18 images, had they been asked for: the classifier sees LABELS. After task 2, so none of 2 or 5.
# Asked for task 1 (4, 1): rows 0, 3, 5, 7, 9, 11, 13, 15, 17; for task 2 (0, 3): the rest.
ASKED = np.array([4, 0, 0, 1, 3, 4, 0, 4, 3, 1, 0, 4, 3, 1, 0, 4, 3, 1], np.int32)
ASKED_1 = [0, 3, 5, 7, 9, 11, 13, 15, 17]
ASKED_2 = [1, 2, 4, 6, 8, 10, 12, 14, 16]
CONDITIONAL = {"labels": ASKED}


def test_with_labels_a_task_takes_what_was_asked_for_it_whatever_it_shows(sequence):
    result = run(sequence, ["fd_classifier"], **CONDITIONAL)
    real = sequence.test.images.reshape(-1, 4)[:, 1:].astype(float)
    expected = [
        frechet_distance_of_features(real[:10], FEATURES[ASKED_1[:6]]),
        frechet_distance_of_features(real[10:22], FEATURES[ASKED_2[:6]]),
        np.nan,
    ]
    np.testing.assert_allclose(result.per_task["fd_classifier"], expected, rtol=1e-9)
    assert result.union["fd_classifier"] == pytest.approx(frechet_distance_of_features(real[:22], FEATURES), rel=1e-9)


def test_with_labels_coverage_and_assigned_still_are_the_classifiers(sequence):
    with_labels, without = (run(sequence, ["kld", "ard"], **more) for more in (CONDITIONAL, {}))
    np.testing.assert_array_equal(with_labels.assigned, [9, 4, 5])
    np.testing.assert_array_equal(with_labels.histogram, without.histogram)
    assert with_labels.union == without.union
    for name in ("kld", "ard"):
        np.testing.assert_array_equal(with_labels.per_task[name], without.per_task[name])
    assert with_labels.num_generated == without.num_generated


def test_label_accuracy_is_the_share_of_images_that_show_what_they_were_asked_to(sequence):
    # Asked and shown agree in seven rows: 3, 7, 11, 13, 15 are of task 1, and 2, 8 of task 2.
    result = run(sequence, ["label_accuracy"], **CONDITIONAL)
    assert np.flatnonzero(ASKED == LABELS).tolist() == [2, 3, 7, 8, 11, 13, 15]
    np.testing.assert_allclose(result.per_task["label_accuracy"], [5 / 9, 2 / 9, np.nan])
    assert result.union["label_accuracy"] == pytest.approx(7 / 18)
    assert result.num_generated["label_accuracy"] == {"per_task": [9, 9, 0], "union": 18}
    assert result.num_real["label_accuracy"] == {"per_task": [0, 0, 0], "union": 0}


def test_label_accuracy_takes_every_image_asked_for_and_the_union_weighs_by_them(sequence):
    labels = np.where(np.isin(np.arange(18), [1, 2, 4]), ASKED, 4)  # 15 for class 4, three for task 2
    result = run(sequence, ["label_accuracy"], labels=labels)
    # Class 4 is shown in rows 1, 6, 7, 11 and 15; row 1 is asked for 0. Of rows 1, 2, 4 only 2 is right.
    np.testing.assert_allclose(result.per_task["label_accuracy"], [4 / 15, 1 / 3, np.nan])
    assert result.union["label_accuracy"] == pytest.approx((4 + 1) / 18)


def test_with_labels_true_counts_are_said_and_nothing_fills_up(sequence):
    labels = np.where(np.isin(np.arange(18), [1, 2, 4]), ASKED, 4)
    result = run(sequence, ["fd_classifier"], labels=labels)
    assert result.num_generated["fd_classifier"] == {"per_task": [6, 3, 0], "union": 18}
    real = sequence.test.images.reshape(-1, 4)[10:22, 1:].astype(float)
    expected = frechet_distance_of_features(real, FEATURES[[1, 2, 4]])
    assert result.per_task["fd_classifier"][1] == pytest.approx(expected, rel=1e-9)


def test_too_few_images_asked_for_a_task_are_an_error_before_the_classifier_looks(sequence):
    classifier, labels = PixelClassifier(), np.where(np.arange(18) < 3, ASKED, 4)  # rows 1 and 2 for task 2
    run(sequence, ["fd_classifier"], labels=labels)
    with pytest.raises(UserError, match=r"precision_classifier of task 2 has 2 .* raise evaluation.num_samples"):
        evaluate_generator(
            GENERATED, RealSide(sequence), task=1, scores=["precision_classifier"], classifier=classifier, labels=labels
        )
    assert classifier.images_seen == 0
    with pytest.raises(UserError, match=r"label_accuracy of task 2 has 0 .* needs 1"):
        run(sequence, ["label_accuracy"], labels=np.full(18, 4))
    run(sequence, ["kld"], labels=np.full(18, 4))  # uses all images


def test_labels_that_cannot_be_are_refused(sequence):
    with pytest.raises(UserError, match=r"class 2, which no task seen so far has: ask for \[4, 1, 0, 3\]"):
        run(sequence, ["kld"], labels=LABELS)
    for labels in (ASKED[:17], ASKED.astype(float), ASKED[:, None]):
        with pytest.raises(UserError, match="give one int each"):
            run(sequence, ["kld"], labels=labels)
    with pytest.raises(UserError, match=r"evaluation\.scores has label_accuracy"):
        run(sequence, ["label_accuracy"])


IMAGES = np.array([10, 11, 8])
MEASURED = {
    "eps_mse": Measured(np.array([0.25, 0.5, np.nan]), 0.375, IMAGES),
    "bpd_fixed_small": Measured(np.array([3.0, 4.0, 9.0]), 3.5, IMAGES),
}


def test_scores_of_the_denoiser_are_merged_in_the_order_asked_for(sequence):
    scores = ["bpd_fixed_small", "kld", "eps_mse"]
    result = run(sequence, scores, measured=MEASURED)
    assert list(result.per_task) == list(result.union) == scores
    np.testing.assert_array_equal(result.per_task["eps_mse"], [0.25, 0.5, np.nan])
    np.testing.assert_array_equal(result.per_task["bpd_fixed_small"], [3.0, 4.0, np.nan])  # task 3 was not seen
    assert result.per_task["eps_mse"].dtype == np.float64
    assert (result.union["bpd_fixed_small"], result.union["eps_mse"]) == (3.5, 0.375)
    assert result.union["kld"] == run(sequence, ["kld"]).union["kld"]
    assert result.num_generated["eps_mse"] == {"per_task": 0, "union": 0}
    # The union is of the two tasks seen.
    assert result.num_real["eps_mse"] == {"per_task": [10, 11, 8], "union": 21}
    assert MEASURED["bpd_fixed_small"][0][2] == 9.0, "the caller's row stays as it is"


def test_a_score_of_the_denoiser_that_was_not_measured_says_which_key_to_write(sequence):
    with pytest.raises(UserError, match=r"has bpd_fixed_large; write evaluation.likelihood.images=16"):
        run(sequence, ["kld", "bpd_fixed_large"], measured=MEASURED)
    with pytest.raises(UserError, match="has eps_mse; write"):
        run(sequence, ["eps_mse"])
    assert set(run(sequence, ["kld"], measured=MEASURED).union) == {"kld"}
    with pytest.raises(UserError, match="give a value and a count for each of the 3 tasks"):
        run(sequence, ["eps_mse"], measured={"eps_mse": Measured(np.zeros(2), 0.0, IMAGES)})
    with pytest.raises(UserError, match="give a value and a count for each of the 3 tasks"):
        run(sequence, ["eps_mse"], measured={"eps_mse": Measured(np.zeros(3), 0.0, IMAGES[:2])})


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
