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


def shift_eps(kind: str, output: jax.Array, change: jax.Array, alpha_bar: jax.Array) -> jax.Array:
    """The output that says eps + change where `output` says eps, of the same x_t; x_0 follows.

    Args:
      kind: "eps", "x0" or "v".
      output: the network's output [B, ...].
      change: of eps, [B, ...]; where it is 0 the output keeps its bits.
      alpha_bar: [] or [B]. At 0 an x0 or v cannot say another eps, and moves as `SMALLEST_ALPHA_BAR` would have it.
    """
    alpha_bar = per_pixel(alpha_bar, output)
    signal = jnp.sqrt(jnp.maximum(alpha_bar, SMALLEST_ALPHA_BAR))
    if kind == "eps":
        moved = output + change
    elif kind == "x0":
        moved = output - jnp.sqrt(1.0 - alpha_bar) / signal * change
    elif kind == "v":
        moved = output + change / signal
    else:
        raise ValueError(f"unknown prediction '{kind}'; one of {PREDICTIONS}")
    return jnp.where(change == 0, output, moved)  # -0.0 + 0.0 is not -0.0


def split_output(output: jax.Array, x_t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What a network with a learned variance says at x_t [..., C]: its prediction and v, the halves of [..., 2C].

    Raises:
      ValueError: the output is not of that shape, which broadcasting could hide.
    """
    channels = x_t.shape[-1]
    if output.shape != (*x_t.shape[:-1], 2 * channels):
        raise ValueError(
            f"the network says {output.shape} of {x_t.shape}; with a learned variance it says {2 * channels} channels"
        )
    return output[..., :channels], output[..., channels:]


def learned_log_variance(v: jax.Array, log_small: jax.Array, log_ratio: jax.Array) -> jax.Array:
    """Of a variance between two: f log beta + (1 - f) log beta~ (arXiv 2102.09672 [paper]).

    Args:
      v: the second half of the network's output, [...], with f = (v + 1) / 2 [code]: -1 is the posterior's variance
        beta~, 1 is beta, and nothing keeps it between them [paper].
      log_small: log beta~.
      log_ratio: log(beta / beta~).
    """
    return log_small + 0.5 * (v + 1.0) * log_ratio


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
