"""Accuracies and probes of a run's network: the right images, weights and labels, whatever the batches and devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn import metrics
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jdcl_jax.assembly import assemble
from jdcl_jax.errors import UserError
from jdcl_jax.measuring import classifying
from jdcl_jax.measuring.classifying import ClassifierMeter, Mapper
from jdcl_jax.methods.method import DENOISER
from jdcl_jax.training.parallel import Parallel
from jdcl_jax.training.state import create_state

GROUPS = ((2, 6), (1, 8), (4, 5))
SCORES = ("accuracy", "accuracy_masked", "accuracy_raw", "accuracy_ema", "accuracy_validation", "linear_probe", "kld")
WORDS = (
    "jdcl", "classifier.kind=joint", "train.ema=0.9", "evaluation.weights=ema", "data.label_fraction=0.3",
    "tasks.order=gd-42", f"evaluation.scores={SCORES}",
)  # fmt: skip


def linear_logits(params, images, keys):
    assert keys is None
    return images.reshape(len(images), -1) @ params["w"]


class Network:
    """Its features are the means of the image's rows."""

    @staticmethod
    def pooled(params, images, keys=None):
        assert keys is None
        return params["scale"] * images.mean((2, 3))


@pytest.fixture(scope="module")
def parts(tiny_config):
    """A tiny run of three tasks of which 30 % of the labels are known, and whose network is a line of arithmetic."""
    found = assemble(tiny_config(*WORDS))
    assert found.sequence.groups == GROUPS
    term = dataclasses.replace(found.setup.classifier, logits=linear_logits)
    return dataclasses.replace(found, network=Network, setup=dataclasses.replace(found.setup, classifier=term))


def flat(images: np.ndarray) -> np.ndarray:
    return (images / 127.5 - 1.0).reshape(len(images), -1)


@pytest.fixture(scope="module")
def weights(parts):
    """Raw and averaged ones: two classifiers of all ten digits, both noisy, so that they are right here and there."""
    train, noise = parts.dataset.train, np.random.default_rng(1)
    good = np.linalg.lstsq(flat(train.images), np.eye(10)[train.labels], rcond=None)[0]
    raw, averaged = (good + size * noise.standard_normal(good.shape) for size in (0.08, 0.04))
    return {
        "raw": {"w": jnp.float32(raw), "scale": jnp.float32(0.0)},
        "averaged": {"w": jnp.float32(averaged), "scale": jnp.float32(2.0)},
    }


@pytest.fixture(scope="module")
def state(weights):
    """Of the run's only network."""
    return {DENOISER: create_state(weights["raw"], optax.sgd(0.1), ema=True).replace(ema=weights["averaged"])}


def meter_of(parts, mode: str = "pmap", devices=None, **evaluation) -> ClassifierMeter:
    config = parts.config.copy_and_resolve_references()
    with config.unlocked():
        config.evaluation.update(evaluation)
    return ClassifierMeter(dataclasses.replace(parts, config=config), Parallel(mode, devices))


def by_hand(params, split, groups, *, masked: bool = False) -> tuple[list[float], float]:
    """Accuracy on the images of each of these tasks and on all of them, from the data set's images sorted anew."""
    rows, right = [], []
    for classes in groups:
        chosen = np.isin(split.labels, classes)
        logits = flat(split.images[chosen]) @ np.asarray(params["w"], np.float64)
        if masked:
            logits[:, [c for c in range(10) if c not in classes]] = -np.inf
        rows.append(metrics.accuracy_score(split.labels[chosen], logits.argmax(1)))
        right.extend(split.labels[chosen] == logits.argmax(1))
    return rows, float(np.mean(right))


def check(measured, rows: list[float], union: float) -> None:
    np.testing.assert_allclose(measured.row[: len(rows)], rows)
    assert np.isnan(measured.row[len(rows) :]).all()
    assert measured.union == pytest.approx(union)


# -- accuracies


@pytest.mark.parametrize("task", [0, 1, 2])
def test_rows_are_the_accuracies_on_each_tasks_test_images_among_all_classes_and_among_its_own(
    parts, weights, state, task
) -> None:
    found, _ = meter_of(parts).measured(state, task)
    test, groups = parts.dataset.test, GROUPS[: task + 1]
    for name, masked in (("accuracy", False), ("accuracy_masked", True)):
        rows, union = by_hand(weights["averaged"], test, groups, masked=masked)
        check(found[name], rows, union)
        np.testing.assert_array_equal(found[name].images, [np.isin(test.labels, group).sum() for group in GROUPS])
    assert found["accuracy"].union < found["accuracy_masked"].union  # so that one cannot pass for the other
    assert len(found["accuracy"].row) == 3


@pytest.mark.parametrize("task", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_by_class_each_class_weighs_the_same(parts, weights, state, task, masked) -> None:
    """Digits have 34 to 36 test images each."""
    found, _ = meter_of(parts).measured(state, task)
    name = "accuracy_masked" if masked else "accuracy"
    test, recalls = parts.dataset.test, []
    for classes in GROUPS[: task + 1]:
        logits = flat(test.images) @ np.asarray(weights["averaged"]["w"], np.float64)
        if masked:
            logits[:, [c for c in range(10) if c not in classes]] = -np.inf
        recalls.append(metrics.recall_score(test.labels, logits.argmax(1), labels=classes, average=None))
    rows = [recall.mean() for recall in recalls]
    check(found[f"{name}_by_class"], rows, np.concatenate(recalls).mean())
    np.testing.assert_array_equal(found[f"{name}_by_class"].images, found[name].images)
    assert np.abs(found[f"{name}_by_class"].row[: task + 1] - found[name].row[: task + 1]).max() > 1e-5


def test_each_name_has_its_own_weights(parts, weights, state) -> None:
    found, _ = meter_of(parts).measured(state, 1)
    test = parts.dataset.test
    check(found["accuracy_raw"], *by_hand(weights["raw"], test, GROUPS[:2]))
    check(found["accuracy_ema"], *by_hand(weights["averaged"], test, GROUPS[:2]))
    check(found["accuracy"], *by_hand(weights["averaged"], test, GROUPS[:2]))
    assert found["accuracy_raw"].union < found["accuracy_ema"].union
    found, _ = meter_of(parts, weights="raw").measured(state, 1)
    check(found["accuracy"], *by_hand(weights["raw"], test, GROUPS[:2]))
    check(found["accuracy_masked"], *by_hand(weights["raw"], test, GROUPS[:2], masked=True))
    check(found["accuracy_ema"], *by_hand(weights["averaged"], test, GROUPS[:2]))


def test_weights_that_nobody_asked_about_are_not_measured(parts, state) -> None:
    found, _ = meter_of(parts, scores=("accuracy", "kld")).measured(state, 1)
    assert not {"accuracy_raw", "accuracy_ema", "linear_probe", "knn_probe"} & set(found)


def test_validation_accuracy_is_on_images_that_are_neither_trained_on_nor_tested(parts, weights, state) -> None:
    found, _ = meter_of(parts).measured(state, 1)
    trained = {image.tobytes() for image in parts.sequence.train.images}
    train = parts.dataset.train
    held_out = np.array([image.tobytes() not in trained for image in train.images])
    held_out_split = dataclasses.replace(train, images=train.images[held_out], labels=train.labels[held_out])
    check(found["accuracy_validation"], *by_hand(weights["averaged"], held_out_split, GROUPS[:2]))
    counts = [np.isin(held_out_split.labels, group).sum() for group in GROUPS]
    np.testing.assert_array_equal(found["accuracy_validation"].images, counts)
    assert found["accuracy_validation"].union != found["accuracy"].union


def test_without_held_out_images_there_is_no_validation_accuracy(parts, state) -> None:
    nothing = dataclasses.replace(parts.sequence.validation, labels=np.zeros(0, np.int32))
    emptied = dataclasses.replace(parts, sequence=dataclasses.replace(parts.sequence, validation=nothing))
    found, _ = meter_of(emptied).measured(state, 1)
    assert "accuracy_validation" not in found
    assert "accuracy" in found


@pytest.mark.parametrize("task", [0, 2])
def test_the_confusion_matrix_has_every_test_image_seen_in_the_row_of_its_class(parts, weights, state, task) -> None:
    _, confusion = meter_of(parts).measured(state, task)
    test = parts.dataset.test
    seen = np.isin(test.labels, [c for group in GROUPS[: task + 1] for c in group])
    said = (flat(test.images[seen]) @ np.asarray(weights["averaged"]["w"], np.float64)).argmax(1)
    assert confusion.sum() == seen.sum()
    np.testing.assert_array_equal(confusion, metrics.confusion_matrix(test.labels[seen], said, labels=range(10)))
    assert np.trace(confusion) < confusion.sum()


def test_by_task_is_the_row_of_the_headline_weights(parts, weights, state) -> None:
    for name, params in (("ema", weights["averaged"]), ("raw", weights["raw"])):
        row = meter_of(parts, weights=name).by_task(state, 1)
        np.testing.assert_allclose(row[:2], by_hand(params, parts.dataset.test, GROUPS[:2])[0])
        assert row.shape == (3,)
        assert np.isnan(row[2])


def test_a_network_without_a_classifier_has_features_and_no_accuracy(parts, state) -> None:
    alone = dataclasses.replace(parts, setup=dataclasses.replace(parts.setup, classifier=None))
    meter = meter_of(alone, scores=("linear_probe", "kld"))
    assert meter.by_task(state, 1) is None
    found, confusion = meter.measured(state, 0)
    assert confusion is None
    assert set(found) == {"linear_probe"}


# -- batches and devices


def scaled(params, images):
    return params * images.mean((1, 2, 3))


@pytest.mark.parametrize(("mode", "count"), [("pmap", 2), ("jit", 2), ("jit", 1)])
@pytest.mark.parametrize("batch", [1, 7, 500])
def test_every_image_is_mapped_once_and_in_order_whatever_the_batch(monkeypatch, mode, count, batch) -> None:
    monkeypatch.setattr(classifying, "BATCH", batch)
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1)).astype(np.uint8)
    mapper = Mapper(Parallel(mode, jax.local_devices()[:count]), scaled, 20)
    for number in (20, 13, 1):
        found = mapper(jnp.float32(3.0), images[:number])
        np.testing.assert_allclose(found, 3 * flat(images[:number]).mean(1), rtol=1e-5, atol=1e-6)
        assert found.shape == (number,)
    np.testing.assert_allclose(mapper(jnp.float32(-1.0), images), -flat(images).mean(1), rtol=1e-5, atol=1e-6)


def test_it_is_compiled_once(monkeypatch) -> None:
    monkeypatch.setattr(classifying, "BATCH", 8)
    traced = []
    mapper = Mapper(Parallel("pmap"), lambda params, images: traced.append(1) or scaled(params, images), 100)
    for number in (20, 3):
        mapper(jnp.float32(3.0), np.zeros((number, 4, 4, 1), np.uint8))
    assert traced == [1]


def test_batches_that_do_not_divide_change_no_accuracy(parts, weights, state, monkeypatch) -> None:
    monkeypatch.setattr(classifying, "BATCH", 37)
    found, confusion = meter_of(parts, "jit", jax.local_devices()[:1]).measured(state, 2)
    check(found["accuracy"], *by_hand(weights["averaged"], parts.dataset.test, GROUPS))
    assert confusion.sum() == np.isin(parts.dataset.test.labels, sum(GROUPS, ())).sum()


# -- probes


def seen_images(split, task: int) -> tuple[np.ndarray, np.ndarray]:
    """Features and true labels of all images of the data set of classes seen that are not held out, float64."""
    chosen = np.isin(split.labels, [c for group in GROUPS[: task + 1] for c in group])
    features = 2.0 * (split.images[chosen] / 127.5 - 1.0).mean((2, 3))
    return features, split.labels[chosen]


def fitted_to(parts, task: int) -> tuple[np.ndarray, np.ndarray]:
    trained = {image.tobytes() for image in parts.sequence.train.images}
    train = parts.dataset.train
    kept = np.array([image.tobytes() in trained for image in train.images])
    return seen_images(dataclasses.replace(train, images=train.images[kept], labels=train.labels[kept]), task)


@pytest.mark.parametrize("task", [1, 2])
def test_the_linear_probe_knows_the_labels_that_the_run_does_not(parts, state, task) -> None:
    """Averaged weights again: with the raw ones here every feature is 0."""
    assert (parts.sequence.train.labels < 0).mean() > 0.6
    found, _ = meter_of(parts, scores=("linear_probe", "kld")).measured(state, task)
    features, labels = fitted_to(parts, task)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=100 / 8, max_iter=1000)).fit(features, labels)
    test_features, truth = seen_images(parts.dataset.test, task)
    right = probe.predict(test_features) == truth
    rows = [right[np.isin(truth, group)].mean() for group in GROUPS[: task + 1]]
    np.testing.assert_allclose(found["linear_probe"].row[: task + 1], rows, atol=0.015)  # one image
    assert np.isnan(found["linear_probe"].row[task + 1 :]).all()
    assert found["linear_probe"].union == pytest.approx(right.mean(), abs=0.01)
    assert 0.6 < right.mean() < 1


def test_the_nearest_neighbour_probe_votes_by_cosine_similarity(parts, state) -> None:
    found, _ = meter_of(parts, scores=("knn_probe", "kld")).measured(state, 1)
    features, labels = fitted_to(parts, 1)
    test_features, truth = seen_images(parts.dataset.test, 1)
    mean, deviation = features.mean(0), features.std(0)
    known, asked = (features - mean) / deviation, (test_features - mean) / deviation
    lengths = np.linalg.norm(asked, axis=1)[:, None] * np.linalg.norm(known, axis=1)
    similarity = asked @ known.T / lengths
    nearest = np.argsort(-similarity, axis=1)[:, :20]
    votes = np.zeros((len(truth), 10))
    for i, places in enumerate(nearest):
        np.add.at(votes[i], labels[places], np.exp(similarity[i, places] / 0.07))
    right = votes.argmax(1) == truth
    assert found["knn_probe"].union == pytest.approx(right.mean(), abs=0.01)
    assert found["knn_probe"].row[1] == pytest.approx(right[np.isin(truth, GROUPS[1])].mean(), abs=0.015)


def test_fewer_images_for_a_probe_than_there_are_classes_are_refused_before_anything_runs(tiny_config) -> None:
    with pytest.raises(UserError, match=r"evaluation\.probe\.images"):
        assemble(tiny_config(*WORDS, "evaluation.probe.images=5"))


def test_a_probe_is_fitted_to_so_many_images_each_true_class_as_often(parts, state, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(classifying, "probe_row", lambda *arguments: asked.append(arguments) or (np.zeros(3), 0.0))
    meter = meter_of(parts, scores=("linear_probe", "kld"), probe={"images": 40})
    meter.measured(state, 1)
    kind, features, labels, test_features, truth, counts, task = asked[0]
    assert (kind, task, len(features), len(test_features)) == ("linear", 1, 40, sum(counts[:2]))
    assert np.unique(labels, return_counts=True)[1].tolist() == [10] * 4
    assert set(labels) == set(truth) == {2, 6, 1, 8}
    known, classes = fitted_to(parts, 1)
    of_image = {tuple(np.round(row, 3)): c for row, c in zip(known, classes, strict=True)}
    assert [of_image[tuple(np.round(row.astype(np.float64), 3))] for row in features] == labels.tolist()
