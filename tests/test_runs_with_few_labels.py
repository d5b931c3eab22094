"""Whole runs on real digits that know no labels, or few: the probes of their features, and their accuracy."""

import numpy as np
import pytest

import small_runs
from jdcl_jax.experiment import run

PROBES = ("linear_probe", "knn_probe")

pytestmark = pytest.mark.usefixtures("small")


def shares(scores: dict, name: str, tasks: int) -> np.ndarray:
    """The known entries of a score's matrix and union, all of them shares."""
    matrix, union = np.array(scores[name]["matrix"], float), np.array(scores[name]["union"], float)
    assert matrix.shape == (tasks, tasks)
    found = np.concatenate([matrix[np.tril_indices(tasks)], union])
    assert np.isfinite(found).all()
    assert np.isnan(matrix[np.triu_indices(tasks, 1)]).all()
    assert ((found >= 0) & (found <= 1)).all()
    return found


def test_a_denoiser_that_knows_no_label_has_features_that_tell_digits_apart(tiny_config, tmp_path) -> None:
    words = (
        "finetune",
        "classifier.kind=none",
        f"evaluation.scores={PROBES}",
        "tasks.first=2",
        "checkpoint.every=1000",
    )
    results = run(tiny_config(*words), tmp_path / "run")
    assert results["status"] == "finished"
    assert set(results["scores"]) == set(PROBES)
    assert results["phases"] == []
    assert results["confusion"] == [None, None]
    for name in PROBES:
        assert results["scores"][name]["lower_is_better"] is False
        assert shares(results["scores"], name, 2).min() > 0.7  # of two digits, then of four
        assert results["scores"][name]["num_real"]["per_task"] == [task["test"] for task in results["tasks"]]


def test_all_digits_at_once_are_learned_from_a_tenth_of_their_labels(tiny_config, tmp_path) -> None:
    words = (
        *small_runs.JDCL, "tasks.num_tasks=1", "tasks.first=0", "data.label_fraction=0.1", "train.steps=100",
        "train.batch_size=32", "train.steps_per_call=20", "train.log_every=20", "checkpoint.every=1000",
        f"evaluation.scores={('accuracy', 'accuracy_masked', *PROBES)}",
    )  # fmt: skip
    results = run(tiny_config(*words), tmp_path / "run")
    assert results["status"] == "finished"
    assert small_runs.stages_of(results) == [(1, "local")]
    found = {name: shares(results["scores"], name, 1) for name in results["scores"]}
    assert set(found) == {"accuracy", "accuracy_masked", *PROBES}
    assert min(values.min() for values in found.values()) > 0.5  # of ten digits
    np.testing.assert_array_equal(found["accuracy"], found["accuracy_masked"])  # a single task masks nothing
    assert found["accuracy"][0] < found["linear_probe"][0]  # which is fitted with all labels
    assert results["phases"][0]["accuracy"] == results["scores"]["accuracy"]["matrix"][0]
