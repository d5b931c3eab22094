"""One network that generates and classifies: a UNet, and a classifier on its pooled features.

Arrays are all in one tree. Of a UNet alone it is the UNet's own; else {"unet": ...} and beside it "conditioner", what
makes tokens and images of labels, "head", the classifier's, and with a separate classifier "encoder", which has the
shapes of the UNet's encoder and middle block and shares nothing with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdcl_jax.keys import fold_name, subkeys
from jdcl_jax.models.conditioner import Conditioner
from jdcl_jax.models.unet import Features, UNet, example_dropout

KINDS = ("none", "joint", "separate")

Params = Any


def pool(features: Sequence[jax.Array]) -> jax.Array:
    """The mean of every feature map over its pixels, all in a row: float32 [B, F] (arXiv 2411.08224 [code])."""
    return jnp.concatenate([jnp.mean(h.astype(jnp.float32), axis=(1, 2)) for h in features], axis=-1)


class ClassHead(nn.Module):
    """Linear, LeakyReLU (.2), dropout, Linear (arXiv 2411.08224 [code]); computes in float32.

    Attributes:
      num_classes: C, one logit for every class of the data set; no task has a mask or a head of its own.
      hidden: width of the first layer.
      dropout: rate; active only when `keys` is given.
    """

    num_classes: int
    hidden: int = 1024
    dropout: float = 0.1

    @nn.compact
    def __call__(self, pooled: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Pooled features [B, F] -> logits float32 [B, C]; `keys` [B], one per example."""
        h = nn.leaky_relu(nn.Dense(self.hidden, name="hidden")(pooled), 0.2)
        if keys is not None and self.dropout > 0:
            h = example_dropout(h, self.dropout, keys)
        return nn.Dense(self.num_classes, name="logits")(h)


@dataclass(frozen=True)
class JointNetwork:
    """Pure functions of (params, arrays); it holds no arrays itself.

    Attributes:
      unet: the denoiser.
      head: the classifier's, or None where there is none.
      separate: the classifier has an encoder of its own, so that only the head's input differs from a joint one.
      conditioner: gives a UNet with `context_resolutions`, and without classes of its own, what it is to be told of
        labels; None where labels go to the UNet itself.
    """

    unet: UNet
    head: ClassHead | None = None
    separate: bool = False
    conditioner: Conditioner | None = None

    @property
    def num_classes(self) -> int:
        """Classes that the denoiser is conditioned on, 0 if on none; as a label it means "no class"."""
        return self.unet.num_classes if self.conditioner is None else self.conditioner.num_classes

    def init(self, key: jax.Array, image_shape: tuple[int, ...]) -> Params:
        """Parameters before any training; the UNet's are the same with and without a classifier."""
        params, (x, t), given = self._begin(key, image_shape)
        params["unet"] = self.unet.init(key, x, t, **given)["params"]
        if self.head is not None:
            pooled = jnp.zeros((1, self.num_features(image_shape)))
            params["head"] = self.head.init(fold_name(key, "head"), pooled)["params"]
            if self.separate:
                own = self.unet.init(fold_name(key, "encoder"), x, t, **given, method=UNet.features)
                params["encoder"] = own["params"]
        return params["unet"] if set(params) == {"unet"} else params

    def num_features(self, image_shape: tuple[int, ...]) -> int:
        """F, how many pooled features there are: 3,712 of the CIFAR network."""

        def features() -> Any:
            key = jax.random.key(0)
            _, (x, t), given = self._begin(key, image_shape)
            return self.unet.init_with_output(key, x, t, **given, method=UNet.features)[0]

        return sum(h.shape[-1] for h in jax.eval_shape(features))

    def denoise(
        self, params: Params, x_t: jax.Array, t: jax.Array, labels: jax.Array | None, keys: jax.Array | None
    ) -> jax.Array:
        """The denoiser's output, float32 [B, H, W, C]; see `UNet`. Labels int [B] exactly if there are classes."""
        x, given = self._given(params, x_t, labels)
        return jnp.asarray(self.unet.apply({"params": self._unet(params)}, x, t, keys=keys, **given))

    def pooled(self, params: Params, images: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """The denoiser's own pooled features of clean images [B, H, W, C] in [-1, 1] at t = 0, float32 [B, F]."""
        return self._pooled(params, self._unet(params), images, keys)

    def classify(self, params: Params, images: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Logits float32 [B, C] of clean images [B, H, W, C] in [-1, 1], by the encoder alone.

        Args:
          params: the network's.
          images: clean; the timestep is 0.
          keys: [B], one per example, for dropout; None: no dropout.
        """
        assert self.head is not None, "this network has no classifier"
        encoder = params["encoder"] if self.separate else params["unet"]
        pooled = self._pooled(params, encoder, images, keys)
        last = None if keys is None else subkeys(keys, "head")
        return jnp.asarray(self.head.apply({"params": params["head"]}, pooled, last))

    def denoise_towards(
        self, params: Params, x_t: jax.Array, t: jax.Array, classes: jax.Array, scale: float
    ) -> jax.Array:
        """The denoiser's output after its features moved up the gradient of log p(class), float32 [B, H, W, C].

        All features h that the classifier pools become h + scale * d log p(y | h) / dh before the decoder reads them
        (joint diffusion models, arXiv 2301.13622 [code]). All pixels of a map move alike, as its mean is what is read.

        Args:
          params: the network's, with a classifier that is not separate.
          x_t: [B, H, W, C].
          t: int [B].
          classes: int [B], 0..C-1.
          scale: of the gradient; 0 changes nothing.
        """
        assert self.head is not None
        assert not self.separate, "a separate classifier does not read the denoiser's features"
        head = self.head

        def log_likelihood(features: Features) -> jax.Array:
            log_p = jax.nn.log_softmax(jnp.asarray(head.apply({"params": params["head"]}, pool(features))))
            return jnp.sum(jnp.take_along_axis(log_p, classes[:, None], axis=1))

        def edit(features: Features) -> Features:
            gradient = jax.grad(log_likelihood)(features)
            return tuple(h + jnp.asarray(scale, h.dtype) * slope for h, slope in zip(features, gradient, strict=True))

        return jnp.asarray(self.unet.apply({"params": params["unet"]}, x_t, t, None, None, edit))

    def _unet(self, params: Params) -> Params:
        return params if self.head is None and self.conditioner is None else params["unet"]

    def _no_class(self, batch: int) -> jax.Array | None:
        return jnp.full(batch, self.num_classes, jnp.int32) if self.num_classes else None

    def _begin(
        self, key: jax.Array, image_shape: tuple[int, ...]
    ) -> tuple[dict[str, Params], tuple[jax.Array, jax.Array], dict[str, Any]]:
        """The conditioner's parameters, if any, and what the UNet reads of one image without a class: (x, t), more."""
        images, t = jnp.zeros((1, *image_shape)), jnp.zeros((1,), jnp.int32)
        params: dict[str, Params] = {}
        if self.conditioner is not None:
            params["conditioner"] = self.conditioner.init(fold_name(key, "conditioner"), images, t)["params"]
        x, given = self._given(params, images, self._no_class(1))
        return params, (x, t), given

    def _given(self, params: Params, x_t: jax.Array, labels: jax.Array | None) -> tuple[jax.Array, dict[str, Any]]:
        """What the UNet reads in the place of x_t, and as what further argument it is told of the labels."""
        if self.conditioner is None:
            return x_t, {"labels": labels}
        if labels is None:
            raise ValueError("a network with a conditioner needs labels")
        x, context = self.conditioner.apply({"params": params["conditioner"]}, x_t, labels)
        return jnp.asarray(x), {"context": context}

    def _pooled(self, params: Params, encoder: Params, images: jax.Array, keys: jax.Array | None) -> jax.Array:
        x, given = self._given(params, images, self._no_class(len(images)))
        t = jnp.zeros(len(images), jnp.int32)
        features: Any = self.unet.apply({"params": encoder}, x, t, keys=keys, **given, method=UNet.features)
        return pool(features)
