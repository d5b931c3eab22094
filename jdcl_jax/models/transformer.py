"""The block by which a feature map attends to context tokens.

It computes what diffusers' `Transformer2DModel` with one `BasicTransformerBlock` computes, as `UNet2DConditionModel`
builds it: the released network of GPPDM (arXiv 2312.06710) is made of these [code].
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdcl_jax.models.attention import attention
from jdcl_jax.models.layers import GroupNorm
from jdcl_jax.models.product import Dense

WIDENING = 4
"""Hidden units of the feed-forward layers for every channel."""


class TokenAttention(nn.Module):
    """Multi-head attention of tokens to tokens, softmax in float32; only the last of its four layers has a bias.

    Without a bias a token of zeros has key and value zero, and whatever an update of the two kernels leaves alone, it
    leaves alone for every token in a subspace: gradient projection keeps old tokens' keys and values by this.
    """

    heads: int
    dtype: jnp.dtype
    form: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, tokens: jax.Array) -> jax.Array:
        """Queries of x [B, P, C], keys and values of tokens [B, N, D] -> [B, P, C]."""
        batch, pixels, channels = x.shape

        def project(name: str, source: jax.Array) -> jax.Array:
            y = Dense(channels, use_bias=False, dtype=self.dtype, name=name)(source)
            return y.reshape(batch, -1, self.heads, channels // self.heads)

        query, key, value = project("query", x), project("key", tokens), project("value", tokens)
        if tokens.shape[1] == 1:
            # Softmax over one key is 1: query and key have no gradient at all, not the rounding noise that Adam would
            # blow up to full steps.
            out = jnp.broadcast_to(value, query.shape)
        else:
            out = attention(query, key, value, form=self.form)
        return Dense(channels, dtype=self.dtype, name="out")(out.reshape(batch, pixels, channels))


class TransformerBlock(nn.Module):
    """Attention among pixels, attention to the context and a gated feed-forward layer, all with residual connections.

    The norms' eps are diffusers': 1e-6 for the groups, 1e-5 for the layers. Norms and softmax compute in float32.

    Attributes:
      groups: groups of the GroupNorm.
      heads: attention heads, which must divide the channels.
      dtype: compute type of all else.
      form: of the attention; see `attention`.
    """

    groups: int
    heads: int
    dtype: jnp.dtype
    form: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """Feature map [B, h, w, C] and context tokens [B, N, D] -> [B, h, w, C]."""
        batch, height, width, channels = x.shape
        h = GroupNorm(self.groups, epsilon=1e-6, name="norm")(x).reshape(batch, height * width, channels)
        h = self._dense(channels, "proj_in", h)
        y = self._norm("own_norm", h)
        h = h + self._attend("own", y, y)
        h = h + self._attend("cross", self._norm("cross_norm", h), context)
        y = self._dense(2 * WIDENING * channels, "gated", self._norm("gated_norm", h))
        hidden, gate = jnp.split(y, 2, axis=-1)
        h = h + self._dense(channels, "narrow", hidden * nn.gelu(gate, approximate=False))
        return x + self._dense(channels, "proj_out", h).reshape(x.shape)

    def _dense(self, features: int, name: str, x: jax.Array) -> jax.Array:
        return Dense(features, dtype=self.dtype, name=name)(x)

    def _norm(self, name: str, x: jax.Array) -> jax.Array:
        # The fast variance, E[x^2] - E[x]^2, loses all digits where the mean is large against the spread.
        return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=jnp.float32, name=name)(x)

    def _attend(self, name: str, x: jax.Array, tokens: jax.Array) -> jax.Array:
        return TokenAttention(self.heads, self.dtype, self.form, name=name)(x, tokens)
