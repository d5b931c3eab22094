"""InceptionV3 as the FID uses it: the frozen graph of 2015-12-05, not today's model zoos'.

The architecture is that of Szegedy et al., "Rethinking the Inception Architecture for Computer
Vision"; the FID (Heusel et al., 2017) was defined on one frozen TensorFlow graph that departs from
it in four ways [2nd]: average pools count only the pixels inside the image, the last block pools by
maximum, there are 1008 logits, and images are resized by TensorFlow 1's bilinear rule, which does
not align pixel centres. A score computed with any of these changed is not comparable with published
ones.

Module names are those of the common PyTorch port of that graph, so that its weights files map name
by name.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

IMAGE_SIZE = 299
NUM_FEATURES = 2048
NUM_LOGITS = 1008


def resize_bilinear_tf1(images: jax.Array, height: int, width: int) -> jax.Array:
    """Resizes as `tf.image.resize_bilinear(align_corners=False)` of TensorFlow 1 does.

    Output pixel i reads position `i * in / out` (no half-pixel offset, so the picture shifts by a
    fraction of a pixel), blends the two neighbours there, repeats the last pixel at the border, and
    never low-passes [2nd].

    Args:
        images: float32 [N, H, W, C], any range.
        height: rows of the result.
        width: columns of the result.

    Returns:
        float32 [N, height, width, C], same range.
    """
    top, bottom, row_weight = _neighbours(images.shape[1], height)
    left, right, column_weight = _neighbours(images.shape[2], width)
    row_weight, column_weight = row_weight[:, None, None], column_weight[:, None]

    def blend_columns(rows: jax.Array) -> jax.Array:
        return rows[:, :, left] + (rows[:, :, right] - rows[:, :, left]) * column_weight

    upper = blend_columns(images[:, top])
    return upper + (blend_columns(images[:, bottom]) - upper) * row_weight


def _neighbours(size: int, resized: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower and upper source index and the weight of the upper, for each index of one axis."""
    # float32 as in the original kernel, whose rounding decides on which side of a pixel we read.
    position = np.arange(resized, dtype=np.float32) * (np.float32(size) / np.float32(resized))
    lower = np.minimum(position.astype(np.int32), size - 1)
    return lower, np.minimum(lower + 1, size - 1), position - lower.astype(np.float32)


def inception_input(images: jax.Array) -> jax.Array:
    """Turns pictures into what the network reads.

    Args:
        images: uint8 [N, H, W, C] of any size, C = 1 (gray, repeated to RGB) or 3.

    Returns:
        float32 [N, 299, 299, 3] in [-1, 127/128]: `(x - 128) / 128` after the resize [2nd].

    Raises:
        ValueError: for another dtype, rank or number of channels.
    """
    if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"Inception reads uint8 images [N, H, W, 1 or 3], not {images.dtype} {list(images.shape)}")
    resized = resize_bilinear_tf1(images.astype(jnp.float32), IMAGE_SIZE, IMAGE_SIZE)
    return jnp.broadcast_to((resized - 128.0) / 128.0, (*resized.shape[:3], 3))


def average_pool(x: jax.Array) -> jax.Array:
    """3x3 mean at stride 1 over the pixels inside the image: 4 in a corner, 6 on an edge [2nd]."""
    return nn.avg_pool(x, (3, 3), (1, 1), padding="SAME", count_include_pad=False)


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 maximum at stride 1, same size."""
    return nn.max_pool(x, (3, 3), (1, 1), padding="SAME")


def shrink_pool(x: jax.Array) -> jax.Array:
    """3x3 maximum at stride 2 without padding."""
    return nn.max_pool(x, (3, 3), (2, 2), padding="VALID")


class ConvBN(nn.Module):
    """Convolution without bias, batch norm with stored statistics, ReLU."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # Full float32: the default on accelerators would round the products and move the score.
        conv = nn.Conv(
            self.features,
            self.kernel,
            strides=self.stride,
            padding=self.padding,
            use_bias=False,
            precision=jax.lax.Precision.HIGHEST,
            name="conv",
        )
        norm = nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")
        return nn.relu(norm(conv(x)))


def _shrink(features: int, name: str) -> ConvBN:
    return ConvBN(features, (3, 3), stride=2, padding="VALID", name=name)


class BlockA(nn.Module):
    """35x35: 1x1, 5x5, two 3x3, pool."""

    pool_features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one = ConvBN(64, name="branch1x1")(x)
        five = ConvBN(48, name="branch5x5_1")(x)
        five = ConvBN(64, (5, 5), name="branch5x5_2")(five)
        three = ConvBN(64, name="branch3x3dbl_1")(x)
        three = ConvBN(96, (3, 3), name="branch3x3dbl_2")(three)
        three = ConvBN(96, (3, 3), name="branch3x3dbl_3")(three)
        pool = ConvBN(self.pool_features, name="branch_pool")(average_pool(x))
        return jnp.concatenate([one, five, three, pool], axis=-1)


class BlockB(nn.Module):
    """35x35 to 17x17."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        single = _shrink(384, "branch3x3")(x)
        double = ConvBN(64, name="branch3x3dbl_1")(x)
        double = ConvBN(96, (3, 3), name="branch3x3dbl_2")(double)
        double = _shrink(96, "branch3x3dbl_3")(double)
        return jnp.concatenate([single, double, shrink_pool(x)], axis=-1)


class BlockC(nn.Module):
    """17x17: 7x7 convolutions as pairs of 1x7 and 7x1."""

    inner: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one = ConvBN(192, name="branch1x1")(x)
        single = ConvBN(self.inner, name="branch7x7_1")(x)
        single = ConvBN(self.inner, (1, 7), name="branch7x7_2")(single)
        single = ConvBN(192, (7, 1), name="branch7x7_3")(single)
        double = ConvBN(self.inner, name="branch7x7dbl_1")(x)
        double = ConvBN(self.inner, (7, 1), name="branch7x7dbl_2")(double)
        double = ConvBN(self.inner, (1, 7), name="branch7x7dbl_3")(double)
        double = ConvBN(self.inner, (7, 1), name="branch7x7dbl_4")(double)
        double = ConvBN(192, (1, 7), name="branch7x7dbl_5")(double)
        pool = ConvBN(192, name="branch_pool")(average_pool(x))
        return jnp.concatenate([one, single, double, pool], axis=-1)


class BlockD(nn.Module):
    """17x17 to 8x8."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = ConvBN(192, name="branch3x3_1")(x)
        three = _shrink(320, "branch3x3_2")(three)
        seven = ConvBN(192, name="branch7x7x3_1")(x)
        seven = ConvBN(192, (1, 7), name="branch7x7x3_2")(seven)
        seven = ConvBN(192, (7, 1), name="branch7x7x3_3")(seven)
        seven = _shrink(192, "branch7x7x3_4")(seven)
        return jnp.concatenate([three, seven, shrink_pool(x)], axis=-1)


class BlockE(nn.Module):
    """8x8, 2048 channels out; `pool` is "average" in the first one, "max" in the last [2nd]."""

    pool: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one = ConvBN(320, name="branch1x1")(x)
        single = ConvBN(384, name="branch3x3_1")(x)
        double = ConvBN(448, name="branch3x3dbl_1")(x)
        double = ConvBN(384, (3, 3), name="branch3x3dbl_2")(double)
        pooled = {"average": average_pool, "max": max_pool}[self.pool](x)
        outputs = [
            one,
            ConvBN(384, (1, 3), name="branch3x3_2a")(single),
            ConvBN(384, (3, 1), name="branch3x3_2b")(single),
            ConvBN(384, (1, 3), name="branch3x3dbl_3a")(double),
            ConvBN(384, (3, 1), name="branch3x3dbl_3b")(double),
            ConvBN(192, name="branch_pool")(pooled),
        ]
        return jnp.concatenate(outputs, axis=-1)


class InceptionV3(nn.Module):
    """The FID's network: 299x299 pictures to 2048 pooled features, and logits if there is `fc`.

    Attributes:
        num_logits: 1008 for the whole graph, 0 to leave the last layer out.
    """

    num_logits: int = NUM_LOGITS

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Runs the network with its stored statistics.

        Args:
            x: float32 [N, 299, 299, 3] from `inception_input`.

        Returns:
            features, float32 [N, 2048], and logits, float32 [N, num_logits] or None.
        """
        x = ConvBN(32, (3, 3), stride=2, padding="VALID", name="Conv2d_1a_3x3")(x)
        x = ConvBN(32, (3, 3), padding="VALID", name="Conv2d_2a_3x3")(x)
        x = shrink_pool(ConvBN(64, (3, 3), name="Conv2d_2b_3x3")(x))
        x = ConvBN(80, name="Conv2d_3b_1x1")(x)
        x = shrink_pool(ConvBN(192, (3, 3), padding="VALID", name="Conv2d_4a_3x3")(x))
        for letter, pool_features in zip("bcd", (32, 64, 64), strict=True):
            x = BlockA(pool_features, name=f"Mixed_5{letter}")(x)
        x = BlockB(name="Mixed_6a")(x)
        for letter, inner in zip("bcde", (128, 160, 160, 192), strict=True):
            x = BlockC(inner, name=f"Mixed_6{letter}")(x)
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE("average", name="Mixed_7b")(x)
        x = BlockE("max", name="Mixed_7c")(x)
        features = jnp.mean(x, axis=(1, 2))
        if not self.num_logits:
            return features, None
        last = nn.Dense(self.num_logits, precision=jax.lax.Precision.HIGHEST, name="fc")
        return features, last(features)
