"""The table of scores: names, directions, needs."""

import numpy as np
import pytest

from jdcl_jax.errors import UserError
from jdcl_jax.evaluation.scores import (
    SCORES,
    check_conditional,
    check_counts,
    check_measured,
    check_needs,
    needed_features,
    needs_likelihood,
    select,
)


def test_every_score_has_its_direction_and_its_features():
    assert {name: (score.lower_is_better, score.features) for name, score in SCORES.items()} == {
        "fd_classifier": (True, "classifier"),
        "kd_classifier": (True, "classifier"),
        "precision_classifier": (False, "classifier"),
        "recall_classifier": (False, "classifier"),
        "fid": (True, "inception"),
        "kid": (True, "inception"),
        "precision_inception": (False, "inception"),
        "recall_inception": (False, "inception"),
        "kld": (True, None),
        "kld_epsilon": (True, None),
        "ard": (True, None),
        "label_accuracy": (False, None),
        "bpd_fixed_small": (True, None),
        "bpd_fixed_large": (True, None),
        "eps_mse": (True, None),
        "accuracy": (False, None),
        "accuracy_masked": (False, None),
        "accuracy_by_class": (False, None),
        "accuracy_masked_by_class": (False, None),
        "accuracy_raw": (False, None),
        "accuracy_ema": (False, None),
        "accuracy_validation": (False, None),
        "linear_probe": (False, None),
        "knn_probe": (False, None),
    }


def test_selection_keeps_the_order_and_names_the_needed_features():
    assert list(select(["kld", "fid", "fd_classifier"])) == ["kld", "fid", "fd_classifier"]
    assert needed_features(["kld", "fid", "kid"]) == {"inception"}
    assert needed_features(["ard", "label_accuracy", "eps_mse"]) == set()


def test_an_unknown_score_is_answered_with_the_known_ones():
    with pytest.raises(UserError) as error:
        select(["fd_clasifier"])
    assert "fd_clasifier" in str(error.value)
    assert all(name in str(error.value) for name in SCORES)


def test_too_few_samples_are_refused_before_the_run():
    check_counts(["precision_classifier", "kld"], num_samples=20, num_tasks=5)
    check_counts(["fd_classifier"], num_samples=10, num_tasks=5)
    with pytest.raises(UserError, match="precision_classifier: generate at least 20"):
        check_counts(["fd_classifier", "precision_classifier"], num_samples=19, num_tasks=5)


def groups_of(sizes):
    """Classes 0, 1, 2, ... in tasks of these sizes."""
    ends = np.cumsum(sizes)
    return [range(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def test_a_conditional_run_needs_enough_images_asked_for_each_task():
    # Tasks of 25 and 2 classes: the samples 25, 26, 52 and 53, from 0, show task 2. Precision needs 4 of them.
    check_counts(["precision_classifier"], 54, 2, groups_of([25, 2]))
    with pytest.raises(UserError, match=r"53 generated images for 2 tasks .* precision_classifier: .* at least 54$"):
        check_counts(["precision_classifier"], 53, 2, groups_of([25, 2]))
    check_counts(["fd_classifier", "kld"], 27, 2, groups_of([25, 2]))  # the Frechet distance needs 2
    # Three tasks of three: the fourth image of the last task is sample 9 + 6 of the second round.
    check_counts(["precision_classifier"], 16, 3, groups_of([3, 3, 3]))
    with pytest.raises(UserError, match=r"at least 16$"):
        check_counts(["precision_classifier"], 15, 3, groups_of([3, 3, 3]))
    # A task uses no more than its share of all images, however many were asked for it.
    with pytest.raises(UserError, match=r"at least 8$"):
        check_counts(["precision_classifier"], 7, 2, groups_of([1, 1]))
    check_counts(["precision_classifier"], 8, 2, groups_of([1, 1]))


@pytest.mark.parametrize("sizes", [[1, 1], [3, 3, 3], [2, 5], [5, 1, 2]])
def test_what_passes_is_enough_for_labels_in_turn_and_one_less_is_not(sizes):
    groups = np.repeat(np.arange(len(sizes)), sizes)

    def smallest(num_samples):
        asked = np.bincount(np.resize(groups, num_samples), minlength=len(sizes))
        return min(num_samples // len(sizes), asked.min())

    for num_samples in range(1, 40):
        if smallest(num_samples) >= 4:
            check_counts(["precision_classifier"], num_samples, len(sizes), groups_of(sizes))
        else:
            with pytest.raises(UserError):
                check_counts(["precision_classifier"], num_samples, len(sizes), groups_of(sizes))


def test_a_score_of_labels_is_refused_for_an_unconditional_denoiser():
    check_conditional(["kld", "label_accuracy"], conditional=True)
    check_conditional(["kld", "bpd_fixed_small"], conditional=False)
    with pytest.raises(UserError, match=r"has label_accuracy, .*; write model.class_conditional=True, or leave"):
        check_conditional(["kld", "label_accuracy"], conditional=False)


def test_scores_of_the_denoiser_are_named_in_order_and_asked_for_by_their_key():
    names = ["eps_mse", "kld", "label_accuracy", "bpd_fixed_small"]
    assert needs_likelihood(names) == ["eps_mse", "bpd_fixed_small"]
    assert needs_likelihood(["fd_classifier", "fid"]) == []
    check_measured(names, {"bpd_fixed_small", "eps_mse"})
    check_measured(["kld"], ())
    with pytest.raises(
        UserError, match=r"evaluation.scores has bpd_fixed_small; write evaluation.likelihood.images=16"
    ):
        check_measured(names, {"eps_mse", "bpd_fixed_large"})


def test_accuracies_by_class_need_a_classifier_as_the_others_do():
    there = dict.fromkeys(("likelihood", "classifier", "average", "validation"), True)
    for name in ("accuracy_by_class", "accuracy_masked_by_class"):
        check_needs([name], there)
        with pytest.raises(UserError, match=f"evaluation.scores has {name}; write classifier.kind=joint, or leave"):
            check_needs([name], there | {"classifier": False})


def test_descriptions_say_which_variance_and_which_error():
    assert "bits/dim with the fixed-small (posterior) variance" in SCORES["bpd_fixed_small"].description
    assert "bits/dim with the fixed-large (beta_t) variance" in SCORES["bpd_fixed_large"].description
    assert "Mean over all t of the mean squared error of the predicted noise" in SCORES["eps_mse"].description
    assert SCORES["label_accuracy"].description == (
        "Share of generated images that the classifier gives the class asked for"
    )
