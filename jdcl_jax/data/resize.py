"""Brings images of any size to the square size that a model wants."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from jdcl_jax.errors import UserError

MODES = ("resize", "pad")


@dataclass(frozen=True)
class Fit:
    """How images come to `size` x `size` pixels (0: they stay as they are): `mode` resize or pad.

    resize: the shorter side is brought to `size` by pillow's bicubic filter (it widens with the
    shrinking factor, so shrinking is antialiased), the aspect ratio is kept, and the centre square
    is cut out [ours].
    pad: zeros (black) on all sides, equally; where the number of missing pixels is odd, the extra
    row or column goes to the bottom or the right. 28 -> 32 adds two pixels on every side [ours].
    """

    size: int = 0
    mode: str = "resize"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"data fit {self.mode!r} is unknown: write one of {', '.join(MODES)}")
        if self.size < 0:
            raise UserError(f"image size {self.size} is negative: write a number of pixels, or 0 for native")

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what `image` returns for an image of this height and width."""
        return (self.size, self.size) if self.size else (height, width)

    def image(self, image: np.ndarray) -> np.ndarray:
        """Fits one image, uint8 [H, W, C] with C = 1 or 3; `UserError` if it is too big to pad."""
        height, width, _ = image.shape
        if (height, width) == self.shape(height, width):
            return image
        return self._padded(image) if self.mode == "pad" else self._resized(image)

    def images(self, images: np.ndarray) -> np.ndarray:
        """Fits each of uint8 [N, H, W, C]."""
        if images.shape[1:3] == self.shape(*images.shape[1:3]):
            return images
        return np.stack([self.image(image) for image in images])

    def describe(self, height: int = 0, width: int = 0) -> str:
        """What is done to images of this size (0: of several sizes), in words; "" if nothing."""
        if not self.size or (height, width) == (self.size, self.size):
            return ""
        if self.mode == "pad":
            return f", zero-padded to {self.size}x{self.size}"
        crop = "" if height and height == width else ", centre crop"
        return f", resized to {self.size}x{self.size} (bicubic, antialiased{crop})"

    def _padded(self, image: np.ndarray) -> np.ndarray:
        height, width, _ = image.shape
        if max(height, width) > self.size:
            raise UserError(
                f"an image of {height}x{width} (height x width) is too big to pad to "
                f"{self.size}x{self.size}: write fit 'resize', or a larger image size"
            )
        top, left = (self.size - height) // 2, (self.size - width) // 2
        return np.pad(image, ((top, self.size - height - top), (left, self.size - width - left), (0, 0)))

    def _resized(self, image: np.ndarray) -> np.ndarray:
        height, width, channels = image.shape
        scale = self.size / min(height, width)
        new_height, new_width = round(height * scale), round(width * scale)
        picture = Image.fromarray(image[:, :, 0] if channels == 1 else image)
        pixels = np.asarray(picture.resize((new_width, new_height), Image.Resampling.BICUBIC))
        top, left = (new_height - self.size) // 2, (new_width - self.size) // 2
        square = pixels[top : top + self.size, left : left + self.size]
        return square.reshape(self.size, self.size, channels)
