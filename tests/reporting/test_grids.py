import numpy as np
import pytest
from PIL import Image

from jdcl_jax.errors import UserError
from jdcl_jax.reporting.grids import SEPARATOR_VALUE, grid, write_grid


def numbered(num: int, height: int, width: int, channels: int) -> np.ndarray:
    """Images of which no two pixels are alike, as far as bytes go."""
    size = num * height * width * channels
    return (np.arange(size) % 151).astype(np.uint8).reshape(num, height, width, channels)


def test_every_pixel_is_where_row_and_column_say():
    images = numbered(5, 8, 8, 3)  # enlarged by 6 to sides of 48
    pixels = grid(images, columns=3)
    assert pixels.shape == (2 * 50 + 2, 3 * 50 + 2, 3)
    for index, (row, column) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]):
        for y, x in [(0, 0), (7, 0), (0, 7), (3, 5)]:
            top, left = 2 + row * 50 + y * 6, 2 + column * 50 + x * 6
            block = pixels[top : top + 6, left : left + 6]
            np.testing.assert_array_equal(block, np.broadcast_to(images[index, y, x], (6, 6, 3)))


def test_separators_and_empty_cells_are_grey():
    pixels = grid(np.zeros((5, 8, 8, 1), np.uint8), columns=3)[:, :, 0]
    grey = np.zeros_like(pixels, dtype=bool)
    grey[[0, 1, 50, 51, 100, 101], :] = True
    grey[:, [0, 1, 50, 51, 100, 101, 150, 151]] = True
    grey[52:, 102:] = True  # the sixth cell
    np.testing.assert_array_equal(pixels == SEPARATOR_VALUE, grey)


@pytest.mark.parametrize(("side", "factor"), [(8, 6), (28, 2), (32, 2), (48, 1), (64, 1)])
def test_small_images_are_enlarged_by_a_whole_factor(side, factor):
    assert grid(np.zeros((1, side, side, 1), np.uint8)).shape == (side * factor + 4,) * 2 + (1,)


def test_without_columns_the_grid_is_about_square():
    assert grid(np.zeros((10, 48, 48, 1), np.uint8)).shape == (3 * 50 + 2, 4 * 50 + 2, 1)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_the_png_holds_the_same_pixels(tmp_path, channels, mode):
    images = numbered(4, 8, 10, channels)
    write_grid(tmp_path / "new" / "grid.png", images)
    with Image.open(tmp_path / "new" / "grid.png") as picture:
        assert (picture.format, picture.mode) == ("PNG", mode)
        np.testing.assert_array_equal(np.asarray(picture).reshape(grid(images).shape), grid(images))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["grid.png"]


@pytest.mark.parametrize("name", ["grid.jpg", "grid", "grid.png.txt"])
def test_another_extension_is_the_users_error(tmp_path, name):
    with pytest.raises(UserError, match=r"\.png"):
        write_grid(tmp_path / name, numbered(1, 8, 8, 1))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_the_users_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        write_grid(tmp_path / "file" / "grid.png", numbered(1, 8, 8, 1))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 8, 8, 1), np.float32),
        np.zeros((8, 8, 1), np.uint8),
        np.zeros((1, 8, 8, 2), np.uint8),
        np.zeros((0, 8, 8, 1), np.uint8),
    ],
)
def test_what_is_no_batch_of_images_is_refused(images):
    with pytest.raises(ValueError, match="uint8"):
        grid(images)
