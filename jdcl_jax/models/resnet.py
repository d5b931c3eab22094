"""Discriminative classifiers: CIFAR-style residual networks, and a small CNN for small images.

All are called with images float [B, H, W, C] in [-1, 1] and return logits float32 [B, num_classes], one for every class
of the data set from the start: which of them compete is a mask (see `masked`), and no array changes its shape.

Where the papers have batch norm these have group norm [ours]. A prediction then depends on its own image alone: not on
the rest of the batch, on how many devices share it, or on the mixture of real and replayed images, and parameters are
the whole network. Scale and bias count the same, so that the networks have their well-known sizes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdcl_jax.models.layers import Conv, GroupNorm
from jdcl_jax.models.normalization import group_norm

CLASSIFIERS = ("resnet18", "resnet32", "cnn")

# Up to this many pixels a side, the first stage of the small CNN keeps the resolution.
_SMALL_IMAGE = 16


def masked(logits: jax.Array, seen: jax.Array) -> jax.Array:
    """Logits among which only the classes seen so far compete: minus infinity for all others.

    The softmax of the result is that of a head with the seen classes' rows alone, and the rows of the others get a
    gradient of exactly zero. Take cross-entropy with integer labels, not with one-hot ones: 0 times infinity is NaN.

    Args:
      logits: float [B, C].
      seen: bool [C], at least one of them; a label that is not among them has an infinite cross-entropy.

    Returns:
      [B, C], of the dtype of `logits`.
    """
    return jnp.where(seen, logits, -jnp.inf)


def shortcut_without_parameters(x: jax.Array, features: int, strides: int) -> jax.Array:
    """Option A of arXiv 1512.03385: every `strides`-th pixel, and channels of zeros behind those there are.

    Args:
      x: [B, H, W, C].
      features: channels of the result, at least C.
      strides: step between the pixels that are kept, the first row and column among them.

    Returns:
      [B, ceil(H / strides), ceil(W / strides), features].
    """
    kept = x[:, ::strides, ::strides]
    return jnp.pad(kept, ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))


class ClosedNorm(nn.Module):
    """`GroupNorm` that begins as nothing: its scale is zero at first, as its bias is."""

    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.zeros_init(), (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))
        return group_norm(x, scale, bias, self.groups, 1e-5).astype(x.dtype)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with norm and ReLU, the second ReLU behind the sum with the shortcut (arXiv 1512.03385).

    Where the shortcut is the identity, the last norm's scale begins at zero (arXiv 1706.02677), so that the block
    begins as its shortcut. With ones everywhere the loss of ResNet-32 on digits rose sixfold in the first steps of SGD
    with momentum at the usual rate of .1; so it falls at once [ours, measured].

    Attributes:
      features: output channels.
      strides: of the first convolution and the shortcut.
      groups: of every norm.
      projection: where the shape changes, the shortcut is a 1x1 convolution and a norm (option B); else option A.
      dtype: of the computation.
      form: of the convolutions; see `Conv`.
    """

    features: int
    strides: int
    groups: int
    projection: bool
    dtype: jnp.dtype
    form: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = _conv(self.features, self.dtype, self.form, "conv1", strides=self.strides)(x)
        h = GroupNorm(self.groups, act=nn.relu, name="norm1")(h)
        h = _conv(self.features, self.dtype, self.form, "conv2")(h)
        if h.shape == x.shape:
            return nn.relu(x + ClosedNorm(self.groups, name="norm2")(h))
        # Other shortcuts have channels without a positive pixel, such as zeros alone. There a zero scale would not
        # move, as ReLU passes no gradient.
        return nn.relu(self._shortcut(x) + GroupNorm(self.groups, name="norm2")(h))

    def _shortcut(self, x: jax.Array) -> jax.Array:
        if not self.projection:
            return shortcut_without_parameters(x, self.features, self.strides)
        x = _conv(self.features, self.dtype, self.form, "shortcut", strides=self.strides, kernel_size=1)(x)
        return GroupNorm(self.groups, name="shortcut_norm")(x)


class ResNet(nn.Module):
    """A residual network for small images: 3x3 stem without pooling, stages of basic blocks, the mean over all pixels.

    The resolution halves, rounded up, at the first block of every stage but the first. The mean, the last layer and the
    logits are float32.

    Attributes:
      num_classes: number of logits.
      widths: channels of each stage.
      blocks: basic blocks of each stage.
      groups: of every norm; they divide all widths.
      projection: shortcuts between stages have parameters, see `BasicBlock`.
      dtype: of the computation; parameters and norm statistics stay float32.
      form: "plain" writes convolutions down as formulas; None takes what suits the backend. No other.
    """

    num_classes: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    groups: int
    projection: bool
    dtype: jnp.dtype = jnp.float32
    form: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Images float [B, H, W, C] in [-1, 1] -> logits float32 [B, num_classes]."""
        h = _conv(self.widths[0], self.dtype, self.form, "stem")(images.astype(self.dtype))
        h = GroupNorm(self.groups, act=nn.relu, name="stem_norm")(h)
        for stage, (features, blocks) in enumerate(zip(self.widths, self.blocks, strict=True)):
            for block in range(blocks):
                strides = 2 if stage > 0 and block == 0 else 1
                name = f"stage{stage}_block{block}"
                h = BasicBlock(features, strides, self.groups, self.projection, self.dtype, self.form, name=name)(h)
        return _logits(self.num_classes, h)


class SmallCNN(nn.Module):
    """A plain CNN for 8x8 digits and 28x28 images [ours]: 3x3 convolutions with norm and ReLU, and a mean over pixels.

    One convolution per entry of `widths`. Each halves the image, except that the first keeps one of up to 16 pixels a
    side as it is. Unlike `ImageClassifier` it is made of layers whose gradients are fast inside a scan on every
    backend, and it computes in a chosen dtype.

    Attributes:
      num_classes: number of logits.
      widths: channels of each convolution.
      groups: of every norm; they divide all widths.
      dtype: of the computation; parameters, norm statistics, the mean and the last layer stay float32.
      form: as of `ResNet`.
    """

    num_classes: int
    widths: tuple[int, ...] = (32, 64, 128)
    groups: int = 8
    dtype: jnp.dtype = jnp.float32
    form: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Images float [B, H, W, C] in [-1, 1] -> logits float32 [B, num_classes]."""
        small = max(images.shape[1:3]) <= _SMALL_IMAGE
        h = images.astype(self.dtype)
        for stage, features in enumerate(self.widths):
            strides = 1 if small and stage == 0 else 2
            h = _conv(features, self.dtype, self.form, f"stage{stage}", strides=strides)(h)
            h = GroupNorm(self.groups, act=nn.relu, name=f"stage{stage}_norm")(h)
        return _logits(self.num_classes, h)


def make_classifier(name: str, num_classes: int, dtype: jnp.dtype = jnp.float32) -> ResNet | SmallCNN:
    """A classifier by its name.

    - "resnet18": widths 64 to 512, two blocks each, projections as shortcuts; 11,173,962 parameters for 3 channels and
      10 classes, as the ResNet-18 that is usual for CIFAR.
    - "resnet32": section 4.2 of arXiv 1512.03385, widths 16, 32 and 64, five blocks each, shortcuts without parameters;
      464,154 parameters for the same.
    - "cnn": `SmallCNN`.

    Args:
      name: one of `CLASSIFIERS`.
      num_classes: of the whole data set.
      dtype: of the computation.

    Raises:
      ValueError: an unknown name.
    """
    if name == "resnet18":
        return ResNet(num_classes, (64, 128, 256, 512), (2, 2, 2, 2), groups=32, projection=True, dtype=dtype)
    if name == "resnet32":
        # Eight groups, for the 16 channels of the first stage [ours].
        return ResNet(num_classes, (16, 32, 64), (5, 5, 5), groups=8, projection=False, dtype=dtype)
    if name == "cnn":
        return SmallCNN(num_classes, dtype=dtype)
    raise ValueError(f"make_classifier knows {', '.join(CLASSIFIERS)}, not {name!r}")


def _conv(
    features: int, dtype: jnp.dtype, form: str | None, name: str, *, strides: int = 1, kernel_size: int = 3
) -> Conv:
    """Without bias, which the norm behind it would take away; He initialisation (arXiv 1502.01852)."""
    return Conv(
        features,
        kernel_size=kernel_size,
        strides=strides,
        padding=kernel_size // 2,
        use_bias=False,
        kernel_init=nn.initializers.he_normal(),
        form=form,
        dtype=dtype,
        name=name,
    )


def _logits(num_classes: int, h: jax.Array) -> jax.Array:
    """Mean over all pixels and one dense layer, in float32: [B, h, w, F] -> [B, num_classes]."""
    pooled = jnp.mean(h.astype(jnp.float32), axis=(1, 2))
    return nn.Dense(num_classes, name="logits")(pooled)
