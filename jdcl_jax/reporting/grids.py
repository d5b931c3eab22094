"""Grids of images as PNG files."""

import io
import math
import os
from pathlib import Path

import numpy as np
from PIL import Image

from jdcl_jax.errors import UserError
from jdcl_jax.reporting.files import write_bytes

SEPARATOR = 2  # pixels between cells and around the grid
SEPARATOR_VALUE = 160  # a grey that shows beside black and beside white images
MIN_SIDE = 48  # smaller images are enlarged by a whole factor to at least this side


def enlargement(side: int) -> int:
    """The whole factor by which images whose shorter side is `side` pixels are enlarged."""
    return max(1, math.ceil(MIN_SIDE / side))


def grid(images: np.ndarray, *, columns: int = 0) -> np.ndarray:
    """Puts images beside each other, row by row from the top left.

    Small images are enlarged by repeating pixels, never smoothed, so that each pixel of an 8x8
    digit stays visible. Cells are `SEPARATOR` pixels apart; cells without an image have the
    separator's grey.

    Args:
      images: uint8 [N, H, W, C], C = 1 (grey) or 3 (RGB), N >= 1.
      columns: images in a row; 0 for a grid about as wide as high.

    Returns:
      uint8 [rows * cell_height + SEPARATOR, columns * cell_width + SEPARATOR, C].
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"a grid takes uint8 [N, H, W, 1 or 3], not {images.dtype} {list(images.shape)}")
    num, height, width, channels = images.shape
    columns = min(columns, num) if columns > 0 else math.ceil(math.sqrt(num))
    rows = math.ceil(num / columns)
    factor = enlargement(min(height, width))
    large = images.repeat(factor, axis=1).repeat(factor, axis=2)
    cell_height, cell_width = height * factor + SEPARATOR, width * factor + SEPARATOR
    cells = np.full((rows * columns, cell_height, cell_width, channels), SEPARATOR_VALUE, np.uint8)
    cells[:num, SEPARATOR:, SEPARATOR:] = large
    cells = cells.reshape(rows, columns, cell_height, cell_width, channels)
    joined = cells.transpose(0, 2, 1, 3, 4).reshape(rows * cell_height, columns * cell_width, channels)
    # Each cell brings the separator above and to its left; these are the last ones below and on the
    # right.
    return np.pad(joined, ((0, SEPARATOR), (0, SEPARATOR), (0, 0)), constant_values=SEPARATOR_VALUE)


def write_grid(path: str | os.PathLike[str], images: np.ndarray, *, columns: int = 0) -> None:
    """Writes `grid(images, columns=columns)` as a PNG file, at once.

    Raises:
      UserError: `path` does not end in .png, or cannot be written.
    """
    check_picture_path(path)
    pixels = grid(images, columns=columns)
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    write_bytes(path, stream.getvalue())


def check_picture_path(path: str | os.PathLike[str]) -> None:
    """Raises `UserError` unless `path` ends in .png; call it before the sampling, not after."""
    if Path(path).suffix.lower() != ".png":
        raise UserError(f"pictures are PNG files: {path} does not end in .png; write {Path(path).stem}.png")
