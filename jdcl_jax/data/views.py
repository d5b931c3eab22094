"""Two augmented views of a batch, weak and strong, as semi-supervised training has them: pure functions on the device.

JDCL (arXiv 2411.08224) [code] shows the denoiser a weak view and the classifier a strong one. What an example becomes
depends on its pixels and its own key, never on the batch.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jdcl_jax.data.batches import random_flip
from jdcl_jax.data.randaugment import MAX_LEVEL, rand_augment
from jdcl_jax.errors import UserError
from jdcl_jax.keys import subkeys

MAX_ASPECT = 4 / 3
GREY = 127 / 127.5 - 1


@dataclass(frozen=True)
class Views:
    """The weak view: flip and random resized crop. The strong one: a weak view, RandAugment, then a cut-out square.

    The defaults are JDCL's on 32x32 [code]. What is switched off costs nothing; with all of it off both views are the
    image itself.

    Attributes:
      flip: mirror left to right with probability 1/2.
      crop_scale: smallest share of the area that the random resized crop keeps; 1.0: no crop.
      operations: how many operations RandAugment draws (its N); 0: none.
      magnitude: the highest level, 1..10, that an operation may have (RandAugment's M).
      cutout: side of the cut-out square as a share of the shorter image side (16 of 32 pixels [code]); 0: none.
    """

    flip: bool = True
    crop_scale: float = 0.85
    operations: int = 2
    magnitude: int = 10
    cutout: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.crop_scale <= 1.0:
            raise UserError(f"crop_scale {self.crop_scale} is no share of an area: write one above 0, or 1 for no crop")
        if self.operations < 0:
            raise UserError(f"operations {self.operations} is negative: write a number of operations, or 0 for none")
        if not 1 <= self.magnitude <= MAX_LEVEL:
            raise UserError(f"magnitude {self.magnitude} is unknown: write one of 1..{MAX_LEVEL}")
        if not 0.0 <= self.cutout <= 1.0:
            raise UserError(f"cutout {self.cutout} is no share of a side: write one up to 1, or 0 for none")

    def weak(self, images: jax.Array, keys: jax.Array) -> jax.Array:
        """Float32 [B, H, W, C] in [-1, 1], keys [B] -> the same shape and range."""
        if self.flip:
            images = random_flip(images, subkeys(keys, "flip"))
        if self.crop_scale < 1.0:
            images = jax.vmap(lambda x, key: _resized_crop(x, key, self.crop_scale))(images, subkeys(keys, "crop"))
        return images

    def strong(self, images: jax.Array, keys: jax.Array) -> jax.Array:
        """Float32 [B, H, W, C] in [-1, 1], C = 1 or 3, keys [B] -> the same shape and range.

        It starts from a weak view [ours]; that one has draws of its own, so that with the same keys the weak and the
        strong view of an image are mirrored and cropped independently [ours].
        """
        images = self.weak(images, subkeys(keys, "strong"))
        if self.operations:
            images = jax.vmap(self._augmented)(images, subkeys(keys, "augment"))
        side = round(self.cutout * min(images.shape[1:3]))
        if side:
            images = jax.vmap(lambda x, key: _cut_out(x, key, side))(images, subkeys(keys, "cutout"))
        return images

    def _augmented(self, image: jax.Array, key: jax.Array) -> jax.Array:
        levels = rand_augment((image + 1.0) / 2.0, key, self.operations, self.magnitude)
        return jnp.clip(2.0 * levels - 1.0, -1.0, 1.0)


def _resized_crop(image: jax.Array, key: jax.Array, smallest: float) -> jax.Array:
    """A random box of the image [H, W, C], brought to the image's size by bilinear interpolation [ours].

    The box keeps a share of the area that is uniform in [smallest, 1]; its aspect ratio, relative to the image's, is
    log-uniform in [3/4, 4/3] as far as the box fits into the image; it lies anywhere, not only on whole pixels [ours].
    """
    height, width, channels = image.shape
    area, aspect, left, top = jax.random.uniform(key, (4,))
    area = smallest + (1.0 - smallest) * area
    widest = jnp.minimum(jnp.log(MAX_ASPECT), -jnp.log(area))
    stretch = jnp.exp(0.5 * widest * (2.0 * aspect - 1.0))
    share = jnp.sqrt(area) * jnp.stack([1.0 / stretch, stretch])  # of the height, of the width
    start = jnp.stack([top * height, left * width]) * (1.0 - share)
    resized = jax.image.scale_and_translate(
        image, (height, width, channels), (0, 1), 1.0 / share, -start / share, "linear", antialias=False
    )
    return jnp.clip(resized, -1.0, 1.0)


def _cut_out(image: jax.Array, key: jax.Array, side: int) -> jax.Array:
    """Makes a square of the image [H, W, C] grey; its centre is uniform in the image, and the border may clip it."""
    height, width = image.shape[:2]
    y, x = jax.random.uniform(key, (2,))
    top, left = jnp.round(y * height - side / 2), jnp.round(x * width - side / 2)
    rows, columns = jnp.arange(height)[:, None, None] - top, jnp.arange(width)[None, :, None] - left
    inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    return jnp.where(inside, GREY, image)


UNCHANGED = Views(flip=False, crop_scale=1.0, operations=0, cutout=0.0)
"""Both views are the image itself."""
