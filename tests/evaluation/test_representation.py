"""Probes of frozen features against direct solutions, and on features whose quality is known."""

import warnings
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.special
from sklearn.metrics import accuracy_score

from jdcl_jax.errors import UserError
from jdcl_jax.evaluation.representation import PROBES, balanced_rows, fit_probe, probe_row

KINDS = tuple(PROBES)
both = pytest.mark.parametrize("kind", KINDS)


def blobs(num: int, classes: int, spread: float, seed: int = 0, columns: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Features [num, columns] around one centre a class, the same centres for every seed; labels [num]."""
    centres = np.random.default_rng(99).standard_normal((classes, columns))
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, num)
    return centres[labels] + spread * random.standard_normal((num, columns)), labels


def accuracy(kind: str, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> float:
    return accuracy_score(test[1], fit_probe(kind, *train)(test[0]))


def standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    return (train - mean) / deviation, (test - mean) / deviation


@both
def test_separated_classes_are_told_apart(kind: str):
    assert accuracy(kind, blobs(300, 5, 0.2), blobs(500, 5, 0.2, seed=1)) > 0.99


@both
def test_features_that_know_nothing_give_chance(kind: str):
    random = np.random.default_rng(0)
    features, labels = random.standard_normal((1600, 30)), random.integers(0, 4, 1600)
    assert accuracy(kind, (features[:600], labels[:600]), (features[600:], labels[600:])) == pytest.approx(
        0.25, abs=0.05
    )


def test_the_neighbours_see_exclusive_or_and_the_linear_probe_does_not():
    points = np.random.default_rng(0).uniform(-1, 1, (1400, 2))
    labels = (points[:, 0] > 0) ^ (points[:, 1] > 0)
    train, test = (points[:700], labels[:700]), (points[700:], labels[700:])
    assert accuracy("knn", train, test) > 0.95
    assert accuracy("linear", train, test) < 0.65


def test_the_linear_probe_is_the_minimum_of_its_stated_loss():
    # Summed cross entropy + |W|^2 / (2 C), C = 100 / columns, biases free; solved again by scipy without scikit-learn.
    (train, labels), (test, _) = blobs(60, 3, 2.0, columns=20), blobs(2000, 3, 2.0, seed=1, columns=20)
    a, b = standardised(train, test)

    def loss(flat: np.ndarray, c: float) -> float:
        weights, biases = flat[:60].reshape(20, 3), flat[60:]
        log_p = scipy.special.log_softmax(a @ weights + biases, axis=1)
        return -log_p[np.arange(60), labels].sum() + np.sum(weights**2) / (2 * c)

    def prediction(c: float) -> np.ndarray:
        flat = scipy.optimize.minimize(loss, np.zeros(63), args=(c,)).x
        return (b @ flat[:60].reshape(20, 3) + flat[60:]).argmax(axis=1)

    predicted = fit_probe("linear", train, labels)(test)
    assert np.mean(predicted == prediction(100 / 20)) > 0.995
    for other in (1000 / 20, 10 / 20):
        assert np.mean(predicted == prediction(other)) < 0.985


def test_the_neighbours_are_twenty_by_angle_and_vote_by_similarity():
    (train, labels), (test, _) = blobs(200, 4, 3.0), blobs(3000, 4, 3.0, seed=1)
    a, b = (m / np.linalg.norm(m, axis=1, keepdims=True) for m in standardised(train, test))

    def prediction(neighbours: int, temperature: float) -> np.ndarray:
        answers = []
        for similarity in b @ a.T:
            nearest = np.argsort(-similarity)[:neighbours]
            votes = np.bincount(labels[nearest], np.exp(similarity[nearest] / temperature), minlength=4)
            answers.append(votes.argmax())
        return np.array(answers)

    predicted = fit_probe("knn", train, labels)(test)
    np.testing.assert_array_equal(predicted, prediction(20, 0.07))
    assert (predicted != prediction(19, 0.07)).any() and (predicted != prediction(20, 1e3)).any()


@both
def test_units_and_origins_of_the_columns_do_not_matter(kind: str):
    (train, labels), (test, _) = blobs(200, 4, 1.0), blobs(400, 4, 1.0, seed=1)
    scale, shift = 2.0 ** np.arange(-6, 6), np.arange(12.0)
    plain = fit_probe(kind, train, labels)(test)
    moved = fit_probe(kind, train * scale + shift, labels)(test * scale + shift)
    np.testing.assert_array_equal(moved, plain)


@both
def test_columns_written_twice_change_nothing(kind: str):
    (train, labels), (test, _) = blobs(200, 4, 1.5), blobs(1000, 4, 1.5, seed=1)
    twice = fit_probe(kind, np.tile(train, 2), labels)(np.tile(test, 2))
    assert np.mean(twice == fit_probe(kind, train, labels)(test)) > 0.99


@both
def test_dead_features_change_nothing_even_if_they_live_in_the_test_images(kind: str):
    (train, labels), (test, _) = blobs(200, 4, 1.5), blobs(400, 4, 1.5, seed=1)
    plain = fit_probe(kind, train, labels)(test)
    dead = np.broadcast_to([0.0, 0.1, -1e30], (200, 3))
    for extra in (np.broadcast_to(dead[0], (400, 3)), np.random.default_rng(0).standard_normal((400, 3)) * 1e30):
        predict = fit_probe(kind, np.hstack([dead, train]), labels)
        np.testing.assert_array_equal(predict(np.hstack([extra, test])), plain)


@both
def test_without_any_living_feature_the_most_frequent_class_is_predicted(kind: str):
    predict = fit_probe(kind, np.zeros((7, 3)), np.array([2, 9, 9, 9, 4, 4, 4]))
    np.testing.assert_array_equal(predict(np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])), [4, 4])


@both
def test_one_class_is_always_right(kind: str):
    features, _ = blobs(30, 2, 1.0)
    row, union = probe_row(kind, features, np.full(30, 6), features[:8], np.full(8, 6), [8, 5], 0)
    np.testing.assert_array_equal(row, [1.0, np.nan])
    assert union == 1.0


@both
def test_three_images_are_enough_and_classes_keep_their_numbers(kind: str):
    predict = fit_probe(kind, np.array([[0.0, 1.0], [0.1, 1.1], [5.0, -5.0]]), np.array([8, 8, 3]))
    np.testing.assert_array_equal(predict(np.array([[4.0, -4.0], [0.0, 0.9]])), [3, 8])


@both
def test_the_row_is_scikit_learns_accuracy_of_each_task(kind: str):
    counts = [50, 20, 80]
    train, test = blobs(400, 6, 1.3), blobs(3000, 6, 1.3, seed=1)
    seen = train[1] < 4
    rows = np.concatenate([np.flatnonzero(test[1] // 2 == j)[: counts[j]] for j in range(2)])
    features, truth = test[0][rows], test[1][rows]
    row, union = probe_row(kind, train[0][seen], train[1][seen], features, truth, counts, 1)
    predicted = fit_probe(kind, train[0][seen], train[1][seen])(features)
    assert row[0] == pytest.approx(accuracy_score(truth[:50], predicted[:50]))
    assert row[1] == pytest.approx(accuracy_score(truth[50:], predicted[50:]))
    assert np.isnan(row[2]) and len(row) == 3
    assert union == pytest.approx(accuracy_score(truth, predicted)) != pytest.approx(np.mean(row[:2]))


@both
def test_a_class_without_training_images_is_never_predicted(kind: str):
    train, test = blobs(200, 2, 0.2), blobs(40, 4, 0.2, seed=1)
    order = np.argsort(test[1] // 2, kind="stable")
    counts = np.bincount(test[1] // 2)
    row, union = probe_row(kind, *train, test[0][order], test[1][order], counts, 1)
    np.testing.assert_array_equal(row, [1.0, 0.0])
    assert union == counts[0] / 40


@both
def test_the_same_features_give_the_same_answers_without_a_warning(kind: str):
    # Hard for the solver: labels at random, columns of very unequal weight and nearly dependent.
    random = np.random.default_rng(0)
    features = random.standard_normal((300, 4)) @ random.standard_normal((4, 100))
    features = np.maximum(features + 1e-3 * random.standard_normal((300, 100)), 0)
    labels = random.integers(0, 10, 300)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answers = [fit_probe(kind, features[:200], labels[:200])(features[200:]) for _ in range(2)]
    np.testing.assert_array_equal(answers[0], answers[1])
    assert len(np.unique(answers[0])) > 5


@both
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_named(kind: str, bad: float):
    features, labels = blobs(30, 2, 1.0)
    spoiled = features.copy()
    spoiled[4, 7] = bad
    with pytest.raises(UserError, match="training features have NaN or infinity, first in row 4, column 7"):
        fit_probe(kind, spoiled, labels)
    with pytest.raises(UserError, match=f"{kind} probe: features have NaN or infinity, first in row 4, column 7"):
        fit_probe(kind, features, labels)(spoiled)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "cubic"}, "unknown probe 'cubic': write one of linear, knn"),
        ({"train_features": np.zeros(30)}, r"training features of shape \(30,\)"),
        ({"train_labels": np.zeros(29, int)}, "one label per row"),
        ({"train_features": np.zeros((0, 12)), "train_labels": np.zeros(0, int)}, "one label per row"),
        ({"test_features": np.zeros((10, 11))}, "fitted on 12 columns of features and asked about 11"),
        ({"test_features": np.zeros((11, 12))}, r"11 test features, labels \(10,\), counts of 10 images"),
        ({"test_labels": np.zeros(9, int)}, r"10 test features, labels \(9,\), counts of 10 images"),
        ({"test_labels": np.zeros((10, 1), int)}, r"10 test features, labels \(10, 1\), counts of 10 images"),
        ({"counts": [6, 5, 3]}, r"10 test features, labels \(10,\), counts of 11 images"),
        ({"counts": [10, 0]}, "each seen task needs images"),
        ({"task": 3}, "after task index 3"),
        ({"task": -1}, "after task index -1"),
    ],
)
def test_what_does_not_fit_is_an_error(change: dict[str, Any], message: str):
    train, test = blobs(30, 2, 1.0), blobs(10, 2, 1.0, seed=1)
    given: dict[str, Any] = {
        "train_features": train[0],
        "train_labels": train[1],
        "test_features": test[0],
        "test_labels": test[1],
    }
    given |= {"kind": "linear", "counts": [6, 4, 3], "task": 1}
    probe_row(**given)
    with pytest.raises(UserError, match=message):
        probe_row(**(given | change))


def test_no_test_images_give_no_answers():
    features, labels = blobs(30, 2, 1.0)
    for kind in KINDS:
        assert fit_probe(kind, features, labels)(features[:0]).shape == (0,)


def quotas_one_by_one(counts: np.ndarray, most: int) -> list[int]:
    """Each further image goes to a class that has the fewest so far and one left."""
    given = np.zeros(len(counts), int)
    for _ in range(min(most, counts.sum())):
        given[np.where(given < counts, given, most + 1).argmin()] += 1
    return sorted(given)


@pytest.mark.parametrize("most", [4, 5, 17, 40, 41, 99, 100, 1000])
def test_every_class_gets_what_handing_out_one_by_one_would_give(most: int):
    labels = np.random.default_rng(0).choice([2, 3, 5, 9], 100, p=[0.04, 0.16, 0.4, 0.4])
    rows = balanced_rows(labels, most)
    _, counts = np.unique(labels, return_counts=True)
    assert sorted(np.unique(labels[rows], return_counts=True)[1]) == quotas_one_by_one(counts, most)
    assert len(rows) == min(most, 100) and (np.diff(rows) > 0).all()


def test_a_small_class_gives_all_and_the_others_share_the_rest():
    labels = np.repeat([0, 1, 2], [50, 2, 50])
    np.testing.assert_array_equal(np.bincount(labels[balanced_rows(labels, 42)]), [20, 2, 20])


def test_rows_are_evenly_spaced_within_their_class():
    labels = np.tile([1, 0, 0], 70)
    rows = balanced_rows(labels, 22)
    for label, number in ((0, 140), (1, 70)):
        places = np.flatnonzero(np.isin(np.flatnonzero(labels == label), rows))
        gap = number / 11
        np.testing.assert_allclose(places, (np.arange(11) + 0.5) * gap, atol=1.0)


def test_too_few_rows_for_the_classes_is_an_error():
    with pytest.raises(UserError, match="2 images cannot show 3 classes"):
        balanced_rows(np.array([0, 1, 2, 2]), 2)
