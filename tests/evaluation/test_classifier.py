"""The scores' classifier: shapes, batching, training on real digits, and its cache."""

import dataclasses
import logging
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from jdcl_jax.errors import UserError
from jdcl_jax.evaluation.classifier import ClassifierSettings, train_classifier
from jdcl_jax.evaluation.classifier_cache import load_or_train_classifier
from jdcl_jax.evaluation.features import ClassifierFeatures, in_batches
from jdcl_jax.models.classifier import ImageClassifier

SHORT = ClassifierSettings(num_classes=10, channels=(4,), features=8, steps=12, batch_size=16, flip=True, shift=1)


@pytest.fixture(scope="module")
def digits():
    """Train, validation and test split of the real 8x8 digits."""
    data = load_digits()
    images = np.round(data.images * 255 / 16).astype(np.uint8)[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    return [
        SimpleNamespace(images=images[rows], labels=data.target[rows].astype(np.int32))
        for rows in np.split(order, [1300, 1440])
    ]


def parameters(trained) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(trained.extractor.params)]


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (64, 3)])
def test_network_takes_images_from_8_to_64_pixels(size, channels):
    model = ImageClassifier(num_classes=7, channels=(8, 16, 16), features=24)
    images = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    (logits, features), variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert (logits.shape, features.shape) == ((2, 7), (2, 24))
    assert set(variables) == {"params"}  # nothing but parameters: no running statistics


def test_batches_have_one_size_and_the_filling_is_cut_off():
    seen = []

    def double(batch):
        seen.append(len(batch))
        return batch.astype(int) * 2, batch[:, 0]

    images = np.arange(7, dtype=np.uint8).reshape(7, 1)
    parts = list(in_batches(double, images, 3))
    assert seen == [3, 3, 3]
    np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), images * 2)
    np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), np.arange(7))
    assert next(in_batches(double, images[:0], 3))[0].shape == (0, 1)


def test_the_next_batch_is_begun_before_the_last_one_is_fetched():
    begun = []

    def number(batch):
        begun.append(int(batch[0, 0, 0, 0]))
        return batch[:, 0, 0, 0]

    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
    fetched = in_batches(number, images, 2)
    assert next(fetched).tolist() == [0, 1]
    assert begun == [0, 2]
    assert [part.tolist() for part in fetched] == [[2, 3], [4, 5]]
    assert begun == [0, 2, 4]


def test_default_training_reads_digits_and_its_outputs_are_consistent(digits):
    trained = train_classifier(*digits, ClassifierSettings(num_classes=10))
    assert trained.test_accuracy >= 0.97
    assert trained.validation_accuracy >= 0.97
    extractor, test = trained.extractor, digits[2]
    features, probabilities = extractor.features_and_probabilities(test.images)
    assert features.shape == (len(test.labels), 64) and features.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    assert np.mean(probabilities.argmax(axis=1) == test.labels) == trained.test_accuracy
    # The network by itself, in one batch of another size, on float images.
    logits, expected = ImageClassifier(10).apply(
        {"params": extractor.params}, jnp.asarray(test.images[:20] / 127.5 - 1, jnp.float32)
    )
    np.testing.assert_allclose(features[:20], expected, atol=1e-4)
    np.testing.assert_allclose(probabilities[:20], jax.nn.softmax(logits), atol=1e-4)
    assert (features.std(axis=0) > 1e-3).all()  # no dead feature


def test_cached_and_fresh_classifiers_are_identical_bit_for_bit(digits, tmp_path):
    fresh = load_or_train_classifier(tmp_path / "a", *digits, SHORT)
    cached = load_or_train_classifier(tmp_path / "a", *digits, SHORT)
    again = load_or_train_classifier(tmp_path / "b", *digits, SHORT)
    assert parameters(fresh) == parameters(cached) == parameters(again)
    assert fresh.test_accuracy == cached.test_accuracy
    assert fresh.validation_accuracy == cached.validation_accuracy
    images = digits[2].images
    np.testing.assert_array_equal(fresh.extractor(images), cached.extractor(images))
    assert len(list((tmp_path / "a").iterdir())) == 1  # and no unfinished file


def test_second_call_does_not_train(digits, tmp_path, monkeypatch):
    load_or_train_classifier(tmp_path, *digits, SHORT)
    monkeypatch.setattr(
        "jdcl_jax.evaluation.classifier_cache.train_classifier",
        lambda *_: pytest.fail("trained although the cache has it"),
    )
    load_or_train_classifier(tmp_path, *digits, SHORT)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip_one_bit(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


@pytest.mark.parametrize("damage", [cut, flip_one_bit, lambda data: b"", lambda data: b"x" * 99])
def test_damaged_file_is_trained_anew_with_one_line(damage, digits, tmp_path, caplog):
    fresh = load_or_train_classifier(tmp_path, *digits, SHORT)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING):
        repaired = load_or_train_classifier(tmp_path, *digits, SHORT)
    (record,) = caplog.records
    assert "training the classifier again" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert parameters(repaired) == parameters(fresh)
    assert path.read_bytes() == whole


def test_other_data_or_settings_never_meet_the_same_file(digits, tmp_path):
    def changed(split, **arrays):
        return SimpleNamespace(**{"images": split.images, "labels": split.labels} | arrays)

    train, validation, test = digits
    pixels, labels = train.images.copy(), test.labels.copy()
    pixels[5, 4, 4, 0] ^= 1
    labels[0] = (labels[0] + 1) % 10
    load_or_train_classifier(tmp_path, train, validation, test, SHORT)
    load_or_train_classifier(tmp_path, changed(train, images=pixels), validation, test, SHORT)
    load_or_train_classifier(tmp_path, train, validation, changed(test, labels=labels), SHORT)
    seeded = dataclasses.replace(SHORT, seed=1)
    other = load_or_train_classifier(tmp_path, train, validation, test, seeded)
    assert len(list(tmp_path.iterdir())) == 4
    base = load_or_train_classifier(tmp_path, train, validation, test, SHORT)
    assert parameters(other) != parameters(base)


def test_another_order_of_the_classes_has_the_same_classifier(digits, tmp_path):
    def sorted_by_task(split, classes):
        rows = np.concatenate([np.flatnonzero(split.labels == label) for label in classes])
        return SimpleNamespace(images=split.images[rows], labels=split.labels[rows])

    orders = (range(10), (3, 7, 0, 9, 1, 2, 8, 5, 4, 6))
    first, second = (
        load_or_train_classifier(tmp_path / str(number), *(sorted_by_task(split, order) for split in digits), SHORT)
        for number, order in enumerate(orders)
    )
    assert parameters(first) == parameters(second)
    names = [[path.name for path in (tmp_path / folder).iterdir()] for folder in "01"]
    assert names[0] == names[1]


def test_a_cache_that_cannot_be_written_costs_a_warning_only(digits, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        trained = load_or_train_classifier(tmp_path / "file" / "cache", *digits, SHORT)
    assert trained.test_accuracy is not None
    (record,) = caplog.records
    assert "cannot be cached" in record.getMessage()


def test_neither_validation_nor_test_influences_the_parameters(digits):
    train, validation, test = digits
    nothing = SimpleNamespace(images=test.images[:0], labels=test.labels[:0])
    with_both = train_classifier(train, validation, test, SHORT)
    with_none = train_classifier(train, nothing, nothing, SHORT)
    assert parameters(with_both) == parameters(with_none)
    assert with_none.validation_accuracy is None and with_none.test_accuracy is None


def test_bad_labels_and_missing_images_are_clear_errors(digits):
    train, validation, test = digits
    with pytest.raises(UserError, match="labels run from 0 to 9 but the classifier has 5 classes"):
        train_classifier(train, validation, test, dataclasses.replace(SHORT, num_classes=5))
    with pytest.raises(UserError, match="no training images"):
        empty = SimpleNamespace(images=train.images[:0], labels=train.labels[:0])
        train_classifier(empty, validation, test, SHORT)
    with pytest.raises(UserError, match="steps=0"):
        dataclasses.replace(SHORT, steps=0)
    with pytest.raises(UserError, match=r"channels=\(\)"):
        dataclasses.replace(SHORT, channels=[])
    with pytest.raises(UserError, match="uint8"):
        ClassifierFeatures(ImageClassifier(2), {})(np.zeros((1, 8, 8, 1), np.float32))
