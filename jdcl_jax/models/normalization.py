"""Group normalisation and the activation behind it, in two passes over memory each way."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

Activation = Callable[[jax.Array], jax.Array]


@jax.custom_jvp
def silu(x: jax.Array) -> jax.Array:
    """`jax.nn.silu`, x sigmoid(x), written so that it ends in a division.

    XLA repeats cheap operations in every consumer of their result, expensive ones never. In the
    usual form the last operation is a product, so the gradients' transpositions would each compute
    normalisation and activation again, element by element: on CPU a third of a train step.
    """
    return x / (1 + jnp.exp(-x))


@silu.defjvp
def _silu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    denominator = 1 + jnp.exp(-x)
    sigmoid = 1 / denominator
    y = x * sigmoid
    return x / denominator, dx * (sigmoid + y - y * sigmoid)


def identity(x: jax.Array) -> jax.Array:
    """No activation."""
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def group_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    num_groups: int,
    epsilon: float,
    act: Activation = identity,
) -> jax.Array:
    """`act(normalised x * scale + bias)`, over space and the channels of each group.

    Args:
      x: [N, ..., C].
      scale: float32 [C].
      bias: float32 [C].
      num_groups: groups of C / num_groups channels.
      epsilon: added to the variance.
      act: an elementwise function, differentiable by JAX.

    Returns:
      float32 [N, ..., C]. Like `conv2d`'s canonical form it has no forward-mode derivative.
    """
    return _group_norm_forward(x, scale, bias, num_groups, epsilon, act)[0]


def _group_norm_forward(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    num_groups: int,
    epsilon: float,
    act: Activation,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    mean, inverse = _statistics(_flat(x), num_groups, epsilon)
    # Subtracting first keeps the digits that x * a + (bias - mean * a) loses to a large mean.
    y = act((_flat(x) - mean) * (inverse * scale) + bias)
    return jnp.reshape(y, x.shape), (x, scale, bias, mean, inverse)


# Stated by hand because it keeps nothing but x, and reads x and dy only twice. The sums are over
# plain products of arrays in memory: XLA:CPU would write anything else down first, and read it again.
# A mean of 1000 deviations costs dx digits (2e-4 on 64x64 pixels), as it does in PyTorch's form.
def _group_norm_backward(
    num_groups: int,
    epsilon: float,
    act: Activation,
    residuals: tuple[jax.Array, ...],
    dy: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    del epsilon
    # Behind the barrier normalisation and activation are computed anew. Without it XLA keeps the forward pass's
    # exponentials for here, and moving them through memory costs more.
    x, scale, bias, mean, inverse = lax.optimization_barrier(residuals)
    pixels, slope = _flat(x), inverse * scale
    (dz,) = jax.vjp(act, (pixels - mean) * slope + bias)[1](_flat(dy))
    sums = jnp.sum(dz, axis=1)
    products = jnp.sum(dz * pixels, axis=1) - mean[:, 0] * sums

    def group_mean(per_channel: jax.Array) -> jax.Array:
        per_channel = per_channel * slope[:, 0] / pixels.shape[1]
        return _spread(jnp.mean(_grouped(per_channel, num_groups), axis=2, keepdims=True), x)

    dvariance = jnp.square(inverse) * group_mean(products)
    dx = slope * dz - group_mean(sums) - (pixels - mean) * dvariance
    dscale = jnp.sum(products * inverse[:, 0], axis=0)
    return jnp.reshape(dx, x.shape).astype(x.dtype), dscale, jnp.sum(sums, axis=0)


group_norm.defvjp(_group_norm_forward, _group_norm_backward)


def _statistics(x: jax.Array, num_groups: int, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """Mean and 1 / sqrt(variance + epsilon) of x's group, for every channel: both [N, 1, C].

    Only two sums per channel read the pixels, the rest happens on arrays of the size [N, C]. The
    squares are taken about one pixel of each channel, so that a mean that is large against the
    spread does not cancel the variance away: E[x^2] - E[x]^2 is off by 2e-4 at a mean of 10
    deviations, by 2e-2 at 100, and has no right digit at 1000; this is off by 3e-4 at 1000 on 64x64
    pixels [ours, measured].
    """
    reference = x[:, :1]
    channel_mean = jnp.mean(x, axis=1)
    within = jnp.mean(jnp.square(x - reference), axis=1) - jnp.square(channel_mean - reference[:, 0])
    channel_mean = _grouped(channel_mean, num_groups)
    mean = jnp.mean(channel_mean, axis=2, keepdims=True)
    # The variance of a group is the mean variance of its channels plus the variance of their means.
    spread = _grouped(within, num_groups) + jnp.square(channel_mean - mean)
    variance = jnp.maximum(jnp.mean(spread, axis=2, keepdims=True), 0.0)
    return _spread(mean, x), _spread(lax.rsqrt(variance + epsilon), x)


def _flat(x: jax.Array) -> jax.Array:
    """[N, ..., C] -> float32 [N, pixels, C]."""
    return jnp.reshape(x, (x.shape[0], -1, x.shape[-1])).astype(jnp.float32)


def _grouped(x: jax.Array, num_groups: int) -> jax.Array:
    """[N, C] -> [N, groups, C / groups]."""
    return jnp.reshape(x, (x.shape[0], num_groups, -1))


def _spread(per_group: jax.Array, x: jax.Array) -> jax.Array:
    """[N, groups, 1] -> [N, 1, C], the channels of `x`."""
    batch, groups, channels = *per_group.shape[:2], x.shape[-1]
    per_channel = jnp.broadcast_to(per_group, (batch, groups, channels // groups))
    return jnp.reshape(per_channel, (batch, 1, channels))
