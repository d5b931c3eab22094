"""What a class gives the denoiser: tokens to attend to, and an image beside x_t.

GPPDM (arXiv 2312.06710): a learnable prototype image of each class joins the denoising process [paper]; it is three
more input channels, and the context is a frozen label embedding through a linear layer [code]. The prototype is also
a second token here: attention to a single one is constant and teaches neither queries nor keys [ours].
"""

from dataclasses import dataclass, field

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jdcl_jax.errors import UserError


@dataclass(frozen=True)
class FixedLabels:
    """Label embeddings that are no parameters, as a value that can be compared and hashed; see `fixed_labels`.

    Attributes:
      shape: [C, W].
      data: the float32 numbers' bytes, whose hash Python computes only once.
    """

    shape: tuple[int, int]
    data: bytes = field(repr=False)

    def array(self) -> np.ndarray:
        """float32 [C, W]."""
        return np.frombuffer(self.data, np.float32).reshape(self.shape)


def fixed_labels(embeddings: np.ndarray) -> FixedLabels:
    """Numbers [C, W] as a `Conditioner`'s `labels_given`.

    Raises:
      UserError: they are no table of finite numbers.
    """
    table = np.asarray(embeddings, np.float32)
    if table.ndim != 2 or not np.isfinite(table).all():
        raise UserError(
            f"label embeddings of shape {list(table.shape)}: pass finite numbers [classes, width], a row a class"
        )
    return FixedLabels((table.shape[0], table.shape[1]), table.tobytes())


class Conditioner(nn.Module):
    """Classes to context tokens, and to prototype images beside x_t.

    Every way from a class to a token is linear and has no bias, so that the tokens of old classes stay exactly what
    they were if updates are projected, and "no class" is all zeros: without a bias W_K and W_V make zeros of it too,
    and there is nothing to forget [ours].

    Parameters are "labels" [C, W] unless given, "label" (W -> D), "prototypes" float32 [C, H, W, ch], zeros at first
    and then begun in [-1, 1], and "prototype" (pixels -> D). The label embeddings begin as N(0, 1): then a token's
    entries have variance 1, as the layers' initial weights that read them expect [ours].

    Attributes:
      num_classes: C; labels are 0..C-1, and the label C means "no class".
      width: D of the tokens.
      label_width: W of the label embeddings.
      labels_given: the embeddings if they are fixed; None if they are learned.
      prototypes: whether each class has a prototype image, for one or both of the following.
      image_channels: the prototype is more channels of the network's input.
      token: the prototype is a second token.
      pooled: side to which a prototype is average-pooled before it becomes a token; smaller ones stay as they are.
      dtype: compute type of the tokens. Parameters and the network's input stay float32.
    """

    num_classes: int
    width: int
    label_width: int
    labels_given: FixedLabels | None = None
    prototypes: bool = False
    image_channels: bool = False
    token: bool = False
    pooled: int = 8
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_t: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What the network reads for its classes.

        Args:
          x_t: float [B, H, W, ch].
          labels: int [B], 0..C.

        Returns: the network's input [B, H, W, ch or 2 ch], x_t first, and the context [B, 1 or 2, D], label first.

        Raises:
          ValueError: prototypes without a use or uses without prototypes, or embeddings of another shape.
          UserError: images that cannot be pooled to `pooled` pixels a side.
        """
        if self.prototypes != (self.image_channels or self.token):
            raise ValueError("prototypes go with image_channels or token, and only with them")
        tokens = [self._dense("label", self._rows(self._label_table(), labels))]
        if not self.prototypes:
            return x_t, jnp.stack(tokens, axis=1)
        shape = (self.num_classes, *x_t.shape[1:])
        prototype = self._rows(self.param("prototypes", nn.initializers.zeros, shape), labels)
        if self.token:
            small = average_pool(prototype, self.pooled)
            tokens.append(self._dense("prototype", small.reshape(len(small), -1)))
        network_input = jnp.concatenate([x_t, prototype], axis=-1) if self.image_channels else x_t
        return network_input, jnp.stack(tokens, axis=1)

    def _label_table(self) -> jax.Array:
        shape = (self.num_classes, self.label_width)
        if self.labels_given is None:
            return self.param("labels", nn.initializers.normal(1.0), shape)
        if self.labels_given.shape != shape:
            raise ValueError(f"labels_given are {self.labels_given.shape}, num_classes and label_width {shape}")
        return jnp.asarray(self.labels_given.array())

    def _rows(self, table: jax.Array, labels: jax.Array) -> jax.Array:
        """The table's rows, zeros for "no class"."""
        return jnp.take(table, labels, axis=0, mode="fill", fill_value=0)

    def _dense(self, name: str, x: jax.Array) -> jax.Array:
        return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name=name)(x)


def average_pool(images: jax.Array, side: int) -> jax.Array:
    """Means over equal squares, so that no side is longer than `side`: [B, H, W, ch] -> [B, h, w, ch].

    Raises:
      UserError: a longer side is no multiple of `side`.
    """
    batch, height, width, channels = images.shape
    rows, columns = (max(1, length // side) if side > 0 else 0 for length in (height, width))
    for length, factor in ((height, rows), (width, columns)):
        if length > side and length != side * factor:
            raise UserError(
                f"a prototype of {height}x{width} pixels cannot be pooled to {side} a side: write a divisor of {length}"
            )
    squares = images.reshape(batch, height // rows, rows, width // columns, columns, channels)
    return jnp.mean(squares, axis=(2, 4))
