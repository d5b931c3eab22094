"""The two views: exact mirrors, crops whose boxes are measured, cut-out squares, and a sheet to look at."""

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from jdcl_jax.data.batches import to_float, to_uint8
from jdcl_jax.data.datasets import load
from jdcl_jax.data.views import Views
from jdcl_jax.errors import UserError
from jdcl_jax.keys import example_keys
from jdcl_jax.reporting.grids import grid, write_grid

KEY = jax.random.key(5)
OFF = Views(flip=False, crop_scale=1.0, operations=0, cutout=0.0)


@functools.cache
def compiled(views: Views, view: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return jax.jit(getattr(views, view))


def keys(number: int) -> jax.Array:
    return example_keys(KEY, jnp.arange(number))


def colourful(number: int, size: int = 32) -> np.ndarray:
    """Procedural colour images: discs before skies; uint8 [N, size, size, 3]."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    images = []
    for _ in range(number):
        sky, disc = random.integers(40, 256, (2, 3))
        image = sky * (0.3 + 0.7 * y[..., None]) + random.normal(0, 8, (size, size, 1))
        inside = (x - random.uniform(0.3, 0.7)) ** 2 + (y - random.uniform(0.3, 0.7)) ** 2 < random.uniform(0.03, 0.1)
        images.append(np.where(inside[..., None], disc * (0.5 + 0.5 * x[..., None]), image))
    return np.clip(np.stack(images), 0, 255).astype(np.uint8)


def noise(number: int, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(jax.random.key(1), (number, *shape), minval=-1, maxval=1)


def test_with_everything_off_the_views_are_the_images_themselves() -> None:
    images = noise(3, (8, 8, 1))
    assert OFF.weak(images, keys(3)) is images
    strong = jax.make_jaxpr(OFF.strong)(images, keys(3))
    assert strong.jaxpr.outvars == strong.jaxpr.invars[:1]


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_about_half_of_the_images_are_exact_mirrors(view: str) -> None:
    images = np.asarray(noise(400, (8, 9, 3)))
    views = dataclasses.replace(OFF, flip=True)
    seen = np.asarray(compiled(views, view)(images, keys(400)))
    mirrored = (seen == images[:, :, ::-1]).all((1, 2, 3))
    same = (seen == images).all((1, 2, 3))
    assert np.all(mirrored ^ same)
    assert 150 < mirrored.sum() < 250


def test_weak_and_strong_views_of_the_same_keys_are_mirrored_independently() -> None:
    images = np.asarray(noise(400, (8, 9, 3)))
    views = dataclasses.replace(OFF, flip=True)
    weak, strong = (np.asarray(compiled(views, view)(images, keys(400))) for view in ("weak", "strong"))
    assert 150 < (weak == strong).all((1, 2, 3)).sum() < 250


def ramps(number: int, height: int, width: int) -> np.ndarray:
    """Images that say where a pixel comes from: (x, y) at pixel centres in -1..1; float32 [N, H, W, 3]."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x / (width - 1), y / (height - 1), 0 * x], -1) * 2 - 1
    return np.broadcast_to(image.astype(np.float32), (number, height, width, 3))


def boxes(seen: np.ndarray) -> np.ndarray:
    """What crops of `ramps` kept: left, top, width, height in pixels, [N, 4]; exact, as resampling is bilinear."""
    number, height, width, _ = seen.shape
    found = np.empty((number, 4))
    for axis, size in ((0, width), (1, height)):
        along = seen[:, height // 2, :, 0] if axis == 0 else seen[:, :, width // 2, 1]
        source = (along.astype(np.float64) + 1) / 2 * (size - 1) + 0.5
        share = source[:, size // 2 + 1] - source[:, size // 2]
        found[:, axis] = source[:, size // 2] - share * (size // 2 + 0.5)
        found[:, 2 + axis] = share * size
    return found


@pytest.mark.parametrize("scale", [0.3, 0.85])
@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_crops_lie_anywhere_and_keep_an_allowed_share_and_aspect(size: tuple[int, int], scale: float) -> None:
    height, width = size
    views = Views(flip=False, crop_scale=scale)
    left, top, wide, high = boxes(np.asarray(compiled(views, "weak")(ramps(4000, height, width), keys(4000)))).T
    slack = 1e-3
    assert min(left.min(), top.min()) > -slack
    assert (left + wide).max() < width + slack
    assert (top + high).max() < height + slack
    area = wide * high / (width * height)
    assert scale - slack < area.min() < scale + 0.01
    assert 0.99 < area.max() < 1 + slack
    assert area.mean() == pytest.approx((1 + scale) / 2, abs=0.02 * (1 - scale))
    aspect = np.log((wide / width) / (high / height))
    limit = min(np.log(4 / 3), -np.log(scale))
    assert aspect.min() == pytest.approx(-limit, abs=0.05 * limit)
    assert aspect.max() == pytest.approx(limit, abs=0.05 * limit)
    assert abs(aspect.mean()) < 0.05 * limit
    for start, room in ((left, width - wide), (top, height - high)):
        place = (start / room)[room > 0.2]
        assert place.min() < 0.05
        assert place.max() > 0.95
        assert place.mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("scale", [0.4, 0.85])
def test_crops_are_resized_as_pil_resizes_a_box(scale: float) -> None:
    images = np.array(to_float(colourful(8)))
    views = Views(flip=False, crop_scale=scale)
    seen = np.asarray(compiled(views, "weak")(images, keys(8)))
    found = boxes(np.asarray(compiled(views, "weak")(ramps(8, 32, 32), keys(8))))
    for image, ours, (left, top, wide, high) in zip(images, seen, found, strict=True):
        box = tuple(np.clip((left, top, left + wide, top + high), 0, 32))
        for channel in range(3):
            expected = Image.fromarray(image[..., channel]).resize((32, 32), Image.Resampling.BILINEAR, box)
            np.testing.assert_allclose(ours[..., channel], np.asarray(expected), atol=1e-3)


def test_without_flip_no_image_is_mirrored_and_with_it_crops_are() -> None:
    def slopes(flip: bool) -> np.ndarray:
        seen = np.asarray(compiled(Views(flip=flip), "weak")(ramps(300, 16, 16), keys(300)))
        return seen[:, 8, -1, 0] - seen[:, 8, 0, 0]

    assert np.all(slopes(False) > 1)
    assert 100 < np.sum(slopes(True) > 1) < 200
    assert np.all(np.abs(slopes(True)) > 1)


@pytest.mark.parametrize(("shape", "side"), [((8, 8, 1), 4), ((32, 32, 3), 16), ((64, 64, 1), 32), ((9, 14, 1), 4)])
def test_a_grey_square_is_cut_out_anywhere(shape: tuple[int, ...], side: int) -> None:
    number, (height, width, _) = 2000, shape
    images = np.asarray(noise(number, shape))
    seen = np.asarray(compiled(dataclasses.replace(OFF, cutout=0.5), "strong")(images, keys(number)))
    changed = (seen != images).any(-1)
    np.testing.assert_array_equal(seen[~changed], images[~changed])
    assert set(np.asarray(to_uint8(seen[changed])).flat) == {127}
    rows, columns = changed.any(2), changed.any(1)
    np.testing.assert_array_equal(changed, rows[:, :, None] & columns[:, None, :])
    for line in (rows, columns):
        starts, ends = line.argmax(1), line.shape[1] - line[:, ::-1].argmax(1)
        assert np.all(line.sum(1) == ends - starts)
        inside = (starts > 0) & (ends < line.shape[1])
        assert np.all(line.sum(1)[inside] == side)
        assert line.sum(1).min() == side // 2
        assert line.sum(1).max() == side
    # The centre is uniform: a pixel is covered if the centre is at most half a side away from it.
    for line, size in ((rows, height), (columns, width)):
        middles = np.arange(size) + 0.5
        expected = (np.minimum(middles + side / 2, size) - np.maximum(middles - side / 2, 0)) / size
        np.testing.assert_allclose(line.mean(0), expected, atol=0.5 / size + 0.05)
        assert line.mean(0)[0] == pytest.approx(line.mean(0)[-1], abs=0.06)


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 14, 3), (64, 64, 3)])
def test_views_keep_shape_and_range(shape: tuple[int, ...]) -> None:
    images = jnp.concatenate(
        [noise(30, shape), jnp.sign(noise(30, shape)), -jnp.ones((9, *shape)), jnp.ones((9, *shape))]
    )
    for view in ("weak", "strong"):
        seen = np.asarray(compiled(Views(), view)(images, keys(78)))
        assert seen.shape == images.shape
        assert seen.dtype == np.float32
        assert np.isfinite(seen).all()
        assert seen.min() >= -1
        assert seen.max() <= 1


def test_operations_change_most_images() -> None:
    images = to_float(jnp.asarray(colourful(200)))
    seen = compiled(dataclasses.replace(OFF, operations=2), "strong")(images, keys(200))
    changed = (np.abs(seen - images) > 0.02).any((1, 2, 3)).mean()
    assert 0.55 < changed < 0.8  # 3/4 have an operation, and some of these do nothing


def test_no_operation_is_stronger_than_the_magnitude() -> None:
    grey = to_float(jnp.full((400, 16, 16, 3), 200, jnp.uint8))
    views = dataclasses.replace(OFF, operations=1, magnitude=1)
    middles = np.asarray(to_uint8(compiled(views, "strong")(grey, keys(400))))[:, 8, 8]
    # Brightness keeps 0.14, posterize the upper four bits; level 1 inverts from 231 on; the rest changes no even grey.
    assert {tuple(pixel) for pixel in middles.tolist()} == {(200,) * 3, (28,) * 3, (192,) * 3}


def test_the_square_is_cut_out_last() -> None:
    images = to_float(jnp.asarray(colourful(200)))
    seen = np.asarray(compiled(Views(), "strong")(images, keys(200)))
    exactly_grey = (seen == np.float32(127 / 127.5 - 1)).all(-1)
    assert exactly_grey.sum((1, 2)).min() >= 8 * 8


def assert_alike(a: jax.Array, b: jax.Array) -> None:
    """Equal but for rounding, and where rounding decides between two grey levels, which is rare."""
    different = np.abs(np.asarray(a) - np.asarray(b)) > 1e-5
    assert different.mean() < 1e-3


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_a_view_depends_on_image_and_key_alone(view: str) -> None:
    images, compute = noise(24, (32, 32, 3)), compiled(Views(), view)
    whole = compute(images, keys(24))
    order = np.random.default_rng(0).permutation(24)
    assert_alike(compute(images[order], keys(24)[order]), whole[order])
    others = images.at[1:].multiply(-0.5)
    assert_alike(compute(others, keys(24))[0], whole[0])
    alone = [compute(images[i : i + 1], keys(24)[i : i + 1]) for i in range(24)]
    assert_alike(jnp.concatenate(alone), whole)


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_other_keys_give_other_views(view: str) -> None:
    images = jnp.broadcast_to(noise(1, (32, 32, 3)), (24, 32, 32, 3))
    seen = np.asarray(compiled(Views(), view)(images, keys(24))).reshape(24, -1)
    apart = np.abs(seen[:, None] - seen[None]).max(-1) + np.eye(24)
    assert apart.min() > 1e-3


@pytest.mark.long
def test_views_are_the_same_compiled_or_not_and_shared_or_not() -> None:
    images, strong = noise(16, (17, 16, 3)), Views().strong
    expected = strong(images, keys(16))
    assert_alike(compiled(Views(), "strong")(images, keys(16)), expected)
    halves = images.reshape(2, 8, 17, 16, 3), keys(16).reshape(2, 8)
    for transformed in (
        jax.pmap(strong),
        jax.jit(jax.vmap(strong)),
        jax.jit(lambda *xs: jax.lax.map(lambda x: strong(*x), xs)),
    ):
        assert_alike(transformed(*halves).reshape(expected.shape), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_scale": 0.0}, "crop_scale 0.0 is no share of an area: write one above 0"),
        ({"crop_scale": 1.5}, "crop_scale 1.5"),
        ({"operations": -1}, "operations -1 is negative"),
        ({"magnitude": 0}, "magnitude 0 is unknown: write one of 1..10"),
        ({"magnitude": 11}, "magnitude 11"),
        ({"cutout": -0.5}, "cutout -0.5 is no share of a side"),
        ({"cutout": 16.0}, "cutout 16.0"),
    ],
)
def test_settings_that_mean_nothing_are_refused_in_one_line(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Views(**options)
    assert "\n" not in str(caught.value)


def examples() -> list[np.ndarray]:
    """Six digits and six colour images, CIFAR-10's where they are at hand; each uint8 [6, H, W, C]."""
    digits = np.round(load_digits().images[:6, :, :, None] * (255 / 16)).astype(np.uint8)
    prepared = os.environ.get("JDCL_TFDS_DIR", "")
    if prepared and (Path(prepared) / "cifar10").is_dir():
        return [digits, load("cifar10", directory=prepared).train.images[:6]]
    return [digits, colourful(6)]


@pytest.mark.long
def test_a_sheet_of_views_to_look_at(tmp_path: Path) -> None:
    # Rows: the image, three weak views, four strong ones.
    parts = []
    for images in examples():
        rows = [images]
        for row in range(7):
            view = compiled(Views(), "weak" if row < 3 else "strong")
            row_keys = example_keys(jax.random.key(row), jnp.arange(6))
            rows.append(np.asarray(to_uint8(view(to_float(images), row_keys))))
        factor = 32 // images.shape[1]
        large = np.stack(rows).repeat(factor, axis=2).repeat(factor, axis=3)
        parts.append(np.broadcast_to(large, (8, 6, 32, 32, 3)))
    cells = np.concatenate(parts, axis=1).reshape(96, 32, 32, 3)
    folder = Path(os.environ.get("JDCL_TEST_OUTPUT") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    write_grid(folder / "views.png", cells, columns=12)
    with Image.open(folder / "views.png") as sheet:
        assert sheet.size == grid(cells, columns=12).shape[1::-1] == (12 * 66 + 2, 8 * 66 + 2)
        assert sheet.mode == "RGB"
