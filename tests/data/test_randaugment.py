"""Every operation of the pool against PIL, which defines what it means; how often and how strongly each is drawn."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from jdcl_jax.data.randaugment import POOL, augmented, drawn, rand_augment
from jdcl_jax.keys import example_keys

KEY = jax.random.key(11)
SHAPES = [(32, 24, 3), (20, 28, 1), (8, 8, 1)]
LEVELS = [1, 4, 7, 10]
BILINEAR = Image.Resampling.BILINEAR
AFFINE = Image.Transform.AFFINE


def photo(shape: tuple[int, ...], low: int = 0, high: int = 255, seed: int = 0) -> np.ndarray:
    """A random image with large and small features, uint8 [H, W, C] in low..high."""
    height, width, channels = shape
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 8
    waves = [np.sin(x * random.normal() + y * random.normal() + random.normal()) for _ in range(4 * channels)]
    values = np.reshape(waves, (4, channels, height, width)).sum(0).transpose(1, 2, 0)
    values = values + 0.3 * random.normal(size=shape)
    share = (values - values.min()) / (values.max() - values.min())
    return np.round(low + (high - low) * share).astype(np.uint8)


def picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def by_pil(pixels: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """PIL's answer in grey levels."""
    return np.asarray(change(picture(pixels)), np.float64).reshape(pixels.shape)


def by_pil_in_floats(pixels: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """PIL's answer in grey levels, one channel after the other, not rounded."""
    planes = [Image.fromarray(pixels[:, :, i].astype(np.float32)) for i in range(pixels.shape[2])]
    return np.stack([np.asarray(change(plane), np.float64) for plane in planes], axis=-1)


@jax.jit
def _augmented(image: jax.Array, operation: jax.Array, level: jax.Array, sign: jax.Array) -> jax.Array:
    return augmented(image, operation, level, sign)


def by_us(pixels: np.ndarray, name: str, level: int = 5, sign: int = 1) -> np.ndarray:
    """Our answer in grey levels."""
    out = _augmented(pixels.astype(np.float32) / 255, jnp.int32(POOL.index(name)), jnp.int32(level), jnp.float32(sign))
    assert out.dtype == jnp.float32
    assert out.shape == pixels.shape
    return 255 * np.asarray(out, np.float64)


def largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["brightness", "color", "contrast", "sharpness"])
def test_enhancements_are_pils(name: str, level: int, shape: tuple[int, ...]) -> None:
    # PIL rounds its grey image, mean or smoothed image to levels, and then the blend.
    pixels = photo(shape)
    enhance = getattr(ImageEnhance, name.capitalize())
    expected = by_pil(pixels, lambda image: enhance(image).enhance(level / 10 * 0.9 + 0.05))
    assert largest_difference(by_us(pixels, name, level), expected) < 1.6
    assert largest_difference(expected, pixels) >= 2 or (name, shape[2]) == ("color", 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("level", range(1, 11))
def test_posterize_and_solarize_are_pils_to_the_level(level: int, shape: tuple[int, ...]) -> None:
    pixels = photo(shape)
    bits, threshold = int(level * 4 / 10) + 4, 256 - int(level * 256 / 10)
    expected = by_pil(pixels, lambda image: ImageOps.posterize(image, bits))
    assert largest_difference(by_us(pixels, "posterize", level), expected) < 1e-3
    expected = by_pil(pixels, lambda image: ImageOps.solarize(image, threshold))
    assert largest_difference(by_us(pixels, "solarize", level), expected) < 1e-3


def histograms() -> dict[str, np.ndarray]:
    """Images that are easy or hard for operations that look at the histogram."""
    return {
        "narrow": photo((32, 32, 3), 60, 170),
        "one channel": photo((28, 28, 1), 10, 90),
        "large": photo((64, 64, 3), 100, 255),
        "wide": photo((17, 33, 3)),
        "many of the brightest level": np.minimum(photo((32, 32, 3)), 130),
        "most of the brightest level": np.minimum(photo((32, 32, 3)), 60),
        "many of the darkest level": np.maximum(photo((32, 32, 3)), 130),
        "constant": np.full((32, 32, 3), 77, np.uint8),
        "two levels": np.where(photo((32, 32, 1)) > 99, 200, 30).astype(np.uint8),
        "a constant channel": photo((32, 32, 3), 5, 80) * np.array([1, 0, 2], np.uint8),
        "digits": photo((8, 8, 1), 0, 200),
        "255 pixels": photo((15, 17, 1), 0, 200),
        "256 pixels": photo((16, 16, 3), 0, 200),
    }


@pytest.mark.parametrize("kind", histograms())
def test_auto_contrast_is_pils(kind: str) -> None:
    # PIL drops what is behind the point.
    pixels = histograms()[kind]
    assert largest_difference(by_us(pixels, "auto_contrast"), by_pil(pixels, ImageOps.autocontrast)) < 1.001


@pytest.mark.parametrize("kind", histograms())
def test_equalize_is_pils_to_the_level(kind: str) -> None:
    pixels = histograms()[kind]
    expected = by_pil(pixels, ImageOps.equalize)
    assert largest_difference(by_us(pixels, "equalize"), expected) < 1e-3
    unchanged = ("constant", "most of the brightest level", "digits", "255 pixels")
    assert (largest_difference(expected, pixels) > 10) == (kind not in unchanged)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("level", LEVELS)
def test_rotation_is_pils(level: int, sign: int, shape: tuple[int, ...]) -> None:
    pixels = photo(shape)
    expected = by_pil_in_floats(pixels, lambda image: image.rotate(sign * 30 * level / 10, BILINEAR))
    assert largest_difference(by_us(pixels, "rotate", level, sign), expected) < 0.05
    other = by_pil_in_floats(pixels, lambda image: image.rotate(-sign * 30 * level / 10, BILINEAR))
    assert largest_difference(expected, other) > 10


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y"])
def test_shears_and_translations_are_pils(name: str, level: int, sign: int, shape: tuple[int, ...]) -> None:
    pixels = photo(shape)
    height, width, _ = shape
    share = sign * 0.3 * level / 10
    numbers = {
        "shear_x": (1, share, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, share, 1, 0),
        "translate_x": (1, 0, int(share * width), 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, int(share * height)),
    }[name]
    expected = by_pil_in_floats(pixels, lambda image: image.transform(image.size, AFFINE, numbers, BILINEAR))
    assert largest_difference(by_us(pixels, name, level, sign), expected) < 0.05


@pytest.mark.parametrize("shape", SHAPES)
def test_identity_is_exact_and_so_is_color_on_grey_images(shape: tuple[int, ...]) -> None:
    pixels = photo(shape)
    names = ["identity"] + ["color"] * (shape[2] == 1)
    for name in names:
        for level in (1, 10):
            image = pixels.astype(np.float32) / 255
            out = _augmented(image, jnp.int32(POOL.index(name)), jnp.int32(level), jnp.float32(-1))
            np.testing.assert_array_equal(out, image)


def test_pixels_between_two_grey_levels_do_no_harm() -> None:
    image = jax.random.uniform(KEY, (32, 32, 3))
    for number, name in enumerate(POOL):
        out = np.asarray(_augmented(image, jnp.int32(number), jnp.int32(10), jnp.float32(1)))
        assert np.isfinite(out).all(), name
        assert out.min() >= -1e-6, name
        assert out.max() <= 1 + 1e-6, name


def many_draws(operations: int, magnitude: int, number: int = 6000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    keys = example_keys(KEY, jnp.arange(number))
    operation, level, sign = jax.vmap(lambda key: drawn(key, operations, magnitude))(keys)
    return np.asarray(operation), np.asarray(level), np.asarray(sign)


def test_half_of_the_operations_are_skipped_and_the_others_are_equally_frequent() -> None:
    operation, _, _ = many_draws(2, 10, 14000)
    assert operation.shape == (14000, 2)
    for place in range(2):
        counts = np.bincount(operation[:, place], minlength=14)
        expected = np.full(14, 500.0)
        expected[POOL.index("identity")] += 7000
        assert counts.sum() == 14000
        assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))
    both = np.bincount(operation[:, 0] * 14 + operation[:, 1], minlength=196).reshape(14, 14)
    expected = np.outer(expected, expected) / 14000
    assert np.all(np.abs(both - expected) < 5 * np.sqrt(expected))


@pytest.mark.parametrize("magnitude", [1, 3, 10])
def test_levels_are_uniform_up_to_the_magnitude_and_signs_are_even(magnitude: int) -> None:
    operation, level, sign = many_draws(1, magnitude)
    for chosen in (operation == POOL.index("identity"), operation != POOL.index("identity")):
        for side in (-1, 1):
            counts = np.bincount(level[chosen & (sign == side)], minlength=magnitude + 1)
            expected = chosen.sum() / magnitude / 2
            assert counts[0] == 0
            assert len(counts) == magnitude + 1
            assert np.all(np.abs(counts[1:] - expected) < 5 * np.sqrt(expected))


def test_operations_are_applied_one_after_the_other_as_drawn() -> None:
    image = jnp.asarray(photo((16, 20, 3)) / np.float32(255))
    for key in example_keys(KEY, jnp.arange(12)):
        expected = image
        for operation, level, sign in zip(*drawn(key, 3, 10), strict=True):
            expected = _augmented(expected, operation, level, sign)
        np.testing.assert_allclose(rand_augment(image, key, 3, 10), expected, atol=1e-5)
