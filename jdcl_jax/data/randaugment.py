"""RandAugment with the pool of FixMatch (arXiv 2001.07685, as its PyTorch re-implementations have it), on the device.

An operation means what it means in PIL, whose 256 grey levels are 0..1 here; results are not rounded to levels between
operations [ours]. Under `vmap` a choice among 14 functions would compute all 14, so the pool is folded into three
steps, each the identity unless its own kind was drawn: one choice among grey-level curves, one blend, one affine
resampling.

From other libraries: `map_coordinates` resamples; dm-pix's `rgb_to_grayscale` and `solarize` are PIL's. The rest of
dm-pix has another meaning: its brightness adds, its contrast keeps a mean per channel, its saturation works in HSV, and
its affine resampling turns pixels near the border black (and takes 40 to 100 times as long on a CPU). Auto-contrast,
equalize, posterize and sharpness it has not.
"""

import math
from collections.abc import Sequence

import dm_pix as pix
import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

POOL = (
    "auto_contrast",
    "brightness",
    "color",
    "contrast",
    "equalize",
    "identity",
    "posterize",
    "rotate",
    "sharpness",
    "shear_x",
    "shear_y",
    "solarize",
    "translate_x",
    "translate_y",
)
MAX_LEVEL = 10


def rand_augment(image: jax.Array, key: jax.Array, operations: int, magnitude: int) -> jax.Array:
    """Some operations of the pool, one after the other; image float32 [H, W, C] in [0, 1], C = 1 or 3 -> the same."""

    def step(image: jax.Array, draw: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return augmented(image, *draw), None

    return jax.lax.scan(step, image, drawn(key, operations, magnitude))[0]


def drawn(key: jax.Array, operations: int, magnitude: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What `rand_augment` does: (operation int32, level int32 1..magnitude, sign float32 -1 or 1), each [operations].

    Operations are drawn with replacement; each is skipped, which makes it the identity, with probability 1/2. The
    magnitude itself may be drawn [ours]: in the re-implementations the highest level is one below it.
    """
    which, skip, level, sign = jax.random.uniform(key, (4, operations))
    operation = jnp.where(skip < 0.5, _number("identity"), jnp.floor(which * len(POOL)).astype(jnp.int32))
    return operation, 1 + jnp.floor(level * magnitude).astype(jnp.int32), jnp.where(sign < 0.5, -1.0, 1.0)


def augmented(image: jax.Array, operation: jax.Array, level: jax.Array, sign: jax.Array) -> jax.Array:
    """One operation on one image.

    Args:
      image: float32 [H, W, C] in [0, 1], C = 1 or 3.
      operation: int32 [], a place in `POOL`.
      level: int32 [], 1..10, tenths of the operation's range.
      sign: float32 [], -1 or 1, for operations that have a direction.

    Returns: float32 [H, W, C] in [0, 1].
    """
    # Of the three all but one do nothing, so their order is free; with this one XLA:CPU repeats least of their work.
    image = _mapped(image, operation, level)
    image = _blended(image, operation, level)
    return _resampled(image, *_affine(operation, level, sign, image.shape))


def _number(name: str) -> int:
    return POOL.index(name)


def _affine(
    operation: jax.Array, level: jax.Array, sign: jax.Array, shape: Sequence[int]
) -> tuple[jax.Array, jax.Array]:
    """Where the pixels come from, as PIL's six numbers (a, b, c), (d, e, f).

    Output (x, y) shows input (a x + b y + c, d x + e y + f), x to the right, y down, both 0 at the outer corner of the
    top left pixel. Rotation turns counter-clockwise around the centre, shears keep the top left corner in place, and
    translation is by whole pixels, rounded towards zero.
    """
    height, width = shape[0], shape[1]
    rotate = operation == _number("rotate")
    angle = jnp.where(rotate, sign * level * (math.radians(30) / MAX_LEVEL), 0.0)
    shear = sign * level * (0.3 / MAX_LEVEL)
    cos, sin = jnp.where(rotate, jnp.cos(angle), 1.0), jnp.where(rotate, jnp.sin(angle), 0.0)
    b = jnp.where(operation == _number("shear_x"), shear, -sin)
    d = jnp.where(operation == _number("shear_y"), shear, sin)
    x, y = width / 2, height / 2
    c = jnp.where(operation == _number("translate_x"), sign * (3 * level * width // 100), 0.0)
    f = jnp.where(operation == _number("translate_y"), sign * (3 * level * height // 100), 0.0)
    c, f = jnp.where(rotate, x - cos * x + sin * y, c), jnp.where(rotate, y - sin * x - cos * y, f)
    return jnp.stack([cos, b, c]), jnp.stack([d, cos, f])


def _resampled(image: jax.Array, row_x: jax.Array, row_y: jax.Array) -> jax.Array:
    """The image [H, W, C] at the places that `_affine` names: bilinear, and black outside [ours]."""
    height, width = image.shape[:2]
    out_x, out_y = jnp.arange(width) + 0.5, jnp.arange(height)[:, None] + 0.5
    x = row_x[0] * out_x + row_x[1] * out_y + row_x[2]
    y = row_y[0] * out_x + row_y[1] * out_y + row_y[2]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    moved = jax.vmap(lambda channel: map_coordinates(channel, [y - 0.5, x - 0.5], 1, "nearest"), -1, -1)(image)
    return jnp.where(inside[:, :, None], moved, 0.0)


def _blended(image: jax.Array, operation: jax.Array, level: jax.Array) -> jax.Array:
    """Brightness, color, contrast, sharpness: towards black, grey, the mean grey level, or a smoothed image.

    The enhancement factor, the share that is kept of the image, is 0.05 + 0.9 level / 10, so never above 0.95.
    """
    grey = image if image.shape[-1] == 1 else pix.rgb_to_grayscale(image)
    target = jnp.select(
        [operation == _number(name) for name in ("brightness", "color", "contrast", "sharpness")],
        [
            jnp.zeros_like(image),
            jnp.broadcast_to(grey, image.shape),
            jnp.broadcast_to(jnp.mean(grey), image.shape),
            _smoothed(image),
        ],
        image,
    )
    return image + (0.95 - level * (0.9 / MAX_LEVEL)) * (target - image)


def _smoothed(image: jax.Array) -> jax.Array:
    """PIL's SMOOTH: 3x3 means in which the centre counts five times; the pixels along the border stay."""
    rows = image[:-2] + image[1:-1] + image[2:]
    box = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    inner = jnp.pad((box + 4.0 * image[1:-1, 1:-1]) / 13.0, ((1, 1), (1, 1), (0, 0)))
    height, width = image.shape[:2]
    x, y = jnp.arange(width)[None, :, None], jnp.arange(height)[:, None, None]
    return jnp.where((x > 0) & (x < width - 1) & (y > 0) & (y < height - 1), inner, image)


def _mapped(image: jax.Array, operation: jax.Array, level: jax.Array) -> jax.Array:
    """Auto-contrast, equalize, posterize and solarize: curves over grey levels; the first two per channel."""
    levels = jnp.round(image * 255.0).astype(jnp.int32)
    low, high = levels.min((0, 1)), levels.max((0, 1))
    stretched = jnp.where(high > low, (levels - low) / jnp.maximum(high - low, 1), image)
    lost_bits = 4 - 4 * level // MAX_LEVEL
    threshold = 256 - 256 * level // MAX_LEVEL
    return jnp.select(
        [operation == _number(name) for name in ("auto_contrast", "equalize", "posterize", "solarize")],
        [
            stretched,
            _equalized(levels) / 255.0,
            ((levels >> lost_bits) << lost_bits) / 255.0,
            pix.solarize(image, (threshold - 0.5) / 255.0),
        ],
        image,
    )


def _equalized(levels: jax.Array) -> jax.Array:
    """PIL's equalize, int32 [H, W, C] 0..255 -> the same: a level becomes its share of the pixels that are darker.

    PIL counts in whole steps of (pixels that are not of the brightest level) // 255, and does nothing where that is 0:
    an image of fewer than 256 pixels, such as an 8x8 digit, stays as it is.
    """
    height, width, channels = levels.shape
    if height * width < 256:
        return levels
    flat = levels.reshape(height * width, channels)
    counts = jax.vmap(lambda column: jnp.bincount(column, length=256), 1)(flat)
    step = (height * width - jnp.sum(flat == flat.max(0), axis=0, keepdims=True).T) // 255
    darker = jnp.cumsum(counts, axis=1) - counts
    curve = jnp.minimum((darker + step // 2) // jnp.maximum(step, 1), 255)
    curve = jnp.where(step > 0, curve, jnp.arange(256))
    return jnp.take_along_axis(curve.T, flat, axis=0, mode="clip").reshape(levels.shape)
