"""Bringing images to the model's size."""

import numpy as np
import pytest

from jdcl_jax.data.resize import Fit
from jdcl_jax.errors import UserError


def ramp(height, width, channels=1):
    size = height * width * channels
    return (np.arange(size) % 251).astype(np.uint8).reshape(height, width, channels)


def test_size_zero_leaves_every_image_as_it_is():
    image = ramp(5, 7, 3)
    np.testing.assert_array_equal(Fit(0, "resize").image(image), image)
    np.testing.assert_array_equal(Fit(0, "pad").image(image), image)


def test_padding_28_to_32_puts_two_black_pixels_on_every_side():
    image = ramp(28, 28) + np.uint8(1)
    padded = Fit(32, "pad").image(image)
    assert padded.shape == (32, 32, 1)
    np.testing.assert_array_equal(padded[2:30, 2:30], image)
    assert int(padded.sum()) == int(image.sum())


def test_an_odd_number_of_missing_pixels_goes_to_the_bottom_and_right():
    image = np.full((3, 2, 3), 9, np.uint8)
    padded = Fit(6, "pad").image(image)
    expected = np.zeros((6, 6, 3), np.uint8)
    expected[1:4, 2:4] = 9
    np.testing.assert_array_equal(padded, expected)


def test_an_image_larger_than_the_size_cannot_be_padded():
    with pytest.raises(UserError, match=r"40x3 .* too big to pad to 32x32"):
        Fit(32, "pad").image(ramp(40, 3))


@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_keeps_a_flat_image_flat(channels):
    resized = Fit(32).image(np.full((28, 28, channels), 77, np.uint8))
    np.testing.assert_array_equal(resized, np.full((32, 32, channels), 77, np.uint8))


def test_resizing_keeps_channels_apart():
    image = np.stack([ramp(8, 8)[..., 0], np.zeros((8, 8), np.uint8), ramp(8, 8)[::-1, :, 0]], -1)
    resized = Fit(16).image(image)
    for channel in range(3):
        alone = Fit(16).image(image[..., channel : channel + 1])
        np.testing.assert_array_equal(resized[..., channel], alone[..., 0])


def test_shrinking_is_antialiased():
    """A chessboard of single pixels becomes its mean; without antialiasing it would stay 0 or
    255.
    """
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., np.newaxis]
    small = Fit(8).image(board).astype(int)
    assert abs(small - 127.5).max() < 10


@pytest.mark.parametrize(("height", "width"), [(20, 40), (40, 20)])
def test_of_an_oblong_image_the_centre_square_is_kept(height, width):
    """Three bands along the long side, the outer two outside the square of the short side."""
    image = np.zeros((height, width, 1), np.uint8)
    middle = slice(10, 30)
    if width > height:
        image[:, middle] = 200
    else:
        image[middle] = 200
    np.testing.assert_array_equal(Fit(20).image(image), np.full((20, 20, 1), 200, np.uint8))


def test_the_shorter_side_is_resized_and_the_aspect_ratio_kept():
    """A horizontal ramp of 100 pixels cut at both ends: after halving, columns step twice as
    far.
    """
    image = np.tile(np.arange(100, dtype=np.uint8), (60, 1))[..., np.newaxis]
    resized = Fit(30).image(image)[:, :, 0].astype(int)
    # Columns 10..39 of the halved ramp, whose pixel x is the mean of 2x and 2x + 1.
    expected = 2 * np.arange(10, 40) + 0.5
    assert abs(resized - expected).max() <= 0.5


def test_many_images_are_fitted_one_by_one():
    images = np.stack([ramp(8, 8), ramp(8, 8)[::-1]])
    fitted = Fit(12).images(images)
    assert fitted.shape == (2, 12, 12, 1)
    np.testing.assert_array_equal(fitted[1], Fit(12).image(images[1]))


@pytest.mark.parametrize(("size", "mode", "word"), [(8, "stretch", "stretch"), (-1, "pad", "-1")])
def test_an_unknown_mode_or_a_negative_size_is_refused(size, mode, word):
    with pytest.raises(UserError, match=word):
        Fit(size, mode)
