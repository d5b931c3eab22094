"""The digits, and names that no data set has."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jdcl_jax.data.arrays import Dataset, Split, checked, rows_for_test
from jdcl_jax.data.datasets import load
from jdcl_jax.errors import UserError


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def test_digits_are_all_of_scikit_learns_images(digits):
    original = load_digits()
    assert len(digits.train) + len(digits.test) == len(original.target) == 1797
    assert digits.class_names == tuple("0123456789")
    assert digits.train.images.shape[1:] == (8, 8, 1)
    assert digits.train.images.dtype == digits.test.images.dtype == np.uint8
    assert digits.train.labels.dtype == np.int32


def test_every_fifth_digit_of_each_class_is_a_test_image(digits):
    original = load_digits()
    for c in range(10):
        mine = original.images[original.target == c]
        expected = np.round(mine[4::5] * 255 / 16)
        np.testing.assert_array_equal(digits.test.images[digits.test.labels == c, :, :, 0], expected)
        rest = np.round(np.delete(mine, np.s_[4::5], axis=0) * 255 / 16)
        np.testing.assert_array_equal(digits.train.images[digits.train.labels == c, :, :, 0], rest)


def test_digits_use_the_whole_range_of_pixels(digits):
    assert set(np.unique(digits.train.images)) == {round(v * 255 / 16) for v in range(17)}


def test_digits_can_be_padded_and_the_provenance_says_so():
    padded = load("digits", image_size=16, fit="pad")
    assert padded.train.images.shape[1:] == (16, 16, 1)
    assert not padded.train.images[:, :4].any()
    assert "zero-padded to 16x16" in padded.provenance
    assert "bicubic" in load("digits", image_size=16).provenance


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("digit", "did you mean 'digits'"),
        ("fashion-mnist", "did you mean 'fashion_mnist'"),
        ("CIFAR10", "did you mean 'cifar10'"),
        ("qqqqqqqq", "digits, npz:PATH, folder:PATH"),
        ("huggingface:mnist", "unknown"),
        ("", "unknown"),
        ("npz:", "names no path"),
        ("folder:", "names no path"),
    ],
)
def test_an_unknown_name_gets_one_line_with_a_hint(name, hint, tmp_path):
    with pytest.raises(UserError, match=hint) as caught:
        load(name, directory=str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fraction", [0, 1, -0.2, float("nan")])
def test_a_test_fraction_that_is_no_share_is_refused(fraction):
    with pytest.raises(UserError, match="test_fraction"):
        load("digits", test_fraction=fraction)


@pytest.mark.parametrize(("fraction", "rows"), [(0.5, [1, 3, 5, 7, 9]), (0.3, [3, 6, 9])])
def test_a_test_fraction_is_spread_evenly_over_a_class(fraction, rows):
    """With 0.3, whole parts of 0.3, 0.6, 0.9, 1.2, ... rise at the 4th, 7th and 10th image."""
    marks = rows_for_test("some", np.zeros(10, int), fraction)
    assert np.flatnonzero(marks).tolist() == rows


def test_a_test_fraction_counts_in_whole_numbers():
    """29 of 100, though in floating point 100 * 0.29 is below 29."""
    assert rows_for_test("some", np.zeros(100, int), 0.29).sum() == 29


def test_a_class_too_small_for_a_test_image_is_named():
    with pytest.raises(UserError, match="some: class 1 has 4 images, too few"):
        rows_for_test("some", np.array([0] * 5 + [1] * 4), 0.2)


def dataset(train_labels, test_labels, classes=2):
    def split(labels):
        return Split(np.zeros((len(labels), 2, 2, 1), np.uint8), np.array(labels, np.int32))

    names = tuple(f"name{c}" for c in range(classes))
    return Dataset("some", split(train_labels), split(test_labels), names, "")


def test_every_class_needs_train_and_test_images():
    whole = dataset([0, 1], [1, 0])
    assert checked(whole) is whole
    with pytest.raises(UserError, match=r"class 1 \(name1\) has no test image"):
        checked(dataset([0, 1], [0, 0]))
    with pytest.raises(UserError, match=r"class 0 \(name0\) has no training image"):
        checked(dataset([1, 1], [0, 1]))


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_out_of_range_is_refused(label):
    with pytest.raises(UserError, match=rf"training label is {label}, outside 0\.\.1"):
        checked(dataset([0, 1, label], [0, 1]))
