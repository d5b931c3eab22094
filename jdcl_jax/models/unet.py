"""The denoiser: one UNet for every configuration of the papers.

Shapes and order of the layers are those of the DDPM UNet as diffusers' `UNet2DModel` builds it, so that the two
networks of Generative Distillation (arXiv 2311.14028) [code] have exactly their published sizes: 42,855,873
parameters for Fashion-MNIST and 35,746,307 for CIFAR-10. With a context they are those of `UNet2DConditionModel`, like
the released network of GPPDM (arXiv 2312.06710) [code].
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdcl_jax.models.attention import attention
from jdcl_jax.models.layers import Conv, GroupNorm
from jdcl_jax.models.normalization import silu
from jdcl_jax.models.product import Dense
from jdcl_jax.models.transformer import TransformerBlock

Features = tuple[jax.Array, ...]
"""The output of every encoder layer, in order, and last that of the middle block; [B, h, w, c] each."""

Edit = Callable[[Features], Features]


def timestep_embedding(t: jax.Array, width: int) -> jax.Array:
    """Sinusoids of the timesteps, cosines first: [B] -> float32 [B, width], periods from 2 pi to 20,000 pi."""
    half = width // 2
    frequencies = jnp.exp(-math.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def example_dropout(x: jax.Array, rate: float, keys: jax.Array) -> jax.Array:
    """Drops entries of x [B, ...] with one key per example, so the mask is the same on any number of devices."""
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


class ResBlock(nn.Module):
    """GroupNorm-SiLU-Conv twice, the timestep embedding in between, and a residual connection."""

    features: int
    groups: int
    scale_shift: bool
    dropout: float
    dtype: jnp.dtype
    form: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array, keys: jax.Array | None) -> jax.Array:
        h = GroupNorm(self.groups, act=silu, name="norm1")(x)
        h = Conv(self.features, form=self.form, dtype=self.dtype, name="conv1")(h)
        width = self.features * (2 if self.scale_shift else 1)
        emb = Dense(width, dtype=self.dtype, name="time")(nn.silu(emb))[:, None, None, :]
        if self.scale_shift:
            scale, shift = jnp.split(emb, 2, axis=-1)
            h = silu(GroupNorm(self.groups, name="norm2")(h) * (1 + scale) + shift)
        else:
            h = GroupNorm(self.groups, act=silu, name="norm2")(h + emb)
        if keys is not None and self.dropout > 0:
            h = example_dropout(h, self.dropout, keys)
        h = Conv(self.features, form=self.form, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = Conv(self.features, kernel_size=1, padding=0, form=self.form, dtype=self.dtype, name="shortcut")(x)
        return x + h


class SelfAttention(nn.Module):
    """Multi-head attention over all pixels of a feature map, with a residual connection; softmax in float32."""

    groups: int
    heads: int
    dtype: jnp.dtype
    form: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        h = GroupNorm(self.groups, name="norm")(x).reshape(batch, height * width, channels)

        def project(name: str, *, use_bias: bool = True) -> jax.Array:
            y = Dense(channels, use_bias=use_bias, dtype=self.dtype, name=name)(h)
            return y.reshape(batch, height * width, self.heads, channels // self.heads)

        # Softmax does not depend on the keys' bias, so its gradient is rounding noise, which Adam would blow up to full
        # steps, different ones on each machine. It is kept for published sizes and weights, but not trained.
        key_bias = jax.lax.stop_gradient(self.param("key_bias", nn.initializers.zeros, (channels,)))
        query, value = project("query"), project("value")
        key = project("key", use_bias=False) + key_bias.astype(self.dtype).reshape(self.heads, -1)
        out = attention(query, key, value, form=self.form)
        out = Dense(channels, dtype=self.dtype, name="out")(out.reshape(h.shape))
        return x + out.reshape(x.shape)


class Given(NamedTuple):
    """What an image is denoised for besides its timestep: labels int [B], tokens [B, N, D]."""

    labels: jax.Array | None
    context: jax.Array | None


class UNet(nn.Module):
    """A DDPM UNet: noisy images and timesteps in, a prediction of the images' shape out.

    Attributes:
      out_channels: channels of the image.
      channels: feature channels of each level; the resolution halves between two levels.
      layers_per_block: residual blocks of a level (one more on the way up).
      attention_resolutions: feature-map heights at which every residual block is followed by self-attention. The
        middle block always has it.
      head_channels: channels of one attention head; 0 with `heads` set takes a fixed number of heads instead.
      heads: number of attention heads where `head_channels` is 0.
      groups: groups of every GroupNorm (eps 1e-5).
      scale_shift: the timestep scales and shifts the second norm instead of being added before it.
      dropout: rate in the residual blocks; active only when `keys` is given.
      num_classes: 0 for an unconditional network; else labels 0..num_classes-1, and the label num_classes means
        "no class" (classifier-free guidance).
      context_resolutions: feature-map heights at which every residual block is followed by a transformer block, which
        attends to the context's tokens, and not by self-attention. The middle block has one too if there are any.
      form: "plain" writes convolutions and attention down as formulas; None takes what suits the backend. No other.
      dtype: compute type. Parameters, norm statistics, softmax and the output stay float32.
    """

    out_channels: int
    channels: tuple[int, ...]
    layers_per_block: int = 2
    attention_resolutions: tuple[int, ...] = ()
    head_channels: int = 8
    heads: int = 0
    groups: int = 32
    scale_shift: bool = False
    dropout: float = 0.0
    num_classes: int = 0
    dtype: jnp.dtype = jnp.float32
    form: str | None = None
    context_resolutions: tuple[int, ...] = ()

    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        labels: jax.Array | None = None,
        keys: jax.Array | None = None,
        edit: Edit | None = None,
        context: jax.Array | None = None,
    ) -> jax.Array:
        """Predicts eps, x_0 or v from x_t.

        Args:
          x: float [B, H, W, C], the noisy image x_t; H and W divisible by 2**(levels - 1).
          t: int [B], timesteps 0..T-1.
          labels: int [B], needed exactly if `num_classes` > 0.
          keys: PRNG keys [B], one per example, for dropout; None (the default) turns dropout off.
          edit: changes what the decoder sees of the encoder's and the middle block's features.
          context: float [B, N, D], tokens to attend to, needed exactly if there are `context_resolutions`.

        Returns: float32 [B, H, W, out_channels].
        """
        (out,) = self._layers(x, t, Given(labels, context), keys, edit or (lambda features: features))
        return out

    def features(
        self,
        x: jax.Array,
        t: jax.Array,
        labels: jax.Array | None = None,
        keys: jax.Array | None = None,
        context: jax.Array | None = None,
    ) -> Features:
        """What encoder and middle block make of x_t; no decoder is run. Arguments as of a call."""
        return self._layers(x, t, Given(labels, context), keys, None)

    @nn.compact
    def _layers(
        self, x: jax.Array, t: jax.Array, given: Given, keys: jax.Array | None, edit: Edit | None
    ) -> tuple[jax.Array, ...]:
        """The features, or where there is an `edit`, the output alone."""
        if (given.context is not None) != bool(self.context_resolutions):
            raise ValueError("a context goes with context_resolutions, and only with them")
        emb, layer_keys = self._embed(t, given.labels), _LayerKeys(keys)
        features = self._encode(x, emb, layer_keys, given.context)
        if edit is None:
            return features
        *skips, h = edit(features)
        h = self._up(h, skips, emb, layer_keys, given.context)
        h = GroupNorm(self.groups, act=silu, name="norm_out")(h)
        out = Conv(self.out_channels, form=self.form, dtype=self.dtype, name="conv_out")(h)
        return (out.astype(jnp.float32),)

    def _embed(self, t: jax.Array, labels: jax.Array | None) -> jax.Array:
        if (labels is not None) != (self.num_classes > 0):
            raise ValueError("labels go with num_classes > 0, and only with it")
        width = 4 * self.channels[0]
        emb = timestep_embedding(t, self.channels[0]).astype(self.dtype)
        emb = Dense(width, dtype=self.dtype, name="time1")(emb)
        emb = Dense(width, dtype=self.dtype, name="time2")(nn.silu(emb))
        if labels is not None:
            emb = emb + nn.Embed(self.num_classes + 1, width, dtype=self.dtype, name="classes")(labels)
        return emb

    def _res(self, features: int, name: str) -> ResBlock:
        return ResBlock(features, self.groups, self.scale_shift, self.dropout, self.dtype, self.form, name=name)

    def _attend(self, h: jax.Array, context: jax.Array | None, side: str, block: int | None = None) -> jax.Array:
        """`h` after the attention that its height asks for, if any; the middle block always has one."""
        middle, number = block is None, "" if block is None else block
        heads = h.shape[-1] // self.head_channels if self.head_channels else self.heads
        if context is not None and (middle or h.shape[1] in self.context_resolutions):
            name = f"{side}_transformer{number}"
            return TransformerBlock(self.groups, heads, self.dtype, self.form, name=name)(h, context)
        if middle or h.shape[1] in self.attention_resolutions:
            return SelfAttention(self.groups, heads, self.dtype, self.form, name=f"{side}_attention{number}")(h)
        return h

    def _encode(self, x: jax.Array, emb: jax.Array, keys: "_LayerKeys", context: jax.Array | None) -> Features:
        h = Conv(self.channels[0], form=self.form, dtype=self.dtype, name="conv_in")(x.astype(self.dtype))
        outputs = self._down(h, emb, keys, context)
        h = self._res(self.channels[-1], "mid_res1")(outputs[-1], emb, keys.next())
        h = self._attend(h, context, "mid")
        return (*outputs, self._res(self.channels[-1], "mid_res2")(h, emb, keys.next()))

    def _down(self, h: jax.Array, emb: jax.Array, keys: "_LayerKeys", context: jax.Array | None) -> list[jax.Array]:
        outputs = [h]
        for level, features in enumerate(self.channels):
            for block in range(self.layers_per_block):
                h = self._res(features, f"down{level}_res{block}")(h, emb, keys.next())
                h = self._attend(h, context, f"down{level}", block)
                outputs.append(h)
            if level < len(self.channels) - 1:
                h = Conv(features, strides=2, form=self.form, dtype=self.dtype, name=f"down{level}_sample")(h)
                outputs.append(h)
        return outputs

    def _up(
        self, h: jax.Array, skips: list[jax.Array], emb: jax.Array, keys: "_LayerKeys", context: jax.Array | None
    ) -> jax.Array:
        for level in reversed(range(len(self.channels))):
            for block in range(self.layers_per_block + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._res(self.channels[level], f"up{level}_res{block}")(h, emb, keys.next())
                h = self._attend(h, context, f"up{level}", block)
            if level > 0:
                name = f"up{level}_sample"
                h = Conv(self.channels[level], upsample=True, form=self.form, dtype=self.dtype, name=name)(h)
        return h


class _LayerKeys:
    """Hands each dropout layer its own key per example, named by the layer's position."""

    def __init__(self, keys: jax.Array | None):
        self._keys = keys
        self._layer = 0

    def next(self) -> jax.Array | None:
        if self._keys is None:
            return None
        layer = self._layer
        self._layer += 1
        return jax.vmap(lambda key: jax.random.fold_in(key, layer))(self._keys)
