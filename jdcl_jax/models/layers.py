"""The layers that all networks are built from.

They compute what their textbook forms compute; only the way in which it is written differs.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdcl_jax.models.convolution import conv2d, upsampled_conv2d
from jdcl_jax.models.normalization import Activation, group_norm, identity

Initializer = Callable[..., jax.Array]


class Conv(nn.Module):
    """`conv2d` plus a bias, with parameters `kernel` [k, k, Ci, Co] and `bias` [Co].

    Attributes:
      features: output channels.
      kernel_size: side of the square kernel.
      strides: step between windows.
      padding: zeros on each side, PyTorch's meaning (3x3 with padding 1 keeps the size).
      dtype: dtype of the computation and the result; `None` takes that of input and parameters.
      param_dtype: dtype in which the parameters are kept.
      kernel_init: `nn.initializers.zeros_init()` makes a layer that starts as nothing.
      use_bias: whether a bias is added.
      upsample: doubles height and width first, by nearest neighbours; only for 3x3, strides 1 and padding 1.
      form: "plain" writes the formula down; `None` takes what suits the backend. No other form suits both functions.
    """

    features: int
    kernel_size: int = 3
    strides: int = 1
    padding: int = 1
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    use_bias: bool = True
    upsample: bool = False
    form: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.upsample and (self.kernel_size, self.strides, self.padding) != (3, 1, 1):
            raise ValueError("Conv: upsample goes with kernel_size=3, strides=1 and padding=1 only")
        size = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, size, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        if self.upsample:
            y = upsampled_conv2d(x, kernel, form=self.form)
        else:
            y = conv2d(x, kernel, self.strides, self.padding, form=self.form)
        return y if bias is None else y + jnp.reshape(bias, (1, 1, 1, -1))


class GroupNorm(nn.Module):
    """Group normalisation, optionally followed by an activation in the same pass over memory.

    Statistics, scale and bias are float32 whatever the input is.

    Attributes:
      num_groups: groups, which must divide the channels (the field's usual 32).
      epsilon: added to the variance, PyTorch's 1e-5 (Flax's own layer has 1e-6).
      act: elementwise activation applied to the result, such as `nn.silu`, or `None`.
      dtype: dtype of the result; `None` takes the input's.
      param_dtype: dtype in which `scale` and `bias` are kept.
    """

    num_groups: int = 32
    epsilon: float = 1e-5
    act: Activation | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        if self.num_groups < 1 or channels % self.num_groups:
            raise ValueError(
                f"GroupNorm: {self.num_groups} groups do not divide {channels} channels; "
                + "pass a num_groups that does"
            )
        scale = self.param("scale", nn.initializers.ones_init(), (channels,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,), self.param_dtype)
        scale, bias = scale.astype(jnp.float32), bias.astype(jnp.float32)
        y = group_norm(x, scale, bias, self.num_groups, self.epsilon, self.act or identity)
        return y.astype(x.dtype if self.dtype is None else self.dtype)
