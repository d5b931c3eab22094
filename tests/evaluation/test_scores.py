"""The table of scores: names, directions, needs."""

import pytest

from jdcl_jax.errors import UserError
from jdcl_jax.evaluation.scores import SCORES, check_counts, needed_features, select


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
        "ard": (True, None),
    }


def test_selection_keeps_the_order_and_names_the_needed_features():
    assert list(select(["kld", "fid", "fd_classifier"])) == ["kld", "fid", "fd_classifier"]
    assert needed_features(["kld", "fid", "kid"]) == {"inception"}
    assert needed_features(["ard"]) == set()


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
