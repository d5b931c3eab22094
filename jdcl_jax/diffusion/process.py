"""The forward process, its posterior, and what the network's output means.

Notation: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, images in [-1, 1], t = 0..T-1.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jdcl_jax.diffusion.schedule import Schedule

PREDICTIONS = ("eps", "x0", "v")

# At alpha_bar = 0 an eps-prediction says nothing about x_0; the division stays finite with this floor and the clipping
# of x_0 does the rest (arXiv 2311.14028 [code]).
SMALLEST_ALPHA_BAR = 1e-8


def signal_to_noise(schedule: Schedule) -> np.ndarray:
    """alpha_bar / (1 - alpha_bar) at every timestep, float64 [T], falling; 0 at zero terminal SNR."""
    alpha_bar = np.asarray(schedule.alpha_bar, np.float64)
    return alpha_bar / (1.0 - alpha_bar)


def per_pixel(values: jax.Array, like: jax.Array) -> jax.Array:
    """[B] -> [B, 1, 1, ...] beside `like`; a scalar stays one."""
    return values.reshape(values.shape + (1,) * (like.ndim - 1)) if values.ndim else values


def q_sample(schedule: Schedule, x_0: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
    """Noises x_0 [B, ...] to timestep t int [B] with eps ~ N(0, I) of the same shape."""
    alpha_bar = per_pixel(schedule.alpha_bar[t], x_0)
    return jnp.sqrt(alpha_bar) * x_0 + jnp.sqrt(1.0 - alpha_bar) * eps


def prediction_target(schedule: Schedule, kind: str, x_0: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
    """What a network of this kind ("eps", "x0" or "v") should say about (x_0, eps) at t int [B]; same shape as x_0."""
    if kind == "eps":
        return eps
    if kind == "x0":
        return x_0
    if kind == "v":
        alpha_bar = per_pixel(schedule.alpha_bar[t], x_0)
        return jnp.sqrt(alpha_bar) * eps - jnp.sqrt(1.0 - alpha_bar) * x_0
    raise ValueError(f"unknown prediction '{kind}'; one of {PREDICTIONS}")


def to_x0_and_eps(kind: str, output: jax.Array, x_t: jax.Array, alpha_bar: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Reads a network's output as (x_0, eps), neither clipped.

    Args:
      kind: "eps", "x0" or "v".
      output: the network's output [B, ...].
      x_t: its input [B, ...].
      alpha_bar: [] or [B]; 0 is allowed and gives finite values.
    """
    alpha_bar = per_pixel(alpha_bar, x_t)
    signal = jnp.sqrt(jnp.maximum(alpha_bar, SMALLEST_ALPHA_BAR))
    noise = jnp.sqrt(1.0 - alpha_bar)
    if kind == "eps":
        return (x_t - noise * output) / signal, output
    if kind == "x0":
        return output, (x_t - jnp.sqrt(alpha_bar) * output) / jnp.maximum(noise, 1e-8)
    if kind == "v":
        root = jnp.sqrt(alpha_bar)
        return root * x_t - noise * output, root * output + noise * x_t
    raise ValueError(f"unknown prediction '{kind}'; one of {PREDICTIONS}")


def posterior(
    x_0: jax.Array, x_t: jax.Array, alpha_bar: jax.Array, alpha_bar_prev: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean [B, ...] and variance [] or [B] of q(x_s | x_t, x_0) for s < t, given both alpha_bars ([] or [B]).

    With s = t - 1 this is the DDPM posterior; with larger strides the one of the respaced chain. alpha_bar_prev = 1
    stands for s = -1, the clean image, and gives (x_0, 0).
    """
    alpha = alpha_bar / alpha_bar_prev
    beta = 1.0 - alpha
    from_x0 = jnp.sqrt(alpha_bar_prev) * beta / (1.0 - alpha_bar)
    from_xt = jnp.sqrt(alpha) * (1.0 - alpha_bar_prev) / (1.0 - alpha_bar)
    variance = beta * (1.0 - alpha_bar_prev) / (1.0 - alpha_bar)
    return per_pixel(from_x0, x_0) * x_0 + per_pixel(from_xt, x_t) * x_t, variance


def squared_error(output: jax.Array, target: jax.Array) -> jax.Array:
    """Mean squared error of every example over its own pixels: [B, ...] twice -> float32 [B].

    Raises:
      AssertionError: the shapes differ, which broadcasting would hide.
    """
    chex.assert_equal_shape([output, target])
    return jnp.mean(jnp.square(output - target), axis=tuple(range(1, output.ndim)))
